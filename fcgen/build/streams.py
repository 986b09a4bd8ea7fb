"""Plans for programs that read a large operand once: products of few rows, whose time is that of the memory.

Such a loop does nothing but add up, and computes little for each byte: what matters is that all multiprocessors ask for enough at a time.
So rings are deep, several small blocks share a multiprocessor, blocks share a loop where there are too few tiles (`parts`), and small
matrix instructions on tiles that bulk copies bring are among the plans: of 64 rows, most would be padding. Measured on an H200
(`benchmarks/gemms.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import product
from math import prod

from ..backends.budget import Usage
from .model import MEET, START, STEP, Estimate, Model, Plan
from .workload import elements

#: clocks until memory answers, with all of it asked
FAR = 2100
#: FLOP for each byte of the operands below which it is the memory's time
DENSE = 150
#: bytes per clock that a multiprocessor can be sent, other than by the memory
SENT = 54
#: clocks until blocks of a cluster have told the first one what they found, and bytes per clock of it
TELL, TOLD = 2500, 16
#: how much longer it takes where one multiprocessor has so much more to do than the mean: the others' share of the memory is free
UNEVEN = 0.8
#: what it costs the memory that blocks ask for the same tile of its largest tensor at about the same time, for each after the first
AGAIN = 0.5
#: how much of the other units' time comes on top of the busiest one's, and how much longer arithmetic takes that small products wait for
BESIDES, COMPUTED = 0.05, 1.25
#: slots of rings, blocks that share a multiprocessor, and blocks that share a loop: clusters of three or four leave multiprocessors idle
#: (0.88 and 0.85 of cuBLAS where two reach 1.10 and 0.91)
STAGES, SHARING, PARTS = (3, 4, 5, 6), (1, 2), (1, 2)


class Streams(Model):
    @cached_property
    def streams(self) -> bool:
        """Is it the memory's time? Only where sizes are known, and where there are bulk copies."""
        w = self.load
        if not (w.sums and w.known() and self.rates.memory and self.narrow):
            return False
        small = dict.fromkeys(w.names, 16)
        flop = w.programs(small) * sum(w.trips(d.loops, small) * 2 * elements((d.rows, d.cols, d.inner), small) for d in w.dots)
        return 0 < flop < DENSE * w.read

    def streaming(self, options: dict[str, list[int]]) -> Iterator[Plan]:
        for sizes in product(*options.values()):
            tiles = dict(zip(options, sizes))
            for math, warps in (("wgmma", 4), ("wgmma", 8), ("mma", 4)):
                if all(self.grid(d, math, warps, tiles) for d in self.narrow):
                    for stages, blocks, parts in product(STAGES, SHARING, PARTS):
                        p = Plan(tuple(tiles.items()), warps, stages, math, True, parts, True, blocks)
                        if blocks * (self._smem(p) + 1024) <= self.target.smem_per_sm and self._whole(p):
                            yield p
                            if blocks == parts == 1 and math == "wgmma":
                                yield from self.clustered(p)

    def _whole(self, p: Plan) -> bool:
        """Do all blocks run at the same time, or does each have the whole loop? Those of a second turn begin with empty rings."""
        return p.parts == 1 or self.load.programs(dict(p.tiles)) * p.parts <= self.rates.sms * p.blocks

    def streamed(self, p: Plan, usage: Usage | None = None) -> Estimate:
        w, r, tiles = self.load, self.rates, dict(p.tiles)
        times = {k: v / p.parts for k, v in self.times(p).items()}
        if p.math == "mma" and any(d.computed for d in w.dots):
            times["arithmetic"] *= COMPUTED
        bound = max(times, key=lambda k: times[k])
        busy = times[bound] + BESIDES * (sum(times.values()) - times[bound])
        slow = self.outside(p)
        units = times["tensor cores"], times["arithmetic"]
        work, chain = max(max(units) if p.math == "wgmma" else sum(units), times["shared memory"]), float(START)
        for loops in w.loops:
            trips = -(-w.count(loops[0], tiles) // p.parts) * prod(w.count(n, tiles) for n in loops[1:])
            loaded = [m for m in w.moves if m.loops == loops and not m.write and (m.shared or m.raw)]
            brought = sum(elements(m.shape, tiles) * m.bits / 8 / self.share(p, m) for m in loaded)
            chain += trips * max(STEP + FAR / (p.stages - 1), brought / SENT, work / trips) * slow
        programs = w.programs(tiles) * p.parts
        per_sm = -(-programs // r.sms)
        beside = min(self._blocks(p, usage), per_sm)
        uneven = 1 + UNEVEN * (per_sm * r.sms / programs - 1)
        memory = (w.read + AGAIN * self._again(p)) / (r.memory * r.sms) * uneven
        told = sum(elements(shape, tiles) * bits / 8 for shape, bits in w.sums) * (p.parts - 1) / TOLD + TELL if p.parts > 1 else 0.0
        told += MEET if p.cluster else 0.0
        own = max(busy * per_sm + START / beside, chain / beside * per_sm)  # blocks side by side fill each other's beginnings and ends
        cycles = max(own, memory) + 0.1 * min(own, memory) + told
        limit = "memory" if memory > own else bound if busy >= chain / beside else "latency"
        return Estimate(cycles, limit, beside, times["tensor cores"] / cycles)

    def _again(self, p: Plan) -> float:
        """Bytes of the largest tensor that blocks ask for after others have."""
        w, tiles, once, again = self.load, dict(p.tiles), 0.0, 0.0
        for m in w.moves:
            if not m.write and len(m.shape) > 1:
                others = prod(w.count_of(a, tiles) for a in w.kernel.grid if a.tile > 1 and w.axis(a.tile) not in m.shape)
                size_of = w.programs(tiles) / others * w.trips(m.loops, tiles) * elements(m.shape, tiles) * m.bits / 8
                once, again = max((once, again), (size_of, size_of * (others / self.share(p, m) - 1)))
        return again
