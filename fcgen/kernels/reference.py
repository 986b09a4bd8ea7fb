"""What the library's kernels compute, in float64 and as plainly as NumPy can say it."""

from __future__ import annotations

import numpy as np


def attention_reference(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, mask: str = "none", scale: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(O [B, H, M, E], LSE [B, H, M]) in float64. q [B, H, M, D]; k, v [B, G, N, D | E] with H a multiple of G. mask: "none",
    "causal_top_left", "causal_bottom_right". A row that sees no key gives 0 and -inf."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    s = q @ k.swapaxes(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)
    i, j = np.arange(q.shape[2])[:, None], np.arange(k.shape[2])[None, :]
    if mask != "none":
        s = np.where(j <= i + (k.shape[2] - q.shape[2] if mask == "causal_bottom_right" else 0), s, -np.inf)
    with np.errstate(all="ignore"):
        top = np.max(s, axis=-1, keepdims=True, initial=-np.inf)
        e = np.exp(s - np.where(np.isfinite(top), top, 0.0))
        total = e.sum(axis=-1, keepdims=True)
        out = (e / np.where(total > 0, total, 1.0)) @ v
        return out, (np.where(np.isfinite(top), top, 0.0) + np.log(total))[..., 0]
