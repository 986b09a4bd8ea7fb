"""What follows from a value of a program, through loops and branches too; and which ops a value follows from."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping

from .core import Block, Op, Value, walk


def depending(block: Block, source: Value, indices: bool = False, through: Callable[[Op], bool] = lambda op: True) -> set[Value]:
    """Values that are made from `source`, or chosen by it. What is narrowed for a part of the rows counts as what holds for all. indices:
    those of loops whose bounds depend are among them. through: which ops without regions make such values."""
    out, before = {source}, 0
    while len(out) > before:
        before = len(out)
        for op in walk(block):
            _spread(op, out, indices, through)
    return out


def _spread(op: Op, out: set[Value], indices: bool, through: Callable[[Op], bool]) -> None:
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
    elif through(op) and not out.isdisjoint(op.operands[:1] if op.kind == "narrow" else op.operands):
        out.update(op.results)


def readers(v: Value, uses: Mapping[Value, Iterable[Op]], through: Callable[[Value, Op], bool]) -> Iterator[tuple[Value, Op]]:
    """(value, an op that reads it): of a value, and of the results of ops that it flows `through`. Each value once, however many ways lead
    to it: those double where a program squares and adds, and so would the time to walk them."""
    todo, seen = [v], {v}
    while todo:
        v = todo.pop()
        for op in uses.get(v, ()):
            yield v, op
            if through(v, op):
                todo += [r for r in op.results if r not in seen]
                seen.update(op.results)


def followed(values: Iterable[Value], made: Mapping[Value, Op], allowed: Callable[[Op], bool] = lambda op: True,
             given: Callable[[Value], bool] = lambda v: True, stop: Container[Value] = ()) -> dict[Op, None] | None:
    """The ops of `made` that values follow from, as far as those in `stop`. None if one of them is not allowed, or a value that none
    of them makes is not `given`."""
    need: dict[Op, None] = {}
    todo = list(values)
    while todo:
        v = todo.pop()
        op = made.get(v)
        if op is None and not given(v):
            return None
        if op is None or v in stop or op in need:
            continue
        if not allowed(op):
            return None
        need[op] = None
        todo += op.operands
    return need


def sources(values: Iterable[Value], block: Block, allowed: Callable[[Op], bool] = lambda op: True,
            stop: Container[Value] = ()) -> list[Op] | None:
    """The ops of a block that values follow from, in order, as far as those in `stop`. None if one is not allowed, or a loop carries it."""
    need = followed(values, block.made, allowed, lambda v: v not in block.args[1:], stop)
    return None if need is None else [o for o in block.ops if o in need]
