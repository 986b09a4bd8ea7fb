"""Calls of `fcgen.attention_varlen` of a kind that has been seen: what `calls` does for tensors [B, H, M, D].

Guaranteed: what runs here is what the long way would run, with the same arguments; a call that is not quite ordinary goes there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import FcError
from ..kernels.hopper_schedules import reach
from ..runtime import tensors
from ..straight import View
from . import guards
from .calls import _EACH, _OPTIONS, _PLANS, _ROOTS, _SAME, _STRANGE, SMALLEST_NORMAL
from .plans import Part, Plan, Text

#: how a call's tensors and numbers are called in the text, before what functions hold
CALL = ("q", "k", "v", "o", "rows", "keys", "used_rows", "used_keys", "scale", "left", "right")


class Options(NamedTuple):
    """What is decided before tensors are looked at. plan: (dtype, device, rows, heads, head size, keys' heads, most keys, value head size,
    scale, functions, q) -> how such calls are launched, if they can be. schedule: as the call had it."""

    plan: Callable[..., Plan | None]
    schedule: Any


kinds: dict[Any, list[Callable[..., Any]]] = {}


def ends(window: Any) -> tuple[int | None, int | None] | None:
    """(left, right) of a window, None for no end; None if it has to be looked at."""
    if window is None:
        return None, None
    if type(window) is not tuple or len(window) != 2:
        return None
    left, right = window
    if left is not None:
        if type(left) is not int or not -1 <= left < 2**31:
            return None
        left = None if left == -1 else left
    if right is not None:
        if type(right) is not int or not -1 <= right < 2**31:
            return None
        right = None if right == -1 else right
    return left, right


def learn(key: Any, options: Options, q: Any, k: Any, v: Any, rows: Any, keys: Any, used_rows: Any, used_keys: Any, out: Any) -> None:
    """After a call that went well: know its kind."""
    torch = sys.modules.get("torch")
    every = tuple(t for t in (q, k, v, rows, keys, used_rows, used_keys, out) if t is not None)
    if torch is None or not guards.usable() or not all(isinstance(t, torch.Tensor) and not t.requires_grad for t in every):
        return
    if len(set(map(id, every))) < len(every):
        return
    if len(kinds) >= _OPTIONS:
        kinds.clear()
    kinds[key] = [_kind(options, torch, every), *kinds.get(key, [])[:_EACH - 1]]


def _kind(options: Options, torch: Any, every: tuple[Any, ...]) -> Callable[..., Any]:
    like = tensors.describe(every[0], "q")
    guard, forward_ad = guards.guard(every), torch.autograd.forward_ad
    empty, empty_like, written = torch.empty_strided, torch.empty_like, torch.autograd.graph.increment_version
    known: dict[Any, list[Plan]] = {}

    def run(q: Any, k: Any, v: Any, rows: Any, keys: Any, used_rows: Any, used_keys: Any, out: Any, longest: Any, most: Any,
            left: int | None, right: int | None, scale: float | None, given: Any) -> Any:
        now = tuple([t for t in (q, k, v, rows, keys, used_rows, used_keys, out) if t is not None])
        try:
            for t in now:
                if t.is_nested:
                    return None
            if not guard(*now):
                return None
        except _STRANGE:
            return None
        (m, h, d), (n, groups, _), e = q.shape, k.shape, v.shape[2]
        if forward_ad._current_level >= 0 or not (m and n and groups) or h % groups:
            return None
        if given is not None and given.lacking((rows.shape[0] - 1, h, 0, 0)):
            return None
        if longest is not None and (type(longest) is not int or longest < 1):
            return None
        if most is None:
            most = n
        elif type(most) is not int or most < 0:
            return None
        exact = (_ROOTS.get(d) or 1.0) if scale is None else scale
        if out is not None:
            if out.shape != (m, h, e):
                return None
            o = out
        else:
            o = empty_like(q) if d == e else empty((m, h, e), (h * e, e, 1), dtype=q.dtype, device=q.device)
        most = min(most, n)
        key = h, groups, m + 63 >> 6, reach(most), most >= 4 * m, d, e, exact >= SMALLEST_NORMAL
        plans = known.get(key, ())
        for plan in plans:
            values = plan.values(given) if given is not None else ()
            if values is not None:
                try:
                    result = plan.run(q, k, v, o, rows, rows if keys is None else keys, used_rows, used_keys, exact, left, right, *values)
                except FcError:
                    return None  # the long way says what is wrong in the caller's words
                if result is not None and out is not None:
                    written(out)
                return result
        made = options.plan(like.dtype, like.device, m, h, d, groups, most, e, exact, given, q)
        if made is None or (given is not None and made.values(given) is None):
            return None
        if len(known) >= _PLANS:
            known.clear()
        known[key] = [made, *plans[:_SAME - 1]]  # type: ignore[misc]
        return run(q, k, v, rows, keys, used_rows, used_keys, out, longest, most, left, right, scale, given)

    return run


def plan(p: Part, lister: Part, each: int, device: int, like: Any, *, lse: bool, given: bool) -> Plan | None:
    """The plan of a program of `kernels.ragged`. lister: makes its tiles, of so many rows each. given: the output was."""
    s, names = Text(device, like, CALL), set(p.loaded.order)
    views = {name: s.tensor(word, 3) for name, word in (("Q", "q"), ("K", "k"), ("V", "v"), ("O", "o"))}
    for (begin, end), word in ((("Begin", "End"), "rows"), (("KBegin", "KEnd"), "keys")):
        v = s.tensor(word, 1)
        s.line(f"{word}_n, {word}_e = {v.shape[0]} - 1, {v.pointer} + 4 * {v.strides[0]}")
        views[begin] = View(v.pointer, (f"{word}_n",), v.strides)
        views[end] = View(f"{word}_e", (f"{word}_n",), v.strides)
    s.refuse("rows_n < 1")
    views |= {name: s.tensor(word, 1) for name, word in (("Used", "used_rows"), ("KUsed", "used_keys")) if name in names}
    captured, scalars = s.captures(p)
    if lse:
        views["LSE"] = s.made("lse", ("q_1", "q_0"), s.torch.float32)
    s.line(f"tiles = q_0 // {each} + rows_n")
    both = s.made("both", ("2", "tiles"), s.torch.int32)
    s.line("number_p = both_p + 4 * tiles")
    views |= {"Sequence": View(both.pointer, ("tiles",), ("1",)), "Number": View("number_p", ("tiles",), ("1",)), **captured}
    scalars |= {name: name for name in ("scale", "left", "right") if name in names}
    if names != {*views, *scalars}:
        return None
    s.begin()
    mine = {n: views[n] for n in ("Begin", "End", "Sequence", "Number")}
    s.check(lister.loaded, mine, {"each": str(each)})
    s.check(p.loaded, views, scalars, ["O"] if given else [], tuple("QKVO"))
    s.go(lister.loaded, mine, {"each": str(each)}, s.stream)
    s.go(p.loaded, views, scalars, s.stream)
    return s.plan("(o, lse)" if lse else "o")
