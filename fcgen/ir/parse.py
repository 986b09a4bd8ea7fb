"""IR text -> kernel: the grammar of `grammar.lark` read into values, ops and blocks.

Nothing in the text is evaluated. What the op table knows of an op's spelling (kinds, attributes) is checked here, where the caret
can stand under the word; the op's own rules are checked by `ops.verify` afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedInput, UnexpectedToken

from ..errors import FcError, Loc, did_you_mean
from .core import Block, GridAxis, Kernel, Op, Role, Value
from .op_table import OpDef, attr_problem
from .ops import OPS
from .parse_words import WordReader
from .text import MOST_TEXT, REGION_WORDS, base_name
from .types import Scalar, i32
from .verify import NESTING, verify

#: how messages speak of the grammar's terminals; the others are spelled as themselves
WORDS = {"VALUE": "a value such as %x", "NAME": "a name", "INT": "a whole number", "FLOAT": "a number", "_COMMA": "`,`",
         "STRING": 'a string in "quotes"', "ALIAS": "a layout name such as $0", "_NL": "the end of the line",
         "MARK": "a place such as @file.py:12", "FACTOR": "a digit such as w4@1, l8@4 or r2@1", "TIMES": "warps such as 4x1",
         "RING": "a slot count such as x2", "$END": "the end of the text"}


@lru_cache(maxsize=1)
def parser() -> Lark:
    grammar = Path(__file__).with_name("grammar.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", propagate_positions=True, maybe_placeholders=True)


def parse_kernel(text: str, filename: str = "<ir>", *, locate: bool = False) -> Kernel:
    """Read and verify a kernel. Raises FcError "ir/parse" or "ir/verify" with a place in the text; evaluates nothing.

    locate: ops without an @mark get their line of this text as their place (for IR that people write by hand)."""
    kernel, places = read(text, filename, locate)
    return verify(kernel, places=places)


def read(text: str, filename: str = "<ir>", locate: bool = False) -> tuple[Kernel, dict[Any, Loc]]:
    """The kernel as it stands there, not verified; and where in the text what is no op stands, by the keys of `kernel_rules`."""
    if len(text) > MOST_TEXT:
        raise FcError("ir/parse", f"{filename} is no kernel: it is too long", expected=f"at most {MOST_TEXT} characters", got=len(text))
    reader = _Reader(text, filename, locate)
    try:
        return reader.kernel(parser().parse(text + "\n")), reader.places
    except UnexpectedInput as e:
        reader.syntax(e)


class _Reader(WordReader):
    def __init__(self, source: str, filename: str, locate: bool):
        super().__init__(source, filename)
        self.locate = locate
        self.tree: Any = None
        self.files: dict[str, str] = {}  # mark -> file
        self.places: dict[Any, Loc] = {}  # of what is no op: see `kernel_rules`
        self.made: dict[str, Any] = {}  # value name -> the token that made it last

    def syntax(self, e: UnexpectedInput) -> NoReturn:
        """What the grammar did not take, in words."""
        if isinstance(e, UnexpectedToken):
            expected = set(e.accepts or e.expected)
            got = {"$END": "the end of the text", "_NL": "the end of the line"}.get(e.token.type, f"`{e.token.strip()}`")
            width = len(e.token.split("\n")[0])
        else:
            expected, got, width = set(getattr(e, "allowed", None) or ()), f"`{getattr(e, 'char', '?')}`", 1
        lines = self.lines
        line, col = int(e.line), int(e.column) - 1
        if not 1 <= line <= len(lines):
            line, col = len(lines), len(lines[-1])
        keywords = [s for t, s in _spelled().items() if t in expected and s.isalpha()]
        if got == '`"`':
            hint: str | None = "a string ends on the line where it starts"
        elif got == "the end of the text" and "RBRACE" in expected:
            hint = "a `{` above is not closed"
        else:
            hint = did_you_mean(got.strip("`"), keywords)
        if keywords:
            expected.discard("$END")
        raise FcError("ir/parse", f"{got} does not fit here", expected=_in_words(expected), hint=hint,
                      loc=self.at(line, col, col + max(1, width))) from None

    # ---- header ----

    def kernel(self, tree: Any) -> Kernel:
        self.tree = tree
        level, name, *items = tree.children
        if level not in ("tile", "machine"):
            hint = did_you_mean(level, ("tile", "machine"))
            self.fail(level, f"there is no level {str(level)!r}", expected="tile or machine", hint=hint)
        lines = lambda kind: (t for t in items if t.data == kind)
        for t in lines("source"):
            path = self.string(t.children[0])
            self.files[self.word(t.children[1]) if t.children[1] else path.replace("\\", "/").rsplit("/", 1)[-1]] = path
        for t in lines("layout"):
            self.layouts[str(t.children[0])] = self.reg_layout(t.children[1])
        scope: dict[str, Value] = {}
        params = tuple(self.define(t.children[0], self.type(t.children[1]), scope) for t in lines("param"))
        flags = {p.name: tuple(self.word(f.children[0]) for f in t.children[2:])
                 for p, t in zip(params, lines("param")) if t.children[2:]}
        axes = [(axis.children[0], self.axis(axis)) for t in lines("grid") for axis in t.children]
        buffers = tuple(self.define(t.children[0], self.shared(t.children[1:]), scope) for t in lines("smem"))
        bodies = [t for t in items if t.data in ("role", "body")]
        self.places.update((v, self.place(t.children[0])) for v, t in zip((*params, *buffers), (*lines("param"), *lines("smem"))))
        self.places.update((("grid", n), self.place(token)) for n, (token, _) in enumerate(axes))
        self.places.update((("role", n), self.place(t)) for n, t in enumerate(bodies))
        roles = tuple(self.role(t, [token for token, _ in axes], scope) for t in bodies)
        if not roles:
            raise FcError("ir/parse", "the kernel has no body", expected="`{ ... }`, or `role NAME warps N { ... }`",
                          loc=self.at(len(self.source.rstrip().split("\n")), 0))
        order, meta = self.order(lines("order"), len(axes)), self.meta(lines("meta"))
        return Kernel(self.word(name), str(level), params, tuple(a for _, a in axes), roles, flags, order, buffers, meta)

    def meta(self, lines: Iterator[Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for t in (a for line in lines for a in line.children):
            name, value = self.attr(t)
            if name in out:
                self.fail(t, f"meta {name} is given twice")
            out[name] = value
            self.places["meta", name] = self.place(t)
        return out

    def axis(self, tree: Any) -> GridAxis:
        token, dim, *rest = tree.children
        given = {t.data: self.number(t.children[0], 1, f"a {t.data}") for t in rest if isinstance(t, Tree)}
        return GridAxis(base_name(token[1:]), self.dim(dim), given.get("tile", 1), any(isinstance(t, Token) for t in rest),
                        given.get("cluster", 1))

    def order(self, lines: Iterator[Any], axes: int) -> tuple[int, ...]:
        order: tuple[int, ...] = ()
        for t in lines:
            order = tuple(self.number(n) for n in t.children)
            if sorted(order) != list(range(axes)):
                self.fail(t, "order names each grid axis once, by its number",
                          expected=f"the numbers 0 to {axes - 1}, in some order", got=", ".join(map(str, order)))
        return order

    def role(self, tree: Any, axes: list[Any], scope: dict[str, Value]) -> Role:
        args = tuple(self.define(token, Scalar(i32), scope) for token in axes)
        name, warps, regs, rest = "all", 0, 0, list(tree.children)
        if tree.data == "role":
            name, warps, rest = self.word(rest[0]), self.number(rest[1], 0, "the number of warps"), rest[2:]
            if rest and rest[0].data == "regs":
                regs = self.number(rest.pop(0).children[0], 0, "the number of registers")
        return Role(name, warps, Block(args, self.ops(rest, scope, 0, axes)), regs)

    # ---- ops ----

    def ops(self, trees: list[Any], scope: dict[str, Value], depth: int, args: list[Any]) -> tuple[Op, ...]:
        """The ops of a region with these arguments. What they make is in scope up to the region's end: a name in scope is not made anew, so
        that one table does for all regions."""
        out, made = [], list(args)
        for t in trees:
            if isinstance(t, Tree):
                out.append(self.op(t, scope, depth))
                made += t.children[0].children if t.children[0] else []
        for name in made:
            del scope[name]
        return tuple(out)

    def op(self, tree: Any, scope: dict[str, Value], depth: int) -> Op:
        names, kind, operand_names, attr_trees, region_trees, type_trees, *marks = tree.children
        d = OPS.get(kind)
        if d is None:
            self.fail(kind, f"no op is called {str(kind)!r}", hint=did_you_mean(kind, OPS))
        operands = tuple(self.use(t, scope) for t in operand_names.children) if operand_names else ()
        attrs = self.attrs(d, kind, attr_trees.children if attr_trees else [])
        tokens = names.children if names else []
        types = [self.type(t) for t in type_trees.children] if type_trees else []
        if len(tokens) != len(types):
            self.fail(type_trees or names or kind, f"{kind}: after the colon comes one type for each result",
                      expected=f"{len(tokens)} type" + "s" * (len(tokens) != 1), got=len(types))
        regions: tuple[Block, ...] = ()
        if region_trees:
            first, *more = region_trees.children
            marks += [c for c in first.children if isinstance(c, Token)]
            expected = REGION_WORDS.get(kind, "and")
            for t in more:
                if t.children[0] != expected:
                    self.fail(t.children[0], f"{kind}: another word starts its second region", expected=expected,
                              got=t.children[0])
            if depth == NESTING:
                self.fail(kind, "regions are nested too deeply", expected=f"at most {NESTING}")
            regions = tuple([self.region(t, scope, depth + 1) for t in (first, *(t.children[1] for t in more))])
        results = tuple(self.define(t, ty, scope) for t, ty in zip(tokens, types))
        here = self.place(kind)
        loc = self.mark(marks[0]) if marks else Loc(self.filename, here.line) if self.locate else None
        return Op(str(kind), operands, results, attrs, regions, loc, here)

    def attrs(self, d: OpDef, kind: Any, trees: list[Any]) -> dict[str, Any]:
        attrs: dict[str, Any] = {}
        where: dict[str, Any] = {}
        for t in trees:
            name, value = self.attr(t)
            if name in attrs:
                self.fail(t, f"attribute {name!r} is given twice")
            attrs[name], where[name] = value, t if name in d.attrs else t.children[0]
        problem = attr_problem(d, attrs)
        if problem is not None:
            name, e = problem
            self.fail(where.get(name, kind), e.rule, expected=e.expected, got=e.got, hint=e.hint)
        return attrs

    def region(self, tree: Any, scope: dict[str, Value], depth: int) -> Block:
        head, *rest = tree.children
        given = [(a.children[0], self.type(a.children[1])) for a in (head.children if head is not None else ()) if a is not None]
        args = tuple([self.define(token, type, scope) for token, type in given])
        return Block(args, self.ops(rest, scope, depth, [token for token, _ in given]))

    # ---- values ----

    def define(self, token: Any, type: Any, scope: dict[str, Value]) -> Value:
        if token in scope:
            first = self.made.get(token)
            self.fail(token, f"{token} is defined twice", notes=[f"first on line {first.line}"] if first is not None else [],
                      hint="give one of them another name")
        v = scope[str(token)] = Value(type, base_name(token[1:]))
        self.made[str(token)] = token
        return v

    def use(self, token: Any, scope: dict[str, Value]) -> Value:
        v = scope.get(token)
        if v is not None:
            return v
        notes, hint, where = [], did_you_mean(token, scope), self.definition(token)
        if where is not None and where.line < token.line:
            notes, hint = [f"the {token} of line {where.line} belongs to another region"], "yield it from that region"
        elif where is not None:
            notes, hint = [f"{token} is defined later, on line {where.line}"], None
        self.fail(token, f"no value {token} is defined here", notes=notes, hint=hint)

    def definition(self, name: str) -> Any:
        """The token that makes this value anywhere in the text, or None."""
        made = (c for t in self.tree.iter_subtrees_topdown() if t.data in ("results", "arg") for c in t.children)
        return next((c for c in made if isinstance(c, Token) and c == name), None)

    def mark(self, token: Any) -> Loc:
        name, line = token[1:].rsplit(":", 1)
        return Loc(self.files.get(name, name), self.number(token.update(value=line)))


def _spelled() -> dict[str, str]:
    return {t.name: t.pattern.value for t in parser().terminals if t.pattern.type == "str"}


def _in_words(terminals: set[str]) -> str:
    """`a`, `b` or a name: what the grammar takes here."""
    spelled = _spelled()
    words = sorted((f"`{spelled[t]}`" if t in spelled else WORDS.get(t, t) for t in terminals), key=lambda w: (w[0] == "`", w))
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1] if words else "something else"
