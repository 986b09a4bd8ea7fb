"""simplify: the same program with less work in it.

In: any tile-level program. Out: an equal one, where
  - the algebraic rules of `rules` no longer apply (constants folded, broadcasts as late as possible, exp and log in base 2, a
    sum with a dot folded into its accumulator, ...);
  - no pure value is computed twice where one is in sight, no tile is read twice without a write in between;
  - what does not change in a loop is computed before it. Reads move too, where they are guarded or known to be inside (`leaves`),
    unless the loop writes. Tiles of rank two that cost little to remake (views, integers, truth values) stay where they are
    used: holding them through a loop would cost registers;
  - nothing is computed that nobody needs, and loops carry only what changes.
Results are equal up to rounding: rules that reassociate float32 say so.

One sweep visits the ops in order and sends every op, also those that rules build, through the rules, then through the table of
values at hand; sweeps repeat until one changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import Loc
from ...ir.core import Block, Kernel, Op, Value, walk
from ...ir.elementwise import FNS
from ...ir.known import const_of
from ...ir.ops import OPS, infer
from ...ir.registers import VIEWS
from ...ir.rewrite import carrying, map_bodies, remove_dead
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import DType, Scalar, Tile
from ..facts.common import writes
from . import taken  # noqa: F401 (its rule is one of them)
from .rules import apply_rules

SWEEPS = 8


def run(kernel: Kernel, schedule: Schedule, target: Target | None) -> Kernel:
    for _ in range(SWEEPS):
        sweep = Sweep()
        kernel = map_bodies(kernel, lambda block, s=sweep: remove_dead(s.body(block)))  # type: ignore[misc]
        if not sweep.changed:
            break
    return kernel


@dataclass
class Scope:
    """A region being rebuilt. kind: "body", "for", "live" or "if"; writes: whether a loop's body has a write; maybe: whether
    the loop may have no iterations."""

    kind: str
    writes: bool = False
    maybe: bool = False
    ops: list[Op] = field(default_factory=list)
    table: dict[Any, Value] = field(default_factory=dict)


class Sweep:
    """One pass over a body. Rules use `defs`, `const`, `make` and `number`."""

    def __init__(self) -> None:
        self.defs: dict[Value, Op] = {}
        self.changed = False
        self.env: dict[Value, Value] = {}
        self.scopes: list[Scope] = []
        self.depth: dict[Value, int] = {}  # the scope that holds a value
        self.floor: dict[Value, int] = {}  # the outermost scope that could hold it
        self.uses: Counter[Value] = Counter()
        self.counted: set[Value] = set()  # indices of the grid and of loops
        self.fresh: set[Value] = set()  # made while the current op is visited
        self.epoch = 0  # counts writes: two reads are equal only within one epoch
        self.loc: Loc | None = None

    # ---- what rules ask and build ------------------------------------------------------------------------------------

    def const(self, v: Value) -> Any:
        return const_of(v, self.defs)

    def made_by(self, v: Value, *kinds: str) -> Op | None:
        """The op that makes v, if it is one of these kinds."""
        op = self.defs.get(v)
        return op if op is not None and op.kind in kinds else None

    def once_here(self, v: Value) -> bool:
        """v has one reader and is made in the block that is being rebuilt."""
        return self.uses[v] == 1 and self.depth.get(v) == len(self.scopes) - 1

    def make(self, kind: str, *operands: Value, name: str = "", **attrs: Any) -> Value:
        """An op that a rule wants; it goes through the rules itself."""
        self.uses.update(operands)
        (type_,) = infer(kind, operands, attrs, self.loc)
        return self.place(Op(kind, operands, (Value(type_, name),), attrs, (), self.loc))

    def number(self, value: Any, dtype: DType) -> Value:
        return self.make("const", value=value, dtype=dtype.name)

    def spread(self, v: Value, like: Any) -> Value:
        """The scalar v as a tile of `like`'s shape; v itself if nothing is to be done."""
        return v if v.type.shape == like.shape else self.make("full", v, shape=like.shape)

    # ---- the sweep ---------------------------------------------------------------------------------------------------

    def body(self, block: Block) -> Block:
        self.uses = Counter(v for op in walk(block) for v in op.operands)
        return self.region(block, Scope("body"))

    def region(self, block: Block, scope: Scope) -> Block:
        self.scopes.append(scope)
        self.counted.update(block.args if scope.kind == "body" else block.args[:1])
        for a in block.args:
            self.depth[a] = len(self.scopes) - 1
        for op in block.ops:
            self.visit(op)
        self.scopes.pop()
        return Block(block.args, tuple(scope.ops))

    def visit(self, op: Op) -> None:
        operands = tuple([self.env.get(v, v) for v in op.operands])
        if operands != op.operands:
            op = replace(op, operands=operands)
        self.loc = op.loc
        self.fresh.clear()
        if op.kind == "for":
            self.loop(op)
        elif op.kind == "if":
            self.branch(op)
        elif len(op.results) != 1:
            self.append(op)
            if op.kind != "yield" and OPS[op.kind].effect == "write":
                self.epoch += 1
        else:
            old, new = op.results[0], self.place(op)
            if new is not old:
                self.rename(old, self.name(new, old.name))

    def rename(self, old: Value, new: Value) -> None:
        self.env[old] = new
        self.uses[new] += self.uses[old]

    def name(self, v: Value, name: str) -> Value:
        """Give the op just built the name of what it replaces, so that people find it again."""
        op, ops = self.defs.get(v), self.scopes[-1].ops
        if not name or v.name or v not in self.fresh or op is None or op.kind == "const" or not ops or ops[-1] is not op:
            return v
        named = Value(v.type, name)
        ops.pop()
        self.append(replace(op, results=(named,)))
        self.scopes[-1].table[self.key(op)] = named
        return named

    def append(self, op: Op, at: int = -1) -> None:
        at = len(self.scopes) - 1 if at < 0 else at
        self.scopes[at].ops.append(op)
        for r in op.results:
            self.defs[r], self.depth[r] = op, at
            self.fresh.add(r)

    def place(self, op: Op) -> Value:
        """The value of a one-result op: from a rule, from the table, or from the op itself at the outermost good place."""
        fn = FNS.get(op.kind)
        if fn is not None and fn.commutative and self.is_simpler(*op.operands):
            op = replace(op, operands=op.operands[::-1])
        found = apply_rules(self, op)
        if found is not None:
            if isinstance(found.type, Scalar) and isinstance(op.result.type, Tile):
                found = self.make("full", found, shape=op.result.type.shape)
            assert found.type == op.result.type, f"a rule for {op.kind} made {found.type} out of {op.result.type}"
            self.changed = True
            return found
        here = len(self.scopes) - 1
        home = self.home(op)
        cheap = home < here and self.cheap(op)
        at = here if cheap else home
        key = self.key(op)
        for d in range(at, -1, -1):
            if key in self.scopes[d].table:
                self.changed = True
                return self.scopes[d].table[key]
            if cheap and self.scopes[d].kind != "if":
                break
        if at < here:
            self.changed = True
            lifted = tuple(self.lift(v, at) for v in op.operands)
            op = replace(op, operands=lifted) if lifted != op.operands else op
            if op.get("leaves"):
                op = op.with_attrs(leaves=op["leaves"] - sum(s.maybe for s in self.scopes[at + 1:]))
        return self.kept(op, at, home)

    def kept(self, op: Op, at: int, home: int) -> Value:
        """The value of an op in scope `at`: the one that is there, or what the op makes there now."""
        key = self.key(op)
        if key not in self.scopes[at].table:
            self.append(op, at)
            self.floor[op.result] = home
            self.scopes[at].table[key] = op.result
        return self.scopes[at].table[key]

    def is_simpler(self, a: Value, b: Value) -> bool:
        """Whether a should be the right operand: constants before scalars before tiles."""
        return (self.const(a) is not None, -len(a.type.shape)) > (self.const(b) is not None, -len(b.type.shape))

    def key(self, op: Op) -> Any:
        operands = [id(v) for v in op.operands]
        if op.kind in FNS and FNS[op.kind].commutative:
            operands.sort()
        attrs = tuple([(k, repr(x) if isinstance(x, float) else x) for k, x in sorted(op.attrs.items()) if k not in ("site", "leaves")])
        epoch = self.epoch if OPS[op.kind].effect != "none" else 0
        return op.kind, tuple(operands), attrs, op.result.type, epoch

    # ---- loop-invariant values ---------------------------------------------------------------------------------------

    def home(self, op: Op) -> int:
        """The outermost scope where the op may stand."""
        here = d = len(self.scopes) - 1
        need = max([self.floor.get(v, self.depth.get(v, 0)) for v in op.operands], default=0)
        kind = OPS[op.kind].effect
        if kind == "write":
            return here
        left = op.get("leaves", d)
        while d > need:
            s = self.scopes[d]
            if (s.kind == "if" and op.kind != "const") or (kind == "read" and s.writes):
                break
            if s.maybe and left == 0:
                break
            left -= s.maybe
            d -= 1
        return d

    @staticmethod
    def cheap(op: Op) -> bool:
        """Cheaper to remake than to hold in registers through a loop."""
        t = op.result.type
        return len(t.shape) >= 2 and OPS[op.kind].effect == "none" and (op.kind in VIEWS or not t.dtype.is_float)

    def lift(self, v: Value, at: int) -> Value:
        """v as a value of scope `at`, remaking there the cheap ops that were left further in."""
        if self.depth.get(v, 0) <= at:
            return v
        op = self.defs[v]
        again = replace(op, operands=tuple(self.lift(x, at) for x in op.operands), results=(v.anew(),))
        return self.kept(again, at, min(self.floor.get(v, at), at))

    # ---- regions -----------------------------------------------------------------------------------------------------

    def replace_results(self, op: Op, values: Sequence[Value]) -> None:
        self.changed = True
        for old, new in zip(op.results, values):
            self.rename(old, new)

    def loop(self, op: Op) -> None:
        lo, hi = (self.const(v) for v in op.operands[:2])
        if lo is not None and hi is not None and lo >= hi:
            self.replace_results(op, op.operands[2:])
            return
        body = op.regions[0]
        fixed = [i for i, (a, y) in enumerate(zip(body.args[1:], body.yielded)) if a is y]
        if fixed:
            self.changed = True
            for i in fixed:
                self.rename(body.args[1 + i], op.operands[2 + i])
                self.rename(op.results[i], op.operands[2 + i])
            op = carrying(op, [i for i in range(len(op.results)) if i not in fixed])
        dirty, maybe = writes(op.regions[0]), lo is None or hi is None
        self.epoch += dirty
        kinds = ("for", "live")
        regions = tuple(self.region(r, Scope(k, dirty, maybe)) for r, k in zip(op.regions, kinds))
        self.epoch += dirty
        self.append(replace(op, regions=regions))

    def branch(self, op: Op) -> None:
        cond = self.const(op.operands[0])
        if cond is not None:
            chosen = op.regions[0 if cond else 1]
            for o in chosen.ops[:-1]:
                self.visit(o)
            self.replace_results(op, [self.env.get(v, v) for v in chosen.yielded])
            return
        dirty = any(writes(r) for r in op.regions)
        regions = tuple(self.region(r, Scope("if", dirty)) for r in op.regions)
        self.epoch += dirty
        self.append(replace(op, regions=regions))
