"""Small edits of machine IR, as a hand or a broken pass might make them: 48 kinds, each at a random place of a kernel.

`edit(kernel, kind, rng)` gives the edited kernel and the place in words, or None where the kind has no place in it. What is edited may be
refused, reported, or as good as before: `random_edits` runs them and says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fcgen.ir.core import Block, Kernel, Op, Value, walk
from fcgen.ir.rewrite import Env, substitute_block
from fcgen.ir.types import Buffer, Cursor, Frag, Mbarrier, Scalar, Tensor

from .editing import Edited, Rng, attribute, blocks, change, has, movable, other_operand, pick, put, read, say, sites, visible, with_block

EDITS: dict[str, Callable[[Kernel, Rng], Edited | None]] = {}

#: ops that order others
ORDER = ("barrier", "syncwarp", "wait_group", "commit_group", "mbar_wait", "mbar_arrive", "mbar_expect", "wgmma_fence", "wgmma_commit",
         "wgmma_wait", "proxy_fence", "bulk_commit", "bulk_wait", "token_take", "token_give", "token_start", "cluster_sync", "grid_wait",
         "claim_done")
#: ops that move data
MOVE = ("cp_async", "tma_load", "tma_store", "st_shared", "stmatrix", "st_global", "post", "wmma_store")


def edit(kernel: Kernel, kind: str, rng: Rng) -> Edited | None:
    return EDITS[kind](kernel, rng)


def kind(name: str) -> Callable[[Callable[[Kernel, Rng], Edited | None]], Callable[[Kernel, Rng], Edited | None]]:
    def keep(fn: Callable[[Kernel, Rng], Edited | None]) -> Callable[[Kernel, Rng], Edited | None]:
        EDITS[name] = fn
        return fn

    return keep


# ---- drop, double, swap, move --------------------------------------------------------------------------------------------

EDITS["drop an op that orders"] = change(has(*ORDER), lambda op, rng: ())
EDITS["drop an op that moves data"] = change(has(*MOVE), lambda op, rng: ())
EDITS["double an op that orders"] = change(has(*ORDER), lambda op, rng: (op, op))
EDITS["double an op that moves data"] = change(has(*MOVE), lambda op, rng: (op, op))


@kind("drop an advance or a claim")
def _drop_value(kernel: Kernel, rng: Rng) -> Edited | None:
    """Its result is what it took, or for a claim the value that is carried."""
    place = pick(rng, sites(kernel, lambda o: o.kind == "advance"))
    if place is None:
        return None
    b, n = place
    op = b.ops[n]
    rest = substitute_block(Block(b.args, b.ops[n + 1:]), Env({op.result: op.operands[0]}))
    return with_block(kernel, b, Block(b.args, (*b.ops[:n], *rest.ops))), say(kernel, op)


def _moved(kinds: tuple[str, ...], steps: Callable[[Rng], int]) -> Callable[[Kernel, Rng], Edited | None]:
    def go(kernel: Kernel, rng: Rng) -> Edited | None:
        places = sites(kernel, has(*kinds))
        for _ in range(20):
            if (place := pick(rng, places)) is None:
                return None
            (b, n), by = place, steps(rng)
            if by and movable(b, n, n + by):
                ops = list(b.ops)
                op = ops.pop(n)
                ops.insert(n + by, op)
                past = b.ops[n + 1:n + by + 1] if by > 0 else b.ops[n + by:n]
                place = f"{say(kernel, op)} by {by} past {', '.join(o.kind for o in past)}"
                return with_block(kernel, b, replace(b, ops=tuple(ops))), place
        return None

    return go


EDITS["move an op that orders up"] = _moved(ORDER, lambda rng: -int(rng.integers(1, 12)))
EDITS["move an op that orders down"] = _moved(ORDER, lambda rng: int(rng.integers(1, 12)))
EDITS["move an op that moves data up"] = _moved((*MOVE, "wgmma", "settle", "ldmatrix"), lambda rng: -int(rng.integers(1, 12)))
EDITS["move an op that moves data down"] = _moved((*MOVE, "wgmma", "settle", "ldmatrix"), lambda rng: int(rng.integers(1, 12)))


@kind("swap neighbours")
def _swap(kernel: Kernel, rng: Rng) -> Edited | None:
    kinds = (*ORDER, *MOVE, "wgmma", "settle", "fetch", "claim", "advance", "ldmatrix", "ld_shared")
    beside = (*kinds, "for", "if", "while")
    places = [(b, n) for b, n in sites(kernel, has(*kinds)) if movable(b, n, n + 1) and b.ops[n + 1].kind in beside]
    if (place := pick(rng, places)) is None:
        return None
    b, n = place
    ops = (*b.ops[:n], b.ops[n + 1], b.ops[n], *b.ops[n + 2:])
    return with_block(kernel, b, replace(b, ops=ops)), f"{say(kernel, b.ops[n])} with {b.ops[n + 1].kind}"


@kind("move an op out of its block")
def _hoist(kernel: Kernel, rng: Rng) -> Edited | None:
    """In front of the loop or branch that it stands in, or behind it."""
    places = [(b, n, op) for b in blocks(kernel) for n, outer in enumerate(b.ops) for r in outer.regions for op in r.ops
              if op.kind in (*ORDER, *MOVE) and read(op) <= set(visible(kernel, b)[n])]
    if (place := pick(rng, places)) is None:
        return None
    b, n, op = place
    outer = b.ops[n]
    inner = replace(outer, regions=tuple(Block(r.args, tuple(o for o in r.ops if o is not op)) for r in outer.regions))
    behind = bool(rng.integers(2))
    place = f"{say(kernel, op)} {'behind' if behind else 'before'} {outer.kind}"
    return put(kernel, b, n, *((inner, op) if behind else (op, inner))), place


@kind("an op of another role")
def _foreign(kernel: Kernel, rng: Rng) -> Edited | None:
    if len(kernel.roles) < 2:
        return None
    alone = ("barrier", "cluster_sync", "claim_done", "grid_wait", "proxy_fence")
    if (place := pick(rng, sites(kernel, has(*alone)))) is None:
        return None
    op = place[0].ops[place[1]]
    role = pick(rng, [r for r in kernel.roles if not any(o is op for o in walk(r.body))])
    body, at = role.body, int(rng.integers(len(role.body.ops)))
    new = Block(body.args, (*body.ops[:at], op, *body.ops[at:]))
    return with_block(kernel, body, new), f"{say(kernel, op)} also in {role.name}, place {at}"


# ---- numbers of what orders ------------------------------------------------------------------------------------------------

EDITS["lag"] = attribute(("mbar_wait", "mbar_arrive"), "lag", lambda x, op, rng: pick(rng, [0, 1, 2]))
EDITS["bytes"] = attribute(("mbar_expect",), "bytes", lambda x, op, rng: pick(rng, [x // 2, x + 16, x * 2, x - 128, 0]))


def _groups(op: Op, rng: Rng) -> tuple[Op, ...]:
    name = "groups" if "groups" in op.attrs else "n"
    return (op.with_attrs(**{name: int(op[name]) + int(pick(rng, [1, 2, -1] if op[name] else [1, 2]))}),)


EDITS["groups"] = change(has("settle", "wgmma_wait", "wait_group", "bulk_wait"), _groups)
EDITS["read"] = attribute(("bulk_wait",), "read", lambda x, op, rng: not x)
EDITS["ahead"] = attribute(("slot",), "ahead", lambda x, op, rng: x + pick(rng, [1, -1, 2]) if x else 1)
EDITS["id"] = attribute(("token_take", "token_give", "token_start"), "id", lambda x, op, rng: pick(rng, [x + 1, x - 1, x + 3, 0, 15, 16]))
EDITS["parts"] = attribute(("barrier", "tma_store", "row_part"), "parts", lambda x, op, rng: pick(rng, [1, 2, 4, 3]))
EDITS["multicast"] = attribute(("tma_load",), "multicast", lambda x, op, rng: pick(rng, [None, 2, 4]))
EDITS["cluster"] = attribute(("mbar_arrive",), "cluster", lambda x, op, rng: pick(rng, [None, 2, 4]))


@kind("count")
def _count(kernel: Kernel, rng: Rng) -> Edited | None:
    return _declared(kernel, rng, Mbarrier, lambda t: replace(t, count=max(1, t.count + pick(rng, [1, -1, 4, t.count]))))


@kind("slots")
def _slots(kernel: Kernel, rng: Rng) -> Edited | None:
    """Of a ring, or of its barriers; views and cursors go along with it."""
    return _declared(kernel, rng, (Buffer, Mbarrier), lambda t: replace(t, slots=max(1, t.slots + pick(rng, [1, -1]))))


def _declared(kernel: Kernel, rng: Rng, types: Any, other: Callable[[Any], Any]) -> Edited | None:
    old = pick(rng, [b for b in kernel.buffers if isinstance(b.type, types)])
    if old is None or other(old.type) == old.type:
        return None
    new = Value(other(old.type), old.name)
    roles = tuple(replace(r, body=substitute_block(r.body, Env({old: new}))) for r in kernel.roles)
    buffers = tuple(new if b is old else b for b in kernel.buffers)
    return replace(kernel, roles=roles, buffers=buffers), f"{old.name}: {old.type} -> {new.type}"


@kind("a cursor's slots")
def _cursor(kernel: Kernel, rng: Rng) -> Edited | None:
    place = pick(rng, sites(kernel, has("cursor")))
    if place is None:
        return None
    b, n = place
    op, slots = b.ops[n], int(b.ops[n]["slots"]) + int(pick(rng, [1, -1]))
    if slots < 1:
        return None
    new = replace(op, attrs={"slots": slots}, results=(Value(Cursor(slots), op.result.name),))
    rest = substitute_block(Block(b.args, b.ops[n + 1:]), Env({op.result: new.result}))
    return with_block(kernel, b, Block(b.args, (*b.ops[:n], new, *rest.ops))), f"{say(kernel, op)}: {op['slots']} -> {slots}"


@kind("offset")
def _offset(kernel: Kernel, rng: Rng) -> Edited | None:
    """A buffer or a barrier somewhere else in shared memory: a little off, at another one's place, the two exchanged."""
    at = list(kernel.meta.get("smem_offsets") or ())
    if len(at) < 2:
        return None
    i, j = (int(x) for x in rng.choice(len(at), 2, replace=False))
    how = pick(rng, ["off", "onto", "exchange"])
    if how == "off":
        step = int(pick(rng, [8, 16, 128, 1024, -16, -1024]))
        at[i] = max(0, at[i] + step)
        how = f"off by {step}"
    elif how == "onto":
        at[i] = at[j]
    else:
        at[i], at[j] = at[j], at[i]
    return kernel.with_meta(smem_offsets=tuple(at)), f"{kernel.buffers[i].name} {how} {kernel.buffers[j].name}"


