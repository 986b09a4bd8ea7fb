"""Mistakes in hand-written Hopper kernels that are safe to run: their numbers are certainly wrong, and nothing hangs or is damaged.

What makes them certain: shared memory is NaN before the first copy, and the role that should have been waited for is made slow, by lines put
into the generated text. What makes them safe: each copy that is started is waited for by somebody, so that none lands after the kernel's
end; and a wait gives up after a while. Faults whose outcome is the hardware's choice (a fence that is missing, say) are not here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcgen.build import compiler
from fcgen.build.compiler import Built, facts_of, target, to_cuda
from fcgen.ir.core import Kernel
from fcgen.ir.parse import parse_kernel
from fcgen.ir.schedule import Schedule
from fcgen.passes.machine import alloc
from tests.gpu.micro import compiled
from tests.sim.async_faults import ASYNC_FAULTS, _change
from tests.sim.faults import Mutant, _drop
from tests.sim.hopper import Case, chain, chain_draw, gemm, gemm_draw, stores, tiles, tiles_draw, turns_draw

TARGET = target("sm_90a")
DELAY = "for (const long long start = clock64(); clock64() - start < 2000000;);  // about a millisecond"
POISON = """\
    for (int n = threadIdx.x; n < %d / 4; n += blockDim.x) reinterpret_cast<volatile uint32_t*>(smem)[n] = 0x7fff7fff;
    proxy_fence();
    __syncthreads();"""
PATIENT = """\
uint32_t ended = 0;
    for (int n = 0; n < 1 << 22 && !ended; ++n)
        asm volatile("{\\n.reg .pred p;\\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\\nselp.u32 %0, 1, 0, p;\\n}"
                     : "=r"(ended) : "r"(bar), "r"(parity) : "memory");"""


def drained(text: str, stages: int) -> str:
    """At its end the loading role waits for all copies of its last round itself."""
    lines, at = [], "%end"
    for n in range(stages):
        lines += [f"  mbar_wait %full, {at} {{lag = 1}}"]
        if n + 1 < stages:
            lines += [f"  %end{n} = advance {at} : cursor x{stages}"]
            at = f"%end{n}"
    head, tail = text.split("\n}\nrole main", 1)
    return "\n".join([head, *lines, "}"]) + "\nrole main" + tail


CASES = {c.name: c for c in (
    Case("gemm-2", gemm(2), gemm_draw(short=0), 2),
    Case("gemm-3", gemm(3), gemm_draw(short=0), 3),
    Case("gemm-2-drained", drained(gemm(2), 2), gemm_draw(short=0), 2),
    Case("chain-2", chain(2), chain_draw, 2),
    Case("stores-2", stores(2), turns_draw, 2),
    Case("tiles-2", tiles(2), tiles_draw, 2),
)}

RACE, STALE, PROTOCOL, WRONG = "sim/race", "sim/stale", "sim/protocol", "wrong"


@dataclass(frozen=True)
class Verdict:
    """One planted fault. site: a pattern that only its mutant's site has. steps: trips of the loop. slow: the role that is late, and the
    call that its delay stands before. codes: one of these is what the simulator reports; `WRONG` alone: it reports nothing, and its
    numbers are the GPU's."""

    case: str
    fault: str
    site: str
    steps: int
    codes: frozenset[str]
    why: str
    slow: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        return f"{self.case}: {self.fault}, {self.site}"


LATE_LOAD, LATE_READ = ("load", "mbar_expect"), ("main", "mbar_wait")


def _v(case: str, fault: str, site: str, steps: int, codes: set[str], why: str, slow: tuple[str, str] | None = None) -> Verdict:
    return Verdict(case, fault, site, steps, frozenset(codes), why, slow)


VERDICTS = [
    _v("gemm-2", "read-far", "sa = slot a", 3, {RACE, STALE, WRONG}, "A's step n + 1, or n - 1, times B's step n"),
    _v("gemm-2", "read-far", ": sb = slot b", 3, {RACE, STALE, WRONG}, "the same with B"),
    _v("tiles-2", "read-far", "sx = slot x", 3, {RACE, STALE, WRONG}, "each block's first tile is read from a slot that nobody has filled"),
    _v("gemm-2", "load-far", "sa = slot a", 3, {RACE, STALE}, "a step's A is never in the slot of its B"),
    _v("gemm-3", "load-far", ": sb = slot b", 4, {RACE, STALE}, "the same with B, in a longer ring"),
    _v("tiles-2", "load-far", "sx = slot x", 3, {RACE, STALE}, "each block's first tile lies where nobody reads it"),
    _v("gemm-2-drained", "drop-phase-wait", "mbar_wait full, n, before wgmma_fence", 1, {RACE, PROTOCOL, STALE}, "read before it has landed",
       LATE_LOAD),
    _v("gemm-2-drained", "wrong-lag", "mbar_wait full, n, before wgmma_fence", 1, {RACE, PROTOCOL, STALE},
       "the parity of the phase before lets the first round through", LATE_LOAD),
    _v("gemm-2", "early-load", "gemm-2.fcir:28", 3, {RACE, PROTOCOL}, "the third step's A lands on the first one's before that is read",
       LATE_READ),
    _v("gemm-2", "early-load", "gemm-2.fcir:29", 3, {RACE, PROTOCOL}, "the same with B", LATE_READ),
    _v("stores-2", "drop-store", "st_shared x, a", 2, {STALE}, "the left operand is what was in shared memory before"),
    _v("gemm-2", "other-major", "p = wgmma sa, sb", 2, {WRONG}, "B is read as if it were stored the other way"),
    _v("chain-2", "other-major", "last = wgmma p9, lv", 1, {WRONG}, "the same with the last V"),
]


