"""totals: what a loop adds to one place of a tensor is summed up in registers, and added once behind the loop.

In: simplified tile IR. Out: the same, where a loop adds a number or a vector to a place that does not change in it (nor does the condition,
if there is one), of a tensor that is nowhere read or stored: the loop carries the sum, and the atomic add stands behind it, where there was
an iteration. A number that is the sum of a vector is carried as that vector, so that lanes and warps are added up once. Guaranteed: as many
atomic adds as before or fewer; only the order of sums differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...ir.core import Block, Kernel, Op, Value, walk_kernel
from ...ir.known import const_of
from ...ir.rewrite import Builder, edited, map_bodies
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Scalar
from ..facts.common import rank


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    only_added = {p for p in kernel.params if all(_adds(op) for op in walk_kernel(kernel) if p in op.operands)}
    made = {r: op for op in walk_kernel(kernel) for r in op.results}
    return map_bodies(kernel, lambda block: edited(block, lambda op: _loop(op, only_added, made) if op.kind == "for" else op))


def _adds(op: Op) -> bool:
    return op.kind == "store" and op.get("reduce") == "add"


def _loop(loop: Op, tensors: set[Value], outer: Mapping[Value, Op]) -> Sequence[Op]:
    """The loop, and the atomic adds that stand behind it now."""
    body = loop.regions[0]
    defs = {r: op for op in body.ops for r in op.results}
    changing = {*body.args, *defs}
    before, inner, after = Builder(loop.loc), Builder(loop.loc), Builder(loop.loc)
    inits, args, sums, results = [], [], [], []
    low, high = (const_of(v, outer) for v in loop.operands[:2])
    runs = low is not None and high is not None and low < high
    for op in body.ops[:-1]:
        store = _moved(op, changing, tensors)
        if store is None:
            inner.add(op)
            continue
        inner.loc = before.loc = after.loc = store.loc
        v, made = store.operands[1], defs.get(store.operands[1])
        whole = made is not None and made.kind == "reduce" and made["fn"] == "sum" and rank(made.operands[0]) == 1 and not rank(v)
        u = made.operands[0] if whole and made is not None else v
        zero = before.emit("const", value=0.0 if u.type.dtype.is_float else 0, dtype=u.type.dtype.name)
        inits.append(zero if isinstance(u.type, Scalar) else before.emit("full", zero, shape=u.type.shape))
        args.append(Value(u.type, u.name))
        sums.append(inner.emit("add", args[-1], u))
        results.append(Value(u.type, u.name))
        total = after.emit("reduce", results[-1], fn="sum", axis=0) if whole else results[-1]
        again = replace(store, operands=(store.operands[0], total, *store.operands[2:]))
        some = () if runs else (after.emit("lt", *loop.operands[:2]),)  # without iterations nothing is added, wherever that would be
        if (conditions := [*some, *(op.operands if op is not store else ())]):
            whether = conditions[0] if len(conditions) == 1 else after.emit("and", *conditions)
            after.do("if", whether, regions=(Block((), (again, Op("yield"))), Block((), (Op("yield"),))))
        else:
            after.add(again)
    if not args:
        return (loop,)
    last = body.ops[-1]
    inner.add(replace(last, operands=(*last.operands, *sums)))
    new = replace(loop, operands=(*loop.operands, *inits), results=(*loop.results, *results),
                  regions=(Block((*body.args, *args), tuple(inner.ops)), *loop.regions[1:]))
    return [*before.ops, new, *after.ops]


def _moved(op: Op, changing: set[Value], tensors: set[Value]) -> Op | None:
    """The atomic add that an op of a loop's body is, alone or under a condition, if it can stand behind the loop."""
    store = op
    if op.kind == "if" and not op.results and len(op.regions[0].ops) == 2 and len(op.regions[1].ops) == 1:
        store = op.regions[0].ops[0]
    if not _adds(store) or store.operands[0] not in tensors or rank(store.operands[1]) > 1 or store.operands[1].type.dtype.bits < 32:
        return None
    fixed = (*store.operands[2:], *(op.operands if op is not store else ()))
    return None if changing & set(fixed) else store
