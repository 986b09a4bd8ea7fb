"""One warp: what each op does to its 32 x n registers.

A fragment is an array [32, registers]; an opaque fragment is this warp's block of the tile, since nobody may know more. Scalars are
the same in all lanes. Everything that touches memory goes through index maps made from the op's layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.core import Block, Op, Role, Value
from ..ir.elementwise import REDUCTIONS, convert, evaluate
from ..ir.layout import LANES, OpaqueLayout, warp_grid
from ..ir.types import DTYPES, Buffer, Frag
from . import registers
from .async_agents import AsyncOps
from .engines import CopyEngine
from .mbarriers import Blocked
from .memory import WARP, decode, encode
from .product import product
from .steps import steps
from .stores import StoreOps
from .tensor_ops import LANE, TensorOps
from .turns import TurnOps

if TYPE_CHECKING:
    from .machine import Simulation
    from .tensorcore import TensorCore


class Agent(AsyncOps, StoreOps, TurnOps, TensorOps):
    """number: among all agents of the cluster; rank: the block's in its cluster; warp: within its role. program: the number of the block's
    program among all that have run. A role that works on no fragments is one thread, and one agent."""

    rank, block_index, program = 0, 0, 0

    def __init__(self, sim: Simulation, role: Role, number: int, warp: int, env: dict[Value, Any], alone: bool = False):
        self.sim, self.role, self.number, self.warp, self.env = sim, role, number, warp, env
        self.shared = sim.shared
        self.alone = alone
        self.at = role.body.ops[0]  # the op that runs
        self.copies = CopyEngine(self)
        self.core: TensorCore | None = None
        self.turns: dict[tuple[str, tuple[int, ...], int], int] = {}
        self.early = sim.early_launch  # has not waited for the kernels in front

    PAUSES = {**AsyncOps.PAUSES, **StoreOps.PAUSES, **TurnOps.PAUSES}

    @cached_property
    def who(self) -> str:
        return f"{self.where}role {self.role.name}" if self.alone else f"{self.where}role {self.role.name}, warp {self.warp}"

    @cached_property
    def where(self) -> str:
        return f"block {self.rank} of its cluster, " if len(self.sim.barriers) > 1 else ""

    def run(self) -> Iterator[Blocked | None]:
        """Runs to the end; yields what it waits for, to be resumed when that has come, or None where others may well go first."""
        yield from self.block(self.role.body)

    def finish(self) -> None:
        self.copies.check_empty()
        if self.core is not None:
            self.core.check_empty()
        if self.stores is not None:
            self.stores.check_empty()
        self.check_turns()

    def block(self, block: Block) -> Iterator[Blocked | None]:
        sim, env, core = self.sim, self.env, self.core
        ran = sim.coverage.ran
        code = sim.code.get(block)
        if code is None:
            code = sim.code[block] = steps(block, type(self), sim.contracted)
        for op, run, flow, touched, reaches in code:
            sim.steps += 1
            ran.add(op)
            self.at = op
            if reaches and self.early:
                self.early = False
                sim.report("sim/launch", f"{op.kind} reaches a tensor while the kernel in front may still run", op, notes=[self.who],
                           key=("launch", op, self.role.name), hint="grid_wait in each role, before it touches tensors")
            if run is not None:
                run(self, env)
                if core is not None and touched is not None:
                    core.touch(op, *touched, env)
            elif flow is not None:
                yield from flow(self, op)

    def stop(self, op: Op) -> Iterator[Blocked | None]:
        yield Blocked(op)

    def branch(self, op: Op) -> Iterator[Blocked | None]:
        way = bool(self.env[op.operands[0]])
        self.sim.coverage.ways.add((op, way))
        region = op.regions[0 if way else 1]
        yield from self.block(region)
        self.env.update(zip(op.results, [self.env[v] for v in region.yielded]))

    def loop(self, op: Op) -> Iterator[Blocked | None]:
        env, body = self.env, op.regions[0]
        steps = range(int(env[op.operands[0]]), int(env[op.operands[1]]))
        carried = [env[v] for v in op.operands[2:]]
        for i in reversed(steps) if op.get("descending") else steps:
            if self.sim.steps > self.sim.last:
                yield None
            env.update(zip(body.args, (np.int32(i), *carried)))
            yield from self.block(body)
            carried = [env[v] for v in body.yielded]
        env.update(zip(op.results, carried))

    FLOWS: dict[str, Any] = {"barrier": stop, "cluster_sync": stop, "for": loop, "while": AsyncOps.repeat, "if": branch}

    # ---- values ----------------------------------------------------------------------------------------------------

    def do_size(self, op: Op, args: list[Any]) -> Any:
        return np.int32(self.sim.sizes[op["dim"]])

    def do_full(self, op: Op, args: list[Any]) -> Any:
        t = op.result.type
        return np.full(self.opaque_shape(t) if isinstance(t.layout, OpaqueLayout) else (LANES, t.layout.regs), args[0], t.dtype.np_dtype)

    def do_iota(self, op: Op, args: list[Any]) -> Any:
        return self.coords(op.result.type)[..., 0].astype(np.int32)

    def do_broadcast(self, op: Op, args: list[Any]) -> Any:
        key = ("broadcast", id(op))
        if key not in self.sim.maps:
            (new,) = set(range(len(op.result.type.shape))) - set(op["axes"])
            self.sim.maps[key] = op.result.type.layout.drop_map(new)
        return args[0].take(self.sim.maps[key], 1)

    def do_transpose(self, op: Op, args: list[Any]) -> Any:
        return args[0]

    def do_select(self, op: Op, args: list[Any]) -> Any:
        return np.where(*args).astype(op.result.type.dtype.np_dtype, copy=False)

    def do_cast(self, op: Op, args: list[Any]) -> Any:
        return convert(np.asarray(args[0]), DTYPES[op["to"]])

    def do_reduce(self, op: Op, args: list[Any]) -> Any:
        t = op.operands[0].type
        table = registers.groups(t.layout, op["axis"])
        wide = np.asarray(args[0], t.dtype.computed.np_dtype)  # of narrow types: folded in what they are computed in, rounded once
        return convert(REDUCTIONS[op["fn"]][0](wide.take(table, 1), axis=2), t.dtype)

    def do_combine(self, op: Op, args: list[Any]) -> Any:
        x, t = args[0], op.operands[0].type
        for step in op["lanes"]:
            x = evaluate(REDUCTIONS[t.partial][1], t.dtype, x, x[LANE ^ step])
        return x

    def do_fold(self, op: Op, args: list[Any]) -> Any:
        t, fn = op.operands[0].type, REDUCTIONS[op["fn"]]
        x = convert(fn[0](args[0], axis=1), t.dtype)
        for step in t.layout.reduces_over(0)[0]:
            x = evaluate(fn[1], t.dtype, x, x[LANE ^ step])
        return x[0]

    def do_cumsum(self, op: Op, args: list[Any]) -> Any:
        t = op.operands[0].type
        rows, lanes = registers.runs(t.layout, op["axis"])
        out = np.array(args[0])
        out[:, rows] = np.cumsum(args[0][:, rows], axis=2, dtype=t.dtype.np_dtype)
        upto = out[:, rows[:, -1]]
        digit = LANE // lanes.stride % lanes.size
        step = 1
        while step < lanes.size:  # shfl.up: a lane of the first ones keeps what it has
            upto = np.where((digit >= step)[:, None], evaluate("add", t.dtype, upto, upto[np.maximum(LANE - step * lanes.stride, 0)]), upto)
            step *= 2
        before = np.where((digit > 0)[:, None], upto[np.maximum(LANE - lanes.stride, 0)], np.zeros((), upto.dtype))
        out[:, rows] = evaluate("add", t.dtype, out[:, rows], before[:, :, None])
        return out

    do_apart = do_combine

    def do_quad_transpose(self, op: Op, args: list[Any]) -> Any:
        lane, reg = registers.exchange(op.operands[0].type.layout, op.result.type.layout, self.role.warps, self.warp)
        return args[0][lane, reg]

    def inside(self, op: Op, what: str, start: int, most: int) -> int:
        """Where a part of a tile begins; reported where that is outside, and the nearest place that is not."""
        if not 0 <= start <= most:
            self.sim.report("sim/bounds", f"{what} begins outside of its tile", op, expected=f"0 to {most}", got=start)
        return min(max(start, 0), most)

    def do_slice(self, op: Op, args: list[Any]) -> Any:
        src, out = op.operands[0].type, op.result.type
        start = self.inside(op, "a slice", int(args[1]), src.shape[op["axis"]] - out.shape[op["axis"]])
        return args[0][:, registers.slice_registers(src.layout, out.layout, op["axis"], start, self.role.warps, self.warp)]

    def do_vote_any(self, op: Op, args: list[Any]) -> Any:
        return np.bool_(np.any(args[0]))

    # ---- matrix products -------------------------------------------------------------------------------------------

    def do_mma(self, op: Op, args: list[Any]) -> Any:
        instr = self.sim.target.instrs[op["instr"]]
        ta, tb, tc = (v.type.layout for v in op.operands[:3])
        warps, w = self.role.warps, self.warp
        la, ra, _ = registers.operand_map(ta, instr.a, warps, w)
        lb, rb, _ = registers.operand_map(tb, instr.b, warps, w)
        lc, rc, _ = registers.operand_map(tc, instr.c, warps, w)
        most = op.operands[2].type.shape[1] - op.operands[1].type.shape[1]
        first = self.inside(op, "a part of an accumulator", int(args[3]), most) // warp_grid(tc)[1] if len(args) == 4 else 0  # of its own
        cols = slice(first, first + lb.shape[1])
        lc, rc = lc[:, cols], rc[:, cols]
        out = args[2].copy()
        wide = np.float32 if out.dtype.kind == "f" else np.float64  # integers of 8 bits: exact
        a, b = np.asarray(args[0], wide)[la, ra], np.asarray(args[1], wide)[lb, rb]
        out[lc, rc] += (a @ b).astype(out.dtype)
        return out

    def do_wmma_mma(self, op: Op, args: list[Any]) -> Any:
        return args[2] + product(np.asarray(args[0], np.float32), np.asarray(args[1], np.float32))

    def opaque_shape(self, t: Frag) -> tuple[int, int]:
        assert isinstance(t.layout, OpaqueLayout)
        down, across = t.layout.parts
        return t.shape[0] // down, t.shape[1] // across

    # ---- shared memory ---------------------------------------------------------------------------------------------

    def do_slot(self, op: Op, args: list[Any]) -> Any:
        ring, base = args[0]
        t = op.operands[0].type
        self.sim.coverage.passed(op.operands[0], int(args[1]) + 1)
        return ring, base + (int(args[1]) + op["ahead"]) % t.slots * t.slot_bytes

    def units(self, op: Op, t: Frag, buffer: Buffer, row: int, col: int) -> np.ndarray:
        """The units of each register's element from the slot's start: [32, regs, units of an element]."""
        key = ("hw", id(op), self.warp, row, col)
        if key not in self.sim.maps:
            if isinstance(t.layout, OpaqueLayout):
                c = self.block_coords(t)
            else:
                c = self.coords(t)
            if len(t.shape) == 1:
                i, j = (c[..., 0], c[..., 0] * 0) if op.get("along", 1) == 0 else (c[..., 0] * 0, c[..., 0])
            else:
                i, j = (c[..., 1], c[..., 0]) if op.get("transposed") else (c[..., 0], c[..., 1])
            i, j = i + row, j + col
            rows, cols = buffer.shape if len(buffer.shape) == 2 else (1, buffer.shape[0])
            if i.min() < 0 or j.min() < 0 or i.max() >= rows or j.max() >= cols:
                self.sim.report(
                    "sim/bounds", f"{op.kind} outside its tile", op, expected=f"{rows} x {cols}", got=f"row {i.max()}, column {j.max()}"
                )
                i, j = np.clip(i, 0, rows - 1), np.clip(j, 0, cols - 1)
            size = buffer.dtype.bytes
            address = np.asarray(buffer.layout.address(buffer.shape, size, i, j))
            if isinstance(t.layout, OpaqueLayout):
                stride = buffer.layout.row_bytes(size)
                if (address[::16, ::16] % 32).any() or stride % 16:  # CUDA C++ guide, "Warp matrix functions": ptr and ldm
                    self.sim.report("sim/bounds", f"{op.kind}: a 16x16 block does not start on 32 bytes, or its rows not on 16", op,
                                    got=f"{buffer.layout} at row {row}, column {col}", key=("wmma", id(op)))
            self.sim.maps[key] = self.shared.of(address, size)
        return self.sim.maps[key]

    def block_coords(self, t: Frag) -> np.ndarray:
        """Tile coordinates of this warp's block of an opaque fragment."""
        layout = t.layout
        assert isinstance(layout, OpaqueLayout)
        rows, cols = self.opaque_shape(t)
        down, across = layout.part_of(self.warp)
        return np.moveaxis(np.mgrid[:rows, :cols], 0, -1) + np.array([down * rows, across * cols])

    def fetch(self, op: Op, view: Any, at: np.ndarray, lanes: np.ndarray | int) -> np.ndarray:
        """Raw units at offsets from a view, recorded as reads."""
        ring, base = view
        where = at + base // self.shared.grain
        by = lanes if isinstance(lanes, int) else np.broadcast_to(lanes, where.shape).ravel()
        bad = self.shared.read(self.number, where.ravel(), by, op)
        if bad is not None:
            self.sim.conflict(bad, self, op, ring, self.sim.offsets[ring])
        return self.shared.units[where]

    def do_ld_shared(self, op: Op, args: list[Any]) -> Any:
        t = op.result.type
        at = self.units(op, t, op.operands[0].type, int(args[1]), int(args[2]))
        return decode(self.fetch(op, args[0], at, LANE[:, None, None]), t.dtype)

    def do_wmma_load(self, op: Op, args: list[Any]) -> Any:
        t = op.result.type
        at = self.units(op, t, op.operands[0].type, int(args[1]), int(args[2]))
        return decode(self.fetch(op, args[0], at, WARP), t.dtype)

    def put(self, op: Op, view: Any, at: np.ndarray, data: np.ndarray, lanes: np.ndarray) -> None:
        ring, base = view
        where = at + base // self.shared.grain
        bad = self.shared.write(self.number, where.ravel(), np.broadcast_to(lanes, where.shape).ravel(), op)
        if bad is not None:
            self.sim.conflict(bad, self, op, ring, self.sim.offsets[ring])
        self.shared.units[where] = data

    def do_st_shared(self, op: Op, args: list[Any]) -> None:
        t = op.operands[0].type
        at = self.units(op, t, op.operands[1].type, int(args[2]), int(args[3]))
        mine = registers.writers(t.layout, self.role.warps, self.warp)
        (ring, base), rank = args[1], op.get("block", self.rank)
        self.sim.reach.touches(self, rank, op)
        self.put(op, (ring, base + (rank - self.rank) * self.sim.stretch), at[mine],
                 encode(args[0], t.dtype, self.shared.grain)[mine], LANE[mine][:, None, None])

    def do_wmma_store(self, op: Op, args: list[Any]) -> None:
        t = op.operands[0].type
        at = self.units(op, t, op.operands[1].type, int(args[2]), int(args[3]))
        # which lane stores what is nobody's to know: the same lanes only for the same op
        self.put(op, args[1], at, encode(args[0], t.dtype, self.shared.grain), np.full((1, 1, 1), -4 - self.shared.number(op)))

    def do_ldmatrix(self, op: Op, args: list[Any]) -> Any:
        """PTX ISA, ldmatrix: lane l supplies the address of row l % 8 of its block, 16 bytes; lane t receives 4 of row t / 4, from byte
        4 (t % 4) on, or with .trans (of 16-bit elements) the transposed block's."""
        t, buffer = op.result.type, op.operands[0].type
        size, per = t.dtype.bytes, t.dtype.per_register
        row, col = int(args[1]), int(args[2])
        key = ("ldmatrix", id(op), self.warp, row, col)
        if key not in self.sim.maps:
            origin = registers.matrix_origins(t.layout, self.role.warps, self.warp, op["transposed"], per) + np.array([row, col])
            i, j = origin[:, 0, None, None] + np.arange(8)[:, None], origin[:, 1, None, None] + np.arange(4 * per)
            if min(i.min(), j.min()) < 0 or i.max() >= buffer.shape[0] or j.max() >= buffer.shape[1]:
                self.sim.report(
                    "sim/bounds", "ldmatrix outside its tile", op, expected=f"{buffer.shape}", got=f"row {i.max()}, column {j.max()}"
                )
                i, j = np.clip(i, 0, buffer.shape[0] - 1), np.clip(j, 0, buffer.shape[1] - 1)
            address = np.asarray(buffer.layout.address(buffer.shape, size, i, j))
            if (address[..., 0] % 16).any() or (address - address[..., :1] != size * np.arange(4 * per)).any():
                self.sim.report("sim/bounds", "ldmatrix: a row of a block is not 16 aligned bytes in shared memory", op, got=buffer.layout)
            self.sim.maps[key] = self.shared.of(address, size)
        # a lane gives the address of a row, but all lanes receive parts of it: the row is read by the warp
        blocks = decode(self.fetch(op, args[0], self.sim.maps[key], WARP), t.dtype)
        pair = per * (LANE % 4)[:, None] + np.arange(per)
        picked = blocks[:, pair, LANE[:, None] // 4] if op["trans"] else blocks[:, LANE[:, None] // 4, pair]
        return picked.transpose(1, 0, 2).reshape(LANES, -1)

    # ---- asynchronous copies ---------------------------------------------------------------------------------------

    def do_cp_async(self, op: Op, args: list[Any]) -> None:
        self.copies.start(op, args)

    def do_commit_group(self, op: Op, args: list[Any]) -> None:
        self.copies.commit()

    def do_wait_group(self, op: Op, args: list[Any]) -> None:
        self.copies.wait(op["n"])

    def do_syncwarp(self, op: Op, args: list[Any]) -> None:
        self.shared.sync_warp(self.number)
