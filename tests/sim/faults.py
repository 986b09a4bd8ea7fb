"""Faults planted in machine kernels on purpose, so that the simulator's silence can be trusted: what it does not report here it would miss.

`FAULTS[name].mutants(kernel)` yields, for each site in the kernel where the fault fits, a kernel with that one fault. Those of asynchronous
engines are in `async_faults`. `survey` runs
them all on given arguments and says how each was caught: by a report of the simulator, by numbers that are wrong, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fcgen.errors import FcError, Loc
from fcgen.ir.core import Block, Kernel, Op, Value, walk, walk_kernel
from fcgen.ir.layout import RegLayout
from fcgen.ir.rewrite import Env, map_bodies, rewrite
from fcgen.ir.target import Target
from fcgen.ir.types import Buffer
from fcgen.sim.machine import simulate
from fcgen.sim.words import describe


@dataclass(frozen=True)
class Mutant:
    """A kernel with one fault. loc: the spec line of the site. site: the site in words, the same from run to run. op: the one that is gone
    or other in it, if it is one op."""

    kernel: Kernel
    loc: Loc | None
    site: str
    op: Op | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.kernel, self.loc, self.site))


@dataclass(frozen=True)
class Fault:
    """One kind of mistake. make: the kernel -> a mutant per site."""

    name: str
    doc: str
    make: Callable[[Kernel], Iterator[Mutant]]

    def mutants(self, kernel: Kernel) -> Iterator[Mutant]:
        return self.make(kernel)


#: name -> fault
FAULTS: dict[str, Fault] = {}


def fault(name: str, table: dict[str, Fault] = FAULTS) -> Callable[[Callable[[Kernel], Iterator[Mutant]]],
                                                                   Callable[[Kernel], Iterator[Mutant]]]:
    def keep(make: Callable[[Kernel], Iterator[Mutant]]) -> Callable[[Kernel], Iterator[Mutant]]:
        table[name] = Fault(name, (make.__doc__ or "").strip(), make)
        return make

    return keep


# ---- running them ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Caught:
    """What became of one mutant. codes: of the reports on the first arguments that showed anything, with "wrong" where the numbers
    are not the expected ones; empty if nothing was seen on any arguments."""

    fault: str
    mutant: Mutant
    codes: frozenset[str]


def run_mutant(kernel: Kernel, runs: Iterable[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]], target: Target, *,
               tolerance: float = 5e-3, stop: bool = False) -> frozenset[str]:
    """Codes by which a mutant shows, on the first of `runs` (arguments, expected outputs) where it does. stop: of the first report."""
    for arguments, expected in runs:
        try:
            with np.errstate(all="ignore"):
                result = simulate(kernel, arguments, target, stop=stop)
        except FcError as e:
            return frozenset({e.code})
        codes = {e.code for e in result.reports}
        for name, want in expected.items():
            got = np.asarray(result.outputs[name], np.float64)
            if not np.allclose(got, want, rtol=tolerance, atol=tolerance):
                codes.add("wrong")
        if codes:
            return frozenset(codes)
    return frozenset()


def survey(kernel: Kernel, runs: list[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]], target: Target, *,
           names: Iterable[str] | None = None) -> Iterator[Caught]:
    """Every mutant of every fault (or of those named)."""
    for name in names if names is not None else FAULTS:
        for mutant in FAULTS[name].mutants(kernel):
            yield Caught(name, mutant, run_mutant(mutant.kernel, runs, target))


# ---- editing -----------------------------------------------------------------------------------------------------------


def _edited(block: Block, edits: Mapping[int, tuple[Op, ...]]) -> Block:
    """The block with some ops (by identity) replaced by others; values stay the same ones."""
    ops: list[Op] = []
    for op in block.ops:
        if id(op) in edits:
            ops += edits[id(op)]
        elif op.regions:
            ops.append(replace(op, regions=tuple(_edited(r, edits) for r in op.regions)))
        else:
            ops.append(op)
    return replace(block, ops=tuple(ops))


def _replace(kernel: Kernel, edits: Mapping[Op, tuple[Op, ...]]) -> Kernel:
    table = {id(op): new for op, new in edits.items()}
    return map_bodies(kernel, lambda body: _edited(body, table))


def _substitute(kernel: Kernel, mapping: Mapping[Value, Value]) -> Kernel:
    """Other values in the place of some: of buffers where they are declared, of results where they are made."""

    def rule(op: Op, b: Any, env: Env) -> bool:
        if not any(r in mapping for r in op.results):
            return False
        results = tuple(Value(mapping.get(r, r).type, r.name) for r in op.results)
        for old, new in zip(op.results, results):
            env[old] = new
        b.add(replace(op, results=results))
        return True

    made = {r for op in walk_kernel(kernel) for r in op.results}
    outer = {old: new for old, new in mapping.items() if old not in made}
    new = map_bodies(kernel, lambda body: rewrite(body, rule, Env(outer)))
    return replace(new, buffers=tuple(outer.get(b, b) for b in kernel.buffers))


def _sites(kernel: Kernel, kind: str) -> Iterator[tuple[Op, str]]:
    """(op, words) of each op of a kind; the words name the op after it too, since a barrier has no name of its own."""
    count = 0
    for block in _blocks(kernel):
        for i, op in enumerate(block.ops):
            if op.kind == kind:
                after = next((o for o in block.ops[i + 1:] if o.kind not in ("const", "barrier", "syncwarp", "wait_group")), None)
                yield op, f"{kind} {count}: {_plain(op)}" + (f", before {_plain(after)}" if after is not None else "")
                count += 1


def _plain(op: Op) -> str:
    """The op in a line without its place."""
    return describe(replace(op, loc=None, place=None))


def _blocks(kernel: Kernel) -> Iterator[Block]:
    def inside(block: Block) -> Iterator[Block]:
        yield block
        for op in block.ops:
            for r in op.regions:
                yield from inside(r)

    for role in kernel.roles:
        yield from inside(role.body)


def _drop(kernel: Kernel, kind: str) -> Iterator[Mutant]:
    for op, words in _sites(kernel, kind):
        yield Mutant(_replace(kernel, {op: ()}), op.loc, words, op)


# ---- synchronisation -----------------------------------------------------------------------------------------------------


@fault("drop-barrier")
def _drop_barrier(kernel: Kernel) -> Iterator[Mutant]:
    """A `barrier` is missing."""
    return _drop(kernel, "barrier")


@fault("drop-syncwarp")
def _drop_syncwarp(kernel: Kernel) -> Iterator[Mutant]:
    """A `syncwarp` is missing."""
    return _drop(kernel, "syncwarp")


@fault("drop-wait")
def _drop_wait(kernel: Kernel) -> Iterator[Mutant]:
    """A `wait_group` is missing."""
    return _drop(kernel, "wait_group")


@fault("weaken-wait")
def _weaken_wait(kernel: Kernel) -> Iterator[Mutant]:
    """A `wait_group` lets one more group be in flight."""
    for op, words in _sites(kernel, "wait_group"):
        yield Mutant(_replace(kernel, {op: (op.with_attrs(n=op["n"] + 1),)}), op.loc, words)


@fault("drop-commit")
def _drop_commit(kernel: Kernel) -> Iterator[Mutant]:
    """A `commit_group` is missing: its copies fall into the next group."""
    return _drop(kernel, "commit_group")


@fault("early-copy")
def _early_copy(kernel: Kernel) -> Iterator[Mutant]:
    """Copies start in front of the barrier that says that their slot's readers are done."""
    count = 0
    for block in _blocks(kernel):
        barrier: Op | None = None
        for op in block.ops:
            if op.kind == "barrier":
                barrier = op
            elif barrier is not None and op.kind in ("if", "cp_async"):
                copy = next((o for o in [op, *(o for r in op.regions for o in walk(r))] if o.kind == "cp_async"), None)
                if copy is None:
                    continue
                yield Mutant(_replace(kernel, {barrier: (), op: (op, barrier)}), op.loc, f"copies {count}: {_plain(copy)}")
                count += 1


