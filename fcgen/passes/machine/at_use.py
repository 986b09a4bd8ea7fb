"""at_use: rows that lie in a ring are read from it where element work uses them, and held no longer.

In: selected machine IR whose products have been settled where their results are needed. Out: the same, where a vector that is read from a
channel's slot stands in front of the first op that computes with it, and the slot is let go behind the element work that does. Between the
two nothing is waited for, so the target's compiler reads a few numbers at a time (`few`), and no register holds the row. Where a tile is
then stored for a product, the slot is let go behind that one's issue: the fence in front of it, which `sync` puts there, says that the
reads are over too. A slot is never let go behind a wait that its own next tile could be in front of. A row is waited for together with
the tile that is read in front of it: both are then let go behind one fence (`gather`), and the target's compiler sees one piece of code.
Where products are waited for, or issued, between a row's arrival and its use, and registers are left for it, it is read in front of them:
the answer, for which it stands in line with what products read, is there when it is used.
"""

from __future__ import annotations

from ...ir.core import Block, Kernel, Op, Value
from ...ir.lifetimes import STORES
from ...ir.registers import frag_words, limit_of
from ...ir.rewrite import map_bodies
from ...ir.rings import RELEASES, position, read_from
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Cursor, Frag
from ..facts.common import ELEMENTWISE

READS = {"slot", "ld_shared", "ldmatrix"}
#: element work, and what only names a value
PURE = ELEMENTWISE | {"broadcast", "const", "full", "iota"}
#: registers of a thread that are left for addresses and the like, and for each position in a ring that a loop carries
OTHERS, POSITION = 26, 2
#: issuing products, and waiting for them
PRODUCTS = {"wgmma_fence", "wgmma", "wgmma_commit", "settle"}


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    room = limit_of(kernel, target) - OTHERS
    return map_bodies(kernel, lambda body: _block(body, room))


def _block(block: Block, room: int) -> Block:
    ops = [o.within(lambda r: _block(r, room)) for o in block.ops]
    left = room - POSITION * sum(isinstance(a.type, Cursor) for a in block.args)
    made = {r: o for o in ops for r in o.results}
    for read in ops[:]:
        cursor = read_from(read, made)
        if cursor is not None and len(read.result.type.shape) == 1:
            at = _sink(read, cursor, ops)
            if at is not None:
                ops = _raised(at, ops, left)
    return Block(block.args, tuple(ops))


def _taken(ops: list[Op], first: int, last: int) -> int:
    """Registers that fragments take in front of any of some ops, of values that are there and read later."""
    most, there = 0, {v for o in ops[first:] for v in o.reads} - {r for o in ops[first:] for r in o.results}
    for n in range(first, last):
        read = {v for o in ops[n:] for v in o.reads}
        most = max(most, sum(frag_words(v.type) for v in there & read))
        there |= set(ops[n].results)
    return most


def _raised(read: Op, ops: list[Op], room: int) -> list[Op]:
    """The ops with a row's read in front of the products of tiles in shared memory, and waits, that it stands behind."""
    at = first = ops.index(read)

    def passed(op: Op) -> bool:
        """Of products, those of two tiles in shared memory: at others registers come and go."""
        inside = {o.kind for r in op.regions for o in r.ops} if op.kind == "if" else {op.kind}
        return inside <= PURE | PRODUCTS | {"slot", "yield"} and not (op.kind == "wgmma" and isinstance(op.operands[0].type, Frag))

    while first and passed(ops[first - 1]):
        first -= 1
    issued = any(o.kind == "wgmma" for o in ops[first:at])
    to = next((n for n in range(first, at) if ops[n].kind in PRODUCTS), at) if issued else at
    need: set[Value] = set(read.operands)
    mine: list[Op] = []
    for op in reversed(ops[to:at]):
        if need & set(op.results):
            mine.insert(0, op)
            need |= set(op.operands)
    if to == at or any(o.kind not in PURE | {"slot"} for o in mine) or _taken(ops, to, at) + frag_words(read.result.type) > room:
        return ops
    return [*ops[:to], *mine, read, *(o for o in ops[to:at] if o not in mine), *ops[at + 1:]]


def _sink(read: Op, cursor: Value, ops: list[Op]) -> Op | None:
    """Moves a read to its first use, if that can be, and what lets the slot go behind the last. Returns the read as it then is."""
    views = [o for o in ops if o.kind == "broadcast" and o.operands[0] is read.result]
    values = {read.result, *(o.result for o in views)}
    users = [n for n, o in enumerate(ops) if o not in views and o.reads & values]
    start = ops.index(read)
    release = [o for o in ops[start:] if o.kind in RELEASES and cursor in o.operands]
    if not users or not release or any(ops[n].kind not in PURE for n in users):
        return None
    end = users[-1] + 1
    while ops[end].kind in PURE:
        end += 1
    end = max(end, _issued(end, ops))
    between = ops[ops.index(release[0]):end]
    if any(o.regions or _waits(o, ops) for o in ops[start:end]) or any(cursor in o.operands and o not in release for o in between):
        return None
    ops[start] = moved = read.with_attrs(few=True)
    _move([moved, *views], users[0], ops)
    _move(release, end, ops)
    _together(cursor, ops)
    return moved


def _together(cursor: Value, ops: list[Op]) -> None:
    """Move a row's wait up to the one in front of it, if between them a tile is read into registers and nothing else is waited for. What
    fills that tile's ring comes to the row before it needs the slot again."""
    waits = [n for n, o in enumerate(ops) if o.kind == "mbar_wait"]
    mine = next((n for n in waits if ops[n].operands[1] is cursor), 0)
    before = max((n for n in waits if n < mine), default=None)
    if before is None or ops[before].operands[1].type.slots < 2:
        return
    made = {r: o for o in ops for r in o.results}
    between, tile = ops[before + 1:mine], ops[before].operands[1]
    if any(read_from(o, made) is tile for o in between) and all(o.kind in READS | PURE | RELEASES for o in between):
        ops.insert(before + 1, ops.pop(mine))


def _issued(start: int, ops: list[Op]) -> int:
    """Behind the issue of the first product that reads what is stored from here on; 0 where none does, or a tile is waited for before."""
    stored: set[Value] = set()
    for n, op in enumerate(ops[start:], start):
        if op.regions or _waits(op, ops):
            break
        if op.kind == "proxy_fence" and stored:
            return n + 1
        if op.kind in STORES:
            stored.add(op.operands[1])
        if op.kind == "wgmma" and stored & set(op.operands):
            return next(k for k in range(n, len(ops)) if ops[k].kind == "wgmma_commit") + 1
    return 0


def _waits(op: Op, ops: list[Op]) -> bool:
    """Whether an op waits for what another role brings. A slot that this one stores to is let go by its own warps, of tiles before."""
    if op.kind != "mbar_wait":
        return False
    made = {r: o for o in ops for r in o.results}
    return not any(position(v, made) is op.operands[1] for o in ops if o.kind in STORES for v in o.operands)


def _move(some: list[Op], at: int, ops: list[Op]) -> None:
    """In front of what stands at a place, if they stand before it."""
    some = [o for o in some if ops.index(o) < at]
    ops[:at] = [*(o for o in ops[:at] if o not in some), *some]
