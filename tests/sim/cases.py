"""Machine kernels that the pipeline makes of real specs, with inputs and what should come out: what faults are planted into."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

import fcgen as fc
from fcgen.ir.core import Kernel
from fcgen.kernels.attention import attention
from fcgen.kernels.reference import attention_reference

EXAMPLES = Path(__file__).parents[2] / "examples"
#: run every site of every fault, which takes minutes, and not a few of each
EVERYTHING = os.environ.get("FCGEN_ALL") == "1"
Runs = list[tuple[dict[str, Any], dict[str, np.ndarray]]]


def sample(sites: Iterable[Any], name: str, most: int) -> list[Any]:
    """At most so many of the sites, spread evenly, the same from run to run; where they begin hangs on the name. All with FCGEN_ALL=1."""
    found = list(sites)
    if EVERYTHING or len(found) <= most:
        return found
    first = crc32(name.encode()) % len(found)
    return [found[(first + n * len(found) // most) % len(found)] for n in range(most)]


class Compiled:
    """A program that is compiled when it is first asked for."""

    compile: Callable[[], Any]

    @cached_property
    def program(self) -> Any:
        return self.compile()

    @property
    def kernel(self) -> Kernel:
        return self.program.machine


@dataclass(frozen=True)
class Case(Compiled):
    """name; compile() -> the program; draw(seed, steps, whole) -> (arguments, expected): the loop takes `steps` tiles, the last one
    whole or not. stages: how far the copies run ahead. none: the loop may take no step at all."""

    name: str
    compile: Callable[[], Any]
    draw: Callable[[int, int, bool], tuple[dict[str, Any], dict[str, np.ndarray]]]
    stages: int
    none: bool = True

    def runs(self, seed: int = 0) -> Runs:
        """All trip counts to 2 stages + 1, whole and not; those that show most faults first."""
        counts = sorted(range(1, 2 * self.stages + 2), key=lambda n: abs(n - self.stages - 1))
        out = [self.draw(seed, n, whole) for n in counts for whole in (False, True)]
        return out + ([self.draw(seed, 0, True)] if self.none else [])


def attention_case(name: str, mask: str = "none", **options: Any) -> Case:
    schedule = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, **options)

    def draw(seed: int, steps: int, whole: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        rng = np.random.default_rng(seed)
        r = lambda n: fc.round_to(rng.standard_normal((1, 1, n, 64)), fc.f16)
        n = 64 * steps - (0 if whole else 23)
        arrays = {"Q": 2 * r(64 if whole else 50), "K": r(n), "V": r(n)}
        o, lse = attention_reference(arrays["Q"], arrays["K"], arrays["V"], mask=mask, scale=0.125)
        return {**arrays, "scale": 0.125}, {"O": o, "LSE": lse}

    binding = {"T": fc.f16, "D": 64, "E": 64, "mask": mask}
    return Case(name, lambda: attention.compile(target="sm_89", schedule=schedule, **binding), draw, schedule.stages)


@lru_cache(maxsize=1)
def _gemm() -> Any:
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    import gemm

    return gemm.example


def gemm_case() -> Case:
    def draw(seed: int, steps: int, whole: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return _gemm().draw(seed, m=128 if whole else 100, n=64 if whole else 50, k=32 * steps - (0 if whole else 5))

    return Case("gemm", lambda: _gemm().compile(), draw, 3, none=False)


CASES = {c.name: c for c in (
    attention_case("stages-2", stages=2),
    attention_case("stages-3", stages=3),
    attention_case("masked", "causal_bottom_right", stages=2, hold_a=False),
    attention_case("ahead", stages=1, ahead=True),
    attention_case("wmma", "causal_bottom_right", math="wmma", stages=2, skip_ones=True),
    attention_case("vector", copy="vector", stages=1),
    gemm_case(),
)}
