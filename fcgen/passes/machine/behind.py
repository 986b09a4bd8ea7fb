"""behind: a product of what its loop computes, which is only stored, follows one iteration behind.

In: selected machine IR in which every wgmma is settled at once. Out: the same, where the operand that a loop stages for a product marked
`behind` travels through a channel: warps store it, say so and go on; the product of an iteration, and what is made of it, stand at the end
of the next one, when all warps have long stored their part, and after the loop. So no barrier keeps warpgroups in step: one computes while
the other's products run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...errors import FcError
from ...ir.core import Block, Kernel, Op, Role, Value, walk
from ...ir.depends import followed
from ...ir.lifetimes import WRITES
from ...ir.ops import has_effect
from ...ir.rewrite import Builder, Env, branch, copy_op, remove_dead
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Buffer, Cursor, Scalar
from ..facts.common import called, without_effect
from ..memory.channels import Channel
from ..memory.cursors import thread_cursors

#: slots of the channel
SLOTS = 2


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if not schedule.behind:
        return kernel
    channels: dict[Value, tuple[Channel, Channel]] = {}
    roles = tuple(_role(r, channels) for r in kernel.roles)
    if not channels:
        raise without_effect("behind", "no product that wgmma makes in a loop is called so", got="+".join(schedule.behind),
                             expected="a dot of what its loop computes, only stored, with math=\"wgmma\"")
    if (left := next((o for r in roles for o in walk(r.body) if o.kind == "wgmma" and o.get("behind")), None)) is not None:
        raise without_effect("behind", "one product of each loop's own body can follow behind it", got="+".join(schedule.behind),
                             loc=left.loc)
    used = {v for r in roles for o in walk(r.body) for v in o.operands}
    buffers = (*kernel.buffers, *(v for _, out in channels.values() for v in out.buffers))
    return replace(kernel, roles=roles, buffers=tuple(v for v in buffers if v in used))


def _role(role: Role, channels: dict[Value, tuple[Channel, Channel]]) -> Role:
    before = len(channels)
    body = _block(role.body, role.warps, channels)
    return role if len(channels) == before else replace(role, body=remove_dead(thread_cursors(body)))


def _block(block: Block, warps: int, channels: dict[Value, tuple[Channel, Channel]]) -> Block:
    ops: list[Op] = []
    for op in block.ops:
        dot = next((o for o in op.regions[0].ops if o.kind == "wgmma" and o.get("behind")), None) if op.kind == "for" else None
        ops += _Behind(op, dot, warps, channels).loops() if dot is not None else [op.within(lambda r: _block(r, warps, channels))]
    return Block(block.args, tuple(ops))


@dataclass
class _Behind:
    """channels: staged tile -> the channel in its place, as those see it who store and who read. Copies of a loop have it in common."""

    loop: Op
    dot: Op
    warps: int
    channels: dict[Value, tuple[Channel, Channel]]

    def __post_init__(self) -> None:
        ops, self.made = self.loop.regions[0].ops[:-1], self.loop.regions[0].made
        n = ops.index(self.dot)
        stores = [o for o in ops if o.kind in WRITES and o.operands[1] in self.dot.operands]
        if len(stores) != 1 or not isinstance(stores[0].operands[1].type, Buffer):
            raise self.cannot("it reads no tile that its iteration stages")
        self.store, self.staged = stores[0], stores[0].operands[1]
        late = set(ops[n - 1:n + 3])
        found = {ops[n + 2].result}
        for before, o in zip(ops[n + 2:], ops[n + 3:]):
            if found.intersection(o.operands) or (o.kind == "bulk_commit" and before in late):
                late.add(o)
                found |= {*o.results, *(v for v in o.operands if o.kind in WRITES and isinstance(v.type, Buffer))}
        self.settle, self.late = ops[n + 2], [o for o in ops if o in late]
        self.rest = [o for o in ops if o not in late]
        others = {v for o in walk(Block((), (*self.rest, self.loop.regions[0].ops[-1]))) if o is not self.store for v in o.operands}
        if found & others:
            raise self.cannot("its own iteration reads the result")
        if self.staged in others:
            raise self.cannot("another op reads the tile that its iteration stages for it")
        mine = {r for o in self.late for r in o.results} | {self.staged}
        self.reads = followed([v for o in self.late for v in o.operands if v not in mine], self.made, lambda o: not has_effect(o))
        if self.reads is None or any(not isinstance(r.type, Scalar) for o in self.reads for r in o.results if o.kind != "full"):
            raise self.cannot("it reads more than that tile of its iteration")
        if self.staged not in self.channels:
            name = self.staged.name
            both = Channel.between(Value(replace(self.staged.type, slots=SLOTS), name), self.warps, fillers=self.warps)
            self.channels[self.staged] = (replace(both.outlet(), cursor=Value(Cursor(SLOTS), f"{name}_in")),
                                          replace(both, cursor=Value(Cursor(SLOTS), f"{name}_out")))
        self.into, self.out = self.channels[self.staged]

    def cannot(self, why: str) -> FcError:
        return FcError("compile/schedule", f"Schedule.behind: {called(self.dot.result)} cannot follow an iteration behind: {why}",
                       loc=self.dot.loc, expected="a product of what its loop computes, which is only stored",
                       hint="leave it out of Schedule.behind")

    def loops(self) -> list[Op]:
        loop, body, down = self.loop, self.loop.regions[0], bool(self.loop.get("descending"))
        lo, hi, *inits = loop.operands
        out, b = Builder(loop.loc), Builder(loop.loc)
        some = out.emit("lt", lo, hi)
        one = b.const(1)
        first = b.emit("sub", hi, one) if down else lo
        values = self.stored(first, tuple(inits), b, False)
        args = tuple(a.anew() for a in body.args)
        inner = Builder(loop.loc)
        carried = self.stored(args[0], args[1:], inner, True)
        self.product(inner.emit("add" if down else "sub", args[0], inner.const(1)), inner)
        inner.do("yield", *carried, loc=body.ops[-1].loc)
        bounds = (lo, first) if down else (b.emit("add", lo, one), hi)
        results = tuple(a.anew() for a in args[1:])
        b.add(replace(loop, operands=(*bounds, *values), results=results, regions=(inner.block(args),)))
        self.product(lo if down else b.emit("sub", hi, one), b)
        return [*out.ops, branch(some, b, results, inits, loop.results, Builder(loop.loc), loop.loc)]

    def stored(self, index: Value, carried: tuple[Value, ...], b: Builder, looped: bool) -> list[Value]:
        """An iteration without the product, in the loop or in front of it. Returns what is carried on."""
        body = self.loop.regions[0]
        env = Env(dict(zip(body.args, (index, *carried))))
        for o in self.rest:
            b.loc = o.loc
            if o is self.store:
                env[self.staged] = self.into.view(b)
                self.into.wait(b)
            b.add(copy_op(o.with_attrs(early=False) if o.get("early") and not looped else o, env))
            if o is self.store:
                self.into.release(b)
        return list(env.all(body.yielded))

    def product(self, index: Value, b: Builder) -> None:
        b.loc = self.dot.loc
        env = Env({self.loop.regions[0].args[0]: index, self.staged: self.out.view(b)})
        self.out.wait(b)
        for o in [*(o for o in self.made.values() if o in (self.reads or ())), *self.late]:
            b.loc = o.loc
            b.add(copy_op(o.with_attrs(behind=False) if o is self.dot else o, env))
            if o is self.settle:
                self.out.release(b)
