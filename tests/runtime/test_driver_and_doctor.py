"""What is said about this machine, whatever it has."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pretend
import pytest

from fcgen.cli import doctor
from fcgen.errors import FcError
from fcgen.kernels.reference import attention_reference
from fcgen.runtime import cache, driver, module, nvrtc
from fcgen.sim import trial


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

    monkeypatch.setattr(doctor, "_program", doctor._program.__wrapped__)
    monkeypatch.setattr(trial, "run_trials", lambda *_: None)
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
    found = doctor.checks()
    print("\n" + "\n".join(map(str, [info, *found])))
    assert [c.name for c in found if not c.ok and not c.optional] == []
    assert sum(" on GPU 0" in c.name for c in found) == 1 + (info.capability == (9, 0))


# ---- a driver that is older than the compiler, and a GPU whose numbers are wrong ------------------------------------------

CUBIN = b"\x7fELF\x02\x01" + bytes(42) + struct.pack("<I", 90) + bytes(12)
ERRORS = {200: "CUDA_ERROR_INVALID_IMAGE", 222: "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", 2: "CUDA_ERROR_OUT_OF_MEMORY"}


class Refusing(pretend.Driver):
    """Loads nothing."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def cuModuleLoadData(self, cubin):
        return self.error, None

    def cuGetErrorName(self, status):
        return 0, ERRORS[status].encode()

    def cuGetErrorString(self, status):
        return 0, b"its description"


@pytest.mark.parametrize(("error", "version", "compiler", "said", "not_said"), [
    (200, (12, 4), (13, 5), ["CUDA 12.4, NVRTC is 13.5", "pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-nvcc-cu12", "580"], "damaged"),
    (222, (12, 8), (13, 0), ["CUDA 12.8, NVRTC is 13.0", "too new"], "damaged"), (200, (12, 4), (12, 9), ["damaged"], "pip install"),
    (2, (12, 4), (13, 5), ["hold the GPU's memory"], "NVRTC")])
def test_a_driver_older_than_the_compiler_is_named_with_it(monkeypatch, error, version, compiler, said, not_said):
    load = module.load
    fake = pretend.install(monkeypatch, Refusing(error))
    monkeypatch.setattr(driver, "device_info", lambda n=0: replace(pretend.INFO, driver_version=version))
    monkeypatch.setattr(nvrtc, "nvrtc_version", lambda: compiler)
    with pytest.raises(FcError) as caught:
        load(CUBIN, "k", 0)
    assert all(words in str(caught.value) for words in [ERRORS[error], *said]) and not_said not in str(caught.value)
    assert fake.entered == []


class Answering(pretend.Driver):
    """Gives these arrays where copies from the GPU of their size are asked for."""

    def __init__(self, *answers):
        super().__init__([8] * 40)
        self.answers = {x.nbytes: x for x in answers}

    def cuMemcpyDtoH(self, to, start, size):
        if size in self.answers:
            ctypes.memmove(to, self.answers[size].ctypes.data, size)
        return (0,)

    def cuLaunchKernelEx(self, config, function, params, extra):
        return 0


@pytest.mark.parametrize(("wrong", "ok"), [(0.0, True), (0.1, False), (None, False)], ids=["right", "wrong", "nothing written"])
def test_the_doctor_runs_a_kernel_and_looks_at_its_numbers(monkeypatch, wrong, ok):
    b, h, m, n, d = doctor.SIZES
    rng = np.random.default_rng(0)
    out, lse = attention_reference(*(rng.standard_normal((b, h, x, d)).astype(np.float16) for x in (m, n, n)))
    answers = () if wrong is None else ((out + wrong).astype(np.float16), lse.astype(np.float32))
    pretend.install(monkeypatch, Answering(*answers))
    monkeypatch.setattr(doctor._program("sm_90a"), "_launcher", None)
    found = doctor._launch("sm_90a", 0)
    assert found.ok == ok and not found.optional and (ok or found.hint)
    assert ("largest error" in found.detail) and ("inf" in found.detail) == (wrong is None)


def test_the_doctor_says_what_a_gpu_refuses(monkeypatch):
    pretend.install(monkeypatch, pretend.Driver())
    monkeypatch.setattr(doctor._program("sm_90a"), "_launcher", None)
    monkeypatch.setattr(module, "load", lambda *a: (_ for _ in ()).throw(FcError("call/driver", "loading failed", hint="update it")))
    found = doctor._launch("sm_90a", 0)
    assert (found.ok, found.optional, found.hint) == (False, False, "update it") and "loading failed" in found.detail


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
