"""Products of tiles in NumPy, without BLAS's threads: to wake them costs more than the product, a hundred times more on a busy machine."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

#: multiplications that BLAS does in the thread that asks (OpenBLAS: interface/gemm.c), and the side of blocks that are so small
ALONE, SIDE = 64**3, 32


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray[Any, Any]:
    """a @ b of two matrices, in blocks that are products of their own."""
    (m, k), n = a.shape, b.shape[1]
    r, c = gcd(m, SIDE), gcd(n, SIDE)
    if m * n * k <= ALONE or min(r, c) < 4:
        return a @ b
    blocks = a.reshape(m // r, 1, r, k) @ b.reshape(k, n // c, c).transpose(1, 0, 2)
    return blocks.transpose(0, 2, 1, 3).reshape(m, n)
