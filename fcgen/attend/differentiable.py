"""Attention, its gradients and its tangents as functions of torch's autograd, each the derivative of another.

    attention    (q, k, v) -> (out, log-sum-exp)             reverse: gradients                  forward: tangent
    gradients    (do, dlse, q, k, v) -> those of q, k, v     reverse: tangent and second         forward: second
    tangent      (q, k, v, their tangents) -> those of both  reverse: gradients and second       forward: refused
    second       how gradients move                          refused: third derivatives

That second derivatives are symmetric makes `second` the derivative of gradients in either mode. Guaranteed: transforms of torch.func (grad,
vjp, jvp, vmap and what is made of them) and forward-mode tangents are followed, or refused with what has no derivative; none is lost.

Imported only where torch is in use.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from ..errors import FcError
from ..runtime import tensors
from .learning import moves
from .tangents import Pass, Point, check, refused, second, tangent
from .training import DENSE, Call, gradients, plan_of
from .variants import PLAIN

#: (out, log-sum-exp) of the call that is looked at, where they are known
_known: ContextVar[tuple[Any, Any] | None] = ContextVar("known", default=None)


def begin(call: Call, q: Any, k: Any, v: Any) -> Pass:
    """A call with the plan of its backward pass."""
    held: list[Any] = []
    moved = moves(call.given, q, k, v)
    with tensors.followed():
        plan = plan_of(call, q, k, v, q.requires_grad or moved, k.requires_grad or v.requires_grad or moved, held)
    return Pass(call, plan, held)


def attend(run: Pass, q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    """(out, log-sum-exp), with derivatives."""
    saved = [x for x in run.call.saved if isinstance(x, torch.Tensor)]
    if torch._C._are_functorch_transforms_active():
        return _Attention.apply(run, q, k, v, *run.held, *saved)  # type: ignore[no-any-return]
    if torch.autograd.forward_ad._current_level < 0:
        return _Directly.apply(run, q, k, v, *run.held, *saved)  # type: ignore[no-any-return]
    with as_outside():  # a graph that is called with dual numbers runs below torch's autograd
        return _Attention.apply(run, q, k, v, *run.held, *saved)  # type: ignore[no-any-return]


@contextmanager
def as_outside() -> Iterator[None]:
    """In an operator's own code: autograd and transforms of torch.func work as around it, and what watches operators does not look on."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradCUDA", "AutogradCPU", "AutogradOther", "ADInplaceOrView", "FuncTorchDynamicLayerFrontMode",
                "FuncTorchDynamicLayerBackMode", "FuncTorchVmapMode", "FuncTorchBatched", "FuncTorchGradWrapper", "PythonTLSSnapshot"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    included, modes = torch._C._dispatch_tls_local_include_set(), torch.utils._python_dispatch
    with modes._disable_current_modes(), torch._C._ForceDispatchKeyGuard(included, excluded):
        yield


def differentiated(run: Callable[..., Any], given: Sequence[Any], wanted: Sequence[int], known: tuple[Any, Any],
                   of: tuple[Any, Any]) -> list[Any]:
    """Gradients of the given tensors that are wanted, of what `run` makes of all of them: (out, log-sum-exp), which are known. of: the
    gradients of both, or None. The forward programs do not run. It may be called in an operator's own code."""
    before = _known.set(known)
    try:
        with as_outside(), torch.enable_grad():
            leaves = [x.detach().requires_grad_(n in wanted) for n, x in enumerate(given)]
            pairs = [(x, g) for x, g in zip(run(*leaves), of) if g is not None and x.requires_grad]
            xs = [leaves[n] for n in wanted]
            found = torch.autograd.grad([x for x, _ in pairs], xs, [g for _, g in pairs], allow_unused=True) if pairs else [None] * len(xs)
    finally:
        _known.reset(before)
    return [torch.zeros_like(x, memory_format=torch.contiguous_format) if g is None else g.contiguous() for x, g in zip(xs, found)]


def twice() -> FcError:
    return refused("the gradient of fcgen.attention in a graph is differentiated, and has no derivative there",
                   "call it outside of torch.compile, where second derivatives are taken", "first derivatives, in reverse")


