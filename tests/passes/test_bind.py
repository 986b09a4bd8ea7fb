"""A schedule's names are looked up once: copies keep what was decided, and what finds nothing to do is an error that says what there is."""

from __future__ import annotations

import re

import numpy as np
import pytest

import fcgen as fc
from benchmarks.schedule_pairs import gated, product, row_softmax
from fcgen.build import compiler
from fcgen.errors import FcError
from fcgen.ir.core import Kernel, walk_kernel
from fcgen.ir.parse import parse_kernel
from fcgen.ir.schedule import Schedule
from fcgen.kernels import attention as library
from fcgen.kernels.hopper_schedules import ROWS

HOPPER = {"math": "wgmma", "copy": "tma"}


def attention(target: str = "sm_89", mask: str = "causal_top_left", d: int = 32, lazy: float = 0.0, **schedule):
    tiles = schedule.pop("tiles", {"BLOCK_M": 64, "BLOCK_N": 32})
    return library.attention.compile(LSE=None, target=target, schedule=Schedule(tiles=tiles, **schedule), T=fc.f16, D=d, E=d, mask=mask, lazy=lazy,
                                    sums="rounded")


def gating(target: str = "sm_89", **schedule):
    return gated.compile(target=target, schedule=Schedule(tiles={"BM": 64, "BN": 32}, **schedule), T=fc.bf16, D=32, E=32)


def multiplied(target: str = "sm_89", **schedule):
    return product.compile(target=target, schedule=Schedule(tiles={"BM": 64, "BN": 64, "BK": 32}, **schedule), T=fc.f16)


def rows(target: str = "sm_89", d: int = 64, **schedule):
    return row_softmax.compile(target=target, schedule=Schedule(**{"tiles": {"BM": 16}, **schedule}), T=fc.f16, D=d)


def unmarked(text: str) -> str:
    """IR without places: what a person would write."""
    return "\n".join(re.sub(r" +@[\w.]+:\d+$", "", line) for line in text.splitlines() if not line.startswith("source ")) + "\n"


# ---- sites -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [
    lambda: attention("sm_90a", **HOPPER, late="acc"), lambda: attention("sm_90a", lazy=5.5, vote=True, late="acc", **HOPPER),
    lambda: attention("sm_90a", d=64, lazy=5.5, **vars(ROWS[1].schedule)), lambda: attention(stages={"k": 3}),
    lambda: attention(stages=1, ahead=True), lambda: gating("sm_90a", **HOPPER), lambda: gating(), lambda: multiplied(stages={"a": 3})])
def test_ir_text_without_marks_compiles_to_the_same_kernel(make) -> None:
    program = make()
    bare = parse_kernel(unmarked(str(program.tile)))
    assert all(op.loc is None for op in walk_kernel(bare))
    again = compiler.lower(bare, program.schedule, program.target)
    assert unmarked(str(again)) == unmarked(str(program.machine))


def test_names_of_values_decide_nothing_after_the_first_pass() -> None:
    """Renamed behind `bind`, the program becomes the same machine program but for names."""
    from dataclasses import replace

    from fcgen.ir.core import Block, Value
    from fcgen.passes import PIPELINE

    program = attention("sm_90a", **HOPPER, stages={"k": 3, "v": 2, "q": 1}, late="acc", regs_a="s")
    schedule, target = program.schedule, program.target
    bound = PIPELINE[0].run(program.tile, schedule, target)
    fresh: dict[Value, Value] = {}

    def new(v: Value) -> Value:
        return fresh.setdefault(v, v if v in bound.params else Value(v.type, "x"))

    def rename(block: Block) -> Block:
        return Block(tuple(map(new, block.args)), tuple(
            replace(o, operands=tuple(map(new, o.operands)), results=tuple(map(new, o.results)), regions=tuple(map(rename, o.regions)))
            for o in block.ops))

    renamed = bound.with_body(rename(bound.body))

    def rest(kernel: Kernel) -> str:
        for p in PIPELINE[1:]:
            kernel = p.run(kernel, schedule, target)
        return re.sub(r"[%@$][\w.:]+", "%", unmarked(str(kernel))).replace(" ", "")

    assert rest(renamed) == rest(bound)


