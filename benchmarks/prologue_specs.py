# mypy: disable-error-code="name-defined, valid-type, syntax"
"""Specs with something between a load and its product, and with rows, tiles and tables beside it."""

from __future__ import annotations

import numpy as np

import fcgen as fc


def online(s, v, m, l, acc, dtype):
    """One step of a running maximum, sum and product."""
    top = fc.maximum(m, fc.max(s, axis=1))
    base = fc.where(top == -fc.inf, 0.0, top)
    p, fade = fc.exp(s - base), fc.exp(m - base)
    l <<= l * fade + fc.sum(p, axis=1)
    acc <<= acc * fade + fc.dot(p.to(dtype), v)
    m <<= top


def in_halves(Q, K, V, O, scale, turned):
    """Heads are two halves; `turned(x, y, positions)` of both go into the first product."""
    h, rows = fc.grid(Q.H, fc.tile(Q.M, "BLOCK_M"))
    q0, q1 = turned(fc.load(Q[h, rows, 0]), fc.load(Q[h, rows, 1]), rows)
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))
    for cols in fc.loop(fc.tile(K.N, "BLOCK_N")):
        k0, k1 = turned(fc.load(K[h, cols, 0]), fc.load(K[h, cols, 1]), cols)
        s = (fc.dot(q0, k0.T) + fc.dot(q1, k1.T)) * scale
        online(fc.where(cols.valid, s, -fc.inf), fc.load(V[h, cols]), m, l, acc, V.dtype)
    fc.store(O[h, rows], (acc / l).to(O.dtype))


@fc.kernel
def plain(Q: T[H, M, 2, D], K: T[H, N, 2, D], V: T[H, N, E], O: "out T[H, M, E]", *, scale: f32 > 0):
    in_halves(Q, K, V, O, scale, lambda x, y, at: (x, y))


@fc.kernel
def rotary(Q: T[H, M, 2, D], K: T[H, N, 2, D], V: T[H, N, E], C: T[P, D], S: T[P, D], O: "out T[H, M, E]", *, scale: f32 > 0):
    """Both operands of the first product are turned by an angle per position and pair of columns."""
    def turned(x, y, at):
        c, s, x, y = (t.to(fc.f32) for t in (fc.load(C[at]), fc.load(S[at]), x, y))
        return (x * c - y * s).to(Q.dtype), (y * c + x * s).to(Q.dtype)

    in_halves(Q, K, V, O, scale, turned)


@fc.kernel
def rotated(Q: T[H, M, 2, D], K: T[H, N, 2, D], V: T[H, N, E], C: T[P, D], S: T[P, D], O: "out T[H, M, E]", *, scale: f32 > 0):
    """The same as models do it, in the tensors' own dtype."""
    def turned(x, y, at):
        c, s = (fc.load(t[at]) for t in (C, S))
        return x * c - y * s, y * c + x * s

    in_halves(Q, K, V, O, scale, turned)


@fc.kernel
def normed(Q: T[H, M, D], K: T[H, N, D], V: T[H, N, E], G: "f32[D]", O: "out T[H, M, E]", *, eps: f32 > 0):
    """Rows of both operands are divided by their root mean square."""
    h, rows = fc.grid(Q.H, fc.tile(Q.M, "BLOCK_M"))
    norm = lambda x: x * fc.rsqrt(fc.sum(x * x, axis=1) / Q.D + eps)
    q = (norm(fc.load(Q[h, rows]).to(fc.f32)) * fc.load(G[:])).to(Q.dtype)
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))
    for cols in fc.loop(fc.tile(K.N, "BLOCK_N")):
        s = fc.dot(q, norm(fc.load(K[h, cols]).to(fc.f32)).to(K.dtype).T)
        online(fc.where(cols.valid, s, -fc.inf), fc.load(V[h, cols]), m, l, acc, V.dtype)
    fc.store(O[h, rows], (acc / l).to(O.dtype))


@fc.kernel
def quantised(A: T[M, K], B: "i32[N, K]", S: "f32[N]", Z: "f32[K]", C: "out f32[M, N]"):
    """The right operand is stored as integers, with a scale per row and an offset per column."""
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        b = (fc.load(B[cols, depth]).to(fc.f32) - fc.load(Z[depth])).to(A.dtype)
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), b.T)
    fc.store(C[rows, cols], acc * fc.load(S[cols]))


