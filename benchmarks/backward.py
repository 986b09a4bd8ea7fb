"""examples/backward.py beside FlashAttention-3's backward: TFLOP/s of five products (2.5 times the forward's), full, [B, S, H, D] inputs.

    python -m benchmarks.backward --fa3 .peers --heads 64,128 --length 4096 --json out/backward.json
    python -m benchmarks.backward --schedule "tiles={BLOCK_M: 64, BLOCK_N: 64}, warps=4, math=wgmma, copy=tma, epilogue=tma"

Gradients of the first heads are compared with float64. "kernel" is the kernel alone; "whole" also clears dQ, makes the row sums of O * dO
and rounds dQ, as FA3's call does.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fcgen as fc

from .environment import facts
from .peers import Absent, _unpacked, reason
from .pool import write_json
from .timing import Checked, finishes, round_robin

LOG2E = 1.4426950408889634
LIMIT = 2e-3
#: batch x length, heads x head
TOKENS, WIDTH = 16384, 2048
LENGTH = 4096
#: head -> what ran without spills; nothing was searched
SCHEDULES = {
    64: ["tiles={BLOCK_M: 64, BLOCK_N: 128}, warps=8, math=wgmma, copy=tma, epilogue=tma, stages={q: 2, do: 2}",
         "tiles={BLOCK_M: 64, BLOCK_N: 64}, warps=4, math=wgmma, copy=tma, epilogue=tma, stages={q: 2, do: 2}"],
    128: ["tiles={BLOCK_M: 64, BLOCK_N: 128}, warps=8, math=wgmma, copy=tma, epilogue=tma, stages={q: 2, do: 2}"],
}


def example() -> Any:
    folder = str(Path(__file__).resolve().parent.parent / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("backward").example


class Cell:
    """Inputs of one shape, and the exact gradients of its first batch and two heads."""

    def __init__(self, batch: int, length: int, heads: int, d: int):
        import torch

        torch.manual_seed(0)
        draw = lambda: torch.randn(batch, length, heads, d, device="cuda", dtype=torch.float16)
        self.q, self.k, self.v, self.do = draw(), draw(), draw(), draw()
        self.scale = d**-0.5
        self.work = 2.5 * 4 * batch * heads * length**2 * d
        q, k, v = (x.transpose(1, 2) for x in (self.q, self.k, self.v))
        self.o = torch.empty_like(self.q)
        self.lse = torch.empty(batch, heads, length, device="cuda")
        self.exact: dict[str, Any] = {"dQ": [], "dK": [], "dV": []}
        for b in range(batch):
            for h in range(heads):
                s = (q[b, h].float() @ k[b, h].float().T) * self.scale
                self.lse[b, h] = s.logsumexp(-1)
                self.o[b, :, h] = (s.softmax(-1) @ v[b, h].float()).half()
        for h in range(min(2, heads)):
            eq, ek, ev, edo = (x[0, :, h].double() for x in (self.q, self.k, self.v, self.do))
            p = ((eq @ ek.T) * self.scale).softmax(-1)
            ds = p * (edo @ ev.T - ((p @ ev) * edo).sum(-1, keepdim=True))
            for name, x in (("dQ", ds @ ek * self.scale), ("dK", ds.T @ eq * self.scale), ("dV", p.T @ edo)):
                self.exact[name].append(x)

    def error(self, dq: Any, dk: Any, dv: Any) -> tuple[float, float]:
        """(largest error, largest rms error over the rms) of [B, S, H, D] gradients; inf where something is not finite."""
        most = rms = 0.0
        for name, got in (("dQ", dq), ("dK", dk), ("dV", dv)):
            if not bool(got.isfinite().all()):
                return float("inf"), float("inf")
            for h, want in enumerate(self.exact[name]):
                diff = got[0, :, h].double() - want
                most, rms = max(most, diff.abs().max().item()), max(rms, (diff.norm() / want.norm()).item())
        return most, rms


def ours(cell: Cell, schedule: str, target: str) -> list[Checked]:
    import torch

    found, d = example(), cell.q.shape[-1]
    program = found.spec.compile(target=target, schedule=fc.Schedule.parse(schedule), check=False, T=fc.f16, D=d)
    program.built  # noqa: B018  (compiled before anything is timed)
    t = lambda x: x.transpose(1, 2)
    delta = (cell.o.float() * cell.do.float()).sum(-1).transpose(1, 2).contiguous()
    dq = torch.zeros(*t(cell.q).shape, device="cuda")
    dk, dv = torch.full_like(cell.k, float("nan")), torch.full_like(cell.v, float("nan"))
    call = {"Q": t(cell.q), "K": t(cell.k), "V": t(cell.v), "dO": t(cell.do), "LSE2": cell.lse * LOG2E, "Delta": delta, "dQ": dq,
            "dK": t(dk), "dV": t(dv), "scale": cell.scale}
    run = lambda: program.launcher(call)

    def whole() -> None:
        dq.zero_()
        delta.copy_((cell.o.float() * cell.do.float()).sum(-1).transpose(1, 2))
        run()
        dq.half()

    run()
    if not finishes():
        raise SystemExit(f"{schedule}: the kernel does not end")
    errors = cell.error(t(dq), dk, dv)
    r = program.resources
    print(f"{schedule}: {r.registers} registers, {r.spill_stores} bytes spilled, {r.shared_bytes} of shared memory")
    return [Checked(f"fcgen, kernel: {schedule}", run, *errors), Checked(f"fcgen, whole: {schedule}", whole, *errors)]


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
    back = _fa3(folder)
    run = lambda: back(cell.do, cell.q, cell.k, cell.v, cell.o, cell.lse, softmax_scale=cell.scale)
    return Checked("fa3", run, *cell.error(*run()[:3]))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="64,128", help="head sizes (%(default)s); heads x size is 2048")
    parser.add_argument("--length", type=int, help=f"{LENGTH}; batch x length is {TOKENS}")
    parser.add_argument("--schedule", action="append", metavar="TEXT", help="instead of those in this file; may be given again")
    parser.add_argument("--fa3", default=".peers", help="folder of benchmarks/get_fa3.sh (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    target = {"sm_90": "sm_90a"}.get(own := fc.gpu_target(), own)
    length, table, wrong = args.length or LENGTH, [], []
    for d in map(int, args.heads.split(",")):
        cell, ways = Cell(max(1, TOKENS // length), length, max(1, WIDTH // d), d), []
        try:
            ways.append(fa3(cell, args.fa3))
        except (Absent, OSError, RuntimeError) as error:
            print(f"fa3: {reason(error)}")
        for text in args.schedule or SCHEDULES[d]:
            try:
                ways += ours(cell, text, target)
            except fc.FcError as error:
                wrong.append(f"{text}: {(str(error).splitlines() or [''])[0]}")
        wrong += [f"{w.name}: rms error {w.rms_error:.1e}" for w in ways if not (w.rms_error or 0) <= LIMIT]
        right = [w for w in ways if (w.rms_error or 0) <= LIMIT]
        times = round_robin(right, max(2, round(10e-3 / (cell.work / 4e14))), args.rounds, warm=2) if right else {}
        for w in right:
            t = times[w.name]
            table.append({"head": d, "length": length, "name": w.name, "ms": t.ms, "spread": t.spread,
                          "tflops": cell.work / t.ms / 1e9, "rms_error": w.rms_error})
            print(f"D={d} {table[-1]['tflops']:6.0f} TFLOP/s  rms error {w.rms_error:.1e}  {w.name}")
    print("\n".join(wrong) or "all that was timed was right")
    write_json(args.json, {"part": "backward", "environment": facts(), "table": table, "problems": wrong})
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
