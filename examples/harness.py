"""What the examples share: inputs rounded to the spec's dtypes, a run in a simulator or on the GPU, and the comparison with a reference.

`python examples/NAME.py` interprets the spec, simulates its machine code, and, where there is a GPU, runs it; it prints each one's error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fcgen as fc


@dataclass(frozen=True)
class Example:
    """spec; inputs(rng, **sizes) -> float64 arrays and numbers; reference(**inputs) -> outputs in float64; binding: to compile it.
    schedule: a small one that shows each step, for `target`. rtol: largest rms error relative to the reference's rms."""

    spec: Any
    inputs: Callable[..., dict[str, Any]]
    reference: Callable[..., dict[str, np.ndarray]]
    binding: Mapping[str, Any]
    schedule: fc.Schedule
    target: str = "sm_89"
    rtol: float = 2e-3
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.spec.name

    def draw(self, seed: int = 0, **sizes: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Random inputs as the spec's dtypes see them, and what the outputs should be."""
        given = self.inputs(np.random.default_rng(seed), **{**self.sizes, **sizes})
        dtypes = self.spec.signature.dtypes(self.binding)
        exact = {k: fc.round_to(v, dtypes[k]) if isinstance(v, np.ndarray) else v for k, v in given.items()}
        wide = {k: v.astype(np.float64) if isinstance(v, np.ndarray) else v for k, v in exact.items()}
        with np.errstate(all="ignore"):
            return exact, self.reference(**wide)

    def compile(self, target: str = "sm_89", schedule: fc.Schedule | None = None) -> Any:
        return self.spec.compile(target=target, schedule=schedule or self.schedule, **self.binding)


def error(got: np.ndarray, want: np.ndarray) -> float:
    """rms error over the reference's rms; inf where something is missing or not finite."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.sqrt(np.mean((got - want) ** 2)) / np.sqrt(np.mean(want**2)))


def main(example: Example) -> None:
    exact, want = example.draw()
    program = example.compile()
    runs = {"interpreted": program.interpret, "simulated": program.simulate}
    if fc.gpu_available():
        runs["on the GPU"] = example.compile(target=fc.gpu_target()).run
    for how, run in runs.items():
        got = run(**exact)
        for name, reference in want.items():
            print(f"{example.name:24} {name:4} {how:12} rms error {error(np.asarray(got[name], np.float64), reference):.1e}")
