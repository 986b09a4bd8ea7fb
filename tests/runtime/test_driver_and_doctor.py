"""What is said about this machine, whatever it has."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys

import pytest

from fcgen.errors import FcError
from fcgen.runtime import cache, doctor, driver, nvrtc


def test_available_says_why():
    ok, reason = driver.available()
    assert isinstance(ok, bool) and reason


class Fake:
    """A driver that answers as told."""

    def __init__(self, init=0, count=1, raises=None):
        self.init, self.count, self.raises = init, count, raises

    def cuInit(self, flags):
        if self.raises:
            raise self.raises
        return (self.init,)

    def cuDeviceGetCount(self):
        return 0, self.count

    def cuGetErrorName(self, status):
        return 0, b"CUDA_ERROR_NO_DEVICE" if status == 100 else b"CUDA_ERROR_OUT_OF_MEMORY"

    def cuGetErrorString(self, status):
        return 0, b"no CUDA-capable device is detected"


@pytest.mark.parametrize(("fake", "ok", "said"), [
    (Fake(count=2), True, "2 GPUs"),
    (Fake(count=0), False, "CUDA_VISIBLE_DEVICES"),
    (Fake(init=100), False, "CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)"),
    (Fake(raises=RuntimeError("Failed to dlopen libcuda.so.1")), False, "no CUDA driver on this machine"),
])
def test_every_kind_of_absence_has_its_reason(monkeypatch, fake, ok, said):
    monkeypatch.setattr(driver, "bindings", lambda: fake)
    found, reason = driver.available.__wrapped__()
    assert found == ok and said in reason


def test_check_gives_the_values_of_a_call_or_names_the_error(monkeypatch):
    monkeypatch.setattr(driver, "bindings", lambda: Fake())
    assert driver.check((0,), "x") is None
    assert driver.check((0, 5), "x") == 5
    assert driver.check((0, 5, 6), "x") == (5, 6)
    with pytest.raises(FcError) as caught:
        driver.check((2,), "the launch of k", code="call/launch")
    assert caught.value.code == "call/launch" and "the launch of k failed: CUDA_ERROR_OUT_OF_MEMORY" in str(caught.value)
    assert caught.value.hint


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(FcError) as caught:
        driver.device_info(99)
    assert caught.value.code == "call/driver"


def test_the_doctor_looks_at_everything_and_imports_no_torch(monkeypatch, tmp_path):
    monkeypatch.setenv("FCGEN_CACHE_DIR", str(tmp_path / "cache"))
    had_torch = "torch" in sys.modules
    found = {c.name: c for c in doctor.checks()}
    for name in ("python", "numpy", "cuda-python", "NVRTC", "CUDA headers", "compiler", "cache"):
        assert found[name].ok, found[name]
    assert str(tmp_path / "cache") in found["cache"].detail
    assert "registers" in found["compiler"].detail
    assert found["driver"].ok == driver.available()[0]
    assert all(c.hint for c in found.values() if not c.ok)
    assert ("torch" in sys.modules) == had_torch


def test_the_doctor_survives_what_it_looks_for(monkeypatch):
    def broken(*args, **kwargs):
        raise FcError("compile/toolchain", "CUDA headers are missing", got="mma.h", hint="pip install something")

    def bug(*args, **kwargs):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(nvrtc, "compile_cuda", broken)
    monkeypatch.setattr(cache, "cache_dir", bug)
    found = {c.name: c for c in doctor.checks()}
    assert not found["compiler"].ok and found["compiler"].hint == "pip install something"
    assert not found["cache"].ok and "oops" in found["cache"].detail


@pytest.mark.gpu
def test_a_gpu_has_plausible_facts():
    info = driver.device_info(0)
    assert info.capability >= (8, 0) and info.sm_count > 0 and info.smem_per_block >= 99 * 1024
    assert info.regs_per_sm == 65536 and info.driver_version >= (12, 0) and info.memory_bytes > 2**30
    assert info.arch.startswith(f"sm_{info.capability[0]}{info.capability[1]}")
    print("\n" + "\n".join(map(str, [info, *doctor.checks()])))


DRIVER = """#include <stdio.h>
#include <unistd.h>
int cuInit(unsigned flags) { FILE* f = fopen("%s", "a"); fprintf(f, "%%d\\n", getpid()); fclose(f); return %d; }
int cuDeviceGetCount(int* count) { *count = %d; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="needs a C compiler, on Linux")
@pytest.mark.parametrize(("status", "count"), [(0, 2), (0, 0), (100, 0)])
def test_asking_for_a_gpu_does_not_start_the_driver(tmp_path, status, count):
    """A driver that is started cannot be used by processes that are forked later."""
    (tmp_path / "cuda.c").write_text(DRIVER % (tmp_path / "started", status, count))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "cuda.c"], check=True)
    ask = "import fcgen, os; print(fcgen.gpu_available(), fcgen.gpu_available(), os.getpid())"
    said = subprocess.run([sys.executable, "-c", ask], env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}, text=True, capture_output=True, check=True)
    first, second, pid = said.stdout.split()
    assert first == second == str(count > 0)
    started = (tmp_path / "started").read_text().split()
    assert len(started) == 1 and pid not in started


def test_without_a_driver_nobody_else_is_asked(monkeypatch):
    monkeypatch.setattr(driver, "LIBRARY", "libnosuchcuda.so.1")
    monkeypatch.setattr(driver, "available", functools.cache(lambda: (True, "not asked")))
    monkeypatch.setattr(subprocess, "run", None)
    ok, reason = driver.present.__wrapped__()
    assert not ok and "no CUDA driver on this machine" in reason
    driver.available()
    assert driver.present.__wrapped__() == (True, "not asked"), "it has been started"
