"""The model of a multiprocessor by which schedules are compared: how long a program's dots, loads, stores and element work take it, and
what they need of it. `choose` asks it of some hundreds of plans; what the passes say of the best ones decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ..backends.budget import Usage
from ..backends.targets.rates import RATES, Rates
from ..ir.registers import at_launch
from ..ir.target import Target
from ..passes.facts.warp_grid import spread
from .workload import Dot, Move, Workload, elements, size

#: clocks: until a load from L2 has come, what an iteration's barriers cost, what a program costs besides its work
LATENCY, STEP, START = 700, 70, 2500
#: columns that a warpgroup's product takes the time of at least, where its left operand comes from registers: it is as long for 16
NARROW = 64
#: clocks of the schedulers per FLOP of small matrix instructions, with the reads of their operands
ISSUE = 1.6 / (2 * 16 * 8 * 16) / 4
#: bytes that the second level moves at least; how much of the other units' time comes on top of the busiest one's
SECTOR, CROWD = 32, 0.15
#: bytes per clock that leave registers for the second level, row by row, with nothing beside them
SCATTERED = 4.0
#: how much more what a loop stores costs where no bulk copy writes it: part of a line by each lane, or an atomic for each number
STRAY = 4
#: rows of a tile outside of the tensor that bulk copies fill with zeros at no cost, and those that double their time
FREE, OUTSIDE = 16, 48
#: blocks of a cluster; multiprocessors that clusters leave idle, for each block after the first; clocks until their blocks have met, at
#: its begin and end; bytes that the second level holds
CLUSTERS, IDLE, MEET, NEAR = (2, 4), 4, 2300, 40 << 20
#: clocks until warps that share rows of a tile have told each other what they found in theirs
SHARED_ROWS = 300
#: registers that an accumulator in flight, two iterations' left operands and what they are made of leave to others at least
BESIDE = 64
#: how much longer products take that wait for what is computed: warpgroups that could take turns fall into step
STEPPING = 1.03
#: registers besides its fragments that a kernel may want, by what makes its dots ("" without any): in all, and more for each load and
#: store, and for rings of several slots. Of 90 choices none with as many to spare spills (`tests/test_choose.py` compiles some)
SPARE = {"wgmma": (10, 3, 0), "mma": (30, 12, 14), "fma": (32, 0, 0), "": (128, 0, 0)}
#: loads and stores that the roles which compute have at most, where another one makes operands
MOVES = 3


@dataclass(frozen=True)
class Plan:
    """A candidate: tile sizes, warps, slots of rings, instructions, whether left operands that do not change stay in registers, how
    many blocks share a loop, whether bulk copies bring the tiles of small matrix instructions, how many blocks are to share a
    multiprocessor, and the axis along which clusters of how many lie."""

    tiles: tuple[tuple[str, int], ...]
    warps: int
    stages: int = 2
    math: str = "mma"
    hold: bool = True
    parts: int = 1
    sent: bool = False
    blocks: int = 1
    cluster: tuple[str, int] | None = None

    @property
    def bulk(self) -> bool:
        """Whether a role of its own copies."""
        return self.sent or self.math == "wgmma"

    def larger(self, other: Plan, slots: bool) -> bool:
        """Does it ask for no less than another one that does not fit? slots: of shared memory, else of registers."""
        same = (self.math, self.warps, self.sent) == (other.math, other.warps, other.sent) and self.blocks >= other.blocks
        more = self.stages >= other.stages and self.parts >= other.parts if slots else self.hold >= other.hold
        return same and more and all(a >= b for (_, a), (_, b) in zip(self.tiles, other.tiles))


@dataclass(frozen=True)
class Estimate:
    """cycles: of the grid, on the busiest multiprocessor. bound: what most of them go to. blocks: that run side by side. share: of the
    tensor cores' time, or of the second level's where there are no dots."""

    cycles: float
    bound: str
    blocks: int
    share: float


@dataclass
class Model:
    """Of one workload on one target."""

    load: Workload
    target: Target
    rates: Rates = field(init=False)

    def __post_init__(self) -> None:
        self.rates = RATES[self.target.arch]
        self.narrow = [d for d in self.load.dots if d.bits <= 16]
        self.wide = "fma" if self.load.dots else ""  # what makes dots, where no matrix instruction does

    def grid(self, d: Dot, math: str, warps: int, tiles: Mapping[str, int]) -> tuple[int, int] | None:
        """(rows, columns) of warps, or warpgroups, that a dot's result is spread over, if it divides. Warpgroups that would share rows, and
        tell each other what they found in them, each make all of these."""
        rows, cols = (-(-size(a, tiles) // n) * n for a, n in ((d.rows, 16), (d.cols, 8)))  # as `pad` makes them
        found = spread(math, rows, cols, warps)
        if found is not None and found[1] > 1 and math == "wgmma" and d.folded:
            return spread(math, rows, cols, warps, asked=(found[0], 1)) or found
        return found

    def times(self, p: Plan) -> dict[str, float]:
        """What keeps the units of a multiprocessor busy how long, for one program."""
        w, r, tiles = self.load, self.rates, dict(p.tiles)
        tensor = shared = alu = l2 = 0.0
        for d in w.dots:
            n, (m, k, c) = w.trips(d.loops, tiles), (size(a, tiles) for a in (d.rows, d.inner, d.cols))
            if d.bits > 16:  # plain multiply-adds: lanes lie along columns, and read both operands for each of their rows
                tensor += n * m * c * k / r.lanes
                shared += n * k * (m / 4 + p.warps * max(1.0, c / 32)) * r.shared
                continue
            down, across = self.grid(d, p.math, p.warps, tiles) or (1, 1)
            copies = p.warps / 4 / (down * across) if p.math == "wgmma" else 1.0
            wide = max(c, NARROW * across) if p.math == "wgmma" and not d.staged[0] else c
            tensor += copies * n * 2 * m * wide * k / (r.wgmma if p.math == "wgmma" else r.mma)
            alu += 0 if p.math == "wgmma" else n * 2 * m * c * k * ISSUE
            left = m * k * across if (d.staged[0] and not (d.held and p.hold)) or across > 1 else 0
            readers = m / 64 if p.math == "wgmma" else down  # an instruction of a warpgroup has 64 rows
            shared += n * (left + readers * k * c) * d.bits / 8
        bulk = p.bulk and self._sent(p)
        for move in w.moves:
            n, row = (elements(axes, tiles) * move.bits / 8 for axes in (move.shape, move.shape[-1:]))
            n *= w.trips(move.loops, tiles)
            n /= self.share(p, move)
            l2 += n * max(1.0, SECTOR / row) * (STRAY if move.write and move.loops and move.shape and not bulk else 1)
            shared += n if move.shared else 0
        for table, rate in ((w.work, r.lanes), (w.slow, r.slow)):
            alu += sum(w.trips(loops, tiles) * elements(shape, tiles) * n for (shape, loops), n in table.items()) / rate
        return {"tensor cores": tensor, "shared memory": shared / r.shared, "arithmetic": alu,
                "loads and stores": l2 / self.far(p)}

    def far(self, p: Plan) -> float:
        """Bytes per clock of the second level."""
        r = self.rates
        return (r.burst if self.load.at_once(dict(p.tiles), r.sms) and not p.sent else r.bulk) if p.bulk else r.l2

    def share(self, p: Plan, move: Move) -> int:
        """How many blocks a tile is brought to at once."""
        return p.cluster[1] if p.cluster and not move.write and len(move.shape) > 1 and p.cluster[0] not in move.shape else 1

    def estimate(self, p: Plan, usage: Usage | None = None) -> Estimate:
        """The grid's time on the busiest multiprocessor, with what the kernel needs as it was counted, or guessed."""
        w, r, tiles, times = self.load, self.rates, dict(p.tiles), self.times(p)
        tensor, alu, far = times["tensor cores"], times["arithmetic"], self.far(p)
        blocks = self._blocks(p, usage)
        side = blocks * p.warps / 4  # warps that each scheduler has to choose from
        times["arithmetic"] *= (side + 1.0) / side
        computed = any(d.computed for d in w.dots)  # products wait for what is, unless longer ones are in flight meanwhile
        first = alu if computed and p.math == "wgmma" and not (self._flying(p) and alu < tensor) else 0.0
        times["arithmetic"] *= 1.25 if computed and p.math == "mma" else 1.0
        groups = max(1.0, min(p.warps / 4, 2.0 if first else 4.0))
        work = max(tensor * (STEPPING if first else 1.0), (tensor + alu + 2 * first) / groups) * max(1.0, 4 / p.warps)
        chain = work + START
        if far == r.burst:
            times["loads and stores"] *= self.outside(p)
        alone = self._stored(p) / SCATTERED if p.math == "wgmma" and not self._sent(p) else 0.0
        across = [d for d in self.narrow if d.chain and (self.grid(d, p.math, p.warps, tiles) or (1, 1))[1] > 1]
        alone += sum(SHARED_ROWS * w.trips(d.loops, tiles) for d in across)
        for loops in w.loops:
            trips, loaded = w.trips(loops, tiles), [m for m in w.moves if m.loops == loops and not m.write]
            ahead = p.stages - 1 if p.stages > 1 or p.math == "wgmma" else 0.5
            if p.math == "wgmma" and any(d.carried and d.loops == loops for d in w.dots):
                ahead = max(0.0, ahead - 1.0)  # products in flight still read the slot before
            hidden = work / max(1.0, trips) * ahead if any(m.shared for m in loaded) else 0.0
            wait = max(LATENCY, sum(elements(m.shape, tiles) * m.bits / 8 for m in loaded if m.shared) / far)
            chain += trips * (STEP + (max(0.0, wait - hidden) if loaded else 0.0))
        programs = w.programs(tiles)
        own = (1.0 + w.covered(tiles)) / 2 if p.math == "wgmma" else 1.0  # warpgroups leave out rows outside
        per_sm = -(-programs // r.sms) if w.known() else max(1.0, programs / r.sms)
        bound = max(times, key=lambda k: times[k])
        chain, busy = (x + (MEET if p.cluster else 0) for x in (chain, times[bound]))
        busy += (CROWD if blocks > 1 or p.math == "wgmma" else 2 * CROWD) * (sum(times.values()) - times[bound])
        each = max(busy, chain / min(blocks, per_sm)) + alone
        return Estimate(per_sm * each * own, bound if busy >= each else "latency", blocks,
                        times["tensor cores" if w.dots else "loads and stores"] / each)

    def clustered(self, p: Plan) -> Iterator[Plan]:
        """The same plan in clusters, to which the second level sends once what their blocks share, where all blocks run at once. Clusters
        leave multiprocessors idle, the larger the more; those of four wait for the slowest copy, which memory answers late."""
        w, tiles = self.load, dict(p.tiles)
        axes = [a for a in w.kernel.grid if any(w.axis(a.tile) in (d.rows, d.cols) for d in self.narrow)]
        for a, n in ((a, n) for a in axes for n in CLUSTERS if len(axes) > 1 and w.count_of(a, tiles) % n == 0):
            if w.at_once(tiles, self.rates.sms - IDLE * (n - 1)) and (n == 2 or w.read <= NEAR):
                yield replace(p, cluster=(str(w.axis(a.tile)), n))

    def outside(self, p: Plan) -> float:
        """How much longer copies take for rows outside of tensors."""
        tiles = dict(p.tiles)
        rows = max(size(d.rows, tiles) for d in self.load.dots) * (1.0 - self.load.covered(tiles))
        return 1.0 + max(0.0, rows - FREE) / OUTSIDE

    def _flying(self, p: Plan) -> bool:
        """Are there registers for what a loop computes for its products, for what it computed for those before, and for what that is made
        of?"""
        tiles, threads, made = dict(p.tiles), 32 * p.warps, [d for d in self.load.dots if d.computed]
        lefts = sum(size(d.rows, tiles) * size(d.inner, tiles) * d.bits / 32 for d in made) / threads
        accs = max((size(d.rows, tiles) * size(d.cols, tiles) / threads for d in made), default=0.0)
        return all(d.flying for d in made) and accs + 3 * lefts <= self._most(p) - BESIDE

    def _blocks(self, p: Plan, usage: Usage | None) -> int:
        """How many blocks run side by side on a multiprocessor."""
        t, threads = self.target, 32 * (p.warps + (4 if p.bulk else 0))
        smem = usage.smem_bytes if usage else self._smem(p)
        regs = min(t.regs_per_thread, (usage.fragment_regs if usage else self._regs(p)) + min(48, self._spare(p)))
        if p.bulk:
            regs = t.regs_per_sm // p.blocks // threads  # blocks take what there is
        fit = min(t.max_blocks_per_sm, t.smem_per_sm // (smem + t.smem_reserved), int(t.regs_per_sm // (-(-regs // 8) * 8 * threads)),
                  self.rates.threads // threads)
        return max(1, int(fit))

    def _smem(self, p: Plan) -> int:
        tiles = dict(p.tiles)
        rings = sum(elements(m.shape, tiles) * m.bits // 8 * (p.stages if m.loops else 1) for m in self.load.moves
                    if m.shared or (m.raw and p.bulk))
        if p.parts > 1:  # what the other blocks have found
            rings += (p.parts - 1) * sum(elements(shape, tiles) * bits // 8 * 5 // 4 for shape, bits in self.load.sums)
        staged = sum(elements(shape, tiles) * bits // 8 for shape, bits in self.load.staged.values())
        return rings + staged * (2 if p.math == "wgmma" else 1)

    def _stored(self, p: Plan) -> int:
        """Bytes of the largest tile that a program stores."""
        tiles = dict(p.tiles)
        return max((elements(m.shape, tiles) * m.bits // 8 for m in self.load.moves if m.write), default=0)

    def _sent(self, p: Plan) -> bool:
        """Is there room for bulk stores to read from beside the next tile?"""
        return self._smem(p) + self._stored(p) <= self.target.smem_per_block - 4096

    def _regs(self, p: Plan) -> float:
        tiles, threads = dict(p.tiles), 32 * p.warps
        regs = self.load.registers(tiles, threads, p.math == "mma" and bool(self.narrow))
        if p.hold and p.math == "mma":
            held = {d.op.operands[0]: size(d.rows, tiles) * size(d.inner, tiles) * d.bits / 32 for d in self.load.dots if d.held}
            regs += sum(held.values()) / threads
        return regs

    def _spare(self, p: Plan) -> int:
        least, each, rings = SPARE[p.math if self.narrow else self.wide]
        moves = min(len(self.load.moves), MOVES) if self._made_apart(p) else len(self.load.moves)
        return least + each * moves + (rings if p.stages > 1 else 0)

    def _made_apart(self, p: Plan) -> bool:
        """Whether a role of its own makes what loops compute for dots: whoever does the rest needs no registers for it."""
        return self.load.made and p.math == "wgmma" and p.warps <= 8

    def _fits(self, p: Plan) -> bool:
        """Roughly: what is far from fitting is not lowered."""
        fine = self._made_apart(p) or self._regs(p) * 0.95 <= self._most(p) - self._spare(p)
        return fine and self._smem(p) <= self.target.smem_per_block

    def _most(self, p: Plan) -> int:
        """Registers that a thread can have."""
        t = self.target
        if p.blocks > 1:  # the role that copies keeps 40
            return min(t.regs_per_thread, (at_launch(t, 32 * (p.warps + 4), p.blocks) * (p.warps + 4) - 40 * 4) // p.warps)
        return min(t.regs_per_thread, (t.regs_per_sm - (4096 if p.bulk else 0)) // (32 * p.warps))
