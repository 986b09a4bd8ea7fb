"""Machine kernels under other names, and a reader of C++ that knows nothing of the printer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from fcgen.errors import Loc
from fcgen.ir.core import Block, Kernel, Op, Role, Value
from fcgen.ir.types import Tensor

Rename = Callable[[str, str], str]  # (what is named, its name) -> another name


def renamed(k: Kernel, name: Rename, text: Callable[[str], str] = lambda s: s) -> Kernel:
    """The kernel with every name sent through `name`, and every string that is for people through `text`."""
    values: dict[Value, Value] = {}

    def dim(d: str | int) -> str | int:
        return name("dim", d) if isinstance(d, str) else d

    def value(v: Value, kind: str = "local") -> Value:
        if v not in values:
            t = replace(v.type, dims=tuple(map(dim, v.type.dims))) if isinstance(v.type, Tensor) else v.type
            values[v] = Value(t, name(kind, v.name))
        return values[v]

    def loc(x: Loc | None) -> Loc | None:
        return None if x is None else Loc(text(x.file), x.line)

    def op(o: Op) -> Op:
        attrs = {**o.attrs, **({"dim": dim(o["dim"])} if o.kind == "size" else {}),
                 **{a: text(o[a]) for a in ("part", "label") if a in o.attrs}}
        return Op(o.kind, tuple(map(value, o.operands)), tuple(map(value, o.results)), attrs, tuple(map(block, o.regions)), loc(o.loc))

    def block(b: Block) -> Block:
        return Block(tuple(map(value, b.args)), tuple(map(op, b.ops)))

    params = tuple(value(p, "param") for p in k.params)
    buffers = tuple(value(b, "buffer") for b in k.buffers)
    roles = tuple(Role(text(r.name), r.warps, block(r.body), r.regs) for r in k.roles)
    grid = tuple(replace(a, name=name("axis", a.name), dim=dim(a.dim)) for a in k.grid)
    flags = {values[p].name: k.flags[p.name] for p in k.params if p.name in k.flags}
    meta = {**k.meta, "schedule": text(k.meta.get("schedule", ""))}
    if "aligned" in meta:  # a line for each tensor, which begins with its name
        tensors = {p.name: values[p].name for p in k.params}
        meta["aligned"] = tuple((tensors[line[0]], *line[1:]) for line in meta["aligned"])
    if "ranges" in meta:  # a line for each size and i32 scalar
        scalars = {p.name: values[p].name for p in k.params if not isinstance(p.type, Tensor)}
        meta["ranges"] = tuple((scalars.get(line[0]) or dim(line[0]), *line[1:]) for line in meta["ranges"])
    return replace(k, name=name("kernel", k.name), params=params, grid=grid, roles=roles, flags=flags, buffers=buffers, meta=meta)


def tokens(cuda: str) -> list[str]:
    """C++'s tokens: lines that end in a backslash go on, comments are nothing, a string is one token."""
    cuda = re.sub(r"(?:\\|\?\?/)[ \t\f\v]*(?:\r\n|\r|\n)", "", cuda)
    found = re.findall(r'//[^\n\r]*|/\*.*?\*/|"(?:[^"\\\n]|\\.)*"|\.?[^\W\d]\w*|\d[\w.]*|\S', cuda, re.DOTALL)
    return [t for t in found if not t.startswith(("//", "/*"))]


def same_but_for_names(a: str, b: str) -> dict[str, str]:
    """identifier of a -> identifier of b, one to one; fails where anything else differs."""
    (fixed, a), (same, b) = (re.split("^(?=// Bytes from|// Register i of|extern \"C\")", t, maxsplit=1, flags=re.MULTILINE) for t in (a, b))
    assert tokens(fixed) == tokens(same), "other instructions"
    x, y = tokens(a), tokens(b)
    assert len(x) == len(y), "another number of tokens"
    there: dict[str, str] = {}
    back: dict[str, str] = {}
    for s, t in zip(x, y):
        if re.match(r"[^\W\d]", s) and re.match(r"[^\W\d]", t):
            assert there.setdefault(s, t) == t and back.setdefault(t, s) == s, f"{s} is {there[s]} and {t}"
        else:
            assert s == t
    return there
