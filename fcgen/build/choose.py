"""`fc.schedule_for`: a sound schedule for any spec, found by a model of the machine and not in a table.

In: a spec, a target, what the spec is compiled for, and sizes where they are known. Out: a `Choice`: a schedule that compiles, and why.
Tile sizes, warps, stages and instructions are enumerated; each combination is given a time by what it computes, moves and waits for, per
multiprocessor (`model`). The passes themselves say what is legal and what a kernel needs: the best candidates are lowered in turn, those
that they refuse fall out, with all that ask for more of the same, and the rest are timed again with the registers and the shared memory
that they really have. No NVRTC, no GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

from ..backends.budget import Usage, check_budget
from ..errors import FcError
from ..ir.alignment import promised
from ..ir.core import Kernel, walk
from ..ir.registers import at_launch
from ..ir.schedule import NUMBERS, Schedule
from ..ir.target import Target
from ..lang.spec import Spec
from . import compiler
from .model import Estimate, Plan
from .streams import Streams
from .workload import Probe, Workload, elements, size

#: registers left by fragments from which on a loop that stages tiles is worth a copy with its mask: each has addresses of its own
COPIES = 60
#: clocks of a grid that so short a time as a launch takes shows in: it begins while the one in front of it ends
SHORT = 200_000
#: candidates that are lowered
MOST = 10
#: sizes that are tried for rows and columns of dots, for what they sum over, and where there is no dot
ROWS, COLS, INNER = (16, 32, 64, 128, 192, 256), (16, 32, 48, 64, 80, 96, 128, 160, 192, 256), (16, 32, 64, 128)
PLAIN = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Choice(NamedTuple):
    """schedule: what was chosen. why: in a few lines."""

    schedule: Schedule
    why: tuple[str, ...]


@dataclass
class Chooser(Streams):
    """One search. tried: what was lowered, and what came of it."""

    kernel: Any  # tiles -> the kernel
    refused: list[tuple[Plan, str]] = field(default_factory=list)
    idle: set[tuple[str, Any]] = field(default_factory=set)  # fields and values that a pass found nothing to do for
    lowerings: int = 0

    # ---- candidates --------------------------------------------------------------------------------------------------

    def plans(self) -> Iterator[Plan]:
        names = list(self.load.names)
        bulk = self.narrow and any(n.startswith("wgmma_m64") for n in self.target.instrs) and self._rows_of_16_bytes()
        ways = ["wgmma", "mma"] if bulk else ["mma"]
        if bulk and self.streams:
            yield from self.streaming({n: self._options(n) for n in names})
            return
        ringed = any(m.shared and m.loops for m in self.load.moves)
        held, turns = any(d.held for d in self.load.dots), any(d.late for d in self.load.dots)
        for sizes in product(*(self._options(n) for n in names)):
            tiles = dict(zip(names, sizes))
            for math in ways:
                tall = max((size(m.shape[0], tiles) for m in self.load.moves if len(m.shape) > 1), default=8)
                most = max((elements(m.shape, tiles) * m.bits // 8 for m in self.load.moves), default=0)
                for warps in (4, 8, 12) if math == "wgmma" else (1, 2, 4, 8):
                    if not self.load.dots and (warps > tall or (warps > 1 and most < 16 * 32 * warps)):
                        continue  # warps lie along rows, and lanes along what 16 bytes for each of them cover: else they hold copies
                    if not all(self.grid(d, math, warps, tiles) for d in self.narrow):
                        continue
                    apart = self.load.made and math == "wgmma" and warps <= 8  # their rings have two slots, and share the room
                    deep = math == "wgmma" and self.load.at_once(tiles, self.rates.sms)
                    for stages in (1, 2, 3, 4, *((5, 6) if deep else ())) if ringed and not apart else (2,):
                        for hold in (True, False) if held and math == "mma" else (True,):
                            p = Plan(tuple(tiles.items()), warps, stages, math, hold)
                            # one slot of a bulk copy is for what leaves no room for two
                            if stages > 1 or (turns if math == "mma" else self._smem(replace(p, stages=2)) > self.target.smem_per_block):
                                yield p
                                yield from self.clustered(p) if math == "wgmma" and stages > 2 else ()

    def _rows_of_16_bytes(self) -> bool:
        """Can bulk copies read what dots read: as much as is promised of it, else if tensors are packed? Sizes that are not known are
        taken to do."""
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
        return dim if isinstance(dim, int) else self.load.sizes.get(dim, self.load.parts.get(dim, 1 << 30))

    def estimate(self, p: Plan, usage: Usage | None = None) -> Estimate:
        return self.streamed(p, usage) if p.sent else super().estimate(p, usage)

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
                last = e.noted(f"nobody gave a schedule; this is of one that was tried: {', '.join(f'{k}={v}' for k, v in p.tiles)}, "
                               f"warps={p.warps}, stages={p.stages}, math={p.math}")
                if e.code not in ("compile/budget", "compile/schedule", "compile/unsupported"):
                    raise last from None
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
        if p.bulk or not self.narrow or blocks == 1 or limit >= min(usage.limit, usage.fragment_regs + self._spare(p)):
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
        if p.sent:
            sent = p.math == "wgmma" and p.blocks == 1 and self._sent(p)
            out |= {"math": p.math, "copy": "tma", "epilogue": "tma" if sent else "direct", "pdl": True, "min_blocks": p.blocks,
                    "parts": p.parts}
        elif p.math == "wgmma":
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
            if self.load.known() and self.narrow and self.estimate(p).cycles < SHORT:
                out["pdl"] = True
        if p.cluster:
            along = next(a.name for a in self.load.kernel.grid if self.load.axis(a.tile) == p.cluster[0])
            out["cluster"] = ((along.removesuffix("_tile"), p.cluster[1]),)
        return out


#: fields that are left out where a pass says that they have nothing to do, and what is tried in their place
_OPTIONAL = ("ahead", "epilogue", "l2", "late", "makers", "persistent", "stages", "hold_a", "vote")
_INSTEAD = {("epilogue", "tma"): "quad", ("epilogue", "quad"): "direct"}


def choose(spec: Spec, to: Target, binding: Mapping[str, Any], sizes: Mapping[str, int]) -> Choice:
    """A schedule for what a spec is compiled for. sizes: those of run-time dimensions, and of scalars that axes of the
    grid run over, as far as they are known."""
    dims = [d for p in spec.signature.tensors for d in p.dims]
    taken = {n for n in (*binding.values(), *sizes.values(), *dims) if isinstance(n, int)}
    probe = Probe(taken)
    try:
        traced = spec.trace(probe, **binding)
    except FcError as e:
        if e.code != "ir/verify":
            raise e.named(probe) from None
        probe = Probe(taken, small=True)
        try:
            traced = spec.trace(probe, **binding)
        except FcError as e:
            raise e.named(probe) from None
    counts = {p.name for p in traced.counts}
    for name, n in ((p.name, sizes[p.name]) for p in spec.signature.params if p.kind == "scalar" and p.name in sizes):
        if name not in counts or type(n) is not int or n < 1:
            raise FcError("trace/static", f"{spec.name} has no such size", got=f"{name}={n!r}", loc=spec.loc,
                          expected="positive whole numbers, of " + ", ".join(sorted({*spec.signature.dims, *counts})),
                          hint="a dimension has one, and a scalar that an axis of the grid runs over")
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
