"""Gradients through torch's interfaces, against torch's own in float64: eager, in graphs, with checkpoints, and transforms of torch.func."""

from __future__ import annotations

import pytest

import fcgen as fc
from fcgen.errors import FcError

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
from torch.nn.attention import flex_attention as theirs  # noqa: E402

from fcgen.compat import flash_attn_interface as flash  # noqa: E402
from fcgen.integrations import flash_backend  # noqa: E402

F = torch.nn.functional
pytestmark = pytest.mark.filterwarnings("ignore")
B, H, M, N, D = 2, 2, 19, 23, 16


@pytest.fixture(autouse=True)
def programs(gradient_kernels):
    return gradient_kernels


def half(*shape, dtype=torch.float16):
    return torch.randn(*shape).to(dtype).requires_grad_()


def draw(groups=H, m=M, n=N, e=D):
    return half(B, H, m, D), half(B, groups, n, D), half(B, groups, n, e)


def copies(xs):
    return [x.detach().double().requires_grad_() for x in xs]


def agree(ours, want, tolerance=8e-3):
    for n, (x, y) in enumerate(zip(ours, want)):
        g = x.grad if x.grad is not None else torch.zeros_like(x)
        assert g.dtype == x.dtype and g.shape == x.shape, n
        y = torch.zeros_like(y) if y.grad is None else y.grad
        assert (g.double() - y).abs().max() <= tolerance * (0.3 + y.abs().max()), (n, (g.double() - y).abs().max())


def check(xs, ours, want, tolerance=8e-3):
    """The same weighted sum of what `ours` and `want` give, backwards."""
    ys = copies(xs)
    out, exactly = ours(*xs), want(*ys)
    g = torch.randn(exactly.shape)
    assert out.grad_fn is not None and (out.double() - exactly).abs().max() < tolerance * (1 + exactly.abs().max())
    out.backward(g.to(out.dtype))
    exactly.backward(g.to(out.dtype).double())
    agree(xs, ys, tolerance)


# ---- scaled_dot_product_attention ----------------------------------------------------------------------------------------------------


def sdpa_exactly(q, k, v, attn_mask=None, **more):
    return F.scaled_dot_product_attention(q, k, v, attn_mask, **more)


SDPA = {
    "plain": (lambda: draw(), {}), "causal": (lambda: draw(), {"is_causal": True}),
    "padded head size, broadcast": (lambda: (half(B, H, M, 13), half(1, 1, N, 13), half(1, 1, N, 11)), {}),
    "bools": (lambda: draw(), {"attn_mask": torch.rand(M, N) > 0.4}),
    "two axes": (lambda: (half(M, D), half(N, D), half(N, 24)), {"scale": -0.3}),
}


@pytest.mark.parametrize("name", SDPA)
def test_scaled_dot_product_attention(name) -> None:
    make, more = SDPA[name]
    check(make(), lambda *x: fc.scaled_dot_product_attention(*x, **more), lambda *x: sdpa_exactly(*x, **more))


@pytest.mark.parametrize("shape", [(B, H, M, N), (1, H, M, N), (M, N), (B, 1, 1, N), (1, H, M, 1), (H, 1, 1)])
def test_masks_of_floats_that_are_learnt(shape) -> None:
    bias = torch.randn(shape).requires_grad_()
    xs = *draw(), bias
    # added to all of a row's scores it changes nothing: the exact gradient is zero, and what is seen are the roundings of all rows' outputs
    check(xs, fc.scaled_dot_product_attention, sdpa_exactly, 8e-3 if shape[-1] > 1 else 3e-2)


@pytest.mark.parametrize(("n", "d"), [(4, 96), (4, 72), (16, 128)])
def test_the_rounding_of_few_weights_does_not_reach_the_gradient_of_the_query(n, d) -> None:
    q, k, v = (torch.rand(1, 2, m, d).bfloat16().requires_grad_() for m in (24, n, n))
    ys = copies((q, k, v))
    g = torch.rand(1, 2, 24, d).bfloat16()
    fc.scaled_dot_product_attention(q, k, v).backward(g)
    F.scaled_dot_product_attention(*ys).backward(g.double())
    assert (q.grad.double() - ys[0].grad).abs().max() < 2e-3  # 3 to 4e-3 where a row is divided by the sum of what was not rounded


def test_autocast_casts_as_for_torch() -> None:
    xs = [x.detach().float().requires_grad_() for x in draw()]
    torch.set_autocast_enabled("cuda", True)
    try:
        out = fc.scaled_dot_product_attention(*xs)
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert out.dtype == torch.get_autocast_dtype("cuda")
    ys = copies(xs)
    out.float().sum().backward()
    F.scaled_dot_product_attention(*ys).sum().backward()
    agree(xs, ys, 3e-2)


