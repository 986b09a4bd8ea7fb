"""The two modes: `push` carries tangents along a straight run of ops, `pull` cotangents against it.

A value is *active* if it is a float that depends on what the derivative is asked for. Where active values go through an op that has no
rule (a loop, a branch, the bits of a float), FcError "trace/grad" names its line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..errors import FcError
from ..ir.core import Op, Value, free_values
from ..ir.types import with_dtype
from .elementwise import NO_NUMBERS, PARTIALS
from .structural import RULES
from .writer import Writer

READS = ("load", "gather")


def active_ops(ops: Iterable[Op], of: Iterable[Value]) -> tuple[list[Op], set[Value]]:
    """(the ops that a derivative goes through, the active values). of: values, and tensors that ops read. Raises FcError "trace/grad"."""
    active, out = set(of), []
    for op in ops:
        touched = any(v in active for v in op.operands) or any(v in active for r in op.regions for v in free_values(r))
        results = [r for r in op.results if r.type.dtype.is_float]
        if not touched or not (results or op.kind in NO_NUMBERS):
            continue
        if op.kind not in PARTIALS and op.kind not in RULES and op.kind not in READS:
            raise no_rule(op)
        active |= set(results)
        out.append(op)
    return out, active


def push(m: Writer, ops: Sequence[Op], tangents: Mapping[Value, Value]) -> dict[Value, Value]:
    """Value -> its tangent, of all active ones. tangents: of those that the ops begin with; of a tensor, the tensor of its elements'."""
    through, _ = active_ops(ops, tangents)
    known = dict(tangents)
    for op in through:
        m.at(op)
        ts = [known.get(v) for v in op.operands]
        if op.kind in READS:
            tensor = ts[0]
            assert tensor is not None
            read = m.emit(op.kind, tensor, *op.operands[1:], type=with_dtype(op.result.type, tensor.type.dtype), **op.attrs)
            t: Value | None = m.wide(read)
        elif op.kind in RULES:
            t = RULES[op.kind].push(m, op, ts)
        else:
            t = None
            wide, out = tuple(m.wide(v) for v in op.operands), m.wide(op.result)
            for partial, x in zip(PARTIALS[op.kind], ts):
                if partial is not None and x is not None:
                    part = partial(m, x, wide, out)
                    t = part if t is None else m.add(t, part)
        if t is not None:
            known[op.result] = m.fit(t, op.result)
    return known


def pull(m: Writer, ops: Sequence[Op], of: Iterable[Value],
         cotangents: Mapping[Value, Value]) -> tuple[dict[Value, Value], list[tuple[Op, Value]]]:
    """(value -> its cotangent, of those in `of` that get one; (the op that reads a tensor in `of`, the cotangent of what it reads)).

    cotangents: of the results of the ops."""
    of = set(of)
    through, active = active_ops(ops, of)
    known = {v: ct for v, ct in cotangents.items() if v in active}
    reads: list[tuple[Op, Value]] = []
    for op in reversed(through):
        ct = known.get(op.result)
        if ct is None:
            continue
        m.at(op)
        if op.kind in READS:
            reads.append((op, ct))
            continue
        pull_op(m, op, known, active)
    return {v: known[v] for v in of if v in known}, reads


def pull_op(m: Writer, op: Op, known: dict[Value, Value], active: set[Value]) -> None:
    """Add what the operands of an op get of its result's cotangent. Raises FcError "trace/grad" where there is no rule."""
    if op.kind not in PARTIALS and op.kind not in RULES:
        raise no_rule(op)
    ct, wanted = known[op.result], [v in active for v in op.operands]
    if op.kind in RULES:
        parts = RULES[op.kind].pull(m, op, ct, wanted)
    else:
        wide, out = tuple(m.wide(v) for v in op.operands), m.wide(op.result)
        parts = [partial(m, ct, wide, out) if partial is not None and w else None for partial, w in zip(PARTIALS[op.kind], wanted)]
    for v, part in zip(op.operands, parts):
        if part is not None and v in active:
            part = m.fit(part, v)
            known[v] = m.add(known[v], part) if v in known else part


def no_rule(op: Op) -> FcError:
    what = {"for": "a loop", "if": "a branch", "bits": "the bits of a float"}.get(op.kind, f"`{op.kind}`")
    hint = {"for": "take the derivative of what the loop does to one tile, inside of it",
            "if": "choose with fc.where, or take the derivative inside of the branch"}.get(op.kind)
    return FcError("trace/grad", f"there is no derivative through {what}", loc=op.loc, hint=hint)
