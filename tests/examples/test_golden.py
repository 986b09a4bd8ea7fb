"""Golden text: the machine IR and the CUDA C++ of the examples. `--update-golden` accepts a change; review it like code."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ["gemm", "softmax", "sigmoid_attention", "differential_attention", "linear_attention", "variants"]


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source names in the text are relative to the current folder."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def program(name: str, **schedule: Any) -> Any:
    for module in ("harness", name):
        sys.modules.pop(module, None)
    example = importlib.import_module(name).example
    return example.compile(target="sm_89", schedule=replace(example.schedule, **schedule))


@pytest.mark.parametrize("name", NAMES)
def test_tile_and_machine_ir(name: str, golden: Any) -> None:
    p = program(name)
    golden(f"examples/{name}.tile.fc", str(p.tile))
    golden(f"examples/{name}.machine.fc", str(p.machine))


@pytest.mark.parametrize(("name", "schedule"), [
    ("variants", {}), ("variants", {"math": "wmma", "copy": "vector", "stages": 1, "skip_ones": True}),
    ("variants", {"math": "fma", "copy": "scalar", "stages": 1}), ("gemm", {}), ("linear_attention", {}), ("softmax", {})],
    ids=["variants-mma", "variants-wmma", "variants-fma", "gemm", "linear_attention", "softmax"])
def test_cuda(name: str, schedule: dict[str, Any], golden: Any) -> None:
    from fcgen.build.compiler import to_cuda

    p = program(name, **schedule)
    family = schedule.get("math", "mma")
    golden(f"examples/{name}.{family}.cu", to_cuda(p.machine, p.target).text)