def test_dropout_drops_the_same_weights_backward() -> None:
    """The gradient of the values is the sum of weights, of which the output of ones for values is the other sum."""
    q, k, v = draw()
    one = torch.ones_like(v).requires_grad_()
    torch.manual_seed(3)
    out = fc.scaled_dot_product_attention(q, k, one, dropout_p=0.5)
    out.backward(torch.ones_like(out))
    torch.testing.assert_close(one.grad.float().sum((2, 3)), out.detach().float().sum((2, 3)), rtol=1e-2, atol=1e-2)
    assert out.detach().float().std() > 0.1


# ---- flex_attention -----------------------------------------------------------------------------------------------------------------


def listed(counts, indices, n):
    """Which of n blocks are in the lists."""
    out = torch.zeros(*counts.shape, n, dtype=torch.bool)
    for at in torch.cartesian_prod(*map(torch.arange, counts.shape)).tolist():
        out[(*at, indices[(*at, slice(int(counts[tuple(at)])))].long())] = True
    return out


def flex_exactly(score, block=None):
    """What torch's flex_attention has no backward pass for on a CPU."""
    def run(q, k, v, *held):
        (m, n), groups = (q.shape[2], k.shape[2]), q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
        at = [torch.arange(size).view([-1 if a == axis else 1 for a in range(4)]) for axis, size in enumerate((*q.shape[:2], m, n))]
        s = score(*held)(q @ k.transpose(2, 3) * q.shape[3]**-0.5, *at)
        if block is not None:
            wide = lambda x: x.repeat_interleave(block.BLOCK_SIZE[0], 2)[:, :, :m].repeat_interleave(block.BLOCK_SIZE[1], 3)[..., :n]
            count = -(-n // block.BLOCK_SIZE[1])
            seen = wide(listed(block.kv_num_blocks, block.kv_indices, count)) & block.mask_mod(*at)
            if block.full_kv_num_blocks is not None:
                seen = seen | wide(listed(block.full_kv_num_blocks, block.full_kv_indices, count))
            s = torch.where(seen, s, -torch.inf)
        lse = s.logsumexp(-1, keepdim=True)
        return torch.where(lse.isneginf(), 0.0, (s - torch.where(lse.isneginf(), 0.0, lse)).exp()) @ v

    return run


def test_flex_attention_and_what_its_functions_hold() -> None:
    bias, slopes, heat = torch.randn(H, M, N).requires_grad_(), torch.randn(H).requires_grad_(), torch.ones(1).requires_grad_()
    block = theirs.create_block_mask(lambda b, h, i, j: j <= i + 5, None, None, M, N, device="cpu", BLOCK_SIZE=16)

    def score(bias, slopes, heat):
        return lambda s, b, h, i, j: torch.tanh(s * heat[0]) + bias[h, i, j] - slopes[h] * (i - j).abs() * 0.1

    learnt = (bias, slopes, heat)
    check((*draw(groups=1), *learnt), lambda q, k, v, *x: fc.flex_attention(q, k, v, score(*x), block, enable_gqa=True), flex_exactly(score, block))


@pytest.mark.parametrize("blocks", ["more than the function", "less than the function"])
def test_lists_of_blocks_that_are_not_those_of_their_function(blocks) -> None:
    block = theirs.create_block_mask(lambda b, h, i, j: (i + j) % 3 != 0, None, None, 128, 128, device="cpu", BLOCK_SIZE=64)
    if blocks == "less than the function":
        block.kv_num_blocks.fill_(1)
    else:
        block.full_kv_num_blocks, block.full_kv_indices = block.kv_num_blocks.clone().fill_(1), block.kv_indices.clone()
        block.kv_num_blocks.fill_(1)
        block.kv_indices.copy_(block.kv_indices.flip(-1))
    check(draw(m=128, n=128), lambda *x: fc.flex_attention(*x, None, block), flex_exactly(lambda: lambda s, *_: s, block))


# ---- FlashAttention -------------------------------------------------------------------------------------------------------------------


def of_rows(run):
    """With [B, M, H, D] in place of [B, H, M, D]."""
    return lambda *xs: run(*[x.transpose(1, 2) for x in xs]).transpose(1, 2)


@pytest.mark.parametrize("deterministic", [False, True])
def test_flash_attn_func(deterministic, programs) -> None:
    xs = half(B, M, H, D), half(B, N, 1, D), half(B, N, 1, 24)
    i, j = torch.arange(M)[:, None], torch.arange(N)
    seen = (j <= i + N - M) & (j >= i + N - M - 5)
    want = of_rows(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True))
    check(xs, lambda *x: flash.flash_attn_func(*x, causal=True, window_size=(5, 0), deterministic=deterministic), want)
    assert not deterministic or "backward_rows" in [p.name for p in programs]


