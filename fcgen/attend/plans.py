"""Calls of attention written out (`fcgen.straight`): what a program, or two in a row, is given of a call's tensors.

A `Plan` is a call's if `bind` gives the values that its functions hold; `run` then launches, or gives None where something has to be looked
at closely. Tensors of the call have passed a guard; those that functions hold pass theirs here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..build.captured import Bind
from ..build.program import Program
from ..build.tables import kept_in
from ..errors import FcError
from ..launch import Loaded
from ..runtime import tensors
from ..straight import Script, View
from . import guards

#: how a call's tensors and numbers are called in the text
CALL = ("q", "k", "v", "o", "q_shape", "k_shape", "v_shape", "q_steps", "k_steps", "v_steps", "scale")


class Part(NamedTuple):
    """A program of a call. captured: the parameters that its functions hold. bind: functions, in the order of their names -> their values;
    names: of those functions."""

    loaded: Loaded
    captured: Mapping[str, Any]
    bind: Bind | None = None
    names: tuple[str, ...] = ()


class Plan(NamedTuple):
    """parts: (bind, names) of those programs whose functions hold something. run: (CALL, values) -> the result, or None."""

    parts: tuple[tuple[Bind, tuple[str, ...]], ...]
    run: Callable[..., Any]

    def values(self, given: Any) -> tuple[Any, ...] | None:
        """What the functions of a call hold; None if the plan is not theirs."""
        out: tuple[Any, ...] = ()
        for bind, names in self.parts:
            found = bind(*[getattr(given, name) for name in names])
            if found is None:
                return None
            out = found if not out else (*out, *found)
        return out


def part(program: Program, device: int, values: Mapping[str, Any] | None = None, bind: Bind | None = None,
         names: Sequence[str] = ()) -> Part:
    return Part(program.launcher.loaded(device), values or {}, bind, tuple(sorted(names)))


class Text(Script):
    """The text of a call whose tensors are like q."""

    def __init__(self, device: int, like: Any, call: Sequence[str] = CALL):
        super().__init__()
        self.torch = torch = sys.modules["torch"]
        self._like, self._device, self.parameters = like, device, list(call)
        self.parts: list[tuple[Bind, tuple[str, ...]]] = []
        self._empty = self.known(torch.empty_strided, "empty")
        self.stream = "stream"
        self._stream = f"stream = {self.known(torch._C._cuda_getCurrentRawStream, 'raw_stream')}({device})"

    def made(self, name: str, shape: Sequence[str], dtype: Any) -> View:
        """A new tensor, its axes in memory in order."""
        steps = [" * ".join(shape[n + 1:]) or "1" for n in range(len(shape))]
        self.line(f"{name} = {self._empty}(({', '.join(shape)},), ({', '.join(steps)},), dtype={self.known(dtype, 'dtype')}, "
                  f"device={self.known(self._like.device, 'device')})", f"{name}_p = {name}.data_ptr()")
        return View(f"{name}_p", tuple(shape), tuple(steps))

    def together(self, dtype: Any, **shapes: Sequence[str]) -> list[View]:
        """New tensors of 4 bytes an element, each from a multiple of 16 bytes on, in one piece of memory: to ask for one takes its time."""
        out, begin = [], "0"
        for name, shape in shapes.items():
            self.line(f"{name}_n = {begin}", f"end = {name}_n + {' * '.join(shape)} + 3 & ~3")
            begin = "end"
            steps = [" * ".join(shape[n + 1:]) or "1" for n in range(len(shape))]
            out.append(View(f"{name}_p", tuple(shape), tuple(steps)))
        self.made("room", ("end",), dtype)
        self.line(*(f"{name}_p = room_p + 4 * {name}_n" for name in shapes))
        return out

    def captures(self, p: Part) -> tuple[dict[str, View], dict[str, str]]:
        """Views of the tensors and names of the numbers that a part's functions hold."""
        views, scalars = {}, {}
        for name, x in p.captured.items():
            word = f"{name}_{len(self.parts)}_"
            self.parameters.append(word)
            if p.loaded.kinds[name] != "ptr":
                scalars[name] = word
                continue
            if not isinstance(x, self.torch.Tensor):
                raise FcError("call/argument", f"`{name}` is another library's")
            tensors.check(tensors.describe(x, name), name=name, device=self._device)
            if x.requires_grad:
                self.refuse(f"{self.known(self.torch.is_grad_enabled, 'grad')}()")
            kind, guard = self.known(type(x), "class"), self.known(guards.guard((x,)), "guard")
            self.refuse(f"type({word}) is not {kind} or {word}.is_nested or not {guard}({word})")
            views[name] = self.tensor(word, len(x.shape))
        if p.bind is not None:
            self.parts.append((p.bind, p.names))
        return views, scalars

    def plan(self, result: str) -> Plan:
        return Plan(tuple(self.parts), self.function(self.parameters, result))

    def begin(self) -> None:
        self.line(self._stream)


