"""early_work: element work that hangs on no product is done while the product runs whose result it meets.

In: selected machine IR in which every product is settled where it stands. Out: the same, where a tile that follows from positions and
numbers by a long way (random numbers of places, elements of a table) is computed, and made `ready`, in front of the first op that needs
a product's result, if its registers are free that long. Of the tiles on its way to where it meets the result that is one that takes the
fewest registers: elements that are the same in all lanes, whatever the numbers, share one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ...ir.core import Block, Kernel, Op, Value, definitions, walk
from ...ir.elementwise import FNS, apply, to_dtype
from ...ir.layout import RegLayout
from ...ir.op_table import having
from ...ir.registers import VIEWS, frag_words, limit_of
from ...ir.rewrite import Env, map_bodies, substitute
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Frag, Tensor, i1

#: functions per element that are worth a register
LONG = 8
#: so many tiles, from where the result is met on, may be the one that is kept
NEAR = 64
#: registers of a thread that hold no fragment
OTHERS = 20
_WORK = having("elementwise") | having("cheap")


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if not any(o.kind == "settle" for r in kernel.roles for o in walk(r.body)):
        return kernel
    room = limit_of(kernel, target) - OTHERS
    defs = {v: o for r in kernel.roles for v, o in definitions(r.body).items()}
    known = frozenset(p for p in kernel.params if not {"out", "inout"} & set(kernel.flags.get(p.name, ())))
    return map_bodies(kernel, lambda body: _block(body, room, defs, known))


def _block(block: Block, room: int, defs: Mapping[Value, Op], known: frozenset[Value]) -> Block:
    """known: tensors that the kernel does not write."""
    ops = [o.within(lambda r: _block(r, room, defs, known)) for o in block.ops]
    products = [o for o in ops if o.kind == "settle"]
    settled = {r for o in products for r in o.results}
    first = next((n for n, o in enumerate(ops) if o.reads & settled), None)
    if first is None:
        return Block(block.args, tuple(ops))
    behind = ops[ops.index(products[0]) + 1:]
    late, free = {r for o in behind for r in o.results}, dict[Value, Op]()
    for op in behind:
        may = op.kind in _WORK or (op.kind == "gather" and op.operands[0] in known)
        if may and not op.regions and all(v in free or v not in late | settled for v in op.operands):
            free |= dict.fromkeys(op.results, op)
    meets = dict.fromkeys(v for o in behind if not free.keys() & set(o.results) for v in o.reads if v in free)
    need = {v for o in (*products, *behind) for v in o.reads} - {o.operands[0] for o in products}
    room -= sum(frag_words(v.type) for v in need - late if v not in defs or defs[v].kind not in VIEWS)
    for v in meets:
        best = _cut(v, free, defs)
        if best is not None and best[1] <= room:
            room -= best[1]
            ops = _moved(ops, first, best, free)
    return Block(block.args, tuple(ops))


def _cone(v: Value, free: Mapping[Value, Op], leaf: Value | None = None) -> list[Op]:
    """The ops of `free` that v follows from, but for what only `leaf` follows from."""
    out: dict[int, Op] = {}
    todo = [v]
    while todo:
        x = todo.pop()
        if x in free and x is not leaf and id(free[x]) not in out:
            out[id(free[x])] = free[x]
            todo += free[x].operands
    return list(out.values())


def _work(ops: list[Op]) -> int:
    return sum(LONG if o.kind == "gather" else o.kind in FNS for o in ops if len(o.result.type.shape) == 2)


def _cut(v: Value, free: Mapping[Value, Op], defs: Mapping[Value, Op]) -> tuple[Value, int] | None:
    """A tile, and its registers, behind which little of what v takes is left."""
    whole = _cone(v, free)
    if _work(whole) < LONG:
        return None
    tiles = [o.result for o in whole if isinstance(o.result.type, Frag) and len(o.result.type.shape) == 2 and o.result.type.dtype != i1
             and isinstance(o.result.type.layout, RegLayout) and o.kind not in VIEWS]
    known: dict[Value, np.ndarray] = {}
    good = [(x, _registers(x, defs, known)) for x in tiles[:NEAR] if 4 * _work(_cone(v, free, x)) <= _work(_cone(x, free))]
    return min(good, key=lambda c: c[1], default=None)


def _registers(v: Value, defs: Mapping[Value, Op], known: dict[Value, np.ndarray]) -> int:
    """Of a tile's in a thread: those that are not the same as others in all lanes of the first warp."""
    t = v.type
    assert isinstance(t, Frag) and isinstance(t.layout, RegLayout)
    at = t.layout.coords()[0]
    held = np.broadcast_to(_elements(v, defs, known), t.shape)[tuple(np.moveaxis(at, -1, 0))]
    return len(np.unique(held, axis=1).T)


def _elements(v: Value, defs: Mapping[Value, Op], known: dict[Value, np.ndarray]) -> np.ndarray:
    """What its elements are where all that is not known of them is random."""
    if v in known:
        return known[v]
    op, t = defs.get(v), v.type
    shape: tuple[int, ...] = t.shape
    dtype = t.dtype
    if op is not None and op.kind in (*FNS, "select", "cast", "broadcast", "full", "iota", "const", "gather"):
        args = [_elements(o, defs, known) for o in op.operands if not isinstance(o.type, Tensor)]
        if op.kind in FNS:
            x = apply(op.kind, op.operands[0].type.dtype, *args)
        elif op.kind == "broadcast":
            x = np.expand_dims(args[0], tuple(n for n in range(len(shape)) if n not in op["axes"]))
        else:
            make: dict[str, Callable[[], np.ndarray]] = {
                "select": lambda: np.where(*args), "cast": lambda: to_dtype(args[0], dtype), "full": lambda: args[0],
                "iota": lambda: np.arange(shape[0], dtype=np.int32), "const": lambda: np.asarray(op["value"], dtype.np_dtype),
                "gather": lambda: sum((x * 40503.0**n for n, x in enumerate(args)), np.zeros(()))}
            x = make[op.kind]()
    else:
        rng = np.random.default_rng(len(known))
        x = rng.integers(0, 100, shape).astype(dtype.np_dtype)
    known[v] = x
    return x


def _moved(ops: list[Op], first: int, best: tuple[Value, int], free: Mapping[Value, Op]) -> list[Op]:
    """The tile made ready in front of ops[first], with what it follows from before it, and what follows from it behind it."""
    v, words = best
    mine = {id(o) for o in _cone(v, free)}
    after = {v}
    for op in ops[:first]:
        after |= set(op.results) if op.reads & after else set()
    down = [o for o in ops[:first] if o.reads & after]
    if any(o.results[:1] == () or o.results[0] not in free for o in down):
        return ops  # it has a reader in front
    ready = Op("ready", (v,), (v.anew(),), {"words": words}, (), free[v].loc)
    behind = [substitute(o, Env({v: ready.result})) for o in (*down, *ops[first:]) if id(o) not in mine]
    moved = {id(o) for o in down}
    return [*(o for o in ops[:first] if id(o) not in moved), *(o for o in ops[first:] if id(o) in mine), ready, *behind]
