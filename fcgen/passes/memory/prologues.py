"""prologues: an operand that a loop computes is made while the products of the tile before it run.

In: placed machine IR. Out: the same, where of each loop with warpgroup products the work that leads from loads to a staged operand is done
for the next tile, between the issue of this tile's products and the first use of what they make; the operand lies in a ring of two slots,
and the first tile's is made in front of the loop. So neither the products wait for that work, nor do the readers of one tile keep the next
from being stored: one barrier an iteration is enough. What is loaded past the loop's end stays inside of its tensor, or is zeros that
nothing reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...ir.alignment import promised
from ...ir.core import Block, Kernel, Op, Value, walk_kernel
from ...ir.depends import sources
from ...ir.rewrite import Builder, Env, copy_op, edited, substitute
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Scalar
from ..facts.common import without_effect
from .handed import handed
from .makers import WORK, apart, read_by_products
from .prefetch import guarded, with_guards


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if schedule.made:
        kernel = handed(kernel, schedule)
    elif schedule.makers:
        return _made_apart(kernel, schedule)
    if not any(o.get("math") == "wgmma" for o in walk_kernel(kernel)):
        return kernel
    buffers: list[Value] = []
    written = {o.operands[0] for o in walk_kernel(kernel) if o.kind == "store"}

    def ahead(op: Op) -> Op | list[Op]:
        work = _work(op.regions[0], written) if op.kind == "for" and not op.get("unroll") else None
        buffers.extend(work.rings.values() if work is not None else ())
        return op if work is None else work.ahead(op)

    body = edited(kernel.body, ahead)
    return replace(kernel.with_body(body), buffers=(*kernel.buffers, *buffers)) if buffers else kernel


def _made_apart(kernel: Kernel, schedule: Schedule) -> Kernel:
    out = apart(kernel, schedule)
    if out is None and promised(kernel) is None:  # tensors that allow less than the schedule was made for may leave nothing to make
        raise without_effect("makers", "no loop computes an operand of a dot from loads alone", got=schedule.makers,
                             expected="a tile that is loaded in a loop with dots, changed, and then an operand of one")
    return out or kernel


@dataclass
class _Work:
    """ops: in order, of the loop's body. rings: what each `stage` among them makes -> where it lies from now on. at: the op in front of
    which the next tile's work stands."""

    body: Block
    ops: list[Op]
    rings: dict[Value, Value] = field(default_factory=dict)
    at: int = 0

    def ahead(self, loop: Op) -> list[Op]:
        """The first tile's work, and the loop."""
        index, down, before = self.body.args[0], bool(loop.get("descending")), Builder(loop.loc)
        start = before.emit("sub", loop.operands[1], before.const(1)) if down else loop.operands[0]
        self.make(start, start, 0, before, loop)
        inner = Builder(loop.loc)
        env = Env({v: inner.emit("slot", ring, index, ahead=0, name=v.name) for v, ring in self.rings.items()})
        mine = {o for o in self.ops if not isinstance(o.result.type, Scalar)}
        for n, op in enumerate(self.body.ops):
            if n == self.at:
                inner.loc = loop.loc
                one = inner.const(1)
                self.make(inner.emit("sub" if down else "add", index, one, name="after"), index, 1, inner)
            if op not in mine:
                inner.add(substitute(op, env))
        before.add(replace(loop, regions=(inner.block(self.body.args),)))
        return before.ops

    def make(self, tile: Value, index: Value, ahead: int, b: Builder, first: Op | None = None) -> None:
        """The work for a tile; its slot is `ahead` of the index's. first: the loop that it stands in front of."""
        env = Env({self.body.args[0]: tile})
        views = {v: b.emit("slot", ring, index, ahead=ahead, name=v.name) for v, ring in self.rings.items()}
        for op in self.ops:
            b.loc = op.loc
            if op.kind == "stage":
                zero = b.const(0)
                b.do("st_shared", env[op.operands[0]], views[op.result], zero, zero)
            else:
                b.add(with_guards(copy_op(op, env), first, b))


def _work(body: Block, written: set[Value]) -> _Work | None:
    others = {v for o in body.ops if o.get("math", "wgmma") != "wgmma" for v in o.operands}
    stages = [o for o in body.ops if o.kind == "stage" and o.result not in others and read_by_products(o.result, body)]
    chosen = [(s, ops) for s in stages if (ops := _leads_to(s, body, written)) is not None]
    while True:  # what others read of the work cannot be moved
        inside = {o for _, ops in chosen for o in ops}
        outside = {v for o in body.ops if o not in inside for v in o.reads}
        tiles = lambda s, ops: [v for o in ops if o is not s for v in o.results if not isinstance(v.type, Scalar)]
        kept = [(s, ops) for s, ops in chosen if not outside.intersection(tiles(s, ops))]
        if len(kept) == len(chosen):
            break
        chosen = kept
    work = [o for o in body.ops if o in inside]
    if not any(o.kind == "load" for o in work):
        return None
    rings = {s.result: Value(replace(s.result.type, slots=2), s.result.name) for s, _ in chosen}
    products = {r for o in body.ops if o.kind == "dot" for r in o.results}
    last = max(n for n, o in enumerate(body.ops) if set(o.operands) & set(rings))
    at = next(n for n, o in enumerate(body.ops) if n > last and (o.kind == "yield" or (o.kind != "dot" and o.reads & products)))
    return _Work(body, work, rings, at)


def _leads_to(stage: Op, body: Block, written: set[Value]) -> list[Op] | None:
    """The ops that a staged tile follows from, in order, if that is the index alone."""
    fixed = lambda op: op.kind not in ("load", "gather") or (op.operands[0] not in written and guarded(op, body.made))
    return sources([stage.result], body, lambda op: op.kind in WORK and not op.regions and fixed(op))
