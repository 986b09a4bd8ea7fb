"""gather: arrivals that a proxy fence stands in front of share one; part of `sync`.

In: synced machine IR. Out: the same, where such an arrival has moved down to the next one, if between them there is nothing but work on
registers, plain loads and stores: nobody waits there, so that nobody waits longer than for that work. A fence waits for all loads and
stores before it, which costs more than the work does.
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
    held: list[Op] = []  # the fence, arrivals behind it, and steps of their cursors: at the end of `out`, or to go there
    ops = [o.within(_block) for o in block.ops]
    for n, op in enumerate(ops):
        opens = op.kind == "proxy_fence" and n + 1 < len(ops) and ops[n + 1].kind == "mbar_arrive"
        if opens and held:
            held = [op, *held[1:]]
        elif opens:
            held = [op]
        elif held and op.kind == "mbar_arrive" and ops[n - 1].kind in ("proxy_fence", "advance", "mbar_arrive"):
            held.append(op)
        elif held and op.kind == "advance" and any(op.operands[0] in o.operands for o in held):
            held.append(op)
        else:
            moved = {r for o in held for r in o.results}
            if op.regions or op.kind == "yield" or (OPS[op.kind].effect == "write" and op.kind not in PLAIN) or moved & op.reads:
                out += held
                held = []
            out.append(op)
    return Block(block.args, (*out, *held))
