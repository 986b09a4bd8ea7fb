"""Kernels compiled in many processes at once, through the disk cache where there is one (FCGEN_CACHE_DIR chooses its folder)."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fcgen as fc
from fcgen import masks
from fcgen.ir.types import DTYPES
from fcgen.kernels.attention import VARIANTS, attention
from fcgen.kernels.backward import backward, backward_in_turn, backward_rows
from fcgen.kernels.backward_schedules import turned

#: programs of the backward pass that a job may name: (spec, its facts). "backward_keys" leaves out the gradient of q
BACKWARD: dict[str, tuple[Any, dict[str, Any]]] = {"backward": (backward, {}), "backward_keys": (backward, {"dQ": None}),
                                                   "backward_in_turn": (backward_in_turn, {}),
                                                   "backward_rows": (backward_rows, {"dLSE": None})}
#: Scores may exceed the running maximum by this much (a factor of 2^8) before the WMMA kernels rescale.
LAZY = 2.77


@dataclass(frozen=True)
class Job:
    """One attention kernel: which spec of the library (a variant of the forward, or of BACKWARD), its compile-time facts, its schedule and
    target. Of BACKWARD: groups (heads of rows for each of keys), window (keys in front of a row's own)."""

    schedule: fc.Schedule
    d: int = 64
    e: int = 64
    mask: str = "none"
    dtype: str = "f16"
    lazy: float = 0.0
    spec: str = "lse"
    arch: str = "sm_90"
    sums: str = ""
    groups: int = 1
    window: int = 0


@dataclass(frozen=True)
class Made:
    """built and resources, or why there are none."""

    built: Any = None
    resources: Any = None
    error: str | None = None


def program(job: Job) -> fc.Program:
    from fcgen.attend.variants import sums_of

    if job.spec in BACKWARD:
        spec, more = BACKWARD[job.spec]
        facts = {"T": DTYPES[job.dtype], "D": job.d, "E": job.e, "mask": job.mask, **more, **turned(job.schedule)}
        if job.groups > 1:
            facts["grouped"] = True
        if job.window:
            facts["keep"] = masks.window(job.window, 0)
        return spec.compile(target=job.arch, schedule=job.schedule, check=False, **facts)
    return attention.compile(**VARIANTS[job.spec], target=job.arch, schedule=job.schedule, check=False, T=DTYPES[job.dtype], D=job.d,
                             E=job.e, mask=job.mask, lazy=job.lazy, sums=job.sums or sums_of(job.schedule, job.lazy))


def build(job: Job) -> Made:
    try:
        p = program(job)
        return Made(p.built, p.resources)
    except Exception as error:  # it is reported with the job, the other jobs go on
        return Made(error=f"{type(error).__name__}: {error}")


def processes() -> int:
    return max(1, min(32, len(os.sched_getaffinity(0)) - 1))


def build_all(jobs: Iterable[Job]) -> dict[Job, Made]:
    jobs = list(dict.fromkeys(jobs))
    with ProcessPoolExecutor(min(processes(), len(jobs)), mp_context=multiprocessing.get_context("spawn")) as executor:
        return dict(zip(jobs, executor.map(build, jobs)))


def _warm(one: tuple[int, str, str, str, fc.Schedule | None, bool]) -> str | None:
    from fcgen.attend.forward import compiled
    from fcgen.kernels.hopper_schedules import Choice
    from fcgen.kernels.schedules import choose

    d, mask, dtype, arch, schedule, serial = one
    try:
        for length in (1 << n for n in range(9, 15)):
            shapes = (16384 // length, 2048 // d, length, d), (1, 1, length, d)
            chosen = Choice(schedule) if schedule else choose(arch, *shapes, d, mask, 132)
            given = replace(chosen.schedule, pdl=False) if serial else chosen.schedule
            compiled(dtype, d, d, mask, False, arch, given, True, chosen.lazy, chosen.sums, False).built  # noqa: B018  (it is in the disk cache then)
    except Exception as error:
        return f"D={d} {mask}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None


def warm_library(heads: Iterable[tuple[int, str]], dtype: str, schedule: fc.Schedule | None = None,
                 serial: bool = False) -> list[str]:
    """Compile what `fcgen.attention` runs on this GPU for these (head size, mask kind), all at once; serial: without programmatic dependent
    launch too. Returns what was refused."""
    from fcgen.attend.forward import _arch

    work = [(d, mask, dtype, _arch(0), schedule, x) for d, mask in heads for x in (False, True)[:1 + serial]]
    with ProcessPoolExecutor(min(processes(), len(work)), mp_context=multiprocessing.get_context("spawn")) as executor:
        return [error for error in executor.map(_warm, work) if error]


def launcher(made: Made) -> Any:
    from fcgen.launch import Launcher

    return Launcher(made.built)


def write_json(path: str | None, data: Any) -> None:
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def why_not(make: Callable[[], Any], few: int) -> str:
    """Why what this makes does not compile with few bytes spilled, or nothing. It is in the cache on disk then."""
    try:
        program = make()
        found = getattr(program, "first", program).resources
        # (some toolkits tell only that something is spilled)
        fits = not found.spills if found.spill_loads is None else found.spill_loads < few
        return "" if fits else f"{found.spill_loads} spilled"
    except Exception as e:  # a candidate less
        return f"{type(e).__name__} {str(e)[:160]}".replace("\n", " ")
