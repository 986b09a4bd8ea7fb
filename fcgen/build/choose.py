"""`fc.schedule_for`: a sound schedule for any spec, found by a model of the machine and not in a table.

In: a spec, a target, what the spec is compiled for, and sizes where they are known. Out: a `Choice`: a schedule that compiles, and why.
Tile sizes, warps, stages and instructions are enumerated; each combination is given a time by what it computes, moves and waits for, per
multiprocessor (`estimate`). The passes themselves say what is legal and what a kernel needs: the best candidates are lowered in turn, those
that they refuse fall out, with all that ask for more of the same, and the rest are timed again with the registers and the shared memory
that they really have. No NVRTC, no GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

from . import compiler
from ..backends.budget import Usage, check_budget
from ..backends.targets.rates import RATES, Rates
from ..errors import FcError
from ..ir.alignment import promised
from ..ir.core import Kernel, walk
from ..ir.registers import at_launch
from ..ir.schedule import NUMBERS, Schedule
from ..ir.target import Target
from ..lang.spec import Spec
from ..passes.facts.warp_grid import spread
from .workload import Dot, Probe, Workload, elements, size

#: clocks: until a load from L2 has come, what an iteration's barriers cost, what a program costs besides its work
LATENCY, STEP, START = 700, 70, 2500
#: clocks of the schedulers per FLOP of small matrix instructions, with the reads of their operands
ISSUE = 1.6 / (2 * 16 * 8 * 16) / 4
#: bytes that the second level moves at least; how much of the other units' time comes on top of the busiest one's
SECTOR, CROWD = 32, 0.15
#: bytes per clock that leave registers for the second level, row by row, with nothing beside them
SCATTERED = 4.0
#: how much more what a loop stores costs where no bulk copy writes it: part of a line by each lane, or an atomic for each number
STRAY = 4
#: clocks until warps that share rows of a tile have told each other what they found in theirs
SHARED_ROWS = 300
#: registers left by fragments from which on a loop that stages tiles is worth a copy with its mask: each has addresses of its own
COPIES = 60
#: registers that an accumulator in flight, two iterations' left operands and what they are made of leave to others at least
BESIDE = 64
#: how much longer products take that wait for what is computed: warpgroups that could take turns fall into step
STEPPING = 1.03
#: candidates that are lowered
MOST = 10
#: registers besides its fragments that a kernel may want, by what makes its dots ("" without any): in all, and more for each load and
#: store, and for rings of several slots. Of 90 choices none with as many to spare spills (`tests/test_choose.py` compiles some)
SPARE = {"wgmma": (10, 3, 0), "mma": (30, 12, 14), "fma": (32, 0, 0), "": (128, 0, 0)}
#: loads and stores that the roles which compute have at most, where another one makes operands
MOVES = 3
#: sizes that are tried for rows and columns of dots, for what they sum over, and where there is no dot
ROWS, COLS, INNER = (16, 32, 64, 128, 192, 256), (16, 32, 48, 64, 80, 96, 128, 160, 192, 256), (16, 32, 64, 128)
PLAIN = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Choice(NamedTuple):
    """schedule: what was chosen. why: in a few lines."""

    schedule: Schedule
    why: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A candidate: tile sizes, warps, slots of rings, instructions, and whether left operands that do not change stay in registers."""

    tiles: tuple[tuple[str, int], ...]
    warps: int
    stages: int = 2
    math: str = "mma"
    hold: bool = True

    def larger(self, other: Plan, slots: bool) -> bool:
        """Does it ask for no less than another one that does not fit? slots: of shared memory, else of registers."""
        same = self.math == other.math and self.warps == other.warps and (self.stages >= other.stages if slots else self.hold >= other.hold)
        return same and all(a >= b for (_, a), (_, b) in zip(self.tiles, other.tiles))


@dataclass(frozen=True)
class Estimate:
    """cycles: of the grid, on the busiest multiprocessor. bound: what most of them go to. blocks: that run side by side. share: of the
    tensor cores' time, or of the second level's where there are no dots."""

    cycles: float
    bound: str
    blocks: int
    share: float


