"""Backward passes written out (`fcgen.straight`): what the programs of a plan of `training` are given, of calls without functions.

Guaranteed: what runs here is what `training.gradients` launches, with the same arguments; where something has to be looked at closely
nothing has been launched, and that goes its own way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..kernels.backward_schedules import Way
from ..runtime import tensors
from ..straight import View
from . import guards
from .plans import Text

if TYPE_CHECKING:
    from .training import Plan

#: kinds of tensors that a plan is known for
MOST = 4


def known(plan: Plan, scale: float, every: tuple[Any, ...]) -> Any:
    """The gradients of (q, k, v), or None. every: q, k, v, out, the log-sum-exp, the gradient of out."""
    for guard, run in plan.kinds:
        if guard(*every):
            try:
                return run(*every, scale)
            except sys.modules["torch"].OutOfMemoryError:  # in front of all launches; the long way can do with less
                return None
    return None


def learn(plan: Plan, every: tuple[Any, ...]) -> None:
    """After a pass that went well: know its kind."""
    if len(plan.kinds) < MOST and guards.usable() and len(set(map(id, every))) == len(every) and not any(x.is_nested for x in every):
        plan.kinds.append((guards.guard(every), written(plan, every[0])))


def written(plan: Plan, q: Any) -> Callable[..., Any]:
    device = tensors.outline(q, "q").device
    s = Text(device, q, ("q", "k", "v", "o", "lse", "do", "scale"))
    f32, like = s.torch.float32, s.known(s.torch.empty_like, "like")
    views = {name: s.tensor(word, 4) for name, word in (("Q", "q"), ("K", "k"), ("V", "v"), ("O", "o"), ("dO", "do"))}
    views["LSE"] = s.tensor("lse", 3)
    b, h, m = views["LSE"].shape
    s.line(f"line = {m} + 3 & ~3")
    room = s.made("room", ("2", b, h, "line"), f32)  # each head's rows begin on a multiple of 16 bytes
    s.line(f"lse2_p = room_p + 4 * {room.strides[0]}")
    views |= {name: View(at, (b, h, m), room.strides[1:]) for name, at in (("Delta", "room_p"), ("LSE2", "lse2_p"))}
    if plan.way.adds:
        views["Sums"] = s.made("sums", views["Q"].shape, f32)
    if plan.queries is not None:
        n = views["K"].shape[2]
        s.line(f"wide = {m} + 7 & ~7")
        s.refuse(f"{b} * {h} * {n} * wide * {q.element_size()} > {plan.room}")  # `scores` takes parts
        left = s.made("left", (b, h, n, "wide"), q.dtype)
        views["dS"] = View(left.pointer, (b, h, n, m), left.strides)
    if plan.way is Way.TURNS:
        views["Turns"] = s.made("turns", (b, h, m), s.torch.int32)
    made = {"dQ": "q"} if plan.rows or plan.after or plan.queries else {}
    made |= {"dK": "k", "dV": "v"} if plan.keys else {}
    for name, word in made.items():
        s.line(f"d{word} = {like}({word})")
        views[name] = s.tensor(f"d{word}", 4)
    s.begin()
    steps = []
    for part in (plan.first and plan.first[0], plan.rows and plan.rows[0], plan.keys, plan.after, plan.queries):
        if part is not None:
            loaded = part.make().launcher.loaded(device)
            mine = {**views, "dQ": views["Sums"]} if part is plan.keys and plan.way.adds else views
            steps.append((loaded, {n: mine[n] for n in loaded.order if n != "scale"}, {"scale": "scale"}))
    for loaded, mine, scalars in steps:
        s.check(loaded, mine, scalars)
    for loaded, mine, scalars in steps:
        s.go(loaded, mine, scalars, s.stream)
    return s.function(s.parameters, ", ".join(f"d{made[n]}" if n in made else "None" for n in ("dQ", "dK", "dV")))
