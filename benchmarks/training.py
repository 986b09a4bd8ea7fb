"""The backward pass of `fcgen.attention` beside torch's scaled_dot_product_attention and, with --flex, FlexAttention: TFLOP/s of five
products (2.5 times the forward's), fp16, whole calls of autograd.

    python -m benchmarks.training --heads 64,128 --length 4096 --json out/training.json

Gradients of two heads are compared with float64 before anything is timed. "deterministic" sums the gradient of q in a pass of its own.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any

import fcgen as fc

from .environment import facts
from .pool import write_json
from .timing import Checked, finishes, round_robin

LIMIT = 3e-3
#: batch x length, heads x head size
TOKENS, WIDTH = 16384, 2048
CAP = 20.0


class Cell:
    def __init__(self, batch: int, length: int, heads: int, d: int, causal: bool, cap: float | None):
        import torch

        torch.manual_seed(0)
        draw = lambda: torch.randn(batch, heads, length, d, device="cuda", dtype=torch.float16)
        self.inputs = [draw().requires_grad_() for _ in range(3)]
        self.g, self.causal, self.cap, self.scale = draw(), causal, cap, d**-0.5
        self.work = 2.5 * 4 * batch * heads * length**2 * d / (2 if causal else 1)
        self.exact = [self._exact(0, h) for h in range(min(2, heads))]

    def _exact(self, b: int, h: int) -> list[Any]:
        import torch

        q, k, v = (x.detach()[b, h].double().requires_grad_() for x in self.inputs)
        s = q @ k.T * self.scale
        s = s if self.cap is None else self.cap * torch.tanh(s / self.cap)
        if self.causal:
            s = s.masked_fill(torch.ones_like(s, dtype=torch.bool).triu(1), -torch.inf)
        return list(torch.autograd.grad(s.softmax(-1) @ v, (q, k, v), self.g[b, h].double()))

    def way(self, name: str, call: Callable[..., Any], **mode: Any) -> Checked:
        """The backward pass of a forward call that was made once."""
        import torch

        out = call(*self.inputs)
        run = functools.partial(torch.autograd.grad, out, self.inputs, self.g, retain_graph=True)
        got = run()
        if not finishes():
            raise SystemExit(f"{name}: a kernel does not end")
        rms = most = 0.0
        for h, exact in enumerate(self.exact):
            for x, want in zip(got, exact):
                diff = x[0, h].double() - want
                most, rms = max(most, diff.abs().max().item()), max(rms, (diff.norm() / want.norm()).item())
        return Checked(name, run, most, rms if all(bool(x.isfinite().all()) for x in got) else float("inf"))


def ways(cell: Cell, flex: bool) -> list[Checked]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    cap = cell.cap
    score = None if cap is None else lambda s, b, h, i, j: cap * fc.tanh(s * (1.0 / cap))
    ours = lambda q, k, v: fc.attention(q, k, v, causal=cell.causal, score=score)
    out = [cell.way("fcgen", ours)]
    torch.use_deterministic_algorithms(True, warn_only=True)
    out.append(cell.way("fcgen, deterministic", ours))
    torch.use_deterministic_algorithms(False)
    if cap is None:
        def theirs(backend: Any, q: Any, k: Any, v: Any) -> Any:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=cell.causal)

        out += [cell.way(f"sdpa {b.name}", functools.partial(theirs, b)) for b in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION)]
    if flex:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        n = cell.g.shape[2]
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, n, n) if cell.causal else None
        mod = None if cap is None else lambda s, b, h, i, j: cap * torch.tanh(s / cap)
        compiled = torch.compile(flex_attention, dynamic=False)
        out.append(cell.way("flex", lambda q, k, v: compiled(q, k, v, score_mod=mod, block_mask=mask)))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="64,128", help="head sizes (%(default)s); heads x size is 2048")
    parser.add_argument("--length", type=int, default=4096, help="%(default)s; batch x length is 16384")
    parser.add_argument("--cap", action="store_true", help="with a soft-cap too")
    parser.add_argument("--flex", action="store_true", help="FlexAttention too, which takes a while to compile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    table, wrong = [], []
    for d in map(int, args.heads.split(",")):
        for causal in (False, True):
            for cap in (None, CAP) if args.cap else (None,):
                cell = Cell(max(1, TOKENS // args.length), args.length, max(1, WIDTH // d), d, causal, cap)
                every = ways(cell, args.flex)
                wrong += [f"D={d} {w.name}: rms error {w.rms_error:.1e}" for w in every if not (w.rms_error or 0) <= LIMIT]
                right = [w for w in every if (w.rms_error or 0) <= LIMIT]
                times = round_robin(right, max(2, round(8e-3 / (cell.work / 4e14))), args.rounds, preheat_ms=50.0, warm=1) if right else {}
                for w in right:
                    t = times[w.name]
                    table.append({"head": d, "length": args.length, "causal": causal, "cap": cap, "name": w.name, "ms": t.ms,
                                  "spread": t.spread, "tflops": cell.work / t.ms / 1e9, "rms_error": w.rms_error})
                    kind = ("causal" if causal else "full") + (" cap" if cap else "")
                    print(f"D={d} {kind:10} {table[-1]['tflops']:6.0f} TFLOP/s  {t.ms:.3f} ms  rms {w.rms_error:.1e}  {w.name}", flush=True)
    print("\n".join(wrong) or "all that was timed was right")
    write_json(args.json, {"part": "training", "environment": facts(), "table": table, "problems": wrong})
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
