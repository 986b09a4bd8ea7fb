"""A stack of layers of the shape of Llama-8B, end to end: prefill, and forward with backward, with attention through fcgen and through
torch's scaled_dot_product_attention (its own choice, cuDNN's, its flash kernel); bf16, random weights, 4k tokens.

    python -m benchmarks.llama --layers 4 --json out/llama.json         a minute; the reference in float64 needs 30 GB

First the output of the stack and the gradients of its input and of the projections in front of attention are compared with float64; a
way that is wrong gets no time. Then the ways run in turns. "attention" is what lies between CUDA events around the calls, of a forward
pass and of a backward pass; "rest" is the stack with an attention that computes nothing and has results of the same shapes, a second
measure of the same share.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import fcgen as fc

from .environment import facts
from .pool import write_json
from .timing import Checked, finishes, refuse_unchecked, turned

HIDDEN, HEADS, GROUPS, HEAD, WIDE, LENGTH = 4096, 32, 8, 128, 14336, 4096
#: rms error of a whole stack in bf16, most of which is that of its products; and of fcgen's over that of torch's own choice
LIMIT, RATIO = 0.05, 1.05
REST = "rest"


class Layer:
    def __init__(self) -> None:
        import torch

        draw = lambda n, m: (torch.randn(n, m, device="cuda") * n**-0.5).to(torch.bfloat16)
        self.q, self.k, self.v = draw(HIDDEN, HEADS * HEAD), draw(HIDDEN, GROUPS * HEAD), draw(HIDDEN, GROUPS * HEAD)
        self.o, self.gate, self.up, self.down = draw(HEADS * HEAD, HIDDEN), draw(HIDDEN, WIDE), draw(HIDDEN, WIDE), draw(WIDE, HIDDEN)
        self.norms = [torch.ones(HIDDEN, device="cuda", dtype=torch.bfloat16) for _ in range(2)]

    def weights(self) -> list[Any]:
        return [self.q, self.k, self.v, self.o, self.gate, self.up, self.down, *self.norms]


def layer(x: Any, w: Sequence[Any], turns: tuple[Any, Any], attend: Callable[..., Any]) -> Any:
    """x: [B, length, HIDDEN]."""
    import torch.nn.functional as F

    b, n, _ = x.shape
    q, k, v, o, gate, up, down, before, between = w
    y = F.rms_norm(x, (HIDDEN,), before, 1e-5)
    heads = [(y @ m).view(b, n, -1, HEAD).transpose(1, 2) for m in (q, k, v)]
    out = attend(rotated(heads[0], turns), rotated(heads[1], turns), heads[2])
    x = x + out.transpose(1, 2).reshape(b, n, HEADS * HEAD) @ o
    y = F.rms_norm(x, (HIDDEN,), between, 1e-5)
    return x + (F.silu(y @ gate) * (y @ up)) @ down


def rotated(x: Any, turns: tuple[Any, Any]) -> Any:
    import torch

    left, right = x.chunk(2, -1)
    return x * turns[0] + torch.cat((-right, left), -1) * turns[1]


def turning(dtype: Any) -> tuple[Any, Any]:
    """Cosines and sines of the positions' angles."""
    import torch

    speeds = 500000.0 ** -(torch.arange(0, HEAD, 2, device="cuda").double() / HEAD)
    angles = torch.arange(LENGTH, device="cuda").double()[:, None] * torch.cat((speeds, speeds))
    return angles.cos().to(dtype), angles.sin().to(dtype)


class Stack:
    def __init__(self, layers: int):
        import torch

        torch.manual_seed(0)
        self.layers = [Layer() for _ in range(layers)]
        self.x = torch.randn(1, LENGTH, HIDDEN, device="cuda").to(torch.bfloat16).requires_grad_()
        self.g = torch.randn(1, LENGTH, HIDDEN, device="cuda").to(torch.bfloat16)
        self.turns = turning(torch.bfloat16)
        for one in self.layers:
            for w in one.weights():
                w.requires_grad_()
        self.inputs = [self.x, *(w for one in self.layers for w in one.weights())]
        self.told = [self.x, *(w for one in self.layers for w in one.weights()[:3])]  # those whose gradients pass through attention

    def forward(self, attend: Callable[..., Any]) -> Any:
        x = self.x
        for one in self.layers:
            x = layer(x, one.weights(), self.turns, attend)
        return x

    def prefill(self, attend: Callable[..., Any]) -> Any:
        import torch

        with torch.no_grad():
            return self.forward(attend)

    def step(self, attend: Callable[..., Any]) -> Any:
        """Forward and backward: the gradients of all weights."""
        import torch

        return torch.autograd.grad(self.forward(attend), self.inputs, self.g, allow_unused=True)

    def results(self, attend: Callable[..., Any]) -> list[Any]:
        """Output, and the gradients that are compared."""
        import torch

        out = self.forward(attend)
        return [out.detach(), *torch.autograd.grad(out, self.told, self.g)]

    def exact(self) -> list[Any]:
        """The same in float64, a layer at a time: its pass forward is made again for its pass backward."""
        import torch

        turns, xs = turning(torch.float64), [self.x.detach().double()]
        whole = lambda one: [w.detach().double() for w in one.weights()]
        with torch.no_grad():
            for one in self.layers:
                xs.append(layer(xs[-1], whole(one), turns, reference))
        g, found = self.g.double(), list[Any]()
        for x, one in zip(xs[-2::-1], self.layers[::-1]):
            w = whole(one)
            wanted = [x.requires_grad_(), *(m.requires_grad_() for m in w[:3])]
            g, *rest = torch.autograd.grad(layer(x, w, turns, reference), wanted, g)
            found = [*rest, *found]
        return [xs[-1], g, *found]


