"""A small evaluator of tile programs in NumPy, so that these tests need nothing but the IR. It computes floats in float64: a pass
must keep the meaning, and rounding should not blur what that is. Padding and guards read zero; an unguarded read outside
raises."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np

from fcgen.ir.core import Block, Kernel, Op, Value
from fcgen.ir.elementwise import FNS, REDUCTIONS
from fcgen.ir.types import DTYPES, Scalar, Tensor


def spread(x, shape: tuple[int, ...]) -> np.ndarray:
    """`np.broadcast_to`, which takes a while even where nothing is to be done."""
    x = np.asarray(x)
    return x if x.shape == shape else np.broadcast_to(x, shape)


class Run:
    """arrays: tensor name -> array (written in place); scalars: name -> number. counts: elements computed per op kind."""

    def __init__(self, kernel: Kernel, arrays: dict[str, np.ndarray], scalars: dict[str, float]):
        self.kernel, self.arrays, self.env, self.counts = kernel, arrays, {}, Counter()
        self.sizes: dict[str, int] = {}
        self.iterations = Counter()
        for p in kernel.params:
            if isinstance(p.type, Tensor):
                a = arrays[p.name]
                for d, n in zip(p.type.dims, a.shape):
                    if isinstance(d, str):
                        assert self.sizes.setdefault(d, n) == n
                    else:
                        assert d == n
                self.env[p] = a
            else:
                self.env[p] = scalars[p.name]

    def run(self) -> Run:
        counts = [g.count(self.sizes) for g in self.kernel.grid]
        with np.errstate(all="ignore"):
            for ids in itertools.product(*map(range, counts)):
                self.env.update(zip(self.kernel.body.args, ids))
                self.block(self.kernel.body)
        return self

    def block(self, block: Block):
        for op in block.ops:
            if op.kind == "yield":
                return tuple(self.env[v] for v in op.operands)
            out = self.op(op, [self.env[v] for v in op.operands])
            for r, x in zip(op.results, out):
                want = r.type.shape if not isinstance(r.type, Scalar) else ()
                assert np.shape(x) == want, (str(op), np.shape(x))
                self.env[r] = x
        return ()

    def op(self, op: Op, args: list):
        k = op.kind
        shape = op.results[0].type.shape if op.results else ()
        for r in op.results:
            self.counts[k] += math.prod(r.type.shape)
        if k in FNS:
            f = lambda x: np.float64(x) if op.operands[0].type.dtype.is_float else x
            out = FNS[k].numpy(*[f(a) for a in args])
            return [spread(out, shape)]
        if k == "select":
            return [spread(np.where(*args), shape)]
        if k == "cast":
            to = DTYPES[op["to"]]
            return [np.asarray(args[0]).astype(np.float64 if to.is_float else to.np_dtype)]
        if k == "const":
            return [np.asarray(op["value"]) if op["dtype"] != "i1" else np.bool_(op["value"])]
        if k == "full":
            return [spread(args[0], op["shape"])]
        if k == "iota":
            return [np.arange(op["shape"][0])]
        if k == "broadcast":
            order = np.argsort(op["axes"])
            x = np.transpose(args[0], order)
            idx = tuple(slice(None) if a in op["axes"] else None for a in range(len(shape)))
            return [spread(x[idx], shape)]
        if k == "transpose":
            return [args[0].T]
        if k == "reduce":
            return [REDUCTIONS[op["fn"]][0](args[0], axis=op["axis"])]
        if k == "dot":
            out = args[0] @ args[1]
            return [out + args[2] if len(args) == 3 else out]
        if k == "load":
            return [self.read(op, args[0], args[1:], shape)]
        if k == "gather":
            return [self.gather(args[0], args[1:], shape)]
        if k == "store":
            return self.write(op, args[0], args[1], args[2:])
        if k == "size":
            return [self.sizes[op["dim"]]]
        if k == "for":
            return self.loop(op, args)
        if k == "if":
            return self.block(op.regions[0 if args[0] else 1])
        raise AssertionError(k)

    def loop(self, op: Op, args):
        lo, hi, *carried = args
        order = range(int(lo), int(hi))
        body = op.regions[0]
        for i in reversed(order) if op.get("descending") else order:
            self.iterations[op.get("part", "")] += 1
            self.env.update(zip(body.args, (i, *carried)))
            carried = self.block(body)
        return carried

    def window(self, op: Op, tensor: Value, scalars, shape):
        """Per tensor dimension the positions, and per tile axis which of them exist."""
        places, real, scalars = [], [], list(scalars)
        axis = 0
        for word, n in zip(op["index"], np.shape(tensor)):
            if word == "at":
                p = int(scalars.pop(0))
                assert 0 <= p < n, "an 'at' position outside"
                places.append(p)
                continue
            at = np.arange(shape[axis]) + (int(scalars.pop(0)) if word == "tile" else 0)
            inside = at < n
            assert (at >= 0).all(), "negative position"
            assert op["guard"][axis] or inside.all(), f"unguarded access outside: {op}"
            places.append(np.minimum(at, n - 1))
            real.append(inside)
            axis += 1
        return places, real

    def read(self, op, tensor, scalars, shape):
        places, real = self.window(op, tensor, scalars, shape)
        x = tensor[np.ix_(*[np.atleast_1d(p) for p in places])].reshape(shape).astype(
            np.float64 if np.issubdtype(tensor.dtype, np.floating) else tensor.dtype)
        mask = np.ones(shape, bool)
        for a, r in enumerate(real):
            mask &= r.reshape([-1 if i == a else 1 for i in range(len(shape))])
        return np.where(mask, x, np.zeros((), x.dtype))

    def write(self, op, tensor, value, scalars):
        places, real = self.window(op, tensor, scalars, value.shape)
        keep = np.ix_(*[np.flatnonzero(r) for r in real])
        it = iter(real)
        idx = np.ix_(*[[p] if np.ndim(p) == 0 else p[np.flatnonzero(next(it))] for p in places])
        v = value[keep].reshape([len(np.ravel(i)) for i in idx]) if value.ndim else np.reshape(value, [1] * len(places))
        if op.get("reduce"):
            tensor[idx] += v
        else:
            tensor[idx] = v
        return []

    def gather(self, tensor, at, shape):
        at = [np.broadcast_to(a, shape).astype(int) for a in at]
        ok = np.ones(shape, bool)
        for a, n in zip(at, tensor.shape):
            ok &= (a >= 0) & (a < n)
        got = tensor[tuple(np.clip(a, 0, n - 1) for a, n in zip(at, tensor.shape))]
        return np.where(ok, got, 0)
