"""Where each tile lives: the decision behind the `place` pass, as a table from tile values to homes.

A home is a `RegLayout` (registers, known map), an `OpaqueLayout` (a WMMA accumulator), `SMEM` (a loaded tile that only matrix products
read), or None: the value is *flexible*, cheap to make in whatever layout a reader wants (indices, constants, what is computed from
them). Homes flow forward from anchors, the results of dots; where a program has none, its loads are the anchors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd
from typing import Any

from ...errors import FcError
from ...ir.access import Access
from ...ir.alignment import allowed, widest
from ...ir.core import Block, Kernel, Op, Value, blocks, definitions, uses, walk
from ...ir.layout import OpaqueLayout, RegLayout, in_runs, mma_a, mma_c, mma_run, rowwise, wgmma_a, wgmma_c
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Tile
from ..facts.common import ALIKE, ELEMENTWISE
from ..facts.jobs import of_makers
from ..facts.warp_grid import grid_of
from .flights import find_flights, find_twins

SMEM = "smem"
#: elements of one row that a lane holds before more lanes are worth shorter runs
MOST_OF_A_ROW = 64
Home = Any  # RegLayout | OpaqueLayout | SMEM | None


@dataclass
class Homes:
    """The table, and the questions the emitter asks of it."""

    kernel: Kernel
    schedule: Schedule
    target: Target
    home: dict[Value, Home] = field(default_factory=dict)
    forced: dict[Value, Home] = field(default_factory=dict)

    def __post_init__(self) -> None:
        body = self.kernel.body
        self.defs = definitions(body)
        self.uses = uses(body)
        self.handed = of_makers(body)
        self.made_with: dict[Value, set[Value]] = {}  # value -> all that its block makes
        for block in blocks(body):
            made = {v for op in block.ops for v in op.results}
            self.made_with |= dict.fromkeys(made, made)
            if block is not body:
                for a in block.args:
                    self.defs.pop(a, None)
        self._solve(body)
        #: loaded tiles that travel through a ring before they come home -> its slots
        stored = {v for v, h in self.home.items() if h == SMEM}
        self.rings = find_flights(self, stored)
        #: loaded tiles that come home from slots which products of other copies of the load read -> what these read
        self.twins = find_twins(self, stored)

    def __getitem__(self, v: Value) -> Home:
        return self.home.get(v)

    # ---- dots ----------------------------------------------------------------------------------------------------

    def accumulator(self, op: Op) -> Home:
        rows, cols = op.result.type.shape
        family = op["math"]
        if family == "fma":
            return rowwise(rows, cols, self.schedule.warps, 32)
        down, across = self.grid(op)
        if family == "wgmma":
            return wgmma_c(rows, cols, down, across)
        return OpaqueLayout("acc", down, across) if family == "wmma" else mma_c(rows, cols, (down, across))

    def grid(self, op: Op) -> tuple[int, int]:
        return grid_of(op, self.schedule)

    def a_layout(self, op: Op) -> RegLayout:
        """The register layout of the left operand of an mma or wgmma dot."""
        (rows, depth), down, size = op.operands[0].type.shape, self.grid(op)[0], op.operands[0].type.dtype.bytes
        return wgmma_a(rows, depth, down, size) if op["math"] == "wgmma" else mma_a(rows, depth, (down, 1), size)

    def in_registers(self, op: Op) -> bool:
        """Whether the left operand of an mma or wgmma dot lies in registers as the instruction reads it, of the warps that make the dot."""
        v = op.operands[0]
        return self.home.get(v) == self.a_layout(op) and (bool(op.get("made")) or v not in self.handed)

    def columns(self, v: Value, flipped: bool = False) -> int:
        """In runs of how many columns warps, or warpgroups, read a shared tile as it is stored; 0 where they read all of them."""
        out = 0
        for u in self.uses.get(v, ()):
            if u.kind == "transpose":
                out = gcd(out, self.columns(u.result, not flipped))
            elif u.kind == "dot" and u["math"] in ("mma", "wgmma") and u.operands[1] is v and not flipped:
                across = self.grid(u)[1]
                run = v.type.shape[1] // across
                out = gcd(out, run if u["math"] == "wgmma" else mma_run(run) if across > 1 else 0)
        return out

    def source(self, v: Value) -> tuple[Value, bool]:
        """A dot operand without its transposes: (stored tile, whether it is read transposed)."""
        flipped = False
        while v in self.defs and self.defs[v].kind == "transpose":
            v, flipped = self.defs[v].operands[0], not flipped
        return v, flipped

    # ---- layouts for values without an anchor -----------------------------------------------------------------------

    def widest(self, op: Op) -> int:
        """The most elements that one access of a load or store may move."""
        return widest(Access.of(op), allowed(self.kernel, op.operands[0]), self.defs)

    def plain(self, t: Tile, vec: int = 0) -> RegLayout:
        """The default for element work: runs of `vec` elements, or 16 bytes, over as many lanes as a row can use; shorter runs where a long
        row would lie in few lanes."""
        vec = vec or max(1, 16 // t.dtype.bytes)
        if len(t.shape) == 2:
            layout = rowwise(t.shape[0], t.shape[1], self.schedule.warps, 32, vec)
            while vec > 1 and layout.drop(0).regs > MOST_OF_A_ROW:
                vec //= 2
                layout = min(layout, rowwise(t.shape[0], t.shape[1], self.schedule.warps, 32, vec), key=lambda l: l.drop(0).regs)
            return layout
        if len(t.shape) == 1:
            return rowwise(1, t.shape[0], self.schedule.warps, 32, 1).drop(0)
        raise FcError("compile/unsupported", f"tiles have one or two axes, not {len(t.shape)}", got=str(t))

    def partner(self, t: Tile) -> RegLayout:
        """The known layout that opaque fragments are unpacked into: each warp keeps its own contiguous rows."""
        return rowwise(t.shape[0], t.shape[1], self.schedule.warps, 4, 4)

    def known(self, v: Value) -> RegLayout | None:
        """The register layout in which `v` would take part in element work, if that is decided."""
        h = self.home.get(v)
        if isinstance(h, OpaqueLayout):
            return self.partner(v.type)
        return h if isinstance(h, RegLayout) else None

    # ---- solving -------------------------------------------------------------------------------------------------

    def _solve(self, body: Block) -> None:
        self._smem_loads(body)
        while True:
            self.home = dict(self.forced)
            self._forward(body)
            if not self._force_one(body):
                return

    def _smem_loads(self, body: Block) -> None:
        for op in walk(body):
            if op.kind == "load" and len(op.result.type.shape) == 2 and self._feeds_dot(op.result):
                self.forced[op.result] = SMEM

    def _feeds_dot(self, v: Value) -> bool:
        return any((u.kind == "dot" and v in u.operands[:2]) or (u.kind == "transpose" and self._feeds_dot(u.result))
                   for u in self.uses.get(v, ()))

    def _forward(self, block: Block) -> None:
        for op in block.ops:
            if op.kind == "for":
                self._loop(op)
            elif op.kind == "if":
                for region in op.regions:
                    self._forward(region)
                for i, res in enumerate(op.results):
                    sides = [self._carry_home(region.yielded[i]) for region in op.regions]
                    self._set(res, next((s for s in sides if s is not None), None))
            else:
                for r in op.results:
                    if isinstance(r.type, Tile) and r not in self.forced:
                        self._set(r, self._result_home(op))

    def _set(self, v: Value, home: Home) -> None:
        if home is not None and v not in self.forced:
            self.home[v] = home

    def _carry_home(self, v: Value) -> Home:
        h = self.home.get(v)
        return self.plain(v.type) if h == SMEM else h

    def _loop(self, op: Op) -> None:
        body = op.regions[0]
        carried = body.args[1:]
        for arg, init in zip(carried, op.operands[2:]):
            self._set(arg, self._carry_home(init))
        for _ in range(3):  # a carried value may take its home from another's yield
            self._forward(body)
            before = [self.home.get(a) for a in carried]
            for arg, y in zip(carried, body.yielded):
                self._set(arg, self._carry_home(y))
            if before == [self.home.get(a) for a in carried]:
                break
        for res, arg in zip(op.results, carried):
            self._set(res, self.home.get(arg))

    def _result_home(self, op: Op) -> Home:
        t = op.result.type
        if op.kind == "dot":
            return self.accumulator(op)
        if op.kind in ALIKE:
            same = [self.home.get(v) for v in op.operands if v.type.shape == t.shape]
            if (opaque := next((h for h in same if isinstance(h, OpaqueLayout)), None)) is not None:
                return opaque if self._only_accumulates(op.result) else self.partner(t)
            return next((h for h in same if isinstance(h, RegLayout)), None)
        if op.kind == "gather":
            return next((h for v in op.operands[1:] if isinstance(h := self.home.get(v), RegLayout)), None)
        if op.kind == "cumsum":
            return in_runs(t.shape, op["axis"], self.schedule.warps)
        k = self.known(op.operands[0]) if op.kind in ("transpose", "slice", "reduce") else None
        if k is None:
            return None
        if op.kind == "transpose":
            return k.transpose()
        return k.part_of(op["axis"], t.shape[op["axis"]]) if op.kind == "slice" else self.reducible(op, k).drop(op["axis"])

    def reducible(self, op: Op, layout: RegLayout) -> RegLayout:
        """The layout a reduce wants its operand in: of one axis, one that stays inside a warp."""
        shape = op.operands[0].type.shape
        if len(shape) > 1 or not layout.reduces_over(op["axis"])[1].axes[0]:
            return layout
        return rowwise(shape[0], 1, 1, 1).drop(1) if shape[0] <= 32 else rowwise(1, shape[0], self.schedule.warps, 32).drop(0)

    def _only_accumulates(self, v: Value) -> bool:
        us = self.uses.get(v, ())
        return bool(us) and all(u.kind == "dot" and len(u.operands) == 3 and u.operands[2] is v and v not in u.operands[:2] for u in us)

    def _force_one(self, body: Block) -> bool:
        """Give the next undecided load (or carried value) a home: what its readers want, else the default. False when none is left."""
        pending = [op for op in walk(body) if op.kind == "load" and self.home.get(op.result) is None and isinstance(op.result.type, Tile)]
        for op in pending:
            want = self._wanted(op.result, set()) or self._multiplied(op.result, self.made_with[op.result], set())
            if want is not None:
                self.forced[op.result] = want
                return True
        if pending:
            op = max(pending, key=lambda o: len(o.result.type.shape))
            self.forced[op.result] = self.plain(op.result.type, self.widest(op))
            return True
        for op in walk(body):
            for v in op.regions[0].args[1:] if op.kind == "for" else op.results if op.kind == "if" else ():
                if isinstance(v.type, Tile) and self.home.get(v) is None:
                    self.forced[v] = self._wanted(v, set()) or self.plain(v.type)
                    return True
        return False

    def _wanted(self, v: Value, seen: set[Value]) -> RegLayout | None:
        """The layout that the first decided reader of a flexible value takes part in."""
        if v in seen:
            return None
        seen.add(v)
        for u in self.uses.get(v, ()):
            if u.kind == "cumsum":
                return self._result_home(u)
            if u.kind == "transpose" and (h := self.known(u.result) or self._wanted(u.result, seen)) is not None:
                return h.transpose()
            if (u.kind in ALIKE and isinstance(u.result.type, Tile)) or u.kind in ("gather", "broadcast"):
                h = self.known(u.result) or self._wanted(u.result, seen)
                if h is not None:
                    return h.keep(u["axes"]) if u.kind == "broadcast" else h
        return None

    def _multiplied(self, v: Value, made_with: set[Value], seen: set[Value]) -> RegLayout | None:
        """The layout of the left operand that is computed from a tile element by element, among what is made in its block: products take
        that from registers. What a loop only reads is stored, and leaves it the registers."""
        if v in seen:
            return None
        seen.add(v)
        for u in self.uses.get(v, ()):
            if u.kind in ELEMENTWISE and isinstance(u.result.type, Tile) and u.result.type.shape == v.type.shape:
                if (found := self._multiplied(u.result, made_with, seen)) is not None:
                    return found
            elif u.kind == "transpose":
                if (found := self._multiplied(u.result, made_with, seen)) is not None:
                    return found.transpose()
            elif u.kind == "dot" and v is u.operands[0] and u["math"] in ("mma", "wgmma") and self.schedule.reuse_frags:
                return self.a_layout(u) if u.result in made_with else None
        return None
