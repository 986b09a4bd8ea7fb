"""A matrix product written op by op: a ring of copies, one tile of products, two barriers. No pass has touched it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fcgen.errors import Loc
from fcgen.ir.core import Block, GridAxis, Kernel, Role, Value
from fcgen.ir.layout import blocked, mma_a, mma_b, mma_c, native_smem
from fcgen.ir.rewrite import Builder
from fcgen.ir.types import Buffer, Frag, Scalar, Tensor, f16, f32, i32
from fcgen.ir.verify import verify

M, N, K = 32, 16, 32  # one tile
WARPS = 2


class Lines(Builder):
    """Every op has a line of its own."""

    count = 0

    def place(self) -> Loc:
        Lines.count += 1
        return Loc("gemm.py", Lines.count)

    def emit(self, kind: str, *operands: Value, **more: Any) -> Value:
        return super().emit(kind, *operands, loc=self.place(), **more)

    def do(self, kind: str, *operands: Value, **more: Any) -> Any:
        return super().do(kind, *operands, loc=self.place(), **more)


def gemm(stages: int, *, wait: bool = True, full: bool = True, commit: bool = True, empty: bool = True) -> Kernel:
    """C = A B. The ring is filled, then each step waits for its tile (`wait`, `full` barrier), multiplies, and after the `empty` barrier
    starts the copy of the tile `stages` further on into the same slot (`commit`)."""
    A, B = Value(Tensor(f16, ("M", "K")), "A"), Value(Tensor(f16, ("K", "N")), "B")
    C = Value(Tensor(f32, ("M", "N")), "C")
    ra = Value(Buffer(f16, (M, K), native_smem(K, 2), stages), "a")
    rb = Value(Buffer(f16, (K, N), native_smem(N, 2), stages), "b")
    pi, pj = Value(Scalar(i32), "i"), Value(Scalar(i32), "j")
    o = Lines()
    const = lambda n: o.emit("const", value=n, dtype="i32")
    zero, k = const(0), const(K)
    row, col = o.emit("mul", pi, const(M)), o.emit("mul", pj, const(N))
    steps = o.emit("floordiv", o.emit("add", o.emit("size", dim="K"), const(K - 1)), k)
    none = o.emit("full", o.emit("const", value=0.0, dtype="f32"), type=Frag(f32, (M, N), mma_c(M, N, (WARPS, 1))), name="none")

    def copies(b: Lines, step: Value, tile: Value) -> None:
        """Copy tile number `tile` into the slot of `step`, if there is such a tile."""
        depth = b.emit("mul", tile, k)
        inner = Lines()
        both = {"index": ("tile", "tile"), "guard": (True, True)}
        inner.do("cp_async", A, row, depth, b.emit("slot", ra, step, ahead=0, name="a"), threads=blocked(M, K, WARPS, 8, 4), **both)
        inner.do("cp_async", B, depth, col, b.emit("slot", rb, step, ahead=0, name="b"), threads=blocked(K, N, WARPS, 8, 2), **both)
        inner.do("yield")
        b.do("if", b.emit("lt", tile, steps), regions=(inner.block(), Block((), (inner.ops[-1],))))

    for s in range(stages):
        n = const(s)
        copies(o, n, n)
        o.do("commit_group")

    b, step, acc = Lines(), Value(Scalar(i32), "step"), Value(none.type, "acc")
    if wait:
        b.do("wait_group", n=stages - 1)
    if full:
        b.do("barrier")
    fa = b.emit("ldmatrix", b.emit("slot", ra, step, ahead=0, name="a"), zero, zero, type=Frag(f16, (M, K), mma_a(M, K, (WARPS, 1))), name="fa",
                transposed=False, trans=False)
    fb = b.emit("ldmatrix", b.emit("slot", rb, step, ahead=0, name="b"), zero, zero, type=Frag(f16, (K, N), mma_b(K, N, (WARPS, 1))), name="fb",
                transposed=False, trans=True)
    out = b.emit("mma", fa, fb, acc, type=none.type, instr="mma_m16n8k16_f16", name="acc")
    if empty:
        b.do("barrier")
    copies(b, step, b.emit("add", step, const(stages)))
    if commit:
        b.do("commit_group")
    b.do("yield", out)
    total = o.emit("for", zero, steps, none, type=none.type, regions=(b.block((step, acc)),), name="total")
    o.do("st_global", C, total, row, col, index=("tile", "tile"), guard=(True, True), vec=2)
    offsets = (0, ra.type.bytes + -ra.type.bytes % 1024)
    kernel = Kernel("gemm", "machine", (A, B, C), (GridAxis("i", "M", M), GridAxis("j", "N", N)),
                    (Role("main", WARPS, o.block((pi, pj))),), {"C": ("out",)}, buffers=(ra, rb),
                    meta={"smem_offsets": offsets, "smem_bytes": offsets[1] + rb.type.bytes,
                          "aligned": (("A", 16, 16), ("B", 16, 16), ("C", 8, 8))})
    return verify(kernel)


def draw(seed: int, steps: int, whole: bool = True) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(arguments, expected) of a product with `steps` tiles along the inner axis."""
    rng = np.random.default_rng(seed)
    m, n, k = (M, N, K * steps) if whole else (M + 3, N - 5, K * steps - 7)
    a, b = (rng.standard_normal(s).astype(np.float16) for s in ((m, k), (k, n)))
    return {"A": a, "B": b}, {"C": a.astype(np.float64) @ b.astype(np.float64)}
