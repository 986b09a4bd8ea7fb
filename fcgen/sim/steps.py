"""The ops of a block as an agent runs them: what each means is found once per launch, and not by every warp in every turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import FcError
from ..ir.async_ops import reaches_tensors
from ..ir.core import Block, Kernel, Op, Value, walk
from ..ir.elementwise import FNS, convert, meaning
from ..ir.types import DTYPES, Frag, f16, f32
from .mbarriers import Blocked

if TYPE_CHECKING:
    from .agents import Agent

CONTRACTED = (f16, f32)
Env = dict[Value, Any]
Flow = Callable[["Agent", Op], Iterator[Blocked | None]]


class Step(NamedTuple):
    """run: does the op, and puts its results into the agent's values. flow: of an op at which the agent may stop, in place of `run`; a
    `yield` has neither. registers: the fragments that an ordinary instruction reads, and those that it writes; None where there are
    none. reaches: it accesses a tensor."""

    op: Op
    run: Callable[[Agent, Env], None] | None
    flow: Flow | None
    registers: tuple[tuple[Value, ...], tuple[Value, ...]] | None
    reaches: bool


def steps(block: Block, of: type[Agent], contracted: dict[Op, tuple[int, Op]]) -> list[Step]:
    """contracted: see `contracted`."""
    return [_step(op, of, contracted) for op in block.ops]


def _step(op: Op, of: type[Agent], contracted: dict[Op, tuple[int, Op]]) -> Step:
    flow = of.FLOWS.get(op.kind)
    if op.kind in of.PAUSES:
        pause = of.PAUSES[op.kind]
        flow = lambda agent, op: pause(agent, op, [agent.env[v] for v in op.operands])
    read, written = (tuple(v for v in values if isinstance(v.type, Frag)) for values in (op.operands, op.results))
    ordinary = op.kind not in ("wgmma", "settle")
    run = None if flow is not None or op.kind == "yield" else _run(op, of, contracted)
    return Step(op, run, flow, (read, written) if ordinary and (read or written) else None, reaches_tensors(op))


def _run(op: Op, of: type[Agent], contracted: dict[Op, tuple[int, Op]]) -> Callable[[Agent, Env], None]:
    do, operands = getattr(of, "do_" + op.kind, None), op.operands
    if op.kind == "const":
        return _always(op.result, convert(np.asarray(op["value"]), DTYPES[op["dtype"]])[()])
    if op in contracted:
        return _pure(op.result, (operands[1 - contracted[op][0]], *contracted[op][1].operands), _fused(op, contracted[op][0]))
    if do is None and op.kind in FNS:
        return _pure(op.result, operands, meaning(op.kind, operands[0].type.dtype))
    if do is None:
        raise FcError("compile/unsupported", f"the simulator has no meaning for {op.kind}", loc=op.loc)
    return _method(op, do)


def _always(result: Value, value: Any) -> Callable[[Agent, Env], None]:
    def run(agent: Agent, env: Env) -> None:
        env[result] = value

    return run


def _pure(result: Value, operands: tuple[Value, ...], fn: Callable[..., Any]) -> Callable[[Agent, Env], None]:
    """Of a function that knows no agent. (Most ops have two operands.)"""
    if len(operands) == 2:
        a, b = operands

        def run(agent: Agent, env: Env) -> None:
            env[result] = fn(env[a], env[b])
    else:
        def run(agent: Agent, env: Env) -> None:
            env[result] = fn(*[env[v] for v in operands])

    return run


def _method(op: Op, do: Callable[[Agent, Op, list[Any]], Any]) -> Callable[[Agent, Env], None]:
    operands, results = op.operands, op.results
    if not results:
        def run(agent: Agent, env: Env) -> None:
            do(agent, op, [env[v] for v in operands])
    elif op.kind in ("settle", "fetch"):
        def run(agent: Agent, env: Env) -> None:
            env.update(zip(results, do(agent, op, [env[v] for v in operands])))
    else:
        (result,) = results

        def run(agent: Agent, env: Env) -> None:
            env[result] = do(agent, op, [env[v] for v in operands])

    return run


def _fused(op: Op, at: int) -> Callable[..., Any]:
    """A sum with one rounding, as nvcc and ptxas make it of a product and what is added to it (float64 holds the product of two f32)."""
    into = op.result.type.dtype.np_dtype

    def run(other: Any, a: Any, b: Any) -> Any:
        exact, rest = np.asarray(a, np.float64) * np.asarray(b, np.float64), np.asarray(other, np.float64)
        return np.asarray(exact + rest if op.kind == "add" else exact - rest if at == 0 else rest - exact, into)

    return run


def contracted(kernel: Kernel) -> dict[Op, tuple[int, Op]]:
    """Sums and differences of fragments -> which operand is a product that is taken into them (-fmad), and the op that made it: of
    f32, and of f16, whose packed functions say so by not rounding explicitly."""
    out: dict[Op, tuple[int, Op]] = {}
    for block in (b for role in kernel.roles for b in (role.body, *(r for op in walk(role.body) for r in op.regions))):
        made = {op.result: op for op in block.ops
                if op.kind == "mul" and isinstance(op.result.type, Frag) and op.result.type.dtype in CONTRACTED}
        for op in block.ops:
            if op.kind in ("add", "sub") and (at := next((n for n, v in enumerate(op.operands) if v in made), None)) is not None:
                out[op] = at, made[op.operands[at]]
    return out