class Kept:
    """Plans of one kind of call: sizes that have the same programs have the same plan."""

    def __init__(self) -> None:
        self._plans: dict[Any, Plan | None] = {}

    def of(self, parts: Sequence[Part | None], more: Any, write: Callable[[], Plan | None]) -> Plan | None:
        """The plan of these programs and whatever else it hangs on."""
        key = tuple([p and (p.loaded, p.bind) for p in parts]), more
        return kept_in(self._plans, 64, key, write)


def plan(p: Part, device: int, like: Any, *, lse: bool, given: bool, rows: bool = False, lists: Lister | None = None,
         keys: tuple[int, int] | None = None) -> Plan | None:
    """The plan of a program of `kernels.attention` (or of `kernels.listed`, with a lister). given: the output was. rows: grouped heads are
    rows. keys: (more than, at most) so many keys are taken."""
    s = Text(device, like)
    views = {name: s.tensor(name.lower(), 4, f"{name.lower()}_shape", f"{name.lower()}_steps") for name in "QKV"}
    views["O"] = s.tensor("o", 4)
    if keys is not None:
        s.refuse(f"not {keys[0]} < k_2 <= {keys[1]}")
    captured, scalars = s.captures(p)
    mask = s.captures(lists.part) if lists is not None else ({}, {})
    if lse:
        views["LSE"] = s.made("lse", ("q_0", "q_1", "q_2"), s.torch.float32)
    s.line(*_rows(views, s) if rows else ())
    s.begin()
    views |= captured
    if lists is not None:
        views |= lists.begin(s, *mask)
    scalars |= {"scale": "scale"} | ({"shift": lists.shift} if lists is not None and "shift" in p.loaded.kinds else {})
    if {*p.loaded.order} != {*views, *scalars} or any(len(views[a.name].shape) != a.rank for a in p.loaded.frame.arguments):
        return None
    s.check(p.loaded, views, scalars, ["O"] if given else [], tuple("QKVO"))
    if lists is not None:
        s.go(lists.part.loaded, *mask, s.stream)
    s.go(p.loaded, views, scalars, s.stream)
    return s.plan("(o, lse)" if lse else "o")


def _rows(views: dict[str, View], s: Script) -> list[str]:
    """`grouped.as_rows`."""
    out = []
    for name in {"Q", "O", "LSE"} & set(views):
        v = views[name]
        (b, h, m, *rest), (batch, head, row, *last) = v.shape, v.strides
        s.refuse(f"not ({m} == 1 or {head} == {m} * ({row}))")
        word = name.lower()
        out += [f"{word}_r0, {word}_r1, {word}_r2 = k_1, {h} // k_1 * {m}, {h} // k_1 * ({head})",
                f"{word}_r3 = {row} if {m} > 1 else {head}"]
        views[name] = View(v.pointer, (b, f"{word}_r0", f"{word}_r1", *rest), (batch, f"{word}_r2", f"{word}_r3", *last))
    return out


class Lister(NamedTuple):
    """The program that makes a mask's lists of blocks. block: rows and keys of one. batch, head: it tells them apart. shift: the text of
    where the diagonal is."""

    part: Part
    block: tuple[int, int]
    batch: bool
    head: bool
    shift: str

    def begin(self, s: Text, views: dict[str, View], scalars: dict[str, str]) -> dict[str, View]:
        """Make the lists; their views, for every batch and head."""
        (tall, wide), i32 = self.block, s.torch.int32
        b, h = "q_0" if self.batch else "1", "q_1" if self.head else "1"
        s.line(f"tall, wide = -(-q_2 // {tall}), -(-k_2 // {wide})")
        scalars |= {"queries": "q_2", "keys": "k_2"} | ({"shift": self.shift} if "shift" in self.part.loaded.kinds else {})
        made = dict(zip(("Count", "List"), s.together(i32, count=(b, h, "tall"), entries=(b, h, "tall", "wide"))))
        views |= made
        s.check(self.part.loaded, views, scalars)
        steps = lambda v: (v.strides[0] if self.batch else "0", v.strides[1] if self.head else "0", *v.strides[2:])
        return {n: View(v.pointer, ("q_0", "q_1", *v.shape[2:]), steps(v)) for n, v in made.items()}
