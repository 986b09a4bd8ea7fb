"""Control flow: loops with carried values, branches, and the copies at their ends."""

from __future__ import annotations

import re

from ...errors import FcError
from ...ir.core import Block, Op, Value
from ...ir.named_barriers import PARTS
from ...ir.types import Cursor, Frag, Scalar
from .emit import EMIT, Emitter, emits
from .expr import nonneg
from .frag import declare, evaluate_into
from .names import comment
from .text import CTYPES, SHIFT, UNARY, X, binary


def emit_block(em: Emitter, block: Block) -> None:
    for op in block.ops:
        if op.kind == "yield":
            continue
        em.w.loc = op.loc
        fn = EMIT.get(op.kind)
        if fn is None:
            raise FcError("compile/unsupported", f"{em.target.arch} has no text for the op {op.kind!r}", loc=op.loc)
        try:
            fn(em, op)
        except FcError as e:
            raise e.at(op.loc) from None


def _declare_set(em: Emitter, op: Op) -> None:
    """Arrays for the fragments that a loop or a branch sets."""
    for r in op.results:
        if isinstance(r.type, Frag):
            declare(em, r)


def move(em: Emitter, pairs: list[tuple[Value, Value]], scalar_names: dict[Value, str]) -> None:
    """Set each target to its source, all at once: (target, source) pairs, copies ordered so that nothing is lost."""
    todo = []
    for dst, src in pairs:
        if isinstance(dst.type, Frag):
            stored = src not in em.plan.fused
            if stored and em.plan.base(src) is src and em.plan.root(src) is em.plan.root(dst):
                continue
            todo.append((em.plan.root(dst), src))
    while todo:
        busy = [{em.plan.root(v) for v, _ in em.plan.leaves(s)} for _, s in todo]
        ready = next((n for n, (d, _) in enumerate(todo) if not any(d in b for k, b in enumerate(busy) if k != n)), None)
        if ready is None:  # a cycle: keep one target's old content aside
            d, _ = todo[0]
            _save(em, d, todo)
            continue
        d, s = todo.pop(ready)
        evaluate_into(em, em.arrays[d], s)
    _move_scalars(em, [(scalar_names[d], em.scalar(s), CTYPES[d.type.dtype.name]) for d, s in pairs if isinstance(d.type, Scalar)])


def _save(em: Emitter, root: Value, todo: list[tuple[Value, Value]]) -> None:
    """Copy the array of `root` to a fresh one and let the sources that read it read the copy."""
    old = em.arrays[root]
    fresh = Value(root.type, f"{old}_old")
    em.plan.parent[fresh] = fresh
    em.declare(fresh)
    evaluate_into(em, em.arrays[fresh], root)
    for n, (d, s) in enumerate(todo):
        if s not in em.plan.fused and em.plan.root(em.plan.base(s)) is root:
            todo[n] = (d, fresh)


def _move_scalars(em: Emitter, moves: list[tuple[str, X, str]]) -> None:
    """moves: variable, its next value, C++ type."""
    live = [(d, s, t) for d, s, t in moves if d != s.text]
    names = {d for d, _, _ in live}
    sources: list[X | str] = [s for _, s, _ in live]
    if any(set(re.findall(r"\w+", s.text)) & (names - {d}) for d, s, _ in live):
        sources = [em.names(f"{d}_next") for d, _, _ in live]
        for n, (_, s, t) in zip(sources, live):
            em.w.line(f"const {t} {n} = {s};")
    for (d, _, _), source in zip(live, sources):
        em.w.line(f"{d} = {source};")


@emits("for")
def _for(em: Emitter, op: Op) -> None:
    body = op.regions[0]
    lo, hi = op.operands[:2]
    index, carried = body.args[0], body.args[1:]
    em.comment([op.loc])
    _declare_set(em, op)
    names = carry_in(em, carried, op.operands[2:])
    move(em, [(a, i) for a, i in zip(carried, op.operands[2:]) if isinstance(a.type, Frag)], names)
    a, b = em.fold(lo), em.fold(hi)
    expanded = bool(op.get("unroll")) and a is not None and b is not None
    if expanded and b <= a:  # type: ignore[operator]
        carry_out(em, op.results, carried, names)
        return
    x, y = em.scalar(lo), em.scalar(hi)
    last_index = str(b - 1) if b is not None else binary("-", y, X("1"))

    var = ""

    def head() -> list[str]:
        nonlocal var
        var = em.names(index.name, "n")
        lines = [comment(f"{op['part']} part of the range")] if op.get("part") else []
        lines.append("#pragma unroll" if op.get("unroll") else f"#pragma unroll {op.get('turns', 1)}")
        if op.get("descending"):
            return [*lines, f"for (int {var} = {last_index}; {var} >= {x.within(SHIFT)}; --{var}) {{"]
        return [*lines, f"for (int {var} = {x}; {var} < {y.within(SHIFT)}; ++{var}) {{"]

    em.open(head)
    if expanded:
        em.unrolled[index] = b  # type: ignore[assignment]
    em.scalars[index] = X(var, depth=em.depth)
    if nonneg(em, lo):
        em.nonneg.add(index)
    for c in carried:
        if c in names:
            em.scalars[c] = X(names[c], depth=em.depth)
    last = em.last_loc
    emit_block(em, body)
    em.w.loc = op.loc
    move(em, list(zip(carried, body.yielded)), names)
    em.close()
    em.last_loc = last if em.last_loc == last else None
    carry_out(em, op.results, carried, names)


