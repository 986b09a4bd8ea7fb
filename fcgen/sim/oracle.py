"""What a kernel should compute, and where: the outputs of a program that means the same, and the comparison with them.

In: a tile kernel, or a machine kernel before it was edited. Out: for given inputs its outputs, and which elements it writes. Guaranteed: a
difference is told only if it is larger than what rounding explains: what the program's own outputs move by when its results do (of a
machine kernel: when its inputs do).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FcError
from ..ir.core import Kernel, walk_kernel
from ..ir.elementwise import to_dtype
from ..ir.target import Target
from ..ir.types import DType, Tensor
from .machine import Result, simulate
from .rounding import STEP, Shaking
from .tile import interpret, unwritten

#: relative to an element and to the rms of its tensor, by dtype of the output: two roundings, and float32 sums in another order
TOLERANCE = {"f16": 4e-3, "bf16": 3e-2, "f32": 1e-3, "f64": 1e-3, "f8e4m3": 0.25, "f8e5m2": 0.5}


@dataclass
class Oracle:
    """says: the kernel that is believed. name: of it, for people."""

    says: Kernel
    target: Target
    name: str = "the tile program"

    def check_fits(self, kernel: Kernel) -> None:
        """Both take the same arguments. Raises FcError."""
        mine, its = ([f"{p.name}: {p.type}" for p in k.params] for k in (kernel, self.says))
        if mine != its:
            raise FcError("call/argument", f"{self.name} takes other arguments than {kernel.name}: there is nothing to compare",
                          expected=", ".join(mine), got=", ".join(its))

    def run(self, inputs: Mapping[str, Any], programs: Any) -> Result:
        """Outputs, and which of their elements were written. Raises what the interpreter says of inputs that the program is not for."""
        if self.says.level == "machine":
            return simulate(self.says, inputs, self.target, programs=programs)
        written: dict[str, np.ndarray] = {}
        outputs = interpret(self.says, inputs, written=written)
        return Result(outputs, written=written)

    def compare(self, want: Result, got: Result, inputs: Mapping[str, Any], programs: Any) -> FcError | None:
        """The first output that differs, where it was run."""
        for name, x in want.outputs.items():
            dtype = self.says.param(name).type.dtype
            here = got.written[name] if programs is not None else np.ones(x.shape, bool)
            fault = unwritten(self.says, name, got.written[name], want.written[name] & here)
            if fault is not None:
                return fault
            bad = ~close(x, got.outputs[name], dtype) & here
            if bad.any():
                bad = bad & ~close(x, got.outputs[name], dtype, self._moves(name, x, inputs, programs))
            if bad.any():
                return self._tell(name, bad, x, got)
        return None

    def _moves(self, name: str, x: np.ndarray, inputs: Mapping[str, Any], programs: Any) -> np.ndarray:
        """How far the outputs move when each result of the program moves by about one rounding."""
        far = np.zeros(x.shape)
        for seed in range(3):
            y = self.shaken(inputs, programs, seed)[name]
            with np.errstate(all="ignore"):
                far = np.fmax(far, np.abs(np.asarray(y, np.float64) - x))
        known = far[np.isfinite(far)]
        return 3 * np.where(np.isfinite(far), far, np.inf) + (3 * np.sqrt(np.mean(known**2)) if known.size else 0)

    def shaken(self, inputs: Mapping[str, Any], programs: Any, seed: int) -> Mapping[str, np.ndarray]:
        """Outputs with other roundings; of a machine kernel, with inputs that move by one."""
        if self.says.level == "tile":
            return interpret(self.says, inputs, written={}, shaken=Shaking(seed))
        rng, moved = np.random.default_rng(seed), dict(inputs)
        for p in self.says.params:
            if isinstance(p.type, Tensor) and p.type.dtype.is_float and p.name in moved:
                noise = 1 + STEP[p.type.dtype.name] * rng.choice([-1.0, 1.0], moved[p.name].shape)
                moved[p.name] = to_dtype(moved[p.name] * noise, p.type.dtype)
        return self.run(moved, programs).outputs

    def _tell(self, name: str, bad: np.ndarray, x: np.ndarray, got: Result) -> FcError:
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        store = next((op for op in got.stores.get(name, ())), None)
        message = f"the kernel computes something else than {self.name} in {name}[{', '.join(map(str, place))}]"
        live = self.says.level == "tile" and any(op.kind == "for" and len(op.regions) > 1 for op in walk_kernel(self.says))
        return FcError("sim/value", message, expected=x[place], got=got.outputs[name][place], loc=store.loc if store is not None else None,
                       notes=[f"{int(bad.sum())} of {bad.size} elements of {name}"],
                       hint="a loop's `live` masks nothing: the tiles that it leaves out must change nothing" if live else None)


def close(want: np.ndarray, got: np.ndarray, dtype: DType, slack: np.ndarray | float = 0.0) -> np.ndarray:
    """bool per element: equal, or within the tolerance; NaN is equal to NaN."""
    if not dtype.is_float:
        return (want == got) | (np.asarray(slack) > 0.5)
    a, b = np.asarray(want, np.float64), np.asarray(got, np.float64)
    with np.errstate(all="ignore"):
        finite = np.isfinite(a)
        rms = np.sqrt(np.mean(a[finite] ** 2)) if finite.any() else 0.0
        near = np.abs(a - b) <= TOLERANCE[dtype.name] * (np.abs(a) + rms) + slack
    return near | (a == b) | (np.isnan(a) & np.isnan(b))
