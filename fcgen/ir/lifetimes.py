"""When each shared-memory buffer of a machine kernel is in use, as positions in program order."""

from __future__ import annotations

from collections.abc import Container

from .core import Block, Op, Value
from .op_table import having

#: ops that fill a buffer; those of them that do so from registers
WRITES = having("writes shared")
STORES = WRITES - having("fills")


def spans(body: Block, buffers: set[Value], whole: bool = False, from_outside: Container[Value] = ()) -> dict[Value, tuple[int, int]]:
    """buffer -> (first, last) position in program order between which it is in use. What a wgmma reads is in use until a `settle` that
    leaves nothing in flight. whole: what a loop's body uses is in use for all of the loop, wherever passes may move its ops yet.
    from_outside: buffers that others fill at any time until the last op of the body that reads them has ended."""
    start: dict[int, int] = {}
    end: dict[int, int] = {}
    paths: dict[Value, list[tuple[Op, ...]]] = {}
    count = 0
    flying: set[Value] = set()
    ring: dict[Value, Value] = {b: b for b in buffers}  # of a buffer, or of a view of one of its slots

    def visit(block: Block, outer: tuple[Op, ...]) -> None:
        nonlocal count
        for op in block.ops:
            start[id(op)] = count
            count += 1
            path = (*outer, op)
            if op.kind == "slot" and op.operands[0] in buffers:
                ring[op.result] = op.operands[0]
            for v in (ring[v] for v in op.operands if v in ring):
                paths.setdefault(v, []).append(path)
                flying.update({v} if op.kind == "wgmma" else ())
            if op.kind == "settle":
                for v in flying:
                    paths[v].append(path)
                if op["groups"] == 0:
                    flying.clear()
            for r in op.regions:
                visit(r, path)
            end[id(op)] = count - 1

    visit(body, ())
    out = {}
    for buffer, ps in paths.items():
        depth = 0
        if buffer in from_outside:
            out[buffer] = (0, end[id(ps[-1][0])])
            continue
        while all(len(p) > depth + 1 for p in ps) and len({id(p[depth]) for p in ps}) == 1:
            depth += 1
        first, last = ps[0][depth], ps[-1][depth]
        loop = ps[0][depth - 1] if depth and ps[0][depth - 1].kind == "for" else None
        before = ps[0][-1].kind not in WRITES | {"slot"}  # read before it is written: it comes from the iteration before
        if loop is not None and (whole or before):
            first = last = loop
        out[buffer] = (start[id(first)], end[id(last)])
    return out


def meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]