# ---- rings ---------------------------------------------------------------------------------------------------------------


@fault("fewer-slots")
def _fewer_slots(kernel: Kernel) -> Iterator[Mutant]:
    """A ring has one slot fewer than its schedule needs."""
    for b in kernel.buffers:
        if b.type.slots > 1:
            yield Mutant(_substitute(kernel, {b: Value(replace(b.type, slots=b.type.slots - 1), b.name)}), None, f"ring {b.name}")


def _slots(kernel: Kernel, copies: bool) -> Iterator[Mutant]:
    filled = {v for op in walk_kernel(kernel) if op.kind in ("cp_async", "st_shared") for v in op.operands if isinstance(v.type, Buffer)}
    for op, words in _sites(kernel, "slot"):
        if op.operands[0].type.slots > 1 and (op.result in filled) == copies:
            yield Mutant(_replace(kernel, {op: (op.with_attrs(ahead=op["ahead"] + 1),)}), op.loc, words)


@fault("wrong-slot")
def _wrong_slot(kernel: Kernel) -> Iterator[Mutant]:
    """A tile is read from the slot after its own."""
    return _slots(kernel, False)


@fault("far-copy")
def _far_copy(kernel: Kernel) -> Iterator[Mutant]:
    """A copy goes to the slot after its own."""
    return _slots(kernel, True)


