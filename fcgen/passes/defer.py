"""defer: a loop-carried row sum stays a per-lane partial until after its loop.

In: placed machine IR. Out: the same with fewer lane exchanges. A carried value that starts at zero and is only ever scaled by a row factor
and added to, `l = l * a + combine(part)`, is linear: the lanes that share a row may each carry their own part, `l = l * a + part`, and one
`combine` after the last loop of the chain makes the sum. Each lane's parts are added in the order of the loop, so the result is as
deterministic as before.
"""

from __future__ import annotations

from dataclasses import replace

from ..ir.core import Block, Builder, Env, Kernel, Op, Value, definitions, map_bodies, rewrite, uses
from ..ir.schedule import Schedule
from ..ir.target import Target
from ..ir.types import Frag


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    return map_bodies(kernel, _defer_block) if schedule.defer else kernel


def _defer_block(block: Block) -> Block:
    """Finds one chain of loops at a time and rewrites it; inner blocks first."""
    block = Block(block.args, tuple(replace(o, regions=tuple(_defer_block(r) for r in o.regions)) if o.regions else o for o in block.ops))
    while (found := _find(block)) is not None:
        block = _apply(block, *found)
    return block


def _find(block: Block) -> tuple[list[tuple[Op, int]], tuple[int, ...]] | None:
    """A chain [(loop, carried number)] whose value starts at zero, and the lanes to combine at the end."""
    defs, readers = definitions(block), uses(block)
    for op in block.ops:
        if op.kind != "for" or op.get("unroll"):
            continue
        for i, init in enumerate(op.operands[2:]):
            start = defs.get(init)
            if start is None or start.kind != "full" or not _is_zero(start, defs):
                continue
            lanes = _linear(op, i)
            if lanes is None:
                continue
            chain = [(op, i)]
            while (after := _next(chain[-1], readers, block)) is not None and _linear(*after) == lanes:
                chain.append(after)
            return chain, lanes
    return None


def _next(link: tuple[Op, int], readers: dict[Value, list[Op]], block: Block) -> tuple[Op, int] | None:
    """The loop of this block that takes the value on, if nobody else reads it in between."""
    result = link[0].results[link[1]]
    us = readers.get(result, [])
    if len(us) == 1 and us[0].kind == "for" and any(us[0] is o for o in block.ops) and us[0].operands[2:].count(result) == 1:
        return us[0], us[0].operands[2:].index(result)
    return None


def _is_zero(full: Op, defs: dict[Value, Op]) -> bool:
    c = defs.get(full.operands[0])
    return c is not None and c.kind == "const" and c["value"] == 0


def _linear(loop: Op, i: int) -> tuple[int, ...] | None:
    """The lanes of `carried = carried [* factor] + combine(part)`, or None if the value is used in any other way."""
    body = loop.regions[0]
    arg, out = body.args[1 + i], body.yielded[i]
    defs, readers = definitions(body), uses(body)
    if not isinstance(arg.type, Frag) or arg.type.partial or len(readers.get(out, ())) != 1 or len(readers.get(arg, ())) != 1:
        return None
    total = defs.get(out)
    if total is None or total.kind != "add":
        return None
    for scaled, part in (total.operands, total.operands[::-1]):
        combine = defs.get(part)
        if combine is None or combine.kind != "combine" or len(readers[part]) != 1 or combine.operands[0].type.partial != "sum":
            continue
        mul = defs.get(scaled)
        if scaled is arg or (mul is not None and mul.kind == "mul" and arg in mul.operands and mul.operands[0] is not mul.operands[1]
                             and len(readers[scaled]) == 1):
            return tuple(combine["lanes"])
    return None


def _apply(block: Block, chain: list[tuple[Op, int]], lanes: tuple[int, ...]) -> Block:
    defs = definitions(block)
    zero = defs[chain[0][0].operands[2 + chain[0][1]]]
    links = {id(op): i for op, i in chain}
    b, env = Builder(), Env()
    for op in block.ops:
        b.loc = op.loc
        new = replace(op, operands=env.all(op.operands))
        if id(op) not in links:
            b.add(replace(new, regions=tuple(_renamed(r, env) for r in op.regions)))
            continue
        i = links[id(op)]
        if op is chain[0][0]:
            first = b.emit("full", env[zero.operands[0]], type=_part(zero.result), name=op.results[i].name)
            new = _with_operand(new, 2 + i, first)
        result = Value(_part(op.results[i]), op.results[i].name)
        body = _partial_body(op.regions[0], i, env)
        results = tuple(result if k == i else r for k, r in enumerate(op.results))
        b.add(replace(new, results=results, regions=(body, *new.regions[1:])))
        env[op.results[i]] = result
        if op is chain[-1][0]:
            env[op.results[i]] = b.emit("combine", result, name=result.name, lanes=lanes)
    return b.block(block.args)


def _partial_body(body: Block, i: int, outer: Env) -> Block:
    arg, out = body.args[1 + i], body.yielded[i]
    defs = definitions(body)
    total = defs[out]
    env = Env(outer.map)
    new_arg = Value(_part(arg), arg.name)

    def rule(op: Op, b: Builder, e: Env) -> bool:
        if op.results and op.results[0] is out:
            parts = []
            for v in total.operands:
                d = defs.get(v)
                parts.append(e[d.operands[0]] if d is not None and d.kind == "combine" else e[v])
            e[out] = b.emit("add", *parts, name=out.name)
            return True
        if op.kind == "mul" and any(x is e[arg] for x in op.operands):
            e[op.result] = b.emit("mul", *op.operands, name=op.result.name)
            return True
        return False

    args = tuple(new_arg if a is arg else a for a in body.args)
    env[arg] = new_arg
    fresh = rewrite(Block((), body.ops), rule, env)
    return Block(args, fresh.ops)


def _part(v: Value) -> Frag:
    return replace(v.type, partial="sum")


def _with_operand(op: Op, i: int, v: Value) -> Op:
    return replace(op, operands=(*op.operands[:i], v, *op.operands[i + 1:]))


def _renamed(block: Block, env: Env) -> Block:
    return Block(block.args, tuple(replace(o, operands=env.all(o.operands), regions=tuple(_renamed(r, env) for r in o.regions))
                                   for o in block.ops))
