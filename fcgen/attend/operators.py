"""Operators for graphs: what they are for torch, and those with a rule for their derivative, which is an operator too.

Guaranteed of these: both do what the plain call does (`differentiable.differentiated`); what the backward pass reads is saved by torch;
second derivatives are refused. Imported where graphs are traced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..errors import FcError
from .differentiable import differentiated, twice
from .learning import recorded

#: operators live as long as this
LIBRARY = torch.library.Library("fcgen", "FRAGMENT")


def define(name: str, arguments: str, result: str, function: Any, fake: Any, *tags: torch.Tag) -> Any:
    """An operator `fcgen::name` whose result has the shape and strides that `fake` gives. (Without what torch.library.custom_op puts around
    one: a call costs a third. Gradients are refused, but for `learnt`, and writes are told by what it calls.)"""
    LIBRARY.define(f"{name}{arguments} -> {result}", tags=(torch.Tag.pt2_compliant_tag, *tags))
    LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    LIBRARY.impl(name, functools.partial(_transformed, name, function), "FuncTorchDynamicLayerFrontMode")
    torch.library.register_fake(f"fcgen::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.fcgen, name).default


def _transformed(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """An operator in a transform of torch.func: the plain call, which the transform follows. (The operator by itself has a gradient of zero
    there, and no batches.)"""
    of, inner = torch._C._functorch, _tensors(args)
    while any(of.is_functorch_wrapped_tensor(x) for x in inner):
        inner = [of.get_unwrapped(x) if of.is_functorch_wrapped_tensor(x) else x for x in inner]
    if recorded(*inner):
        raise FcError("call/argument", f"a transform of torch.func is asked for in a graph that torch writes down, around fcgen::{name}",
                      expected="the transform outside of make_fx, torch.export and fullgraph=True",
                      hint="gradients of a graph: tensors that require grad, and backward()")
    return function(*args)


#: where a tensor stood
_HERE = object()


def learnt(name: str, arguments: str, run: Callable[..., tuple[Any, Any]], fake: Callable[..., tuple[Any, Any]]) -> Any:
    """The operator `fcgen::name` that gives (out, log-sum-exp), beside `fcgen::name_gradients`. run: the call, of these arguments; those
    among them that are tensors have gradients. fake: new results of its shapes."""

    def derived(*args: Any) -> list[torch.Tensor]:
        *given, o, lse, do, dlse, wanted = args
        return differentiated(lambda *xs: run(*_replaced(given, xs)), _tensors(given), wanted, (o, lse), (do, dlse))

    def shapes(*args: Any) -> list[torch.Tensor]:
        xs = _tensors(args[:-5])
        return [xs[n].new_empty(xs[n].shape) for n in args[-1]]

    op = define(name, arguments, "(Tensor, Tensor)", run, fake)
    gradients = define(f"{name}_gradients", f"{arguments[:-1]}, Tensor o, Tensor lse, Tensor? do, Tensor? dlse, int[] wanted)", "Tensor[]",
                       derived, shapes)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, Any]) -> None:
        xs = _tensors(inputs)
        ctx.inputs = _replaced(inputs, [_HERE] * len(xs))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output, *xs)

    def back(ctx: Any, do: Any, dlse: Any) -> Any:
        o, lse, *xs = ctx.saved_tensors
        needs = [need for x, needed in zip(ctx.inputs, ctx.needs_input_grad) if _stands(x)
                 for need in (needed if isinstance(needed, (list, tuple)) else [needed])]
        wanted = [n for n, need in enumerate(needs) if need]
        found: list[Any] = [None] * len(xs)
        if do is not None or dlse is not None:
            for n, g in zip(wanted, gradients(*_replaced(ctx.inputs, xs), o, lse, do, dlse, wanted)):
                found[n] = g
        return tuple(_replaced([x if _stands(x) else None for x in ctx.inputs], found))

    torch.library.register_autograd(f"fcgen::{name}", back, setup_context=keep, lib=LIBRARY)
    torch.library.register_autograd(f"fcgen::{name}_gradients", _again, lib=LIBRARY)
    return op


def _again(ctx: Any, *_: Any) -> Any:
    raise twice()


def _stands(x: Any) -> bool:
    """Is it a tensor, or a list of nothing else? (As torch takes arguments: an empty list is one of tensors.)"""
    return all([_stands(y) for y in x]) if isinstance(x, list) else x is _HERE or isinstance(x, torch.Tensor)


def _tensors(args: Iterable[Any]) -> list[torch.Tensor]:
    return [y for x in args if _stands(x) for y in (x if isinstance(x, list) else [x])]


def _replaced(args: Iterable[Any], xs: Iterable[Any]) -> list[Any]:
    """The arguments with other tensors, in their order."""
    rest = iter(xs)
    return [([next(rest) for _ in x] if isinstance(x, list) else next(rest)) if _stands(x) else x for x in args]

