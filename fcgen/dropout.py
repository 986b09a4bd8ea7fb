"""Dropout of attention's weights: random numbers made of where a weight stands, so that the same ones fall whatever tiles a kernel has.

Weight (b, h, i, j) is dropped if the first word of Philox-2x32 with 7 rounds (Salmon et al., 2011) of the counter (j, i), under a key
made of seed, offset, b and h, lies below p * 2**32; the others are divided by 1 - p. The softmax's sums, and the log-sum-exp, are of all
weights. Nothing has to be kept for a backward pass but the seed and the offset, and `dropout_mask` reads back which weights stayed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import fcgen as fc

from .errors import FcError

WRITTEN_IN_THE_LANGUAGE = True

_MULTIPLIER, _WEYL, _ROUNDS = 0xD256D193, 0x9E3779B9, 7
_LOW = 0xFFFFFFFF


def philox(x: Any, y: Any, key: Any) -> Any:
    """The first word of Philox-2x32-7. x, y: the counter; key. All u32."""
    for n in range(_ROUNDS):
        high = fc.mulhi(x, _MULTIPLIER)
        x, y = high ^ key ^ y, x * _MULTIPLIER
        if n < _ROUNDS - 1:
            key = key + _WEYL
    return x


def _signed(n: int) -> int:
    """The i32 with these bits."""
    n &= _LOW
    return n - (1 << 32) if n >> 31 else n


class Dropout:
    """p: which share of the weights is dropped. seed, offset: whole numbers of 64 bits, read at each call: others compile nothing."""

    def __init__(self, p: float, seed: int = 0, offset: int = 0):
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0.0 <= p <= 1.0:
            raise FcError("call/argument", "argument `p` of a dropout is not between 0 and 1", got=repr(p)[:80])
        for name, n in (("seed", seed), ("offset", offset)):
            if isinstance(n, bool) or not hasattr(n, "__index__"):
                raise FcError("call/argument", f"argument `{name}` of a dropout is not a whole number", got=repr(n)[:80])
        self.p, self.seed, self.offset = float(p), int(seed), int(offset)
        threshold = min(round(p * 2.0**32), 1 << 32)
        #: words at or above it stay. (Where all fall the factor is 0, where none does the threshold is.)
        self.least = _signed(min(threshold, _LOW))
        self.factor = 0.0 if threshold >> 32 else 2.0**32 / (2**32 - threshold)
        self.words = tuple(_signed(w) for n in (self.seed, self.offset) for w in (n, n >> 32))

    def bits(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        low, high, first, second = (_u32(w) for w in self.words)
        key = philox(philox(_u32(b) ^ first, _u32(h) ^ second, low), high, low ^ high)
        return philox(kv_idx.to(fc.u32), q_idx.to(fc.u32), key)

    def kept(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        """Which weights stay."""
        return self.bits(b, h, q_idx, kv_idx) >= _u32(self.least)

    def __call__(self, p: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return fc.where(self.kept(b, h, q_idx, kv_idx), p * self.factor, 0.0)

    def __repr__(self) -> str:
        return f"<dropout {self.p}, seed {self.seed}, offset {self.offset}>"

    def mask(self, batch: int, heads: int, rows: int, keys: int) -> np.ndarray:
        """Which weights stay, bool [batch, heads, rows, keys], in NumPy."""
        words = [np.uint32(w & _LOW) for w in self.words]
        b, h = np.arange(batch, dtype=np.uint32)[:, None], np.arange(heads, dtype=np.uint32)[None, :]
        low, high, first, second = words
        key = _philox(_philox(b ^ first, h ^ second, low), np.broadcast_to(high, (batch, heads)), low ^ high)[..., None, None]
        i, j = np.arange(rows, dtype=np.uint32)[:, None], np.arange(keys, dtype=np.uint32)[None, :]
        out = _philox(np.broadcast_to(j, (batch, heads, rows, keys)), np.broadcast_to(i, (batch, heads, rows, keys)), key)
        return np.asarray((out >= np.uint32(self.least & _LOW)) & (self.factor > 0.0))


def _u32(x: Any) -> Any:
    """A number, or a scalar of the program, as bits."""
    return (fc.cast(x, fc.i32)).to(fc.u32)


def _philox(x: np.ndarray, y: np.ndarray, key: Any) -> np.ndarray:
    x, y, key = (np.asarray(n, np.uint64) for n in (x, y, key))
    for n in range(_ROUNDS):
        product = x * np.uint64(_MULTIPLIER)
        x, y = (product >> np.uint64(32)) ^ key ^ y, product & np.uint64(_LOW)
        if n < _ROUNDS - 1:
            key = (key + np.uint64(_WEYL)) & np.uint64(_LOW)
    return np.asarray(x)
