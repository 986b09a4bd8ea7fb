"""What a call refuses, before anything is launched."""

import pytest

import fcgen as fc
from fcgen.attend.forward import attention
from fcgen.errors import FcError

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")


def make(*shape, dtype="float16", device="cuda"):
    return torch.randn(shape, device=device).to(getattr(torch, dtype))


def case(name):
    """(arguments, named arguments, word that the message has)."""
    x = make(1, 2, 64, 64)
    return {
        "cpu": ((x.cpu(), x, x), {}, "`q`"), "float32": ((x.float(),) * 3, {}, "dtype"), "mixed": ((x, x.bfloat16(), x), {}, "dtype"),
        "axes": ((x[0], x, x), {}, "axes"), "heads": ((make(1, 3, 64, 64), x, x), {}, "heads"),
        "lengths": ((x, x, make(1, 2, 65, 64)), {}, "length"), "head_size": ((make(1, 2, 64, 60),) * 3, {}, "head size"),
        "batch": ((make(2, 2, 64, 64), x, x), {}, "batch"), "key_head_size": ((make(1, 2, 64, 72), x, x), {}, "head size"),
        "last_axis": ((x, x.transpose(2, 3), x), {}, "contiguous"), "mask": ((x, x, x), {"causal": "left"}, "mask"),
        "ambiguous": ((x, make(1, 2, 65, 64), make(1, 2, 65, 64)), {"causal": True}, "ambiguous"),
        "not_a_tensor": (([1.0], x, x), {}, "not a tensor"), "out_shape": ((x, x, x), {"out": make(1, 2, 65, 64)}, "wrong shape"),
        "out_dtype": ((x, x, x), {"out": x.float()}, "dtype"),
    }[name]


NAMES = ("cpu", "float32", "mixed", "axes", "heads", "lengths", "head_size", "batch", "key_head_size", "last_axis",
         "mask", "ambiguous", "not_a_tensor", "out_shape", "out_dtype")


@pytest.mark.parametrize("name", NAMES)
def test_refused(name):
    args, named, word = case(name)
    with pytest.raises(FcError) as caught:
        attention(*args, **named)
    assert caught.value.code == "call/argument" and word in str(caught.value)


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("odd", ["pointer", "stride"])
def test_what_is_not_aligned_is_taken_by_a_kernel_with_narrower_accesses(odd, at):
    given = [make(1, 2, 64, 64) for _ in range(3)]
    want = attention(*given)
    shifted = make(64 * 64 * 2 + 8)[1:1 + 64 * 64 * 2].view(1, 2, 64, 64) if odd == "pointer" else make(1, 2, 64, 68)[..., :64]
    shifted.copy_(given[at])
    assert (attention(*given[:at], shifted, *given[at + 1:]) - want).abs().max() < 2e-3


@fc.kernel
def grouped(X: "f32[H, M]", W: "f32[G, M]", Y: "out f32[H, M]", *, step: "i32"):
    h, rows = fc.grid(X.H, fc.tile(X.M, "BM"))
    fc.store(Y[h, rows], fc.load(X[h, rows]) + fc.load(W[h // step, rows]))


def test_a_tensor_that_is_too_short_for_a_computed_place_is_refused_before_the_launch():
    p = grouped.compile(schedule=fc.Schedule(tiles={"BM": 64}))
    x, w, y = make(6, 100, dtype="float32"), make(3, 100, dtype="float32"), torch.full((6, 100), 7.0, device="cuda")
    p(X=x, W=w, Y=y, step=2)
    assert (y == x + w.repeat_interleave(2, 0)).all()
    before = y.clone()
    for wrong, rows in ((1, 3), (2, 2), (-1, 3)):
        with pytest.raises(FcError) as caught:
            p(X=x, W=w[:rows], Y=y, step=wrong)
        assert caught.value.code == "call/argument" and (y == before).all()
    p(X=x, W=w[:2], Y=y, step=3)
    assert (y == x + w[:2].repeat_interleave(3, 0)).all()


def test_the_gpu_still_works_afterwards():
    x = make(1, 2, 64, 64)
    assert attention(x, x, x).isfinite().all()
    torch.cuda.synchronize()
