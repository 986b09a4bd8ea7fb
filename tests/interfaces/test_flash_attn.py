"""`fcgen.compat.flash_attn_interface` has FlashAttention-3's signatures, and each argument its meaning."""

from __future__ import annotations

import inspect
import itertools
import math

import pytest

from fcgen.errors import FcError

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
from fcgen.compat import flash_attn_interface as flash  # noqa: E402

#: what FlashAttention-3's functions take, in order
SIGNATURES = {
    "flash_attn_func": "q k v softmax_scale causal qv q_descale k_descale v_descale window_size attention_chunk softcap num_splits pack_gqa deterministic "
                       "sm_margin return_attn_probs",
    "flash_attn_qkvpacked_func": "qkv softmax_scale causal q_descale k_descale v_descale window_size attention_chunk softcap deterministic num_heads_q "
                                 "sm_margin return_attn_probs",
    "flash_attn_varlen_func": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k seqused_q seqused_k softmax_scale causal qv q_descale k_descale "
                              "v_descale window_size attention_chunk softcap num_splits pack_gqa deterministic sm_margin return_attn_probs",
    "flash_attn_combine": "out_partial lse_partial out out_dtype"}
OPTIONS = [{}, {"causal": True}, {"window_size": (7, -1)}, {"window_size": (7, 3)}, {"window_size": (-1, 0)}, {"causal": True, "window_size": (9, 5)},
           {"softcap": 3.0, "causal": True}, {"attention_chunk": 16}, {"attention_chunk": 16, "causal": True}, {"softmax_scale": 0.2, "num_splits": 3, "pack_gqa": True}]


def half(*shape):
    return torch.randn(*shape).half()


def reference(q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1), attention_chunk=0, softcap=0.0, **_):
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    s = q @ k.transpose(2, 3) * (softmax_scale or q.shape[-1] ** -0.5)
    s = softcap * torch.tanh(s / softcap) if softcap else s
    rows, keys = s.shape[2:]
    i, j = torch.arange(rows)[:, None] + keys - rows, torch.arange(keys)[None]
    left, right = window_size[0], 0 if causal else window_size[1]
    seen = (j >= i - left if left >= 0 else j >= 0) & (j <= i + right if right >= 0 else j >= 0)
    if attention_chunk:
        seen = seen & (torch.div(i, attention_chunk, rounding_mode="floor") == j // attention_chunk)
    s = s.masked_fill(~seen, -math.inf)
    return (torch.where(seen.any(-1)[:, None], s.softmax(-1), 0.0) @ v).transpose(1, 2), s.logsumexp(-1)


def near(got, want, by):
    return bool((torch.where(got == want, 0.0, (got - want).abs()) < by).all())


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    assert list(inspect.signature(getattr(flash, name)).parameters) == SIGNATURES[name].split()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(30, 50), (50, 30)], ids=str)
def test_batches(kernels, shape, options):
    rows, keys = shape
    q, k, v = half(2, rows, 4, 16), half(2, keys, 2, 16), half(2, keys, 2, 32)
    out, lse = flash.flash_attn_func(q, k, v, return_attn_probs=True, **options)
    want = reference(q, k, v, **options)
    assert out.is_contiguous() and near(out, want[0], 4e-3) and near(lse, want[1], 1e-3)
    assert torch.equal(flash.flash_attn_func(q, k, v, **options), out)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_packed_sequences(kernels, options, used):
    rows, keys = [20, 0, 13, 1], [33, 5, 0, 9]
    at_q, at_k = (torch.tensor([0, *itertools.accumulate(x)], dtype=torch.int32) for x in (rows, keys))
    q, k, v = half(sum(rows), 4, 16), half(sum(keys), 2, 16), half(sum(keys), 2, 16)
    seqused = torch.tensor([31, 2, 0, 9], dtype=torch.int32) if used else None
    out, lse = flash.flash_attn_varlen_func(q, k, v, at_q, at_k, max(rows), max(keys), seqused_k=seqused, return_attn_probs=True, **options)
    assert lse.shape == (4, sum(rows))
    for s in range(4):
        a, b, c = at_q[s], at_q[s + 1], at_k[s]
        d = c + (seqused[s] if used else keys[s])
        want = reference(q[None, a:b], k[None, c:d], v[None, c:d], **options)
        assert near(out[a:b], want[0][0], 4e-3) and near(lse[:, a:b], want[1][0], 1e-3)


def test_packed_tensors(kernels):
    qkv = half(2, 20, 3, 4, 16)
    out = flash.flash_attn_qkvpacked_func(qkv, causal=True)
    assert out.is_contiguous() and near(out, reference(*qkv.unbind(2), causal=True)[0], 4e-3)
    heads = half(2, 20, 8, 16)
    assert near(flash.flash_attn_qkvpacked_func(heads, num_heads_q=4), reference(*heads.split([4, 2, 2], 2))[0], 4e-3)


@pytest.mark.parametrize("axes", [(2, 9), (18,)])
def test_parts_are_combined(axes):
    parts, lse = torch.randn(3, *axes, 4, 16), torch.randn(3, *axes, 4)
    lse[:, 0] = -math.inf
    lse[1] = -math.inf
    out, total = flash.flash_attn_combine(parts, lse, out_dtype=torch.float16)
    want = (torch.nan_to_num(torch.softmax(lse, 0))[..., None] * parts).sum(0)
    assert out.dtype == torch.float16 and near(out, want.half(), 2e-3) and near(total, lse.logsumexp(0), 1e-5)
    given = torch.empty(*axes, 4, 16)
    assert flash.flash_attn_combine(parts, lse, given)[0] is given and near(given, want, 1e-5)


