"""Machine kernels built by hand, small enough to read: what the printer's tests print and compile."""

from __future__ import annotations

from dataclasses import replace

from fcgen.errors import Loc
from fcgen.ir.core import Block, GridAxis, Kernel, Op, Role, Value
from fcgen.ir.layout import Factor, OpaqueLayout, RegLayout, SmemLayout, blocked, mma_a, mma_b, mma_c, native_smem
from fcgen.ir.rewrite import Builder
from fcgen.ir.types import Buffer, DType, Frag, Scalar, Tensor, bf16, f16, f32, i1, i32


class K(Builder):
    """A builder with the few shorthands that hand-written kernels need. Each call may name its spec line."""

    def at(self, line: int) -> K:
        self.loc = Loc("spec.py", line)
        return self

    def const(self, value, dtype: DType = i32) -> Value:
        return self.emit("const", value=value, dtype=dtype.name)

    def full(self, value: float, t: Frag, name: str = "") -> Value:
        return self.emit("full", self.const(value, t.dtype), type=t, name=name)

    def rows(self, v: Value, like: Frag, axis: int = 0) -> Value:
        return self.emit("broadcast", v, type=replace(like, dtype=v.type.dtype), axes=(axis,))

    def loop(self, lo: Value, hi: Value, inits: list[Value], names: list[str], body, index: str = "j", **attrs) -> list[Value]:
        args = (Value(Scalar(i32), index), *(Value(v.type, n) for v, n in zip(inits, names)))
        inner = K(self.loc)
        out = body(inner, *args)
        inner.do("yield", *out)
        results = tuple(Value(v.type, n) for v, n in zip(inits, names))
        self.add(Op("for", (lo, hi, *inits), results, attrs, (inner.block(args),), self.loc))
        return list(results)


