"""`fcgen.scaled_dot_product_attention` is torch's function of this name, in every corner, in graphs and outside."""

from __future__ import annotations

import math

import pytest

import fcgen
from fcgen.errors import FcError

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
F = torch.nn.functional
pytestmark = pytest.mark.filterwarnings("ignore")
SDPA = fcgen.scaled_dot_product_attention


def half(*shape):
    return torch.randn(*shape).half()


def compare(q, k, v, **options):
    mask = options.get("attn_mask")
    exact = {**options} if mask is None or mask.dtype == torch.bool else {**options, "attn_mask": mask.double()}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # torch 2.11's other one on CPUs dies of tensors without heads
        want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), **exact)
    got = SDPA(q, k, v, **options)
    assert got.shape == want.shape and got.dtype == q.dtype
    assert torch.allclose(got.double(), want, atol=4e-3, rtol=4e-3, equal_nan=True), (got - want).abs().max()


SHAPES = {
    "4 axes": ((2, 3, 33, 64), (2, 3, 50, 64), (2, 3, 50, 32), {}), "top left": ((1, 3, 33, 64), (1, 3, 20, 64), (1, 3, 20, 32), {"is_causal": True}),
    "grouped": ((2, 6, 9, 64), (2, 2, 50, 64), (2, 2, 50, 64), {"enable_gqa": True}),
    "grouped apart": ((2, 6, 9, 64), (2, 2, 50, 64), (2, 3, 50, 64), {"enable_gqa": True}),
    "3 axes": ((4, 9, 64), (4, 20, 64), (4, 20, 64), {}), "2 axes": ((9, 64), (20, 64), (20, 64), {}),
    "5 axes": ((2, 2, 3, 9, 64), (2, 2, 3, 20, 64), (2, 2, 3, 20, 64), {}), "leading axes broadcast": ((2, 1, 3, 9, 64), (1, 2, 3, 20, 64), (1, 1, 1, 20, 64), {}),
    "heads broadcast": ((2, 1, 9, 64), (1, 3, 20, 64), (2, 3, 20, 64), {}), "padded heads": ((1, 2, 9, 12), (1, 2, 20, 12), (1, 2, 20, 20), {}),
    "no head size": ((1, 2, 9, 0), (1, 2, 20, 0), (1, 2, 20, 24), {}), "no keys": ((2, 2, 9, 16), (2, 2, 0, 16), (2, 2, 0, 16), {}),
    "no rows": ((2, 2, 0, 16), (2, 2, 9, 16), (2, 2, 9, 16), {}), "no batch": ((0, 2, 9, 16), (0, 2, 9, 16), (0, 2, 9, 16), {}),
    "no heads": ((2, 0, 9, 16), (2, 0, 9, 16), (2, 0, 9, 16), {}), "negative scale": ((1, 2, 9, 16), (1, 2, 20, 16), (1, 2, 20, 16), {"scale": -0.3}),
    "scale 0": ((1, 2, 9, 16), (1, 2, 20, 16), (1, 2, 20, 16), {"scale": 0})}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(kernels, name):
    q, k, v, options = SHAPES[name]
    compare(half(*q), half(*k), half(*v), **options)


@pytest.mark.parametrize("kind", ["bool", "float32", "float16"])
@pytest.mark.parametrize("shape", [(9, 20), (1, 20), (9, 1), (3, 9, 20), (3, 1, 20), (2, 1, 9, 20), (2, 1, 1, 20), (1, 3, 9, 1), (2, 3, 1, 1), (1, 1, 1, 1)], ids=str)
def test_masks_broadcast(kernels, shape, kind):
    mask = torch.rand(shape) > 0.4 if kind == "bool" else torch.randn(shape).to(getattr(torch, kind))
    compare(half(2, 3, 9, 16), half(2, 3, 20, 16), half(2, 3, 20, 16), attn_mask=mask)


@pytest.mark.parametrize("shape", [(2, 1, 3, 9, 20), (1, 1, 1, 9, 20), (3, 9, 20)], ids=str)
def test_masks_of_five_axes(kernels, shape):
    compare(half(2, 2, 3, 9, 16), half(2, 2, 3, 20, 16), half(2, 2, 3, 20, 16), attn_mask=torch.rand(shape) > 0.5)


def test_strides_of_every_tensor(kernels):
    q, k, v = half(2, 9, 3, 16).transpose(1, 2), half(2, 3, 16, 20).transpose(2, 3), half(2, 3, 20, 32)[..., ::2]
    compare(q, k, v, attn_mask=half(2, 3, 20, 9).transpose(2, 3))
    compare(q, k, v, attn_mask=(torch.rand(2, 1, 9, 1) > 0.3).expand(2, 3, 9, 20))
    compare(q[:, :1].expand(2, 3, 9, 16), k, v)


