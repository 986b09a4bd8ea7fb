"""IR as text: printing of kernels and ops. One syntax for both levels, generic in ops; `parse` reads it back.

    machine kernel attention
    source "examples/attention.py"                  # the files that @marks refer to
    param %Q: tensor f16[B, H, M, 64]
    param %scale: f32 positive
    grid %b: B, %h: H, %mt: M / 128 reverse
    meta target = sm_89
    layout $0 = {w4@1 r2@2 l8@4 | r8@4 l4@1 r2@1}   # layouts that occur more than once get a name
    smem %k: f16[64,64]{panel 64 swizzle 128} x2
    role all warps 4 {
      %m2 = for %lo, %hi, %m {label = BLOCK_N, tile = 64} (%j: i32, %m1: frag f32[128,64]$0) {   @attention.py:12
        yield %m1
      } : frag f32[128,64]$0
    }

Printing is deterministic: equal programs give equal text, so the text is what caches compare. Value names are made unique per
role (`%s`, `%s.1`, ...; values without a name are numbered). Strings that look like names need no quotes. Of a place only file
and line are kept: columns are for messages, and not every Python knows them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import Loc
from .core import WRITTEN, Block, Kernel, Op, Value, walk_kernel
from .layout import OpaqueLayout, RegLayout, SmemLayout
from .ops import OPS
from .types import Frag, Pending

#: the word before an op's second region; "and" for ops that are not listed
REGION_WORDS = {"for": "live", "if": "else"}
#: no longer text is read: the kernels of this library have 10,000 to 200,000 characters
MOST_TEXT = 1_000_000
#: words that mean something else than themselves as an attribute value
RESERVED = {"true": True, "false": False, "none": None, "inf": float("inf"), "nan": float("nan")}
#: marks stand in one column, as far right as the longest line not above this
MARK_COLUMN = 100
#: the heads of regions are broken into lines of this length
WIDTH = 120

_NAME = re.compile(r"[^\W\d][\w.]*")
_PLAIN = re.compile(r"[^\W\d]\w*")


def print_kernel(kernel: Kernel) -> str:
    """The kernel as text that `parse_kernel` reads back."""
    return _Printer(kernel).text()


def value_names(kernel: Kernel) -> dict[Value, str]:
    """Each value's name as the kernel's text has it: `s`, `s.1`, ..."""
    p = _Printer(kernel)
    p.text()
    return {v: name.removeprefix("%") for names in p.roles for v, name in names.of.items()}


def print_op(op: Op, kernel: Kernel | None = None) -> str:
    """One line for messages: regions are shown as `{ ... }`. With its kernel, values have the names of the kernel's text."""
    p = _Printer(kernel)
    if kernel is not None:
        p.text()
        p.names = next((n for n in p.roles if any(v in n.of for v in op.results)), p.names)
        p.names.final = True
        p.aliases, p.types = {}, {}
    return p.head(op) + " { ... }" * len(op.regions) + p.results(op)


@lru_cache(maxsize=4096)
def base_name(name: str) -> str:
    """What is left of a value's name in text: an identifier, or "" for a name that is only a number."""
    if _PLAIN.fullmatch(name):
        return name
    name = re.sub(r"\.\d+$", "", name)
    if not name or name.isdecimal():
        return ""
    name = re.sub(r"\W", "_", name)
    return "_" + name if name[0].isdecimal() else name


def word(s: str) -> str:
    """A name as it is, anything else as a quoted string."""
    return s if _NAME.fullmatch(s) else quoted(s)


def quoted(s: str) -> str:
    return json.dumps(s, ensure_ascii=not s.isprintable())


def attr_text(v: Any, aliases: Mapping[str, str] | None = None) -> str:
    """An attribute value as text."""
    if isinstance(v, str):
        return v if _NAME.fullmatch(v) and v not in RESERVED else quoted(v)
    if isinstance(v, (bool, np.bool_)):
        return "true" if v else "false"
    if isinstance(v, (int, np.integer)):
        return str(int(v))
    if isinstance(v, (float, np.floating)):
        return float.__repr__(float(v))
    if isinstance(v, (tuple, list)):
        return "(" + ", ".join([attr_text(x, aliases) for x in v]) + ")"
    if v is None:
        return "none"
    if isinstance(v, (RegLayout, OpaqueLayout, SmemLayout)):
        s = str(v)
        return aliases.get(s, s) if aliases else s
    raise TypeError(f"an attribute holds a {type(v).__name__}; IR text has numbers, strings, bools, layouts and tuples of these")


