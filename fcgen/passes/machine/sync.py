"""sync: barriers and waits, put where the hazards are and nowhere else.

In: allocated machine IR without any synchronisation. Out: the same with `barrier`, `syncwarp` and `wait_group n` in front of the ops that
need them. The pass walks the program once in order with a state of what has happened since the last barrier:

  edge                                               carried by
  st_shared, post -> read or write by another warp   barrier
  st_shared -> read or write by the same warp        syncwarp
  read -> write of the same bytes                    barrier, or syncwarp within a warp
  cp_async -> anyone                                 wait_group n, n = groups committed since, then barrier
  st_shared, cp_async -> wgmma                       (wait_group,) proxy_fence (wgmma reads through the async proxy), then barrier
  wgmma -> st_shared                                 its settle, then barrier
  st_shared, stmatrix -> tma_store                   proxy_fence right behind the store, then barrier
  tma_store -> st_shared, stmatrix                   bulk_wait n (read), n = groups of bulk stores since, then barrier: in loops one that
                                                     is there anyway, if there is one
  tma_store -> tma_store of the same tensor          bulk_wait 0, then barrier: bulk stores of one program have no order of their own
  ld_shared, ldmatrix -> tma_load into the slot      proxy_fence in front of the arrival that frees it: an arrival does not wait for loads;
                                                     arrivals that stand close share one (`gather`)
  tma_store from a slot -> the arrival that frees it bulk_wait n (read), n = groups of bulk stores since

Where a tile is staged in parts, each by warps of its own, a barrier is only that of the part. What two roles share is a channel: its
barriers were put there by `roles`.

Loops are walked until the state at their head no longer changes, the slots of rings counted relative to the current tile; so a hazard
between iterations is found like any other. Buffers that share bytes meet by their addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ...errors import FcError
from ...ir.core import Block, Kernel, Op, Role, Value, definitions, walk
from ...ir.depends import depending
from ...ir.known import const_of
from ...ir.lifetimes import WRITES
from ...ir.memory_map import shared_bytes
from ...ir.named_barriers import is_one_thread
from ...ir.rings import beginnings, outlived
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Buffer, Cursor, Frag
from ..facts.stores import lie_apart, stored_apart
from . import gather
from .accesses import READS, WHOLE, Touch, area_of, conflict

#: ops that order what was before them, and touch nothing
ORDERS = {"settle", "wgmma_wait", "barrier", "mbar_arrive", "commit_group", "proxy_fence"}


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    offsets = dict(zip(kernel.buffers, kernel.meta.get("smem_offsets", ())))
    roles = []
    used = [{v for o in walk(r.body) for v in o.operands if v in offsets} for r in kernel.roles]
    shared = {v for n, vs in enumerate(used) for v in vs if any(v in other for other in used[:n] + used[n + 1:])}
    shared |= {o.operands[0] for r in kernel.roles for o in walk(r.body) if o.kind == "slot" and isinstance(o.operands[1].type, Cursor)}
    freed, reader = _freed(kernel), outlived(kernel)
    over = {v for v in reader if any(shared_bytes(kernel, v, other) for other in kernel.buffers)}
    for role in kernel.roles:
        others = shared - {v for v in over if reader[v] is role}  # what lies over a ring follows the role's own reads
        s = _Sync(offsets, role, others, freed, len(kernel.roles) > 1 and is_one_thread(role))
        ops, state = s.ops(role.body.ops, _State(frozenset(), frozenset(), (), frozenset()))
        if state.bulk:  # what they write is written by the end of the kernel, whether or not its threads are there
            ops.append(Op("bulk_wait", attrs={"n": 0, "read": True}, loc=role.body.ops[-1].loc))
        if any(state.groups) or state.open:
            ops.append(Op("wait_group", attrs={"n": 0}, loc=role.body.ops[-1].loc))
        roles.append(replace(role, body=Block(role.body.args, tuple(ops))))
    return gather.run(replace(kernel, roles=tuple(roles))).with_meta(stage="synced")


@dataclass(frozen=True)
class _State:
    """seen: accesses since the last barrier. lane: those since the last syncwarp or barrier. groups: copies committed and not waited for,
    oldest first. open: copies not yet committed. bulk: what groups of bulk stores may still read, oldest first. sent: bulk stores
    of this program that may not be complete, and whether they are of this iteration of the loops around. flying: what products in flight
    may still read, by group, oldest first: a barrier before their `settle` orders nothing. Since the last proxy fence: read: rings that
    plain loads have read from; fresh: whether plain stores have written."""

    seen: frozenset[Touch]
    lane: frozenset[Touch]
    groups: tuple[frozenset[Touch], ...]
    open: frozenset[Touch]
    bulk: tuple[frozenset[Touch], ...] = ()
    sent: frozenset[tuple[Op, bool]] = frozenset()
    flying: tuple[frozenset[Touch], ...] = ()
    read: frozenset[Value] = frozenset()
    fresh: bool = False

    def join(self, other: _State) -> _State:
        """Either may be the past. Groups are counted from the newest, which is how `wait_group` counts."""
        def both(mine: tuple[frozenset[Touch], ...], others: tuple[frozenset[Touch], ...]) -> tuple[frozenset[Touch], ...]:
            n = max(len(mine), len(others))
            pad = lambda g: (frozenset(),) * (n - len(g)) + g
            return tuple(a | b for a, b in zip(pad(mine), pad(others)))

        return _State(self.seen | other.seen, self.lane | other.lane, both(self.groups, other.groups), self.open | other.open,
                      both(self.bulk, other.bulk), self.sent | other.sent, both(self.flying, other.flying),
                      self.read | other.read, self.fresh or other.fresh).trim()

    def fenced(self, out: list[Op], op: Op) -> _State:
        """With a proxy fence in front of an op, or behind it."""
        out.append(Op("proxy_fence", loc=op.loc))
        return replace(self, read=frozenset(), fresh=False)

    def trim(self) -> _State:
        """Without empty groups at the old end: nobody waits for those."""
        old = lambda groups: tuple(g for n, g in enumerate(groups) if any(groups[:n + 1]))
        return replace(self, groups=old(self.groups), flying=old(self.flying))

    def map(self, fn: Callable[[Touch], Touch]) -> _State:
        each = lambda accesses: frozenset(map(fn, accesses))
        return replace(self, seen=each(self.seen), lane=each(self.lane), groups=tuple(map(each, self.groups)), open=each(self.open),
                       bulk=tuple(map(each, self.bulk)), flying=tuple(map(each, self.flying)))


class _Sync:
    def __init__(self, offsets: dict[Value, int], role: Role, shared: set[Value], freed: dict[Value, set[Value]], lone: bool):
        """lone: the role is one thread."""
        self.offsets, self.warps, self.defs, self.shared, self.freed = offsets, role.warps, definitions(role.body), shared, freed
        self.lone = lone
        self.loops = {o.regions[0].args[0]: o for o in walk(role.body) if o.kind == "for"}
        #: op -> writes that come later, for which bulk stores are waited for in front of its barrier
        self.early: dict[Op, list[Touch]] = {}
        ops = tuple(walk(role.body))
        #: staging buffer -> parts, each of warps that write and read rows or columns of their own
        self.parts: dict[Value, int] = {self.place(o.operands[-1])[0]: o["parts"] for o in ops if o.kind == "tma_store"}
        #: rings that matrix instructions read: a barrier behind a store there, whatever it is for, is the last one that they need
        self.products = {self.place(v)[0] for o in ops if o.kind == "wgmma" for v in o.operands if isinstance(v.type, Buffer)}
        #: position in a channel -> the one that it begins with, and the rings whose slots are found with that
        self.begins = beginnings(role.body)
        self.slots: dict[Value | None, set[Value]] = {}
        for o in ops:
            if o.kind == "slot":
                self.slots.setdefault(self.begins.get(o.operands[1]), set()).add(o.operands[0])
        #: what warps may have of their own
        self.per_warp = {v for o in ops if o.kind in ("vote_any", "row_part") for v in depending(role.body, o.result)}

    # ---- walking ---------------------------------------------------------------------------------------------------

    def ops(self, ops: tuple[Op, ...], state: _State) -> tuple[list[Op], _State]:
        out: list[Op] = []
        for n, op in enumerate(ops):
            state = self.read(self.early.get(op, []), state, out, op)
            if op.kind in ("for", "while"):
                state = self.loop(op, state, out)
            elif op.kind == "if":
                state = self.branch(op, state, out)
            elif op.kind in ORDERS:
                state = self.ordered(op, state, out)
                out.append(op)
            else:
                ahead = next((o for o in ops[n:] if o.kind == "wgmma"), None) if op.kind == "wgmma_fence" else None
                state = self.access(op, state, out, ahead or op)
        return out, state

    def ordered(self, op: Op, state: _State, out: list[Op]) -> _State:
        """What an op that other passes have put there orders."""
        if op.kind in ("settle", "wgmma_wait"):
            done = len(state.flying) - op["groups"]
            read = frozenset(a for g in state.flying[:max(done, 0)] for a in g)
            return replace(state, seen=state.seen | read, lane=state.lane | read, flying=state.flying[max(done, 0):])
        if op.kind == "barrier":
            return replace(state, seen=frozenset(), lane=frozenset())
        if op.kind == "proxy_fence":
            return replace(state, read=frozenset(), fresh=False)
        if op.kind == "commit_group":
            return replace(state, groups=(*state.groups, state.open), open=frozenset()).trim()
        mine = lambda a: a.ring in self.slots.get(self.begins[op.operands[1]], ()) and a.area[-1] == op.get("part")
        n = next((n for n, group in enumerate(reversed(state.bulk)) if any(map(mine, group))), None)
        if n is not None:
            out.append(Op("bulk_wait", attrs={"n": n, "read": True}, loc=op.loc))
            state = replace(state, bulk=state.bulk[len(state.bulk) - n:])
        if state.read & self.freed.get(op.operands[0], set()):
            return state.fenced(out, op)
        return state

    def access(self, op: Op, state: _State, out: list[Op], by: Op) -> _State:
        """An op that may touch shared memory, with what must stand in front of it, and of what touches it (`by`)."""
        state, accesses = self.before(self.accesses(by), state, out, op), frozenset(self.accesses(op))
        if op.kind == "acquire":
            return state
        out.append(op)
        if op.kind == "tma_store":
            return replace(state, bulk=(*state.bulk, accesses), sent=state.sent | {(op, True)})
        if op.kind == "wgmma":
            state = replace(state, flying=(*state.flying, accesses)).trim()
        copies = frozenset(a for a in accesses if a.copy)
        plain = accesses - copies
        read = {self.place(op.operands[0])[0]} if op.kind in READS - {"acquire"} else set()
        state = replace(state, seen=state.seen | plain, lane=state.lane | plain, open=state.open | copies, read=state.read | read,
                        fresh=state.fresh or any(a.write for a in plain))
        if any(a.write and a.ring in self.parts for a in plain):
            state = state.fenced(out, op)
        return state

    def before(self, accesses: list[Touch], state: _State, out: list[Op], op: Op) -> _State:
        """Emit what must stand between the past and these accesses."""
        state = self.bulk(accesses, state, out, op)
        wait = self.newest(state.groups, accesses)
        if any(conflict(g, a, self.offsets, self.warps) for g in state.open for a in accesses if not (g.copy and a.copy)):
            raise FcError("ir/verify", "a tile is used while its copy is not yet committed to a group", loc=op.loc)
        if wait is not None:
            out.append(Op("wait_group", attrs={"n": wait}, loc=op.loc))
            done = len(state.groups) - wait
            landed = frozenset(a.landed() for g in state.groups[:done] for a in g)
            state = replace(state, seen=state.seen | landed, groups=state.groups[done:])
        if wait is None and (parts := self.of_parts(state.seen, accesses)) > 1:
            out.append(Op("barrier", attrs={"parts": parts}, loc=op.loc))
            others = lambda past: frozenset(a for a in past if self.parts.get(a.ring) != parts)
            return replace(state, seen=others(state.seen), lane=others(state.lane))
        if wait is not None or self.meet(state.seen, accesses, "block"):
            if (state.fresh or wait is not None) and (op.kind == "wgmma_fence" or self.for_products(state)):
                state = state.fenced(out, op)
            out.append(Op("barrier", loc=op.loc))
            return replace(state, seen=frozenset(), lane=frozenset())
        if self.meet(state.lane, accesses, "warp"):
            out.append(Op("syncwarp", loc=op.loc))
            return replace(state, lane=frozenset())
        return state

    def bulk(self, accesses: list[Touch], state: _State, out: list[Op], op: Op) -> _State:
        """Wait for bulk stores that still read what is written here, or that still write where another one begins to."""
        if op.kind == "tma_store" and any(self.may_meet(s, op) for s in state.sent):
            out.append(Op("bulk_wait", attrs={"n": 0, "read": False}, loc=op.loc))
            if not self.lone:
                out.append(Op("barrier", loc=op.loc))
            return replace(state, seen=frozenset(), lane=frozenset(), bulk=(), sent=frozenset())
        return self.read(accesses, state, out, op)

    def may_meet(self, sent: tuple[Op, bool], op: Op) -> bool:
        """Whether a bulk store that may be on its way writes where another one does, but for two that add."""
        other, here = sent
        return (other.operands[0] is op.operands[0] and not "add" == other.get("reduce") == op.get("reduce")
                and not (here and lie_apart(other, op, self.loops, self.defs)))

    def read(self, accesses: list[Touch], state: _State, out: list[Op], op: Op) -> _State:
        """Wait until bulk stores have read what is written here."""
        n = self.newest(state.bulk, accesses)
        if n is None:
            return state
        out.append(Op("bulk_wait", attrs={"n": n, "read": True}, loc=op.loc))
        done = len(state.bulk) - n
        read = frozenset(a for g in state.bulk[:done] for a in g)
        return replace(state, seen=state.seen | read, lane=state.lane | read, bulk=state.bulk[done:])

    def newest(self, groups: tuple[frozenset[Touch], ...], accesses: list[Touch]) -> int | None:
        """How many groups came after the newest one that matters; older ones are done when it is."""
        meets = lambda group: any(conflict(g, a, self.offsets, self.warps) for g in group for a in accesses)
        return next((n for n, group in enumerate(reversed(groups)) if meets(group)), None)

    def for_products(self, state: _State) -> bool:
        """Whether matrix instructions may read what has been stored."""
        return any(a.write and a.ring in self.products for a in state.seen)

    def of_parts(self, past: frozenset[Touch], accesses: list[Touch]) -> int:
        """The parts whose own barriers are enough: all that meets is in staging buffers of as many parts. 1 if the role's is
        needed, or none."""
        meeting = [(s.ring, a.ring) for s in past for a in accesses if conflict(s, a, self.offsets, self.warps) == "block"]
        found = {self.parts.get(s, 1) if s is a else 1 for s, a in meeting}
        return found.pop() if len(found) == 1 else 1

    def meet(self, past: frozenset[Touch], accesses: list[Touch], kind: str) -> bool:
        return any(conflict(s, a, self.offsets, self.warps) == kind for s in past for a in accesses)

    def loop(self, op: Op, state: _State, out: list[Op]) -> _State:
        nested = {v for o in walk(op.regions[0]) if o.kind in ("for", "while") for r in o.regions for v in _rings(r)}
        own = _rings(op.regions[0]) - nested

        def next_iteration(a: Touch) -> Touch:
            return a.forgotten() if a.ring in nested else a.shifted() if a.ring in own else a

        if not any(o.kind in WRITES or o.kind == "acquire" for o in walk(op.regions[0])):
            accesses = [a for o in walk(op.regions[0]) for a in self.accesses(o)]
            state = self.before(accesses, state, out, op)
        body, back = self.settled(op, state, next_iteration)
        if state.seen and _barriers(body):  # one in front of the loop may spare one in every iteration
            cleared = replace(state, seen=frozenset(), lane=frozenset())
            fewer = self.settled(op, cleared, next_iteration)
            if _barriers(fewer[0]) < _barriers(body):
                if self.for_products(state):
                    state.fenced(out, op)
                out.append(Op("barrier", loc=op.loc))
                state, (body, back) = cleared, fewer
        if op.kind == "for":
            body, back = self.waiting_early(op, state, next_iteration, body, back)
        if _common_barrier(body):
            if op.kind == "for" and not self.per_warp.isdisjoint(op.operands[:2]):
                raise FcError("compile/unsupported", "warpgroups walk this loop each over its own tiles, and it needs a barrier of all",
                              loc=op.loc, hint="Schedule(own_rows=False), or what goes through shared memory stays in registers")
            if any(o.kind == "token_take" for o in body):
                raise FcError("compile/unsupported", "warpgroups take turns in this loop, and it needs a barrier of them all", loc=op.loc,
                              hint="Schedule(tokens=False), or what goes through shared memory stays in registers")
        out.append(replace(op, regions=(Block(op.regions[0].args, tuple(body)),)))
        return state.join(back)

    def waiting_early(self, op: Op, state: _State, next_iteration: Callable[[Touch], Touch], body: list[Op],
                      back: _State) -> tuple[list[Op], _State]:
        """The same, where waits for bulk stores that have a barrier of their own stand in front of one that is there anyway: the last one
        before the write that they are for, in its iteration or the one before."""
        barriers = [n for n, o in enumerate(body) if o.kind == "barrier"]
        for n in barriers:
            if body[n - 1].kind != "bulk_wait" or not body[n - 1]["read"]:
                continue
            writes = self.accesses(body[n + 1])
            places = [(m, writes) for m in reversed(barriers) if m < n][:1]
            places += [(m, [a.shifted(1) for a in writes]) for m in barriers[-1:] if m > n]
            for m, accesses in places:
                self.early[body[m + 1]] = accesses
                fewer = self.settled(op, state, next_iteration)
                if sum(o.kind == "barrier" for o in fewer[0]) < len(barriers):
                    return self.waiting_early(op, state, next_iteration, *fewer)
                del self.early[body[m + 1]]
        return body, back

    def settled(self, op: Op, state: _State, next_iteration: Callable[[Touch], Touch]) -> tuple[list[Op], _State]:
        """The body for any iteration, where `state` is in front of the first, and the state behind one as the next sees it."""
        entry, inside = state, set(walk(op.regions[0]))
        for _ in range(8):
            body, after = self.ops(op.regions[0].ops, entry)
            back = after.map(next_iteration)
            if op.kind == "while":  # the next tile of the grid: programs write to places of their own
                back = replace(back, sent=frozenset())
            apart = stored_apart(op, self.defs) if any(not o.get("reduce") for o, _ in back.sent) else set()
            joined = state.join(replace(back, sent=frozenset((o, here and o not in inside) for o, here in back.sent
                                                             if o.operands[0] not in apart)))
            if joined == entry:
                return body, back
            entry = joined
        raise AssertionError("the state of a loop did not settle")

    def branch(self, op: Op, state: _State, out: list[Op]) -> _State:
        accesses = [a for r in op.regions for o in walk(r) for a in self.accesses(o)]
        state = self.before(accesses, state, out, op)
        regions, ends = [], []
        for r in op.regions:
            ops, end = self.ops(r.ops, state)
            if op.operands[0] in self.per_warp and _common_barrier(ops):
                raise FcError("compile/unsupported", "a branch that warps take on their own needs a barrier of the whole block",
                              loc=op.loc, hint="Schedule(skip_ones=False, own_rows=False)")
            regions.append(Block(r.args, tuple(ops)))
            ends.append(end)
        out.append(replace(op, regions=tuple(regions)))
        return ends[0].join(ends[1])

    # ---- accesses --------------------------------------------------------------------------------------------------

    def accesses(self, op: Op) -> list[Touch]:
        if op.kind == "acquire":
            return [Touch(*self.place(v), False, WHOLE) for v in op.operands]
        if op.kind == "cp_async":
            return [Touch(*self.place(op.operands[-1]), True, WHOLE, True)]
        if op.kind == "tma_store":
            return [Touch(*self.place(op.operands[-1]), False, ("parts", op["parts"], int(op.get("across", False)), op.get("part")))]
        if op.kind == "wgmma":
            read = [v for v in op.operands if isinstance(v.type, Buffer)]
            return [Touch(ring, rel, False, WHOLE) for ring, rel in map(self.place, read) if ring not in self.shared]
        if op.kind in ("post", "fetch"):
            place = self.place(op.operands[-1])
            return [] if place[0] in self.shared else [Touch(*place, op.kind == "post", WHOLE)]
        if op.kind not in READS | WRITES:
            return []
        write = op.kind in WRITES
        frag = op.operands[0] if write else op.result
        buffer, row, col = op.operands[1:] if write else op.operands
        assert isinstance(frag.type, Frag)
        if self.place(buffer)[0] in self.shared:
            return []
        area = area_of(op, frag.type, buffer.type, const_of(row, self.defs), const_of(col, self.defs))
        return [Touch(*self.place(buffer), write, area)]

    def place(self, view: Value) -> tuple[Value, int | None]:
        """(ring, slot relative to the current tile) of a view; of a channel's, None."""
        op = self.defs.get(view)
        if op is None:
            return view, 0
        assert op.kind == "slot", f"a view made by {op.kind}"
        ring, ordinal = op.operands
        return ring, None if isinstance(ordinal.type, Cursor) else op["ahead"] + (const_of(ordinal, self.defs) or 0)


