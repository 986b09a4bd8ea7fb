"""Adds in turn on the GPU: right, and the same bits in every launch, while another stream keeps multiprocessors busy."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
SCHEDULE = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, warps=4, math="wgmma", copy="tma", epilogue="tma", stages=2, sender=True)


@pytest.fixture(autouse=True)
def hopper():
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("bulk stores are Hopper's")


@fc.kernel
def summed(X: "f16[M, D]", Y: "f16[N, D]", Out: "inout f32[M, D]", Turns: "inout i32[M]"):
    (cols,) = fc.grid(fc.tile(Y.N, "BLOCK_N"))
    y = fc.load(Y[cols])
    for rows in fc.loop(fc.tile(X.M, "BLOCK_M")):
        s = fc.dot(fc.load(X[rows]), y.T)
        fc.atomic_add(Out[rows], fc.dot(s.to(fc.f16), y), turn=(Turns[rows.start], cols.start // cols.size))


def test_a_sum_has_one_order():
    """More programs than multiprocessors, more than once. (Its order is that of the tiles: their sums, one after the other.)"""
    torch.manual_seed(0)
    m, n = 300, 64 * 400 - 7
    x, y = (torch.randn(s, 64, device="cuda").half() for s in (m, n))
    program = summed.compile(target="sm_90a", schedule=SCHEDULE, D=64)
    aside, busy, found = torch.cuda.Stream(), torch.randn(1024, 1024, device="cuda"), []
    for turn in range(20):
        if turn % 2:
            with torch.cuda.stream(aside):
                for _ in range(1 + turn % 5):
                    busy @ busy
        out, turns = torch.zeros(m, 64, device="cuda"), torch.zeros(m, dtype=torch.int32, device="cuda")
        program(X=x, Y=y, Out=out, Turns=turns)
        found.append(out.view(torch.int32).clone())
        assert bool((turns[::64] == 400).all())
    assert all(torch.equal(found[0], x) for x in found[1:])
    want = np.zeros((m, 64))
    for at in range(0, n, 64):
        s = (x.double() @ y[at:at + 64].double().T).half()
        want += (s.double() @ y[at:at + 64].double()).cpu().numpy()
    assert np.abs(found[0].view(torch.float32).cpu().numpy() - want).max() < 2e-3 * np.abs(want).max()


@pytest.mark.parametrize("head", [64, 128])
@pytest.mark.parametrize("causal", [False, "top_left", "bottom_right"])
@pytest.mark.parametrize("rows, keys", [(1700, 1700), (1600, 3333), (2111, 700)])
def test_deterministic_gradients(head, causal, rows, keys):
    torch.manual_seed(0)
    q, k, v, do = (torch.randn(2, 6, s, head, device="cuda", dtype=torch.float16) for s in (rows, keys, keys, rows))
    mine = [x.clone().requires_grad_() for x in (q, k, v)]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        out = fc.attention(*mine, causal=causal)
        found = [torch.autograd.grad(out, mine, do, retain_graph=True) for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    s = exact[0] @ exact[1].transpose(-1, -2) * head**-0.5
    if causal:
        shift = keys - rows if causal == "bottom_right" else 0
        s = s.masked_fill(torch.ones(rows, keys, device="cuda", dtype=torch.bool).triu(1 + shift), -torch.inf)
    p = torch.nan_to_num(s.softmax(-1))
    want = torch.autograd.grad(p @ exact[2], exact, do.double())
    for got, others, x in zip(found[0], zip(*found[1:]), want):
        assert all(torch.equal(got, other) for other in others)
        assert (got.double() - x).norm() < 3e-3 * x.norm()