@pytest.mark.parametrize("target", ["sm_89", "sm_90a"])
@pytest.mark.parametrize("split", ["loops", "branch", "none"])
def test_the_family_of_a_dot_is_kept_by_its_copies(target: str, split: str) -> None:
    math = {"s": "wmma", "acc": "fma"}
    kernel = compiler.lower(attention(target, math=math, split=split).tile, Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, math=math,
                                                                                    split=split), compiler.target(target), stop_after="place")
    dots = [(op["math"], op.result.type.shape) for op in walk_kernel(kernel) if op.kind == "dot"]
    assert set(dots) == {("wmma", (64, 32)), ("fma", (64, 32))} and len(dots) == (4 if split == "loops" else 2)


def test_one_dot_of_several_may_have_a_family_of_its_own_on_hopper() -> None:
    """A name that only one copy of the loop kept made six wgmma and four mma of such a schedule."""
    p = gating("sm_90a", math={"g": "wgmma", "r": "wgmma", "y": "mma"}, copy="tma")
    kinds = {op.kind for op in walk_kernel(p.machine)}
    assert {"wgmma", "mma"} <= kinds
    assert len([op for op in walk_kernel(p.machine) if op.kind == "wgmma"]) % 2 == 0


# ---- what has no effect ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, said, there", [
    (lambda: attention(stages={"nonsense": 3}), "Schedule.stages names nonsense", "k, q, v"),
    (lambda: attention(math={"nonsense": "mma"}), "Schedule.math names nonsense", "acc, s"),
    (lambda: attention("sm_90a", late="zzz", **HOPPER), "Schedule.late names zzz", "acc, s"),
    (lambda: attention("sm_90a", ones="ac", **HOPPER), "Schedule.ones names ac", "did you mean acc?"),
    (lambda: attention("sm_90a", regs_a="q", **HOPPER), "Schedule.regs_a names q", "acc, s"),
    (lambda: attention("sm_90a", cluster={"nowhere": 1}, **HOPPER), "no axis nowhere", "b, h, rows"),
    (lambda: attention("sm_90a", cluster={"row": 2}, **HOPPER), "no axis row", "did you mean rows?"),
    (lambda: attention("sm_90a", from_end="row", **HOPPER), "Schedule.from_end names row", "did you mean rows?"),
    (lambda: attention("sm_90a", from_end="nowhere", **HOPPER), "Schedule.from_end names nowhere", "rows"),
    (lambda: attention(tiles={"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_X": 16}), "Schedule.tiles names BLOCK_X", "BLOCK_M, BLOCK_N"),
    (lambda: attention(mask="none", l2=32), "l2", "along which work differs"),
    (lambda: attention(hints=True), "hints", 'copy="tma"'), (lambda: attention("sm_90a", ahead=True, stages=1, **HOPPER), "ahead", "cp_async"),
    (lambda: attention("sm_90a", tokens=True, late="acc", **HOPPER), "tokens", "warps=8"),
    (lambda: attention("sm_90a", mask="none", l2=32, **HOPPER), "l2", "along which work differs"),
    (lambda: attention(vote=True), "vote", "selects by a row condition"), (lambda: attention(compare_bits=True), "compare_bits", "maximum"),
    (lambda: gating(skip_ones=True), "skip_ones", "tile * row"), (lambda: rows(epilogue="quad"), "epilogue", "direct"),
    (lambda: gating(epilogue="quad"), "epilogue", "direct"), (lambda: rows(math="fma"), "math", "leave math out"),
    (lambda: rows(copy="vector"), "copy", "leave copy out"), (lambda: rows("sm_90a", copy="tma"), "copy", "leave copy out"),
    (lambda: rows(stages=3), "stages", "a load in a loop with dots"), (lambda: rows(split="branch"), "split", "loops"),
    (lambda: attention(stages={"q": 3}), "%q is not loaded ahead", "a load in a loop with dots"),
    (lambda: attention(copy="vector", stages=3), "stages", "cp_async"), (lambda: attention(ahead=True), "ahead", "stages=1"),
    (lambda: multiplied(from_end="cols"), "from_end", "neighbours"),
])
def test_what_has_no_effect_is_refused(make, said: str, there: str) -> None:
    with pytest.raises(FcError) as caught:
        _ = make().machine
    assert caught.value.code == "compile/schedule"
    assert said in caught.value.message and there in str(caught.value), str(caught.value)
    assert caught.value.hint or caught.value.expected


