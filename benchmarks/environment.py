"""What a measurement was made on: GPU, its clocks, versions, date, commit. `python -m benchmarks.environment` prints it."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
QUERY = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw", "power.limit",
         "temperature.gpu", "persistence_mode")


def gpus() -> list[str]:
    """The GPUs that programs see, as CUDA_VISIBLE_DEVICES names them."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return seen.split(",") if seen is not None else [str(n) for n, _ in enumerate((_output("nvidia-smi", "-L") or "").splitlines())]


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def without_folders(trace: str) -> str:
    """A traceback that says the same on every machine: files of the repository from its root on, others by their names."""
    name = lambda m: str(Path(m[1]).relative_to(ROOT)) if Path(m[1]).is_relative_to(ROOT) else Path(m[1]).name
    return re.sub(r'(?<=File ")([^"]+)(?=")', name, trace)


def _gpu() -> dict[str, str]:
    """nvidia-smi's facts of the first GPU; empty without one."""
    said = _output("nvidia-smi", "-i", "0", "--query-gpu=" + ",".join(QUERY), "--format=csv,noheader")
    return dict(zip(QUERY, [v.strip() for v in said.splitlines()[0].split(",")])) if said else {}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _nvrtc() -> str | None:
    from fcgen.errors import FcError
    from fcgen.runtime.nvrtc import nvrtc_version

    try:
        return ".".join(map(str, nvrtc_version()))
    except FcError:
        return None


def _torch() -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {"torch": None}
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "cudnn": cudnn}


def facts() -> dict[str, Any]:
    """Everything as strings and numbers; None for what is not there. commit: $FCGEN_COMMIT (of a copy without its history), else of the
    checkout."""
    told = os.environ.get("FCGEN_COMMIT")
    commit = told or _output("git", "rev-parse", "HEAD")
    changed = _output("git", "status", "--porcelain", "--untracked-files=no") if commit and not told else None
    return {"gpu": _gpu(), **_torch(), "nvrtc": _nvrtc(), "cuda_bindings": _version("cuda-bindings"), "numpy": _version("numpy"),
            "python": platform.python_version(), "system": platform.platform(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": commit, "dirty": bool(changed) if commit else None}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(json.dumps(facts(), indent=2))


if __name__ == "__main__":
    main()
