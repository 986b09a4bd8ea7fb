"""What the ops of asynchronous engines mean to one agent: cursors, mbarriers, bulk copies, wgmma, tokens, tiles handed out at run time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FcError
from ..ir.core import Op, Role, Value, walk
from ..ir.named_barriers import is_one_thread
from ..ir.types import i32
from .mbarriers import Blocked
from .memory import WARP, decode, encode

if TYPE_CHECKING:
    from .machine import Simulation
    from .mbarriers import Barriers
    from .memory import SharedMemory
    from .tensorcore import TensorCore


class AsyncOps:
    """Part of `Agent`. Ops that "one thread" of the role carries out are those of its first warp."""

    sim: Simulation
    role: Role
    shared: SharedMemory
    core: TensorCore | None
    env: dict[Value, Any]
    number: int
    warp: int
    rank: int
    block_index: int
    early: bool

    @property
    def barriers(self) -> Barriers:
        return self.sim.barriers[self.rank]

    # ---- control -----------------------------------------------------------------------------------------------------

    def repeat(self, op: Op) -> Iterator[Blocked | None]:
        env, body = self.env, op.regions[0]
        go, *carried = (env[v] for v in op.operands)
        rounds, most = 0, self.sim.patience
        while go:
            rounds += 1
            if rounds > most:
                yield Blocked(op, lambda: False, lambda: f"after {most} rounds, which is more than there are tiles: it would not end")
            env.update(zip(body.args, carried))
            yield from self.block(body)  # type: ignore[attr-defined]
            go, *carried = (env[v] for v in body.yielded)
        env.update(zip(op.results, carried))

    def do_cursor(self, op: Op, args: list[Any]) -> int:
        return 0

    def do_advance(self, op: Op, args: list[Any]) -> int:
        return args[0] + 1

    # ---- mbarriers ---------------------------------------------------------------------------------------------------

    def do_mbar_expect(self, op: Op, args: list[Any]) -> None:
        if self.warp == 0:
            barrier, phase = self.barriers.phase(args[0][0], args[1])
            barrier.arrive(self, op, phase, op["bytes"])  # type: ignore[arg-type]

    def mbar_arrive(self, op: Op, args: list[Any]) -> Iterator[Blocked | None]:
        self.shared.sync_warp(self.number)  # one lane arrives for all: they meet before
        for rank in range(op["cluster"]) if op.get("cluster") else [op.get("block", self.rank)]:
            barrier, phase = self.sim.barriers[rank].phase(args[0][0], args[1] - op.get("lag", 0), *self.part(op))
            self.sim.reach.touches(self, rank, op)  # type: ignore[arg-type]
            barrier.arrive(self, op, phase)  # type: ignore[arg-type]
        yield None

    def part(self, op: Op) -> tuple[int, int]:
        """How many parts have barriers of their own, and which one's is meant."""
        parts = op.get("parts", 1)
        return parts, op.get("part", self.warp * parts // self.role.warps)

    def mbar_wait(self, op: Op, args: list[Any]) -> Iterator[Blocked | None]:
        barrier, round_ = self.barriers.phase(args[0][0], args[1], *self.part(op))
        phase = round_ - op["lag"]
        if not barrier.passes(phase):
            yield Blocked(op, lambda: barrier.passes(phase), lambda: f"for the end of phase {phase}; {barrier.state()}")
        barrier.waited(self, op, phase)  # type: ignore[arg-type]

    # ---- engines -----------------------------------------------------------------------------------------------------

    def tma_load(self, op: Op, args: list[Any]) -> Iterator[Blocked | None]:
        if self.warp == 0:
            self.sim.bulk.start(self, op, args)  # type: ignore[arg-type]
        yield None

    def do_wgmma(self, op: Op, args: list[Any]) -> Any:
        assert self.core is not None
        return self.core.issue(op, args)

    def do_wgmma_fence(self, op: Op, args: list[Any]) -> None:
        if self.core is not None:
            self.core.fence()

    def wgmma_commit(self, op: Op, args: list[Any]) -> Iterator[Blocked | None]:
        if self.core is not None:
            self.core.commit()
        yield None

    def do_pend(self, op: Op, args: list[Any]) -> Any:
        return args[0]

    def do_wgmma_wait(self, op: Op, args: list[Any]) -> None:
        if self.core is not None:
            self.core.release(op, args)

    def do_settle(self, op: Op, args: list[Any]) -> Any:
        assert self.core is not None
        return self.core.settle(op, args)

    def do_proxy_fence(self, op: Op, args: list[Any]) -> None:
        self.shared.proxy_fence(self.number)

    # ---- tokens ------------------------------------------------------------------------------------------------------

    def _turn(self, ahead: int) -> int:
        groups = self.role.warps // 4
        return (self.warp // 4 + ahead) % groups

    def token_take(self, op: Op, args: list[Any]) -> Iterator[Blocked | None]:
        barrier = self.barriers.token(op["id"] + self._turn(0))
        barrier.take(self, op)  # type: ignore[arg-type]
        if self.number not in barrier.passed:
            yield Blocked(op, lambda: self.number in barrier.passed, lambda: f"for the token; {barrier.state()}")
        barrier.passed.discard(self.number)

    def token_give(self, op: Op, args: list[Any]) -> Iterator[Blocked | None]:
        self.barriers.token(op["id"] + self._turn(1)).give(self, op)  # type: ignore[arg-type]
        yield None

    def do_token_start(self, op: Op, args: list[Any]) -> None:
        if self.warp // 4 == self.role.warps // 4 - 1:
            self.barriers.token(op["id"]).give(self, op)  # type: ignore[arg-type]

    # ---- tiles handed out at run time ----------------------------------------------------------------------------------

    def do_grid_wait(self, op: Op, args: list[Any]) -> None:
        self.early = False

    def do_launch_dependents(self, op: Op, args: list[Any]) -> None:
        """The next grid waits for the whole of this one, whenever it begins."""

    def do_block_index(self, op: Op, args: list[Any]) -> np.int32:
        return np.int32(self.block_index)

    def do_block_count(self, op: Op, args: list[Any]) -> np.int32:
        return np.int32(self.sim.block_count)

    def do_claim(self, op: Op, args: list[Any]) -> np.int32:
        if not is_one_thread(self.role):  # one thread of it asks
            reader = next((o for o in walk(self.role.body) if op.result in o.operands and o.kind != "post"), None)
            if reader is not None:
                raise FcError("compile/unsupported", "claim belongs to one thread: no other has the number", loc=reader.loc,
                              got=reader.kind, hint="post what was claimed, and fetch it")
            if self.warp:
                return np.int32(0)
        if self.block_index in self.sim.retired:
            self.sim.report("sim/protocol", "claim after this block's claim_done", op, notes=[self.who])  # type: ignore[attr-defined]
        self.sim.claimed += 1
        return np.int32(self.sim.claimed - 1)

    def do_claim_done(self, op: Op, args: list[Any]) -> None:
        if self.warp == 0:
            if self.block_index in self.sim.retired:
                self.sim.report("sim/protocol", "claim_done twice in one block", op, notes=[self.who])  # type: ignore[attr-defined]
            self.sim.retired.add(self.block_index)

    def do_post(self, op: Op, args: list[Any]) -> None:
        if self.warp == 0:
            *values, view = args
            raw = encode(np.array(values), i32, self.shared.grain).ravel()  # type: ignore[attr-defined]
            self.put(op, view, np.arange(len(raw)), raw, np.zeros(1, np.int32))  # type: ignore[attr-defined]

    def do_fetch(self, op: Op, args: list[Any]) -> Any:
        raw = self.fetch(op, args[0], np.arange(4 // self.shared.grain * len(op.results)), WARP)  # type: ignore[attr-defined]
        return tuple(decode(raw.reshape(len(op.results), -1), i32))

    def do_row_part(self, op: Op, args: list[Any]) -> np.int32:
        return np.int32(self.warp * op["parts"] // self.role.warps)

    #: ops at which the agent may stop
    PAUSES: dict[str, Callable[..., Iterator[Blocked | None]]] = {
        "mbar_arrive": mbar_arrive, "mbar_wait": mbar_wait, "tma_load": tma_load, "wgmma_commit": wgmma_commit, "token_take": token_take,
        "token_give": token_give}
