"""Changes of single ops in a kernel, found by a predicate and made at a random place: what the kinds of `edits` are written in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fcgen.ir.core import Block, Kernel, Op, Value, walk, walk_kernel
from fcgen.ir.types import Buffer

Edited = tuple[Kernel, str]
Rng = np.random.Generator


def blocks(kernel: Kernel) -> list[Block]:
    return [b for role in kernel.roles for b in [role.body, *(r for op in walk(role.body) for r in op.regions)]]


def with_block(kernel: Kernel, old: Block, new: Block) -> Kernel:
    def copy(b: Block) -> Block:
        if b is old:
            return new
        return Block(b.args, tuple(replace(op, regions=tuple(map(copy, op.regions))) if op.regions else op for op in b.ops))

    return replace(kernel, roles=tuple(replace(r, body=copy(r.body)) for r in kernel.roles))


def sites(kernel: Kernel, fits: Callable[[Op], bool]) -> list[tuple[Block, int]]:
    return [(b, n) for b in blocks(kernel) for n, op in enumerate(b.ops) if fits(op)]


def pick(rng: Rng, items: Any) -> Any:
    items = list(items)
    return items[int(rng.integers(len(items)))] if items else None


def say(kernel: Kernel, op: Op) -> str:
    role = next((r.name for r in kernel.roles if any(o is op for o in walk(r.body))), "?")
    same = [o for o in walk_kernel(kernel) if o.kind == op.kind]
    names = " ".join(v.name for v in op.operands if v.name)
    return f"{role}: {op.kind} {next(n for n, o in enumerate(same) if o is op)} ({names})"


def put(kernel: Kernel, b: Block, n: int, *ops: Op) -> Kernel:
    """Other ops in the place of the n-th."""
    return with_block(kernel, b, replace(b, ops=(*b.ops[:n], *ops, *b.ops[n + 1:])))


def change(fits: Callable[[Op], bool], make: Callable[[Op, Rng], tuple[Op, ...] | None]) -> Callable[[Kernel, Rng], Edited | None]:
    """An edit of one op, at a random place where it fits."""

    def go(kernel: Kernel, rng: Rng) -> Edited | None:
        places = sites(kernel, fits)
        for _ in range(8):
            if (place := pick(rng, places)) is None:
                return None
            b, n = place
            new = make(b.ops[n], rng)
            if new is not None:
                what = "; ".join(str(o).strip().split("\n")[0][:90] for o in new if o is not b.ops[n])
                return put(kernel, b, n, *new), f"{say(kernel, b.ops[n])} -> {what or 'gone'}"
        return None

    return go


def has(*kinds: str) -> Callable[[Op], bool]:
    return lambda op: op.kind in kinds


def attribute(kinds: tuple[str, ...], name: str, other: Callable[[Any, Op, Rng], Any]) -> Callable[[Kernel, Rng], Edited | None]:
    def make(op: Op, rng: Rng) -> tuple[Op, ...] | None:
        new = other(op.get(name), op, rng)
        if new == op.get(name):
            return None
        attrs = {**op.attrs, name: new}
        if new is None:
            del attrs[name]
        return (replace(op, attrs=attrs),)

    return change(has(*kinds), make)


def visible(kernel: Kernel, target: Block) -> dict[int, list[Value]]:
    """Values that may be named in front of each op of a block."""
    outer: list[Value] = []

    def look(b: Block, seen: list[Value]) -> bool:
        seen = [*seen, *b.args]
        if b is target:
            outer.extend(seen)
            return True
        for op in b.ops:
            for r in op.regions:
                if look(r, seen):
                    return True
            seen += op.results
        return False

    for role in kernel.roles:
        if look(role.body, [*kernel.params, *kernel.buffers]):
            break
    out, seen = {}, list(outer)
    for n, op in enumerate(target.ops):
        out[n] = list(seen)
        seen += op.results
    return out


def other_operand(fits: Callable[[Op, int], bool], near: bool = False) -> Callable[[Kernel, Rng], Edited | None]:
    """Another value of the same type in the place of one that an op reads."""

    def go(kernel: Kernel, rng: Rng) -> Edited | None:
        places = [(b, n, i) for b in blocks(kernel) for n, op in enumerate(b.ops) for i in range(len(op.operands)) if fits(op, i)]
        for _ in range(12):
            if (place := pick(rng, places)) is None:
                return None
            b, n, i = place
            op = b.ops[n]
            old = op.operands[i]
            found = [v for v in visible(kernel, b)[n] if v is not old and v.type == old.type]
            if isinstance(old.type, Buffer):
                found = [v for v in found if v in kernel.buffers or v.name != old.name]
            if not found:
                continue
            new = pick(rng, found[-8:] if near else found)
            changed = replace(op, operands=(*op.operands[:i], new, *op.operands[i + 1:]))
            return put(kernel, b, n, changed), f"{say(kernel, op)}: operand {i} {old.name} -> {new.name}"
        return None

    return go


def movable(b: Block, n: int, to: int) -> bool:
    """The n-th op may stand at another place as far as names go."""
    op, last = b.ops[n], len(b.ops) - 1
    if not 0 <= to <= last or b.ops[n].kind == "yield" or b.ops[to].kind == "yield":
        return False
    if to < n:
        made = {r for o in b.ops[to:n] for r in o.results}
        return not made & read(op)
    return not any(set(op.results) & read(o) for o in b.ops[n + 1:to + 1])


def read(op: Op) -> set[Value]:
    return {v for o in (op, *(x for r in op.regions for x in walk(r))) for v in o.operands}