def place(buffers: list[Value]) -> dict:
    offsets, at = [], 0
    for b in buffers:
        at = -(-at // 1024) * 1024
        offsets.append(at)
        at += b.type.bytes
    return {"stage": "synced", "smem_offsets": tuple(offsets), "smem_bytes": at}


def kernel(name, params, grid, warps, build, buffers=(), flags=None, order=(), **meta) -> Kernel:
    args = tuple(Value(Scalar(i32), g.name) for g in grid)
    b = K()
    build(b, *args)
    return Kernel(
        name,
        "machine",
        tuple(params),
        tuple(grid),
        (Role("all", warps, b.block(args)),),
        flags or {},
        order,
        tuple(buffers),
        {**place(list(buffers)), **meta},
    )


def row_softmax(cols: int = 128, dtype: DType = f32, warps: int = 4, vec: int = 4) -> Kernel:
    """One tile of rows: exp of the distance to the row maximum, over the row sum; guarded rows; a scalar parameter."""
    t = Tensor(dtype, ("M", cols))
    x, y, scale = Value(t, "X"), Value(t, "Y"), Value(Scalar(f32), "scale")
    lay = blocked(16, cols, warps, vec)
    ft = Frag(f32, (16, cols), lay)

    def build(b: K, i: Value) -> None:
        row = b.at(3).emit("mul", i, b.const(16), name="row")
        a = b.at(4).emit(
            "ld_global", x, row, type=Frag(dtype, (16, cols), lay), name="a", index=("tile", "all"), guard=(True, False), vec=8
        )
        if dtype != f32:
            a = b.emit("cast", a, to="f32", name="a")
        a = b.emit("mul", a, scale, name="a")
        m = b.at(5).emit("reduce", a, fn="max", axis=1, name="m")
        lanes = tuple(lay.reduces_over(1)[0])
        m = b.emit("combine", m, lanes=lanes, name="m") if lanes else m
        p = b.at(6).emit("exp", b.emit("sub", a, b.rows(m, ft)), name="p")
        s = b.at(7).emit("reduce", p, fn="sum", axis=1, name="s")
        s = b.emit("combine", s, lanes=lanes, name="s") if lanes else s
        out = b.at(8).emit("div", p, b.rows(s, ft), name="out")
        if dtype != f32:
            out = b.emit("cast", out, to=dtype.name, name="out")
        b.at(9).do("st_global", y, out, row, index=("tile", "all"), guard=(True, False), vec=8)

    return kernel("row_softmax", [x, y, scale], [GridAxis("i", "M", 16)], warps, build, flags={"Y": ("out",)})


def gemm(m=128, n=64, k=64, dtype: DType = f16, stages: int = 2, warps: int = 4, guard: bool = True, bias: bool = True) -> Kernel:
    """C = A B + bias with a ring of cp.async tiles, ldmatrix (plain for A, transposing for B) and mma."""
    ta, tb, tc = (Tensor(dtype, d) for d in (("M", "K"), ("K", "N"), ("M", "N")))
    a, b_, c, bv = Value(ta, "A"), Value(tb, "B"), Value(tc, "C"), Value(Tensor(f32, ("N",)), "bias")
    ra = Value(Buffer(dtype, (m, k), native_smem(k, 2), stages), "a")
    rb = Value(Buffer(dtype, (k, n), native_smem(n, 2), stages), "b")
    la, lb = blocked(m, k, warps, 8), blocked(k, n, warps, 8)
    w = (warps, 1)
    acc_t = Frag(f32, (m, n), mma_c(m, n, w))

    def build(b: K, i: Value, j: Value) -> None:
        row, col = b.at(3).emit("mul", i, b.const(m), name="row"), b.emit("mul", j, b.const(n), name="col")
        zero = b.const(0)
        kk = b.emit("size", dim="K", name="K")
        tiles = b.emit("floordiv", b.emit("add", kk, b.const(k - 1)), b.const(k), name="tiles")
        acc = b.at(4).full(0.0, acc_t, "acc")

        def load(e: K, t: Value, ahead: int) -> None:
            first = e.emit("mul", e.emit("add", t, e.const(ahead)) if ahead else t, e.const(k), name="k0")
            e.at(6).do(
                "cp_async",
                a,
                row,
                first,
                e.emit("slot", ra, t, ahead=ahead, name="a_slot"),
                index=("tile", "tile"),
                guard=(guard, guard),
                threads=la,
            )
            e.at(7).do(
                "cp_async",
                b_,
                first,
                col,
                e.emit("slot", rb, t, ahead=ahead, name="b_slot"),
                index=("tile", "tile"),
                guard=(guard, guard),
                threads=lb,
            )

        for s in range(stages - 1):
            load(b.at(5), b.const(s), 0)
            b.do("commit_group")

        def body(e: K, t: Value, acc: Value) -> list[Value]:
            e.at(6).do("wait_group", n=stages - 2)
            e.do("barrier")
            load(e, t, stages - 1)
            e.do("commit_group")
            sa = e.emit("slot", ra, t, ahead=0, name="a_slot")
            sb = e.emit("slot", rb, t, ahead=0, name="b_slot")

            def step(f: K, ks: Value, acc: Value) -> list[Value]:
                at = f.at(8).emit("mul", ks, f.const(16))
                fa = f.emit(
                    "ldmatrix", sa, zero, at, type=Frag(dtype, (m, 16), mma_a(m, 16, w)), name="x", transposed=False, trans=False
                )
                fb = f.emit(
                    "ldmatrix", sb, at, zero, type=Frag(dtype, (16, n), mma_b(16, n, w)), name="y", transposed=False, trans=True
                )
                return [f.emit("mma", fa, fb, acc, type=acc_t, name="acc", instr=f"mma_m16n8k16_{dtype}")]

            return e.at(8).loop(e.const(0), e.const(k // 16), [acc], ["acc"], step, "ks", unroll=True)

        (acc,) = b.at(5).loop(zero, tiles, [acc], ["acc"], body, "t")
        b.do("wait_group", n=0)
        if bias:
            row_t = Frag(f32, (n,), acc_t.layout.drop(0))
            v = b.at(9).emit("ld_global", bv, col, type=row_t, name="v", index=("tile",), guard=(True,), vec=2)
            acc = b.emit("add", acc, b.rows(v, acc_t, 1), name="acc")
        out = b.at(10).emit("cast", acc, to=dtype.name, name="out")
        b.do("st_global", c, out, row, col, index=("tile", "tile"), guard=(True, True), vec=2)

    params = [a, b_, c] + ([bv] if bias else [])
    return kernel(
        "gemm",
        params,
        [GridAxis("i", "M", m), GridAxis("j", "N", n)],
        warps,
        build,
        [ra, rb],
        {"C": ("out",)},
        (0, 1),
        schedule=f"tiles={{M: {m}, N: {n}, K: {k}}}, warps={warps}, stages={stages}",
    )


def two_dots(
    m=128,
    n=64,
    d=64,
    dtype: DType = bf16,
    warps: int = 4,
    stages: int = 2,
    masked: bool = True,
    hold: bool = True,
    min_blocks: int = 1,
) -> Kernel:
    """Two chained products with a row maximum and a row sum carried along: the shape of register use that matters most."""
    dims = [("B", "H", x, d) for x in ("M", "N", "N", "M")]
    x, y, z, o = (Value(Tensor(dtype, t), nm) for t, nm in zip(dims, "XYZO"))
    stat, c = Value(Tensor(f32, ("B", "H", "M")), "L"), Value(Scalar(f32), "c")
    bx = Value(Buffer(dtype, (m, d), native_smem(d, 2)), "x")
    by = Value(Buffer(dtype, (n, d), native_smem(d, 2), stages), "y")
    bz = Value(Buffer(dtype, (n, d), native_smem(d, 2), stages), "z")
    w = (warps, 1)
    s_t, acc_t = Frag(f32, (m, n), mma_c(m, n, w)), Frag(f32, (m, d), mma_c(m, d, w))
    row_t = Frag(f32, (m,), s_t.layout.drop(1))
    assert row_t.layout == acc_t.layout.drop(1)
    quad = tuple(s_t.layout.reduces_over(1)[0])
    instr = f"mma_m16n8k16_{dtype}"

    def build(b: K, bb: Value, h: Value, i: Value) -> None:
        zero = b.const(0)
        row = b.at(2).emit("mul", i, b.const(m), name="row0")
        b.do(
            "cp_async", x, bb, h, row, bx, index=("at", "at", "tile", "all"), guard=(True, False), threads=blocked(m, d, warps, 8)
        )
        b.do("commit_group")
        nn = b.emit("size", dim="N", name="N")
        tiles = b.emit("floordiv", b.emit("add", nn, b.const(n - 1)), b.const(n), name="tiles")

        def load(e: K, t: Value, ahead: int) -> None:
            first = e.emit("mul", e.emit("add", t, e.const(ahead)) if ahead else t, e.const(n), name="col0")
            for tensor, ring in ((y, by), (z, bz)):
                e.do(
                    "cp_async",
                    tensor,
                    bb,
                    h,
                    first,
                    e.emit("slot", ring, t, ahead=ahead),
                    index=("at", "at", "tile", "all"),
                    guard=(masked, False),
                    threads=blocked(n, d, warps, 8),
                )
            e.do("commit_group")

        load(b.at(6), zero, 0)
        b.do("wait_group", n=1)
        b.do("barrier")
        xf = hold and b.at(3).emit(
            "ldmatrix", bx, zero, zero, type=Frag(dtype, (m, d), mma_a(m, d, w)), name="xf", transposed=False, trans=False
        )
        mx, l = b.at(4).full(float("-inf"), row_t, "mx"), b.full(0.0, row_t, "l")
        acc = b.full(0.0, acc_t, "acc")

        def body(e: K, t: Value, mx: Value, l: Value, acc: Value) -> list[Value]:
            e.at(6).do("wait_group", n=0)
            e.do("barrier")
            load(e, t, 1)
            ys, zs = e.emit("slot", by, t, ahead=0), e.emit("slot", bz, t, ahead=0)

            def step1(f: K, k: Value, s: Value) -> list[Value]:
                at = f.at(7).emit("mul", k, f.const(16))
                if hold:
                    part = f.emit("slice", xf, at, type=Frag(dtype, (m, 16), mma_a(m, 16, w)), axis=1)
                else:
                    part = f.emit(
                        "ldmatrix",
                        bx,
                        zero,
                        at,
                        type=Frag(dtype, (m, 16), mma_a(m, 16, w)),
                        name="xk",
                        transposed=False,
                        trans=False,
                    )
                yf = f.emit(
                    "ldmatrix", ys, zero, at, type=Frag(dtype, (16, n), mma_b(16, n, w)), name="yf", transposed=True, trans=False
                )
                return [f.emit("mma", part, yf, s, type=s_t, name="s", instr=instr)]

            (s,) = e.at(7).loop(zero, e.const(d // 16), [e.full(0.0, s_t, "s")], ["s"], step1, "k", unroll=True)
            if masked:
                pos = e.at(8).emit("iota", type=Frag(i32, (n,), s_t.layout.drop(0)), name="cols")
                at = e.emit("add", pos, e.emit("mul", t, e.const(n), name="col0"))
                ok = e.emit("lt", e.rows(at, s_t, 1), nn)
                s = e.emit("select", ok, s, e.full(float("-inf"), s_t), name="s")
            r = e.at(9).emit("combine", e.emit("reduce", s, fn="max", axis=1, name="r"), lanes=quad, name="r")
            new = e.emit("max", mx, r, name="new")
            a = e.at(10).emit("exp2", e.emit("mul", e.emit("sub", mx, new), c), name="a")
            nc = e.emit("mul", new, c, name="nc")
            p = e.at(11).emit("exp2", e.emit("sub", e.emit("mul", s, c), e.rows(nc, s_t)), name="p")
            ps = e.at(12).emit("combine", e.emit("reduce", p, fn="sum", axis=1, name="ps"), lanes=quad, name="ps")
            l2 = e.emit("add", e.emit("mul", l, a), ps, name="l")
            h_ = e.at(13).emit("cast", p, to=dtype.name, name="h")
            acc1 = e.emit("mul", acc, e.rows(a, acc_t), name="acc")

            def step2(f: K, k: Value, acc: Value) -> list[Value]:
                at = f.at(13).emit("mul", k, f.const(16))
                part = f.emit("slice", h_, at, type=Frag(dtype, (m, 16), mma_a(m, 16, w)), axis=1)
                zf = f.emit(
                    "ldmatrix", zs, at, zero, type=Frag(dtype, (16, d), mma_b(16, d, w)), name="zf", transposed=False, trans=True
                )
                return [f.emit("mma", part, zf, acc, type=acc_t, name="acc", instr=instr)]

            (acc2,) = e.loop(zero, e.const(n // 16), [acc1], ["acc"], step2, "k", unroll=True)
            return [new, l2, acc2]

        mx, l, acc = b.at(5).loop(zero, tiles, [mx, l, acc], ["mx", "l", "acc"], body, "j")
        out = b.at(14).emit("div", acc, b.rows(l, acc_t))
        b.do(
            "st_global",
            o,
            b.emit("cast", out, to=dtype.name, name="out"),
            bb,
            h,
            row,
            index=("at", "at", "tile", "all"),
            guard=(True, False),
            vec=2,
        )
        b.at(15).do(
            "st_global",
            stat,
            b.emit("add", mx, b.emit("log2", l), name="st"),
            bb,
            h,
            row,
            index=("at", "at", "tile"),
            guard=(True,),
            vec=1,
        )

    return kernel(
        "two_dots",
        [x, y, z, o, stat, c],
        [GridAxis("b", "B"), GridAxis("h", "H"), GridAxis("i", "M", m)],
        warps,
        build,
        [bx, by, bz],
        {"O": ("out",), "L": ("out",)},
        (2, 1, 0),
        min_blocks=min_blocks,
        schedule=f"tiles={{M: {m}, N: {n}}}, warps={warps}, stages={stages}",
    )


def wmma_gemm(m=64, n=64, k=64, warps: int = 4) -> Kernel:
    """One tile per block through opaque fragments, padded shared memory, scaled in place, staged out through shared memory."""
    a, b_, c = (Value(Tensor(t, d), nm) for t, d, nm in ((f16, ("M", "K"), "A"), (f16, ("N", "K"), "B"), (f32, ("M", "N"), "C")))
    alpha = Value(Scalar(f32), "alpha")
    ba, bb = Value(Buffer(f16, (m, k), SmemLayout(k, 8)), "a"), Value(Buffer(f16, (n, k), SmemLayout(k, 8)), "b")
    bc = Value(Buffer(f32, (m, n), SmemLayout(n, 4)), "c")
    acc_t = Frag(f32, (m, n), OpaqueLayout("acc", warps))

    def build(b: K, i: Value, j: Value) -> None:
        zero = b.const(0)
        row, col = b.at(2).emit("mul", i, b.const(m), name="row"), b.emit("mul", j, b.const(n), name="col")
        tiles = b.emit("floordiv", b.emit("size", dim="K"), b.const(k), name="tiles")

        def body(e: K, t: Value, acc: Value) -> list[Value]:
            k0 = e.at(4).emit("mul", t, e.const(k), name="k0")
            e.do("barrier")
            for tensor, first, buf, lay in ((a, row, ba, blocked(m, k, warps, 8)), (b_, col, bb, blocked(n, k, warps, 8))):
                v = e.emit(
                    "ld_global",
                    tensor,
                    first,
                    k0,
                    type=Frag(f16, buf.type.shape, lay),
                    name=tensor.name.lower() + "_in",
                    index=("tile", "tile"),
                    guard=(False, False),
                    vec=8,
                )
                e.do("st_shared", v, buf, zero, zero)
            e.do("barrier")

            def step(f: K, ks: Value, acc: Value) -> list[Value]:
                at = f.at(5).emit("mul", ks, f.const(16))
                fa = f.emit("wmma_load", ba, zero, at, type=Frag(f16, (m, 16), OpaqueLayout("a", warps)), name="fa")
                fb = f.emit(
                    "wmma_load", bb, zero, at, type=Frag(f16, (16, n), OpaqueLayout("b", warps)), name="fb", transposed=True
                )
                return [f.emit("wmma_mma", fa, fb, acc, type=acc_t, name="acc")]

            return e.at(5).loop(e.const(0), e.const(k // 16), [acc], ["acc"], step, "ks", unroll=True)

        (acc,) = b.at(3).loop(zero, tiles, [b.full(0.0, acc_t, "acc")], ["acc"], body, "t")
        acc = b.at(6).emit("mul", acc, alpha, name="acc")
        b.do("wmma_store", acc, bc, zero, zero)
        b.do("syncwarp")
        lay = RegLayout(
            (
                (Factor("w", warps, 1), Factor("r", m // warps // 2, 4), Factor("l", 2, 16)),
                (Factor("l", 16, 1), Factor("r", 4, 1)),
            )
        )
        out = b.emit("ld_shared", bc, zero, zero, type=Frag(f32, (m, n), lay), name="out")
        b.at(7).do("st_global", c, out, row, col, index=("tile", "tile"), guard=(True, False), vec=4)

    return kernel(
        "wmma_gemm",
        [a, b_, c, alpha],
        [GridAxis("i", "M", m), GridAxis("j", "N", n)],
        warps,
        build,
        [ba, bb, bc],
        {"C": ("out",)},
        (0, 1),
    )


def branches() -> Kernel:
    """Votes, both kinds of `if`, a swap carried by a loop, integer division, and a gather."""
    x, y, tab = Value(Tensor(f32, ("N",)), "X"), Value(Tensor(f32, ("N",)), "Y"), Value(Tensor(i32, ("N",)), "table")
    t = Frag(f32, (256,), RegLayout(((Factor("r", 2, 1), Factor("w", 4, 1), Factor("l", 32, 1)),)))

    def build(b: K, i: Value) -> None:
        at = b.at(2).emit("mul", i, b.const(256), name="at")
        u = b.emit("ld_global", x, at, type=t, name="u", index=("tile",), guard=(True,), vec=1)
        pos = b.at(3).emit("add", b.emit("iota", type=Frag(i32, (256,), t.layout), name="pos"), at)
        g = b.emit("gather", tab, pos, name="g")
        v = b.emit("cast", g, to="f32", name="v")

        def body(e: K, n: Value, p: Value, q: Value, k: Value) -> list[Value]:
            k2 = e.at(5).emit("floordiv", e.emit("sub", k, e.const(3)), e.const(2), name="k")
            return [q, p, k2]

        p, q, k = b.at(4).loop(
            b.const(0), b.emit("size", dim="N"), [u, v, b.const(7)], ["p", "q", "k"], body, "n", descending=True
        )
        low = b.at(6).emit("vote_any", b.emit("lt", p, q), name="low")

        def branch(value) -> Block:
            e = K(b.loc)
            e.do("yield", *value(e))
            return e.block()

        out = Value(t, "out")
        b.add(
            Op(
                "if",
                (low,),
                (out,),
                {},
                (branch(lambda e: [e.at(7).emit("mul", p, e.emit("cast", k, to="f32"), name="out")]), branch(lambda e: [p])),
                Loc("spec.py", 6),
            )
        )
        sig = b.at(8).emit("sigmoid", out, name="sig")
        gelu = b.emit("mul", sig, b.emit("add", sig, b.const(1.0, f32)), name="y")
        b.at(9).do("st_global", y, gelu, at, index=("tile",), guard=(True,), vec=1)

    return kernel("branches", [x, y, tab], [GridAxis("i", "N", 256, reverse=True)], 4, build, flags={"Y": ("out",)})


def through_shared(
    dtype: DType,
    shape,
    smem: SmemLayout,
    first: RegLayout,
    second: RegLayout,
    how: str = "ld_shared",
    transposed: bool = False,
    trans: bool = False,
    moving: bool = False,
    reduce: str = "",
) -> Kernel:
    """A tile through shared memory: registers in one layout, stored, loaded in another (or transposed), written out.
    moving: into the lower right of a tile twice as large, at positions that only run time knows."""
    out_shape = shape[::-1] if transposed else shape
    big = tuple(2 * n for n in shape) if moving else shape
    x, y = Value(Tensor(dtype, ("R", "C")), "X"), Value(Tensor(dtype, ("P", "Q")), "Y")
    at, buf = Value(Scalar(i32), "where"), Value(Buffer(dtype, big, smem), "t")

    def build(b: K, i: Value) -> None:
        zero = b.const(0)
        v = b.at(2).emit(
            "ld_global",
            x,
            zero,
            zero,
            type=Frag(dtype, shape, first),
            name="v",
            index=("tile", "tile"),
            guard=(True, True),
            vec=16,
        )
        row, col = (
            (b.emit("add", at, b.const(0), name="row"), b.emit("mul", at, b.const(shape[1] // shape[0]), name="col"))
            if moving
            else (zero, zero)
        )
        b.at(3).do("st_shared", v, buf, row, col)
        b.do("barrier")
        t = Frag(dtype, out_shape, second)
        extra = {"trans": trans} if how == "ldmatrix" else {}
        w = b.at(4).emit(how, buf, row, col, type=t, name="w", transposed=transposed, **extra)
        red = {"reduce": reduce} if reduce else {}
        b.at(5).do("st_global", y, w, zero, zero, index=("tile", "tile"), guard=(True, True), vec=16, **red)

    return kernel("through_shared", [x, y] + ([at] if moving else []), [GridAxis("i", 1)], 4, build, [buf], {"Y": ("out",)})


def half_math() -> Kernel:
    """16-bit arithmetic rounds after every function; integers; a column value along rows; both branches of an `if`; atomics."""
    x, y, total = Value(Tensor(f16, ("M", 64)), "X"), Value(Tensor(f16, ("M", 64)), "Y"), Value(Tensor(f32, (64,)), "T")
    lay = blocked(32, 64, 4, 8)
    t, ti = Frag(f16, (32, 64), lay), Frag(i32, (32, 64), lay)

    def build(b: K, i: Value) -> None:
        row = b.at(2).emit("mul", i, b.const(32), name="row")
        u = b.emit("ld_global", x, row, type=t, name="u", index=("tile", "all"), guard=(True, False), vec=8)
        w = b.at(3).emit("add", b.emit("mul", u, u, name="sq"), b.const(0.1, f16), name="w")
        w = b.emit("mul", w, b.emit("add", w, u), name="w")
        r = b.at(4).emit("iota", type=Frag(i32, (32,), lay.drop(1)), name="r")
        c = b.emit("iota", type=Frag(i32, (64,), lay.drop(0)), name="c")
        lower = b.emit("le", b.rows(c, ti, 1), b.rows(r, ti, 0))
        w = b.at(5).emit("select", lower, w, u, name="w")
        odd = b.at(6).emit("eq", b.emit("mod", i, b.const(2)), b.const(1), name="odd")

        def branch(value) -> Block:
            e = K(b.loc)
            e.do("yield", *value(e))
            return e.block()

        z, s = Value(t, "z"), Value(Scalar(f32), "s")
        b.add(
            Op(
                "if",
                (odd,),
                (z, s),
                {},
                (
                    branch(lambda e: [e.emit("neg", w, name="z"), e.const(2.0, f32)]),
                    branch(lambda e: [e.emit("max", w, u, name="z"), e.const(3.0, f32)]),
                ),
                Loc("spec.py", 6),
            )
        )
        b.at(7).do("st_global", y, z, row, index=("tile", "all"), guard=(True, False), vec=8)
        ones = b.at(8).emit("mul", b.emit("cast", c, to="f32"), s, name="ones")
        b.do("st_global", total, ones, b.const(0), index=("tile",), guard=(False,), vec=1, reduce="add")

    return kernel("half_math", [x, y, total], [GridAxis("i", "M", 32)], 4, build, flags={"Y": ("out",), "T": ("out",)})


def small_shapes() -> Kernel:
    """One-dimensional buffers, a slice that is stored, a fold to one number, a column read down a stored tile."""
    x, y, z = Value(Tensor(f32, ("N",)), "X"), Value(Tensor(f32, ("N",)), "Y"), Value(Tensor(f32, (4,)), "Z")
    line, tile = Value(Buffer(f32, (128,), SmemLayout(128)), "line"), Value(Buffer(f32, (64, 8), SmemLayout(8, 1)), "tile")
    one = RegLayout(((Factor("r", 4, 1), Factor("l", 32, 1)),))  # every warp has all of it
    half = RegLayout(((Factor("r", 2, 1), Factor("l", 32, 1)),))
    wide = RegLayout(((Factor("w", 4, 1), Factor("l", 32, 1)),))

    def build(b: K, i: Value) -> None:
        zero, three = b.const(0), b.const(3)
        v = b.at(2).emit("ld_global", x, zero, type=Frag(f32, (128,), one), name="v", index=("tile",), guard=(False,), vec=4)
        b.at(3).do("st_shared", v, line, zero, zero)
        b.do("barrier")
        w = b.at(4).emit("ld_shared", line, zero, zero, type=Frag(f32, (128,), wide), name="w")
        top = b.at(5).emit("slice", v, b.const(64), type=Frag(f32, (64,), half), name="top", axis=0)
        b.do("st_shared", top, tile, zero, three, along=0)
        b.do("barrier")
        down = b.at(6).emit("ld_shared", tile, zero, three, type=Frag(f32, (64,), half), name="down", along=0)
        b.at(7).do("st_global", y, w, zero, index=("tile",), guard=(False,), vec=1)
        b.do("st_global", y, down, b.const(128), index=("tile",), guard=(False,), vec=1)
        s = b.at(8).emit("combine", b.emit("reduce", v, fn="sum", axis=0, name="s"), lanes=(1, 2, 4, 8, 16), name="s")
        b.do("st_global", z, s, three, index=("at",), guard=(), vec=1)

    return kernel("small_shapes", [x, y, z], [GridAxis("i", 1)], 4, build, [line, tile], {"Y": ("out",), "Z": ("out",)})


PROGRAMS = {
    "row_softmax": row_softmax,
    "row_softmax_f16": lambda: row_softmax(256, f16, 4, 8),
    "gemm": gemm,
    "gemm_bf16_3": lambda: gemm(64, 128, 32, bf16, 3, 4, False, False),
    "two_dots": two_dots,
    "two_dots_plain": lambda: two_dots(masked=False, hold=False, d=128, dtype=f16),
    "wmma_gemm": wmma_gemm,
    "branches": branches,
    "half_math": half_math,
    "small_shapes": small_shapes,
}
__all__ = ["PROGRAMS", "i1"]
