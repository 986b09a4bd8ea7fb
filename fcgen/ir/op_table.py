"""The op table: one record per op with its rule, checked and inferred in one place.

`OpDef.infer(operand types, attrs)` returns the result types, or raises `RuleError` naming the rule broken with expected and got.
Ops whose result layout is a free choice (a load may fill any fragment) infer None and check the declared result instead.
The ops themselves are declared in `tile_ops`, `machine_ops`, `async_ops` and `store_ops`; adding one is adding a
record there. `ops` has them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .attrs import TYPE_WORDS, Attribute, attribute
from .core import Op
from .types import Buffer, Cursor, Mbarrier, Pending, Tensor, Type

#: what machine IR goes through (`meta stage`), in order: see ARCHITECTURE.md
PHASES = ("placed", "pipelined", "selected", "allocated", "synced")


class RuleError(Exception):
    """An op that breaks a rule of its definition."""

    def __init__(self, rule: str, expected: Any = None, got: Any = None, hint: str | None = None):
        super().__init__(rule)
        self.rule, self.expected, self.got, self.hint = rule, expected, got, hint


@dataclass(frozen=True)
class OpDef:
    """kind: the op's name in IR text. levels: "tile", "machine". attrs: name -> what it may be. effect: "none" (may be removed or
    duplicated), "read" (may be removed), or "write" (must stay, in order). infer, check: of an op without regions they see its attributes
    and the types of its values, and nothing else: what is like an op that was found right is right. phases: the first and the last phase
    of machine IR that the op may occur in."""

    kind: str
    levels: tuple[str, ...]
    doc: str
    infer: Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Type, ...] | None]
    attrs: Mapping[str, Attribute]
    effect: str = "none"
    check: Callable[[Op], None] | None = None
    phases: tuple[int, int] = (0, len(PHASES) - 1)
    traits: frozenset[str] = frozenset()
    reach: Reach | None = None


OPS: dict[str, OpDef] = {}
#: what passes, printer and simulator may ask of an op without knowing which it is
TRAITS = {
    "elementwise": "each element of the result follows from the operands' elements at the same place",
    "compare": "an elementwise comparison",
    "cheap": "made from scalars and shapes alone, or by copying: made again where it is read rather than kept",
    "view": "the same elements in another order or fewer of them: nothing moves",
    "reduces": "elements along an axis become one",
    "finishes": "makes a partial reduction complete",
    "product": "a matrix product that adds to its third operand",
    "fills": "starts a copy that somebody waits for later",
    "reads shared": "registers from a slot: `buffer, row, col`",
    "writes shared": "to a slot from registers, or by a copy of each thread: `..., buffer, row, col` or the buffer last",
    "regions": "has regions",
    "in flight": "may take an accumulator in flight",
    "position": "may take a ring's position",
    "named barrier": "waits at, or arrives at, one of the block's hardware barriers",
}


@dataclass(frozen=True)
class Reach:
    """How an op that accesses a tensor by an index lists its operands. before, after: how many stand in front of the index's scalars and
    behind them. tile: the operand that has the tile's shape, None for the result."""

    before: int
    after: int
    tile: int | None


def having(trait: str) -> frozenset[str]:
    """The ops with this trait."""
    assert trait in TRAITS, trait
    return frozenset(kind for kind, d in OPS.items() if trait in d.traits)


def define(kind: str, levels: str, doc: str, infer: Callable[..., Any], *, effect: str = "none",
           check: Callable[[Op], None] | None = None, phases: str = "placed synced", traits: str = "",
           reach: tuple[int, int, int | None] | None = None, **attrs: Any) -> None:
    """Declare an op. levels: words "tile" and/or "machine". phases: the first and the last one of machine IR that it occurs in. traits:
    words of `TRAITS` with commas between them. reach: see `Reach`."""
    has = frozenset(filter(None, traits.split(", ")))
    assert has <= set(TRAITS), f"{kind}: no such trait: {has - set(TRAITS)}"
    assert kind not in OPS, f"op {kind} is declared twice"
    first, last = phases.split()
    OPS[kind] = OpDef(kind, tuple(levels.split()), " ".join(doc.split()), infer, {n: attribute(a) for n, a in attrs.items()}, effect, check,
                      (PHASES.index(first), PHASES.index(last)), has, Reach(*reach) if reach else None)


def need(condition: bool, rule: str, expected: Any = None, got: Any = None, hint: str | None = None) -> None:
    if not condition:
        raise RuleError(rule, _listed(expected), _listed(got), hint)


def _listed(v: Any) -> Any:
    """Types in a row as people write them; they are not put into words before a rule is broken."""
    types = isinstance(v, (tuple, list)) and v and not any(isinstance(x, (int, str)) for x in v)
    return ", ".join(map(str, v)) if types else v


def attr_problem(d: OpDef, attrs: Mapping[str, Any]) -> tuple[str, RuleError] | None:
    """The first attribute that is missing, unknown, or not what it may be, and what to say about it."""
    if not attrs and not d.attrs:
        return None
    for name, a in d.attrs.items():
        if name not in attrs:
            if not a.optional:
                return name, RuleError(f"{d.kind} needs the attribute {name!r}", expected=a.words)
        elif not a.typed(v := attrs[name]):
            return name, RuleError(f"{d.kind}: attribute {name!r} has the wrong type",
                                   expected=" or ".join(TYPE_WORDS.get(t, t.__name__) for t in a.types), got=short(v))
        elif not a.legal(v):
            return name, RuleError(f"{d.kind}: attribute {name!r} may not have this value", expected=a.words, got=short(v))
    if len(attrs) > len(d.attrs) or any(name not in d.attrs for name in attrs):
        name = next(n for n in attrs if n not in d.attrs)
        return name, RuleError(f"{d.kind} has no attribute {name!r}", expected=", ".join(d.attrs) or "no attributes")
    return None


def told(kind: str, e: RuleError) -> str:
    """The rule, which names its op."""
    return e.rule if e.rule.startswith(kind) else f"{kind}: {e.rule}"


def short(v: Any) -> str:
    """A value in a message."""
    text = repr(v) if not isinstance(v, int) or abs(v) < 1 << 80 else f"a number of {v.bit_length()} bits"
    return text if len(text) <= 200 else text[:200] + "..."


def misuse(op: Op) -> RuleError | None:
    """An op that takes an accumulator in flight or a ring's position, and is not one of those that may."""
    for v in op.operands:
        if isinstance(v.type, Pending) and "in flight" not in OPS[op.kind].traits:
            return RuleError(f"{op.kind} touches an accumulator in flight", "a settled fragment", v.type)
        if isinstance(v.type, Cursor) and "position" not in OPS[op.kind].traits:
            return RuleError(f"{op.kind} takes a ring's position", "a value", v.type)
        if isinstance(v.type, (Buffer, Mbarrier, Tensor)) and (op.kind == "yield" or "regions" in OPS[op.kind].traits):
            return RuleError(f"{op.kind} passes on memory: which one an access reaches is known where it stands", "values", v.type)
    return None
