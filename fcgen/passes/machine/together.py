"""together: how the first block of a cluster gets what the others have found.

In: machine IR with its instructions. Out: the same without `sum_blocks`. Each of the other blocks stores its tile in shared memory of the
first one, at a place of its own, and arrives at a barrier there; the first block waits for all of them and adds up in their order. Nobody
waits for the first block: what it reads lies in its own memory.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ...ir.core import Kernel, Op, Value, walk_kernel
from ...ir.layout import SmemLayout
from ...ir.rewrite import Builder, Env, branch, rewrite
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Buffer, Frag, Mbarrier

#: bytes behind each row, so that lanes of an accumulator's rows meet in no bank
PAD = 16


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if not any(op.kind == "sum_blocks" for op in walk_kernel(kernel)):
        return kernel
    buffers: list[Value] = []
    roles = tuple(replace(r, body=rewrite(r.body, partial(_sum, blocks=kernel.cluster, warps=r.warps, buffers=buffers)))
                  for r in kernel.roles)
    return replace(kernel, roles=roles, buffers=(*kernel.buffers, *buffers))


def _sum(op: Op, b: Builder, env: Env, blocks: int, warps: int, buffers: list[Value]) -> bool:
    if op.kind != "sum_blocks":
        return False
    (v,), name = op.operands, op.result.name
    t: Frag = v.type
    layout = SmemLayout(t.shape[-1], PAD // t.dtype.bytes if len(t.shape) > 1 else 0)
    ring = Value(Buffer(t.dtype, t.shape, layout, blocks - 1), f"{name}_parts")
    full = Value(Mbarrier(warps * (blocks - 1)), f"{name}_full")
    buffers += [ring, full]
    zero, cursor = b.const(0), b.emit("cursor", slots=1)
    rank = b.emit("mod", b.emit("block_index", name="block"), b.const(blocks), name="rank")
    take, give = Builder(op.loc), Builder(op.loc)
    take.do("mbar_wait", full, cursor, lag=0, cluster=True)
    total = v
    for n in range(blocks - 1):
        slot = take.emit("slot", ring, take.const(n), ahead=0, name=ring.name)
        one = take.emit("ld_shared", slot, zero, zero, type=t, name=f"{name}_part", few=True)
        total = take.emit("add", total, one, name=name)
    place = give.emit("sub", give.emit("max", rank, give.const(1)), give.const(1))  # of the first block too, where addresses are computed
    give.do("st_shared", v, give.emit("slot", ring, place, ahead=0, name=ring.name), zero, zero, block=0)
    give.do("mbar_arrive", full, cursor, block=0)
    b.add(branch(b.emit("eq", rank, zero), take, [total], [v], env.anew(op.results), give))
    return True
