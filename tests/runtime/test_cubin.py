"""Facts read from the ELF agree with what ptxas says in its log."""

from __future__ import annotations

import re

import pytest
from runtime_kernels import HUNGRY, LOCAL_ARRAY, SHARED

from fcgen.errors import FcError
from fcgen.runtime import cubin, nvrtc, toolchain

ARCHS = ["sm_80", "sm_89", "sm_90", "sm_90a"]
TEMPLATE = """
__device__ __noinline__ float helper(float* x, int n) {
    float y[32];
    for (int i = 0; i < 32; i++) y[i] = x[i % n];
    return y[n % 32];
}
template <int N> __global__ void __launch_bounds__(32 * N, 2) many(float* o, int n) {
    __shared__ float s[33];
    s[threadIdx.x % 33] = o[n];
    o[n] = helper(s, n);
}
template __global__ void many<2>(float*, int);
template __global__ void many<4>(float*, int);
"""


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("options", [(), ("--maxrregcount=32",)], ids=["roomy", "tight"])
def test_the_elf_agrees_with_ptxas(arch, options):
    binary = nvrtc.compile_cuda(HUNGRY + SHARED + LOCAL_ARRAY, arch, name="all", options=options)
    for name, found in binary.resources().items():
        said = binary.log.split(f"Function properties for {name}\n", 1)[1]
        assert found.registers == int(re.search(r"Used (\d+) registers", said)[1])
        assert found.stack_bytes == int(re.search(r"(\d+) bytes stack frame", said)[1])
        smem = re.search(r"(\d+) bytes smem", said.split("Compiling entry")[0])
        assert found.shared_bytes == (int(smem[1]) if smem else 0)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_kernel_that_spills_is_told_from_one_that_does_not(arch):
    tight = nvrtc.compile_cuda(HUNGRY, arch, name="k", options=("--maxrregcount=32",))
    roomy = nvrtc.compile_cuda(HUNGRY, arch, name="k")
    spilling, clean = tight.resources()["hungry"], roomy.resources()["hungry"]
    assert spilling.spills and spilling.spill_stores > 0 and spilling.spill_loads > 0
    assert not clean.spills and clean.spill_stores == 0 and clean.stack_bytes == 0
    assert cubin.resources(tight.cubin)["hungry"].spills, "without a log the file alone must tell"
    assert not cubin.resources(roomy.cubin)["hungry"].spills
    if nvrtc.nvrtc_version() >= (13, 0):
        assert spilling.spill_sites > 0 and clean.spill_sites == 0


def test_a_local_array_is_no_spill_but_looks_like_one_without_a_log():
    binary = nvrtc.compile_cuda(LOCAL_ARRAY, "sm_89", name="k")
    assert not binary.resources()["local_array"].spills
    assert cubin.resources(binary.cubin)["local_array"].stack_bytes > 0
    assert cubin.resources(binary.cubin)["local_array"].spills


@pytest.mark.parametrize("arch", ARCHS)
def test_launch_bounds_and_shared_memory_are_read(arch):
    found = nvrtc.compile_cuda(SHARED, arch, name="k").resources()["shared_reverse"]
    assert (found.max_threads, found.shared_bytes) == (128, 512)


def test_mangled_kernels_are_listed_and_device_functions_are_not():
    found = nvrtc.compile_cuda(TEMPLATE, "sm_90a", name="k").resources()
    assert sorted(found) == ["_Z4manyILi2EEvPfi", "_Z4manyILi4EEvPfi"]
    assert [found[n].max_threads for n in sorted(found)] == [64, 128]


def test_spilled_bytes_of_called_functions_count_for_the_kernel():
    log = """ptxas info    : Compiling entry function 'k' for 'sm_80'
ptxas info    : Function properties for k
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 32 registers
ptxas info    : Function properties for _Z6helper
    0 bytes stack frame, 100 bytes spill stores, 200 bytes spill loads
ptxas info    : Compiling entry function 'other' for 'sm_80'
ptxas info    : Function properties for other
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
    assert cubin.spilled_bytes(log) == {"k": (108, 204), "other": (0, 0)}


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: b"\x7fELF", lambda c: c[:200], lambda c: b"x" * 500,
                                    lambda c: c[:len(c) // 2], lambda c: c[:40] + b"\xff" * 24 + c[64:]])
def test_a_damaged_cubin_is_refused(damage):
    whole = nvrtc.compile_cuda(SHARED, "sm_89", name="k").cubin
    with pytest.raises(FcError):
        cubin.resources(damage(whole))


@pytest.mark.skipif(toolchain.find_tool("nvdisasm") is None, reason="nvdisasm is not installed")
def test_sass_is_text():
    text = cubin.sass(nvrtc.compile_cuda(SHARED, "sm_89", name="k").cubin)
    assert "shared_reverse" in text and "BAR.SYNC" in text and "EXIT" in text


def test_a_missing_nvdisasm_says_what_to_install(monkeypatch):
    monkeypatch.setattr(toolchain, "find_tool", lambda name: None)
    with pytest.raises(FcError, match="pip install nvidia-cuda-nvdisasm"):
        cubin.sass(b"")
