"""The history of shared memory against the definition of a race: every pair of accesses of random programs, judged one by one.

The simulator remembers only the last accesses to each element and tells only the first conflict of each op. Here nothing is forgotten: an
access is an interval of its thread's program order (a copy's ends at the wait that completes it), and two that meet in an element, one
of them writing, must have the end of one ordered before the start of the other.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict

import numpy as np
import pytest

from fcgen.build.compiler import target
from fcgen.errors import Loc
from fcgen.ir.core import Kernel, Role, Value
from fcgen.ir.layout import LANES, Factor, RegLayout, SmemLayout
from fcgen.ir.rewrite import Builder
from fcgen.ir.types import Buffer, Frag, Tensor, f16
from fcgen.ir.verify import verify
from fcgen.sim.machine import simulate

WARPS = 2
ANY = -1  # the lane of an access by a warp as a whole


def layout_of(text: str) -> RegLayout:
    """`{w2@1 l4@8 | l8@1}`, as layouts print."""
    axes = ([re.fullmatch(r"([wlr])(\d+)@(\d+)", f) for f in axis.split()] for axis in text.strip("{}").split("|"))
    out = RegLayout(tuple(tuple(Factor(m[1], int(m[2]), int(m[3])) for m in axis) for axis in axes))
    assert str(out) == text
    return out


LAYOUTS = [layout_of(t) for t in (
    "{w2@1 l4@8 | l8@1}", "{l4@8 w2@1 | l8@1}",  # warps hold halves, or every other row; an element to a lane
    "{w2@1 l4@1 | l8@4}",  # the same halves, other lanes
    "{r2@1 l4@8 | l8@1}",  # both warps hold all of it
    "{l8@4 | l4@1 r2@1}", "{w2@1 r4@2 | l4@1 r2@1}", "{w2@1 r4@8 | r8@1}")]  # several lanes hold copies
COPIES = [layout_of(t) for t in ("{l8@4 | l4@1 r2@1}", "{w2@1 r2@2 l2@4 | l4@1 r2@1}", "{l8@1 | w2@1 l2@8 r2@1}")]
MATRIX = layout_of("{l8@4 | l4@1 r2@1}")
KINDS = {"st_shared": .18, "ld_shared": .14, "ldmatrix": .08, "cp_async": .12, "commit_group": .12, "wait_group": .12, "syncwarp": .09,
         "barrier": .15}


def draw(rng: np.random.Generator) -> Kernel:
    """A straight line of accesses to one or two tiles and of what orders them."""
    slots = int(rng.integers(1, 3))
    x, ring = Value(Tensor(f16, (8, 8)), "X"), Value(Buffer(f16, (8, 8), SmemLayout(8), slots), "s")
    b = Builder()
    at = lambda: Loc("p.py", len(b.ops) + 1)
    zero = b.emit("const", value=0, dtype="i32", loc=at())
    one = b.emit("const", value=1.0, dtype="f16", loc=at())
    views = [b.emit("slot", ring, zero, ahead=n, loc=at()) for n in range(slots)]
    for _ in range(rng.integers(3, 16)):
        kind, view, layout = rng.choice(list(KINDS), p=list(KINDS.values())), views[rng.integers(slots)], LAYOUTS[rng.integers(len(LAYOUTS))]
        if kind == "st_shared":
            b.do(kind, b.emit("full", one, type=Frag(f16, (8, 8), layout), loc=at()), view, zero, zero, loc=at())
        elif kind == "ld_shared":
            b.emit(kind, view, zero, zero, type=Frag(f16, (8, 8), layout), loc=at())
        elif kind == "ldmatrix":
            b.emit(kind, view, zero, zero, type=Frag(f16, (8, 8), MATRIX), transposed=False, trans=False, loc=at())
        elif kind == "cp_async":
            b.do(kind, x, view, index=("all", "all"), guard=(False, False), threads=COPIES[rng.integers(len(COPIES))], loc=at())
        else:
            b.do(kind, loc=at(), **({"n": int(rng.integers(2))} if kind == "wait_group" else {}))
    return verify(Kernel("random", "machine", (x,), (), (Role("main", WARPS, b.block()),), buffers=(ring,)))


def holders(layout: RegLayout, one: bool) -> dict[tuple[int, ...], list[tuple[int, int]]]:
    """element -> the threads (warp, lane) that hold it, or one of them: the first."""
    c, out = layout.coords(WARPS), defaultdict(list)
    for w, l, r in itertools.product(range(WARPS), range(LANES), range(layout.regs)):
        element = tuple(map(int, c[w, l, r]))
        if not (one and out[element]):
            out[element].append((w, l))
    return out


def judge(kernel: Kernel) -> tuple[set[tuple[int, int]], set[int]]:
    """(pairs of conflicting ops, copies nobody waits for), as positions in the program."""
    ops = kernel.body.ops
    barriers = np.cumsum([o.kind == "barrier" for o in ops])
    syncs = np.cumsum([o.kind in ("barrier", "syncwarp") for o in ops])
    slot = {o.results[0]: o["ahead"] for o in ops if o.kind == "slot"}
    landed: dict[int, int] = {}
    groups, filling = [], []
    for i, o in enumerate(ops):
        if o.kind == "cp_async":
            filling.append(i)
        elif o.kind == "commit_group":
            groups, filling = [*groups, filling], []
        elif o.kind == "wait_group":
            done = len(groups) - o["n"] if len(groups) > o["n"] else 0
            landed |= {c: i for g in groups[:done] for c in g}
            groups = groups[done:]

    accesses = []  # position, whether it writes, element -> threads, slot
    for i, o in enumerate(ops):
        if o.kind == "st_shared":
            accesses.append((i, True, holders(o.operands[0].type.layout, True), slot[o.operands[1]]))
        elif o.kind == "ld_shared":
            accesses.append((i, False, holders(o.result.type.layout, False), slot[o.operands[0]]))
        elif o.kind == "ldmatrix":
            both = [(w, ANY) for w in range(WARPS)]
            accesses.append((i, False, dict.fromkeys(itertools.product(range(8), range(8)), both), slot[o.operands[0]]))
        elif o.kind == "cp_async":
            accesses.append((i, True, holders(o["threads"], True), slot[o.operands[-1]]))

    def before(i: int | None, a: tuple[int, int], j: int, b: tuple[int, int]) -> bool:
        """Position i of thread a is ordered before position j of thread b. None: never happens."""
        if i is None or i >= j:
            return False
        count = barriers if a[0] != b[0] else syncs
        return a == b or count[i] < count[j]

    end = lambda i: landed.get(i) if ops[i].kind == "cp_async" else i
    bad = set()
    for (i, wi, hi, si), (j, wj, hj, sj) in itertools.combinations_with_replacement(accesses, 2):
        if si == sj and (wi or wj) and any(
                (i, a) != (j, b) and not before(end(i), a, j, b) and not before(end(j), b, i, a)
                for e in hi for a in hi[e] for b in hj.get(e, ())):
            bad.add((i, j))
    return bad, {i for i, o in enumerate(ops) if o.kind == "cp_async" and i not in landed}


def told(kernel: Kernel, seed: int) -> tuple[set[tuple[int, int]], set[int]]:
    """The same from the simulator's reports. Reads of what nothing has written are left aside."""
    pairs, left = set(), set()
    for e in simulate(kernel, {"X": np.ones((8, 8))}, target("sm_89"), seed=seed).reports:
        if e.code == "sim/leftover":
            left.add(e.loc.line - 1)
        elif len(e.notes) == 2:
            first, second = sorted(int(n.rsplit("p.py:", 1)[1].rstrip(")")) - 1 for n in e.notes)
            pairs.add((first, second))
    return pairs, left


@pytest.mark.parametrize("chunk", range(6))
def test_against_the_definition(chunk):
    few = clean = 0
    for n in range(60 * chunk, 60 * chunk + 60):
        kernel = draw(np.random.default_rng(n))
        bad, left = judge(kernel)
        clean += not bad
        few += len(bad) == 1
        for seed in range(2):
            pairs, waited = told(kernel, seed)
            assert pairs <= bad, f"program {n}: told of {pairs - bad}, which are in order"
            ops = {op for pair in pairs for op in pair}  # each op's first conflict is told, unless another one stands between
            direct = [p for p in bad if not any({(p[0], k), (k, p[1])} & bad for k in range(p[0] + 1, p[1]))]
            assert all(ops & set(p) for p in direct), f"program {n}: not told of {[p for p in direct if not ops & set(p)]}"
            assert waited == left, f"program {n}: left over"
    assert clean >= 4 and few >= 3  # programs that say something
