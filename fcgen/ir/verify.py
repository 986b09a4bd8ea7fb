"""Verification of whole kernels: what `ops.verify` runs after every pass and on everything that is parsed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

from ..errors import FcError, Loc
from . import kernel_rules
from .access import check_index
from .alignment import promised
from .attrs import MOST, RANK
from .core import Block, Kernel, Op, Role, Value
from .covers import covered
from .layout import OpaqueLayout, RegLayout
from .memory_map import buffer_problem
from .named_barriers import NamedBarriers, is_one_thread
from .op_table import PHASES, RuleError, attr_problem, having, misuse, need, told
from .ops import OPS
from .ranges import admitted
from .rings import strays
from .text import print_op
from .types import Buffer, Cursor, Frag, Mbarrier, Pending, Scalar, Tensor, Tile, Type, f32, i32

#: regions inside of regions
NESTING = 200
#: ops with rules about the kernel around them
NAMED = having("named barrier")
#: ops that parts of a role's warps carry out each for itself
PARTED = {"mbar_wait", "mbar_arrive", "tma_store"}
PLACED = NAMED | PARTED | {"slot", "barrier", "syncwarp", "row_part", "tma_load", "st_shared", "sum_blocks"}
#: (level, warps, one thread) -> types, and kinds with attributes and types, that were found right there, by identity
Known = dict[tuple[Any, ...], dict[Any, Any]]


class Verifier:
    def __init__(self, kernel: Kernel, places: Mapping[Any, Loc], known: Known | None = None):
        self.kernel, self.places, self.known = kernel, places, {} if known is None else known
        self.phase = kernel_rules.phase(kernel)
        self.warps = 0  # of the role
        self.number = 0
        self.lone = False  # the role is one thread
        self.right: dict[Any, Any] = {}  # ids of what was found right for a role like this one, and what has these ids
        self.kinds: set[str] = set()  # that exist here
        self.seen: set[Value] = set()
        self.rings = set(kernel.buffers)
        self.named = NamedBarriers(kernel)

    def run(self) -> None:
        k = self.kernel
        if k.level not in ("tile", "machine"):
            raise FcError("ir/verify", "a kernel is at one of two levels", expected="tile or machine", got=k.level)
        for key, e in kernel_rules.problems(k):
            raise self.misfit(key, e)
        for name, read in (("aligned", promised), ("ranges", admitted), ("covers", covered)):
            try:
                if name in k.meta:
                    read(k)
            except FcError as e:
                raise e.at(self.places.get(("meta", name))) from None
        self.seen = set(k.params) | set(k.buffers)
        for self.number, role in enumerate(k.roles):
            self.role(role)

    def role(self, role: Role) -> None:
        if len(role.body.args) != len(self.kernel.grid):
            raise self.misfit(("role", self.number), RuleError(f"role {role.name}: one argument per grid axis", len(self.kernel.grid),
                                                               len(role.body.args)))
        self.warps = role.warps
        self.lone = len(self.kernel.roles) > 1 and is_one_thread(role)
        self.right = self.known.setdefault((self.kernel.level, self.warps, self.lone), {})
        for v in self.seen:
            wrong = self.type_problem(v.type)
            if wrong is not None:
                raise self.misfit(v, wrong)
        if role.body.yielded:
            raise self.bad(role.body.ops[-1], RuleError("the body of a role yields nothing"))
        self.block(role.body, 0)
        stray = strays(role.body) if any(isinstance(b.type, Mbarrier) for b in self.kernel.buffers) else None
        if stray is not None:
            raise self.bad(*stray)

    def misfit(self, key: Any, e: RuleError) -> FcError:
        """What is wrong with something that is no op."""
        name = f"%{key.name}: " if isinstance(key, Value) and f"%{key.name}" not in e.rule else ""
        return FcError("ir/verify", name + e.rule, expected=e.expected, got=e.got, hint=e.hint, loc=self.places.get(key))

    def block(self, block: Block, depth: int) -> None:
        seen, new = self.seen, [*block.args]
        seen.update(block.args)
        for op in block.ops:
            self.op(op)
            if op.kind == "yield" and op is not block.ops[-1]:
                raise self.bad(op, RuleError("yield is the last op of its region"))
            if op.regions and depth >= NESTING:
                raise self.bad(op, RuleError("regions are nested too deeply", f"at most {NESTING}", "more"))
            for r in op.regions:
                for v in r.args:
                    self.value(v, op)
                self.block(r, depth + 1)
            for v in op.results:
                self.value(v, op)
            seen.update(op.results)
            new += op.results
        seen.difference_update(new)

    def value(self, v: Value, op: Op) -> None:
        if v in self.seen:
            raise self.bad(op, RuleError(f"value %{v.name} is defined twice"))
        if v.type.__class__ is not Scalar and id(v.type) not in self.right:
            wrong = self.type_problem(v.type)
            if wrong is not None:
                raise self.bad(op, RuleError(f"%{v.name}: {wrong.rule}" if v.name else wrong.rule, wrong.expected, wrong.got))
            self.right[id(v.type)] = v.type

    def op(self, op: Op) -> None:
        if not self.seen.issuperset(op.operands):
            self.exists(op)
            unknown = next(v for v in op.operands if v not in self.seen)
            raise self.bad(op, RuleError(f"operand %{unknown.name} is used before it is defined"))
        if op.kind not in self.kinds:
            self.exists(op)
        if op.regions:
            self.alone(op)
        elif id(op) not in self.right:
            types = [v.type for v in op.operands], [v.type for v in op.results]
            key = op.kind, id(op.attrs), *map(id, types[0]), None, *map(id, types[1])
            if key not in self.right:
                self.alone(op)
                self.right[key] = op.attrs, types
            self.right[id(op)] = op
        if op.kind in PLACED:
            self.holds(self.placed, op)

    def exists(self, op: Op) -> None:
        """There are such ops, at this level and in this phase."""
        d = OPS.get(op.kind)
        if d is None:
            raise self.bad(op, RuleError(f"no op is called {op.kind!r}"))
        if self.kernel.level not in d.levels:
            raise self.bad(op, RuleError(f"{op.kind} does not exist at this level", expected=" or ".join(d.levels),
                                         got=self.kernel.level))
        if self.phase is not None and not d.phases[0] <= self.phase <= d.phases[1]:
            first, last = d.phases
            raise self.bad(op, RuleError(f"{op.kind} does not occur in this phase", got=PHASES[self.phase],
                                         expected=PHASES[first] + (f" to {PHASES[last]}" if last > first else "")))
        self.kinds.add(op.kind)

    def alone(self, op: Op) -> None:
        """What hangs on the op's kind, attributes, types and regions, and on its role."""
        problem = attr_problem(OPS[op.kind], op.attrs)
        if problem is not None:
            raise self.bad(op, problem[1])
        wrong = misuse(op)
        if wrong is not None:
            raise self.bad(op, wrong)
        self.holds(self.typed, op)

    def typed(self, op: Op) -> None:
        """Its types, and what its record says of them."""
        d = OPS[op.kind]
        types = d.infer(tuple([v.type for v in op.operands]), op.attrs)
        if types is not None:
            got = tuple([r.type for r in op.results])
            if tuple(types) != got:
                raise RuleError("result types follow from the operands", expected=_join(types), got=_join(got))
        if d.reach is not None:
            check_index(op, d.reach)
        if d.check is not None:
            d.check(op)
        need("regions" in d.traits or not op.regions, f"{op.kind} has no regions")

    def holds(self, rule: Callable[[Op], None], op: Op) -> None:
        try:
            rule(op)
        except RuleError as e:
            raise self.bad(op, e) from None
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
            # The rules read like the ops' documentation and take the number and kind of operands for granted.
            raise self.bad(op, RuleError("these operands and results make no sense here", expected=OPS[op.kind].doc,
                                         got=f"{_join(v.type for v in op.operands) or 'nothing'} -> "
                                             f"{_join(v.type for v in op.results) or 'nothing'}")) from e

    def placed(self, op: Op) -> None:
        """What hangs on the kernel and the role around it."""
        if op.kind == "slot":
            need(op.operands[0] in self.rings, "slot takes a ring of the kernel", "of an `smem` line", f"%{op.operands[0].name}")
        if op.kind in ("barrier", "syncwarp"):
            need(not self.lone, f"{op.kind}: a role that works on no fragments is one thread, and would wait for ever", "no barrier",
                 f"role {self.kernel.roles[self.number].name}")
        if op.kind in PARTED and op.get("parts", 1) > 1:
            need(self.lone or self.warps % op["parts"] == 0, f"{op.kind}: equal parts of the role's warps", f"a divisor of {self.warps}",
                 op["parts"])
            need(self.lone == ("part" in op.attrs), f"{op.kind}: one thread says which part is meant, and nobody else does",
                 "part" if self.lone else "no part", op.get("part"))
        if op.kind in NAMED:
            self.named.see(op, self.number)
        elif op.kind == "row_part" and self.warps:
            need(self.warps % op["parts"] == 0, "row_part: equal parts of the role's warps", f"a divisor of {self.warps}", op["parts"])
        elif op.kind == "sum_blocks":
            need(self.kernel.cluster > 1, "sum_blocks: its blocks form a cluster", "a grid axis with a cluster", self.kernel.cluster)
        elif op.get("block") is not None:
            need(op["block"] < self.kernel.cluster, f"{op.kind}: a block of the cluster", f"below {self.kernel.cluster}", op["block"])
        elif op.kind in ("mbar_arrive", "tma_load"):
            blocks = op.get("cluster") or op.get("multicast") or 1
            need(blocks in (1, self.kernel.cluster), f"{op.kind}: it reaches all blocks of the cluster", self.kernel.cluster, blocks)

    def type_problem(self, t: Type) -> RuleError | None:
        """What a type must hold by itself, and in a role of so many warps."""
        if t.__class__ is Scalar:
            return None
        if isinstance(t, Pending):
            if t.frag.dtype not in (f32, i32) or t.frag.partial:
                return RuleError("an accumulator in flight is f32 or i32, and complete", got=t)
            t = t.frag
        if self.kernel.level == "tile":
            if not isinstance(t, (Tile, Tensor)):
                return RuleError("tile IR has scalars, tiles and tensors", got=t)
        elif isinstance(t, Tile):
            return RuleError("machine IR has no tiles without a place", "frag or smem", t)
        least = 0 if isinstance(t, Frag) else 1  # the last axis may be reduced to a fragment that is still partial
        if isinstance(t, (Tile, Frag, Buffer)) and not (least <= len(t.shape) <= RANK and prod(t.shape) <= MOST):
            return RuleError(f"a tile has 1 to {RANK} axes and at most {MOST} elements", got=t)
        if isinstance(t, Frag):
            return self.frag_problem(t)
        return buffer_problem(t) if isinstance(t, (Buffer, Mbarrier, Cursor)) else None

    def frag_problem(self, t: Frag) -> RuleError | None:
        layout = t.layout
        if isinstance(layout, OpaqueLayout):
            down, across = layout.parts
            if layout.warps != self.warps:
                return RuleError("the fragment is spread over the role's warps", self.warps, layout)
            if len(t.shape) != 2 or t.shape[0] % (16 * down) or t.shape[1] % (16 * across) or t.partial:
                return RuleError("a wmma fragment is complete and made of 16 x 16 blocks for each warp", f"multiples of {16 * down} and "
                                 f"{16 * across}", t)
            return None
        if not isinstance(layout, RegLayout):
            return RuleError("a fragment has a layout of registers", got=layout)
        if layout.shape != t.shape:
            return RuleError("the fragment's layout covers its shape", t.shape, layout.shape)
        if layout.problem:
            return RuleError(layout.problem, got=layout)
        if layout.warps > self.warps:
            return RuleError("the fragment's layout tells more warps apart than its role has", self.warps, layout.warps)
        return None

    def bad(self, op: Op, e: RuleError) -> FcError:
        notes = [f"in  {print_op(op, self.kernel)}"]
        if op.place is not None and op.loc is not None and op.loc.file != op.place.file:
            notes.append(f"which comes from {op.loc}")
        return FcError("ir/verify", told(op.kind, e), expected=e.expected, got=e.got, hint=e.hint, loc=op.place or op.loc, notes=notes)


def _join(types: Iterable[Any]) -> str:
    return ", ".join(map(str, types))


def verify(kernel: Kernel, *, places: Mapping[Any, Loc] | None = None, known: Known | None = None) -> Kernel:
    """Check a kernel: what it holds besides ops (`kernel_rules`), every op against its record and its phase, and that values are defined
    once and before use. Returns the kernel.

    Raises FcError "ir/verify" with the place and, as notes, the op itself. places: for a kernel that was read from text, where in it
    what is no op stands, by the keys of `kernel_rules`. known: what was found right before, for who verifies a kernel over and over."""
    Verifier(kernel, places or {}, known).run()
    return kernel
