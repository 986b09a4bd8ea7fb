# mypy: disable-error-code="name-defined, valid-type, syntax"
"""Products that run late, of tiles that a table names: their tiles come ahead into rings as others do, in loops with masks and without."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc


@fc.kernel
def paged(Q: T[B, H, D], K: T[P, S, D], V: T[P, S, D], table: i32[B, L], lens: i32[B], O: "out T[B, H, D]", *, group: i32, carried=False):
    b, heads = fc.grid(Q.B, fc.tile(group, "BH"))
    mine, n = heads + 0, lens[b]
    q = fc.load(Q[b, mine])
    soft, turn = fc.online_softmax(heads, V.D), fc.var(fc.cast(0, fc.i32))
    for cols in fc.loop(fc.tile(n, "BN")):
        page, at = fc.gather(table, b, cols.index // K.S), cols.index % K.S
        soft.add(fc.dot(q, fc.load(K[page, at, :]).T) * 0.5, fc.load(V[page + turn if carried else page, at, :]))
        turn <<= turn + 1
    fc.store(O[b, mine], soft.out().to(O.dtype))


def compiled(carried: bool = False, **fields):
    common = {"tiles": {"BH": 64, "BN": 64}, "warps": 4, "stages": 3, "math": "wgmma", "copy": "tma", "late": "acc"}
    return paged.compile(target="sm_90a", T=fc.f16, D=64, S=16, carried=carried, schedule=fc.Schedule(**{**common, **fields}), check=False)


def slots(p, name: str) -> set[int]:
    return {b.type.slots for b in p.machine.buffers if b.name.split(".")[0] == name}


@pytest.mark.parametrize("fields", [{}, {"split": "none"}, {"split": "branch"}, {"stages": 2, "tiles": {"BH": 64, "BN": 32}}])
def test_late_tiles_have_rings(fields) -> None:
    p = compiled(**fields)
    assert max(slots(p, "v_tile")) == max(slots(p, "k_tile")) == fields.get("stages", 3)
    assert not any(b.name.startswith(("page", "at")) for b in p.machine.buffers)  # where they lie is not carried
    assert sum(b.type.slots > 1 for b in p.machine.buffers if b.name.split(".")[0] == "v_tile") == 1  # one ring for all copies of the loop
    rng = np.random.default_rng(0)
    lens = np.array([0, 1, 31, 64, 200, 333], np.int32)
    table = rng.permutation(6 * 21).astype(np.int32).reshape(6, 21)
    q, k, v = (rng.standard_normal(s).astype(np.float16) for s in ((6, 9, 64), (126, 16, 64), (126, 16, 64)))
    got = p.simulate(Q=q, K=k, V=v, table=table, lens=lens, group=9)["O"]
    for b, n in enumerate(lens):
        keys, values = (x[table[b]].reshape(-1, 64)[:n].astype(np.float64) for x in (k, v))
        s = q[b].astype(np.float64) @ keys.T * 0.5
        w = np.exp(s - s.max(1, keepdims=True)) if n else s
        want = w @ values / w.sum(1, keepdims=True) if n else 0.0
        np.testing.assert_allclose(got[b], want, atol=4e-3)


def test_a_slot_that_was_filled_in_front_of_a_branch_is_freed_behind_its_last_product() -> None:
    """The product of the first iteration, in front of the loop, reads q in the branch of rows that have keys."""
    p, rng = compiled(late="acc+s", stages=1, split="none", persistent="static"), np.random.default_rng(0)
    q, k, v = (rng.standard_normal(s).astype(np.float16) for s in ((4, 9, 64), (8, 16, 64), (8, 16, 64)))
    table, lens = rng.permutation(8).astype(np.int32).reshape(4, 2), np.array([5, 0, 32, 17], np.int32)
    p.simulate(Q=q, K=k, V=v, table=table, lens=lens, group=9)


def test_a_product_of_a_tile_that_its_own_iteration_loads_is_not_issued_ahead() -> None:
    with pytest.raises(fc.FcError, match="compile/schedule"):
        compiled(late=(), early="s", stages=1, split="branch", tiles={"BH": 64, "BN": 96}, epilogue="tma").machine  # noqa: B018