def _thrice(*_: Any) -> Any:
    raise refused("fcgen.attention is differentiated a third time, or its tangent is given tangents",
                  "second derivatives: the gradient of a gradient, the tangent of a gradient, the gradient of a tangent")


def _watched() -> bool:
    """Whether somebody wants derivatives of what is computed here, or looks at operators."""
    return bool(torch.is_grad_enabled() or torch.autograd.forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
                or torch._C._len_torch_dispatch_stack())


def _here(xs: Sequence[Any]) -> list[Any]:
    """Values without the tangents of this level."""
    return [x if x is None else torch.autograd.forward_ad.unpack_dual(x).primal for x in xs]


class _Function(torch.autograd.Function):
    """first: how many arguments are in front of the tensors."""

    first = 1

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Of plain attention, one call in which the new axis is part of the batch; else a call for each of its indices."""
        run, n, size = args[0], cls.first, info.batch_size
        pairs = list(zip(args[n:], in_dims[n:]))
        if run.call.given == PLAIN and run.call.specs is DENSE:
            wide = [x if x is None else x.expand(size, *x.shape) if d is None else x.movedim(d, 0) for x, d in pairs]
            batch = next(x.shape[1] for x in wide if x is not None)
            found = cls.apply(*args[:n], *[x if x is None else x.flatten(0, 1).contiguous() for x in wide])
            out = tuple(x if x is None else x.unflatten(0, (size, batch)) for x in found)
        else:
            if run.held and any(d is not None for _, d in pairs[-len(run.held):]):
                raise refused("torch.func.vmap gives a tensor that a function holds another axis",
                              "let the function index that axis itself", "one tensor for all calls")
            at = lambda x, d, i: x if d is None else x.select(d, i) if size else x.sum(d)  # of none, what the shapes of one would be
            each = [cls.apply(*args[:n], *[at(x, d, i) for x, d in pairs]) for i in range(max(size, 1))]
            out = tuple(None if x is None else torch.stack([e[i] for e in each])[:size] for i, x in enumerate(each[0]))
        return out, tuple(None if x is None else 0 for x in out)


class _Attention(_Function):
    @staticmethod
    def forward(run: Pass, q: Any, k: Any, v: Any, *held: Any) -> Any:
        known = _known.get()
        if known is not None:  # of a call whose heads were widened since: zeros, as the values beside them are
            return torch.nn.functional.pad(known[0].detach(), (0, v.shape[-1] - known[0].shape[-1])), known[1].detach()
        with tensors.followed():
            return run.call.run(q, k, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, Any]) -> None:
        ctx.run, *saved = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output, *saved)
        ctx.save_for_forward(*output, *saved)

    @staticmethod
    def backward(ctx: Any, do: Any, dlse: Any) -> Any:
        needs = ctx.needs_input_grad[1:]
        if do is None and dlse is None:
            return None, *[None for _ in needs]
        run = _Gradients.apply if _watched() else _Gradients.forward  # torch spends as much on a function as the launches take
        return None, *run(ctx.run, needs, do, dlse, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, _: Any, tq: Any, tk: Any, tv: Any, *of_held: Any) -> Any:
        check(ctx.run, *of_held)
        o, lse, q, k, v, *held = _here(ctx.saved_tensors)
        return _Tangent.apply(ctx.run, o, lse, q, k, v, tq, tk, tv, *held)


class _Directly(torch.autograd.Function):
    """The same where no transform is about. For those torch binds arguments by their signature, which takes as long as the launch."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        out = _Attention.forward(*args)
        _Attention.setup_context(ctx, args, out)
        return out

    backward = _Attention.backward