def mutants(verdict: Verdict) -> Iterator[Mutant]:
    kernel = CASES[verdict.case].kernel
    if verdict.fault == "drop-store":
        return _drop(kernel, "st_shared")
    if verdict.fault == "other-major":
        return _change(kernel, "wgmma", lambda op: (op.with_attrs(tb=not op["tb"]),))
    return ASYNC_FAULTS[verdict.fault].mutants(kernel)


def mutant(verdict: Verdict) -> Mutant:
    found = [m for m in mutants(verdict) if verdict.site in m.site]
    assert len(found) == 1, (verdict.name, [m.site for m in mutants(verdict)])
    return found[0]


# ---- from IR to a launch ----------------------------------------------------------------------------------------------------


def _patient() -> Any:
    """The target, with waits that give up."""
    record = TARGET.instrs["mbar_wait"]
    return replace(TARGET, instrs={**TARGET.instrs, "mbar_wait": replace(record, body=PATIENT)})


def cuda(kernel: Kernel, slow: tuple[str, str] | None) -> tuple[Kernel, Any]:
    """(the kernel with its buffers placed, its text with poisoned shared memory and one role delayed)."""
    placed = alloc.run(kernel, Schedule(), TARGET).with_meta(stage="synced")  # by whoever wrote it
    made = to_cuda(placed, _patient())
    first = next(line for line in made.text.splitlines() if "const int group = " in line)
    text = made.text.replace(first, first + "\n" + POISON % made.smem_bytes, 1)
    if slow:
        role, call = slow
        head, tail = re.split(rf"(?<=// role {role}: )", text, maxsplit=1)
        line = next(line for line in tail.splitlines() if line.lstrip().startswith(f"{call}("))
        text = head + tail.replace(line, f"{DELAY}\n{line}", 1)
    return placed, replace(made, text=text)


@cache
def built(case: str, verdict: Verdict | None, slow: tuple[str, str] | None) -> Built:
    """The kernel of a case, whole or with a verdict's fault."""
    kernel = mutant(verdict).kernel if verdict else CASES[case].kernel
    placed, made = cuda(kernel, slow)
    binary = compiled(made.text, TARGET.arch, made.name, line_map=made.line_map)
    compiler.refuse_serialised(binary.log, placed)
    return Built(facts_of(placed, made, TARGET), Schedule(), "", "", made.text, binary.cubin, binary.log)


def run(made: Built, arguments: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """On the GPU; the outputs are NaN before."""
    import torch

    from fcgen.launch import Launcher

    inputs = {n: torch.from_numpy(np.ascontiguousarray(x)).cuda() for n, x in arguments.items()}
    outputs = {n: torch.full(x.shape, float("nan"), dtype=torch.float32, device="cuda") for n, x in expected.items()}
    Launcher(made)({**inputs, **outputs})
    torch.cuda.synchronize()
    return {n: x.cpu().numpy() for n, x in outputs.items()}


class Trapped(Exception):
    """The kernel did not come to its end: the hardware found an arrival too many on an mbarrier, say."""


def run_apart(case: str, verdict: Verdict | None, slow: tuple[str, str] | None, arguments: dict[str, np.ndarray],
              expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`run` in a process of its own: a kernel that fails takes the process's GPU context with it, and a kernel that hangs the process."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given.npz"), Path(folder, "made.npz")
        np.savez(given, **{f"in_{n}": x for n, x in arguments.items()}, **{f"out_{n}": x for n, x in expected.items()})
        words = [case, verdict.name if verdict else "", *(slow or ())]
        done = subprocess.run([sys.executable, "-m", "tests.gpu.hopper_verdicts", str(given), str(made), *words],
                              cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
        if "compile/ptxas" in done.stderr:
            pytest.skip("this NVRTC serialises this hand-written kernel's products: what is in flight then is another question")
        if "unspecified launch failure" in done.stderr:
            raise Trapped
        if done.returncode:
            raise RuntimeError(f"the kernel did not run: {done.stderr.strip().splitlines()[-12:]}")
        with np.load(made) as z:
            return dict(z)


def main(given: str, made: str, case: str, verdict: str, *slow: str) -> None:
    with np.load(given) as z:
        arrays = dict(z)
    pick = lambda kind: {n.removeprefix(kind): x for n, x in arrays.items() if n.startswith(kind)}
    planted = next((v for v in VERDICTS if v.name == verdict), None)
    np.savez(made, **run(built(case, planted, (slow[0], slow[1]) if slow else None), pick("in_"), pick("out_")))


def right(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return all(np.allclose(got[n], want, rtol=5e-3, atol=5e-3) for n, want in expected.items())


def reparsed(case: str) -> Kernel:
    """What was written is a kernel by all rules."""
    return parse_kernel(CASES[case].text, f"{case}.fcir", locate=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
