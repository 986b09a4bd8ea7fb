"""Row sums as columns of a product: what the pass leaves, what it means, and where it says no."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.errors import FcError
from fcgen.ir.core import walk
from fcgen.passes import run_passes
from fcgen.sim.tile import interpret


@fc.kernel
def weighted(W: T[M, N], V: T[N, E], O: "out f32[M, E]", L: "out f32[M]", *, scaled=True, rounded=True, start=0.0):
    (rows,) = fc.grid(fc.tile(W.M, "BLOCK_M"))
    l, acc = fc.var(fc.full(rows, start)), fc.var(fc.zeros(rows, V.E))
    for cols in fc.loop(fc.tile(W.N, "BLOCK_N")):
        w = fc.load(W[rows, cols]).to(fc.f32) + 0.3
        f = fc.max(w, axis=1) * 0.5
        p = w.to(V.dtype)
        l <<= (l * f if scaled else l) + fc.sum(p.to(fc.f32) if rounded else w, axis=1)
        acc <<= (acc * f if scaled else acc) + fc.dot(p, fc.load(V[cols]))
    fc.store(O[rows], acc / l)
    fc.store(L[rows], l)


def schedule(**more):
    return fc.Schedule(**{"tiles": {"BLOCK_M": 64, "BLOCK_N": 32}, "math": "wgmma", "copy": "tma", "ones": "acc", **more})


def program(e=32, s=None, **more):
    return weighted.compile(target="sm_90a", schedule=s or schedule(), T=fc.f16, E=e, **more)


def inputs(e=32):
    rng = np.random.default_rng(0)
    return {"W": rng.random((80, 100)).astype(np.float16), "V": rng.standard_normal((100, e)).astype(np.float16)}


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_sum_is_in_the_product(scaled, rounded):
    p = program(scaled=scaled, rounded=rounded)
    after = run_passes(p.tile, schedule(), p.target, stop_after="row_sums")
    assert not [o for o in walk(after.body) if o.kind == "reduce" and o["fn"] == "sum"]
    assert [o.result.type.shape for o in walk(after.body) if o.kind == "dot"] == [(64, 40)]
    want, got = p.interpret(**inputs()), interpret(after, inputs())
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4 if rounded else 1e-3, atol=1e-5)


@pytest.mark.parametrize("e", [16, 48, 64, 128])
def test_the_machine_program_agrees_and_the_simulator_is_silent(e):
    p = program(e=e)
    want, got = p.interpret(**inputs(e)), p.simulate(**inputs(e))
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("e, s, more, message", [
    (32, schedule(ones="s"), {}, "names s, and no dot is called so"),
    (32, schedule(), {"start": 1.0}, "both zero at first"),
    (32, schedule(math="mma", copy="cp_async"), {}, "math wgmma"),
])
def test_what_has_no_such_column_is_refused(e, s, more, message):
    with pytest.raises(FcError, match=message):
        run_passes(program(e, s, **more).tile, s, program(e, s).target)


def test_ones_that_are_never_written_are_reported():
    """The simulator reads them through the descriptor's bits, like the rest of the operand."""
    from dataclasses import replace

    from fcgen.ir.core import Block
    from fcgen.sim.machine import check

    p = program(e=16)
    broken = tuple(replace(r, body=Block(r.body.args, tuple(o for o in r.body.ops if o.kind != "st_shared"))) for r in p.machine.roles)
    with pytest.raises(FcError, match="ones"):
        check(replace(p.machine, roles=broken), {**inputs(16)}, p.target)
