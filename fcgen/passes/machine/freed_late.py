"""freed_late: a slot that a bulk store reads is let go behind the next iteration's first product.

In: selected machine IR whose products have been settled where their results are needed. Out: the same, where of a loop that starts a bulk
store from a channel's slot beside its products, the arrival that frees that slot stands behind the first product that the next iteration
issues, and behind the loop. The thread that started the store waits there until the engine has read it (`sync`), which may be busy with
copies that were started before: a product is in flight meanwhile.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir.core import Kernel, Op, Value
from ...ir.rewrite import Builder, branch, edited, map_bodies
from ...ir.rings import position
from ...ir.schedule import Schedule
from ...ir.target import Target


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    return map_bodies(kernel, lambda body: edited(body, lambda op: _late(op) if op.kind == "for" else op))


def _late(loop: Op) -> Op | list[Op]:
    body = loop.regions[0]
    frees = [(arrive, step) for o in body.ops if o.kind == "tma_store" and (at := position(o.operands[-1], body.made)) in body.args
             for arrive in body.ops if arrive.kind == "mbar_arrive" and arrive.operands[1] is at
             for step in body.ops if step.kind == "advance" and step.operands[0] is at and step.result in body.yielded]
    issued = next((n for n, o in enumerate(body.ops) if o.kind == "wgmma_commit"), None)
    if not frees or issued is None or any(a.operands[1].type.slots < 2 or body.ops.index(a) < issued for a, _ in frees):
        return loop
    before, inner, behind = Builder(loop.loc), Builder(loop.loc), Builder(loop.loc)
    lo, hi = loop.operands[:2]
    first = before.emit("sub", hi, before.const(1)) if loop.get("descending") else lo
    for n, op in enumerate(body.ops):
        if all(op is not a for a, _ in frees):
            inner.add(op)
        if n == issued:
            inner.add(_if(inner.emit("ne", body.args[0], first), [a.with_attrs(lag=1) for a, _ in frees], loop))
    ends: list[Value] = [loop.results[body.yielded.index(step.result)] for _, step in frees]
    some = behind.emit("lt", lo, hi)
    behind.add(_if(some, [a.reading((a.operands[0], end)).with_attrs(lag=1) for (a, _), end in zip(frees, ends)], loop))
    return [*before.ops, replace(loop, regions=(inner.block(body.args),)), *behind.ops]


def _if(condition: Value, ops: list[Op], loop: Op) -> Op:
    then = Builder(loop.loc)
    then.ops += ops
    return branch(condition, then)