def test_rows_that_see_nothing_infinities_and_nan(kernels):
    mask = torch.randn(9, 20)
    mask[2], mask[3, 4], mask[5, 1] = -math.inf, math.inf, math.nan
    compare(half(1, 3, 9, 16), half(1, 3, 20, 16), half(1, 3, 20, 16), attn_mask=mask)
    compare(half(1, 3, 9, 16), half(1, 3, 20, 16), half(1, 3, 20, 16), attn_mask=torch.zeros(9, 20, dtype=torch.bool))
    q = half(1, 3, 9, 16)
    q[0, 0, 1, 1], q[0, 1, 1, 1] = math.nan, math.inf
    compare(q, half(1, 3, 20, 16), half(1, 3, 20, 16))


def test_dropout_is_repeated_by_torchs_seed(kernels):
    q, k, v = (half(1, 2, 40, 16) for _ in range(3))
    first, second = ([torch.manual_seed(seed), SDPA(q, k, v, dropout_p=0.5)][1] for seed in (1, 2))
    torch.manual_seed(1)
    assert torch.equal(SDPA(q, k, v, dropout_p=0.5), first) and not torch.equal(first, second)
    assert SDPA(q, k, v, dropout_p=1.0).abs().max() == 0
    ones = torch.ones_like(v)
    kept = torch.stack([SDPA(q * 0, k, ones, dropout_p=0.25)[..., 0] for _ in range(8)])
    assert abs(kept.mean() - 1) < 0.05


def test_autocast_casts_what_sdpa_casts(kernels):
    q, k, v = (torch.randn(1, 2, 9, 16) for _ in range(3))
    torch.set_autocast_enabled("cuda", True)
    try:
        got = SDPA(q, k, v, attn_mask=torch.randn(9, 9))
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert got.dtype == torch.get_autocast_dtype("cuda")


Q = half(2, 4, 9, 16)
REFUSED = {
    "dtype": ((Q.float(),) * 3, {}, "no kernel for this dtype"), "mixed dtypes": ((Q, Q.bfloat16(), Q), {}, "different dtypes"),
    "axes": ((Q, Q[0], Q), {}, "number of axes"), "one axis": ((Q[0, 0, 0],) * 3, {}, "too few axes"), "head size": ((Q, half(2, 4, 9, 24), Q), {}, "differ in head size"),
    "lengths": ((Q, Q, half(2, 4, 10, 16)), {}, "differ in length"), "large heads": ((half(1, 1, 9, 1024),) * 3, {}, "at most"),
    "groups": ((Q, Q[:, :2], Q[:, :2]), {}, "enable_gqa"), "bad groups": ((Q, Q[:, :3], Q[:, :3]), {"enable_gqa": True}, "multiple"),
    "batch": ((Q, half(3, 4, 9, 16), half(3, 4, 9, 16)), {}, "do not broadcast"), "mask and causal": ((Q,) * 3, {"attn_mask": torch.ones(9, 9), "is_causal": True}, "is_causal"),
    "mask shape": ((Q,) * 3, {"attn_mask": torch.ones(9, 8)}, "does not broadcast"), "mask dtype": ((Q,) * 3, {"attn_mask": torch.ones(9, 9).int()}, "wrong dtype"),
    "mask rank": ((Q,) * 3, {"attn_mask": torch.ones(1, 1, 1, 9, 9)}, "does not broadcast"), "dropout": ((Q,) * 3, {"dropout_p": 1.5}, "probability"),
    "causal": ((Q,) * 3, {"is_causal": 1}, "not a bool"), "scale": ((Q,) * 3, {"scale": "1"}, "not a number"), "nan scale": ((Q,) * 3, {"scale": math.nan}, "not finite"),
    "no tensor": ((Q, [1], Q), {}, "not a tensor"), "fallback": ((Q,) * 3, {"fallback": "x"}, "fallback"),
    "sparse": ((Q, Q.to_sparse(), Q), {}, "`key` is not a strided"), "sparse mask": ((Q,) * 3, {"attn_mask": torch.ones(9, 9).to_sparse()}, "`attn_mask` is not a strided"),
    "functionalize": (None, {}, "transform of torch"), "nested": ((torch.nested.nested_tensor([Q[0], Q[1]]),) * 3, {}, "nested")}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(kernels, name):
    given, options, said = REFUSED[name]
    with pytest.raises(FcError, match=said):
        SDPA(*given, **options) if given else torch.func.functionalize(lambda q: SDPA(q, q, q))(half(1, 2, 9, 16))
    assert not kernels


def test_what_is_refused_goes_to_torch_where_that_is_asked_for(kernels):
    q = torch.randn(2, 4, 9, 16)
    assert torch.equal(SDPA(q, q, q, is_causal=True, fallback="torch"), F.scaled_dot_product_attention(q, q, q, is_causal=True))
    assert not kernels
    SDPA(Q, Q, Q, fallback="torch")
    assert len(kernels) == 1


# ---- graphs ------------------------------------------------------------------------------------------------------------


