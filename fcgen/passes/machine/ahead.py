"""ahead: products that need nothing of their own iteration are issued in the one before, behind its last product.

In: selected machine IR in which every wgmma is settled at once. Out: the same, where a product marked `early`, its waits for tiles among
it, stands in front of its loop for the first tile, and in each iteration for the next one, behind the last product; the last iteration
follows the loop. So the tensor core has work while results of an iteration are stored and its sums are worked upon. Guaranteed: a slot is
let go before the wait for the next one, so a ring needs no slot more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...errors import FcError
from ...ir.core import Block, Kernel, Op, Value, walk, walk_kernel
from ...ir.depends import followed
from ...ir.lifetimes import STORES, WRITES
from ...ir.ops import has_effect
from ...ir.rewrite import Builder, Env, branch, copy_op, map_bodies, remove_dead
from ...ir.rings import RELEASES
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Buffer, Cursor
from ..facts.common import called, without_effect

BEFORE, AFTER = 1, 3
#: what finds the operands of one
FINDS = {"slot", "const", "full"}


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if not schedule.early:
        return kernel
    done: list[Op] = []
    kernel = map_bodies(kernel, lambda body: _block(body, done, False))
    if not done:
        raise without_effect("early", "no product that wgmma makes in a loop is called so", got="+".join(schedule.early),
                             expected="a dot that a loop runs in every iteration, with math=\"wgmma\"")
    if (left := next((o for o in walk_kernel(kernel) if o.kind == "wgmma" and o.get("early")), None)) is not None:
        raise without_effect("early", f"{called(left.result)} is a product of a loop in another's body", got="+".join(schedule.early),
                             loc=left.loc)
    return kernel


def _block(block: Block, done: list[Op], inside: bool) -> Block:
    ops: list[Op] = []
    for op in block.ops:
        if op.kind == "wgmma" and op.get("early") and not inside:
            raise without_effect("early", f"{called(op.result)} is no product of a loop's own body", loc=op.loc)
        if op.kind == "for" and (early := [o for o in op.regions[0].ops if o.kind == "wgmma" and o.get("early")]):
            done.extend(early)
            ops += _Early.of(op, early).rotated()
        else:
            ops.append(op.within(lambda r: _block(r, done, False)))
    return Block(block.args, tuple(ops))


@dataclass
class _Early:
    """ops: what runs ahead, in order; rest: the others of the body, up to `at` in front of the next iteration's early ones. made: results
    of early products."""

    loop: Op
    ops: list[Op]
    rest: list[Op]
    at: int
    made: list[Value]

    @staticmethod
    def of(loop: Op, early: list[Op]) -> _Early:
        body = loop.regions[0]
        ops, defs = body.ops[:-1], body.made
        found: set[Op] = set()
        filled = {v for o in walk(body) if o.kind in WRITES for v in o.operands if isinstance(v.type, Buffer)}
        filled |= {o.operands[0] for v, o in defs.items() if v in filled and o.kind == "slot"}
        only: set[Op] = set()  # those that no later op runs again
        made: list[Value] = []
        for dot in early:
            n = ops.index(dot)
            around = ops[n - BEFORE:n + AFTER]
            made.append(around[-1].result)
            places = followed(dot.operands, defs, lambda o: o.kind in FINDS, lambda v: v not in body.args or isinstance(v.type, Cursor))
            if places is None or not filled.isdisjoint((*dot.operands, *(v for o in places for v in o.operands))):
                raise FcError("compile/schedule", f"Schedule.early: {called(dot.result)} follows from what its own iteration computes",
                              expected="a product of tiles that are copied", loc=dot.loc, hint="leave it out of Schedule.early")
            slots = {v for o in places for v in o.operands if isinstance(v.type, Cursor)}
            waits = [o for o in ops[:n] if o.kind == "mbar_wait" and o.operands[1] in slots]
            found.update(places, waits, around)
            only.update(waits, around)
        rest = _stored_before([o for o in ops if o not in only])
        mine = [o.with_attrs(early=False) if o.kind == "wgmma" else o for o in ops if o in found]
        steps = {body.yielded[n] for n, v in enumerate(body.args[1:]) if any(v in o.operands for o in mine)}
        at = max((n + 1 for n, o in enumerate(rest) if o.kind == "settle" or any(r in steps for r in o.results)), default=0)
        return _Early(loop, mine, rest, at, made)

    def rotated(self) -> list[Op]:
        loop, body = self.loop, self.loop.regions[0]
        carried, down = body.args[1:], bool(loop.get("descending"))
        lo, hi = loop.operands[:2]
        inits = loop.operands[2:]
        out, b = Builder(loop.loc), Builder(loop.loc)
        some = out.emit("lt", lo, hi)
        one = b.const(1)
        last = b.emit("add", lo, one) if down else b.emit("sub", hi, one)
        first = self.ahead(dict(zip(carried, inits)), b)
        args = tuple(v.anew() for v in (*body.args, *self.made))
        inner = Builder(loop.loc)
        values = self.body(args[0], args[1:], inner, True)
        inner.do("yield", *values, loc=body.ops[-1].loc)
        results = tuple(v.anew() for v in args[1:])
        bounds = (last, hi) if down else (lo, last)
        b.add(replace(loop, operands=(*bounds, *inits, *first), results=results, regions=(inner.block(args),)))
        ends = self.body(lo if down else last, results, b, False)
        return [*out.ops, branch(some, b, ends, inits, loop.results).within(remove_dead)]

    def ahead(self, at: dict[Value, Value], b: Builder) -> list[Value]:
        env = Env(at)
        for o in self.ops:
            b.add(copy_op(o, env))
        return [env[v] for v in self.made]

    def body(self, index: Value, carried: tuple[Value, ...], b: Builder, goes_on: bool) -> list[Value]:
        """An iteration, with the early products of the next one if there is one. Returns what is carried on."""
        body = self.loop.regions[0]
        env = Env(dict(zip((*body.args, *self.made), (index, *carried))))
        for o in self.rest[:self.at]:
            b.add(copy_op(o, env))
        ahead = self.ahead(dict(zip(body.args[1:], env.all(body.yielded))), b) if goes_on else []
        for o in self.rest[self.at:]:
            b.add(copy_op(o, env))
        return [*env.all(body.yielded), *ahead]


def _stored_before(ops: list[Op]) -> list[Op]:
    """A body's ops, where bulk stores of what hangs on no result of the last product are staged while that runs: what stands behind it
    comes behind the next iteration's products, too."""
    last = max((n for n, o in enumerate(ops) if o.kind == "settle"), default=len(ops) - 1)
    moved, stay, late = list[Op](), list[Op](), set(ops[last].results)
    for o in ops[last + 1:]:
        stored = o.kind in {*STORES, "tma_store", "bulk_commit"}
        moves = late.isdisjoint(o.reads) and (stored or not (o.regions or o.kind in RELEASES or has_effect(o)))
        late.update(() if moves else (*o.results, *(v for v in o.operands if o.kind in STORES)))
        (moved if moves else stay).append(o)
    if any(o.kind == "tma_store" for o in stay) or not any(o.kind == "tma_store" for o in moved):
        return ops
    return [*ops[:last], *moved, ops[last], *stay]
