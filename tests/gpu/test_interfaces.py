"""On the GPU: PyTorch's, FlashAttention's and Hugging Face's interfaces, in graphs of Inductor and outside. One kernel for each kind of call."""

import itertools
import math

import pytest

import fcgen
from fcgen.errors import FcError

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")


def SDPA(*args, **options):
    return fcgen.scaled_dot_product_attention(*args, **options)


def half(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.float16)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def near(got, want, by=4e-3):
    assert got.shape == want.shape and torch.allclose(got.double(), want.double(), atol=by, rtol=by, equal_nan=True), (got - want).abs().max()


def exact(q, k, v, mask=None, **options):
    return torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask if mask is None or mask.dtype == torch.bool else mask.double(), **options)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=str)
def test_plain_calls_take_the_short_way_and_mean_what_torch_means(options):
    for n in (129, 129, 200, 64):
        q, k, v = half(2, 4, n, 64), half(2, 4, 150, 64), half(2, 4, 150, 64)
        near(SDPA(q, k, v, **options), exact(q, k, v, **options))
    near(SDPA(q[0], k[0], v[0], **options), exact(q[0], k[0], v[0], **options))
    q = half(2, 8, 70, 64)
    near(SDPA(q, k, v, enable_gqa=True, **options), exact(q, k, v, enable_gqa=True, **options))
    with pytest.raises(FcError, match="enable_gqa"):
        SDPA(q, k, v)


def test_masks_of_bools_and_of_floats():
    for n, m in ((129, 300), (64, 65), (1, 300)):
        q, k, v = half(2, 4, n, 64), half(2, 4, m, 64), half(2, 4, m, 64)
        for shape in ((n, m), (2, 1, n, m)):
            mask = torch.rand(shape, device="cuda") > 0.4
            mask[..., 0, :] = False
            near(SDPA(q, k, v, mask), exact(q, k, v, mask))
            bias = torch.randn(shape, device="cuda")
            near(SDPA(q, k, v, bias), exact(q, k, v, bias))
    padding = torch.arange(300, device="cuda") < torch.tensor([130, 300], device="cuda")[:, None, None, None]
    near(SDPA(q, k, v, padding), exact(q, k, v, padding))


