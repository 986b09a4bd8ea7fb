"""The leaves of IR text: words, attribute values, types and layouts; and errors that point into the text.

Trees are lark's: `Tree(data, children)` as named in `grammar.lark`, with tokens as leaves.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from lark import Token, Tree

from ..errors import FcError, Loc, did_you_mean
from .attrs import MOST
from .layout import Factor, OpaqueLayout, RegLayout, SmemLayout
from .text import RESERVED
from .types import DTYPES, Buffer, Cursor, DType, Frag, Mbarrier, Pending, Scalar, Tensor, Tile

#: tuples inside of tuples; whole numbers of a text are of 64 bits, and have no more characters than that takes and a few zeros
TUPLES, NUMBERS, DIGITS = 20, range(-(1 << 63), 1 << 63), 40


class WordReader:
    """Reads everything below an op. layouts: what `layout $n = ...` lines declare."""

    def __init__(self, source: str, filename: str):
        self.source, self.filename, self.lines = source, filename, source.split("\n")
        self.layouts: dict[str, RegLayout] = {}

    # ---- errors ----

    def place(self, node: Any) -> Loc:
        at: Any = node if isinstance(node, Token) else node.meta
        end = at.end_column - 1 if at.end_line == at.line and at.end_column else -1
        return self.at(at.line, at.column - 1, end)

    def at(self, line: int, col: int, end: int = -1) -> Loc:
        return Loc(self.filename, line, col, end, self.lines[line - 1])

    def fail(self, node: Any, message: str, **more: Any) -> NoReturn:
        raise FcError("ir/parse", message, loc=self.place(node), **more) from None

    # ---- words and attributes ----

    def string(self, token: Any) -> str:
        try:
            return str(json.loads(token))
        except ValueError as e:
            self.fail(token, "this string has a bad escape", got=str(e), hint="a backslash itself is written \\\\")

    def word(self, tree: Any) -> str:
        (token,) = tree.children
        return self.string(token) if token.type == "STRING" else str(token)

    def number(self, token: Any, least: int | None = None, what: str = "this number") -> int:
        n = int(token) if len(token) <= DIGITS else None
        if n is None or n not in NUMBERS:
            self.fail(token, "whole numbers are of 64 bits", expected=f"{NUMBERS[0]} to {NUMBERS[-1]}", got=n or f"{len(token)} characters")
        if least is not None and n < least:
            self.fail(token, f"{what} is at least {least}", got=n)
        return n

    def attr(self, tree: Any) -> tuple[str, Any]:
        return self.word(tree.children[0]), self.value(tree.children[1])

    def value(self, t: Any, depth: int = 0) -> Any:
        if isinstance(t, Tree):
            if t.data == "tuple":
                if depth == TUPLES:
                    self.fail(t, "tuples are nested too deeply", expected=f"at most {TUPLES}")
                return tuple([self.value(c, depth + 1) for c in t.children if c is not None])
            return self.any_layout(t)
        if t.type == "INT":
            return self.number(t)
        if t.type == "FLOAT":
            return float(t)
        if t.type == "STRING":
            return self.string(t)
        if t.type == "ALIAS":
            return self.alias(t)
        return RESERVED.get(t, str(t))

    # ---- types ----

    def dtype(self, token: Any) -> DType:
        d = DTYPES.get(token)
        if d is None:
            self.fail(token, f"no dtype is called {str(token)!r}", expected=", ".join(DTYPES), hint=did_you_mean(token, DTYPES))
        return d

    def shape(self, tree: Any) -> tuple[int, ...]:
        return tuple(self.number(t, 1, "a size") for t in tree.children if t is not None)

    def dim(self, tree: Any) -> str | int:
        c = tree.children[0]
        return self.word(c) if isinstance(c, Tree) else self.number(c, 1, "a size")

    def type(self, tree: Any) -> Any:
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
                self.fail(c[3].children[0], "partial names a reduction", expected="sum, max or min", got=partial)
            return Frag(self.dtype(c[0]), self.shape(c[1]), layout, partial)
        if tree.data == "pending_type":
            return Pending(self.type(Tree("frag_type", c, tree.meta)))
        return Cursor(self.ring(c[0])) if tree.data == "cursor_type" else self.shared(c)

    def shared(self, c: list[Any]) -> Buffer | Mbarrier:
        """What an `smem` line declares."""
        return self.mbarrier(c[0]) if isinstance(c[0], Tree) else self.buffer(c)

    def ring(self, token: Any) -> int:
        slots = self.number(token.update(value=token[1:]))
        if slots < 1:
            self.fail(token, "a ring has at least one slot", got=slots)
        return slots

    def mbarrier(self, tree: Any) -> Mbarrier:
        count, slots = tree.children
        return Mbarrier(self.number(count, 1, "the number of arrivals"), self.ring(slots) if slots is not None else 1)

    def buffer(self, c: list[Any]) -> Buffer:
        return Buffer(self.dtype(c[0]), self.shape(c[1]), self.any_layout(c[2]), self.ring(c[3]) if len(c) > 3 else 1)

    # ---- layouts ----

    def alias(self, token: Any) -> RegLayout:
        if token not in self.layouts:
            self.fail(token, f"no layout is called {token}",
                      hint=did_you_mean(token, self.layouts) or f"declare it: layout {token} = {{...}}")
        return self.layouts[token]

    def any_layout(self, tree: Any) -> Any:
        if tree.data == "reg_layout":
            return self.reg_layout(tree)
        if tree.data == "wmma_layout":
            role, grid = tree.children
            if role not in ("acc", "a", "b"):
                self.fail(role, "a wmma fragment has one of three roles", expected="acc, a or b", got=role)
            m, n = (self.number(grid.update(value=part), 1, "a number of warps") for part in grid.split("x"))
            return OpaqueLayout(str(role), m, n)
        panel, pad, swizzle = tree.children
        if swizzle is not None and swizzle not in ("0", "32", "64", "128"):
            self.fail(swizzle, "there is no such swizzle", expected="32, 64 or 128", got=swizzle)
        return SmemLayout(self.number(panel, 1, "a panel"), self.number(pad, 0, "padding") if pad is not None else 0,
                          self.number(swizzle) if swizzle is not None else 0)

    def reg_layout(self, tree: Any) -> RegLayout:
        axes = [[self.digit(t) for t in axis.children] for axis in tree.children if axis is not None]
        elements = 1
        for axis in axes:
            for digit in axis:
                elements *= digit.size
                if elements > MOST:
                    self.fail(tree, "a layout covers a tile", expected=f"at most {MOST} elements")
        return RegLayout(tuple(map(tuple, axes)))

    def digit(self, token: Any) -> Factor:
        if token.type == "INT":
            if token != "1":
                self.fail(token,
                          "a layout's axis is a list of digits", expected="digits such as w4@1, or 1 for none", got=str(token))
            return Factor("r", 1, 1)
        size, stride = (self.number(token.update(value=n)) for n in token[1:].split("@"))
        if size < 1 or stride < 1:
            self.fail(token, "the size and stride of a layout's digit are at least 1", got=str(token))
        return Factor(str(token[0]), size, stride)