@kind("bytes of shared memory")
def _smem_bytes(kernel: Kernel, rng: Rng) -> Edited | None:
    size = kernel.meta.get("smem_bytes")
    by = int(pick(rng, [-1024, -16, 16, 1024, 65536]))
    return None if size is None else (kernel.with_meta(smem_bytes=max(0, size + by)), f"{size} by {by}")


# ---- positions, operands, bounds ---------------------------------------------------------------------------------------------


def _scalar(op: Op, i: int) -> bool:
    return isinstance(op.operands[i].type, Scalar)


EDITS["another position"] = other_operand(lambda op, i: op.kind in (*MOVE, "ld_global", "ld_shared", "ldmatrix") and _scalar(op, i))
EDITS["another bound"] = other_operand(lambda op, i: op.kind == "for" and i < 2, near=True)
EDITS["another condition"] = other_operand(lambda op, i: op.kind in ("if", "while") and i == 0)
EDITS["another buffer"] = other_operand(lambda op, i: isinstance(op.operands[i].type, Buffer))
EDITS["another barrier"] = other_operand(lambda op, i: isinstance(op.operands[i].type, Mbarrier))
EDITS["another cursor"] = other_operand(lambda op, i: isinstance(op.operands[i].type, Cursor), near=True)
EDITS["another fragment"] = other_operand(lambda op, i: isinstance(op.operands[i].type, Frag))
EDITS["another number"] = other_operand(lambda op, i: _scalar(op, i) and op.kind not in ("for", "if", "while", "yield", *MOVE), near=True)
EDITS["another tensor"] = other_operand(lambda op, i: isinstance(op.operands[i].type, Tensor))
EDITS["another yield"] = other_operand(lambda op, i: op.kind == "yield", near=True)