REFUSED = {"qv": torch.ones(1), "q_descale": torch.ones(1), "k_descale": torch.ones(1), "v_descale": torch.ones(1), "sm_margin": 4, "num_splits": -1,
           "pack_gqa": "yes", "window_size": 3, "attention_chunk": -1, "softcap": -1.0}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(kernels, name):
    q = half(2, 9, 4, 16)
    with pytest.raises(FcError, match=f"`{name}`"):
        flash.flash_attn_func(q, q, q, **{name: REFUSED[name]})
    with pytest.raises(FcError, match=f"`{name}`"):
        at = torch.tensor([0, 9], dtype=torch.int32)
        flash.flash_attn_varlen_func(q[0], q[0], q[0], at, at, 9, 9, **{name: REFUSED[name]})
    assert not kernels


def test_bad_tensors_are_refused(kernels):
    q = half(2, 9, 4, 16)
    for given, said in (((q[0], q, q), "`q` has the wrong number of axes"), ((q, q, [1]), "`v` is not a tensor"), ((q.float(),) * 3, "wrong dtype"),
                        ((q, q[:, :, :3], q[:, :, :3]), "multiple of those"), ((q, q, q.to_sparse()), "not a strided tensor")):
        with pytest.raises(FcError, match=said):
            flash.flash_attn_func(*given)
    at = torch.tensor([0, 9], dtype=torch.int32)
    with pytest.raises(FcError, match="not a strided tensor"):
        flash.flash_attn_varlen_func(q[0], q[0].to_sparse(), q[0], at, at, 9, 9)
    with pytest.raises(FcError, match="not a strided tensor"):
        flash.flash_attn_combine(q.float().to_sparse(), torch.ones(2, 9, 4))
    with pytest.raises(FcError, match="num_heads_q"):
        flash.flash_attn_qkvpacked_func(half(1, 9, 8, 16), num_heads_q=3)


def test_one_graph_for_all_lengths(kernels, fresh):
    backend, made = fresh
    at = lambda *n: torch.tensor([0, *itertools.accumulate(n)], dtype=torch.int32)
    dense = torch.compile(lambda q, k, v: flash.flash_attn_func(q, k, v, causal=True, window_size=(9, 0), softcap=5.0), fullgraph=True, backend=backend, dynamic=True)
    ragged = torch.compile(lambda q, k, v, a, b, m: flash.flash_attn_varlen_func(q, k, v, a, b, m, m, causal=True), fullgraph=True, backend=backend, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (30, 41, 17):
            q, k, v = half(2, n, 4, 16), half(2, n + 5, 2, 16), half(2, n + 5, 2, 32)
            assert near(dense(q, k, v), reference(q, k, v, causal=True, window_size=(9, 0), softcap=5.0)[0], 4e-3)
            a, b = at(n - 9, 0, 9), at(n, 3, 2)
            q, k = half(n, 4, 16), half(n + 5, 2, 16)
            assert near(ragged(q, k, k, a, b, n), flash.flash_attn_varlen_func(q, k, k, a, b, n, n, causal=True), 1e-6)
    assert len(made) == 2


def test_a_window_is_any_two_whole_numbers(kernels):
    q = half(1, 5, 2, 16)
    want = flash.flash_attn_func(q, q, q, window_size=(2, 0))
    for window in (torch.tensor([2, 0]), (torch.tensor(2), torch.tensor([0])[0]), [2, 0]):
        assert torch.equal(flash.flash_attn_func(q, q, q, window_size=window), want)
    for wrong in (torch.tensor([2.0, 0.0]), (2,), (1, 2, 3), 7, (2, "0"), torch.tensor(3), (True, 2.5)):
        with pytest.raises(FcError, match="window_size"):
            flash.flash_attn_func(q, q, q, window_size=wrong)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"softcap": 3.0}], ids=str)
def test_nothing_flows_into_the_score_of_an_only_key(gradient_kernels, options, packed):
    """Its weight is 1. (Sums of the same products in other orders differ by 1e-6.)"""
    q, k, v = (half(*((5, 4) if packed else (1, 5, 4)), 40).requires_grad_() for _ in range(3))
    if packed:
        at = torch.tensor([0, 1, 3, 5], dtype=torch.int32)
        q, k, v, at_k = q, k[:3].detach().requires_grad_(), v[:3].detach().requires_grad_(), torch.tensor([0, 1, 2, 3], dtype=torch.int32)
        call = lambda **more: flash.flash_attn_varlen_func(q, k, v, at, at_k, 2, 1, **options, **more)
    else:
        k, v = (x[:, :1].detach().requires_grad_() for x in (k, v))
        call = lambda **more: flash.flash_attn_func(q, k, v, **options, **more)
    out = call()
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), torch.randn_like(out))
    assert (dq == 0).all() and (dk == 0).all() and (dv != 0).any()
    out, lse = call(return_attn_probs=True)
    assert (torch.autograd.grad(lse.sum(), q)[0] != 0).any()  # the logarithm of their sum is the score
    with torch.no_grad():
        v[..., 0] = math.inf
    assert torch.autograd.grad(call().sum(), q)[0].isnan().any()
