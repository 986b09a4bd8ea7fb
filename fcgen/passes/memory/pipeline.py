"""pipeline: shared-memory loads become rings of slots that are filled ahead of their readers, by those who read them.

In: placed machine IR. Out: the same, where every load into shared memory that no role of its own makes (`channels.fills_itself`) is a
copy into a slot of a kernel buffer. A load in a loop, which cp_async can move and whose `stages` are more than 1, becomes a ring: before
the loop the first stages - 1 tiles are started; each iteration acquires its own slots, then starts the tiles stages - 1 iterations ahead.
With `stages` = 1 and `ahead`, the loads of a loop take turns: each one's only slot is refilled as soon as the next load's tile has been
acquired, half an iteration before it is read again.
Loops of one chain run one after the other over one range and share their rings, so no tile is waited for at the seam. Every other
load is copied in place into a ring of one slot. Nothing synchronises yet: `sync` finds the hazards.

What a block of one role does for one tile goes under what hands out tiles (`grid`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

from ...ir.access import guards
from ...ir.alignment import promised
from ...ir.core import Block, Kernel, Op, Value, walk
from ...ir.rewrite import Builder, Env, branch, copy_op, substitute, substitute_block
from ...ir.schedule import Schedule
from ...ir.target import Target
from ..facts.common import AHEAD, index_slice, loaded_name, not_ahead, without_effect
from .channels import Channel, fills_itself, is_shared_load, mailbox, mover, readers, start_copy
from .grid import over_grid


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    p = _Pipeliner(schedule, {o.operands[0] for o in walk(kernel.body) if o.kind == "store"})
    body = p.block(kernel.body)
    _check_effect(kernel, schedule, p)
    told = dict.fromkeys([*kernel.meta.get("remarks", ()), *_at_use(kernel, schedule, p)])
    kernel = kernel.with_meta(remarks=tuple(told)) if told else kernel
    if schedule.copy != "tma" and (schedule.persistent != "none" or schedule.l2):
        box = mailbox(kernel, schedule)
        p.buffers += box.buffers if box is not None else []
        body = over_grid(kernel, body, schedule, box)
    kernel = replace(kernel.with_body(body), buffers=(*kernel.buffers, *p.buffers))
    return kernel.with_meta(stage="pipelined", persistent=schedule.persistent)


def _check_effect(kernel: Kernel, schedule: Schedule, p: _Pipeliner) -> None:
    """What the schedule asks of the loads, they have got."""
    if promised(kernel) is not None:
        return  # for tensors that allow less than the schedule was made for
    for op in walk(kernel.body):
        if op.kind == "load" and fills_itself(op, schedule) and op.get("stages", 1) > 1 and op["site"] not in p.ahead:
            raise not_ahead(op)
    if schedule.copy == "tma":
        return  # `roles` looks at the others
    loads = [op for op in walk(kernel.body) if is_shared_load(op)]
    if schedule.copy == "vector" and not loads:
        raise without_effect("copy", "no tile is loaded into shared memory", got=schedule.copy)
    if schedule.ahead and not any(slots == 1 for slots in p.ahead.values()):
        raise without_effect("ahead", "no loop's loads take turns", got=f"stages={schedule.slots}",
                             expected="stages=1, and a loop that is done with each of its tiles before it reads the next one")
    if schedule.slots > 2 and not any(slots == schedule.slots for slots in p.ahead.values()):
        raise without_effect("stages", "no load runs ahead", expected=AHEAD, got=schedule.slots)


def _at_use(kernel: Kernel, schedule: Schedule, p: _Pipeliner) -> Iterator[tuple[str, str]]:
    """Loads of loops in which others run ahead, and that do not: whatever waits for them waits for memory."""
    for loop in walk(kernel.body):
        own = [o for o in loop.regions[0].ops if p.own(o)] if loop.kind == "for" and not loop.get("unroll") else []
        if any(o["site"] in p.ahead for o in own):
            yield from (("stages", f"%{o['site']} is loaded where it is used, and nothing of it ahead: what its place follows from is not "
                         "known before, or no cp_async can move it") for o in own
                        if o["site"] not in p.ahead and o.get("stages", schedule.slots) > 1)


@dataclass
class _Ring:
    """One load, in each loop of its chain. anywhere: the one that says where a tile of any of them lies, in the loop's body: the copy for
    whole tiles may have used what holds only there."""

    channel: Channel
    loads: list[Op]
    anywhere: Op
    body: Block

    @property
    def slots(self) -> int:
        return self.channel.slots


@dataclass
class _Pipeliner:
    schedule: Schedule
    written: set[Value]  # tensors that the kernel stores to
    buffers: list[Value] = field(default_factory=list)
    ahead: dict[str, int] = field(default_factory=dict)  # sites whose loads run ahead -> slots

    def block(self, block: Block) -> Block:
        b, env = Builder(), Env()
        ops = list(block.ops)
        i = 0
        while i < len(ops):
            op = ops[i]
            b.loc = op.loc
            if op.kind == "for" and not op.get("unroll"):
                chain = [op]
                while op.get("chain") is not None and i + 1 < len(ops) and ops[i + 1].kind == "for" \
                        and ops[i + 1].get("chain") == op["chain"]:
                    i += 1
                    chain.append(ops[i])
                self.loops([env.reading(o) for o in chain], chain, b, env)
            elif self.own(op):
                self.in_place(env.reading(op), op, b, env)
            else:
                new = env.reading(op).within(lambda r: self.block(substitute_block(r, env)))
                b.add(replace(new, results=env.anew(op.results)))
            i += 1
        return b.block(block.args)

    def own(self, op: Op) -> bool:
        return is_shared_load(op) and fills_itself(op, self.schedule)

    def channel(self, load: Op, slots: int) -> Channel:
        ring = Value(replace(load.result.type, slots=slots), loaded_name(load))
        self.buffers.append(ring)
        return Channel(ring)

    def in_place(self, op: Op, old: Op, b: Builder, env: Env) -> None:
        """Copy into a buffer of one slot where the load stands."""
        buffer = self.channel(op, 1).ring
        start_copy(op, op.operands, buffer, self.schedule, b)
        if mover(op, self.schedule) == "cp_async":
            b.do("commit_group", loc=op.loc)
        env[old.result] = buffer

    # ---- loops ---------------------------------------------------------------------------------------------------

    def loops(self, chain: list[Op], olds: list[Op], b: Builder, env: Env) -> None:
        """A chain of loops with shared rings (`chain` has its operands substituted, `olds` are the ops as they were)."""
        inner = [substitute_block(o.regions[0], env) for o in chain]
        rings = self._rings(inner, next((i for i, o in enumerate(chain) if o.get("part") != "full"), 0))
        down = bool(chain[0].get("descending"))
        turns = bool(rings) and rings[0].slots == 1
        low, high = (chain[-1].operands[0], chain[0].operands[1]) if down else (chain[0].operands[0], chain[-1].operands[1])
        depth = max((r.slots for r in rings), default=1)
        if turns:
            first = b.emit("sub", high, b.const(1), name="first") if down else low
            some = b.emit("lt", low, high)
            for r in rings[:-1] or rings:
                self._start([r], 0, first, some, b.const(0), 0, b)
        elif rings:
            self._prologue(rings, low, high, down, depth, b)
        for i, (op, old) in enumerate(zip(chain, olds)):
            body = inner[i]
            if turns:
                body = self._take_turns(rings, i, body, low, high, down)
            elif rings:
                body = self._steady(rings, i, body, low, high, down)
            operands = (*op.operands[:2], *env.all(old.operands[2:]))
            b.add(replace(op, operands=operands, regions=(self.block(body),), results=env.anew(old.results)))

    def _rings(self, bodies: list[Block], whole: int) -> list[_Ring]:
        """The loads that can run ahead: in every loop of the chain, with positions that follow from the index alone."""
        loads = [[o for o in body.ops if self.own(o)] for body in bodies]
        if len({tuple(o["site"] for o in ls) for ls in loads}) != 1:
            return []
        early = lambda o, body: mover(o, self.schedule) == "cp_async" and index_slice(body, o.operands[1:], self.written) is not None
        ahead = [same for same in zip(*loads) if all(map(early, same, bodies))]
        slots = 0
        deep = [s for s in ahead if s[0].get("stages", self.schedule.slots) > 1]
        if not deep and self.schedule.ahead and ahead and all(_in_turn([s[i] for s in ahead], body) for i, body in enumerate(bodies)):
            ahead.sort(key=lambda s: _span(s[0].result, bodies[0])[0])
            deep, slots = ahead, 1
        self.ahead.update((s[0]["site"], slots or s[0].get("stages", self.schedule.slots)) for s in deep)
        return [_Ring(self.channel(s[0], self.ahead[s[0]["site"]]), list(s), s[whole], bodies[whole]) for s in deep]

    def _prologue(self, rings: list[_Ring], low: Value, high: Value, down: bool, depth: int, b: Builder) -> None:
        zero = b.const(0)
        for step in range(depth - 1):
            starting = [r for r in rings if step < r.slots - 1]
            offset = b.const(step)
            if down:
                last = b.emit("sub", high, b.const(1))
                index = b.emit("sub", last, offset, name="first")
                inside = b.emit("ge", index, low)
            else:
                index = b.emit("add", low, offset, name="first")
                inside = b.emit("lt", index, high)
            self._start(starting, 0, index, inside, zero, step, b)

    def _start(self, rings: list[_Ring], loop: int, index: Value, inside: Value, n: Value, ahead: int | None, b: Builder) -> None:
        """if inside: start the copies of tile `index`; one group for all of them, empty where there is nothing to copy."""
        then = Builder(b.loc)
        env = Env({r.body.args[0]: index for r in rings})
        slices = [index_slice(r.body, r.anywhere.operands[1:], self.written) or [] for r in rings]
        # entries of a table are read outside of the branch: past its end they are zeros
        where = b if any(o.kind == "gather" for ops in slices for o in ops) else then
        for r, ops in zip(rings, slices):
            load = r.loads[loop]
            for op in ops:
                if op.result not in env.map:
                    where.add(copy_op(op, env))
            view = r.channel.view(then, n, r.slots - 1 if ahead is None else ahead, load.loc)
            start_copy(load.with_attrs(guard=guards(r.loads)), env.all(r.anywhere.operands), view, self.schedule, then)
        b.add(branch(inside, then, loc=rings[0].loads[loop].loc))
        b.do("commit_group", loc=rings[0].loads[loop].loc)

    def _steady(self, rings: list[_Ring], loop: int, body: Block, low: Value, high: Value, down: bool) -> Block:
        j = body.args[0]
        b = Builder(rings[0].loads[loop].loc)
        one = b.const(1)
        n = b.emit("sub", b.emit("sub", high, one), j, name="n") if down else b.emit("sub", j, low, name="n")
        env = Env({r.loads[loop].result: r.channel.view(b, n, 0, r.loads[loop].loc) for r in rings})
        b.do("acquire", *env.map.values())
        for depth in sorted({r.slots for r in rings}):
            far = b.const(depth - 1)
            index = b.emit("sub", j, far, name="next") if down else b.emit("add", j, far, name="next")
            inside = b.emit("ge", index, low) if down else b.emit("lt", index, high)
            self._start([r for r in rings if r.slots == depth], loop, index, inside, n, None, b)
        b.ops += [substitute(o, env) for o in body.ops if not any(o is r.loads[loop] for r in rings)]
        return b.block(body.args)

    def _take_turns(self, rings: list[_Ring], loop: int, body: Block, low: Value, high: Value, down: bool) -> Block:
        """One slot per load: acquire each tile in front of its first reader, then refill the slot whose readers are done."""
        j, env = body.args[0], Env({r.loads[loop].result: r.channel.ring for r in rings})
        spans = [_span(r.loads[loop].result, body) for r in rings]
        first = {_before_rare_branch(body, max([-1, *(b for _, b in spans if b < at)]) + 1, at): i for i, (at, _) in enumerate(spans)}
        loads = [r.loads[loop] for r in rings]
        b = Builder()
        one, zero = b.const(1), b.const(0)
        following = b.emit("sub", j, one, name="next") if down else b.emit("add", j, one, name="next")
        more = b.emit("ge", following, low) if down else b.emit("lt", following, high)

        def refill(i: int) -> None:
            """The load before the i-th in turn; the last one is still to be read in this iteration."""
            load = rings[i - 1]
            b.loc = load.loads[loop].loc
            if i == 0:
                yes = b.emit("const", value=True, dtype="i1")
                self._start([load], loop, j, yes, zero, 0, b)
            else:
                self._start([load], loop, following, more, zero, 0, b)

        for k, op in enumerate(body.ops):
            if op in loads:
                continue
            if k in first:
                b.do("acquire", rings[first[k]].channel.ring, loc=op.loc)
                if len(rings) > 1:
                    refill(first[k])
            if op.kind == "yield" and len(rings) == 1:
                refill(1)
            b.add(substitute(op, env))
        return b.block(body.args)


# ---- helpers -----------------------------------------------------------------------------------------------------------


def _span(v: Value, body: Block) -> tuple[int, int]:
    """Numbers of the first and the last op of the body that read a value, in a region or not."""
    at = readers(v, body)
    return (at[0], at[-1]) if at else (len(body.ops) - 1, len(body.ops) - 1)


def _before_rare_branch(body: Block, low: int, at: int) -> int:
    """Where to wait for what the op number `at` reads, from the op `low` on. A branch and a barrier each end what ptxas may order freely:
    in front of a rare branch, the barrier leaves what follows the branch in one piece with the reader. (Behind it, exponentials and the
    products of their results did not mix: 10 % of a loop of 64 x 64 x 128 on an H200.)"""
    rare = {o.result for o in body.ops if o.kind == "vote_any" and o.get("rare")}
    return next((k for k in range(low, at) if body.ops[k].kind == "if" and body.ops[k].operands[0] in rare), at)


def _in_turn(loads: list[Op], body: Block) -> bool:
    """Whether each tile's readers are done before the next tile's first."""
    spans = sorted(_span(o.result, body) for o in loads)
    return all(a[1] < b[0] for a, b in pairwise(spans))
