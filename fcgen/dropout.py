"""Dropout of attention's weights: random numbers made of where a weight stands, so that the same ones fall whatever tiles a kernel has.

Philox-2x32 with 7 rounds (Salmon et al., 2011) of the counter (j, i) without their bits 3, under a key made of seed, offset, b and h, gives
four numbers of 16 bits: bit 3 of j chooses the word, that of i its half. Weight (b, h, i, j) is dropped if its number lies below
p * 2**16; the others are divided by 1 - p, for the p that this is. (A lane of a matrix instruction holds rows and columns that are 8
apart: it makes four weights' numbers at once, in a product and in its transpose.) The softmax's sums, and the log-sum-exp, are of all
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


def philox(x: Any, y: Any, key: Any) -> tuple[Any, Any]:
    """Philox-2x32-7. x, y: the counter; key. All u32."""
    for n in range(_ROUNDS):
        high = fc.mulhi(x, _MULTIPLIER)
        x, y = high ^ key ^ y, x * _MULTIPLIER
        if n < _ROUNDS - 1:
            key = key + _WEYL
    return x, y


def _signed(n: int) -> int:
    """The i32 with these bits."""
    n &= _LOW
    return n - (1 << 32) if n >> 31 else n


class Dropout:
    """p: which share of the weights is dropped, in steps of 2**-16. seed, offset: whole numbers of 64 bits, read at each call: others
    compile nothing."""

    def __init__(self, p: float, seed: int = 0, offset: int = 0):
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0.0 <= p <= 1.0:
            raise FcError("call/argument", "argument `p` of a dropout is not between 0 and 1", got=repr(p)[:80])
        for name, n in (("seed", seed), ("offset", offset)):
            if isinstance(n, bool) or not hasattr(n, "__index__"):
                raise FcError("call/argument", f"argument `{name}` of a dropout is not a whole number", got=repr(n)[:80])
        self.p, self.seed, self.offset = float(p), int(seed), int(offset)
        threshold = round(p * 2.0**16)
        #: numbers at or above it stay, in the upper half of a word. (Where all fall the factor is 0, where none does the threshold is.)
        self.least = _signed(min(threshold << 16, _LOW))
        self.factor = 0.0 if threshold >> 16 else 2.0**16 / (2**16 - threshold)
        self.words = tuple(_signed(w) for n in (self.seed, self.offset) for w in (n, n >> 32))

    def kept(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        """Which weights stay."""
        low, high, first, second = (_u32(w) for w in self.words)
        key, _ = philox(philox(_u32(b) ^ first, _u32(h) ^ second, low)[0], high, low ^ high)
        x, y = philox((kv_idx & ~8).to(fc.u32), (q_idx & ~8).to(fc.u32), key)
        word = fc.where((kv_idx & 8) == 0, x, y)
        return fc.where((q_idx & 8) == 0, word, word << 16) >= _u32(self.least)

    def __call__(self, p: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return fc.where(self.kept(b, h, q_idx, kv_idx), p * self.factor, 0.0)

    def __repr__(self) -> str:
        return f"<dropout {self.p}, seed {self.seed}, offset {self.offset}>"

    def mask(self, batch: int, heads: int, rows: int, keys: int) -> np.ndarray:
        """Which weights stay, bool [batch, heads, rows, keys], in NumPy."""
        words = [np.uint32(w & _LOW) for w in self.words]
        b, h = np.arange(batch, dtype=np.uint32)[:, None], np.arange(heads, dtype=np.uint32)[None, :]
        low, high, first, second = words
        key = _philox(_philox(b ^ first, h ^ second, low)[0], np.broadcast_to(high, (batch, heads)), low ^ high)[0][..., None, None]
        i, j = np.arange(rows, dtype=np.uint32)[:, None], np.arange(keys, dtype=np.uint32)[None, :]
        first_j, first_i = (np.broadcast_to(n & ~np.uint32(8), (batch, heads, rows, keys)) for n in (j, i))
        pair = _philox(first_j, first_i, key)
        out = np.where(j & 8, pair[1], pair[0]) << np.where(i & 8, np.uint64(16), np.uint64(0)) & np.uint64(_LOW)
        return np.asarray((out >= np.uint64(self.least & _LOW)) & (self.factor > 0.0))


def _u32(x: Any) -> Any:
    """A number, or a scalar of the program, as bits."""
    return (fc.cast(x, fc.i32)).to(fc.u32)


def _philox(x: np.ndarray, y: np.ndarray, key: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y, key = (np.asarray(n, np.uint64) for n in (x, y, key))
    for n in range(_ROUNDS):
        product = x * np.uint64(_MULTIPLIER)
        x, y = (product >> np.uint64(32)) ^ key ^ y, product & np.uint64(_LOW)
        if n < _ROUNDS - 1:
            key = (key + np.uint64(_WEYL)) & np.uint64(_LOW)
    return np.asarray(x), np.asarray(y)
