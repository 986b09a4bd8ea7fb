"""The op table: one record per op with its rule, checked and inferred in one place.

`OpDef.infer(operand types, attrs)` returns the result types, or raises `RuleError` naming the rule broken with expected and got. Ops whose
result layout is a free choice (a load may fill any fragment) infer None and check the declared result instead. What an op takes and makes
is a *signature* where words (`WORDS`) say it: "slot, i32, i32 -> regs", "tensor, *, slot ->" (any scalars and vectors between). The ops
themselves are declared in `tile_ops`, `machine_ops`, `async_ops` and `store_ops`; adding one is adding a record there. `ops` has them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import did_you_mean
from .attrs import TYPE_WORDS, Attribute, attribute
from .core import Op
from .layout import OpaqueLayout, RegLayout
from .types import Buffer, Cursor, Frag, Mbarrier, Pending, Scalar, Tensor, Type, i32

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


#: what a signature may ask for, and how people call it
WORDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "i32": (lambda t: t == Scalar(i32), "an i32 scalar"), "tensor": (lambda t: isinstance(t, Tensor), "a tensor parameter"),
    "smem": (lambda t: isinstance(t, Buffer), "a shared-memory tile"), "bars": (lambda t: isinstance(t, Mbarrier), "mbarriers"),
    "slot": (lambda t: isinstance(t, Buffer) and t.slots == 1, "one slot of a ring, taken with `slot`"),
    "cursor": (lambda t: isinstance(t, Cursor), "a ring's position"), "frag": (lambda t: isinstance(t, Frag), "a fragment"),
    "pending": (lambda t: isinstance(t, Pending), "an accumulator in flight"),
    "regs": (lambda t: isinstance(t, Frag) and isinstance(t.layout, RegLayout), "a fragment of registers"),
    "wmma": (lambda t: isinstance(t, Frag) and isinstance(t.layout, OpaqueLayout), "a wmma fragment"),
    "complete": (lambda t: isinstance(t, Frag) and t.partial is None, "a complete fragment"),
    "partial": (lambda t: isinstance(t, Frag) and t.partial is not None, "a partial reduction")}
#: results that follow from the signature alone
FIXED: dict[str, Type] = {"i32": Scalar(i32)}


@dataclass(frozen=True)
class Signature:
    """words: of operands, those in front of a `*` and behind it. one_dtype: all that the words name have one."""

    kind: str
    text: str
    front: tuple[str, ...]
    back: tuple[str, ...] | None
    results: tuple[str, ...]
    one_dtype: bool

    @staticmethod
    def read(kind: str, text: str, one_dtype: bool) -> Signature:
        operands, results = (tuple(w for w in part.strip().split(", ") if w) for part in text.split("->"))
        at = operands.index("*") if "*" in operands else len(operands)
        return Signature(kind, text.split("->")[0].strip(), operands[:at], operands[at + 1:] if "*" in operands else None, results,
       one_dtype)

    def infer(self, types: tuple[Any, ...]) -> tuple[Type, ...] | None:
        named = self.named(types)
        need(named is not None, f"{self.kind} takes {self.text or 'no operands'}", self.text or "none", types or "none")
        for w, t in zip((*self.front, *(self.back or ())), named or ()):
            if not WORDS[w][0](t):
                raise RuleError(f"{self.kind} takes {WORDS[w][1]}", self.text, _listed(types))
        return tuple([FIXED[w] for w in self.results]) if all([w in FIXED for w in self.results]) else None

    def named(self, types: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The types of what words name; None of another number of operands."""
        n, m = len(self.front), len(self.back or ())
        if len(types) < n + m or (self.back is None and len(types) > n):
            return None
        return (*types[:n], *types[len(types) - m:])

    def check(self, op: Op) -> None:
        made = tuple(r.type for r in op.results)
        need(len(made) == len(self.results), f"{self.kind} makes {', '.join(self.results) or 'nothing'}", got=made)
        for w, t in zip(self.results, made):
            need(WORDS[w][0](t), f"{self.kind} makes {WORDS[w][1]}", w, t)
        if self.front[-3:] == ("slot", "i32", "i32"):
            t, buffer = (op.results or op.operands)[0].type, op.operands[-3].type
            shape = t.shape[::-1] if op.get("transposed") else t.shape
            fits = len(shape) != 2 or len(buffer.shape) != 2 or all(a <= b for a, b in zip(shape, buffer.shape))
            need(fits, f"{self.kind}: the fragment fits the stored tile", buffer.shape, shape)
        if (self.back or self.front)[-2:] == ("bars", "cursor"):
            bars, cursor = (v.type for v in op.operands[-2:])
            fits = bars.slots == cursor.slots * (op.get("parts") or 1)
            need(fits, f"{self.kind}: the cursor counts as many slots as there are barriers", bars, cursor)
        if self.one_dtype:
            named = (*(self.named(tuple(v.type for v in op.operands)) or ()), *made)
            dtypes = [t.dtype for t in named if isinstance(t, (Tensor, Buffer, Frag))]
            need(len(set(dtypes)) == 1, f"{self.kind}: one dtype", dtypes[0], dtypes[-1])


