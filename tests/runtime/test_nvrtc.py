"""NVRTC: what compiles, and how mistakes are shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from runtime_kernels import MMA, SCALE

from fcgen.errors import FcError, Loc
from fcgen.runtime import cubin, diagnose, nvrtc, toolchain

ARCHS = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_90a"]


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "spec.py"
    path.write_text("import fcgen as fc\n\n\ns = fc.dot(q, k)\np = fc.exp(s)\n")
    return path


def refusal(source: str, arch: str = "sm_89", **more) -> FcError:
    with pytest.raises(FcError) as caught:
        nvrtc.compile_cuda(source, arch, name="attention", **more)
    return caught.value


@pytest.mark.parametrize("arch", ARCHS)
def test_a_kernel_with_mma_and_half_headers_compiles_from_wheels_alone(arch):
    binary = nvrtc.compile_cuda(MMA, arch, name="mma16")
    assert binary.arch == arch
    assert cubin.arch_of(binary.cubin) == arch.rstrip("a")
    assert list(binary.resources()) == ["mma16"]


@pytest.mark.parametrize("arch", ["sm_89", "sm_90a"])
def test_ptx_is_for_the_virtual_architecture(arch):
    ptx = nvrtc.ptx_of(MMA, arch, name="mma16")
    assert f".target {arch}" in ptx
    assert "wmma.mma.sync" in ptx
    assert not ptx.endswith("\0")


def test_the_version_is_one_that_is_supported():
    assert nvrtc.nvrtc_version() >= nvrtc.OLDEST


def test_an_error_shows_the_generated_line_and_the_spec_line(spec):
    source = 'extern "C" __global__ void k(float* o) {\n  int a = 3;\n  o[0] = nope + a;\n  o[1] = nope2;\n}\n'
    error = refusal(source, line_map={1: Loc(str(spec), 1), 3: Loc(str(spec), 5), 4: Loc(str(spec), 4)})
    assert error.code == "compile/nvrtc"
    assert 'identifier "nope" is undefined' in error.message
    assert error.loc == Loc(str(spec), 5)
    text = str(error)
    assert "p = fc.exp(s)" in text
    assert ">     3 |   o[0] = nope + a;" in text
    assert "2 |   int a = 3;" in text and "4 |   o[1] = nope2;" in text
    assert "1 more error" in text


def test_a_line_without_a_place_of_its_own_belongs_to_the_one_above(spec):
    source = 'extern "C" __global__ void k(float* o) {\n  o[0] = 1.0f\n    + nope;\n}\n'
    assert refusal(source, line_map={2: Loc(str(spec), 4)}).loc == Loc(str(spec), 4)


def test_a_line_directive_leads_to_the_spec(spec):
    source = f'extern "C" __global__ void k(float* o) {{\n#line 5 "{spec.as_posix()}"\n  o[0] = nope;\n}}\n'
    error = refusal(source)
    assert error.loc == Loc(spec.as_posix(), 5)
    assert ">     3 |   o[0] = nope;" in str(error)


def test_an_error_inside_a_header_leads_to_the_line_that_used_it():
    source = '#include <mma.h>\nextern "C" __global__ void k(float* o) {\n  o[0] = nvcuda::wmma::nope;\n}\n'
    assert "generated attention.cu:3" in str(refusal(source))
    log = "/inc/mma.hpp(12): error: static assertion failed\n      detected during instantiation of \"f\" at line 3\n"
    told = str(diagnose.failure(log, source, "attention.cu", "sm_89", {}, None))
    assert "inside /inc/mma.hpp:12" in told and "generated attention.cu:3" in told


def test_an_error_of_ptxas_leads_to_the_line_with_the_inline_ptx(spec):
    source = 'extern "C" __global__ void k(float* o) {\n  o[1] = 2;\n  asm volatile("wgmma.fence.sync.aligned;");\n}\n'
    error = refusal(source, "sm_89", line_map={2: Loc(str(spec), 4), 3: Loc(str(spec), 5)})
    assert "ptxas" in error.message and "wgmma.fence" in error.message
    assert error.loc == Loc(str(spec), 5)
    assert ">     3 |   asm volatile" in str(error)
    nvrtc.compile_cuda(source, "sm_90a", name="attention")


def test_too_much_static_shared_memory_is_told_in_ptxas_words():
    source = 'extern "C" __global__ void k(float* o) { __shared__ float s[90000]; s[threadIdx.x] = 1; o[1] = s[3]; }\n'
    error = refusal(source)
    assert "too much shared data" in error.message
    assert "\0" not in str(error)


def test_a_missing_include_is_told():
    assert 'cannot open source file "nofile.h"' in refusal('#include "nofile.h"\n').message


@pytest.mark.parametrize("arch", ["ada", "sm_", "compute_89", "sm_35", "sm_990"])
def test_an_unknown_architecture_is_refused_with_examples(arch):
    error = refusal(SCALE, arch)
    assert error.code == "compile/toolchain" and error.got == arch and "sm_80" in error.expected


def test_an_unknown_option_is_refused():
    error = refusal(SCALE, options=("--bogus",))
    assert error.code == "compile/toolchain" and "--bogus" in str(error)


def test_warnings_are_kept_apart_from_the_log():
    unused = 'extern "C" __global__ void k(float* o) { int unused = 3; o[0] = 1; }\n'
    binary = nvrtc.compile_cuda(unused, "sm_89", name="k")
    assert any("never referenced" in w for w in binary.warnings)
    assert nvrtc.compile_cuda(SCALE, "sm_89", name="scale").warnings == ()
    advice = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ..."
    assert nvrtc.Binary(b"", f"{advice}\nptxas info    : Used 8 registers", "sm_90a", "k").warnings == (advice,)


def test_an_old_nvrtc_is_refused(monkeypatch):
    class Old:
        @staticmethod
        def nvrtcVersion():
            return 0, 12, 1

    monkeypatch.setattr(nvrtc, "_bindings", lambda: Old)
    with pytest.raises(FcError) as caught:
        nvrtc.nvrtc_version.__wrapped__()
    assert caught.value.code == "compile/toolchain" and caught.value.got == "12.1"


def test_an_nvrtc_that_cannot_be_loaded_says_what_to_install(monkeypatch):
    class Absent:
        @staticmethod
        def nvrtcVersion():
            raise RuntimeError("Failed to dlopen libnvrtc.so.13\nmore")

    monkeypatch.setattr(nvrtc, "_bindings", lambda: Absent)
    with pytest.raises(FcError, match="pip install nvidia-cuda-nvrtc"):
        nvrtc.nvrtc_version.__wrapped__()


def fill(folder: Path, headers, version: int | None = None) -> Path:
    for header in headers:
        (folder / header).parent.mkdir(parents=True, exist_ok=True)
        (folder / header).write_text("")
    if version:
        (folder / "cuda_runtime_api.h").write_text(f"#define CUDART_VERSION  {version}\n")
    return folder


@pytest.fixture
def places(monkeypatch, tmp_path):
    """Wheels and toolkits made of empty files."""
    monkeypatch.setattr(toolchain, "wheel_roots", lambda: [tmp_path / "nvidia"])
    monkeypatch.setattr(toolchain, "toolkit_roots", lambda: [tmp_path / "toolkit"])
    return tmp_path


def test_missing_headers_name_the_wheel_that_has_them(places):
    with pytest.raises(FcError) as caught:
        toolchain.include_dirs.__wrapped__((13, 0))
    assert "pip install nvidia-cuda-crt nvidia-cuda-runtime" in caught.value.hint
    fill(places / "nvidia" / "cu13" / "include", ["cuda_fp16.h", "cuda_bf16.h", "mma.h"], 13000)
    with pytest.raises(FcError) as caught:
        toolchain.include_dirs.__wrapped__((13, 0))
    assert caught.value.got == "not found: crt/mma.h" and "pip install nvidia-cuda-crt," in caught.value.hint
    with pytest.raises(FcError) as caught:
        toolchain.include_dirs.__wrapped__((12, 6))
    assert "nvidia-cuda-nvcc-cu12" in caught.value.hint


def test_headers_spread_over_two_wheels_are_both_used(places):
    runtime = fill(places / "nvidia" / "cuda_runtime" / "include", ["cuda_fp16.h", "cuda_bf16.h", "mma.h"], 12040)
    compiler = fill(places / "nvidia" / "cuda_nvcc" / "include", ["crt/mma.h"])
    assert set(toolchain.include_dirs.__wrapped__((12, 4))) == {runtime, compiler}


def test_headers_of_nvrtcs_own_version_win(places):
    wheel = fill(places / "nvidia" / "cu13" / "include", toolchain.NEEDED, 13010)
    toolkit = fill(places / "toolkit" / "include", toolchain.NEEDED, 12080)
    assert toolchain.include_dirs.__wrapped__((13, 1)) == (wheel,)
    assert toolchain.include_dirs.__wrapped__((12, 8)) == (toolkit,)
    assert toolchain.include_dirs.__wrapped__((12, 6)) == (toolkit,)


def test_importing_the_runtime_loads_neither_torch_nor_cuda():
    code = ("import sys; from fcgen.runtime import cache, cubin, driver, module, nvrtc, tensors; "
            "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'cuda')])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_empty_log_is_not_written_over_pythons_own_bytes() -> None:
    nvrtc.ptx_of('extern "C" __global__ void k() {}', "sm_89", name="k")
    assert [bytes([i])[0] for i in range(256)] == list(range(256))


def test_remarks_before_an_error_are_no_place() -> None:
    """A warning, NVRTC's remark on warnings, and then the error: the place is the error's."""
    source = 'extern "C" __global__ void k(float* x) {\n    int unused;\n    x[0] = missing;\n}\n'
    log = ('k.cu(2): warning #177-D: variable "unused" was declared but never referenced\n\nRemark: The warnings can be suppressed with '
           '"-diag-suppress <warning-number>"\n\nk.cu(3): error: identifier "missing" is undefined\n\n1 error detected\n')
    for error in (diagnose.failure(log, source, "k.cu", "sm_89", {3: Loc("spec.py", 7)}, None), compiled(source)):
        assert "Remark" not in str(error) and "k.cu:3" in str(error) and "missing" in error.message
    assert str(diagnose.failure(log, source, "k.cu", "sm_89", {3: Loc("spec.py", 7)}, None).loc) == "spec.py:7"


def compiled(source: str) -> FcError:
    with pytest.raises(FcError) as caught:
        nvrtc.compile_cuda(source, "sm_89", name="k")
    return caught.value
