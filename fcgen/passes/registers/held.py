"""held: what follows from row values that only a rare branch changes is held through the loop.

In: placed machine IR with its votes. Out: where a loop carries row values that one branch of its body may change, and a vote hangs on them
alone, that vote and the row work that leads to it are carried too: done before the loop, and again in the branch. An iteration that does
not take the branch asks nobody. What a rarely taken branch needs besides is done there.
Guaranteed: equal values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...ir.core import Block, Kernel, Op, Value, walk_kernel
from ...ir.rewrite import Builder, Env, copy_op, edited, map_bodies, remove_dead, substitute
from ...ir.schedule import Schedule
from ...ir.target import Target
from .vote import is_row_work


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if not any(op.kind == "vote_any" for op in walk_kernel(kernel)):
        return kernel
    return map_bodies(kernel, lambda body: remove_dead(edited(body, _held)))


def _held(op: Op) -> Op | list[Op]:
    branches = [o for o in op.regions[0].ops if o.kind == "if"] if op.kind == "for" and len(op.regions) == 1 else []
    found = next((f for branch in branches if (f := _follows(op, branch)) is not None), None)
    return op if found is None else found.held(op)


@dataclass
class _Held:
    """branch: the one that changes row values of a loop's body. changed: its result -> (which yield it is, which carried value). work: what
    follows from those alone, in order. carried: the part of it that others read."""

    branch: Op
    changed: dict[Value, tuple[int, int]]
    work: list[Op]
    carried: list[Value]

    def held(self, loop: Op) -> list[Op]:
        """The loop that carries the work, behind what it starts from."""
        before = Builder()
        starts = Env({v: loop.operands[1 + j] for v, (_, j) in self.changed.items()})
        for op in self.work:
            before.add(copy_op(op, starts))
        body, args = loop.regions[0], tuple(v.anew() for v in self.carried)
        out, env = Builder(), Env()
        for op in body.ops:
            if op is self.branch:
                out.add(self.again(op, env.anew(self.carried), args))
            elif op not in self.work:
                out.add(self.with_own(substitute(op, env)))
        last = out.ops[-1]
        out.ops[-1] = replace(last, operands=(*last.operands, *env.all(self.carried)))
        before.add(replace(loop, operands=(*loop.operands, *starts.all(self.carried)), regions=(out.block((*body.args, *args)),),
                           results=(*loop.results, *(v.anew() for v in self.carried))))
        return before.ops

    def again(self, op: Op, new: tuple[Value, ...], args: tuple[Value, ...]) -> Op:
        """The branch, which gives the carried values for what it has changed, or those that there were."""
        then, other = op.regions
        env = Env({v: then.yielded[k] for v, (k, _) in self.changed.items()})
        ops = [*then.ops[:-1], *(copy_op(o, env) for o in self.work)]
        taken = Block(then.args, (*ops, replace(then.ops[-1], operands=(*then.yielded, *env.all(self.carried)))))
        kept = Block(other.args, (*other.ops[:-1], replace(other.ops[-1], operands=(*other.yielded, *args))))
        return replace(op, results=(*op.results, *new), regions=(taken, kept))

    def with_own(self, op: Op) -> Op:
        """An op with what its regions need of the work that nobody carries."""
        regions = []
        for r in op.regions:
            needed, own = r.reads, []
            for o in reversed(self.work):
                if o.result in needed and o.result not in self.carried:
                    own.append(o)
                    needed |= set(o.operands)
            env = Env()
            copies = [copy_op(o, env) for o in reversed(own)]
            regions.append(Block(r.args, (*copies, *(substitute(o, env) for o in r.ops))) if own else r)
        return replace(op, regions=tuple(regions)) if regions else op


def _follows(loop: Op, branch: Op) -> _Held | None:
    """What of the loop's body follows from values that only this branch changes, if a vote does."""
    body = loop.regions[0]
    kept, place = branch.regions[1].yielded, {a: j for j, a in enumerate(body.args) if j}
    changed = {r: (k, place[kept[k]]) for k, r in enumerate(branch.results)
               if kept[k] in place and body.yielded[place[kept[k]] - 1] is r}
    if not changed or branch.regions[1].ops[:-1]:
        return None
    made = {*body.made, *body.args}
    work: list[Op] = []
    follow, constants = set(changed), {}
    for op in body.ops[body.ops.index(branch) + 1:]:
        if op.kind == "const":
            constants[op.result] = op
        elif (op.kind == "vote_any" or is_row_work(op)) and any(v in follow for v in op.operands) \
                and all(v in follow or v in constants or v not in made for v in op.operands):
            work += [constants.pop(v) for v in op.operands if v in constants]
            work.append(op)
            follow.add(op.result)
    votes = {o.result for o in work if o.kind == "vote_any"}
    if not votes:
        return None
    read = set[Value]()
    for op in body.ops:
        if op not in work:
            read |= set(op.operands)
            for n, r in enumerate(op.regions):
                if not (op.kind == "if" and n == 0 and op.operands[0] in votes):
                    read |= r.reads
    return _Held(branch, changed, work, [o.result for o in work if o.result in read and o.kind != "const"])
