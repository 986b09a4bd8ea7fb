"""examples/backward.py beside FlashAttention-3's backward: TFLOP/s of five products (2.5 times the forward's), full, [B, S, H, D] inputs.

    python -m benchmarks.backward --fa3 .peers --heads 64,128 --length 4096 --json out/backward.json
    python -m benchmarks.backward --candidates schedules.txt       what else it could run with, in the same rounds

A candidate is a line "HEAD | options of the spec, as in causal=True turned=True | schedule". Gradients of the first heads are compared with
float64. "kernel" is the kernel alone; "whole" all three of the example, which is what FA3's call does: the row sums of O * dO and clearing
the sums in front of it, rounding them behind it.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import fcgen as fc

from .cells import BAD, Errors
from .environment import facts
from .peers import Absent, Call, _unpacked, reason
from .pool import processes, write_json
from .timing import Checked, finishes, round_robin

LOG2E = 1.4426950408889634
LIMIT = 2e-3
#: batch x length, heads x head
TOKENS, WIDTH = 16384, 2048
LENGTH = 4096
#: so many candidates are compiled in this process
SERIAL = 8
#: (head, options of the spec, schedule; "" is what `fc.schedule_for` chooses)
Candidate = tuple[int, dict[str, bool], str]
TILES = "warps=8, math=wgmma, copy=tma, epilogue=tma, stages={q: 2, do: 2}, tiles="
SCHEDULES: list[Candidate] = [(64, {}, TILES + "{BLOCK_M: 128, BLOCK_N: 128}"), (128, {}, TILES + "{BLOCK_M: 64, BLOCK_N: 128}"),
                              (128, {"turned": True}, TILES + "{BLOCK_M: 80, BLOCK_N: 128}"), (64, {}, ""), (128, {}, "")]


def example() -> Any:
    folder = str(Path(__file__).resolve().parent.parent / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("backward").example


class Cell:
    """Inputs of one shape, and the exact gradients of its first batch and two heads."""

    def __init__(self, batch: int, length: int, heads: int, d: int, causal: bool = False, dtype: str = "float16", groups: int = 1,
                 window: int = 0):
        """groups: heads of rows for each of keys. window: rows see so many keys in front of their own, and none behind it."""
        import torch

        torch.manual_seed(0)
        draw = lambda h: torch.randn(batch, length, h, d, device="cuda", dtype=getattr(torch, dtype))
        self.q, self.k, self.v, self.do = draw(heads), draw(heads // groups), draw(heads // groups), draw(heads)
        self.scale, self.causal, self.groups, self.window = d**-0.5, causal, groups, window
        share = min(1.0, window / length) if window else 0.5 if causal else 1.0
        self.work = 2.5 * 4 * batch * heads * length**2 * d * share
        dead = torch.ones(length, length, device="cuda", dtype=torch.bool).triu(1)
        if window:
            dead |= ~dead.new_ones(dead.shape).triu(-window)
        masked = lambda s: s.masked_fill_(dead, -float("inf")) if causal or window else s
        q, k, v = (x.transpose(1, 2) for x in (self.q, self.k, self.v))
        self.o = torch.empty_like(self.q)
        self.lse = torch.empty(batch, heads, length, device="cuda")
        for b in range(batch):
            for h in range(heads):
                s = masked((q[b, h].float() @ k[b, h // groups].float().T) * self.scale)
                self.lse[b, h] = s.logsumexp(-1)
                self.o[b, :, h] = (s.softmax(-1) @ v[b, h // groups].float()).to(self.o.dtype)
        self.exact: dict[str, Any] = {"dQ": [], "dK": [], "dV": []}
        for g in range(min(2, heads // groups) if groups == 1 else 1):
            dk, dv = 0.0, 0.0
            for h in range(g * groups, (g + 1) * groups):
                eq, ek, ev, edo = (x[0, :, n].double() for x, n in ((self.q, h), (self.k, g), (self.v, g), (self.do, h)))
                p = masked((eq @ ek.T) * self.scale).softmax(-1)
                ds = p * (edo @ ev.T - ((p @ ev) * edo).sum(-1, keepdim=True))
                self.exact["dQ"].append(ds @ ek * self.scale)
                dk, dv = dk + ds.T @ eq * self.scale, dv + p.T @ edo
            self.exact["dK"].append(dk)
            self.exact["dV"].append(dv)

    def error(self, dQ: Any, dK: Any, dV: Any) -> tuple[float, float]:
        """(largest error, largest rms error over the rms) of [B, S, H, D] gradients; inf where something is not finite."""
        found = self.errors({"dQ": dQ, "dK": dK, "dV": dV})
        return found.max, found.rms

    def errors(self, grads: dict[str, Any]) -> Errors:
        """Of some of the gradients; BAD where something is not finite."""
        most = rms = 0.0
        for name, got in grads.items():
            if not bool(got.isfinite().all()):
                return BAD
            for h, want in enumerate(self.exact[name]):
                diff = got[0, :, h].double() - want
                most, rms = max(most, diff.abs().max().item()), max(rms, (diff.norm() / want.norm()).item())
        return Errors(most, rms)

    def arguments(self, which: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of one of the library's programs (`pool.BACKWARD`); and [B, S, H, D] views of the gradients in them. The one that adds up dQ
        leaves the scale to who rounds it."""
        import torch

        t = lambda x: x.transpose(1, 2)
        delta = (self.o.float() * self.do.float()).sum(-1).transpose(1, 2).contiguous()
        given = {"Q": t(self.q), "K": t(self.k), "V": t(self.v), "dO": t(self.do), "LSE2": self.lse * LOG2E, "Delta": delta,
                 "scale": self.scale}
        empty = lambda x: torch.full_like(x, float("nan"))
        sums = torch.zeros(t(self.q).shape, device="cuda")
        into = {} if which == "backward_rows" else {"dK": t(empty(self.k)), "dV": t(empty(self.v))}
        if which != "backward_keys":
            into["dQ"] = sums if into else t(empty(self.q))
        if which == "backward_in_turn":
            into["Turns"] = torch.zeros_like(self.lse, dtype=torch.int32)
        if which == "backward_rows":
            given |= {"O": t(self.o), "LSE": self.lse, "LSE2": torch.empty_like(self.lse), "Delta": torch.empty_like(self.lse)}
        return {**given, **into}, {name: t(x) for name, x in into.items() if name != "Turns"}


