"""Tangents of a call of attention and of its gradients: the programs of `kernels.tangent`, on torch's tensors.

Guaranteed: what functions hold is read as the call read it, or refused. Packed sequences and what functions hold have no tangents: refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..build.compiler import target
from ..errors import FcError
from ..ir.types import DTYPES
from ..kernels import tangent as specs
from ..kernels.backward import LOG2E
from ..runtime import tensors
from .training import RAGGED, Call, Plan, Ready, _lines_like, _ready


class Pass:
    """A call, the plan of its gradients, and the tensors that its functions hold. (No tuple: torch.func would look into one.)"""

    __slots__ = ("call", "held", "plan")

    def __init__(self, call: Call, plan: Plan, held: list[Any]):
        self.call, self.plan, self.held = call, plan, held


class Point(NamedTuple):
    """Where derivatives are taken: results and operands of the call, and the tensors that its functions hold."""

    o: Any
    lse: Any
    q: Any
    k: Any
    v: Any
    held: tuple[Any, ...]

    @property
    def empty(self) -> bool:
        return 0 in self.q.shape or 0 in self.k.shape or 0 in self.v.shape


def refused(message: str, hint: str | None = None, expected: str = "first derivatives, and second ones of q, k and v") -> FcError:
    return FcError("call/argument", message, expected=expected, hint=hint)


def check(run: Pass, *of_held: Any) -> None:
    """of_held: tangents, or gradients, of what functions hold that second derivatives would need."""
    if run.call.specs is RAGGED:
        raise refused("attention of packed sequences is given tangents, or differentiated twice",
                      "fcgen.attention of a padded batch takes both", "first derivatives, in reverse")
    if any(x is not None for x in of_held):
        raise refused("a tensor that a score, mask or sink function holds is given a tangent, or a second derivative",
                      "detach it, or take its first derivative in reverse (torch.func.grad, backward)")


def tangent(run: Pass, at: Point, tq: Any, tk: Any, tv: Any) -> tuple[Any, Any]:
    """How (out, log-sum-exp) move where q, k and v move by these; None: not at all."""
    if at.empty or tq is tk is tv is None:
        return torch.zeros_like(at.o), torch.zeros_like(at.lse)
    to, tlse = torch.empty_like(at.o), torch.empty_like(at.lse)
    moves = _moves(tQ=tq, tK=tk, tV=tv)
    _launch(run, specs.tangent, at, moves, {"LSE": at.lse, "tO": to, "tLSE": tlse})
    return to, tlse


def second(run: Pass, at: Point, do: Any, dlse: Any, moves: tuple[Any, ...], known: tuple[Any, Any] | None = None) -> tuple[Any, Any, Any]:
    """How the gradients of q, k and v move. do, dlse: the gradients of (out, log-sum-exp). moves: by what q, k, v, do and dlse move. known:
    how (out, log-sum-exp) do."""
    tq, tk, tv, tdo, tdlse = moves
    if at.empty:
        return torch.zeros_like(at.q), torch.zeros_like(at.k), torch.zeros_like(at.v)
    to, tlse = tangent(run, at, tq, tk, tv) if known is None else known
    do = torch.zeros_like(at.o) if do is None else _plain(do)
    zero = torch.zeros_like(at.lse)
    lines = {n: _lines_like(at.lse) for n in ("Delta", "LSE2", "tDelta", "tLSE2")}
    first = {"O": at.o, "dO": do, "LSE": at.lse, "dLSE": zero if dlse is None else _plain(dlse).contiguous(), "Delta": lines["Delta"],
             "LSE2": lines["LSE2"]}
    before = run.plan.rows_before
    before._replace(gradients={}).launch(first, at.held, {})
    delta = (to.float() * do.float()).sum(-1)
    delta = delta if tdo is None else delta + (at.o.float() * tdo.float()).sum(-1)
    lines["tDelta"].copy_(delta if tdlse is None else delta - tdlse)
    lines["tLSE2"].copy_(tlse * LOG2E)
    found = {n: torch.empty(x.shape, dtype=x.dtype, device=x.device) for n, x in (("tdQ", at.q), ("tdK", at.k), ("tdV", at.v))}
    moving = _moves(tQ=tq, tK=tk, tV=tv, tdO=tdo)
    _launch(run, specs.backward_tangent_rows, at, moving, {"dO": do, **lines, "tdQ": found["tdQ"]})
    _launch(run, specs.backward_tangent, at, moving, {"dO": do, **lines, "tdK": found["tdK"], "tdV": found["tdV"]})
    return found["tdQ"], found["tdK"], found["tdV"]


def _moves(**given: Any) -> dict[str, Any]:
    return {name: None if x is None else _plain(x) for name, x in given.items()}


def _plain(x: Any) -> Any:
    x = x.resolve_neg()
    return x if x.stride(-1) == 1 and tensors.describe(x, "tangent").in_lines else x.contiguous()


def _launch(run: Pass, spec: Any, at: Point, moves: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    ready = prepared(run, spec, at, tuple(name for name, x in moves.items() if x is None))
    there = {name: x for name, x in moves.items() if x is not None}
    ready.launch({**run.call.arguments, "Q": at.q, "K": at.k, "V": at.v, "scale": run.call.scale, **there, **more}, at.held, {})


def prepared(run: Pass, spec: Any, at: Point, absent: tuple[str, ...]) -> Ready:
    """The program, with what functions hold. It is the same as when the call was made."""
    call, held = run.call, list(run.held)
    score, keep, weigh, _ = call.given
    functions = {n: f for n, f in (("score", score), ("keep", keep), ("weigh", weigh)) if f is not None}
    like = tensors.describe(at.q, "q")
    facts = {"T": DTYPES[like.dtype], "D": at.q.shape[-1], "E": at.v.shape[-1], **call.facts, **dict.fromkeys(absent),
             "grouped": at.q.shape[1] != at.k.shape[1]}
    with tensors.followed():
        ready = _ready(spec, target(call.arch.rstrip("a")).arch, facts, functions, held)
    then = {name: x for part in (run.plan.keys, *(run.plan.rows or ())) if part is not None for name, x in part.numbers.items()}
    if len(held) != len(run.held) or any(then.get(name, x) != x for name, x in ready.numbers.items()):
        raise refused("what a score or mask function holds has changed since attention was called",
                      "derivatives of derivatives read it again: leave it as it is until they are taken", "the same tensors and numbers")
    return ready
