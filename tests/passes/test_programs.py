"""Whole programs through every tile-level pass: each result verifies and writes what the original writes.
Where masked tiles are no loops of their own, every second size is run; all with FCGEN_ALL=1."""

from __future__ import annotations

import numpy as np
import pytest

from fcgen.ir.core import Kernel, walk, walk_kernel
from fcgen.ir.schedule import Schedule
from fcgen.ir.verify import verify
from fcgen.passes import PIPELINE, run_passes
from tests.sim.cases import EVERYTHING
from tests.work import calls

from .check import execute, inputs, same
from .programs import attention, branches, column_sums, gemm, i32, linear, nested, row_norm, scalar, sigmoid_rows, tensor

LAST = "simplify.3"
MASKS = {
    "none": None,
    "top_left": lambda t, p, r, c: c <= r,
    "bottom_right": lambda t, p, r, c: c <= r + (t.size("N") - t.size("M")),
    "window": lambda t, p, r, c: (c <= r) & (r - c < 21),
    "window_both": lambda t, p, r, c: (c <= r + 9) & (c > r - p["w"]),
    "prefix": lambda t, p, r, c: (c <= r) | (c < p["w"]),
    "sinks": lambda t, p, r, c: (c <= r) & ((c < 4) | (r - c < 20)),
    "blocks": lambda t, p, r, c: (c // 16) <= (r // 16),
    "same_block": lambda t, p, r, c: (c // 16) == (r // 16),
    "strided": lambda t, p, r, c: (c <= r) & ((r - c) % 3 == 0),
    "inverted": lambda t, p, r, c: ~((c > r) | (c < r - 30)),
    "rows_end": lambda t, p, r, c: (r < t.size("M")) & (c <= r),
    "uniform": lambda t, p, r, c: (c <= r) | (t.full(p["w"], 32, 16, dtype="i32") <= 20),
    "data": lambda t, p, r, c: gathered(t, p, c) & (c <= r),
    "data_only": lambda t, p, r, c: gathered(t, p, c),
}
SIZES = [dict(M=33, N=45, K=37), dict(M=50, N=1, K=16), dict(M=7, N=96, K=1), dict(M=100, N=30, K=64), dict(M=64, N=128, K=5)]


def gathered(t, p, c):
    from .programs import E

    return E(t, t.b.emit("gather", p["doc"], c.v)) > 0


def masked(name: str, **kw) -> Kernel:
    return attention(mask=MASKS[name], extra=(scalar("w", i32), tensor("doc", i32, "N")), **kw)


def stages(kernel: Kernel, schedule: Schedule | None = None) -> dict[str, Kernel]:
    out: dict[str, Kernel] = {}
    run_passes(kernel, schedule or Schedule(), None, stop_after=LAST, trace=lambda name, k: out.update({name: k}))
    return out


def loops(kernel: Kernel):
    return [op for op in walk_kernel(kernel) if op.kind == "for"]


PROGRAMS = {
    **{f"mask {name}": lambda name=name: masked(name) for name in MASKS},
    "descending window": lambda: masked("window_both", descending=True),
    "descending prefix": lambda: masked("prefix", descending=True),
    "odd heads": lambda: masked("top_left", d=24, e=40),
    "soft cap": lambda: masked("top_left", cap=True, descending=True),
    "stale maximum": lambda: masked("bottom_right", stale=True),
    "no live": lambda: masked("top_left", live=False),
    "gemm": gemm, "gemm whole": lambda: gemm(k=64), "gemm tail": lambda: gemm(k=40), "norm": row_norm, "sigmoid": sigmoid_rows,
    "linear": linear, "columns": column_sums, "branches": branches, "nested": nested,
}


#: without masks that some tiles of a loop do without: split="branch" is refused
UNMASKED = ("gemm", "gemm whole", "gemm tail", "norm", "linear")


@pytest.mark.parametrize("split, name", [(split, name) for split in ("loops", "branch", "none") for name in PROGRAMS
                                         if split != "branch" or name not in UNMASKED])
def test_every_stage_writes_the_same(split, name):
    kernel = verify(PROGRAMS[name]())
    after = stages(kernel, Schedule(split=split))
    changed = {id(k): (stage, k) for stage, k in reversed(after.items()) if k is not kernel}  # by the first pass that wrote it
    for n, sizes in enumerate(SIZES):
        if split != "loops" and not EVERYTHING and n % 2 != len(name) % 2:
            continue
        arrays, scalars = inputs(kernel, sizes, n)
        want = execute(kernel, arrays, scalars)
        for stage, k in changed.values():
            got = execute(k, arrays, scalars)
            for a in arrays:
                np.testing.assert_allclose(got.arrays[a], want.arrays[a], rtol=2e-5, atol=2e-5,
                                           err_msg=f"{stage}: {a} at {sizes}")
    assert not any(len(op.regions) > 1 for op in loops(after[LAST]))
    if not split:
        assert not any("part" in op.attrs for op in loops(after[LAST]))


@pytest.mark.parametrize("name", ["none", "top_left", "bottom_right", "window", "window_both", "prefix", "blocks", "inverted",
                                  "rows_end"])
def test_whole_tiles_have_no_mask(name):
    full = [op for op in loops(stages(masked(name))[LAST]) if op.get("part") == "full"]
    assert len(full) == 1
    body = full[0].regions[0]
    assert not any(op.kind == "select" and len(op.result.type.shape) == 2 for op in walk(body))
    assert not any(g for op in walk(body) if op.kind == "load" for g in op["guard"])


@pytest.mark.parametrize("name, parts", [
    ("none", ["full", "masked"]), ("top_left", ["full", "masked"]), ("prefix", ["full", "masked"]),
    ("window_both", ["masked", "full", "masked"]), ("strided", ["full", "masked"]), ("data_only", ["full", "masked"])])
@pytest.mark.parametrize("descending", [False, True])
def test_copies_follow_the_direction(name, parts, descending):
    found = loops(stages(masked(name, descending=descending))[LAST])
    assert [op["part"] for op in found] == (parts[::-1] if descending else parts)
    assert len({op["chain"] for op in found}) == 1


def test_dead_tiles_are_left_out():
    kernel = masked("top_left")
    sizes = dict(M=128, N=128)
    before, after = same(kernel, stages(kernel)[LAST], sizes, w=3)
    assert sum(before.iterations.values()) == 4 * 8
    assert dict(after.iterations) == {"full": 0 + 2 + 4 + 6, "masked": 4 * 2}


def test_no_scale_per_element_remains():
    kernel = masked("top_left")
    after = stages(kernel)
    body = next(op for op in loops(after[LAST]) if op["part"] == "full").regions[0]
    wide = [op for op in walk(body) if op.kind == "mul" and op.result.type.shape == (32, 16)]
    assert len(wide) == 1  # s * (scale * log2e), which the subtraction takes in
    (reader,) = [op for op in walk(body) if wide[0].result in op.operands]
    assert reader.kind == "sub"
    a, b = same(kernel, after[LAST], dict(M=64, N=64), w=3)
    assert a.counts["exp"] == sum(a.iterations.values()) * (32 * 16 + 32)
    assert b.counts["exp2"] == sum(b.iterations.values()) * (32 * 16 + 32)


def test_scale_without_the_flag_stays():
    kernel = masked("top_left")
    kernel = Kernel(**{**kernel.__dict__, "flags": {"O": ("out",), "L": ("out",)}})
    body = loops(stages(kernel)[LAST])[0].regions[0]
    assert sum(op.kind == "mul" and op.result.type.shape == (32, 16) for op in walk(body)) == 2


def test_soft_cap_is_factored_too():
    body = loops(stages(masked("top_left", cap=True))[LAST])[0].regions[0]
    assert sum(op.kind == "mul" and op.result.type.shape == (32, 16) for op in walk(body)) == 2  # into tanh, and out of it


def test_guards_alone_split_a_loop_without_dots():
    """With dots the next tiles are read ahead, guarded, in every copy: a second one would gain nothing."""
    for k in ("K", 40):
        (loop,) = loops(stages(gemm(k=k))[LAST])
        assert all(op["guard"] == (True, True) for op in walk(loop.regions[0]) if op.kind == "load")
    (whole,) = loops(stages(gemm(k=64))[LAST])
    assert [op["guard"] for op in walk(whole.regions[0]) if op.kind == "load"] == [(True, False), (False, True)]
    assert [op["part"] for op in loops(stages(column_sums())[LAST])] == ["full", "masked"]
    assert [op.get("part") for op in loops(stages(column_sums(n=64))[LAST])] == ["full"]


def test_gemm_accumulates_in_its_dot():
    (dot,) = [op for op in walk_kernel(stages(gemm())[LAST]) if op.kind == "dot"]
    assert len(dot.operands) == 3


def test_inner_loops_split_and_outer_ones_do_not():
    outer, *inner = loops(stages(nested())[LAST])
    assert "part" not in outer.attrs and [op["part"] for op in inner] == ["full", "masked"]
    assert sum(op.kind == "mul" and op.result.type.shape == (16, 16) for op in walk(inner[0].regions[0])) == 1


def test_deterministic_text():
    assert str(stages(masked("window_both"))[LAST]) == str(stages(masked("window_both"))[LAST])


def test_pipeline_is_fast():
    kernel = masked("window_both")

    def run():
        k = kernel
        for p in PIPELINE[:[p.name for p in PIPELINE].index(LAST) + 1]:
            k = p.run(k, Schedule(), None)

    assert calls(run) < 300_000  # 106,000 when this was written