def _operands(op: Op, rng: Rng) -> tuple[Op, ...] | None:
    pairs = [(i, j) for i in range(len(op.operands)) for j in range(i) if op.operands[i].type == op.operands[j].type
             and op.operands[i] is not op.operands[j]]
    if (pair := pick(rng, pairs)) is None:
        return None
    xs = list(op.operands)
    xs[pair[0]], xs[pair[1]] = xs[pair[1]], xs[pair[0]]
    return (replace(op, operands=tuple(xs)),)


EDITS["swap operands"] = change(lambda op: len(op.operands) > 1, _operands)
EDITS["index"] = attribute(("cp_async", "tma_load", "tma_store", "ld_global", "st_global"), "index", lambda x, op, rng: _permuted(x, rng))
EDITS["guard"] = attribute(("cp_async", "tma_load", "tma_store", "ld_global", "st_global"), "guard",
                           lambda x, op, rng: tuple(not g if n == k else g for k in [int(rng.integers(len(x)))] for n, g in enumerate(x)))
EDITS["transposed"] = change(has("wgmma", "ldmatrix", "st_shared", "stmatrix", "ld_shared"), lambda op, rng: _flag(op, rng))
EDITS["descending"] = attribute(("for",), "descending", lambda x, op, rng: None if x else True)