class Names:
    """Value -> its name in text."""

    def __init__(self, start: Names | None = None):
        self.of: dict[Value, str] = dict(start.of) if start else {}
        self.count: dict[str, int] = dict(start.count) if start else {}
        self.early: set[Value] = set()
        self.final = False  # every value has its name already

    def fresh(self, name: str) -> str:
        base = base_name(name)
        n = self.count.get(base, 0)
        self.count[base] = n + 1
        if base:
            return f"%{base}.{n}" if n else f"%{base}"
        return f"%{n}"

    def define(self, v: Value, name: str | None = None) -> str:
        """A new name where the value is made (even if it has one: the same value may be made in two sibling regions)."""
        if v in self.early:
            self.early.discard(v)
        elif not (self.final and v in self.of):
            self.of[v] = self.fresh(v.name if name is None else name)
        return self.of[v]

    def use(self, v: Value) -> str:
        name = self.of.get(v)
        if name is None:  # used before it is made: broken IR that someone wants to look at
            name = self.define(v)
            self.early.add(v)
        return name


class _Printer:
    def __init__(self, kernel: Kernel | None):
        self.kernel = kernel
        self.names = Names()
        self.roles: list[Names] = []
        self.lines: list[tuple[str, str]] = []
        self.files: dict[str, str] = {}
        self.types: dict[int, str] = {}  # by id: types are shared, and cheaper to recognise than to hash
        self.aliases: dict[str, str] = {}

    # ---- kernel ----

    def text(self) -> str:
        k = self.kernel
        assert k is not None
        names, out = self.names, []
        params = [names.define(p) for p in k.params]
        axes = [names.fresh(a.name) for a in k.grid]
        if k.level != "tile":
            self.name_layouts(k)
        for name, p in zip(params, k.params):
            out.append(" ".join([f"param {name}: {self.type(p.type)}", *map(word, k.flags.get(p.name, ()))]))
        if k.grid:
            out.append("grid " + ", ".join(
                f"{n}: {a.dim if isinstance(a.dim, int) else word(a.dim)}" + (f" / {a.tile}" if a.tile != 1 else "")
                + (f" cluster {a.cluster}" if a.cluster != 1 else "") + (" reverse" if a.reverse else "") for n, a in zip(axes, k.grid)))
        if k.order:
            out.append("order " + ", ".join(map(str, k.order)))
        out += [f"meta {word(name)} = {attr_text(v)}" for name, v in sorted(k.meta.items())]
        out += [f"layout {alias} = {layout}" for layout, alias in self.aliases.items()]
        at = k.meta.get("smem_offsets")  # (a comment beside each: what counts is the line of all)
        places = [f"  // @{n}" for n in at] if isinstance(at, tuple) and len(at) == len(k.buffers) else [""] * len(k.buffers)
        out += [f"smem {names.define(b)}: {str(b.type).removeprefix('smem ')}{place}" for b, place in zip(k.buffers, places)]
        plain = k.level == "tile" and len(k.roles) == 1 and (k.roles[0].name, k.roles[0].warps, k.roles[0].regs) == ("all", 0, 0)
        for role in k.roles:
            self.names = Names(names)
            self.roles.append(self.names)
            for name, v in zip(axes, role.body.args):
                self.names.of[v] = name
            regs = f" regs {role.regs}" if role.regs else ""
            self.lines.append(("{" if plain else f"role {word(role.name)} warps {role.warps}{regs} {{", ""))
            self.block(role.body, "  ")
            self.lines.append(("}", ""))
        return "\n".join([f"{k.level} kernel {word(k.name)}", *self.sources(), *out, *self.aligned()]) + "\n"

    def name_layouts(self, k: Kernel) -> None:
        """Register layouts that occur twice get `$n`, in order of appearance."""
        count: Counter[RegLayout] = Counter()
        for op in walk_kernel(k):
            values = (*op.results, *(a for r in op.regions for a in r.args))
            layouts = (*(getattr(v.type, "layout", None) for v in values), *op.attrs.values())
            count.update(x for x in layouts if x.__class__ is RegLayout)
        for layout, n in count.items():
            if n > 1 and len(text := str(layout)) > 8:
                self.aliases[text] = f"${len(self.aliases)}"

    def sources(self) -> list[str]:
        return [f"source {quoted(f)}" + (f" as {m}" if m != _basename(f) else "") for f, m in self.files.items()]

    def aligned(self) -> list[str]:
        fitting = [len(s) for s, mark in self.lines if mark and len(s) <= MARK_COLUMN]
        column = max(fitting, default=0) + 3
        return [s + " " * max(2, column - len(s)) + mark if mark else s for s, mark in self.lines]

    # ---- ops ----

    def block(self, block: Block, indent: str) -> None:
        for op in block.ops:
            head, mark = self.head(op), self.mark(op.loc)
            if not op.regions:
                self.lines.append((indent + head + self.results(op), mark))
                continue
            for i, r in enumerate(op.regions):
                start = head if i == 0 else "} " + REGION_WORDS.get(op.kind, "and")
                args = [f"{self.names.define(a)}: {self.type(a.type)}" for a in r.args]
                self.region_head(indent, start, args, mark if i == 0 else "")
                self.block(r, indent + "  ")
            self.lines.append((indent + "}" + self.results(op), ""))

    def region_head(self, indent: str, start: str, args: list[str], mark: str) -> None:
        """`start (args) {`, over as many lines as it takes."""
        line = f"{indent}{start} ({', '.join(args)}) {{" if args else f"{indent}{start} {{"
        if len(line) <= WIDTH or not args:
            self.lines.append((line, mark))
            return
        self.lines.append((indent + start, ""))
        line = indent + "    (" + args[0]
        for a in args[1:]:
            if len(line) + len(a) + 6 > WIDTH:
                self.lines.append((line + ",", ""))
                line = indent + "     " + a
            else:
                line += ", " + a
        self.lines.append((line + ") {", mark))

    def head(self, op: Op) -> str:
        names = self.names
        out = op.kind
        if op.operands:
            out += " " + ", ".join([names.use(v) for v in op.operands])
        if op.attrs:
            attrs = op.attrs
            order = _attr_order(op.kind)
            keys = sorted(attrs, key=lambda a: (order.get(a, 99), a)) if len(attrs) > 1 else attrs
            out += " {" + ", ".join([f"{word(a)} = {attr_text(attrs[a], self.aliases)}" for a in keys]) + "}"
        if op.results:
            out = ", ".join([names.define(v) for v in op.results]) + " = " + out
        return out

    def results(self, op: Op) -> str:
        return " : " + ", ".join([self.type(v.type) for v in op.results]) if op.results else ""

    def type(self, t: Any) -> str:
        text = self.types.get(id(t))
        if text is None:
            text = str(t)
            if t.__class__ in (Frag, Pending) and self.aliases:
                layout = str(t.layout)
                text = text.replace(layout, self.aliases.get(layout, layout))
            self.types[id(t)] = text
        return text

    def mark(self, loc: Loc | None) -> str:
        if loc is None:
            return ""
        name = self.files.get(loc.file)
        if name is None:
            base = name = re.sub(r"[^\w.+-]", "", _basename(loc.file)) or "file"
            n = 0
            while name in self.files.values():
                n += 1
                name = f"{base}.{n}"
            self.files[loc.file] = name
        return f"@{name}:{loc.line}"


def _basename(file: str) -> str:
    return file.replace("\\", "/").rsplit("/", 1)[-1]


@lru_cache(maxsize=512)
def _attr_order(kind: str) -> dict[str, int]:
    return {name: i for i, name in enumerate(OPS[kind].attrs)} if kind in OPS else {}


WRITTEN[Op], WRITTEN[Kernel] = print_op, print_kernel