@fc.kernel
def scaled(Q: T[H, M, D], K: "i32[H, N, D]", V: "i32[H, N, E]", SK: "f32[H, N]", SV: "f32[H, N]", O: "out T[H, M, E]"):
    """Both right operands are stored as integers, with a scale per row."""
    h, rows = fc.grid(Q.H, fc.tile(Q.M, "BLOCK_M"))
    q = fc.load(Q[h, rows])
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))
    for cols in fc.loop(fc.tile(K.N, "BLOCK_N")):
        k = fc.load(K[h, cols]).to(Q.dtype)
        v = (fc.load(V[h, cols]).to(fc.f32) * fc.load(SV[h, cols])).to(Q.dtype)
        s = fc.where(cols.valid, fc.dot(q, k.T) * fc.load(SK[h, cols]), -fc.inf)
        online(s, v, m, l, acc, Q.dtype)
    fc.store(O[h, rows], (acc / l).to(O.dtype))


@fc.kernel
def biased(Q: T[H, M, D], K: T[H, N, D], V: T[H, N, E], B: "T[H, M, N]", R: "f32[N]", O: "out T[H, M, E]", *, scale: f32 > 0):
    """A tile and a row are added to the first product."""
    h, rows = fc.grid(Q.H, fc.tile(Q.M, "BLOCK_M"))
    q = fc.load(Q[h, rows])
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))
    for cols in fc.loop(fc.tile(K.N, "BLOCK_N")):
        s = fc.dot(q, fc.load(K[h, cols]).T) * scale + fc.load(B[h, rows, cols]).to(fc.f32) + fc.load(R[cols])
        online(fc.where(cols.valid, s, -fc.inf), fc.load(V[h, cols]), m, l, acc, V.dtype)
    fc.store(O[h, rows], (acc / l).to(O.dtype))


@fc.kernel
def backward(Q: T[H, M, D], K: T[H, N, D], V: T[H, N, E], G: T[H, M, E], L: "f32[H, M]", F: "f32[H, M]", DQ: "inout f32[H, M, D]",
             DK: "out T[H, N, D]", DV: "out T[H, N, E]", *, scale: f32 > 0):
    """Five products per step; L and F have a number per position that the loop walks."""
    h, cols = fc.grid(K.H, fc.tile(K.N, "BLOCK_N"))
    k, v = fc.load(K[h, cols]), fc.load(V[h, cols])
    dk, dv = fc.var(fc.zeros(cols, K.D)), fc.var(fc.zeros(cols, V.E))
    for rows in fc.loop(fc.tile(Q.M, "BLOCK_M")):
        q, g = fc.load(Q[h, rows]), fc.load(G[h, rows])
        st = fc.dot(k, q.T) * scale
        p = fc.where(rows.valid, fc.exp(st - fc.load(L[h, rows])), 0.0)
        dp = fc.dot(v, g.T)
        ds = (p * (dp - fc.load(F[h, rows])) * scale).to(Q.dtype)
        dv <<= dv + fc.dot(p.to(Q.dtype), g)
        dk <<= dk + fc.dot(ds, q)
        fc.atomic_add(DQ[h, rows], fc.dot(ds.T, k))
    fc.store(DK[h, cols], dk.to(DK.dtype))
    fc.store(DV[h, cols], dv.to(DV.dtype))


@fc.kernel
def paged(Q: T[M, D], K: T[P, N, D], V: T[P, N, E], TABLE: "i32[J]", R: "f32[P]", O: "out T[M, E]", *, scale: f32 > 0):
    """Tiles lie where a table says."""
    (rows,) = fc.grid(fc.tile(Q.M, "BLOCK_M"))
    q = fc.load(Q[rows])
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))
    for j in fc.loop(TABLE.J):
        page = TABLE[j]
        s = fc.dot(q, fc.load(K[page]).T) * scale + R[page]
        online(s, fc.load(V[page]), m, l, acc, V.dtype)
    fc.store(O[rows], (acc / l).to(O.dtype))


@fc.kernel
def gathered(Q: T[M, D], K: T[N, D], V: T[N, E], B: "f32[W]", AT: "i32[N]", O: "out T[M, E]", *, scale: f32 > 0):
    """A number from a table is added to each column, and one that hangs on the distance to each element."""
    (rows,) = fc.grid(fc.tile(Q.M, "BLOCK_M"))
    q = fc.load(Q[rows])
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))
    for cols in fc.loop(fc.tile(K.N, "BLOCK_N")):
        s = fc.dot(q, fc.load(K[cols]).T) * scale + B[fc.load(AT[cols])] + B[fc.maximum(rows.index - cols.index, 0)]
        online(fc.where(cols.valid, s, -fc.inf), fc.load(V[cols]), m, l, acc, V.dtype)
    fc.store(O[rows], (acc / l).to(O.dtype))