def test_one_graph_for_all_lengths_and_batches(kernels, fresh):
    backend, made = fresh
    block = torch.compile(lambda q, k, v, m: SDPA(q * 1, k, v, attn_mask=m) + 1, fullgraph=True, backend=backend, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for b, n in ((2, 33), (3, 40), (5, 21)):
            q, k, v, mask = half(b, 3, n, 16), half(b, 3, n + 5, 16), half(b, 3, n + 5, 16), torch.randn(n, n + 5)
            want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask.double()) + 1
            assert (block(q, k, v, mask) - want).abs().max() < 4e-3
    assert len(made) == 1 and "fcgen.attend" in str(made[0].code)


def test_a_plain_call_in_a_graph_is_the_plain_operator(kernels, fresh):
    backend, made = fresh
    torch.compile(lambda q: SDPA(q, q, q, is_causal=True), fullgraph=True, backend=backend)(Q)
    assert "fcgen.attention.default(" in str(made[0].code)


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_lengths(kernels, strict, fresh):
    class Block(torch.nn.Module):
        def forward(self, q, k, v):
            return SDPA(q, k, v, is_causal=True)

    n, m = torch.export.Dim("n", min=2), torch.export.Dim("m", min=2)
    q, k = half(1, 2, 33, 12), half(1, 2, 40, 12)
    program = torch.export.export(Block(), (q, k, k), strict=strict, dynamic_shapes=({2: n}, {2: m}, {2: m}))
    assert "fcgen.attention" in str(program.graph)
    q, k = half(1, 2, 9, 12), half(1, 2, 11, 12)
    assert torch.equal(program.module()(q, k, k), SDPA(q, k, k, is_causal=True))


def test_the_operators_keep_the_rules_of_operators(kernels):
    from fcgen.torch import core

    tests = {"test_utils": ("test_schema", "test_faketensor")}
    v, table, sinks = half(2, 4, 9, 32), torch.rand(1, 1, 9, 9) > 0.5, torch.randn(4)
    strided = Q.transpose(1, 2).contiguous().transpose(1, 2)
    for op in (torch.ops.fcgen.attend.default, torch.ops.fcgen.attend_lse.default):
        torch.library.opcheck(op, (strided, Q, v, table, sinks, "none", 3, -1, None, 0, 5.0, None, None), **tests)
    rows = torch.tensor([0, 4, 9], dtype=torch.int32)
    for op in (torch.ops.fcgen.attend_varlen.default, torch.ops.fcgen.attend_varlen_lse.default):
        torch.library.opcheck(op, (Q[0].transpose(0, 1), Q[0].transpose(0, 1), v[0].transpose(0, 1), rows, rows, None, None, sinks, 5, 5, True, -1, -1, 0, None, None), **tests)
    assert core.PLAIN


def test_what_is_wrong_is_said_without_a_full_graph_too(kernels, fresh):
    backend, _ = fresh
    with pytest.raises(FcError, match="different dtypes"):
        torch.compile(lambda q: SDPA(q, q.bfloat16(), q), backend=backend)(Q)
    graph = torch.compile(lambda q: SDPA(q, q, q, fallback="torch"), fullgraph=True, backend=backend)
    assert graph(Q.float()).dtype == torch.float32 and not kernels


def test_a_trace_of_torch_jit_holds_the_operator(kernels):
    traced = torch.jit.trace(lambda q: SDPA(q, q, q), (Q,))
    assert "fcgen::attention" in str(traced.graph)


@pytest.mark.parametrize("size", [16, 15])
@pytest.mark.parametrize("lengths", [(9, 9), (9, 20), (20, 9)], ids=str)
@pytest.mark.parametrize("corner", ["causal_upper_left", "causal_lower_right"])
def test_a_causal_bias_of_torchs(kernels, fresh, corner, lengths, size):
    backend, _ = fresh
    bias = getattr(torch.nn.attention.bias, corner)(*lengths)
    q, k, v = half(2, 3, lengths[0], size), half(2, 3, lengths[1], size), half(2, 3, lengths[1], size)
    if corner == "causal_upper_left" or lengths[0] <= lengths[1]:
        compare(q, k, v, attn_mask=bias._materialize())
    want = SDPA(q, k, v, attn_mask=bias._materialize())
    assert (SDPA(q, k, v, attn_mask=bias) - want).abs().max() < 2e-3
    assert (torch.compile(SDPA, fullgraph=True, backend=backend)(q, k, v, attn_mask=bias) - want).abs().max() < 2e-3
    torch.set_autocast_enabled("cuda", True)
    try:
        assert (SDPA(q.float(), k, v, attn_mask=bias) - want).abs().max() < 2e-3
    finally:
        torch.set_autocast_enabled("cuda", False)
    with pytest.raises(FcError, match="is_causal"):
        SDPA(q, k, v, attn_mask=bias, is_causal=True)
    with pytest.raises(FcError, match="other lengths"):
        SDPA(q, k[:, :, 1:], v[:, :, 1:], attn_mask=bias)