def test_loads_from_places_that_a_table_decides_run_ahead() -> None:
    @fc.kernel
    def paged(X: "T[N, D]", K: "T[P, B, D]", table: "i32[P]", Y: "out f32[N, B]", *, n: "i32"):
        (at,) = fc.grid(fc.tile(X.N, "BM"))
        x = fc.load(X[at])
        acc = fc.var(fc.zeros(at, K.B))
        for i in fc.loop(n):
            k = fc.load(K[table[i]])
            acc <<= acc + fc.dot(x, k.T)
        fc.store(Y[at], acc)

    p = paged.compile(target="sm_89", schedule=Schedule(tiles={"BM": 64}, stages={"k": 3}), T=fc.f16, D=32, B=32)
    assert [b.type.slots for b in p.machine.buffers if b.name == "k"] == [3]
    rng = np.random.default_rng(0)
    x, k, table = rng.standard_normal((40, 32)), rng.standard_normal((6, 32, 32)), np.array([5, 0, 3, 3, 1], np.int32)
    got = p.simulate(X=x.astype(np.float16), K=k.astype(np.float16), table=np.append(table, 0).astype(np.int32), n=5)["Y"]
    np.testing.assert_allclose(got, x @ k[table].sum(0).T, atol=0.2)


def test_loads_from_places_that_the_loop_itself_writes_do_not_run_ahead() -> None:
    @fc.kernel
    def chased(X: "T[N, D]", K: "T[P, B, D]", table: "inout i32[N, P]", Y: "out f32[N, B]", *, n: "i32"):
        (at,) = fc.grid(fc.tile(X.N, "BM"))
        x, mine = fc.load(X[at]), at.start // at.size
        acc = fc.var(fc.zeros(at, K.B))
        for i in fc.loop(n):
            k = fc.load(K[fc.gather(table, mine, i)])
            acc <<= acc + fc.dot(x, k.T)
            one = fc.tile(table.P, "ONE")[i]
            fc.store(table[mine, one], fc.full(one, 0, fc.i32))
        fc.store(Y[at], acc)

    with pytest.raises(FcError, match="%k is not loaded ahead"):
        _ = chased.compile(target="sm_89", schedule=Schedule(tiles={"BM": 64, "ONE": 16}, stages={"k": 3}), T=fc.f16, D=32, B=32).machine


@pytest.mark.parametrize("target, more", [("sm_89", {}), ("sm_90a", {"math": "wgmma", "copy": "tma"})])
def test_slots_for_a_load_that_no_ring_takes_are_refused(target, more) -> None:
    """A row of f16 of which one element is copied at a time: neither kind of copy moves 2 bytes."""
    @fc.kernel
    def shifted(A: "T[M, K]", B: "T[N, K]", S: "T[K, 3]", C: "out f32[M, N]"):
        rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
        acc = fc.var(fc.zeros(rows, cols))
        for depth in fc.loop(fc.tile(A.K, "BK")):
            row = fc.load(S[depth, 1])
            acc <<= acc + fc.dot((fc.load(A[rows, depth]) * row), fc.load(B[cols, depth]).T)
        fc.store(C[rows, cols], acc)

    schedule = Schedule(tiles={"BM": 64, "BN": 64, "BK": 64}, stages={"row": 3}, **more)
    with pytest.raises(FcError, match="%row is not loaded ahead"):
        _ = shifted.compile(target=target, schedule=schedule, T=fc.f16).machine


