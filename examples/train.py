"""A small causal transformer that learns generated sentences, forward and backward through fcgen and through PyTorch's own attention.

    python examples/train.py --json train.json --picture train.svg        (a GPU, PyTorch; matplotlib for the picture)

All runs begin with the same weights and see the same sentences. `sdpa` and `sdpa in float32` differ in the rounding of attention alone,
and their distance says how far apart two curves that are the same may lie.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import fcgen as fc

Attention = Callable[..., torch.Tensor]


class Settings(NamedTuple):
    steps: int = 600
    batch: int = 16
    context: int = 256
    layers: int = 4
    width: int = 256
    heads: int = 4
    rate: float = 1e-3
    seed: int = 0


# ---- sentences ---------------------------------------------------------------------------------------------------------------------------

WHO = ["the cat", "a small dog", "her brother", "my oldest friend", "the captain", "every child", "an engineer", "the grey bird"]
DOES = ["sees", "follows", "remembers", "paints", "is afraid of", "sings for", "waits behind", "builds"]
WHERE = ["in the garden", "by the sea", "under an old bridge", "on the second floor", "at night", "without a word", "before the rain"]
LETTERS = "abcdefghijklmnopqrstuvwxyz ,.;0123456789"


def sentence(rng: random.Random) -> str:
    """Words in an order that can be learnt, and a sum, which needs what stands a few letters back."""
    if rng.random() < 0.25:
        a, b = rng.randrange(10), rng.randrange(10)
        return f"{a} and {b} are {a + b}. "
    who, other = rng.choice(WHO), rng.choice(WHO)
    end = f", and {other} {rng.choice(DOES)} {who}" if rng.random() < 0.4 else f" {rng.choice(WHERE)}"
    return f"{who} {rng.choice(DOES)} {other}{end}{rng.choice('..;')} "


def text(length: int, seed: int) -> torch.Tensor:
    """Letters as numbers."""
    rng, out = random.Random(seed), ""
    parts: list[str] = []
    while (have := len(out)) < length:
        parts = [sentence(rng) for _ in range(1 + (length - have) // 40)]
        out += "".join(parts)
    return torch.tensor([LETTERS.index(c) for c in out[:length]])


# ---- the model ---------------------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, s: Settings, attention: Attention):
        super().__init__()
        self.heads, self.attention = s.heads, attention
        self.before, self.between = nn.LayerNorm(s.width), nn.LayerNorm(s.width)
        self.qkv, self.out = nn.Linear(s.width, 3 * s.width), nn.Linear(s.width, s.width)
        self.wide, self.narrow = nn.Linear(s.width, 4 * s.width), nn.Linear(4 * s.width, s.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(self.before(x)).chunk(3, -1))
        x = x + self.out(self.attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.between(x))))


class Model(nn.Module):
    def __init__(self, s: Settings, attention: Attention):
        super().__init__()
        self.letters, self.places = nn.Embedding(len(LETTERS), s.width), nn.Embedding(s.context, s.width)
        self.blocks = nn.Sequential(*(Block(s, attention) for _ in range(s.layers)))
        self.last, self.logits = nn.LayerNorm(s.width), nn.Linear(s.width, len(LETTERS))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.letters(ids) + self.places.weight[:ids.shape[1]]
        return self.logits(self.last(self.blocks(x)))


def in_float32(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool) -> torch.Tensor:
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=is_causal).to(q.dtype)


ATTENTIONS: dict[str, Attention] = {"sdpa": F.scaled_dot_product_attention, "fcgen": fc.scaled_dot_product_attention,
                                    "sdpa in float32": in_float32}


def train(s: Settings, attention: Attention, device: str) -> list[float]:
    """The loss of every step, in bf16 under autocast."""
    torch.manual_seed(s.seed)
    model = Model(s, attention).to(device)
    letters = text(max(200_000, 8 * s.batch * s.context), s.seed).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), s.rate, weight_decay=0.05)
    draw, losses = torch.Generator().manual_seed(s.seed), []
    for step in range(s.steps):
        for group in optimizer.param_groups:  # warm up, then down to a tenth along a cosine
            group["lr"] = s.rate * min((step + 1) / 50, 0.55 + 0.45 * math.cos(math.pi * step / s.steps))
        begin = torch.randint(len(letters) - s.context - 1, (s.batch, 1), generator=draw)
        at = begin.to(device) + torch.arange(s.context + 1, device=device)
        ids = letters[at]
        with torch.autocast(device, dtype=torch.bfloat16) if device == "cuda" else nullcontext():
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu().tolist()  # type: ignore[no-any-return]


# ---- what comes of it --------------------------------------------------------------------------------------------------------------------


def smooth(losses: list[float], over: int = 25) -> list[float]:
    return [statistics.fmean(losses[max(0, n - over + 1):n + 1]) for n in range(len(losses))]


def apart(a: list[float], b: list[float]) -> float:
    """The largest distance of two curves, each a mean over 25 steps."""
    return max(abs(x - y) for x, y in zip(smooth(a), smooth(b)))


def picture(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "train", "svg.fonttype": "none"})
    figure, (a, b) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    styles = {"sdpa": ("#d55e00", "-", 3.0), "fcgen": ("#0072b2", "-", 1.2), "sdpa in float32": ("#555555", ":", 1.2)}
    for name, losses in found["losses"].items():
        color, line, width = styles[name]
        a.plot(smooth(losses), line, color=color, linewidth=width, label=name)
        if name != "sdpa":
            b.plot([x - y for x, y in zip(smooth(losses), smooth(found["losses"]["sdpa"]))], line, color=color, label=f"{name} less sdpa")
    a.set_ylabel("loss per letter, mean of 25 steps")
    b.set_ylabel("difference")
    for x in (a, b):
        x.set_xlabel("step")
        x.spines[["top", "right"]].set_visible(False)
        x.grid(axis="y", color="#e5e5e5")
        x.legend(frameon=False, fontsize=9)
    s = found["settings"]
    figure.suptitle(f"{s['layers']} layers, width {s['width']}, {s['context']} letters, bf16, {found['gpu']}", fontsize=10)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def run(s: Settings, device: str = "cuda") -> dict[str, Any]:
    losses, seconds = {}, {}
    for name, attention in ATTENTIONS.items():
        begin = time.perf_counter()
        losses[name] = train(s, attention, device)
        seconds[name] = round(time.perf_counter() - begin, 2)
    return {"settings": s._asdict(), "losses": losses, "seconds": seconds, "torch": torch.__version__,
            "date": datetime.date.today().isoformat(), "gpu": torch.cuda.get_device_name() if device == "cuda" else "",
            "apart": {name: apart(losses["sdpa"], losses[name]) for name in losses if name != "sdpa"},
            "final": {name: smooth(x)[-1] for name, x in losses.items()}}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    for name, value in Settings()._asdict().items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--json", type=Path, metavar="PATH")
    parser.add_argument("--picture", type=Path, metavar="PATH")
    args = vars(parser.parse_args(argv))
    json_to, picture_to = args.pop("json"), args.pop("picture")
    if not torch.cuda.is_available():
        print("there is no GPU here")
        return 1
    found = run(Settings(**args))
    for name, losses in found["losses"].items():
        print(f"{name:16} first {losses[0]:.3f}  last {found['final'][name]:.4f}  {found['seconds'][name]} s"
              + (f"  at most {found['apart'][name]:.4f} from sdpa" if name != "sdpa" else ""))
    if json_to:
        json_to.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if picture_to:
        picture(found, picture_to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
