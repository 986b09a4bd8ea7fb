"""The printer's state while it walks a kernel: names, scalars, loops, hoisted declarations, index tables, comments.

One `Emitter` per printed kernel. `frames` is the stack of C++ blocks that are open; a declaration that depends only on outer
blocks is hoisted to the innermost of those (`hoist`), so that loop-invariant addresses stand before the loop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ...errors import FcError, Loc
from ...ir.core import Kernel, Op, Value
from ...ir.layout import LANES, RegLayout
from ...ir.target import Instr, Target
from ...ir.types import Buffer, Frag, Pending, Tensor
from .names import Names, comment
from .plan import Plan, make_plan
from .text import ADD, AND, FOLDED, MEMTYPES, ZERO, Segment, Writer, X, add, binary, call, closed_form, div, register_type
from .words import wished


@dataclass
class Frame:
    """An open block. before: where declarations hoisted out of it go (they belong to the parent frame). cache: hoisted text ->
    name; spent: those that had another value."""

    before: Segment | None = None
    cache: dict[tuple[str, str], X] = field(default_factory=dict)
    spent: set[tuple[str, str]] = field(default_factory=set)


CALLED = re.compile(r"\b\w+(?=\()")


class Emitter:
    def __init__(self, kernel: Kernel, target: Target):
        self.kernel, self.target = kernel, target
        self.w = Writer(1)
        self.names = Names()
        self.pname = {p: self.names(p.name, "arg") for p in kernel.params}
        self.size_names: dict[str, str] = {}
        self.scalars: dict[Value, X] = {}
        self.arrays: dict[Value, str] = {}       # root -> array name
        self.frames: list[Frame] = [Frame()]
        self.unrolled: dict[Value, int] = {}  # index of an expanded loop -> where that ends
        self.used: dict[str, Instr] = {}  # device functions to print
        self.helpers, self.tables = dict[str, str](), dict[bytes, str]()  # index helper name -> definition, index table -> helper name
        self.shared: dict[tuple[object, str], str] = {}  # what means the same in each role -> its name
        self.sizes: dict[str, None] = {}
        self.strides: dict[tuple[Value, int], str] = {}
        self.written: set[Value] = set()
        self.last_loc: tuple[str, int] | None = None
        self.headers: dict[str, None] = {}
        self.nonneg: set[Value] = set()
        self.ring_name: dict[Value, str] = {b: b.name or "buf" for b in kernel.buffers}
        self.cursors: dict[Value, tuple[str, str]] = {}   # position in a ring -> (slot variable or "", parity variable)
        self.walked: dict[Value, set[Value]] = {}  # position in a ring -> the rings and barriers that it is used with
        self.slots: dict[Value, tuple[Value, str | None]] = {}  # view -> (ring, slot variable)
        self.maps: dict[tuple[Value, tuple[int, ...]], str] = {}
        self.fences: dict[int, list[Op]] = {}
        self.chains: dict[object, str] = {}  # products one behind the other -> device function
        self.delayed: dict[Value, Op] = {}  # what is computed where a product that reads it begins
        self.one_thread = False   # the role is a single thread
        self.role_barrier = 0     # the named barrier of a role's warps; 0: the whole block's
        self.counter = False
        self.folded: dict[Value, int | None] = {}

    @cached_property
    def plan(self) -> Plan:
        return make_plan(self.kernel)

    def share(self, first: Emitter) -> None:
        """Print another role of the kernel: what stands outside of the roles is common."""
        self.used, self.helpers, self.tables, self.headers = first.used, first.helpers, first.tables, first.headers
        self.size_names, self.sizes, self.strides, self.written = first.size_names, first.sizes, first.strides, first.written
        self.maps, self.pname, self.ring_name = first.maps, first.pname, first.ring_name
        self.names, self.shared, self.chains = first.names, first.shared, first.chains

    def once(self, what: tuple[object, str], wish: str) -> str:
        """A name that is the same in each role: of an expression of the whole kernel, of a position in a ring."""
        if what not in self.shared:
            self.shared[what] = self.names(wish)
        return self.shared[what]

    def map_of(self, tensor: Value, detail: tuple[int, ...]) -> str:
        """The parameter that holds the tensor map for boxes of these sizes (outermost axis first) and this swizzle."""
        key = (tensor, detail)
        if key not in self.maps:
            self.maps[key] = self.names(f"{tensor.name.lower()}_map")
        return self.maps[key]

    # ---- text ----

    @property
    def depth(self) -> int:
        return len(self.frames) - 1

    def instr(self, name: str) -> Instr:
        rec = self.target.instrs.get(name)
        if rec is None or rec.needs > self.target.capability:
            raise FcError("compile/unsupported", f"{self.target.arch} has no {name}", hint="accumulate or store in f32 instead")
        return rec

    def fn(self, name: str) -> str:
        """The device function `name`, noted so that it is printed."""
        rec = self.instr(name)
        if name not in self.used:
            for other in dict.fromkeys(CALLED.findall(rec.body)):
                if other in self.target.instrs:
                    self.fn(other)
            self.used[name] = rec
        return name

    def comment(self, locs: Iterable[Loc | None]) -> None:
        """The spec's line, unless it was the last one shown."""
        for loc in locs:
            if loc is None or (loc.file, loc.line) == self.last_loc:
                continue
            self.last_loc = (loc.file, loc.line)
            text = (loc.source_line() or "").strip()
            self.w.line(comment(f"{text}  [{loc.short}]" if text else loc.short))

    def open(self, head: Callable[[], list[str]] | str) -> None:
        """Open a block; a callable gives its first lines."""
        before = self.w.mark()
        lines = [head] if isinstance(head, str) else head()
        for t in lines[:-1]:
            self.w.line(t)
        self.w.open(lines[-1])
        self.frames.append(Frame(before))

    def close(self, text: str = "}") -> None:
        self.frames.pop()
        self.w.close(text)

    @contextmanager
    def only(self, test: X | None) -> Iterator[None]:
        """Where there is a test, a block that it guards."""
        if test is not None:
            self.open(f"if ({test}) {{")
        yield
        if test is not None:
            self.close()

    def turn(self, text: str) -> None:
        """Close a block and open its other branch. What is hoisted out of that one stands in front of both."""
        before = self.frames.pop().before
        self.w.close("")
        self.w.root.items.pop()
        self.w.open(text)
        self.frames.append(Frame(before))

    def hoist(self, ctype: str, wish: str, x: X) -> X:
        """A named constant holding `x`, declared in the innermost block that x depends on; equal expressions share it."""
        frame = self.frames[min(x.depth, self.depth)]
        key = (ctype, x.text)
        if key in frame.cache:
            return frame.cache[key]
        if x.text.isidentifier():
            return x
        depth = min(x.depth, self.depth)
        name = frame.cache[key] = X(self.names(wish) if depth or key in frame.spent else self.once(key, wish), depth=depth)
        line = f"{ctype} {name} = {x};" if ctype.endswith("*") else f"const {ctype} {name} = {x};"
        if x.depth >= self.depth:
            self.w.line(line)
        else:
            before = self.frames[x.depth + 1].before
            assert before is not None
            before.line(line, self.w.loc)
        return name

    def changed(self, *variables: str) -> None:
        """These variables have other values from here on: constants that were made of them are not shared any more."""
        mentions = re.compile(rf"\b({'|'.join(map(re.escape, variables))})\b").search
        for frame in self.frames:
            frame.spent |= {key for key in frame.cache if mentions(key[1])}
            frame.cache = {key: x for key, x in frame.cache.items() if key not in frame.spent}
        for v in [v for v, x in self.scalars.items() if mentions(x.text)]:
            del self.scalars[v]  # nothing may read a place of before

    # ---- scalars ----

    def scalar(self, v: Value) -> X:
        return self.scalars[v]

    def size(self, dim: str | int) -> X:
        if isinstance(dim, int):
            return X(str(dim))
        self.sizes[dim] = None
        if dim not in self.size_names:
            self.size_names[dim] = self.names(dim, "n")
        return X(self.size_names[dim])

    def stride(self, tensor: Value, axis: int) -> X:
        """Elements from one position to the next along an axis: a parameter, or 1 for the last."""
        assert isinstance(tensor.type, Tensor)
        if axis == len(tensor.type.dims) - 1:
            return X("1")
        if (tensor, axis) not in self.strides:
            self.strides[tensor, axis] = self.names(f"{self.pname[tensor]}_s{axis}")
        return X(self.strides[tensor, axis])

    def fold(self, v: Value, env: dict[Value, int] | None = None) -> int | None:
        """The value of an integer scalar where it is known when the kernel is compiled (given unrolled indices in env)."""
        known = self.folded if env is None else env  # what is read twice is folded once
        if v not in known:
            known[v] = self._fold(v, env)  # type: ignore[assignment]
        return known[v]

    def _fold(self, v: Value, env: dict[Value, int] | None) -> int | None:
        op = self.plan.maker.get(v)
        if op is None:
            return None
        if op.kind == "const":
            return int(op["value"]) if v.type.dtype.is_int else None
        if op.kind not in FOLDED or not v.type.dtype.is_int:
            return None
        a = self.fold(op.operands[0], env)
        b = None if a is None else self.fold(op.operands[1], env)
        if a is None or b is None or (b == 0 and op.kind in ("floordiv", "mod")):
            return None
        (low, high), out = v.type.dtype.range, FOLDED[op.kind](a, b)
        return out if low <= out <= high else None

    def varies(self, v: Value, seen: set[Value] | None = None) -> list[Value]:
        """Indices of expanded loops that the scalar depends on."""
        seen = set() if seen is None else seen
        if v in seen:
            return []
        seen.add(v)
        if v in self.unrolled:
            return [v]
        op = self.plan.maker.get(v)
        return [x for o in op.operands for x in self.varies(o, seen)] if op is not None else []

    def static(self, values: Iterable[Value]) -> tuple[X, np.ndarray] | None:
        """(index of the one expanded loop that they vary with, int [its trips, values]), where all are known; else None."""
        vs = list(values)
        over = list(dict.fromkeys(x for v in vs for x in self.varies(v)))
        if len(over) > 1:
            return None
        if not over:
            row = [self.fold(v) for v in vs]
            return None if any(x is None for x in row) else (ZERO, np.array([row], dtype=np.int64).reshape(1, len(vs)))
        top = self.unrolled[over[0]]
        rows = [[self.fold(v, {over[0]: n}) for v in vs] for n in range(top)]
        if any(x is None for r in rows for x in r):
            return None
        return self.scalars[over[0]], np.array(rows, dtype=np.int64).reshape(top, len(vs))

    def expanded(self, op: Op, values: list[Value]) -> tuple[X, np.ndarray]:
        """As `static`, of positions that the op needs as numbers."""
        known = self.static(values)
        if known is None:
            raise FcError("compile/unsupported", f"{op.kind}: the position is not known when the loop is expanded", loc=op.loc,
                          hint="registers cannot be indexed at run time: mark the enclosing loop unroll")
        return known

    def buffer_base(self, ring: Value) -> X:
        """The ring's first byte as a shared-memory address."""
        wish = f"{self.ring_name[ring]}_smem" if isinstance(ring.type, Buffer) else self.ring_name[ring]
        return self.hoist("uint32_t", wish, X(f"smem_base + {self.offset(ring)}", ADD))

    def offset(self, ring: Value) -> str:
        """The constant that says where the ring begins."""
        at = self.kernel.meta["smem_offsets"][self.kernel.buffers.index(ring)]
        if isinstance(ring.type, Buffer):
            assert at % (1024 if ring.type.layout.swizzle else 16) == 0, "a swizzled buffer starts on its period"
        return self.once((ring, "offset"), f"{self.ring_name[ring]}_offset")

    def offset_of(self, buffer: Value) -> X:
        """A slot's first byte counted from the start of shared memory, for code that needs a pointer."""
        if buffer in self.kernel.buffers:
            return X(self.offset(buffer))
        return binary("-", self.scalars[buffer], X("smem_base"))

    # ---- registers ----

    def array(self, v: Value) -> str:
        return self.arrays[self.plan.root(v)]

    def declare(self, v: Value) -> str:
        """The array of a stored fragment, declared here if this is the first time it is met."""
        root = self.plan.root(v)
        if root not in self.arrays:
            t = v.type
            assert isinstance(t, (Frag, Pending)) and isinstance(t.layout, RegLayout)
            self.arrays[root] = name = self.names(wished(self.plan, v), "tmp")
            n = t.layout.regs
            self.w.line(f"{register_type(t.dtype)} {name}[{-(-n // t.dtype.per_register)}];")
        return self.arrays[root]

    def index(self, table: np.ndarray, i: X, wish: str) -> X:
        """`table[i]` as text: i itself, a number, or a call of a helper that is printed (and was checked) as a closed form."""
        table = np.asarray(table, dtype=np.int64)
        if i.text.isdigit():
            return X(str(int(table[int(i.text)])))
        if (table == np.arange(len(table))).all():
            return i
        if (table == table[0]).all():
            return X(str(int(table[0])))
        return call(self.helper(table, wish), i)

    def helper(self, table: np.ndarray, wish: str) -> str:
        key = table.tobytes()
        if key not in self.tables:
            name = self.names(wish)
            self.tables[key] = name
            form = closed_form(table, X("i"))
            if form is not None:
                check = eval(form.text.replace("/", "//"), {"i": np.arange(len(table))})  # our own text, no user input
                assert (np.asarray(check) == table).all(), f"closed form of {name} is wrong"
                body = f"return {form};"
            else:
                body = f"constexpr int at[] = {{{', '.join(map(str, table))}}};\n    return at[i];"
            self.helpers[name] = f"__device__ constexpr int {name}(int i) {{\n    {body}\n}}" if "\n" in body else \
                f"__device__ constexpr int {name}(int i) {{ {body} }}"
        return self.tables[key]

    def form(self, table: np.ndarray, i: X, wish: str) -> X:
        """`table[i]` written out where it is short, else through a helper."""
        table = np.asarray(table, dtype=np.int64)
        x = closed_form(table, i)
        if x is not None and len(x.text) <= 40:
            if not i.text.isdigit():
                got = eval(x.text.replace("/", "//"), {i.text: np.arange(len(table))}) if i.text.isidentifier() else table
                assert (np.asarray(got) == table).all()
            return X(x.text, x.prec, i.depth)
        return self.index(table, i, wish)

    def thread_part(self, layout: RegLayout, axis: int, wish: str) -> X:
        """What warp and lane add to the coordinate along `axis`, as a constant of the whole kernel."""
        lane = self.lane_form(np.array([int(layout.part(axis, "l", l)) for l in range(LANES)]),
                              np.array([int(layout.part(axis, "w", w)) for w in range(max(1, self.kernel.warps))]))
        return self.hoist("int", wish, lane) if not lane.text.isdigit() else lane

    def lane_form(self, lanes: np.ndarray, warps: np.ndarray) -> X:
        """lanes[lane] + warps[warp] as text."""
        out = ZERO
        for table, var in ((warps, "warp"), (lanes, "lane")):
            x = closed_form(table, X(var))
            if x is None:
                x = call(self.helper(table, f"of_{var}"), X(var))
            out = add(out, x)
        return X(out.text, out.prec, 0)

    def writer_predicate(self, layout: RegLayout, loc: Loc | None) -> X | None:
        """True in exactly one of the threads that hold copies of an element; None where there are no copies."""
        terms = []
        for unit, limit in (("l", LANES), ("w", self.kernel.warps)):
            name, at = ("lane" if unit == "l" else "warp"), 1
            for f in sorted((f for a in layout.axes for f in a if f.unit == unit), key=lambda f: f.stride):
                if f.stride > at:
                    terms.append(f"{div(X(name), at)} % {f.stride // at} == 0")
                at = max(at, f.stride * f.size)
            if at < limit:
                terms.append(f"{name} == 0" if at == 1 else f"{name} < {at}")
        self._check_writers(layout, terms, loc)
        return X(" && ".join(terms), AND) if terms else None

    def _check_writers(self, layout: RegLayout, terms: list[str], loc: Loc | None) -> None:
        lane, warp = np.meshgrid(np.arange(LANES), np.arange(self.kernel.warps))
        on = np.ones(lane.shape, bool)
        for t in terms:
            on &= eval(t.replace("/", "//"), {"lane": lane, "warp": warp})  # our own text
        c = layout.coords(self.kernel.warps)[on]
        element = np.zeros((len(c), layout.regs), np.int64)  # the tile's elements, numbered row by row
        for axis, n in enumerate(layout.shape):
            element = element * n + c[..., axis]
        if not np.array_equal(np.sort(element.ravel()), np.arange(np.prod(layout.shape))):
            raise FcError("compile/unsupported", "a stored fragment's layout does not give each element one writer", got=layout,
                          loc=loc)


EMIT: dict[str, Callable[[Emitter, Op], None]] = {}


def emits(*kinds: str):
    """Register the function that prints ops of these kinds."""

    def note(fn: Callable[[Emitter, Op], None]) -> Callable[[Emitter, Op], None]:
        for k in kinds:
            EMIT[k] = fn
        return fn

    return note


def memtype(v: Value) -> str:
    return MEMTYPES[v.type.dtype.name]