class _Gradients(_Function):
    first = 2

    @staticmethod
    def forward(run: Pass, needs: tuple[bool, ...], do: Any, dlse: Any, o: Any, lse: Any, q: Any, k: Any, v: Any, *held: Any) -> Any:
        into: dict[int, Any] = {}
        with torch.no_grad():
            three = gradients(run.call, run.plan, o, lse, q, k, v, tuple(held), do, dlse, into)
            every = [*three, *[into[n].to(x.dtype) if n in into else None for n, x in enumerate(held)]]
        return tuple(g if need else None for g, need in zip(every, needs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.run, ctx.needs, *saved = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, gq: Any, gk: Any, gv: Any, *of_held: Any) -> Any:
        do, dlse, o, lse, q, k, v, *held = ctx.saved_tensors
        check(ctx.run, *of_held, *[True if need else None for need in ctx.needs_input_grad[9:]])
        if gq is gk is gv is None:
            return (None,) * (9 + len(held))
        to, tlse = _Tangent.apply(ctx.run, o, lse, q, k, v, gq, gk, gv, *held)
        moved = _Second.apply(ctx.run, do, dlse, o, lse, q, k, v, gq, gk, gv, None, None, to, tlse, *held)
        return None, None, None if do is None else to, None if dlse is None else tlse, None, None, *moved, *[None for _ in held]

    @staticmethod
    def jvp(ctx: Any, _: Any, __: Any, tdo: Any, tdlse: Any, to: Any, tlse: Any, tq: Any, tk: Any, tv: Any, *of_held: Any) -> Any:
        check(ctx.run, *of_held, *[True if need else None for need in ctx.needs[3:]])
        do, dlse, o, lse, q, k, v, *held = _here(ctx.saved_tensors)
        moved = _Second.apply(ctx.run, do, dlse, o, lse, q, k, v, tq, tk, tv, tdo, tdlse, None, None, *held)
        return tuple([x if need else None for x, need in zip(moved, ctx.needs)] + [None for _ in held])


class _Tangent(_Function):
    @staticmethod
    def forward(run: Pass, o: Any, lse: Any, q: Any, k: Any, v: Any, tq: Any, tk: Any, tv: Any, *held: Any) -> Any:
        with torch.no_grad():
            return tangent(run, Point(o, lse, q, k, v, held), tq, tk, tv)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.run, *saved = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, a: Any, alse: Any) -> Any:
        o, lse, q, k, v, tq, tk, tv, *held = ctx.saved_tensors
        needs = ctx.needs_input_grad
        check(ctx.run, *[True if need else None for need in needs[9:]])
        moved = dots = (None, None, None)
        if (a is not None or alse is not None) and any(needs[3:6]):
            moved = _Second.apply(ctx.run, a, alse, o, lse, q, k, v, tq, tk, tv, None, None, None, None, *held)
        if (a is not None or alse is not None) and any(needs[6:9]):
            dots = _Gradients.apply(ctx.run, (*needs[6:9], *[False for _ in held]), a, alse, o, lse, q, k, v, *held)[:3]
        return None, None, None, *moved, *dots, *[None for _ in held]

    jvp = _thrice


class _Second(_Function):
    @staticmethod
    def forward(run: Pass, do: Any, dlse: Any, o: Any, lse: Any, q: Any, k: Any, v: Any, tq: Any, tk: Any, tv: Any, tdo: Any, tdlse: Any,
                to: Any, tlse: Any, *held: Any) -> Any:
        with torch.no_grad():
            return second(run, Point(o, lse, q, k, v, held), do, dlse, (tq, tk, tv, tdo, tdlse), None if to is None else (to, tlse))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept."""

    backward = jvp = _thrice


def _leave(*functions: Any) -> None:
    """Dynamo leaves the frames of these alone, and all that they call: it would read them where a compiled function calls attention beside
    its graph."""
    frames: Any = getattr(torch._C._dynamo, "eval_frame", None)
    if hasattr(frames, "_FrameExecStrategy"):  # torch 2.7 and later
        skip = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
        for f in functions:
            frames.set_code_exec_strategy(f.__code__, skip)


for _c in (_Attention, _Gradients, _Tangent, _Second):
    vars(_c)["forward"].__func__.__signature__ = inspect.signature(_c.forward)  # torch asks for it at every call

_leave(begin, attend, vars(_Function)["vmap"].__func__, *[f for c in (_Attention, _Gradients, _Tangent, _Second)
                                          for f in (c.forward, c.setup_context, c.backward, c.jvp)], _Directly.forward)
