"""IR text -> kernel: the grammar of `grammar.lark` read into values, ops and blocks, with errors that point into the text.

Nothing in the text is evaluated. What the op table knows (kinds, attributes) is checked here, where the caret can stand under the
word; the rules of each op are checked by `ops.verify` afterwards.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from ..errors import FcError, Loc
from .core import Block, GridAxis, Kernel, Op, Role, Value
from .layout import Factor, OpaqueLayout, RegLayout, SmemLayout
from .ops import OPS, _load, attr_problem, verify
from .text import REGION_WORDS, RESERVED, base_name
from .types import DTYPES, Buffer, DType, Frag, Scalar, Tensor, Tile

WORDS = {"VALUE": "a value such as %x", "NAME": "a name", "INT": "a whole number", "FLOAT": "a number", "_COMMA": "`,`",
         "STRING": 'a string in "quotes"', "ALIAS": "a layout name such as $0", "_NL": "the end of the line",
         "MARK": "a place such as @file.py:12", "FACTOR": "a digit such as w4@1, l8@4 or r2@1", "TIMES": "warps such as 4x1",
         "RING": "a slot count such as x2", "$END": "the end of the text"}


@lru_cache(maxsize=1)
def parser() -> Lark:
    grammar = Path(__file__).with_name("grammar.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", propagate_positions=True, maybe_placeholders=True)


def parse(text: str, filename: str = "<ir>", locate: bool = False) -> Kernel:
    reader = _Reader(text, filename, locate)
    try:
        tree = parser().parse(text + "\n")
    except UnexpectedInput as e:
        reader.syntax(e)
    kernel = reader.kernel(tree)
    return verify(kernel, places=reader.places, source=text)


def closest(name: str, known: Iterable[str]) -> str | None:
    """`did you mean ...?`, or None."""
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"did you mean {near[0]}?" if near else None


class _Reader:
    def __init__(self, text: str, filename: str, locate: bool):
        self.source, self.filename, self.locate = text, filename, locate
        self.tree: Tree | None = None
        self.files: dict[str, str] = {}
        self.layouts: dict[str, RegLayout] = {}
        self.places: dict[Op, Loc] = {}
        self.made: dict[str, Any] = {}  # value name -> the token that made it last

    # ---- errors ----

    def place(self, node: Any) -> Loc:
        at = node if isinstance(node, Token) else node.meta
        same_line = at.end_line == at.line
        return Loc(self.filename, at.line, at.column - 1, at.end_column - 1 if same_line and at.end_column else -1)

    def fail(self, node: Any, message: str, **more: Any) -> NoReturn:
        raise FcError("ir/parse", message, loc=self.place(node), source=self.source, **more) from None

    def syntax(self, e: UnexpectedInput) -> NoReturn:
        expected: set[str]
        if isinstance(e, UnexpectedToken):
            try:
                expected = set(e.accepts or e.expected)
            except Exception:
                expected = set(e.expected)
            got = "the end of the text" if e.token.type == "$END" else \
                "the end of the line" if e.token.type == "_NL" else f"`{e.token.strip()}`"
            width = len(e.token.split("\n")[0])
        else:
            assert isinstance(e, UnexpectedCharacters)
            expected = set(e.allowed or ())
            got, width = f"`{e.char}`", 1
        line, col, lines = e.line, e.column - 1, self.source.splitlines()
        if line < 1 or line > len(lines):
            line, col = max(1, len(lines)), len(lines[-1]) if lines else 0
        hint = None
        if got == '`"`':
            hint = "a string ends on the line where it starts"
        raise FcError("ir/parse", f"{got} does not fit here", expected=_in_words(expected), got=got, hint=hint,
                      loc=Loc(self.filename, line, col, col + max(1, width)), source=self.source) from None

    # ---- header ----

    def kernel(self, tree: Tree) -> Kernel:
        _load()
        self.tree = tree
        level, name = tree.children[0], self.word(tree.children[1])
        if level not in ("tile", "machine"):
            self.fail(level, f"there is no level {str(level)!r}", expected="tile or machine", hint=closest(level, ("tile", "machine")))
        params: list[Value] = []
        flags: dict[str, tuple[str, ...]] = {}
        axes: list[tuple[Token, GridAxis]] = []
        order: tuple[int, ...] = ()
        meta: dict[str, Any] = {}
        buffers: list[Value] = []
        roles: list[Role] = []
        scope: dict[str, Value] = {}
        items = tree.children[2:]
        for item in items:
            if item.data == "source":
                path = self.string(item.children[0])
                self.files[self.word(item.children[1]) if item.children[1] else path.replace("\\", "/").rsplit("/", 1)[-1]] = path
            elif item.data == "layout":
                self.layouts[str(item.children[0])] = self.reg_layout(item.children[1])
        for item in items:
            if item.data == "param":
                token, kind, *words = item.children
                v = self.define(token, self.type(kind), scope)
                params.append(v)
                if words:
                    flags[v.name] = tuple(self.word(w.children[0]) for w in words)
            elif item.data == "grid":
                for axis in item.children:
                    token, dim, *rest = axis.children
                    size = next((int(r.children[0]) for r in rest if isinstance(r, Tree)), 1)
                    axes.append((token, GridAxis(base_name(token[1:]), self.dim(dim), size, any(isinstance(r, Token) for r in rest))))
            elif item.data == "order":
                order = tuple(int(n) for n in item.children)
                if sorted(order) != list(range(len(axes))):
                    self.fail(item, "order names each grid axis once, by number", expected=f"the numbers 0..{len(axes) - 1}, in some order",
                              got=", ".join(map(str, order)), hint=None if axes else "the grid line comes first")
            elif item.data == "meta":
                meta.update(self.attr(a) for a in item.children)
            elif item.data == "smem":
                buffers.append(self.define(item.children[0], self.buffer(item.children[1:]), scope))
        for item in items:
            if item.data not in ("role", "body"):
                continue
            inner = dict(scope)
            args = tuple(self.define(token, Scalar(DTYPES["i32"]), inner) for token, _ in axes)
            rest = list(item.children)
            role, warps, regs = "all", 0, 0
            if item.data == "role":
                role, warps = self.word(rest[0]), int(rest[1])
                rest = rest[2:]
                if rest and isinstance(rest[0], Tree) and rest[0].data == "regs":
                    regs = int(rest.pop(0).children[0])
            roles.append(Role(role, warps, Block(args, tuple(self.ops(rest, inner))), regs))
        if not roles:
            last = len(self.source.splitlines())
            raise FcError("ir/parse", "the kernel has no body", expected="`{ ... }`, or `role NAME warps N { ... }`",
                          loc=Loc(self.filename, last, 0), source=self.source)
        return Kernel(name, str(level), tuple(params), tuple(a for _, a in axes), tuple(roles), flags, order, tuple(buffers), meta)

    # ---- ops ----

    def ops(self, trees: list[Any], scope: dict[str, Value]) -> Iterator[Op]:
        return (self.op(t, scope) for t in trees if isinstance(t, Tree) and t.data == "op")

    def op(self, tree: Tree, scope: dict[str, Value]) -> Op:
        names, kind, operand_names, attr_trees, region_trees, type_trees, *marks = tree.children
        d = OPS.get(kind)
        if d is None:
            self.fail(kind, f"no op is called {str(kind)!r}", hint=closest(kind, OPS))
        operands = tuple(self.use(t, scope) for t in operand_names.children) if operand_names else ()
        attrs: dict[str, Any] = {}
        for t in attr_trees.children if attr_trees else ():
            name, value = self.attr(t)
            if name in attrs:
                self.fail(t, f"attribute {name!r} is given twice")
            if name not in d.attrs:
                self.fail(t.children[0], f"{kind} has no attribute {name!r}", expected=", ".join(d.attrs) or "no attributes",
                          hint=closest(name, d.attrs))
            attrs[name] = value
        problem = attr_problem(d, attrs)
        if problem is not None:
            name, e = problem
            at = next((t for t in attr_trees.children if self.word(t.children[0]) == name), kind) if attr_trees else kind
            self.fail(at, e.rule, expected=e.expected, got=e.got, hint=e.hint)
        tokens = names.children if names else []
        types = [self.type(t) for t in type_trees.children] if type_trees else []
        if len(tokens) != len(types):
            self.fail(type_trees or names or kind, f"{kind}: one type after the colon for each result", expected=f"{len(tokens)} types",
                      got=len(types))
        regions: tuple[Block, ...] = ()
        if region_trees:
            marks += [c for c in region_trees.children[0].children if isinstance(c, Token)]
            for t in region_trees.children[1:]:
                if t.children[0] != REGION_WORDS.get(kind, "and"):
                    self.fail(t.children[0], f"{kind}: this word cannot start its second region", expected=REGION_WORDS.get(kind, "and"),
                              got=t.children[0])
            blocks = [region_trees.children[0], *(t.children[1] for t in region_trees.children[1:])]
            regions = tuple(self.region(t, scope) for t in blocks)
        results = tuple(self.define(t, ty, scope) for t, ty in zip(tokens, types))
        here = self.place(kind)
        loc = self.mark(marks[0]) if marks else Loc(self.filename, here.line) if self.locate else None
        op = Op(str(kind), operands, results, attrs, regions, loc)
        self.places[op] = here
        return op

    def region(self, tree: Tree, scope: dict[str, Value]) -> Block:
        inner = dict(scope)
        rest = list(tree.children)
        args: tuple[Value, ...] = ()
        if rest and isinstance(rest[0], Tree) and rest[0].data == "args":
            args = tuple(self.define(a.children[0], self.type(a.children[1]), inner) for a in rest.pop(0).children if a is not None)
        return Block(args, tuple(self.ops(rest, inner)))

    def define(self, token: Token, type: Any, scope: dict[str, Value]) -> Value:
        if token in scope:
            first = self.made.get(token)
            self.fail(token, f"{token} is defined twice", notes=[f"first on line {first.line}"] if first is not None else [],
                      hint="give one of them another name")
        v = scope[str(token)] = Value(type, base_name(token[1:]))
        self.made[str(token)] = token
        return v

    def use(self, token: Token, scope: dict[str, Value]) -> Value:
        v = scope.get(token)
        if v is None:
            hint = closest(token, scope)
            notes = []
            where = self.definition(token)
            if where is not None and where.line < token.line:
                notes, hint = [f"{token} of line {where.line} lives inside a region that has ended"], "yield it from the region"
            elif where is not None:
                notes, hint = [f"{token} is defined later, on line {where.line}"], None
            self.fail(token, f"no value {token} is defined here", notes=notes, hint=hint)
        return v

    def definition(self, name: str) -> Token | None:
        assert self.tree is not None
        for t in self.tree.iter_subtrees_topdown():
            if t.data in ("results", "arg"):
                for c in t.children:
                    if isinstance(c, Token) and c == name:
                        return c
        return None

    def mark(self, token: Token) -> Loc:
        name, line = token[1:].rsplit(":", 1)
        return Loc(self.files.get(name, name), int(line))

    # ---- words, attributes ----

    def string(self, token: Token) -> str:
        try:
            return json.loads(token)
        except ValueError as e:
            self.fail(token, f"this string has a bad escape ({e})")

    def word(self, tree: Tree) -> str:
        (token,) = tree.children
        return self.string(token) if token.type == "STRING" else str(token)

    def attr(self, tree: Tree) -> tuple[str, Any]:
        return self.word(tree.children[0]), self.value(tree.children[1])

    def value(self, t: Any) -> Any:
        if isinstance(t, Tree):
            if t.data == "tuple":
                return tuple(self.value(c) for c in t.children if c is not None)
            return self.any_layout(t)
        if t.type == "INT":
            return int(t)
        if t.type == "FLOAT":
            return float(t)
        if t.type == "STRING":
            return self.string(t)
        if t.type == "ALIAS":
            return self.alias(t)
        return RESERVED.get(t, str(t))

    # ---- types and layouts ----

    def dtype(self, token: Token) -> DType:
        d = DTYPES.get(token)
        if d is None:
            self.fail(token, f"no dtype is called {str(token)!r}", expected=", ".join(DTYPES), hint=closest(token, DTYPES))
        return d

    def shape(self, tree: Tree) -> tuple[int, ...]:
        return tuple(int(t) for t in tree.children if t is not None)

    def dim(self, tree: Tree) -> str | int:
        c = tree.children[0]
        return self.word(c) if isinstance(c, Tree) else int(c)

    def type(self, tree: Tree) -> Any:
        c = tree.children
        if tree.data == "scalar_type":
            return Scalar(self.dtype(c[0]))
        if tree.data == "tile_type":
            return Tile(self.dtype(c[0]), self.shape(c[1]))
        if tree.data == "tensor_type":
            return Tensor(self.dtype(c[0]), tuple(self.dim(d) for d in c[1:] if d is not None))
        if tree.data == "frag_type":
            layout = self.alias(c[2]) if isinstance(c[2], Token) else self.any_layout(c[2])
            partial = str(c[3].children[0]) if len(c) > 3 else None
            if partial not in (None, "sum", "max", "min"):
                self.fail(c[3], "partial names a reduction", expected="sum, max or min", got=partial)
            return Frag(self.dtype(c[0]), self.shape(c[1]), layout, partial)
        return self.buffer(c)

    def buffer(self, c: list[Any]) -> Buffer:
        return Buffer(self.dtype(c[0]), self.shape(c[1]), self.any_layout(c[2]), int(c[3][1:]) if len(c) > 3 else 1)

    def alias(self, token: Token) -> RegLayout:
        if token not in self.layouts:
            self.fail(token, f"no layout is called {token}", hint=closest(token, self.layouts) or f"declare it: layout {token} = {{...}}")
        return self.layouts[token]

    def any_layout(self, tree: Tree) -> Any:
        if tree.data == "reg_layout":
            return self.reg_layout(tree)
        if tree.data == "wmma_layout":
            m, n = tree.children[1].split("x")
            return OpaqueLayout(str(tree.children[0]), int(m), int(n))
        panel, pad, swizzle = (int(x) if x is not None else 0 for x in tree.children)
        if swizzle not in (0, 32, 64, 128):
            self.fail(tree.children[2], "there is no such swizzle", expected="32, 64 or 128", got=swizzle)
        if panel < 1 or pad < 0:
            self.fail(tree, "a panel has at least one column", got=f"panel {panel} pad {pad}")
        return SmemLayout(panel, pad, swizzle)

    def reg_layout(self, tree: Tree) -> RegLayout:
        axes = []
        for axis in tree.children:
            if axis is None:
                continue
            digits = []
            for token in axis.children:
                if token.type == "INT":
                    if token != "1":
                        self.fail(token, "a layout axis is a list of digits", expected="digits such as w4@1, or 1", got=str(token))
                    continue
                size, stride = token[1:].split("@")
                if int(size) < 1 or int(stride) < 1:
                    self.fail(token, "sizes and strides of a layout's digits are at least 1", got=str(token))
                digits.append(Factor(str(token[0]), int(size), int(stride)))
            axes.append(tuple(digits))
        return RegLayout(tuple(axes))


def _in_words(terminals: set[str]) -> str:
    """`a`, `b` or a name: what the grammar takes here."""
    spelled = {t.name: t.pattern.value for t in parser().terminals if t.pattern.type == "str"}
    words = sorted(f"`{spelled[t]}`" if t in spelled else WORDS.get(t, t) for t in terminals)
    plain = [w for w in words if not w.startswith("`")]
    words = plain + [w for w in words if w.startswith("`")]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1] if words else "something else"
