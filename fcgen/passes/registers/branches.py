"""branches: what an element-by-element choice leaves to a scalar is chosen by a branch.

In: placed machine IR. Out: where a select's condition is `s or mask`, or `s and mask`, with a scalar s, one side of the branch on
s keeps `select(mask, x, y)` and the other one is x, or y. What only the mask is made of moves into the first side; what several such masks
are made of is made in the first side of each, so that no register holds it in between. All warps that agree on s then spend nothing on
masks of tiles that are whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ...ir.core import Block, Kernel, Op, Value, definitions, uses
from ...ir.depends import sources
from ...ir.elementwise import INVERSE
from ...ir.ops import has_effect
from ...ir.rewrite import Builder, Env, branch, copy_op, map_bodies, remove_dead
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Frag, Scalar
from ..memory.channels import fills_itself


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    stays = lambda op: op.kind == "load" and op.get("stages", 1) > 1 and fills_itself(op, schedule)  # a ring is filled by every iteration
    return map_bodies(kernel, lambda body: remove_dead(_block(body, definitions(body), stays)))


def _block(block: Block, defs: dict[Value, Op], stays: Callable[[Op], bool]) -> Block:
    block = Block(block.args, tuple(o.within(lambda r: _block(r, defs, stays)) for o in block.ops))
    for op in block.ops:
        found = _uniform(op, defs)
        if found is not None:
            block = _branch(block, op, found, defs, stays)
    return block


@dataclass(frozen=True)
class _Uniform:
    """A condition `s or mask` (or `s and mask`), spread over the tile by `spread`, outermost last."""

    s: Value
    mask: Value
    either: bool
    spread: tuple[Op, ...]


def _uniform(op: Op, defs: dict[Value, Op]) -> _Uniform | None:
    if op.kind != "select" or not isinstance(op.result.type, Frag):
        return None
    cond = defs.get(op.operands[0])
    spread: list[Op] = []
    while cond is not None and cond.kind in ("broadcast", "transpose"):
        spread.insert(0, cond)
        cond = defs.get(cond.operands[0])
    if cond is None or cond.kind not in ("or", "and"):
        return None
    for s, mask in (cond.operands, cond.operands[::-1]):
        d = defs.get(s)
        s = d.operands[0] if d is not None and d.kind == "full" else s
        if isinstance(s.type, Scalar) and isinstance(mask.type, Frag):
            return _Uniform(s, mask, cond.kind == "or", tuple(spread))
    return None


def _branch(block: Block, select: Op, u: _Uniform, defs: dict[Value, Op], stays: Callable[[Op], bool]) -> Block:
    moved, env = _only_for(block, select, u, stays, defs), Env()
    masked, plain = Builder(select.loc), Builder(select.loc)
    masked.ops += [copy_op(op, env) for op in moved]
    mask = env[u.mask]
    for op in u.spread:
        mask = masked.add(replace(op, operands=(mask,), results=(Value(op.result.type),))).result
    kept = masked.emit("select", mask, *select.operands[1:], name=select.result.name)
    chosen = select.operands[1 if u.either else 2]
    chosen = chosen if isinstance(chosen.type, Frag) else plain.emit("full", chosen, type=select.result.type)
    out = Builder(select.loc)
    for op in block.ops:
        if op is select:
            test = _opposite(u.s, defs, out) if u.either else u.s
            out.add(branch(test, masked, [kept], [chosen], select.results, plain))
        else:
            out.add(op)
    return Block(block.args, tuple(out.ops))


def _opposite(s: Value, defs: dict[Value, Op], out: Builder) -> Value:
    d = defs.get(s)
    if d is not None and d.kind in INVERSE and all(v.type.dtype.is_int for v in d.operands):
        return out.emit(INVERSE[d.kind], *d.operands, name="masked")
    return out.emit("not", s, name="masked")


def _only_for(block: Block, select: Op, u: _Uniform, stays: Callable[[Op], bool], defs: dict[Value, Op]) -> list[Op]:
    """The ops of the block that the mask is made of and nothing but masks reads, but for what the select's condition is spread by; in
    order. What is loaded, only this mask reads."""
    readers = uses(block)
    inside = {v for o in block.ops for r in o.regions for v in r.reads}
    others = [op for op in block.ops if _uniform(op, defs) is not None]
    chosen, mine, wanted = [select, *others], [select], {v for o in others for v in o.operands[1:]} | {u.s, *select.operands[1:]}
    for op in reversed(block.ops[:block.ops.index(select)]):
        read = [x for r in op.results for x in readers.get(r, ())]
        gone = bool(read) and not inside & set(op.results) and not wanted & set(op.results) and not op.regions and not has_effect(op)
        if gone and all(x in (mine if op.kind == "load" else chosen) for x in read) and not stays(op):
            chosen.append(op)
            if all(x in mine for x in read):
                mine.append(op)
    # the condition itself and what it is spread by are left to be removed
    return sources([u.mask], Block((), tuple(o for o in block.ops if o in chosen[1 + len(others):]))) or []