def reference(q: Any, k: Any, v: Any) -> Any:
    import torch

    out, each = [], q.shape[1] // k.shape[1]
    hidden = torch.ones(q.shape[2], k.shape[2], device=q.device, dtype=torch.bool).triu(1)
    for h in range(q.shape[1]):
        s = q[:, h] @ k[:, h // each].transpose(-1, -2) * q.shape[3] ** -0.5
        out.append(s.masked_fill(hidden, -torch.inf).softmax(-1) @ v[:, h // each])
    return torch.stack(out, 1)


# ---- the ways of attention ---------------------------------------------------------------------------------------------------


def ours(q: Any, k: Any, v: Any) -> Any:
    return fc.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def theirs(backend: Any, q: Any, k: Any, v: Any) -> Any:
    import torch

    if backend is None:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    with torch.nn.attention.sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def every_way() -> dict[str, Callable[..., Any]]:
    from torch.nn.attention import SDPBackend

    backends = {"sdpa": None, "sdpa cuDNN": SDPBackend.CUDNN_ATTENTION, "sdpa flash": SDPBackend.FLASH_ATTENTION}
    return {"fcgen": ours, **{name: functools.partial(theirs, b) for name, b in backends.items()}}


@functools.cache
def _functions() -> tuple[Any, Any]:
    import torch

    class Nothing(torch.autograd.Function):
        """In place of attention: results of its shapes, no work."""

        @staticmethod
        def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
            return q.view_as(q)

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g, g[:, :GROUPS], g[:, GROUPS:2 * GROUPS]

    class Mark(torch.autograd.Function):
        """Tensors as they are; when their gradients have come, `note` is called."""

        @staticmethod
        def forward(ctx: Any, note: Any, *xs: Any) -> Any:
            ctx.note = note
            return tuple(x.view_as(x) for x in xs)

        @staticmethod
        def backward(ctx: Any, *gs: Any) -> Any:
            ctx.note()
            return None, *gs

    return Nothing, Mark


def nothing(q: Any, k: Any, v: Any) -> Any:
    return _functions()[0].apply(q, k, v)


class Watched:
    """An attention between events: `forward` and `backward` are their pairs."""

    def __init__(self, attend: Callable[..., Any]):
        self.attend = attend
        self.forward: list[Any] = []
        self.backward: list[Any] = []

    def __call__(self, q: Any, k: Any, v: Any) -> Any:
        import torch

        mark = _functions()[1]
        learns = torch.is_grad_enabled()
        if learns:
            q, k, v = mark.apply(lambda: self._note(self.backward), q, k, v)
        self._note(self.forward)
        out = self.attend(q, k, v)
        self._note(self.forward)
        return mark.apply(lambda: self._note(self.backward), out)[0] if learns else out

    def _note(self, into: list[Any]) -> None:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        into.append(event)

    def ms(self) -> tuple[float, float]:
        forward, backward = [sum(a.elapsed_time(b) for a, b in zip(x[::2], x[1::2])) for x in (self.forward, self.backward)]
        return forward, backward


# ---- measuring ---------------------------------------------------------------------------------------------------------------


def checked(stack: Stack) -> tuple[list[Checked], dict[str, list[float]]]:
    """What can be timed; what each is off by: its output, then gradients (of the input, and of each layer's q, k and v projections)."""
    import torch

    exact = [x.float() for x in stack.exact()]
    out, errors = [], {}
    for name, attend in every_way().items():
        try:
            got = stack.results(attend)
        except RuntimeError as e:
            print(f"{name}: not run: {(str(e).splitlines() or [''])[0][:120]}", flush=True)
            continue
        if not finishes():
            raise SystemExit(f"{name}: a kernel does not end")
        off = [x.float() - want for x, want in zip(got, exact)]
        errors[name] = [(d.norm() / want.norm()).item() for d, want in zip(off, exact)]
        most = max(d.abs().max().item() for d in off)
        out.append(Checked(name, functools.partial(stack.step, attend), most, max(errors[name])))
        del got, off
        torch.cuda.empty_cache()
    return out, errors


def wrong(errors: dict[str, list[float]]) -> list[str]:
    """Ways that are off by more than a stack in bf16 is, or fcgen's where torch's is not."""
    base = errors.get("sdpa")
    said = [f"{name}: rms error {max(e):.2e} of {LIMIT}" for name, e in errors.items() if not max(e) <= LIMIT]
    if base is not None:
        said += [f"fcgen: result {n} is off by {x:.2e}, torch's by {y:.2e}"
                 for n, (x, y) in enumerate(zip(errors["fcgen"], base)) if not x <= y * RATIO + 1e-4]
    return said


def samples(stack: Stack, names: Sequence[Checked], part: str, rounds: int) -> dict[str, list[tuple[float, float, float]]]:
    """name -> per round (whole, attention forward, attention backward), in milliseconds."""
    import torch

    refuse_unchecked(names)
    run = getattr(stack, part)
    calls = {**every_way(), REST: nothing}
    out: dict[str, list[tuple[float, float, float]]] = {c.name: [] for c in names}
    for n in range(-1, rounds):
        for c in turned(names, max(n, 0)):
            run(calls[c.name])
            torch.cuda.synchronize()
            torch.cuda._sleep(10_000_000)  # the host runs ahead
            watched = Watched(calls[c.name])
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run(watched)
            stop.record()
            torch.cuda.synchronize()
            if n >= 0:
                out[c.name].append((start.elapsed_time(stop), *watched.ms()))
    return out


def medians(taken: dict[str, list[tuple[float, float, float]]]) -> dict[str, dict[str, float]]:
    """whole, attention (by events), share of it, and the difference from the stack without attention; `spread`: of whole."""
    middle = {name: [statistics.median(x) for x in zip(*rows)] for name, rows in taken.items()}
    rest = middle[REST][0]
    out = {}
    for name, (whole, forward, backward) in middle.items():
        if name != REST:
            wholes = [r[0] for r in taken[name]]
            out[name] = {"whole": whole, "forward": forward, "backward": backward, "attention": forward + backward,
                         "share": (forward + backward) / whole, "beyond_rest": whole - rest, "rest": rest,
                         "spread": (max(wholes) - min(wholes)) / whole}
    return out


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="%(default)s")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="only compile fcgen's kernels, into the cache")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    if args.compile:
        Stack(1).results(ours)
        return 0
    stack = Stack(args.layers)
    ways, errors = checked(stack)
    problems = wrong(errors)
    for name, e in errors.items():
        print(f"{name:12} rms error: output {e[0]:.2e}, gradients at most {max(e[1:]):.2e}", flush=True)
    right = [w for w in ways if not any(p.startswith(f"{w.name}:") for p in problems)]
    result: dict[str, Any] = {}
    for part in ("prefill", "step"):
        found = medians(samples(stack, [*right, Checked(REST, lambda: None, 0.0, 0.0)], part, args.rounds))
        result[part] = found
        for name, t in found.items():
            print(f"{part:8} {name:12} {t['whole']:8.3f} ms, attention {t['attention']:7.3f} ms ({t['forward']:.3f} + {t['backward']:.3f}, "
                  f"{t['share']:.1%}), beyond rest {t['beyond_rest']:7.3f} ms, spread {t['spread']:.1%}", flush=True)
        if "fcgen" in found:
            over = [f"{t['attention'] / found['fcgen']['attention']:.3f} ({t['beyond_rest'] / found['fcgen']['beyond_rest']:.3f}) {name}"
                    for name, t in found.items() if name != "fcgen"]
            print(f"{part:8} attention of fcgen is faster by, of events (of differences): {', '.join(over)}", flush=True)
    print("\n".join(problems) or "all that was timed was right")
    shape = {"layers": args.layers, "hidden": HIDDEN, "heads": HEADS, "kv_heads": GROUPS, "head": HEAD, "wide": WIDE, "length": LENGTH}
    data = {"part": "llama", "environment": facts(), "shape": shape, "errors": errors, "table": result, "problems": problems}
    write_json(args.json, data)
    return bool(problems)


if __name__ == "__main__":
    raise SystemExit(main())
