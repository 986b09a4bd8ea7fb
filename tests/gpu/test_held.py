"""On the GPU: score functions that hold tensors and numbers, parameters that are absent, grids and loops that scalars size."""

import numpy as np
import pytest

import fcgen as fc
from fcgen.build import captured
from fcgen.kernels.attention import attention

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")


def reference(q, k, v, score, scale):
    group = q.shape[1] // k.shape[1]
    k, v = (t.double().repeat_interleave(group, 1) for t in (k, v))
    return torch.softmax(score(q.double() @ k.transpose(2, 3) * scale), -1) @ v


@pytest.mark.parametrize("d", [64, 128])
def test_a_bias_and_a_cap_that_change_from_call_to_call(d):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, n, d, device="cuda", dtype=torch.float16) for h, n in ((4, 300), (2, 520), (2, 520)))

    def run(bias, cap):
        return fc.attention(q, k, v, score=lambda s, b, h, i, j: cap * fc.tanh(s / cap) + bias[h, i, j].to(fc.f32))

    known = lambda: {key: len(f._known) for key, f in captured._families.items() if key[0] is attention and dict(key[4]).get("D") == d}
    before = known()  # of other tests in this process
    for seed, cap in enumerate((20.0, 5.0, 2.5)):
        torch.manual_seed(seed)
        bias = torch.randn(4, 300, 520, device="cuda", dtype=torch.float16)
        got = run(bias, cap)
        want = reference(q, k, v, lambda s: cap * torch.tanh(s / cap) + bias.double(), d**-0.5)  # noqa: B023 (called at once)
        assert (got.double() - want).abs().max() < 4e-3
    after = known()
    assert after and all(n <= max(1, before.get(key, 0)) for key, n in after.items()), "nothing was traced again"


@pytest.mark.parametrize("scale", [-0.2, 0.0, 3.0])
def test_any_scale_with_and_without_the_log_sum_exp(scale):
    q, k, v = (torch.randn(1, 2, 200, 64, device="cuda", dtype=torch.float16) for _ in range(3))
    want = reference(q, k, v, lambda s: s, scale)
    for named in ({"return_lse": True}, {}):
        got = fc.attention(q, k, v, scale=scale, **named)
        assert ((got[0] if named else got).double() - want).abs().max() < 4e-3


@fc.kernel
def firsts(X: "f32[B, M, D]", Lens: "i32[B]", Y: "inout f32[B, D]", *, n: "i32"):
    (b,) = fc.grid(n)
    total = fc.var(fc.load(Y[b]))
    for rows in fc.loop(fc.tile(Lens[b], "BLOCK_M")):
        total <<= total + fc.sum(fc.where(rows.index < Lens[b], fc.load(X[b, rows]), 0.0), axis=0)
    fc.store(Y[b], total)


def test_a_scalar_sizes_the_grid_and_elements_of_a_tensor_size_its_loops():
    x, lens = torch.randn(7, 90, 32, device="cuda"), torch.tensor([0, 1, 32, 33, 90, 64, -5], device="cuda", dtype=torch.int32)
    program = firsts.compile(target=fc.gpu_target(), schedule=fc.Schedule(tiles={"BLOCK_M": 32}, warps=2), D=32)
    for n in (0, 3, 7):
        y = torch.zeros(7, 32, device="cuda")
        program(x, lens, y, n=n)
        want = torch.stack([x[b, :max(int(m), 0)].double().sum(0) if b < n else torch.zeros(32, device="cuda").double()
                            for b, m in enumerate(lens.tolist())])
        assert (y.double() - want).abs().max() < 1e-4


def test_a_call_of_a_spec_reads_what_its_function_holds():
    @fc.kernel
    def mapped(X: "f32[M, D]", Y: "out f32[M, D]", S: "out f32[M] | None", *, f):
        (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
        y = f(fc.load(X[rows]), rows.index)
        fc.store(Y[rows], y)
        if S is not None:
            fc.store(S[rows], fc.sum(y, axis=1))

    x, y, s = torch.randn(100, 64, device="cuda"), torch.empty(100, 64, device="cuda"), torch.empty(100, device="cuda")
    schedule = fc.Schedule(tiles={"BLOCK_M": 32}, warps=2)
    for by in (2.0, -1.5):
        table = torch.randn(10, device="cuda")
        for out in (None, s):
            mapped(x, y, out, f=lambda t, i: t * by + table[i // 10], schedule=schedule)  # noqa: B023
            want = x.cpu().numpy() * by + table.cpu().numpy().repeat(10)[:, None]
            np.testing.assert_allclose(y.cpu().numpy(), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(s.cpu().numpy(), want.sum(1), rtol=1e-4, atol=1e-3)