def carry_in(em: Emitter, args: tuple[Value, ...], inits: tuple[Value, ...]) -> dict[Value, str]:
    """Variables for the scalars that a loop carries, and the positions that it begins with."""
    names: dict[Value, str] = {}
    for arg, init in zip(args, inits):
        if isinstance(arg.type, Scalar):
            names[arg] = em.names(arg.name)
            em.w.line(f"{CTYPES[arg.type.dtype.name]} {names[arg]} = {em.scalar(init)};")
        elif isinstance(arg.type, Cursor):
            em.cursors[arg] = em.cursors[init]
    return names


def carry_out(em: Emitter, results: tuple[Value, ...], args: tuple[Value, ...], names: dict[Value, str]) -> None:
    """A loop's scalar results and ring positions are the variables it carried."""
    for r, c in zip(results, args):
        if isinstance(r.type, Scalar):
            em.scalars[r] = X(names[c], depth=em.depth)
        elif isinstance(r.type, Cursor):
            em.cursors[r] = em.cursors[c]


@emits("if")
def _if(em: Emitter, op: Op) -> None:
    em.comment([op.loc])
    _declare_set(em, op)
    names: dict[Value, str] = {}
    for r in op.results:
        if isinstance(r.type, Scalar):
            names[r] = em.names(r.name)
            em.w.line(f"{CTYPES[r.type.dtype.name]} {names[r]};")
    then, other = op.regions
    cond = em.scalar(op.operands[0])
    if not _prints(em, op, then) and _prints(em, op, other):
        then, other, cond = other, then, X(f"!{cond.within(UNARY)}", UNARY, cond.depth)
    em.open(f"if ({cond}) {{")
    _branch(em, op, then, names)
    if _prints(em, op, other):
        em.turn("} else {")
        _branch(em, op, other, names)
    em.close()
    for n, r in enumerate(op.results):
        if r in names:
            em.scalars[r] = X(names[r], depth=em.depth)
        elif isinstance(r.type, Cursor):
            ends = {em.cursors[block.yielded[n]] for block in op.regions}
            assert len(ends) == 1, "both branches move the same ring on"
            (em.cursors[r],) = ends


def _prints(em: Emitter, op: Op, block: Block) -> bool:
    """Whether a branch has any text: ops, or a result that does not lie in its array already."""
    if any(o.kind != "yield" for o in block.ops):
        return True
    return any(isinstance(r.type, Scalar) or y in em.plan.fused or em.plan.root(em.plan.base(y)) is not em.plan.root(r)
               for r, y in zip(op.results, block.yielded) if not isinstance(r.type, Cursor))  # both branches move a ring on alike


def _branch(em: Emitter, op: Op, block: Block, names: dict[Value, str]) -> None:
    emit_block(em, block)
    em.w.loc = op.loc
    move(em, list(zip(op.results, block.yielded)), names)


#: ops that are one call of the function with their name -> the attribute that says how many groups may be left, what is remarked
CALLS = {"commit_group": ("", ""), "wait_group": ("n", ""), "wgmma_commit": ("", ""),
         "bulk_commit": ("", "of a thread that started none: an empty group"), "proxy_fence": ("", ""), "cluster_sync": ("", ""),
         "grid_wait": ("", "until the kernels in front have ended: tensors may be touched from here on"), "launch_dependents": ("", "")}


@emits(*CALLS)
def _call(em: Emitter, op: Op) -> None:
    count, remark = CALLS[op.kind]
    em.w.line(f"{em.fn(op.kind)}{f'<{op[count]}>' if count else ''}();{f'  // {remark}' if remark else ''}")


@emits("barrier", "syncwarp")
def _barrier(em: Emitter, op: Op) -> None:
    if op.get("parts", 1) > 1:
        warps = em.kernel.warps // op["parts"]
        em.w.line(f"{em.fn('bar_sync')}({PARTS} + warp / {warps}, {warps * 32});")
        return
    if op.kind == "barrier" and em.role_barrier:
        em.w.line(f"{em.fn('bar_sync')}({em.role_barrier}, {em.kernel.warps * 32});")
        return
    em.w.line(em.target.instrs[op.kind].body)
