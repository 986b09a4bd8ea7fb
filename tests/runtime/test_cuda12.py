"""CUDA 12's NVRTC, as `pip install '.[cu12]'` brings it: shipped kernels compile with it, also where CUDA 13's is installed too.

$FCGEN_CUDA12 is a folder with the wheels of that extra (`pip install --no-deps --target FOLDER nvidia-cuda-nvrtc-cu12 ...`, as .ci/run
does it); without it these tests are skipped. `python -m benchmarks.toolkits` compiles everything that is shipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcgen.runtime import driver, nvrtc, toolchain

FOLDER = os.environ.get("FCGEN_CUDA12")
OLD_DRIVER = "from fcgen.runtime import driver; driver.cuda_version = lambda: (12, 4)\n"


@pytest.mark.skipif(not FOLDER, reason="$FCGEN_CUDA12 names no folder with the wheels of CUDA 12")
@pytest.mark.parametrize("kernels", ["sm_80", "sm_90a"])
def test_shipped_kernels_compile_for_an_old_driver(kernels: str) -> None:
    code = OLD_DRIVER + f"from benchmarks.toolkits import main; raise SystemExit(main(['--only', '{kernels}:64']))"
    path = os.pathsep.join([str(FOLDER), str(Path(__file__).parents[2])])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("NVRTC 12.4") and f"{kernels} D=64" in done.stdout


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both majors' wheels, as empty files."""
    for name in ("cu13/lib/libnvrtc.so.13", "cu13/lib/libnvrtc-builtins.so.13.5", "cuda_nvrtc/lib/libnvrtc.so.12",
                 "cuda_nvrtc/lib/libnvrtc.alt.so.12"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(toolchain, "wheel_roots", lambda: [tmp_path])
    monkeypatch.setattr(toolchain, "toolkit_roots", lambda: [])
    return tmp_path


@pytest.mark.parametrize(("version", "want"), [((13, 0), 13), ((14, 2), 13), ((12, 9), 12), ((12, 4), 12), ((11, 8), 13)])
def test_the_newest_nvrtc_that_the_driver_can_run_is_chosen(version, want, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "cuda_version", lambda: version)
    chosen = toolchain.nvrtc_library.__wrapped__()
    assert chosen is not None and chosen.name == f"libnvrtc.so.{want}"


@pytest.mark.parametrize(("bindings", "want"), [((13, 4), 13), ((12, 9), 12), (None, 13)])
def test_without_a_driver_cuda_pythons_major_decides(bindings, want, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "cuda_version", lambda: None)
    monkeypatch.setattr(toolchain, "_bindings_version", lambda: bindings)
    chosen = toolchain.nvrtc_library.__wrapped__()
    assert chosen is not None and chosen.name == f"libnvrtc.so.{want}"


def test_what_is_compiled_by_another_nvrtc_has_another_key(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identities = set()
    for version in ((13, 0), (12, 8)):
        monkeypatch.setattr(driver, "cuda_version", lambda v=version: v)
        monkeypatch.setattr(toolchain, "nvrtc_library", toolchain.nvrtc_library.__wrapped__)
        identities.add(toolchain.nvrtc_identity())
        monkeypatch.undo()
        monkeypatch.setattr(toolchain, "wheel_roots", lambda: [wheels])
    assert len(identities) == 2


def test_no_option_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVRTC 12.4 refuses that."""
    from fcgen.build.compiler import NVRTC_OPTIONS

    flags = [f.split("=")[0].lstrip("-") for f in nvrtc._flags("sm_89", ("--ptxas-options=-v", *NVRTC_OPTIONS)) if not f.startswith("-I")]
    assert len(flags) == len(set(flags)) and "std" in flags