@dataclass
class Chooser:
    """One search. tried: what was lowered, and what came of it."""

    load: Workload
    target: Target
    kernel: Any  # tiles -> the kernel
    rates: Rates = field(init=False)
    refused: list[tuple[Plan, str]] = field(default_factory=list)
    idle: set[tuple[str, Any]] = field(default_factory=set)  # fields and values that a pass found nothing to do for
    lowerings: int = 0

    def __post_init__(self) -> None:
        self.rates = RATES[self.target.arch]
        self.narrow = [d for d in self.load.dots if d.bits <= 16]
        self.wide = "fma" if self.load.dots else ""  # what makes dots, where no matrix instruction does

    # ---- candidates --------------------------------------------------------------------------------------------------

    def plans(self) -> Iterator[Plan]:
        names = list(self.load.names)
        bulk = self.narrow and any(n.startswith("wgmma_m64") for n in self.target.instrs) and self._rows_of_16_bytes()
        ways = ["wgmma", "mma"] if bulk else ["mma"]
        ringed = any(m.shared and m.loops for m in self.load.moves)
        held, turns = any(d.held for d in self.load.dots), any(d.late for d in self.load.dots)
        for sizes in product(*(self._options(n) for n in names)):
            tiles = dict(zip(names, sizes))
            for math in ways:
                tall = max((size(m.shape[0], tiles) for m in self.load.moves if len(m.shape) > 1), default=8)
                for warps in (4, 8, 12) if math == "wgmma" else (1, 2, 4, 8):
                    if not self.load.dots and warps > tall:
                        continue  # warps lie along rows
                    if not all(self.grid(d, math, warps, tiles) for d in self.narrow):
                        continue
                    apart = self.load.made and math == "wgmma" and warps <= 8  # their rings have two slots, and share the room
                    for stages in (1, 2, 3, 4) if ringed and not apart else (2,):
                        for hold in (True, False) if held and math == "mma" else (True,):
                            p = Plan(tuple(tiles.items()), warps, stages, math, hold)
                            # one slot of a bulk copy is for what leaves no room for two
                            if stages > 1 or (turns if math == "mma" else self._smem(replace(p, stages=2)) > self.target.smem_per_block):
                                yield p

    def grid(self, d: Dot, math: str, warps: int, tiles: Mapping[str, int]) -> tuple[int, int] | None:
        """(rows, columns) of warps, or warpgroups, that a dot's result is spread over, if it divides. Warpgroups that would share rows, and
        tell each other what they found in them, each make all of these."""
        rows, cols = (-(-size(a, tiles) // n) * n for a, n in ((d.rows, 16), (d.cols, 8)))  # as `pad` makes them
        found = spread(math, rows, cols, warps)
        if found is not None and found[1] > 1 and math == "wgmma" and d.folded:
            return spread(math, rows, cols, warps, asked=(found[0], 1)) or found
        return found

    def _rows_of_16_bytes(self) -> bool:
        """Can bulk copies read what dots read: as much as is promised of it, else if tensors are packed? Sizes that are not known are taken to
        do."""
        read = [op.operands[0] for op in walk(self.load.kernel.body) if op.kind == "load" and len(op.result.type.shape) == 2]
        last = [(self.load.sizes.get(d, 16) if isinstance(d := v.type.dims[-1], str) else d) * v.type.dtype.bytes for v in read]
        told = promised(self.load.kernel) or {}
        return all(n % 16 == 0 for n in (*last, *(x for v in read if v.name in told for x in told[v.name].words)))

    def _options(self, name: str) -> list[int]:
        """Sizes for the tiles of one name, by what its axis is in dots; not more than a dimension has."""
        sizes: tuple[int, ...] = PLAIN
        for kind, options in (("inner", INNER), ("cols", COLS), ("rows", ROWS)):
            if any(getattr(d, kind) == name for d in self.load.dots):
                sizes = tuple(n for n in options if n in sizes or sizes is PLAIN) if sizes is not PLAIN else options
        most = max((n for n in (self._dim(a.dim) for a in self.load.kernel.grid if self.load.axis(a.tile) == name)), default=0)
        most = max([most, *(self._dim(loop.dim) for loops in self.load.loops for loop in loops if loop.tile == name)])
        return [n for n in sizes if n in NUMBERS["tiles"][2] and (n == sizes[0] or n < 2 * most)]

    def _dim(self, dim: Any) -> int:
        return dim if isinstance(dim, int) else self.load.sizes.get(dim, 1 << 30)

    # ---- the model ---------------------------------------------------------------------------------------------------

    def estimate(self, p: Plan, usage: Usage | None = None) -> Estimate:
        """The grid's time on the busiest multiprocessor, with what the kernel needs as it was counted, or guessed."""
        w, r, tiles = self.load, self.rates, dict(p.tiles)
        tensor = shared = alu = l2 = 0.0
        far = r.bulk if p.math == "wgmma" else r.l2
        for d in w.dots:
            n, (m, k, c) = w.trips(d.loops, tiles), (size(a, tiles) for a in (d.rows, d.inner, d.cols))
            if d.bits > 16:  # plain multiply-adds: lanes lie along columns, and read both operands for each of their rows
                tensor += n * m * c * k / r.lanes
                shared += n * k * (m / 4 + p.warps * max(1.0, c / 32)) * r.shared
                continue
            down, across = self.grid(d, p.math, p.warps, tiles) or (1, 1)
            copies = p.warps / 4 / (down * across) if p.math == "wgmma" else 1.0
            tensor += copies * n * 2 * m * c * k / (r.wgmma if p.math == "wgmma" else r.mma)
            alu += 0 if p.math == "wgmma" else n * 2 * m * c * k * ISSUE
            left = m * k * across if (d.staged[0] and not (d.held and p.hold)) or across > 1 else 0
            readers = m / 64 if p.math == "wgmma" else down  # an instruction of a warpgroup has 64 rows
            shared += n * (left + readers * k * c) * d.bits / 8
        bulk = p.math == "wgmma" and self._sent(p)
        for move in w.moves:
            n, row = (elements(axes, tiles) * move.bits / 8 for axes in (move.shape, move.shape[-1:]))
            n *= w.trips(move.loops, tiles)
            l2 += n * max(1.0, SECTOR / row) * (STRAY if move.write and move.loops and move.shape and not bulk else 1)
            shared += n if move.shared else 0
        for table, rate in ((w.work, r.lanes), (w.slow, r.slow)):
            alu += sum(w.trips(loops, tiles) * elements(shape, tiles) * n for (shape, loops), n in table.items()) / rate
        times = {"tensor cores": tensor, "shared memory": shared / r.shared, "arithmetic": alu, "loads and stores": l2 / far}
        blocks = self._blocks(p, usage)
        side = blocks * p.warps / 4  # warps that each scheduler has to choose from
        times["arithmetic"] *= (side + 1.0) / side
        computed = any(d.computed for d in w.dots)  # products wait for what is, unless longer ones are in flight meanwhile
        first = alu if computed and p.math == "wgmma" and not (self._flying(p) and alu < tensor) else 0.0
        times["arithmetic"] *= 1.25 if computed and p.math == "mma" else 1.0
        groups = max(1.0, min(p.warps / 4, 2.0 if first else 4.0))
        work = max(tensor * (STEPPING if first else 1.0), (tensor + alu + 2 * first) / groups) * max(1.0, 4 / p.warps)
        chain = work + START
        alone = self._stored(p) / SCATTERED if p.math == "wgmma" and not self._sent(p) else 0.0
        alone += sum(SHARED_ROWS * w.trips(d.loops, tiles) for d in self.narrow if d.chain and (self.grid(d, p.math, p.warps, tiles) or (1, 1))[1] > 1)
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
        busy = times[bound] + (CROWD if blocks > 1 or p.math == "wgmma" else 2 * CROWD) * (sum(times.values()) - times[bound])
        each = max(busy, chain / min(blocks, per_sm)) + alone
        return Estimate(per_sm * each * own, bound if busy >= each else "latency", blocks,
                        times["tensor cores" if w.dots else "loads and stores"] / each)

    def _flying(self, p: Plan) -> bool:
        """Are there registers for what a loop computes for its products, for what it computed for those before, and for what that is made of?"""
        tiles, threads, made = dict(p.tiles), 32 * p.warps, [d for d in self.load.dots if d.computed]
        lefts = sum(size(d.rows, tiles) * size(d.inner, tiles) * d.bits / 32 for d in made) / threads
        accs = max((size(d.rows, tiles) * size(d.cols, tiles) / threads for d in made), default=0.0)
        return all(d.flying for d in made) and accs + 3 * lefts <= self._most(p) - BESIDE

    def _blocks(self, p: Plan, usage: Usage | None) -> int:
        """How many blocks run side by side on a multiprocessor."""
        t, threads = self.target, 32 * (p.warps + (4 if p.math == "wgmma" else 0))
        smem = usage.smem_bytes if usage else self._smem(p)
        regs = min(t.regs_per_thread, (usage.fragment_regs if usage else self._regs(p)) + min(48, self._spare(p)))
        if p.math == "wgmma":
            regs = t.regs_per_sm // threads  # a block takes what there is
        fit = min(t.max_blocks_per_sm, t.smem_per_sm // (smem + t.smem_reserved), int(t.regs_per_sm // (-(-regs // 8) * 8 * threads)),
                  self.rates.threads // threads)
        return max(1, int(fit))

    def _smem(self, p: Plan) -> int:
        tiles = dict(p.tiles)
        rings = sum(elements(m.shape, tiles) * m.bits // 8 * (p.stages if m.loops else 1) for m in self.load.moves
                    if m.shared or (m.raw and p.math == "wgmma"))
        return rings + sum(elements(shape, tiles) * bits // 8 for shape, bits in self.load.staged.values()) * (2 if p.math == "wgmma" else 1)

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
        return min(t.regs_per_thread, (t.regs_per_sm - (4096 if p.math == "wgmma" else 0)) // (32 * p.warps))

    # ---- choosing ----------------------------------------------------------------------------------------------------

    def choose(self, slow: bool = False, last: FcError | None = None) -> tuple[Schedule, Estimate, Usage]:
        """slow: loops that wait for each of their tiles are taken too, which are asked for where no other ones fit. last: what was said of
        those."""
        found: list[tuple[Estimate, Plan, Schedule, Usage, bool]] = []
        every = list(self.plans())
        near = [p for p in every if self._fits(p)] or sorted(every, key=self._regs)[:4 * MOST]
        ranked = sorted(((self.estimate(p), p) for p in near), key=lambda x: (x[0].cycles, x[1].warps, -x[1].stages, x[1].tiles))
        tried = 0
        for guess, p in ranked:
            best = min((f[0].cycles for f in found if f[4]), default=None)
            if tried >= (MOST if found else 3 * MOST) or (best is not None and guess.cycles >= best):
                break
            if any(p.larger(q, "memory" in said) for q, said in self.refused):
                continue
            if any(replace(p, stages=f[1].stages) == f[1] for f in found):  # the number of slots changes no registers
                continue
            tried += 1
            try:
                schedule, usage = self.lowered(p, slow)
            except FcError as e:
                last = e
                if e.code not in ("compile/budget", "compile/schedule", "compile/unsupported"):
                    raise
                if e.code == "compile/budget":
                    self.refused.append((p, e.message))
                continue
            fine = usage.fragment_regs + self._spare(p) <= usage.limit
            if not fine:
                self.refused.append((p, f"{usage.fragment_regs} of {usage.limit} registers are too many to be sure that none spills"))
            found.append((self.estimate(p, usage), p, schedule, usage, fine))
        if not found and not slow:
            return self.choose(True, last)
        if not found:
            raise last or FcError("compile/unsupported", f"no schedule is known for {self.load.kernel.name} on {self.target.arch}",
                                  expected="dots whose rows divide into multiples of 16", hint="pass a Schedule of your own")
        took, _, schedule, usage, _ = min(found, key=lambda f: (not f[4], f[0].cycles))
        return schedule, took, usage

    def lowered(self, p: Plan, slow: bool = False) -> tuple[Schedule, Usage]:
        """The candidate as a schedule, without the fields that a pass finds nothing to do for."""
        fields = self.fields(p)
        while True:
            for name in _OPTIONAL:
                while name in fields and (name, fields[name]) in self.idle:
                    instead = _INSTEAD.get((name, fields.pop(name)))
                    fields |= {name: instead} if instead else {}
            if "ahead" in self.fields(p) and "ahead" not in fields and not slow:
                raise FcError("compile/schedule", "with one slot that no load comes ahead into, others are better")
            schedule = Schedule(**fields)
            self.lowerings += 1
            try:
                machine = compiler.lower(self.kernel(dict(p.tiles)), schedule, self.target)
                schedule, usage = self._side_by_side(p, schedule, machine)
                copied = self.load.live_loops and self.load.staged and "split" not in fields
                if copied and usage.limit - usage.fragment_regs < COPIES:
                    fields["split"] = "branch"
                    continue
                return schedule, usage
            except FcError as e:
                if e.code == "compile/budget" and "makers" in fields:  # their rings or registers may be what does not fit
                    if fields.get("epilogue") == "tma" and "memory" in e.message:
                        fields["epilogue"] = "quad"
                    else:
                        del fields["makers"]
                    continue
                named = re.search(r"Schedule\.(\w+)", e.message)
                if e.code != "compile/schedule" or named is None or named[1] not in _OPTIONAL or named[1] not in fields:
                    raise
                self.idle.add((named[1], fields[named[1]]))

    def _side_by_side(self, p: Plan, schedule: Schedule, machine: Kernel) -> tuple[Schedule, Usage]:
        """Where several blocks fit only if the compiler is told to keep to their registers, it is told."""
        usage = check_budget(machine, self.target)
        blocks = self._blocks(p, usage)
        limit = at_launch(self.target, usage.threads, blocks)
        if p.math == "wgmma" or not self.narrow or blocks == 1 or limit >= min(usage.limit, usage.fragment_regs + self._spare(p)):
            return schedule, usage
        if usage.fragment_regs + self._spare(p) > limit:
            return schedule, usage
        return replace(schedule, min_blocks=blocks), check_budget(machine.with_meta(min_blocks=blocks), self.target)

    def fields(self, p: Plan) -> dict[str, Any]:
        out: dict[str, Any] = {"tiles": tuple(sorted(p.tiles)), "warps": p.warps, "stages": p.stages}
        if not p.hold:
            out["hold_a"] = False
        if p.stages == 1 and p.math == "mma":
            out["ahead"] = True
        if p.math == "wgmma":
            late = {name for d in self.load.dots if d.late and (name := self.load.called(d))}
            out |= {"math": "wgmma", "copy": "tma", "epilogue": "tma" if self._sent(p) else "quad", "vote": True}
            if not self.load.known() or self.load.programs(dict(p.tiles)) > self.rates.sms:
                out |= {"l2": 32, "persistent": "dynamic" if self.load.live_loops else "static"}
            if self._made_apart(p):  # their rings take the room of staged results; a loop over tiles costs registers that they have
                out |= {"makers": 4, "epilogue": "quad"} | ({"persistent": "none"} if late else {})
            if len(late) == 1 and p.stages > 1:
                out["late"] = late.pop()
            grids = {name: g for d in self.narrow if (g := self.grid(d, "wgmma", p.warps, dict(p.tiles))) is not None
                     and 4 * g[0] * g[1] < p.warps and (name := self.load.called(d))}
            if grids:
                out["grid"] = tuple(sorted(grids.items()))
        return out


#: fields that are left out where a pass says that they have nothing to do, and what is tried in their place
_OPTIONAL = ("ahead", "epilogue", "l2", "late", "makers", "persistent", "stages", "hold_a", "vote")
_INSTEAD = {("epilogue", "tma"): "quad", ("epilogue", "quad"): "direct"}


def choose(spec: Spec, to: Target, binding: Mapping[str, Any], sizes: Mapping[str, int]) -> Choice:
    """A schedule for what a spec is compiled for. sizes: those of run-time dimensions, as far as they are known."""
    dims = [d for p in spec.signature.tensors for d in p.dims]
    taken = {n for n in (*binding.values(), *sizes.values(), *dims) if isinstance(n, int)}
    probe = Probe(taken)
    try:
        traced = spec.trace(probe, **binding)
    except FcError as e:
        if e.code != "ir/verify":
            raise
        probe = Probe(taken, small=True)
        traced = spec.trace(probe, **binding)
    return _kept(Workload(traced, dict(probe), sizes), to, lambda tiles: spec.trace(tiles, **binding))


def choose_for_kernel(kernel: Kernel, to: Target, sizes: Mapping[str, int]) -> Choice:
    """A schedule for tile IR, which has its tile sizes already."""
    return _kept(Workload(kernel, {}, sizes), to, lambda tiles: kernel)


def _kept(load: Workload, to: Target, kernel: Any) -> Choice:
    """The choice, from the disk where it was made before."""
    from ..runtime.cache import key_of, open_cache

    key = key_of("chosen", str(load.kernel), sorted(load.names.items()), sorted(load.sizes.items()), to.arch, compiler.code_fingerprint())

    def make() -> tuple[dict[str, bytes], dict[str, Any]]:
        found = _chosen(load, to, kernel)
        return {}, {"schedule": str(found.schedule), "why": list(found.why)}

    meta = open_cache().get_or_build(key, make).meta
    return Choice(Schedule.parse(meta["schedule"]), tuple(meta["why"]))


def _chosen(load: Workload, to: Target, kernel: Any) -> Choice:
    c = Chooser(load, to, kernel)
    schedule, e, usage = c.choose()
    given = ", ".join(f"{k}={v}" for k, v in load.sizes.items())
    why = [f"{e.bound} {'are' if e.bound.endswith('s') else 'is'} the limit; "
           f"{'tensor cores' if load.dots else 'loads and stores'} busy {min(1.0, e.share):.0%} of the time, by the model"
           f"{' at ' + given if given else ''}",
           f"{usage.fragment_regs} of {usage.limit} registers for tiles, {usage.smem_bytes} B of shared memory, {e.blocks} "
           f"block{'s' if e.blocks > 1 else ''} per multiprocessor"]
    if c.refused:
        q, said = c.refused[0]
        why.append(f"larger ones do not fit: {', '.join(f'{k}: {v}' for k, v in q.tiles)}, {q.warps} warps, {q.stages} stages ({said})")
    return Choice(schedule, tuple(why))