def define(kind: str, levels: str, doc: str, infer: str | Callable[..., Any], *, effect: str = "none",
           check: Callable[[Op], None] | None = None, phases: str = "placed synced", traits: str = "",
           reach: tuple[int, int, int | None] | None = None, one_dtype: bool = False, makes: Callable[..., Any] | None = None,
           **attrs: Any) -> None:
    """Declare an op. levels: words "tile" and/or "machine". infer: a signature, or a function that gives the types of the results. makes:
    gives them where a signature says what is taken. phases: the first and the last one of machine IR that it occurs in. traits: words of
    `TRAITS` with commas between them. reach: see `Reach`. one_dtype: tensor, tile and fragment that it names have one."""
    has = frozenset(filter(None, traits.split(", ")))
    assert has <= set(TRAITS), f"{kind}: no such trait: {has - set(TRAITS)}"
    assert kind not in OPS, f"op {kind} is declared twice"
    first, last = phases.split()
    rule, also = _of_signature(Signature.read(kind, infer, one_dtype), check, makes) if isinstance(infer, str) else (infer, check)
    OPS[kind] = OpDef(kind, tuple(levels.split()), " ".join(doc.split()), rule, {n: attribute(a) for n, a in attrs.items()}, effect, also,
                      (PHASES.index(first), PHASES.index(last)), has, Reach(*reach) if reach else None)


def _of_signature(sig: Signature, also: Callable[[Op], None] | None, makes: Callable[..., Any] | None) -> tuple[Any, Any]:
    """(infer, check) of an op with a signature and a check of its own."""
    def infer(types: tuple[Any, ...], attrs: Mapping[str, Any]) -> Any:
        out = sig.infer(types)
        return makes(types, attrs) if makes is not None else out

    def check(op: Op) -> None:
        sig.check(op)
        if also is not None:
            also(op)

    plain = also is None and not sig.one_dtype and (makes is not None or all(w in FIXED for w in sig.results)) and "bars" not in sig.front
    return infer, None if plain else check


def need(condition: bool, rule: str, expected: Any = None, got: Any = None, hint: str | None = None) -> None:
    if not condition:
        raise RuleError(rule, _listed(expected), _listed(got), hint)


def need_none(kind: str, wrong: RuleError | None) -> None:
    """Raises what is wrong, where something is, as of this op."""
    if wrong is not None:
        raise RuleError(f"{kind}: {wrong.rule}", wrong.expected, wrong.got)


def _listed(v: Any) -> Any:
    """Types in a row as people write them; they are not put into words before a rule is broken."""
    types = isinstance(v, (tuple, list)) and v and not any(isinstance(x, (int, str)) for x in v)
    return ", ".join(map(str, v)) if types else v


def need_region(op: Op, number: int, what: str, args: tuple[Any, ...], yields: tuple[Any, ...]) -> None:
    """The rule of a region of an op: the types of its arguments, and of what it yields."""
    r = op.regions[number]
    got = tuple(a.type for a in r.args), tuple(v.type for v in r.yielded)
    need(got[0] == args, f"{op.kind}: the arguments of {what}", args or "none", got[0] or "none")
    need(bool(r.ops) and r.ops[-1].kind == "yield", f"{op.kind}: {what} ends in yield")
    need(got[1] == yields, f"{op.kind}: {what} yields", yields or "nothing", got[1] or "nothing")


def attr_problem(d: OpDef, attrs: Mapping[str, Any]) -> tuple[str, RuleError] | None:
    """The first attribute that is missing, unknown, or not what it may be, and what to say about it."""
    if not attrs and not d.attrs:
        return None
    for name in attrs:
        if name not in d.attrs:
            return name, RuleError(f"{d.kind} has no attribute {name!r}", ", ".join(d.attrs) or "no attributes",
                                   hint=did_you_mean(name, d.attrs))
    for name, a in d.attrs.items():
        if name not in attrs:
            if not a.optional:
                return name, RuleError(f"{d.kind} needs the attribute {name!r}", expected=a.words)
        elif not a.typed(v := attrs[name]):
            return name, RuleError(f"{d.kind}: attribute {name!r} has the wrong type",
                                   expected=" or ".join(TYPE_WORDS.get(t, t.__name__) for t in a.types), got=short(v))
        elif not a.legal(v):
            return name, RuleError(f"{d.kind}: attribute {name!r} may not have this value", expected=a.words, got=short(v))
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
