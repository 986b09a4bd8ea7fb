"""Host time of a call: what Python and the driver spend before `fcgen.attention` returns, on a GPU that never makes them wait.

    python -m benchmarks.host_time [--interfaces] [--out FILE.json]

Rows: `fcgen.attention` (output made, output given, with log-sum-exp), torch's SDPA with each backend that takes the problem, the bare
launch of the same kernel (arguments packed before), and the pieces. Each number is the median over rounds of the mean over `--calls` calls.
The queue is drained between rounds, and `--calls` stays below its depth (about a thousand launches), so that the GPU makes nobody wait.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import environment

Shape = tuple[int, int, int, int]
NAN = float("nan")
SHAPE: Shape = (1, 8, 512, 64)


def host_us(run: Callable[[], Any], calls: int, rounds: int) -> float:
    """Microseconds of host time per call."""
    import torch

    for _ in range(20):
        run()
    samples = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        for _ in range(calls):
            run()
        samples.append((time.perf_counter_ns() - start) / calls / 1000)
    torch.cuda.synchronize()
    return statistics.median(samples)


def candidates(shape: Shape, causal: bool, interfaces: bool = False) -> dict[str, Callable[[], Any]]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    import fcgen

    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.float16) for _ in range(3))
    out = torch.empty_like(q)
    turn = [0]
    many = [tuple(torch.randn(shape, device="cuda", dtype=torch.float16) for _ in range(3)) for _ in range(16)]

    def moving() -> Any:
        turn[0] = (turn[0] + 1) % 16
        return fcgen.attention(*many[turn[0]], causal=causal, out=out)

    runs: dict[str, Callable[[], Any]] = {
        "fcgen.attention": lambda: fcgen.attention(q, k, v, causal=causal),
        "fcgen.attention, out given": lambda: fcgen.attention(q, k, v, causal=causal, out=out),
        "fcgen.attention, out given, other tensors each call": moving,
        "fcgen.attention, log-sum-exp": lambda: fcgen.attention(q, k, v, causal=causal, return_lse=True),
        "bare launch": bare(q, k, v, out, causal),
        "torch SDPA": lambda: sdpa(q, k, v, is_causal=causal),
    }
    runs |= of_lengths(shape, causal) | learning(q, k, v, causal)
    if interfaces:
        runs |= with_functions(q, k, v, causal) | through_interfaces(q, k, v, causal)
    runs["torch.empty_like"] = lambda: torch.empty_like(q)
    steps, of = q.stride(), {"dtype": q.dtype, "device": q.device}
    runs["torch.empty_strided"] = lambda: torch.empty_strided(shape, steps, **of)
    runs["shape, stride, dtype, device of one tensor"] = lambda: (q.shape, q.stride(), q.dtype, q.device)
    runs["data_ptr"] = q.data_ptr
    runs["raw stream"] = lambda: torch._C._cuda_getCurrentRawStream(0)
    return runs


def of_lengths(shape: Shape, causal: bool) -> dict[str, Callable[[], Any]]:
    """Lengths that no call had before: a decode loop over a cache of keys and values, and sequences of any length."""
    import torch

    import fcgen

    b, h, _, d = shape
    q, k, v = (torch.randn(b, h, n, d, device="cuda", dtype=torch.float16) for n in (1, 4096, 4096))
    cache = [(k[:, :, :n], v[:, :, :n]) for n in range(1024, 4096)]
    short = [tuple(x[:, :, :n] for x in (k, k, v)) for n in range(64, 1024)]
    turn = [0, 0]

    def decode() -> Any:
        turn[0] = (turn[0] + 1) % len(cache)
        return fcgen.attention(q, *cache[turn[0]], causal="bottom_right")

    def square() -> Any:
        turn[1] = (turn[1] + 1) % len(short)
        return fcgen.attention(*short[turn[1]], causal=causal)

    return {"fcgen.attention, one row, another number of keys each call": decode, "fcgen.attention, another length each call": square}


def learning(q: Any, k: Any, v: Any, causal: bool) -> dict[str, Callable[[], Any]]:
    """A call through which gradients flow, and its backward pass: of three kernels, or of two where q's gradient has a pass of its own."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    import fcgen

    xs, into = [x.detach().requires_grad_() for x in (q, k, v)], torch.randn_like(q)
    ways = {"fcgen.attention": lambda: fcgen.attention(*xs, causal=causal), "torch SDPA": lambda: sdpa(*xs, is_causal=causal)}
    runs: dict[str, Callable[[], Any]] = {}
    for name, call in ways.items():
        runs[f"{name}, learning"] = call
        runs[f"{name}, its backward pass"] = functools.partial(torch.autograd.grad, call(), xs, into, retain_graph=True)
    return runs


