"""The cells of the Hopper benchmark (head size, length, mask): which, their inputs, an exact reference, and the verdict on a result.

A cell has 16384 tokens in total and H = 2048 / D heads, stored [B, S, H, D]. The reference is float64, over whole (batch, head) slices: the
first, a middle one and the last, all rows and all keys, in blocks of rows. A result passes if all of it is finite, its rms error over the
slices is within LIMIT of the reference's rms, and no single row is off by more than ROW_FACTOR times that: a wrong tile shows there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .attention_forward import flops

TOKENS, WIDTH = 16384, 2048
HEADS, LENGTHS = (64, 128, 256), (512, 1024, 2048, 4096, 8192, 16384)
DTYPES = {"fp16": "f16", "bf16": "bf16"}
#: rms error over the reference's rms
LIMIT = {"fp16": 1.5e-3, "bf16": 1.2e-2}
ROW_FACTOR = 6.0
#: rows of scores at a time, so that 16k keys in float64 stay small
ROWS = 1024


@dataclass(frozen=True)
class Cell:
    """b, h: None for what the token count and the width give."""

    d: int
    s: int
    causal: bool
    b: int | None = None
    h: int | None = None

    @property
    def batch(self) -> int:
        return self.b or max(1, TOKENS // self.s)

    @property
    def heads(self) -> int:
        return self.h or max(1, WIDTH // self.d)

    @property
    def mask(self) -> str:
        return "causal_top_left" if self.causal else "none"

    @property
    def flops(self) -> float:
        return flops(self.batch, self.heads, self.s, self.d, self.causal)

    @property
    def bytes(self) -> float:
        """Q, K and V read once, O written once, 16 bits each."""
        return 4.0 * 2 * self.batch * self.heads * self.s * self.d

    def __str__(self) -> str:
        return f"D{self.d}:S{length(self.s)}:{'causal' if self.causal else 'full'}"


def length(s: int) -> str:
    return f"{s // 1024}k" if s % 1024 == 0 else str(s)


def number(text: str) -> int:
    """"512" and "4k"."""
    return int(text[:-1]) * 1024 if text.lower().endswith("k") else int(text)


def all_cells() -> list[Cell]:
    return [Cell(d, s, causal) for d in HEADS for causal in (False, True) for s in LENGTHS]


def choose(text: str | None) -> list[Cell]:
    """Cells that match one of the patterns: `D64`, `S16k`, `causal`, `D128:full:S512`; all without a pattern. Lengths and head sizes
    that are not in the table may be named in full (`D96:S3000:causal`)."""
    if not text:
        return all_cells()
    found: dict[Cell, None] = {}
    for pattern in text.split(","):
        want: dict[str, Any] = {}
        for part in pattern.strip().split(":"):
            low = part.strip().lower()
            if low in ("causal", "full"):
                want["causal"] = low == "causal"
            elif low[:1] in ("d", "s") and low[1:].rstrip("k").isdigit():
                want[low[0]] = number(low[1:])
            else:
                raise ValueError(f"no such cell: {part!r} (D64, S16k, causal or full, joined by colons)")
        heads, lengths = ((want["d"],) if "d" in want else HEADS), ((want["s"],) if "s" in want else LENGTHS)
        masks = (want["causal"],) if "causal" in want else (False, True)
        found.update(dict.fromkeys(Cell(d, s, c) for d in heads for c in masks for s in lengths))
    return list(found)


# ---- inputs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """q, k, v in [B, S, H, D], contiguous; `bhsd` are views of the same storage with the heads second."""

    q: Any
    k: Any
    v: Any
    causal: bool

    @property
    def bhsd(self) -> tuple[Any, Any, Any]:
        return self.q.transpose(1, 2), self.k.transpose(1, 2), self.v.transpose(1, 2)

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5


def normal(x: Any, which: int) -> Any:
    return x


def inputs(cell: Cell, dtype: str, change: Callable[[Any, int], Any] = normal, seed: int = 0) -> Inputs:
    """N(0, 1), after `change(float32 tensor, 0 for q, 1 for k, 2 for v)`, in the dtype."""
    import torch

    torch.manual_seed(hash((seed, cell.d, cell.s, cell.causal)) % 2**31)
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    shape = (cell.batch, cell.s, cell.heads, cell.d)
    q, k, v = (change(torch.randn(shape, device="cuda"), i).to(kind) for i in range(3))
    return Inputs(q, k, v, cell.causal)


def poison(like: Any) -> None:
    """What is allocated next with this size is full of NaN: torch's allocator hands the freed block out again."""
    import torch

    made = [torch.full_like(like, float("nan")) for _ in range(2)]
    del made


# ---- the reference ---------------------------------------------------------------------------------------------------


def exact(q: Any, k: Any, v: Any, causal: bool, scale: float) -> Any:
    """One head in float64: q, k, v [S, D] -> [S, D], `ROWS` rows at a time."""
    import torch

    k, v = k.double(), v.double()
    out = torch.empty(q.shape[0], v.shape[1], dtype=torch.float64, device=q.device)
    keys = torch.arange(k.shape[0], device=q.device)
    for at in range(0, q.shape[0], ROWS):
        rows = slice(at, min(at + ROWS, q.shape[0]))
        end = rows.stop if causal else k.shape[0]
        scores = q[rows].double() @ k[:end].T * scale
        if causal:
            scores.masked_fill_(keys[None, :end] > keys[rows, None], float("-inf"))
        out[rows] = torch.softmax(scores, -1) @ v[:end]
    return out


def sampled(batch: int, heads: int) -> list[tuple[int, int]]:
    return sorted({(0, 0), (batch // 2, heads // 2), (batch - 1, heads - 1)})


@dataclass(frozen=True)
class Errors:
    """max: largest absolute; rms: over the reference's rms; row: the worst row, norm over norm."""

    max: float
    rms: float
    row: float = 0.0

    def problem(self, dtype: str, slack: float = 1.0) -> str | None:
        limit = LIMIT[dtype] * slack
        if not self.rms <= limit:
            return f"rms error {self.rms:.1e}, at most {limit:.1e}"
        if not self.row <= limit * ROW_FACTOR:
            return f"error of a row {self.row:.1e}, at most {limit * ROW_FACTOR:.1e}"
        return None


BAD = Errors(math.inf, math.inf, math.inf)


class Reference:
    """The exact result of some slices of one input."""

    def __init__(self, x: Inputs, slices: Iterable[tuple[int, int]] | None = None):
        b, _, h, _ = x.q.shape
        self.want = {(i, j): exact(x.q[i, :, j], x.k[i, :, j], x.v[i, :, j], x.causal, x.scale) for i, j in slices or sampled(b, h)}

    def errors(self, got: Any) -> Errors:
        """got: [B, S, H, D]. BAD where any of it is not finite."""
        if not bool(got.isfinite().all()):
            return BAD
        most, square, size, total, row = 0.0, 0.0, 0, 0.0, 0.0
        for (i, j), want in self.want.items():
            diff = got[i, :, j].double() - want
            most = max(most, diff.abs().max().item())
            square += diff.square().sum().item()
            total += want.square().sum().item()
            size += want.numel()
            row = max(row, (diff.norm(dim=1) / want.norm(dim=1).clamp_min(1e-30)).max().item())
        return Errors(most, math.sqrt(square / total) if size and total else math.inf, row)