def test_packed_heads_with_the_log_sum_exp() -> None:
    qkv = half(B, M, 3, H, D)
    out, lse = flash.flash_attn_qkvpacked_func(qkv, causal=True, return_attn_probs=True)
    (out.float().sum() + lse.sum()).backward()
    (y,) = copies([qkv])
    q, k, v = (x.transpose(1, 2) for x in y.unbind(2))
    s = torch.where(torch.arange(M)[:, None] >= torch.arange(M), q @ k.transpose(2, 3) * D**-0.5, -torch.inf)
    ((s.softmax(-1) @ v).sum() + s.logsumexp(-1).sum()).backward()
    agree([qkv], [y])


@pytest.mark.parametrize("more", [{}, {"causal": True, "attention_chunk": 8}, {"softcap": 3.0, "deterministic": True}])
def test_flash_attn_varlen_func(more) -> None:
    ends = torch.tensor([0, 7, 7, 20], dtype=torch.int32)
    xs = half(20, H, D), half(20, 1, D), half(20, 1, D)

    def want(q, k, v):
        out = []
        for a, b in ((0, 7), (7, 20)):
            x, y, z = (t[a:b].transpose(0, 1) for t in (q, k, v))
            s = x @ y.transpose(1, 2) * D**-0.5
            s = 3.0 * torch.tanh(s / 3.0) if "softcap" in more else s
            i, j = torch.arange(b - a)[:, None], torch.arange(b - a)
            seen = (j <= i) & (j // 8 == i // 8) if more.get("causal") else j >= 0
            out.append((torch.where(seen, s, -torch.inf).softmax(-1) @ z).transpose(0, 1))
        return torch.cat(out)

    check(xs, lambda *x: flash.flash_attn_varlen_func(*x, ends, ends, 13, 13, **more), want)


def test_parts_that_are_combined_have_no_backward_pass() -> None:
    with pytest.raises(FcError, match="requires grad"):
        flash.flash_attn_combine(torch.randn(2, 1, 5, 2, 8).requires_grad_(), torch.randn(2, 1, 5, 2))


# ---- torch's own flash attention operators ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_operators_of_torchs_flash_attention(causal) -> None:
    xs = draw(m=N)
    q, k, v = (x.detach() for x in xs)
    with torch.no_grad():
        out, lse, *_ = flash_backend.sdpa(q, k, v, is_causal=causal)
        g = torch.randn_like(out)
        found = flash_backend.sdpa_backward(g, q, k, v, out, lse, None, None, N, N, 0.0, causal, None, None)
        rows = [x.transpose(1, 2) for x in (g, q, k, v, out)]
        flat = flash_backend.flash_backward(*rows, lse, None, None, N, N, 0.0, causal, None, None)
    ys = copies(xs)
    F.scaled_dot_product_attention(*ys, is_causal=causal).backward(g.double())
    for x, a, b in zip(xs, found, flat):
        assert a.shape == x.shape
        torch.testing.assert_close(a, b.transpose(1, 2))
        x.grad = a
    agree(xs, ys)


# ---- graphs, checkpoints, transforms ------------------------------------------------------------------------------------------------


def table_and_dropout(q, k, v, bias):
    return fc.scaled_dot_product_attention(q * 2, k, v, attn_mask=bias, dropout_p=0.25).float()


def flex_of(bias):
    return lambda s, b, h, i, j: s + bias[h, i, j]


LATER = torch.randn(H, M, N)
ENDS = torch.tensor([0, 7, M], dtype=torch.int32)
GRAPHS = {
    "sdpa": table_and_dropout, "plain": lambda q, k, v, bias: fc.scaled_dot_product_attention(q, k, v * 2, is_causal=True),
    "flash": lambda q, k, v, bias: flash.flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), softcap=5.0),
    "varlen": lambda q, k, v, bias: flash.flash_attn_varlen_func(q[0].mT.contiguous().mT.transpose(0, 1), *(x[0].transpose(0, 1)[:M] for x in (k, v)),
                                                                 ENDS, ENDS, M, M, causal=True),
    # (head sizes that the backward programs have only with zeros beside them)
    "wide": lambda q, k, v, bias: fc.attention(*(torch.nn.functional.pad(x, (0, 264 - x.shape[-1])) for x in (q, k, v)), causal="top_left"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_has_the_gradients_of_the_plain_call(name) -> None:
    torch._dynamo.reset()
    run = GRAPHS[name]
    xs = [*draw(), torch.randn(1, H, M, N).requires_grad_()]
    ys = [x.detach().clone().requires_grad_() for x in xs]
    torch.manual_seed(5)
    out = run(*ys)
    g = torch.randn_like(out)
    out.backward(g)
    torch.manual_seed(5)
    torch.compile(run, backend="aot_eager", fullgraph=True)(*xs).backward(g)
    for x, y in zip(xs, ys):
        torch.testing.assert_close(x.grad, y.grad)
    torch._dynamo.reset()


def test_a_graph_with_functions_has_the_gradients_of_what_they_hold() -> None:
    torch._dynamo.reset()
    bias = torch.randn(H, M, N).requires_grad_()
    score = flex_of(bias)
    block = theirs.create_block_mask(lambda b, h, i, j: j <= i + 5, None, None, M, N, device="cpu", BLOCK_SIZE=16)
    step = torch.compile(lambda q, k, v: fc.flex_attention(q, k, v, score, block), backend="aot_eager", fullgraph=True)
    check((*draw(), bias), lambda q, k, v, _: step(q, k, v), flex_exactly(flex_of, block))
    torch._dynamo.reset()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant) -> None:
    xs = [*draw(), torch.randn(1, H, M, N).requires_grad_()]
    ys = [x.detach().clone().requires_grad_() for x in xs]
    torch.manual_seed(5)
    table_and_dropout(*ys).sum().backward()
    torch.manual_seed(5)
    torch.utils.checkpoint.checkpoint(table_and_dropout, *xs, use_reentrant=reentrant).sum().backward()
    for x, y in zip(xs, ys):
        assert torch.equal(x.grad, y.grad)