def _freed(kernel: Kernel) -> dict[Value, set[Value]]:
    """Barrier that counts readers -> the rings whose slots bulk copies fill again when it is complete."""
    out: dict[Value, set[Value]] = {}
    for role in kernel.roles:
        defs = definitions(role.body)
        filled = {(op.operands[-1], op.operands[-2], defs[op.operands[-3]].operands[0] if op.operands[-3] in defs else op.operands[-3])
                  for op in walk(role.body) if op.kind == "tma_load"}
        for op in walk(role.body):
            if op.kind == "mbar_wait":
                found = {ring for cursor, full, ring in filled if cursor is op.operands[1] and full is not op.operands[0]}
                out[op.operands[0]] = out.get(op.operands[0], set()) | found
    return out


def _common_barrier(ops: Iterable[Op]) -> bool:
    """Whether all warps of the role meet in there."""
    return any((o.kind == "barrier" and o.get("parts", 1) == 1) or any(_common_barrier(r.ops) for r in o.regions) for o in ops)


def _barriers(ops: Iterable[Op]) -> int:
    """How many barriers of the whole role an iteration has, in its own ops."""
    return sum(o.kind == "barrier" and o.get("parts", 1) == 1 for o in ops)


def _rings(block: Block) -> set[Value]:
    return {o.operands[0] for o in walk(block) if o.kind == "slot"}
