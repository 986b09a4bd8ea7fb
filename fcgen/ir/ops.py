"""The op table: one record per op with its rule, checked and inferred in one place; and verification of whole kernels.

`OpDef.infer(operand types, attrs)` returns the result types, or raises `RuleError` naming the rule broken with expected and got.
Ops whose result layout is a free choice (a load may fill any fragment) infer None and check the declared result instead.
The ops themselves are declared in `tile_ops` and `machine_ops`; adding one is adding a record there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import FcError, Loc
from .alignment import promised
from .core import Block, Kernel, Op, Value
from .layout import RegLayout
from .ranges import admitted
from .types import Buffer, Cursor, Frag, Pending, Type


class RuleError(Exception):
    """An op that breaks a rule of its definition."""

    def __init__(self, rule: str, expected: Any = None, got: Any = None, hint: str | None = None):
        super().__init__(rule)
        self.rule, self.expected, self.got, self.hint = rule, expected, got, hint


@dataclass(frozen=True)
class OpDef:
    """kind: the op's name in IR text. levels: "tile", "machine". attrs: name -> type; a name ending in "?" may be missing.
    effect: "none" (may be removed or duplicated), "read" (may be removed), or "write" (must stay, in order)."""

    kind: str
    levels: tuple[str, ...]
    doc: str
    infer: Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Type, ...] | None]
    attrs: Mapping[str, type | tuple[type, ...]]
    effect: str = "none"
    check: Callable[[Op], None] | None = None

    @cached_property
    def attr_rules(self) -> tuple[tuple[str, tuple[type, ...], bool], ...]:
        """(name, the types it may have, whether it may be missing) of each attribute."""
        every = {name: kind if isinstance(kind, tuple) else (kind,) for name, kind in self.attrs.items()}
        return tuple((name, tuple(k for k in kinds if k is not None), None in kinds) for name, kinds in every.items())


OPS: dict[str, OpDef] = {}


def define(kind: str, levels: str, doc: str, infer: Callable[..., Any], *, effect: str = "none",
           check: Callable[[Op], None] | None = None, **attrs: Any) -> None:
    """Declare an op. levels: words "tile" and/or "machine". An attr given as `(type, None)` is optional."""
    assert kind not in OPS, f"op {kind} is declared twice"
    OPS[kind] = OpDef(kind, tuple(levels.split()), " ".join(doc.split()), infer, attrs, effect, check)


def need(condition: bool, rule: str, expected: Any = None, got: Any = None, hint: str | None = None) -> None:
    if not condition:
        raise RuleError(rule, expected, got, hint)


def infer(kind: str, operands: Iterable[Value], attrs: Mapping[str, Any], loc: Loc | None = None) -> tuple[Type, ...]:
    """Result types of an op. Raises FcError "ir/verify" where the rule is broken or the result type is a free choice."""
    load_ops()
    try:
        types = OPS[kind].infer(tuple(v.type for v in operands), attrs)
    except RuleError as e:
        raise FcError("ir/verify", _told(kind, e), expected=e.expected, got=e.got, hint=e.hint, loc=loc) from None
    assert types is not None, f"{kind}: the result type is a free choice and must be given"
    return types


def has_effect(op: Op) -> bool:
    """Whether the op must stay even if nobody reads its results."""
    load_ops()
    if any(o.kind != "yield" and has_effect(o) for r in op.regions for o in r.ops):
        return True
    return OPS[op.kind].effect == "write"


def verify(kernel: Kernel, *, places: Mapping[Op | Value, Loc] | None = None, source: str | None = None) -> Kernel:
    """Check every op against its record, and that values are defined once and before use. Returns the kernel.

    Raises FcError "ir/verify" with the op's place and, as notes, the op itself. places, source: for a kernel that was read from
    text, the place in it of each op and of each kernel-level value, and the text; shown where an op has no place of its own, as a
    note where it has."""
    load_ops()
    _Verifier(kernel, places or {}, source).run()
    return kernel


class _Verifier:
    def __init__(self, kernel: Kernel, places: Mapping[Op | Value, Loc], source: str | None):
        self.kernel, self.places, self.source = kernel, places, source

    def run(self) -> None:
        k = self.kernel
        if k.level not in ("tile", "machine"):
            raise FcError("ir/verify", "a kernel is at one of two levels", expected="tile or machine", got=k.level)
        twice = next((p for n, p in enumerate(k.params) if p.name in {q.name for q in k.params[:n]}), None)
        if twice is not None:
            raise FcError("ir/verify", "two parameters have one name", got=f"%{twice.name}", loc=self.places.get(twice), source=self.source,
                          hint="a call tells them apart by their names (what follows a dot is no part of one)")
        promised(k)
        if "ranges" in k.meta:
            admitted(k)
        outer = set(k.params) | set(k.buffers)
        for v in outer:
            self.check_type(v, None)
        for role in k.roles:
            if len(role.body.args) != len(k.grid):
                raise FcError("ir/verify", f"role {role.name}: one argument per grid axis", expected=len(k.grid),
                              got=len(role.body.args))
            self.block(role.body, outer)

    def block(self, block: Block, outer: set[Value]) -> None:
        seen = outer | set(block.args)
        for op in block.ops:
            self.op(op, seen)
            if op.kind == "yield" and op is not block.ops[-1]:
                raise self.bad(op, RuleError("yield is the last op of its region"))
            for r in op.regions:
                self.block(r, seen)
            for v in op.results:
                if v in seen:
                    raise self.bad(op, RuleError(f"value %{v.name} is defined twice"))
                self.check_type(v, op)
            seen |= set(op.results)

    def op(self, op: Op, seen: set[Value]) -> None:
        d = OPS.get(op.kind)
        if d is None:
            raise self.bad(op, RuleError(f"no op is called {op.kind!r}"))
        if self.kernel.level not in d.levels:
            raise self.bad(op, RuleError(f"{op.kind} does not exist at this level", expected=" or ".join(d.levels),
                                         got=self.kernel.level))
        for v in op.operands:
            if v not in seen:
                raise self.bad(op, RuleError(f"operand %{v.name} is used before it is defined"))
        problem = attr_problem(d, op.attrs)
        if problem is not None:
            raise self.bad(op, problem[1])
        wrong = misuse(op)
        if wrong is not None:
            raise self.bad(op, wrong)
        try:
            types = d.infer(tuple([v.type for v in op.operands]), op.attrs)
            if types is not None:
                got = tuple([r.type for r in op.results])
                if tuple(types) != got:
                    raise RuleError("result types follow from the operands", expected=_join(types), got=_join(got))
            if d.check is not None:
                d.check(op)
            need(d.check is not None or not op.regions, f"{op.kind} has no regions")
        except RuleError as e:
            raise self.bad(op, e) from None
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
            # The rules read like the ops' documentation and take the number and kind of operands for granted.
            raise self.bad(op, RuleError("these operands and results make no sense here", expected=d.doc,
                                         got=f"{_join(v.type for v in op.operands) or 'nothing'} -> "
                                             f"{_join(v.type for v in op.results) or 'nothing'}")) from e

    def check_type(self, v: Value, op: Op | None) -> None:
        """What a type must hold by itself."""
        t, who = v.type, f"%{v.name}: " if v.name else ""
        rule = None
        if isinstance(t, Frag) and isinstance(t.layout, RegLayout) and t.layout.shape != t.shape:
            rule = RuleError(f"{who}the fragment's layout covers its shape", t.shape, t.layout.shape)
        elif isinstance(t, Frag) and isinstance(t.layout, RegLayout) and t.layout.problem():
            rule = RuleError(f"{who}{t.layout.problem()}", got=t.layout)
        elif isinstance(t, Buffer) and (not t.shape or t.shape[-1] % t.layout.panel):
            rule = RuleError(f"{who}the buffer's columns are whole panels", f"a multiple of {t.layout.panel}", t)
        if rule is not None:
            raise self.bad(op, rule) if op is not None else FcError("ir/verify", rule.rule, expected=rule.expected, got=rule.got,
                                                                    loc=self.places.get(v), source=self.source)

    def bad(self, op: Op, e: RuleError) -> FcError:
        from .text import print_op

        notes, loc, source, place = [f"in  {print_op(op, self.kernel)}"], op.loc, None, self.places.get(op)
        if place is not None:
            if loc is None:
                loc, source = place, self.source
            elif loc != Loc(place.file, place.line):
                notes.append(f"which is line {place.line} of {place.file}")
        return FcError("ir/verify", _told(op.kind, e), expected=e.expected, got=e.got,
                       hint=e.hint, loc=loc, notes=notes, source=source)


def _told(kind: str, e: RuleError) -> str:
    """The rule, which names its op."""
    return e.rule if e.rule.startswith(kind) else f"{kind}: {e.rule}"


def _join(types: Iterable[Any]) -> str:
    return ", ".join(map(str, types))


def attr_problem(d: OpDef, attrs: Mapping[str, Any]) -> tuple[str, RuleError] | None:
    """The first attribute that is missing, of the wrong type or unknown, and what to say about it."""
    for name, allowed, optional in d.attr_rules:
        if name not in attrs:
            if not optional:
                return name, RuleError(f"{d.kind} needs the attribute {name!r}")
            continue
        v = attrs[name]
        if not isinstance(v, allowed) or (isinstance(v, bool) and bool not in allowed):
            return name, RuleError(f"{d.kind}: attribute {name!r} has the wrong type",
                                   expected=" or ".join(_TYPE_WORDS.get(t, t.__name__) for t in allowed), got=repr(v))
    for name in attrs:
        if name not in d.attrs:
            return name, RuleError(f"{d.kind} has no attribute {name!r}", expected=", ".join(d.attrs) or "no attributes")
    return None


_TYPE_WORDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a string",
                                tuple: "a tuple", RegLayout: "a register layout"}


def misuse(op: Op) -> RuleError | None:
    """An op that takes an accumulator in flight or a ring's position, and is not one of those that may."""
    for v in op.operands:
        if isinstance(v.type, Pending) and op.kind not in MAY_BE_PENDING:
            return RuleError(f"{op.kind} touches an accumulator in flight", "a settled fragment", v.type)
        if isinstance(v.type, Cursor) and op.kind not in MAY_BE_CURSOR:
            return RuleError(f"{op.kind} takes a ring's position", "a value", v.type)
    return None


#: ops that may take an accumulator in flight, and a position in a ring
MAY_BE_PENDING = {"wgmma", "settle", "yield", "for", "if", "while"}
MAY_BE_CURSOR = {"advance", "slot", "mbar_expect", "mbar_arrive", "mbar_wait", "tma_load", "yield", "for", "if", "while"}


def load_ops() -> None:
    """The tables live in modules that import this one."""
    if "for" not in OPS or "barrier" not in OPS or "wgmma" not in OPS or "tma_store" not in OPS:
        from . import async_ops, machine_ops, store_ops, tile_ops  # noqa: F401
