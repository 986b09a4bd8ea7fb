"""The library's attention kernels as jobs: plain values that a process pool can compile and a benchmark can run.

In: dtype, head sizes, mask and schedule. Out: programs, and reports on their registers and spills. Compiling goes through the disk cache:
what the pool has built, the parent finds there.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any

import fcgen as fc
from fcgen.kernels.attention import SPECS
from fcgen.kernels.schedules import pick

#: threshold of the lazy maximum that the WMMA schedules are used with: a factor of 2**8
LAZY = 8 * math.log(2)
MASKS = {False: "none", True: "causal_top_left"}


@dataclass(frozen=True)
class Job:
    """One compiled kernel. spec: a key of fcgen.kernels.attention.SPECS ("plain": without the log-sum-exp)."""

    d: int
    mask: str
    schedule: fc.Schedule
    arch: str
    dtype: str = "f16"
    e: int | None = None
    spec: str = "plain"
    lazy: float = 0.0

    def program(self) -> Any:
        return _program(self)

    @property
    def label(self) -> str:
        return f"D={self.d} {self.dtype} {self.mask}: {self.schedule}" + (f", lazy={self.lazy:.3g}" if self.lazy else "")


@functools.lru_cache(maxsize=4096)
def _program(job: Job) -> Any:
    from fcgen.ir.types import DTYPES

    return SPECS[job.spec].compile(target=job.arch, schedule=job.schedule, T=DTYPES[job.dtype], D=job.d, E=job.e or job.d,
                                   mask=job.mask, lazy=job.lazy)


def library_job(math_: str, d: int, causal: bool, arch: str, dtype: str = "f16", spec: str = "plain") -> Job:
    """The schedule that the library's own table has for this head size and mask. WMMA comes with the lazy maximum."""
    mask = MASKS[causal]
    return Job(d, mask, pick(arch, d, math_, mask), arch, dtype, spec=spec, lazy=LAZY if math_ == "wmma" else 0.0)


@dataclass(frozen=True)
class Report:
    """What compiling gave. error: why there is no kernel."""

    seconds: float
    cached: bool = False
    registers: int = 0
    spill_bytes: int = 0
    stack_bytes: int = 0
    smem_bytes: int = 0
    threads: int = 0
    error: str = ""

    @property
    def usable(self) -> bool:
        return not self.error and not self.spill_bytes

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def report(program: Any) -> Report:
    """Compile a program (or find it in the cache) and say what it needs."""
    start = time.perf_counter()
    try:
        built, r = program.built, program.resources
    except fc.FcError as error:
        return Report(time.perf_counter() - start, error=f"{error.code}: {error.message} (got {error.got})")
    spilled = (r.spill_stores or 0) + (r.spill_loads or 0) if r.spill_stores is not None else r.stack_bytes
    return Report(time.perf_counter() - start, built.cached, r.registers, spilled, r.stack_bytes, built.facts.smem_bytes + r.shared_bytes,
                  built.facts.threads)


def _compile(job: Any) -> Report:
    start = time.perf_counter()
    try:
        return report(job.program())
    except fc.FcError as error:
        return Report(time.perf_counter() - start, error=f"{error.code}: {error.message} (got {error.got})")
    except Exception as error:  # one candidate must not end a sweep
        return Report(time.perf_counter() - start, error=f"{type(error).__name__}: {error}"[:500])


def precompile(jobs: Iterable[Any], workers: int | None = None, limit_s: float = 300.0) -> dict[Any, Report]:
    """Compile jobs (anything hashable and picklable with a `program()`) in processes of their own. Those that have not finished after
    limit_s are reported as failed."""
    wanted = list(dict.fromkeys(jobs))
    workers = min(workers or os.cpu_count() or 1, max(1, len(wanted)))
    if workers == 1 or len(wanted) < 2:
        return {job: _compile(job) for job in wanted}
    # not fork: the parent may hold a CUDA context
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    futures = {job: pool.submit(_compile, job) for job in wanted}
    _, late = wait(futures.values(), timeout=limit_s)
    out = {}
    for job, future in futures.items():
        if future in late:
            out[job] = Report(limit_s, error=f"not compiled within {limit_s:.0f} s")
        elif future.exception() is not None:
            out[job] = Report(0.0, error=f"{type(future.exception()).__name__}: {future.exception()}"[:500])
        else:
            out[job] = future.result()
    processes = list((pool._processes or {}).values()) if late else []
    pool.shutdown(wait=not late, cancel_futures=True)
    for process in processes:
        process.terminate()
    return out


def report_failures(reports: Mapping[Any, Report]) -> list[str]:
    """Lines about the jobs that gave no kernel or one that spills."""
    out = [f"  {getattr(job, 'label', job)}: {r.error or f'spills {r.spill_bytes} bytes at {r.registers} registers'}"
           for job, r in reports.items() if not r.usable]
    return [f"{len(reports)} kernels, {sum(r.usable for r in reports.values())} usable, "
            f"{sum(r.cached for r in reports.values())} from the cache", *out]


class Caller:
    """Runs programs on tensors: on the GPU, or, in a dry run, in the simulator on the CPU."""

    def __init__(self, dry: bool):
        self.dry = dry
        self.device = "cpu" if dry else "cuda"

    def arch(self, wanted: str | None = None) -> str:
        return wanted or ("sm_90" if self.dry else fc.gpu_target())

    def bind(self, program: Any, **arguments: Any) -> Any:
        """A function without arguments that runs the program on these tensors (the simulator's results are copied into the outputs)."""
        if not self.dry:
            launcher = program.launcher
            return lambda: launcher(arguments)
        return lambda: simulate_into(program, arguments)


def check_call(program: Any, arguments: Mapping[str, Any]) -> None:
    """The checks of a launch that need no GPU, so that a dry run refuses what a real one would."""
    from fcgen.launch import sizes_of
    from fcgen.runtime import tensors

    facts = program.built.facts
    given = {p[0]: tensors.describe(arguments[p[0]], p[0], cpu_ok=True) for p in facts.params if p[1] == "tensor"}
    sizes_of(facts, {n: x.shape for n, x in given.items()})
    for name, kind, dtype, dims, _ in facts.params:
        if kind == "tensor":
            size = tensors.ITEMSIZE[dtype]
            wide = len(dims) > 1 and size <= 4
            whole = wide and given[name].shape[-1] * size % 16 == 0
            tensors.check(given[name], name=name, dtype=dtype, align=16 if wide else size, stride_align=16 if whole else size)


def simulate_into(program: Any, arguments: Mapping[str, Any]) -> None:
    """A program on torch tensors of the CPU, by the simulator."""
    import torch

    flags = program.tile.flags
    check_call(program, arguments)
    inputs = {name: x.detach().float().numpy().astype("float16" if x.dtype == torch.float16 else "float32")
              if isinstance(x, torch.Tensor) else x for name, x in arguments.items() if "out" not in flags.get(name, ())}
    for name, value in program.simulate(**inputs).items():
        target = arguments[name]
        target.copy_(torch.from_numpy(value.astype("float32")).to(target.dtype).reshape(target.shape))
