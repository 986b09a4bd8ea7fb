"""gather: arrivals that a proxy fence stands in front of share one; part of `sync`.

In: synced machine IR. Out: the same, where such an arrival has moved down to the next one, if between them there is nothing but work on
registers, plain loads and stores: nobody waits there, so that nobody waits longer than for that work. A fence waits for all loads and
stores before it, which costs more than the work does (H200, rotated keys, D = 128, 4k: one for four is 5 % of the time).
"""

from __future__ import annotations

from ...ir.core import Block, Kernel, Op
from ...ir.ops import OPS
from ...ir.rewrite import map_bodies

#: what an arrival may move over, besides what has no effect
PLAIN = {"st_shared", "proxy_fence", "mbar_arrive", "advance"}


def run(kernel: Kernel) -> Kernel:
    return map_bodies(kernel, _block)


def _block(block: Block) -> Block:
    out: list[Op] = []
    held: list[Op] = []  # the last fence, the arrivals behind it and steps of their cursors: they may go down from here
    ops = [o.within(_block) for o in block.ops]
    for op, after in zip(ops, (*ops[1:], None)):
        if op.kind == "proxy_fence" and after is not None and after.kind == "mbar_arrive":
            out = [o for o in out if o not in held]
            held = [op, *held[1:]]
            out += held
            continue
        if held and out[-1] is held[-1] and op.kind in ("mbar_arrive", "advance"):
            held.append(op)
        elif op.regions or (OPS[op.kind].effect == "write" and op.kind not in PLAIN) or op.reads & {r for o in held for r in o.results}:
            held = []
        out.append(op)
    return Block(block.args, tuple(out))
