"""What the kernels should give, in plain NumPy and float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def visible_keys(kind: str, m: int, n: int) -> np.ndarray:
    """bool [m, n]: which keys each query sees."""
    i, j = np.arange(m)[:, None], np.arange(n)[None, :]
    if kind == "none":
        return np.ones((m, n), bool)
    if kind == "causal_top_left":
        return j <= i
    if kind == "causal_bottom_right":
        return j <= i + n - m
    raise ValueError(f"unknown mask {kind!r}")


def attention_reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float | None = None, mask: str | np.ndarray = "none",
                        score: Callable[..., np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(out [B, H, M, E], lse [B, H, M]). q: [B, H, M, D], k: [B, Hk, N, D], v: [B, Hk, N, E] with H a multiple of Hk. mask: a kind, or
    bool broadcastable to [B, H, M, N] (True is seen). score(s, b, h, i, j) changes the scaled scores. scale: 1/sqrt(D) if None."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (nb, nh, m, d), n, group = q.shape, k.shape[2], q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    s = np.einsum("bhmd,bhnd->bhmn", q, k) * (d**-0.5 if scale is None else scale)
    if score is not None:
        s = score(s, *np.ogrid[:nb, :nh, :m, :n])
    seen = np.broadcast_to(visible_keys(mask, m, n) if isinstance(mask, str) else mask, s.shape)
    top = np.max(np.where(seen, s, -np.inf), axis=-1, keepdims=True, initial=-np.inf)
    e = np.where(seen, np.exp(np.where(seen, s - np.where(np.isinf(top), 0.0, top), 0.0)), 0.0)
    total = e.sum(axis=-1, keepdims=True)
    some = total > 0
    out = np.einsum("bhmn,bhne->bhme", e / np.where(some, total, 1.0), v)
    lse = np.where(some, np.where(some, top, 0.0) + np.log(np.where(some, total, 1.0)), -np.inf)
    return out, lse[..., 0]