def test_tile_ir_has_its_tile_sizes() -> None:
    text = str(attention().tile)
    sizes = {"BLOCK_M": 64, "BLOCK_N": 32}
    fc.program_from_text(text, target="sm_89", schedule=Schedule(tiles=sizes)).machine  # noqa: B018  (they agree)
    with pytest.raises(FcError, match="has its tile sizes already"):
        fc.program_from_text(text, target="sm_89", schedule=Schedule(tiles={**sizes, "BLOCK_N": 64})).machine  # noqa: B018


def test_machine_ir_has_its_schedule() -> None:
    text = str(attention().machine)
    assert fc.program_from_text(text).machine
    with pytest.raises(FcError, match="has its schedule already"):
        fc.program_from_text(text, schedule=Schedule(stages=3))


# ---- pairs of fields that were internal errors ----------------------------------------------------------------------------


@pytest.mark.parametrize("make, said", [
    (lambda: attention("sm_90a", math="wgmma"), 'copy="tma"'), (lambda: attention("sm_90a", math="wgmma", copy="vector"), 'copy="tma"'),
    (lambda: attention("sm_90a", math="fma", copy="tma"), "padded rows"), (lambda: attention("sm_90a", math="wmma", copy="tma"), "padded rows"),
    (lambda: attention("sm_90a", math={"s": "wgmma", "acc": "fma"}, copy="tma"), "padded rows"),
    (lambda: attention("sm_90a", math="wgmma", stages=1, ahead=True, tiles={"BLOCK_M": 128, "BLOCK_N": 64}), 'copy="tma"'),
    (lambda: attention("sm_90a", math="mma", copy="tma", warps=2), "warps=4, 8, 12 or 16"),
    (lambda: attention("sm_89", math="wgmma", copy="tma"), "sm_89 has no bulk tensor copies")])
def test_fields_that_do_not_go_together_are_refused(make, said: str) -> None:
    with pytest.raises(FcError) as caught:
        _ = make().machine
    assert caught.value.code == "compile/schedule" and said in str(caught.value)


@pytest.mark.parametrize("d", [10, 24, 40, 56, 72])
@pytest.mark.parametrize("copy", ["cp_async", "vector", "scalar"])
def test_multiply_adds_take_any_head_size(d: int, copy: str) -> None:
    program = attention(math="fma", copy=copy, d=d, tiles={"BLOCK_M": 32, "BLOCK_N": 32})
    assert compiler.to_cuda(program.machine, program.target).text


@pytest.mark.parametrize("bm, d", [(4, 64), (1, 40), (8, 24), (16, 1000)])
def test_rows_without_products_take_any_tile(bm: int, d: int) -> None:
    """Four rows were told about matrix instructions; a row of 1000 was held by two lanes."""
    program = rows(d=d, tiles={"BM": bm})
    assert compiler.to_cuda(program.machine, program.target).text


@pytest.mark.parametrize("more", [{}, {"persistent": "static"}, {"split": "none"}])
def test_a_loop_that_shares_a_tile_is_walked_over_all_rows(more: dict) -> None:
    """Warpgroups leave out tiles of other rows only where no tile goes through shared memory; where one does they walk in step."""
    program = attention("sm_90a", warps=8, tiles={"BLOCK_M": 128, "BLOCK_N": 32}, reuse_frags=False, **HOPPER, **more)
    assert compiler.to_cuda(program.machine, program.target).text
    assert not any(op.kind == "row_part" for op in walk_kernel(program.machine))


@pytest.mark.parametrize("more", [{}, {"copy": "tma", "persistent": "static"}])
def test_stages_of_a_load_that_goes_to_registers_are_refused(more) -> None:
    with pytest.raises(FcError, match=r"Schedule.stages has no effect: %x_tile is "):
        rows("sm_90a", tiles={"BM": 16}, stages={"x_tile": 3}, **more).machine  # noqa: B018