def _permuted(words: tuple[str, ...], rng: Rng) -> tuple[str, ...]:
    if len(words) < 2:
        return words
    i, j = rng.choice(len(words), 2, replace=False)
    out = list(words)
    out[i], out[j] = out[j], out[i]
    return tuple(out)


def _flag(op: Op, rng: Rng) -> tuple[Op, ...] | None:
    name = pick(rng, [k for k, v in op.attrs.items() if isinstance(v, bool)])
    return None if name is None else (op.with_attrs(**{name: not op[name]}),)


ARITHMETIC = {"add": "sub", "sub": "add", "mul": "add", "max": "min", "min": "max", "lt": "le", "le": "lt", "gt": "ge", "ge": "gt",
              "eq": "ne", "ne": "eq", "floordiv": "mod", "mod": "floordiv", "and": "or", "or": "and", "exp2": "exp", "div": "mul"}
EDITS["another function"] = change(lambda op: op.kind in ARITHMETIC, lambda op, rng: (replace(op, kind=ARITHMETIC[op.kind]),))


def _constant(op: Op, rng: Rng) -> tuple[Op, ...]:
    x = op["value"]
    new = pick(rng, [x + 1, x - 1, 2 * x]) if isinstance(x, int) else pick(rng, [0.0, x * 2 if x else 1.0, -x if x else 0.5])
    return (op.with_attrs(value=new),)


EDITS["constant"] = change(has("const"), _constant)


def _reduction(op: Op, rng: Rng) -> tuple[Op, ...] | None:
    if op.kind == "combine":
        return (op.with_attrs(lanes=pick(rng, [op["lanes"][:-1], (*op["lanes"], 4), tuple(2 * x for x in op["lanes"])])),)
    return (op.with_attrs(fn=pick(rng, [f for f in ("sum", "max", "min") if f != op["fn"]])),)


EDITS["reduction"] = change(has("reduce", "combine"), _reduction)


@kind("swap branches")
def _branches(kernel: Kernel, rng: Rng) -> Edited | None:
    place = pick(rng, sites(kernel, has("if")))
    if place is None:
        return None
    b, n = place
    op = b.ops[n]
    return put(kernel, b, n, replace(op, regions=op.regions[::-1])), say(kernel, op)


# ---- the kernel as a whole --------------------------------------------------------------------------------------------------


@kind("grid")
def _grid(kernel: Kernel, rng: Rng) -> Edited | None:
    """An axis: its dimension, tile, direction, cluster; or the order of the axes."""
    if not kernel.grid:
        return None
    n = int(rng.integers(len(kernel.grid)))
    axis, dims = kernel.grid[n], sorted({str(g.dim) for g in kernel.grid})
    new = pick(rng, [replace(axis, tile=max(1, axis.tile // 2)), replace(axis, tile=axis.tile * 2), replace(axis, reverse=not axis.reverse),
                     replace(axis, cluster=2 if axis.cluster == 1 else 1), replace(axis, dim=pick(rng, dims))])
    if new == axis:
        return None
    return replace(kernel, grid=tuple(new if i == n else g for i, g in enumerate(kernel.grid))), f"{axis} -> {new}"


@kind("warps")
def _warps(kernel: Kernel, rng: Rng) -> Edited | None:
    n = int(rng.integers(len(kernel.roles)))
    role = kernel.roles[n]
    warps = int(pick(rng, [role.warps // 2, role.warps * 2, role.warps + 4, role.warps - 1]))
    if warps < 1:
        return None
    roles = tuple(replace(r, warps=warps) if i == n else r for i, r in enumerate(kernel.roles))
    return replace(kernel, roles=roles), f"{role.name} {warps}"


@kind("layout of a buffer")
def _layout(kernel: Kernel, rng: Rng) -> Edited | None:
    def other(t: Buffer) -> Buffer:
        field, values = pick(rng, [("swizzle", [0, 32, 64, 128]), ("panel", [t.layout.panel // 2, t.layout.panel * 2])])
        return replace(t, layout=replace(t.layout, **{field: pick(rng, values)}))

    return _declared(kernel, rng, Buffer, other)
