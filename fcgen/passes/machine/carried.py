"""Products that a loop carries in flight: accumulators that nothing but products touch need no settling between iterations.

In: a loop of selected machine IR in which every wgmma is settled at once. Out: a loop that carries the pending accumulators. Iteration i
issues its products, waits until those of iteration i - 1 are done, and lets go of what they read; the tensor core has the next product
before it has finished the last. The loop's end is settled, and lets go of the last iteration's tiles, behind it.
Where tiles follow from other products, nothing is carried: who makes the next ones waits for the slots of these.
Left operands in registers are carried with them where there are registers for two iterations' (`room`): those of the next are made while
products read these. Such a loop is printed two iterations at a time, in which they change places: a copy would wait for the product. A
branch may stand beside the products if it does nothing but element work, such as the mask of some tiles.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

from ...ir.async_ops import accumulator
from ...ir.core import Op, Value, uses
from ...ir.lifetimes import WRITES
from ...ir.registers import frag_words, least
from ...ir.rewrite import Builder, branch
from ...ir.rings import position, ring_of
from ...ir.types import Buffer, Pending
from ..facts.common import effect

#: registers that ptxas wants besides accumulators, both iterations' left operands and what these are made of: of fewer it spills some, or
#: serialises the products (C7512)
APART = 28


@dataclass
class _Products:
    """settles: of all products of an iteration, in order, by what they make. at: the place of each accumulator among the carried values.
    lefts: the operands in registers that an iteration makes. arrivals: of the rings that products read; moved: the steps of their
    cursors."""

    settles: dict[Value, Op]
    at: list[int]
    lefts: list[Value]
    arrivals: list[Op]
    moved: list[Op]


def carried(loop: Op, room: int, stored: Container[Value] = ()) -> list[Op] | None:
    """The ops in place of the loop, or None where it has no products to carry. room: registers that fragments may take. stored: rings of
    what follows from other products."""
    products = _find(loop, room, stored)
    return _rewritten(loop, products) if products is not None else None


def _find(loop: Op, room: int, stored: Container[Value]) -> _Products | None:
    body = loop.regions[0]
    settles = {o.result: o for o in body.ops if o.kind == "settle"}
    if not settles or loop.get("unroll") or any((o.regions and effect(o) != "none") or o.kind == "turn" for o in body.ops):
        return None
    readers, carried_values = uses(body), body.args[1:]
    made = body.made
    products = [made.get(s.operands[0]) for s in settles.values()]
    lefts = list(dict.fromkeys(v for s in settles.values() for v in s.operands[1:] if v in made))
    if any(p is None or p.kind != "wgmma" for p in products):
        return None
    wgmmas = [p for p in products if p is not None]
    starts: dict[Value, Value] = {}
    at: list[int] = []
    for p, done in zip(wgmmas, settles):
        acc = accumulator(p)  # one that is carried, or what a product before this one has made of it
        if acc is None or [len(readers[v]) for v in (acc, done, p.result)] != [1, 1, 1]:
            return None
        starts[done] = starts.get(acc, acc)
        if starts[done] not in carried_values:
            return None
        if any(o.kind == "yield" for o in readers[done]):
            at.append(carried_values.index(starts[done]))
            if body.yielded[at[-1]] is not done:
                return None
        elif not any(readers[done][0] is p for p in wgmmas):
            return None
    words, accs = sum(frag_words(v.type) for v in lefts), sum(frag_words(carried_values[n].type) for n in at)
    if lefts and max(least(body) + words, accs + 3 * words + APART) > room:
        return None
    tiles = [v for p in wgmmas for v in p.operands if isinstance(v.type, Buffer)]
    read = {ring_of(v, made) for v in tiles}
    if any(v in stored for v in read):
        return None
    if any(o.kind in WRITES and read & {ring_of(v, made) for v in o.operands} for o in body.ops):
        return None  # the next iteration stores what this one's products may still read
    rings = {cursor for v in tiles if (cursor := position(v, made)) is not None}
    arrivals, steps = [], []
    for o in body.ops:
        if o.kind != "mbar_arrive" or o.operands[1] not in rings:
            continue
        moved = next((x for x in body.ops if x.kind == "advance" and x.operands[0] is o.operands[1]), None)
        if moved is None or moved.result not in body.yielded or o.operands[1] not in carried_values or o.operands[1].type.slots < 2:
            return None
        arrivals.append(o)
        steps.append(moved)
    return _Products(settles, at, lefts, arrivals, steps) if len(arrivals) == len(rings) else None


def _rewritten(loop: Op, p: _Products) -> list[Op]:
    body, lo, hi = loop.regions[0], *loop.operands[:2]
    out = Builder(loop.loc)
    flying: dict[Value, Value] = {}  # what is carried, and what is settled of it -> the same in flight
    starts: dict[int, Value] = {}
    ends: dict[int, Value] = {}
    for at in p.at:
        init, acc, result = loop.operands[2 + at], body.args[1 + at], loop.results[at]
        starts[at] = out.emit("pend", init, type=Pending(init.type), name=acc.name)
        flying[acc], ends[at] = Value(starts[at].type, acc.name), Value(starts[at].type, result.name)
    first = out.emit("sub", hi, out.const(1)) if loop.get("descending") else lo
    flying |= {done: s.operands[0] for done, s in p.settles.items()}
    zero = lambda v: out.emit("full", out.emit("const", value=0 if v.type.dtype.is_int else 0.0, dtype=v.type.dtype.name), type=v.type)
    held = [(zero(v), *(Value(v.type, v.name) for _ in range(2)), v) for v in p.lefts]  # at first, of the iteration before, at last; made
    around = [v for s in p.settles.values() for v in s.operands[1:] if v not in p.lefts]
    inner = Builder(loop.loc)
    released, last = {*p.arrivals, *p.moved}, list(p.settles.values())[-1]
    for o in body.ops[:-1]:
        inner.loc = o.loc
        if o.kind != "settle" and o not in released:
            inner.add(replace(o, operands=tuple(flying.get(v, v) for v in o.operands)))
    inner.loc = last.loc
    inner.do("wgmma_wait", *(before for _, before, _, _ in held), groups=len(p.settles))
    later = inner.emit("ne", body.args[0], first)
    then, behind = Builder(last.loc), Builder(last.loc)
    then.ops += [a.with_attrs(lag=1) for a in p.arrivals]
    inner.add(branch(later, then))
    for moved in p.moved:
        inner.add(moved)
    inner.add(replace(body.ops[-1], operands=(*(flying.get(v, v) for v in body.yielded), *(v for *_, v in held))))
    args = (*(flying.get(a, a) for a in body.args), *(before for _, before, _, _ in held))
    final = [v for _, _, v, _ in held]
    results = (*(ends.get(n, r) for n, r in enumerate(loop.results)), *final)
    operands = (lo, hi, *(starts.get(n, v) for n, v in enumerate(loop.operands[2:])), *(first for first, *_ in held))
    attrs = {**loop.attrs, "turns": 2} if held else loop.attrs
    out.add(replace(loop, operands=operands, results=results, attrs=attrs, regions=(inner.block(args),)))
    for at in p.at:
        out.add(Op("settle", (ends[at], *final, *dict.fromkeys(around)), (loop.results[at],), {"groups": 0}, (), last.loc))
    some = out.emit("lt", lo, hi)
    end = lambda moved: loop.results[body.yielded.index(moved.result)]
    behind.ops += [a.reading((a.operands[0], end(m))).with_attrs(lag=1) for a, m in zip(p.arrivals, p.moved)]
    out.add(branch(some, behind))
    return out.ops
