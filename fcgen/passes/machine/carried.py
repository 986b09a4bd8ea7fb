"""Products that a loop carries in flight: an accumulator that nothing but products touch needs no settling between iterations.

In: a loop of selected machine IR in which every wgmma is settled at once. Out: a loop that carries the pending accumulator. Iteration i
issues its product, waits until that of iteration i - 1 is done, and lets go of what that one read; the tensor core has the next product
before it has finished the last. The loop's end is settled, and lets go of the last iteration's tiles, behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...ir.async_ops import accumulator
from ...ir.core import Block, Op, Value, uses
from ...ir.lifetimes import WRITES
from ...ir.rewrite import Builder
from ...ir.types import Buffer, Pending


@dataclass
class _Product:
    """at: the accumulator's place among the carried values. arrivals: of the rings that the product reads, with their cursors' places."""

    wgmma: Op
    settle: Op
    at: int
    arrivals: list[tuple[Op, int]]


def carried(loop: Op) -> list[Op] | None:
    """The ops in place of the loop, or None where it has no product to carry."""
    product = _find(loop)
    return _rewritten(loop, product) if product is not None else None


def _find(loop: Op) -> _Product | None:
    body = loop.regions[0]
    settles = [o for o in body.ops if o.kind == "settle"]
    if len(settles) != 1 or any(o.regions or o.kind == "turn" for o in body.ops):
        return None
    settle, readers = settles[0], uses(body)
    wgmma = next((o for o in body.ops if o.results and o.results[0] is settle.operands[0]), None)
    if wgmma is None or wgmma.kind != "wgmma" or len(settle.operands) != 1 or loop.get("unroll"):
        return None
    acc, carried_values = accumulator(wgmma), body.args[1:]
    if acc not in carried_values:
        return None
    at = carried_values.index(acc)
    if body.yielded[at] is not settle.result or [len(readers[v]) for v in (acc, settle.result, wgmma.result)] != [1, 1, 1]:
        return None
    made = {r: o for o in body.ops for r in o.results}
    ring = lambda v: made[v].operands[0] if v in made and made[v].kind == "slot" else v
    read = {ring(v) for v in wgmma.operands if isinstance(v.type, Buffer)}
    if any(o.kind in WRITES and read & set(map(ring, o.operands)) for o in body.ops):
        return None  # the next iteration stores what this one's product may still read
    rings = {made[v].operands[1] for v in wgmma.operands if isinstance(v.type, Buffer) and v in made and made[v].kind == "slot"}
    arrivals = []
    for o in body.ops:
        if o.kind != "mbar_arrive" or o.operands[1] not in rings:
            continue
        moved = next((x for x in body.ops if x.kind == "advance" and x.operands[0] is o.operands[1]), None)
        if moved is None or moved.result not in body.yielded or o.operands[1] not in carried_values or o.operands[1].type.slots < 2:
            return None
        arrivals.append((o, body.yielded.index(moved.result)))
    return _Product(wgmma, settle, at, arrivals) if len(arrivals) == len(rings) else None


def _rewritten(loop: Op, p: _Product) -> list[Op]:
    body, lo, hi = loop.regions[0], *loop.operands[:2]
    out = Builder(loop.loc)
    init = loop.operands[2 + p.at]
    start = out.emit("pend", init, type=Pending(init.type), name=p.wgmma.result.name)
    first = out.emit("sub", hi, out.emit("const", value=1, dtype="i32")) if loop.get("descending") else lo
    acc = body.args[1 + p.at]
    arg = Value(start.type, acc.name)
    inner = Builder(loop.loc)
    released = {id(o) for o, _ in p.arrivals}
    wgmma = replace(p.wgmma, operands=tuple(arg if v is acc else v for v in p.wgmma.operands))
    for o in body.ops:
        inner.loc = o.loc
        if o is p.wgmma:
            inner.add(wgmma)
        elif o is p.settle:
            inner.do("wgmma_wait", groups=1)
            later = inner.emit("ne", body.args[0], first)
            inner.add(_if(later, [replace(a, attrs={**a.attrs, "lag": 1}) for a, _ in p.arrivals], o))
        elif o.kind == "yield":
            inner.add(replace(o, operands=tuple(wgmma.result if v is p.settle.result else v for v in o.operands)))
        elif id(o) not in released:
            inner.add(o)
    result = loop.results[p.at]
    flying = Value(start.type, result.name)
    args = tuple(arg if a is acc else a for a in body.args)
    out.add(replace(loop, operands=tuple(start if n == 2 + p.at else v for n, v in enumerate(loop.operands)),
                    results=tuple(flying if r is result else r for r in loop.results), regions=(inner.block(args),)))
    out.add(Op("settle", (flying,), (result,), {"groups": 0}, (), p.settle.loc))
    some = out.emit("lt", lo, hi)
    last = [replace(a, operands=(a.operands[0], loop.results[n]), attrs={**a.attrs, "lag": 1}) for a, n in p.arrivals]
    out.add(_if(some, last, p.settle))
    return out.ops


def _if(condition: Value, ops: list[Op], like: Op) -> Op:
    empty = Op("yield", loc=like.loc)
    return Op("if", (condition,), (), {}, (Block((), (*ops, empty)), Block((), (empty,))), like.loc)
