"""`fcgen demo`: one attention kernel through every level, with its error and its cost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..api import gpu_available
from ..build import compiler
from ..build.program import Program
from ..errors import FcError
from ..ir.types import f16
from .console import Steps, milliseconds, waiting, write_levels, written
from .specs import default_target

#: batch, heads, key heads, rows, keys, head size of what is simulated
SIMULATED = (1, 2, 1, 150, 200, 64)
#: of what is timed on a GPU, and what the schedule is chosen for: batch, heads, rows and keys, head size
TIMED = (4, 16, 2048, 64)


def run_demo(target: str | None, out: Path) -> None:
    from ..kernels.attention import attention
    from ..kernels.reference import attention_reference
    from ..kernels.schedules import choose
    from ..sim.machine import check
    from ..sim.tile import interpret

    arch = target or default_target()
    to = compiler.target(arch)
    mask, d = "causal_bottom_right", SIMULATED[-1]
    schedule, lazy, sums = choose(arch, TIMED, TIMED, d, mask, sms=132)
    b, h, g, m, n, _ = SIMULATED
    click.echo(f"attention f16, causal, for {arch}\n"
               f"sizes     B={b} H={h} G={g} M={m} N={n} D={d} (batch, heads, heads of K and V, rows, keys, head size)\n"
               f"schedule  {schedule}\n")

    start = time.perf_counter()
    tile = attention.trace(dict(schedule.tiles), T=f16, D=d, E=d, mask=mask, lazy=lazy, sums=sums)
    traced = milliseconds(start)
    program = Program(tile, schedule, arch)
    program.trust = True  # it is simulated here
    start = time.perf_counter()
    machine = program.machine
    click.echo(f"traced    {count(tile)} tile ops in {traced}, lowered to {count(machine)} machine ops in {milliseconds(start)}")

    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((b, heads, length, d)).astype(np.float16) for heads, length in ((h, m), (g, n), (g, n)))
    want, want_lse = attention_reference(q, k, v, mask=mask)
    inputs = {"Q": q, "K": k, "V": v, "scale": d**-0.5}
    start = time.perf_counter()
    got = interpret(tile, inputs)
    click.echo(f"tile IR   interpreted in {milliseconds(start)}: max error {worst(got['O'], want):.1e} against float64")
    start = time.perf_counter()
    result = waiting("simulating", lambda: check(machine, inputs, to))
    click.echo(f"machine   simulated in {milliseconds(start)} ({result.steps} steps of {machine.warps} warps): max error "
               f"{worst(result.outputs['O'], want):.1e}, log-sum-exp {worst(result.outputs['LSE'], want_lse):.1e}; no race, no stale read")

    start = time.perf_counter()
    program.progress = steps = Steps()
    built = waiting("compiling", lambda: program.built)
    r = program.resources
    how = f"from the cache in {milliseconds(start)}" if built.cached else f"compiled in {milliseconds(start)} ({steps.text()})"
    click.echo(f"CUDA C++  {len(built.cuda_text.splitlines())} lines\n"
               f"cubin     {how}\n"
               f"          {r.registers} registers, {r.spill_stores} B spilled, {r.shared_bytes} B shared memory, "
               f"{r.stack_bytes} B stack, {built.facts.threads} threads")
    for line in written(waiting("writing", lambda: write_levels(program, out)), 9):
        click.echo(line)
    if gpu_available() and runs_here(program):
        on_gpu(program, mask)
    else:
        click.echo("\nno GPU here that runs this: the kernel was checked in the simulator and compiled, not run")
    click.echo(f"\nnext: fcgen dump {out}/attention.tile.fc --target {arch} --stop-after place\n"
               f"      cp -r {out} mine, edit mine/attention.machine.fc, then: fcgen build mine/attention.machine.fc")


def count(kernel: Any) -> int:
    from ..ir.core import walk_kernel

    return sum(1 for _ in walk_kernel(kernel))


def worst(got: np.ndarray, want: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        same = (got == want) | (np.isneginf(got) & np.isneginf(want))
        return float(np.max(np.where(same, 0.0, np.abs(np.asarray(got, np.float64) - want))))


def runs_here(program: Program) -> bool:
    from ..launch import check_arch

    try:
        check_arch(program.built.facts, 0)
    except FcError:
        return False
    return True


def on_gpu(program: Program, mask: str) -> None:
    """Run beside PyTorch where torch is installed, else only against the reference."""
    import importlib.util

    from ..kernels.reference import attention_reference

    if importlib.util.find_spec("torch") is None:
        click.echo("\ntorch is not installed: pip install 'fcgen[torch]' to run the kernel on the GPU here")
        return
    import torch

    b, h, s, d = TIMED
    q, k, v = (torch.randn(b, s, h, d, device="cuda", dtype=torch.float16).transpose(1, 2) for _ in range(3))
    o = torch.full_like(q, float("nan"))
    lse = torch.full((b, h, s), float("nan"), device="cuda")
    run = lambda: program(q, k, v, o, lse, scale=d**-0.5)
    run()
    torch.cuda.synchronize()
    host = [x[:1, :2].float().cpu().numpy() for x in (q, k, v)]
    want, _ = attention_reference(*host, mask=mask)
    error = worst(o[:1, :2].float().cpu().numpy(), want)
    sdpa = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    times = timed(torch, {"fcgen": run, "PyTorch": sdpa})
    flops = 2 * b * h * s * s * d
    click.echo(f"\non {torch.cuda.get_device_name()}: B={b} H={h} S={s} D={d} causal, max error {error:.1e}\n"
               + "\n".join(f"  {name:8} {t * 1e3:7.1f} us  {flops / t / 1e9:5.0f} TFLOP/s" for name, t in times.items()))


def timed(torch: Any, runs: dict[str, Any]) -> dict[str, float]:
    """Milliseconds each, in turns, medians of 9."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(10):
        for name, run in runs.items():
            a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            a.record()
            for _ in range(10):
                run()
            b.record()
            torch.cuda.synchronize()
            if turn:
                samples[name].append(a.elapsed_time(b) / 10)
    return {name: sorted(x)[len(x) // 2] for name, x in samples.items()}