def test_inductor_makes_one_graph_and_a_cuda_graph_replays():
    torch._dynamo.reset()
    block = torch.compile(lambda q, k, v: SDPA(q * 2, k, v, is_causal=True) + 1, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (129, 200, 64):
            q, k, v = half(2, 4, n, 64), half(2, 4, n, 64), half(2, 4, n, 64)
            near(block(q, k, v), exact(q * 2, k, v, is_causal=True) + 1)
    reduced = torch.compile(lambda q, k, v: SDPA(q, k, v, is_causal=True) * 2, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        q, k, v = half(2, 4, 128, 64), half(2, 4, 128, 64), half(2, 4, 128, 64)
        near(reduced(q, k, v).clone(), exact(q, k, v, is_causal=True) * 2)


def test_a_mask_in_a_graph():
    torch._dynamo.reset()
    block = torch.compile(lambda q, k, v, m: SDPA(q, k, v, m) * 1, fullgraph=True)
    for n in (129, 200):
        q, k, v, mask = half(2, 4, n, 64), half(2, 4, 300, 64), half(2, 4, 300, 64), torch.rand(n, 300, device="cuda") > 0.3
        near(block(q, k, v, mask), exact(q, k, v, mask))


def test_flex_attention_with_a_block_mask():
    theirs = pytest.importorskip("torch.nn.attention.flex_attention")
    torch._dynamo.reset()
    block = torch.compile(lambda q, k, v, score, mask: fcgen.flex_attention(q, k, v, score, mask), fullgraph=True)

    def check(n):
        q, k, v = (half(2, 4, n, 64) for _ in range(3))
        slopes, doc = torch.rand(4, device="cuda"), torch.arange(n, device="cuda") // 100
        score = lambda s, b, h, i, j: s - slopes[h] * (i - j)
        seen = lambda b, h, i, j: (i >= j) & (doc[i] == doc[j])
        mask = theirs.create_block_mask(seen, None, None, n, n, device="cuda")
        i = torch.arange(n, device="cuda")
        bias = torch.where(seen(0, 0, i[:, None], i[None]), -slopes[:, None, None].double() * (i[:, None] - i[None]), -math.inf)
        for got in (fcgen.flex_attention(q, k, v, score, mask), block(q, k, v, score, mask)):
            near(got, exact(q, k, v, bias[None]))

    check(256)
    check(300)


def test_lists_of_blocks():
    theirs = pytest.importorskip("torch.nn.attention.flex_attention")
    q, k, v = half(1, 4, 512, 64), half(1, 4, 512, 64), half(1, 4, 512, 64)
    count, index = torch.tensor([[[1, 2, 1, 3]]], device="cuda", dtype=torch.int32), torch.tensor([[[[2, 0, 1, 3], [0, 3, 1, 2], [1, 0, 2, 3], [3, 1, 0, 2]]]], device="cuda", dtype=torch.int32)
    mask = theirs.BlockMask.from_kv_blocks(count, index, BLOCK_SIZE=128, seq_lengths=(512, 512))
    table = torch.zeros(4, 4, device="cuda", dtype=torch.bool)
    for row in range(4):
        table[row, index[0, 0, row, :count[0, 0, row]].long()] = True
    near(fcgen.flex_attention(q, k, v, block_mask=mask), exact(q, k, v, table.repeat_interleave(128, 0).repeat_interleave(128, 1)))


def test_flash_attentions_functions():
    from fcgen.compat import flash_attn_interface as flash

    q, k, v = half(2, 200, 8, 64), half(2, 300, 2, 64), half(2, 300, 2, 64)
    i, j = torch.arange(200, device="cuda")[:, None] + 100, torch.arange(300, device="cuda")[None]
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    for options, mask in (({"causal": True}, j <= i), ({"causal": True, "window_size": (50, 0)}, (j <= i) & (j >= i - 50))):
        out = flash.flash_attn_func(q, k, v, **options)
        assert out.is_contiguous()
        near(out.transpose(1, 2), exact(*heads, mask, enable_gqa=True))
    rows = [0, 100, 100, 101, 200]
    at = torch.tensor(rows, device="cuda", dtype=torch.int32)
    q, k, v = half(200, 8, 64), half(200, 2, 64), half(200, 2, 64)
    out, lse = flash.flash_attn_varlen_func(q, k, v, at, at, 100, 100, causal=True, return_attn_probs=True)
    assert lse.shape == (8, 200)
    for a, b in itertools.pairwise(rows):
        near(out[a:b].transpose(0, 1), exact(*[x[a:b].transpose(0, 1) for x in (q, k, v)], is_causal=True, enable_gqa=True))


@pytest.mark.parametrize("options", [{}, {"causal": True, "softcap": 15.0}, {"window_size": (900, 70)}], ids=str)
def test_a_packed_batch_of_long_rows_without_any_keys(options):
    from fcgen.compat import flash_attn_interface as flash

    q, k, v = half(8175, 6, 64).requires_grad_(), half(0, 1, 64).requires_grad_(), half(0, 1, 64).requires_grad_()
    rows, keys = (torch.tensor(x, device="cuda", dtype=torch.int32) for x in ((0, 4090, 8175), (0, 0, 0)))
    out, lse = flash.flash_attn_varlen_func(q, k, v, rows, keys, 4090, 0, return_attn_probs=True, **options)
    grads = torch.autograd.grad(out, (q, k, v), torch.randn_like(out))
    assert not out.any() and lse.isneginf().all() and not grads[0].any() and [g.shape for g in grads] == [x.shape for x in (q, k, v)]


def test_a_model_of_hugging_face():
    T = pytest.importorskip("transformers", minversion="4.56")
    from fcgen.integrations import transformers as ours

    ours.register()
    small = dict(vocab_size=97, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
                 max_position_embeddings=256, sliding_window=16, layer_types=["sliding_attention", "full_attention"], num_local_experts=1, num_experts_per_tok=1)  # one: no rounding may send a row to another expert
    model = T.GptOssForCausalLM(T.GptOssConfig(**small)).eval().to("cuda", torch.bfloat16)
    for name, p in model.named_parameters():
        p.data.normal_(0, 1.0 if "sink" in name else 0.1) if p.dim() > 1 or "sink" in name else None
    ids = torch.randint(0, 97, (2, 60), device="cuda")
    padded = torch.ones_like(ids)
    padded[0, :9] = 0
    logits = {}
    with torch.no_grad():
        for implementation in ("eager", "fcgen"):
            model.set_attn_implementation(implementation)
            logits[implementation] = [model(ids, attention_mask=m).logits.float()[m.bool() if m is not None else ids >= 0] for m in (None, padded)]
    for want, got in zip(*logits.values()):
        assert (got - want).abs().max() < 0.05 * want.abs().max() and (got - want).abs().mean() < 0.01 * want.abs().max()


def test_torchs_own_sdpa_through_the_registered_backend():
    attention = pytest.importorskip("torch.nn.attention")
    if not hasattr(attention, "register_flash_attention_impl"):
        pytest.skip("needs torch 2.11, which registers backends")
    from fcgen.integrations import flash_backend

    flash_backend.register()
    attention.activate_flash_attention_impl("fcgen")
    try:
        q, k, v = (half(2, 4, 129, 64).requires_grad_() for _ in range(3))
        with attention.sdpa_kernel(attention.SDPBackend.FLASH_ATTENTION):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            grads = torch.autograd.grad(out.sum(), (q, k, v))
    finally:
        attention.restore_flash_attention_impl()
    want = exact(q, k, v, is_causal=True)
    near(out, want)
    for got, w in zip(grads, torch.autograd.grad(want.sum(), (q, k, v))):
        near(got, w, 2e-2)


def test_masks_of_batches_and_heads_alone():
    q, k, v = half(2, 4, 70, 64), half(2, 4, 90, 64), half(2, 4, 90, 64)
    for mask in (torch.rand(2, 4, 1, 1, device="cuda") > 0.5, torch.ones(1, 1, 1, 1, dtype=torch.bool, device="cuda")):
        near(SDPA(q, k, v, mask), exact(q, k, v, mask))


def test_block_masks_one_after_the_other_have_schedules_of_their_own():
    """Their functions are all wrapped alike, and ask for other work."""
    from torch.nn.attention.flex_attention import create_block_mask

    q, k, v = half(2, 4, 200, 64), half(2, 4, 200, 64), half(2, 4, 200, 64)
    doc, table = torch.arange(200, device="cuda") // 31, torch.randn(200, device="cuda")
    i = torch.arange(200, device="cuda")
    for mask, seen in ((lambda b, h, i, j: i >= j, i[:, None] >= i), (lambda b, h, i, j: i < 9, (i[:, None] < 9).expand(200, 200)),
                       (lambda b, h, i, j: doc[i] == doc[j], doc[:, None] == doc)):
        near(fcgen.flex_attention(q, k, v, block_mask=create_block_mask(mask, None, None, 200, 200, device="cuda")), exact(q, k, v, seen))
    near(fcgen.flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i - j]), exact(q, k, v, table[i[:, None] - i]))


def test_nothing_flows_into_the_score_of_an_only_key():
    from fcgen.compat.flash_attn_interface import flash_attn_func

    q, k, v = (half(2, n, 4, 64).requires_grad_() for n in (9, 1, 1))
    dq, dk, dv = torch.autograd.grad(flash_attn_func(q, k, v).sum(), (q, k, v))
    assert not dq.any() and not dk.any() and (dv == 9).all()