def weights(s):
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def draw(name, n, m=70, d=32, page=16, seed=0):
    """Arguments of a spec for so many positions along its loop, as float64."""
    rng = np.random.default_rng([seed, n])
    x = lambda *shape: rng.standard_normal(shape)
    rows = {"Q": x(1, m, d), "K": x(1, n, d) / d**0.5, "V": x(1, n, d), "scale": 0.7}
    if name in ("plain", "rotary", "rotated"):
        rows |= {"Q": x(1, m, 2, d // 2), "K": x(1, n, 2, d // 2) / d**0.5}
        at = np.arange(max(n, m))[:, None] * 10.0 ** -np.arange(d // 2)
        return rows | ({"C": np.cos(at), "S": np.sin(at)} if name in ("rotary", "rotated") else {})
    if name == "normed":
        rows.pop("scale")
        return rows | {"G": x(d), "eps": 0.1}
    if name == "quantised":
        return {"A": x(m, n), "B": rng.integers(0, 16, (48, n)), "S": x(48), "Z": x(n)}
    if name == "scaled":
        rows.pop("scale")
        ints = lambda: rng.integers(-7, 8, (1, n, d))
        return rows | {"K": ints(), "V": ints(), "SK": rng.uniform(0.02, 0.05, (1, n)), "SV": rng.uniform(0.1, 0.3, (1, n))}
    if name == "biased":
        return rows | {"B": x(1, m, n), "R": x(n)}
    if name == "backward":
        q, k = x(1, n, d), x(1, m, d) / d**0.5
        s = np.einsum("hmd,hnd->hmn", q, k)
        return {"Q": q, "K": k, "V": x(1, m, d), "G": x(1, n, d), "L": np.log(np.exp(s * 0.7).sum(-1)), "F": x(1, n), "DQ": x(1, n, d),
                "scale": 0.7}
    if name == "paged":
        pages, used = n + 2, n
        return {"Q": x(m, d), "K": x(pages, page, d), "V": x(pages, page, d), "TABLE": rng.integers(0, pages, used), "R": x(pages),
                "scale": 0.3}
    return {"Q": x(m, d), "K": x(n, d), "V": x(n, d), "B": x(50), "AT": rng.integers(0, 50, n), "scale": 0.3}


def reference(name, a):
    """What the spec computes, in float64."""
    if name == "quantised":
        return {"C": a["A"] @ (a["B"] - a["Z"]).T * a["S"]}
    if name == "paged":
        k, v = (a[t][a["TABLE"]].reshape(-1, a[t].shape[-1]) for t in "KV")
        s = a["Q"] @ k.T * a["scale"] + np.repeat(a["R"][a["TABLE"]], a["K"].shape[1])
        return {"O": weights(s) @ v}
    if name == "gathered":
        i, j = np.arange(len(a["Q"]))[:, None], np.arange(len(a["K"]))
        near = np.maximum(i - j, 0)
        bias = np.where(near < len(a["B"]), a["B"][np.minimum(near, len(a["B"]) - 1)], 0.0)
        return {"O": weights(a["Q"] @ a["K"].T * a["scale"] + a["B"][a["AT"]] + bias) @ a["V"]}
    q, k, v = a["Q"], a["K"], a["V"]
    if name == "backward":
        s = np.einsum("hmd,hnd->hmn", q, k) * a["scale"]
        p = np.exp(s - a["L"][..., None])
        ds = p * (np.einsum("hme,hne->hmn", a["G"], v) - a["F"][..., None]) * a["scale"]
        t = lambda x, y: np.einsum("hmn,hmd->hnd", x, y)
        return {"DV": t(p, a["G"]), "DK": t(ds, q), "DQ": a["DQ"] + np.einsum("hmn,hnd->hmd", ds, k)}
    if name == "normed":
        q, k = (x / np.sqrt((x**2).mean(-1, keepdims=True) + a["eps"]) for x in (q, k))
        return {"O": weights(np.einsum("hmd,hnd->hmn", q * a["G"], k)) @ v}
    if name in ("rotary", "rotated"):
        turn = lambda x, c, s: np.stack([x[:, :, 0] * c - x[:, :, 1] * s, x[:, :, 1] * c + x[:, :, 0] * s], 2)
        q, k = (turn(x, *(a[t][:x.shape[1]] for t in "CS")) for x in (q, k))
    if name == "scaled":
        return {"O": weights(np.einsum("hmd,hnd->hmn", q, k * a["SK"][..., None])) @ (v * a["SV"][..., None])}
    s = np.einsum("hmd,hnd->hmn", *(x.reshape(*x.shape[:2], -1) for x in (q, k))) * a["scale"]
    return {"O": weights(s + (a["B"] + a["R"] if name == "biased" else 0.0)) @ v}


def stored(spec, arguments, dtype="float16"):
    """The arguments as the spec's tensors hold them, and what of that float64 can tell."""
    types = {p.name: p.type.dtype.name for p in spec.params}
    words = {"f16": np.float16, "f32": np.float32, "i32": np.int32}
    to = lambda n, x: x.astype(words[types[n]]) if isinstance(x, np.ndarray) else x
    held = {n: to(n, x) for n, x in arguments.items()}
    return held, {n: np.asarray(x, np.float64) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for n, x in held.items()}
