"""What a number was measured on: GPU, driver, clocks, libraries, commit and date, as a dict that JSON can hold.

    python -m benchmarks.environment
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_QUERY = {"name": str, "driver_version": str, "clocks.sm": float, "clocks.mem": float, "clocks.max.sm": float, "power.draw": float,
          "power.limit": float, "temperature.gpu": float, "utilization.gpu": float}


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def parse_smi(line: str) -> dict[str, Any]:
    """One line of `nvidia-smi --query-gpu`; what the board does not tell is None."""
    out: dict[str, Any] = {}
    for (name, kind), text in zip(_QUERY.items(), (t.strip() for t in line.split(","))):
        try:
            out[name.replace(".", "_")] = kind(text)
        except ValueError:
            out[name.replace(".", "_")] = None
    return out


def gpu_now() -> dict[str, Any]:
    """The board's clocks, power and temperature at this moment ({} without a GPU)."""
    line = _output("nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits")
    return parse_smi(line.splitlines()[0]) if line else {}


class Board:
    """Clock and power many times a second, through NVML: nvidia-smi takes as long as a whole measurement. None values without it."""

    def __init__(self) -> None:
        self._nvml = self._handle = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
        except Exception:  # no package, no driver or no GPU: a clock is worth having, not worth failing for
            self._nvml = None

    def now(self) -> dict[str, float | None]:
        if self._nvml is None:
            return {"sm_mhz": None, "watts": None, "celsius": None}
        n = self._nvml
        try:
            return {"sm_mhz": float(n.nvmlDeviceGetClockInfo(self._handle, n.NVML_CLOCK_SM)),
                    "watts": n.nvmlDeviceGetPowerUsage(self._handle) / 1000,
                    "celsius": float(n.nvmlDeviceGetTemperature(self._handle, n.NVML_TEMPERATURE_GPU))}
        except n.NVMLError:
            return {"sm_mhz": None, "watts": None, "celsius": None}


def commit() -> dict[str, Any]:
    """The commit and whether files differ from it. Without .git (a copy of the tree) FCGEN_COMMIT says which, "unknown" if nobody does."""
    named = os.environ.get("FCGEN_COMMIT")
    found = _output("git", "rev-parse", "HEAD")
    if named or not found:
        text = named or "unknown"
        return {"commit": text.removesuffix("-dirty"), "dirty": text.endswith("-dirty") if named else None}
    # what a measurement itself writes does not make the tree another one
    status = _output("git", "status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {"commit": found, "dirty": bool(status)}


def versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for name in ("torch", "triton", "numpy", "cuda-bindings", "nvidia-cudnn-cu13", "nvidia-cuda-nvrtc"):
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        from fcgen.runtime.nvrtc import nvrtc_version

        out["nvrtc"] = ".".join(map(str, nvrtc_version()))
    except Exception as error:
        out["nvrtc"] = f"none ({type(error).__name__})"
    return out


def describe() -> dict[str, Any]:
    """Everything; call it before and after a measurement for the clocks at both ends."""
    return {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), **commit(), "gpu": gpu_now(),
            "versions": versions(), "machine": {"cpus": os.cpu_count(), "system": platform.platform()}}


def slug(name: str | None) -> str:
    """A GPU's name as part of a file name: "NVIDIA H200" -> "h200"."""
    text = re.sub(r"[^a-z0-9]+", "-", (name or "no-gpu").lower()).strip("-")
    return text.removeprefix("nvidia-") or "no-gpu"


if __name__ == "__main__":
    print(json.dumps(describe(), indent=1))
