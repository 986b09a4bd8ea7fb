"""Attention with masks, scores, sinks and dropout in float64, as plainly as NumPy can say it: the functions are called on whole arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


def eager(q: Any, k: Any, v: Any, *, seen: Any = None, score: Any = None, sinks: Any = None, kept: Any = None, factor: float = 1.0,
          scale: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(out, log-sum-exp). seen(b, h, i, j), score(s, b, h, i, j): on arrays. sinks: a number for each head. kept: bool [B, H, M, N]."""
    (b, h, m, d), (_, g, n, _) = q.shape, k.shape
    out, lse = np.zeros((b, h, m, v.shape[3])), np.zeros((b, h, m))
    i, j = np.arange(m)[:, None], np.arange(n)[None, :]
    for x in range(b):
        for y in range(h):
            s = q[x, y].astype(float) @ k[x, y // (h // g)].astype(float).T * (d**-0.5 if scale is None else scale)
            s = s if score is None else score(s, x, y, i, j)
            s = s if seen is None else np.where(np.broadcast_to(seen(x, y, i, j), (m, n)), s, -np.inf)
            sink = -np.inf if sinks is None else float(sinks[y])
            top = np.maximum(s.max(1, keepdims=True, initial=-np.inf), sink)
            base = np.where(np.isinf(top), 0.0, top)
            e = np.exp(s - base)
            total = e.sum(1, keepdims=True) + np.exp(sink - base)
            e = e if kept is None else e * kept[x, y] * factor
            out[x, y] = e @ v[x, y // (h // g)].astype(float) / np.where(total == 0, 1, total)
            with np.errstate(divide="ignore"):
                lse[x, y] = (base + np.log(total))[:, 0]
    return out, lse