@fault("overlap")
def _overlap(kernel: Kernel) -> Iterator[Mutant]:
    """Two buffers that are in use at the same time share bytes."""
    from fcgen.ir.lifetimes import meet, spans

    offsets = kernel.meta.get("smem_offsets")
    if offsets is None:
        return
    used = {b: span for role in kernel.roles for b, span in spans(role.body, set(kernel.buffers)).items()}
    for i, a in enumerate(kernel.buffers):
        for j, b in enumerate(kernel.buffers):
            if i < j and a in used and b in used and meet(used[a], used[b]):
                moved = tuple(offsets[i] if n == j else o for n, o in enumerate(offsets))
                size = max(at + v.type.bytes for v, at in zip(kernel.buffers, moved))
                yield Mutant(kernel.with_meta(smem_offsets=moved, smem_bytes=max(size, kernel.meta["smem_bytes"])), None,
                             f"{a.name} {i} and {b.name} {j}")


# ---- data ----------------------------------------------------------------------------------------------------------------


@fault("swap-rows")
def _swap_rows(kernel: Kernel) -> Iterator[Mutant]:
    """The fragment that an ldmatrix fills, and its slices, have two row digits exchanged."""
    for op, words in _sites(kernel, "ldmatrix"):
        family = [op.result]
        for o in walk_kernel(kernel):
            if o.kind == "slice" and o.operands[0] in family:
                family.append(o.result)
        new = {v: Value(replace(v.type, layout=_rows_swapped(v.type.layout)), v.name) for v in family}
        yield Mutant(_substitute(kernel, new), op.loc, words)


def _rows_swapped(layout: RegLayout) -> RegLayout:
    """Axis 0 with its first register digit and the digit after it exchanged: 8x8 blocks land in each other's registers. (Digits
    inside a block are ldmatrix's and mma's own; a layout that is wrong about those alone changes no number between the two.)"""
    rows = list(layout.axes[0])
    i = min(next(n for n, f in enumerate(rows) if f.unit == "r"), len(rows) - 2)
    rows[i], rows[i + 1] = rows[i + 1], rows[i]
    return RegLayout((tuple(rows), *layout.axes[1:]))


@fault("flip-trans")
def _flip_trans(kernel: Kernel) -> Iterator[Mutant]:
    """An ldmatrix hands out its blocks transposed where it should not, or the other way round."""
    for op, words in _sites(kernel, "ldmatrix"):
        yield Mutant(_replace(kernel, {op: (op.with_attrs(trans=not op["trans"]),)}), op.loc, words)


def _unguarded(kernel: Kernel, kinds: tuple[str, ...]) -> Iterator[Mutant]:
    for kind in kinds:
        for op, words in _sites(kernel, kind):
            for axis, guarded in enumerate(op["guard"]):
                if guarded:
                    guard = tuple(g and n != axis for n, g in enumerate(op["guard"]))
                    yield Mutant(_replace(kernel, {op: (op.with_attrs(guard=guard),)}), op.loc, f"{words}, axis {axis}")


@fault("unguarded-store")
def _unguarded_store(kernel: Kernel) -> Iterator[Mutant]:
    """A store does not stop at the end of its tensor."""
    return _unguarded(kernel, ("st_global",))


@fault("unguarded-load")
def _unguarded_load(kernel: Kernel) -> Iterator[Mutant]:
    """A load or copy does not stop at the end of its tensor."""
    return _unguarded(kernel, ("ld_global", "cp_async"))