def named(grads: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(("dQ", "dK", "dV"), grads))


def cudnn(cell: Cell) -> Call:
    """The backward pass of torch's scaled_dot_product_attention, of a forward call that was made once."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if cell.window:
        raise Absent("no window")
    inputs = [x.detach().transpose(1, 2).requires_grad_() for x in (cell.q, cell.k, cell.v)]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=cell.causal, enable_gqa=cell.groups > 1)
    run = functools.partial(torch.autograd.grad, out, inputs, cell.do.transpose(1, 2), retain_graph=True)
    return Call(run, lambda grads: named([x.transpose(1, 2) for x in grads]))


def fa3_call(folder: str, cell: Cell) -> Call:
    seen = {"window_size_left": cell.window, "window_size_right": 0} if cell.window else {"is_causal": cell.causal}
    run = functools.partial(_fa3(folder), cell.do, cell.q, cell.k, cell.v, cell.o, cell.lse, softmax_scale=cell.scale, **seen)
    return Call(run, lambda grads: named(grads[:3]))


def peers(names: Sequence[str], folder: str) -> tuple[dict[str, Callable[[Cell], Call]], dict[str, str]]:
    """(name -> the backward pass of a peer, name -> why it is absent)."""
    here: dict[str, Callable[[Cell], Call]] = {"cudnn": cudnn, "fa3": functools.partial(fa3_call, folder)}
    absent: dict[str, str] = {}
    try:
        _fa3(folder)
    except Exception as error:  # in whatever way a library says that it cannot run here
        absent["fa3"] = reason(error)
    return {n: here[n] for n in names if n in here and n not in absent}, absent


def compiled(candidate: Candidate, target: str) -> fc.Program:
    d, options, text = candidate
    schedule = fc.Schedule.parse(text) if text else None
    program: fc.Program = example().spec.compile(target=target, schedule=schedule, check=False, T=fc.f16, D=d, **options)
    program.built  # noqa: B018  (compiled before anything is timed)
    return program


def others(d: int, target: str) -> list[fc.Program]:
    """What runs in front of the kernel and behind it."""
    example()
    module = importlib.import_module("backward")
    return [spec.compile(target=target, check=False, T=fc.f16, D=d) for spec in (module.prepare, module.finish)]


def build(candidate: Candidate, target: str) -> str:
    """Compiled into the disk cache, in a process of its own; why not, if it is not."""
    try:
        compiled(candidate, target)
    except Exception as error:  # it is reported with the candidate, the others go on
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


def called(candidate: Candidate, program: fc.Program) -> str:
    text = f"{program.schedule} (chosen)" if not candidate[2] else candidate[2]
    return " ".join([*(name for name, on in candidate[1].items() if on), text])


def ours(cell: Cell, candidate: Candidate, target: str, all_of_it: bool) -> list[Checked]:
    import torch

    program, (prepare, finish) = compiled(candidate, target), others(candidate[0], target)
    t = lambda x: x.transpose(1, 2)
    empty = lambda *like: torch.full(like, float("nan"), device="cuda")
    lse2, delta, sums = empty(*cell.lse.shape), empty(*cell.lse.shape), empty(*t(cell.q).shape)
    dq, dk, dv = (torch.full_like(x, float("nan")) for x in (cell.q, cell.k, cell.v))
    before = prepare.launcher, {"O": t(cell.o), "dO": t(cell.do), "LSE": cell.lse, "LSE2": lse2, "Delta": delta, "Sums": sums}
    kernel = program.launcher, {"Q": t(cell.q), "K": t(cell.k), "V": t(cell.v), "dO": t(cell.do), "LSE2": lse2, "Delta": delta,
                                "Sums": sums, "dK": t(dk), "dV": t(dv), "scale": cell.scale}
    after = finish.launcher, {"Sums": sums, "dQ": t(dq), "scale": cell.scale}
    run = lambda *steps: [launch(call) for launch, call in steps]
    run(before, kernel, after)
    name = called(candidate, program)
    if not finishes():
        raise SystemExit(f"{name}: the kernel does not end")
    errors = cell.error(dq, dk, dv)
    r = program.resources
    print(f"{name}: {r.registers} registers, {r.spill_stores} bytes spilled, {r.shared_bytes} of shared memory", flush=True)
    parts = {"kernel": (kernel,), **({"whole": (before, kernel, after), "in front": (before,), "behind": (after,)} if all_of_it else {})}
    return [Checked(f"fcgen, {part}: {name}", functools.partial(run, *steps), *errors) for part, steps in parts.items()]


def where(off: Any) -> str:
    """How many numbers of a [B, H, rows, columns] tensor are marked, and where in the first head that has some."""
    at = off.nonzero()
    mine = at[(at[:, :2] == at[0, :2]).all(1)]
    low, high = mine.amin(0).tolist(), mine.amax(0).tolist()
    return f"{len(at)} numbers; of {low[:2]} in rows {low[2]} to {high[2]}, columns {low[3]} to {high[3]}"


def repeated(cell: Cell, candidate: Candidate, target: str, times: int) -> list[str]:
    """What differs between runs: dK and dV are sums in one order, bit for bit the same; those of Sums differ by rounding. With where."""
    import torch

    t = lambda x: x.transpose(1, 2)
    program = compiled(candidate, target)
    delta = (cell.o.float() * cell.do.float()).sum(-1).transpose(1, 2).contiguous()
    said: list[str] = []
    first: dict[str, Any] = {}
    for n in range(times):
        out = {"Sums": torch.zeros(*t(cell.q).shape, device="cuda"), "dK": torch.full_like(t(cell.k), float("nan")),
               "dV": torch.full_like(t(cell.v), float("nan"))}
        program(Q=t(cell.q), K=t(cell.k), V=t(cell.v), dO=t(cell.do), LSE2=cell.lse * LOG2E, Delta=delta, scale=cell.scale, **out)
        first = first or out
        for name, x in out.items():
            off = (x.float() - first[name].float()).abs() > (1e-4 if name == "Sums" else 0)
            if n and bool(off.any()):
                most = (x.float() - first[name].float()).abs().max().item()
                said.append(f"    run {n}: {name} differs by {most:.1e} in {where(off)}")
    return [f"{called(candidate, program)}: {len(said)} differences in {times} runs", *said[:12]]


@functools.cache
def _fa3(folder: str) -> Any:
    import ctypes

    import torch

    path = Path(folder).resolve()
    library = _unpacked(path)
    ctypes.CDLL(f"{path}/libcudart.so.12", mode=ctypes.RTLD_GLOBAL)
    torch.ops.load_library(str(library))
    return torch.ops.flash_attn_3.bwd


def fa3(cell: Cell, folder: str) -> Checked:
    call = fa3_call(folder, cell)
    return Checked("fa3", call.run, *cell.error(**call.output(call.run())))


def read(path: str) -> list[Candidate]:
    text = Path(path).read_text(encoding="utf-8")
    lines = [[x.strip() for x in line.split("|", 2)] for line in text.splitlines() if "|" in line]
    switches = lambda words: {name: on == "True" for name, _, on in (x.partition("=") for x in words.split())}
    return [(int(d), switches(options), text) for d, options, text in lines]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="64,128", help="head sizes (%(default)s); heads x size is 2048")
    parser.add_argument("--length", type=int, help=f"{LENGTH}; batch x length is {TOKENS}")
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--candidates", metavar="FILE", help="besides those in this file")
    parser.add_argument("--fa3", default=".peers", help="folder of benchmarks/get_fa3.sh (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeat", type=int, default=0, metavar="N", help="instead of timing, say what differs between N runs")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    target = fc.gpu_target()
    length, table, wrong = args.length or LENGTH, [], []
    heads = list(map(int, args.heads.split(",")))
    branch = ", split=branch" if args.causal else ""  # loops with a mask of their own have no registers for their addresses
    found = [(d, {**options, **({"causal": True} if args.causal else {})}, text + branch if text and "split" not in text else text)
             for d, options, text in [*SCHEDULES, *(read(args.candidates) if args.candidates else [])] if d in heads]
    found = [c for n, c in enumerate(found) if c not in found[:n]]
    if len(found) > SERIAL:
        with ProcessPoolExecutor(min(processes(), len(found)), mp_context=multiprocessing.get_context("spawn")) as pool:
            reasons = list(pool.map(build, found, [target] * len(found)))
    else:
        reasons = [build(c, target) for c in found]
    wrong += [f"{c[0]} {c[1]} {c[2]}: {why}" for c, why in zip(found, reasons) if why]
    for d in heads:
        cell, ways = Cell(max(1, TOKENS // length), length, max(1, WIDTH // d), d, args.causal), []
        if args.repeat:
            for c in [c for c, why in zip(found, reasons) if c[0] == d and not why]:
                print("\n".join(repeated(cell, c, target, args.repeat)), flush=True)
            continue
        try:
            ways.append(fa3(cell, args.fa3))
        except (Absent, OSError, RuntimeError) as error:
            print(f"fa3: {reason(error)}")
        for c in [c for c, why in zip(found, reasons) if c[0] == d and not why]:
            ways += ours(cell, c, target, found.index(c) < sum(s[0] in heads for s in SCHEDULES))
        wrong += [f"{w.name}: rms error {w.rms_error:.1e}" for w in ways if not (w.rms_error or 0) <= LIMIT]
        right = [w for w in ways if (w.rms_error or 0) <= LIMIT]
        times = round_robin(right, max(2, round(10e-3 / (cell.work / 4e14))), args.rounds, warm=2) if right else {}
        for w in sorted(right, key=lambda w: times[w.name].ms):
            t = times[w.name]
            table.append({"head": d, "length": length, "causal": args.causal, "name": w.name, "ms": t.ms, "spread": t.spread,
                          "tflops": cell.work / t.ms / 1e9, "rms_error": w.rms_error})
            print(f"D={d} {table[-1]['tflops']:6.0f} TFLOP/s  rms error {w.rms_error:.1e}  {w.name}")
    print("\n".join(wrong) or "all that was timed was right")
    write_json(args.json, {"part": "backward", "environment": facts(), "table": table, "problems": wrong})
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
