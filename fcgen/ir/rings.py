"""Positions in rings, and what passes and the printer ask about the slots that stand there: which rings and barriers a position is used
with, which slot a view is, which ops let it go. A position is that of one `cursor` op, in every place that loops and branches carry it to.

A position is printed as one pair of variables that moves on in place, and branches and turns of loops meet in it. A value that were now the
one ring's position and now the other's would be neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import FcError
from .core import Block, Kernel, Op, Role, Value, walk
from .op_table import RuleError, having
from .types import Cursor


def strays(block: Block, of: dict[Value, Value] | None = None) -> tuple[Op, RuleError] | None:
    """The first op in which a carried position becomes another ring's. of: position -> the one that its ring begins with."""
    of = {} if of is None else of
    for op in block.ops:
        if op.kind == "cursor":
            of[op.result] = op.result
        elif op.kind == "advance":
            of[op.result] = of[op.operands[0]]
        for n, region in enumerate(op.regions):
            count = len(op.results)
            carried = op.operands[len(op.operands) - count:] if op.kind in ("for", "while") else ()
            args = region.args[len(region.args) - count:]
            of.update({a: of[v] for a, v in zip(args, carried) if isinstance(a.type, Cursor)})
            wrong = strays(region, of)
            if wrong is not None:
                return wrong
            yielded = region.yielded[len(region.yielded) - count:]
            before: Sequence[Value] = args if carried else op.results
            for v, other, r in zip(yielded, before, op.results):
                if not isinstance(r.type, Cursor):
                    continue
                if (n or carried) and of[v] is not of[other]:
                    return region.ops[-1], RuleError("a position that is carried stays that of its own ring", f"of %{of[other].name}",
                                                     f"%{v.name}, of %{of[v].name}")
                of[r] = of[v]
    return None


#: ops that fill a slot
FILLS = having("writes shared") | having("fills")
#: ops that let a channel's slot go: the arrival, and the step to the next slot
RELEASES = {"mbar_arrive", "advance"}


def ring_of(view: Value, made: Mapping[Value, Op]) -> Value:
    """The ring of the slot that a view is; a buffer that is used as it is, itself."""
    op = made.get(view)
    return op.operands[0] if op is not None and op.kind == "slot" else view


def position(view: Value, made: Mapping[Value, Op]) -> Value | None:
    """The position in its channel of the slot that a view is; None of other values."""
    op = made.get(view)
    return op.operands[1] if op is not None and op.kind == "slot" and isinstance(op.operands[1].type, Cursor) else None


def read_from(op: Op, made: Mapping[Value, Op]) -> Value | None:
    """The position of the slot that an op reads registers from, if it does."""
    return position(op.operands[0], made) if op.kind in ("ld_shared", "ldmatrix") else None


def beginnings(body: Block) -> dict[Value, Value]:
    """Position -> the `cursor` op's that it is of."""
    of: dict[Value, Value] = {}
    strays(body, of)
    return of


def outlived(kernel: Kernel) -> dict[Value, Role]:
    """Ring of a channel -> the role that knows when it is over: the only one that reads it, or waits as a reader until slots are free;
    others fill it."""
    users: dict[Value, tuple[set[Role], set[Role], set[Role]]] = {}
    for role in kernel.roles:
        made, begins = {r: o for o in walk(role.body) for r in o.results}, beginnings(role.body)
        waits = {begins[o.operands[1]] for o in walk(role.body) if o.kind == "mbar_wait" and o["lag"]}
        for op in walk(role.body):
            for v in (v for v in op.operands if position(v, made) is not None):
                readers, fillers, waiting = users.setdefault(made[v].operands[0], (set(), set(), set()))
                (fillers if op.kind in FILLS else readers).add(role)
                waiting.update((role,) if begins[made[v].operands[1]] in waits else ())
    over = {ring: ((readers & waiting) if len(readers) > 1 else readers) - fillers for ring, (readers, fillers, waiting) in users.items()}
    return {ring: next(iter(roles)) for ring, roles in over.items() if len(roles) == 1}


def walked(kernel: Kernel) -> dict[Value, set[Value]]:
    """Position -> the rings and barriers whose slots it says, anywhere in its role."""
    of: dict[Value, Value] = {}
    rings: dict[Value, set[Value]] = {}
    for role in kernel.roles:
        strays(role.body, of)
        for op in walk(role.body):
            for v in (v for v in op.operands if v in of):
                rings.setdefault(of[v], set()).update(o for o in op.operands if o in kernel.buffers)
    return {v: rings.get(first, set()) for v, first in of.items()}


def check_cursors(block: Block, views: Mapping[Value, list[Value]] | None = None) -> None:
    """A cursor is one pair of variables that `advance` changes in place: nothing may read the old position afterwards, nor a slot that was
    found with it. views: cursor -> slots."""
    if views is None:
        views = {c: [op.result for op in walk(block) if op.kind == "slot" and op.operands[1] is c]
                 for c in {op.operands[1] for op in walk(block) if op.kind == "slot"}}
    for n, op in enumerate(block.ops):
        for r in op.regions:
            check_cursors(r, views)
        old = [op.operands[0]] if op.kind == "advance" else [v for v in op.operands if isinstance(v.type, Cursor)] if op.regions else []
        gone = {v for c in old for v in (c, *views.get(c, ()))}
        for later in block.ops[n + 1:] if gone else ():
            if any(not gone.isdisjoint(o.operands) for o in (later, *(x for r in later.regions for x in walk(r)))):
                raise FcError("compile/unsupported", "a ring's position is read after it has moved on", loc=later.loc,
                              hint="put the op in front of the advance")
