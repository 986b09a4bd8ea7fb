"""Which values of a program follow from one of its values, through loops and branches too."""

from __future__ import annotations

from .core import Block, Op, Value, walk


def depending(block: Block, source: Value, indices: bool = False) -> set[Value]:
    """Values that are made from `source`, or chosen by it. What is narrowed for a part of the rows counts as what holds for all. indices:
    those of loops whose bounds depend are among them."""
    out, before = {source}, 0
    while len(out) > before:
        before = len(out)
        for op in walk(block):
            _spread(op, out, indices)
    return out


def _spread(op: Op, out: set[Value], indices: bool) -> None:
    if op.kind == "for":
        body = op.regions[0]
        if not out.isdisjoint(op.operands[:2]):
            out.update((*body.args[1:], *op.results), (r.args[0] for r in op.regions if indices))
        for values in zip(op.operands[2:], body.yielded, body.args[1:], op.results):
            if not out.isdisjoint(values[:3]):
                out.update(values[2:])
    elif op.kind == "if":
        chosen = op.operands[0] in out
        out.update(r for n, r in enumerate(op.results) if chosen or any(x.yielded[n] in out for x in op.regions))
    elif not out.isdisjoint(op.operands[:1] if op.kind == "narrow" else op.operands):
        out.update(op.results)
