"""Attention in float64 with torch, and how far a result is from it.

The reference is computed where the tensors are, a few heads at a time, for all rows or for some. `rounding_bound` is how far an exact
computation that keeps its weights and its result in a 16-bit dtype may be from it: what a kernel has to stay within.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

#: unit roundoff of the dtypes of fcgen
UNIT = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24}
#: elements of a score matrix in float64 that are held at once
CHUNK = 1 << 27


@dataclass(frozen=True)
class Error:
    """max_abs: largest distance; rms: root mean square of it; relative: rms over that of the reference. Infinite where not finite."""

    max_abs: float
    rms: float
    relative: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.max_abs)


@dataclass(frozen=True)
class Reference:
    """out [B, H, R, E] and lse [B, H, R] in float64 for the rows `rows` (None: all); weight: sum of p |v| / l, ideal: the same computation
    with weights and result rounded to the inputs' dtype (both None unless asked for)."""

    out: Any
    lse: Any
    rows: Any = None
    weight: Any = None
    ideal: Any = None
    largest_score: float = 0.0

    def take(self, x: Any) -> Any:
        """The same rows of a kernel's result."""
        return x if self.rows is None else x[:, :, self.rows]


def sample_rows(length: int, count: int, seed: int = 0) -> Any:
    """`count` different rows in order, always with the first and the last."""
    import torch

    if count >= length:
        return None
    inner = torch.randperm(length - 2, generator=torch.Generator().manual_seed(seed))[:max(0, count - 2)] + 1
    return torch.cat([torch.tensor([0]), inner, torch.tensor([length - 1])]).sort().values


def reference(q: Any, k: Any, v: Any, *, mask: str = "none", scale: float | None = None, rows: Any = None, detail: bool = False,
              chunk: int = CHUNK) -> Reference:
    """q [B, H, M, D], k and v [B, G, N, D | E] -> `Reference`. mask: "none", "causal_top_left", "causal_bottom_right". Rows that see no
    key give 0 and -inf."""
    import torch

    b, h, m, d = q.shape
    heads, n, e = k.shape[1], k.shape[2], v.shape[3]
    group = h // heads
    scale = d**-0.5 if scale is None else scale
    at = torch.arange(m, device=q.device) if rows is None else rows.to(q.device)
    pairs, r = b * heads, len(at)
    # one entry per head of k and v, the heads of q that share it inside
    out = torch.zeros(pairs, group, r, e, dtype=torch.float64, device=q.device)
    lse = torch.full((pairs, group, r), -math.inf, dtype=torch.float64, device=q.device)
    weight, ideal = (torch.zeros_like(out), torch.zeros_like(out)) if detail else (None, None)
    largest = torch.zeros((), dtype=torch.float64, device=q.device)
    if n and out.numel():
        left = q[:, :, at].reshape(pairs, group, r, d)
        right, values = k.reshape(pairs, 1, n, d), v.reshape(pairs, 1, n, e)
        last = None if mask == "none" else at + (n - m if mask == "causal_bottom_right" else 0)
        cols = torch.arange(n, device=q.device)
        step = min(r, max(1, chunk // (group * n)))
        some = max(1, chunk // (group * n * step))
        for x in (slice(i, i + some) for i in range(0, pairs, some)):
            k64, v64 = right[x].double(), values[x].double()
            for y in (slice(i, i + step) for i in range(0, r, step)):
                s = (left[x, :, y].double() @ k64.transpose(-1, -2)) * scale
                if detail:
                    largest = torch.maximum(largest, s.abs().max())
                if last is not None:
                    s = s.masked_fill(cols > last[y, None], -math.inf)
                top = s.amax(dim=-1, keepdim=True)
                top = torch.where(top == -math.inf, 0.0, top)
                p = s.sub_(top).exp_()
                total = p.sum(dim=-1, keepdim=True)
                over = torch.where(total > 0, total, 1.0)
                out[x, :, y] = p @ v64 / over
                lse[x, :, y] = (top + torch.log(total))[..., 0]
                if detail:
                    weight[x, :, y] = p @ v64.abs() / over
                    ideal[x, :, y] = (p.to(q.dtype).double() @ v64 / over).to(q.dtype).double()
    shaped = lambda t: None if t is None else t.reshape(b, h, r, *t.shape[3:])
    return Reference(shaped(out), shaped(lse), rows, shaped(weight), shaped(ideal), largest.item())


def compare(got: Any, want: Any) -> Error:
    """The error of a tensor of any dtype against float64. An element that is not finite where the reference is makes it infinite."""
    import torch

    if tuple(got.shape) != tuple(want.shape):
        return Error(math.inf, math.inf, math.inf)
    if got.numel() == 0:
        return Error(0.0, 0.0, 0.0)
    got, same = got.double(), torch.isinf(want)
    if not bool((torch.isfinite(got) | (same & (got == want))).all()):
        return Error(math.inf, math.inf, math.inf)
    off = torch.where(same, torch.where(got == want, 0.0, math.inf), got - want)
    rms, size = off.square().mean().sqrt().item(), torch.where(same, 0.0, want).square().mean().sqrt().item()
    return Error(off.abs().max().item(), rms, rms / size if size else rms)


def rounding_bound(ref: Reference, k: Any, v: Any, dtype: str) -> Any:
    """How far each element may be from the reference: weights rounded to `dtype` (relative error u each, and half a subnormal step for
    float16), scores and exponentials in float32, the result rounded once more. The factor 1.25 is for sums in float32."""
    u = UNIT[dtype]
    scores = 2.0**-21 * (1.0 + ref.largest_score)  # exponent's error: float32 scores of this size, and ex2's own
    floor = (2.0**-25 if dtype == "f16" else 0.0) * k.shape[2] * (v.abs().max().double() if v.numel() else 0.0)
    step = 2.0**-25 if dtype == "f16" else 0.0  # half a subnormal step of the result
    return 1.25 * (u * (ref.weight + ref.out.abs()) + scores * ref.weight) + floor + step + 1e-30