def with_functions(q: Any, k: Any, v: Any, causal: bool) -> dict[str, Callable[[], Any]]:
    """Calls whose functions hold numbers and tensors, and packed sequences."""
    import torch

    import fcgen
    from fcgen import masks, scores

    cap, slopes = 20.0, torch.rand(q.shape[1], device="cuda")
    ids = torch.arange(q.shape[2], device="cuda", dtype=torch.int32) // 100
    a, b, c = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))
    ends = torch.tensor([0, 100, 100, q.shape[2]], device="cuda", dtype=torch.int32)

    def biased(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s + slopes[h] * (j - i).to(fcgen.f32)

    window = masks.window(100, 0)
    return {
        "fcgen.attention, a score function with a tensor": lambda: fcgen.attention(q, k, v, causal=causal, score=biased),
        "fcgen.attention, a soft cap made at each call": lambda: fcgen.attention(q, k, v, causal=causal, score=scores.soft_cap(cap)),
        "fcgen.attention, a window": lambda: fcgen.attention(q, k, v, mask=window),
        "fcgen.attention, a window and causal, made at each call":
            lambda: fcgen.attention(q, k, v, mask=masks.causal() & masks.window(100)),
        "fcgen.attention, documents (three kernels)": lambda: fcgen.attention(q, k, v, mask=masks.documents(ids)),
        "fcgen.attention, sinks": lambda: fcgen.attention(q, k, v, causal=causal, sinks=slopes),
        "fcgen.attention_varlen (two kernels)": lambda: fcgen.attention_varlen(a, b, c, ends, causal=causal)}


def through_interfaces(q: Any, k: Any, v: Any, causal: bool) -> dict[str, Callable[[], Any]]:
    """The same call by the names that PyTorch and FlashAttention have for it, and by the operator that graphs hold."""
    import torch

    import fcgen
    from fcgen.compat import flash_attn_interface as flash

    word = "top_left" if causal else "none"
    a, b, c = (x.transpose(1, 2) for x in (q, k, v))
    n, ends = q.shape[2], torch.tensor([0, q.shape[2] // 4, q.shape[2]], device="cuda", dtype=torch.int32)
    mask = torch.ones(q.shape[2], k.shape[2], device="cuda", dtype=torch.bool).tril()
    compiled = torch.compile(lambda q, k, v: fcgen.scaled_dot_product_attention(q, k, v, is_causal=causal), fullgraph=True)
    from torch.nn.attention.flex_attention import create_block_mask

    slopes = torch.rand(q.shape[1], device="cuda")
    block = create_block_mask(lambda b, h, i, j: i >= j, None, None, q.shape[2], k.shape[2], device="cuda")

    def biased(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s - slopes[h] * (i - j)

    sdpa = torch.compile(lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal), fullgraph=True)
    return {
        "fcgen.scaled_dot_product_attention": lambda: fcgen.scaled_dot_product_attention(q, k, v, is_causal=causal),
        "fcgen.scaled_dot_product_attention, a mask of bools": lambda: fcgen.scaled_dot_product_attention(q, k, v, mask),
        "fcgen.flex_attention": lambda: fcgen.flex_attention(q, k, v),
        "fcgen.flex_attention, a block mask and a score_mod": lambda: fcgen.flex_attention(q, k, v, biased, block),
        "fcgen's flash_attn_func": lambda: flash.flash_attn_func(a, b, c, causal=causal),
        "fcgen's flash_attn_func, a window": lambda: flash.flash_attn_func(a, b, c, causal=causal, window_size=(64, 0)),
        "fcgen's flash_attn_varlen_func (two kernels)":
            lambda: flash.flash_attn_varlen_func(a[0], b[0], c[0], ends, ends, n, n, causal=causal),
        "the operator fcgen::attention": lambda: torch.ops.fcgen.attention.default(q, k, v, word, None),
        "compiled by torch, fcgen inside": lambda: compiled(q, k, v), "compiled by torch, SDPA inside": lambda: sdpa(q, k, v)}


def sdpa_backends(shape: Shape, causal: bool, calls: int, rounds: int) -> dict[str, float]:
    """torch's SDPA with one backend at a time; its choice is made once, outside of what is timed."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.float16) for _ in range(3))
    out = {}
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)):
        with sdpa_kernel(backend):
            try:
                out[f"torch SDPA, {name}"] = host_us(lambda: sdpa(q, k, v, is_causal=causal), calls, rounds)
            except RuntimeError as error:
                print(f"# {name} does not take this problem: {str(error).splitlines()[0]}")
    return out


def bare(q: Any, k: Any, v: Any, out: Any, causal: bool) -> Callable[[], Any]:
    """The driver's launch of the kernel that `fcgen.attention` runs, arguments packed before."""
    import torch

    from fcgen.attend import forward

    mask, scale = "causal_top_left" if causal else "none", q.shape[3] ** -0.5
    program = forward._program("f16", q.get_device(), q.shape, k.shape, v.shape[3], mask, scale, False, None)
    plan, values, device = program.launcher.resolve({"Q": q, "K": k, "V": v, "O": out, "scale": scale})
    stream = torch._C._cuda_getCurrentRawStream(device)
    plan.launch(stream, values)
    block, start = next(iter(plan.frame.ready.values())), plan.frame.start
    return lambda: start(block.config, block.params)


def measure(shape: Shape = SHAPE, calls: int = 200, rounds: int = 31, masks: tuple[bool, ...] = (False, True),
            interfaces: bool = False) -> list[dict[str, Any]]:
    rows = []
    for causal in masks:
        times = {name: host_us(run, calls, rounds) for name, run in candidates(shape, causal, interfaces).items()}
        times |= sdpa_backends(shape, causal, calls, rounds)
        rows += [{"what": name, "causal": causal, "us": round(us, 2)} for name, us in times.items()]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    by_name: dict[str, dict[bool, float]] = {}
    for r in rows:
        by_name.setdefault(r["what"], {})[r["causal"]] = r["us"]
    width = max(map(len, by_name))
    lines = [f"{'us of host time per call':{width}}  full  causal"]
    lines += [f"{name:{width}} {us.get(False, NAN):5.2f}   {us.get(True, NAN):5.2f}" for name, us in by_name.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=4, default=SHAPE, metavar=("B", "H", "S", "D"))
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--quick", action="store_true", help="only causal, 7 rounds: about 5 seconds")
    parser.add_argument("--interfaces", action="store_true", help="also by PyTorch's and FlashAttention's names, and compiled by torch")
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args()
    rows = measure(tuple(args.shape), args.calls, 7 if args.quick else args.rounds, (True,) if args.quick else (False, True),
                   args.interfaces)
    print(table(rows))
    said = json.dumps({"facts": environment.facts(), "shape": args.shape, "calls": args.calls, "rounds": args.rounds, "rows": rows})
    print(said)
    if args.out:
        args.out.write_text(said + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
