"""overlap: matrix products are waited for where their results are needed, not where they were issued.

In: selected machine IR in which every wgmma is settled at once. Out: the same with each `settle` as late as it can be: in front of the
first op that reads its result, and of anything that would touch what is in flight. What a settle lets go (the arrival that frees a ring's
slot) moves with it. Products complete in the order of their groups, so a settle leaves as many groups in flight as were issued after its
own. A product that is added to the one before it, which nothing else reads, follows it without a wait. A loop whose accumulator only
products touch carries it in flight (`carried`); one that issues products for its next iteration (`ahead`) carries those. A turn is taken in
front of its first product and given on when that is done. Waits for tiles that stand between two products are moved in front of the first,
so that the second is issued right behind it; so is arithmetic on a carried accumulator that needs nothing else, since ptxas (C7517) waits
for everything in flight before ordinary instructions read what a product of the iteration before has made.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...ir.async_ops import accumulator
from ...ir.core import Block, Kernel, Op, Value, uses, walk, walk_kernel
from ...ir.lifetimes import WRITES
from ...ir.registers import limit_of
from ...ir.rewrite import map_bodies
from ...ir.rings import RELEASES, position
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Buffer, Pending
from ..facts.common import ELEMENTWISE
from ..memory.grid import TOKENS
from .carried import carried

#: registers of a thread that hold no fragment
OTHERS = 20


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if not any(o.kind in ("settle", "turn") for r in kernel.roles for o in walk(r.body)):
        return kernel
    room = limit_of(kernel, target) - OTHERS
    made = {r: o for o in walk_kernel(kernel) for r in o.results}
    busy = [r for r in kernel.roles if any(o.kind == "wgmma" for o in walk(r.body))]
    views = {o.operands[1] for r in busy for o in walk(r.body) if o.kind in WRITES}
    around = _Around(room, made, {made[v].operands[0] for v in views if position(v, made) is not None}, len(busy) == 1)
    return map_bodies(kernel, lambda body: _block(body, around)[0])


@dataclass(frozen=True)
class _Around:
    """room: registers that fragments may take. made: value -> its op, of all roles. stored: rings of what follows from other products.
    alone: one role has all products."""

    room: int
    made: dict[Value, Op]
    stored: set[Value]
    alone: bool


@dataclass
class _Flight:
    """A product in flight, or several that are added up: their settle, the slots they read, their groups, and the ops that follow their
    completion. cursors: where a loop's body begins, and behind the loop, the positions of the slots that a product of the iteration before
    reads."""

    settle: Op
    reads: set[Value]
    groups: int = 1
    then: list[Op] = field(default_factory=list)
    cursors: frozenset[Value] = frozenset()

    @property
    def results(self) -> set[Value]:
        return {r for o in (self.settle, *self.then) for r in o.results}


def _block(block: Block, around: _Around, entering: list[_Flight] | None = None) -> tuple[Block, list[_Flight]]:
    """entering: what a loop's body finds in flight, and waits for before it issues anything (C7514: of
    products from in front of a loop, or from the iteration before, ptxas counts no groups, but sees that all are done). It then leaves as
    many in flight that nothing but its next iteration reads, if those are the last that it issues. Returns what is in flight behind the
    block."""
    out: list[Op] = []
    flying: list[_Flight] = list(entering or ())
    arrived = tuple(flying)
    readers = uses(block)
    added: _Flight | None = None  # what the next product is added to
    start = 0  # where the run of products in flight begins in `out`

    ends = {r for o in block.ops if o.kind == "settle" for r in o.results}
    kept = {a for a, v in zip(block.args[1:], block.yielded) if v in ends}  # accumulators that the loop carries

    turn: Op | None = None  # a turn that has not been taken, or not been given on

    def land(n: int) -> None:
        """Settle the first n products; all of what has arrived with them."""
        nonlocal turn
        for _ in range(max(n, n and sum(f in arrived for f in flying))):
            f = flying.pop(0)
            out.append(f.settle.with_attrs(groups=sum(x.groups for x in flying if x not in arrived)))
            out.extend(f.then)
            if turn is not None and turn.kind == "token_give":
                out.append(turn)
                turn = None

    for n, op in enumerate(block.ops):
        if op.kind == "turn":
            turn = Op("token_take", attrs={"id": TOKENS}, loc=op.loc)
            continue
        if op.kind == "settle":
            wgmma = next(o for o in reversed(out) if o.kind == "wgmma")
            reads = {v for v in wgmma.operands if isinstance(v.type, Buffer)}
            before = added or _Flight(op, set(), 0)
            settle = replace(op, operands=(*op.operands, *before.settle.operands[1:])) if added is not None else op
            flying.append(_Flight(settle, reads | before.reads, before.groups + 1, before.then))
            added = None
            continue
        if op.kind == "wgmma_fence":
            land(sum(f in arrived for f in flying))
            product = next(o for o in block.ops[n:] if o.kind == "wgmma")
            acc = accumulator(product)
            if flying and acc is not None and flying[-1].settle.results == (acc,) and readers[acc] == [product]:
                added = flying.pop()
            land(max((k + 1 for k, f in enumerate(flying) if _needs(product, f)), default=0))
        if op.kind == "wgmma" and added is not None:
            op = replace(op, operands=tuple(added.settle.operands[0] if v in added.settle.results else v for v in op.operands))
        in_flight = carried(op, around.room, around.stored) if op.kind == "for" and not flying else None
        if in_flight is not None:
            out += in_flight
            continue
        if op.kind == "for" and (across := _across(op, flying, readers, around)) is not None:
            loop, left = across
            land(len(flying) - len(left))
            out.append(loop)
            flying = left
            continue
        if op.regions:
            op = op.within(lambda r: _block(r, around)[0])
        if flying and op.kind in RELEASES:
            owner = next((f for f in reversed(flying) if _frees(op, f, around.made, out)), None)
            if owner is not None:
                owner.then.append(op)
                continue
        if flying and op.kind == "mbar_wait" and not op.reads & {r for f in flying for r in f.results} and _for_product(op, block, around):
            moved = op.reads & {r for o in out[start:] for r in o.results}  # a slot let go behind the first of the products
            out.insert(len(out) if moved else start, op)
            start += not moved
            continue
        late = 0 if op.kind == "yield" else max((k + 1 for k, f in enumerate(flying) if _needs(op, f)), default=0)
        ready = not late and op.reads.isdisjoint(r for o in out[start:] for r in o.results)
        if flying and ready and op.kind in ELEMENTWISE and op.reads & kept:
            out.insert(start, op)
            start += 1
            continue
        land(late)
        if not flying and added is None and op.kind == "wgmma_fence":
            start = len(out)
            if turn is not None and turn.kind == "token_take":
                out.append(turn)
                turn = replace(turn, kind="token_give")
        if op.kind == "yield":
            last = flying[len(flying) - len(entering or ()):]
            on = entering is not None and all(_only(f, op, readers) for f in last)
            land(len(flying) - (len(last) if on else 0))
            if on:
                pending = {f.settle.result: f.settle.operands[0] for f in last}
                op = replace(op, operands=tuple(pending.get(v, v) for v in op.operands))
            if turn is not None:  # a turn without a product
                out += [turn, replace(turn, kind="token_give")]
                turn = None
        out.append(op)
        if op.kind == "yield":
            return Block(block.args, tuple(out)), flying
    land(len(flying))
    return Block(block.args, tuple(out)), []


def _only(f: _Flight, reader: Op, readers: Mapping[Value, list[Op]]) -> bool:
    """Whether nothing waits for a product but one op, which reads its result."""
    return not f.then and f.groups == 1 and len(f.settle.operands) == 1 and readers[f.settle.result] == [reader]


def _across(loop: Op, flying: list[_Flight], readers: Mapping[Value, list[Op]],
            around: _Around) -> tuple[Op, list[_Flight]] | None:
    """A loop that takes over the last products in flight and carries those that its iterations issue for the next one, and what is in
    flight behind it."""
    body, ends = loop.regions[0], {r for o in loop.regions[0].ops if o.kind == "settle" for r in o.results}
    inits, count = loop.operands[2:], 0
    while count < len(flying) and _only(flying[-1 - count], loop, readers):
        count += 1
    taken = flying[len(flying) - count:]
    at = [inits.index(f.settle.result) for f in taken]
    if not at or any(body.yielded[n] not in ends for n in at):
        return None
    pending = lambda v: Value(Pending(v.type), v.name)
    args = {n: pending(body.args[1 + n]) for n in at}
    settle = lambda v, of, *cursors: _Flight(Op("settle", (of,), (v,), {"groups": 0}, (), loop.loc), set(), 1, [], frozenset(cursors))
    made = {r: o for o in body.ops for r in o.results}
    found = [[position(v, made) for v in made[made[body.yielded[n]].operands[0]].operands if isinstance(v.type, Buffer)] for n in at]
    slots = [[c for c in cursors if c is not None and c not in body.args] for cursors in found]
    if any(c not in body.yielded for cursors in slots for c in cursors):
        return None
    at_slots = lambda values: [[values[body.yielded.index(c)] for c in cursors] for cursors in slots]
    mine, behind = at_slots(body.args[1:]), at_slots(loop.results)
    inner, left = _block(body, around, [settle(body.args[1 + n], args[n], *cursors) for n, cursors in zip(at, mine)])
    if [body.yielded.index(f.settle.result) for f in left] != at:
        return None
    results = {n: pending(loop.results[n]) for n in at}
    carry = lambda values, new: tuple(new.get(n, v) for n, v in enumerate(values))
    flights = {n: f.settle.operands[0] for n, f in zip(at, taken)}
    inner = Block((body.args[0], *carry(body.args[1:], args)), inner.ops)
    return (replace(loop, operands=(*loop.operands[:2], *carry(inits, flights)), results=carry(loop.results, results), regions=(inner,)),
            [settle(loop.results[n], results[n], *cursors) for n, cursors in zip(at, behind)])


def _frees(op: Op, f: _Flight, ops: dict[Value, Op], out: list[Op]) -> bool:
    """Whether an arrival (or the step after it) is for a slot that the product reads."""
    cursor = op.operands[-1]
    if cursor in f.cursors or any(cursor in o.operands for o in f.then):
        return True
    made = ChainMap({r: o for o in out for r in o.results}, ops)  # a slot may be of what stands in front of a branch
    return any(position(v, made) is cursor for v in f.reads)


def _for_product(wait: Op, block: Block, around: _Around) -> bool:
    """Whether a product may read the tile that is waited for, which is there early: no tile that goes to registers. Rows are there long
    before, and waiting for one between products would keep the slots of others. Beside another role's products none is early: that role
    frees one slot after the other."""
    made = {r: o for o in block.ops for r in o.results}
    views = {v for v in made if position(v, made) is wait.operands[1]}
    if not around.alone or any(o.kind in WRITES and not views.isdisjoint(o.operands) for o in block.ops) or _stored_here(wait, block, made):
        return False
    reader = next((o for o in block.ops if o.reads & views), None)
    return reader is None or reader.kind not in ("ld_shared", "ldmatrix") or len(reader.result.type.shape) == 1


def _stored_here(wait: Op, block: Block, made: dict[Value, Op]) -> bool:
    """Whether the tile that is waited for is one that warps of this role store."""
    rings = {made[v].operands[0] for o in block.ops if o.kind in WRITES for v in o.operands if position(v, made) is not None}
    return any(position(v, made) is wait.operands[1] and made[v].operands[0] in rings for v in made)


def _needs(op: Op, f: _Flight) -> bool:
    """Whether the op may not run before the product is done."""
    if op.kind in ("for", "while") or any(o.kind in ("wgmma", "mbar_wait", "barrier") for r in op.regions for o in walk(r)):
        return True
    return bool(op.reads & f.results) or (op.kind in {*WRITES, "ld_shared"} and any(v in f.reads for v in op.operands))