def test_gradients_of_torch_func() -> None:
    xs, bias = [x.detach() for x in draw()], torch.randn(H, M, N)
    ys = copies([*xs, bias])
    g = torch.randn(B, H, M, D)
    got = torch.func.grad(lambda q, k, v, bias: (fc.flex_attention(q, k, v, flex_of(bias)).float() * g).sum(), (0, 1, 2, 3))(*xs, bias)
    (flex_exactly(flex_of, None)(*ys) * g).sum().backward()
    for y, x in zip(ys, got):
        assert (x.double() - y.grad).abs().max() <= 8e-3 * y.grad.abs().max()
    out, vjp = torch.func.vjp(lambda q, bias: fc.scaled_dot_product_attention(q, *xs[1:], attn_mask=bias), xs[0], bias[None])
    assert [x.shape for x in vjp(torch.ones_like(out))] == [xs[0].shape, (1, H, M, N)]


def test_second_derivatives_are_refused_in_graphs_too() -> None:
    torch._dynamo.reset()
    q, k, v = draw()
    op = torch.ops.fcgen.attend_learnt
    out, _ = op(q, k, v, None, None, "none", -1, -1, None, 0, None, None, None, None, False)
    (g,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(FcError, match="has no derivative"):
        g.sum().backward()


def test_tables_that_were_written_to_are_noticed() -> None:
    bias = torch.randn(M, N).requires_grad_()
    out = fc.scaled_dot_product_attention(*draw(), attn_mask=bias)
    with torch.no_grad():
        bias.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_gradient_that_is_a_lazily_negated_view() -> None:
    xs = draw()
    ys = copies(xs)
    g = torch.randn(B, H, M, D).half()
    fc.scaled_dot_product_attention(*xs).backward(torch._neg_view(g))
    sdpa_exactly(*ys).backward(-g.double())
    agree(xs, ys)


def test_a_number_that_requires_grad_is_refused_and_as_a_tensor_it_learns() -> None:
    """It was read as a number, and nothing said that it gets no gradient."""
    q, k, v = draw()
    by = torch.tensor(1.5, requires_grad=True)
    scaled = lambda s, b, h, i, j: s * by
    for call in (lambda: fc.flex_attention(q, k, v, scaled), lambda: fc.attention(q.detach(), k.detach(), v.detach(), score=scaled)):
        with pytest.raises(FcError, match="a number that requires grad"):
            call()
        with torch.no_grad():
            call()
    by = by.detach()[None].requires_grad_()
    check((q, k, v, by), lambda q, k, v, t: fc.flex_attention(q, k, v, lambda s, b, h, i, j: s * t[0]),
          lambda q, k, v, t: torch.softmax(q @ k.mT * D**-0.5 * t, -1) @ v)
