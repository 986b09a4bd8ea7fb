"""Loading and launches (on a GPU)."""

from __future__ import annotations

import ctypes
import struct
import threading
import time

import numpy as np
import pytest
from runtime_kernels import DYNAMIC, MMA, SCALE

from fcgen.errors import FcError
from fcgen.runtime import driver, nvrtc, tensors
from fcgen.runtime.module import OVERLAP, LaunchConfig, load


def _time(call, times: int = 1000) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


@pytest.mark.skipif(driver.available()[0], reason="there is a GPU")
def test_loading_without_a_gpu_says_what_still_works():
    with pytest.raises(FcError) as caught:
        load(b"", "k", 0)
    assert caught.value.code == "call/driver" and "without a GPU" in caught.value.hint
    assert driver.available()[1] in str(caught.value)
    assert driver.device_count() == 0


class Memory:
    """Device memory with a NumPy array's content."""

    def __init__(self, array: np.ndarray):
        self.cu, self.array = driver.require(), np.ascontiguousarray(array)
        driver.check(self.cu.cuCtxPushCurrent(driver.primary_context(0)), "context")
        self.ptr = driver.check(self.cu.cuMemAlloc(max(1, array.nbytes)), "alloc")
        driver.check(self.cu.cuMemcpyHtoD(self.ptr, self.array.ctypes.data, array.nbytes), "copy")
        driver.check(self.cu.cuCtxPopCurrent(), "context")

    def get(self) -> np.ndarray:
        out = np.empty_like(self.array)
        driver.check(self.cu.cuCtxPushCurrent(driver.primary_context(0)), "context")
        driver.check(self.cu.cuMemcpyDtoH(out.ctypes.data, self.ptr, out.nbytes), "copy")
        driver.check(self.cu.cuCtxPopCurrent(), "context")
        return out

    def free(self) -> None:
        driver.check(self.cu.cuCtxPushCurrent(driver.primary_context(0)), "context")
        driver.check(self.cu.cuMemFree(self.ptr), "free")
        driver.check(self.cu.cuCtxPopCurrent(), "context")

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.array.shape, "typestr": self.array.dtype.str, "data": (int(self.ptr), False), "version": 3,
                "stream": 2}


def built(source: str, name: str, smem: int = 0):
    binary = nvrtc.compile_cuda(source, driver.device_info(0).arch, name=name)
    return binary, load(binary.cubin, name, smem)


#: struct codes of arguments -> the ctypes of them
TYPES = {"P": ctypes.c_uint64, "i": ctypes.c_int32, "q": ctypes.c_int64, "f": ctypes.c_float}


def launch(kernel, blocks: int, threads: int, codes: str, *values, smem: int = 0, stream: int = 0) -> None:
    kept = [TYPES[c](v) for c, v in zip(codes, values)]
    pointers = (ctypes.c_void_p * len(kept))(*map(ctypes.addressof, kept))
    config = LaunchConfig((blocks, 1, 1), (threads, 1, 1), smem, stream, None, 0)
    kernel.starter()(ctypes.addressof(config), ctypes.addressof(pointers))


@pytest.mark.gpu
def test_a_kernel_runs_and_leaves_the_current_context_alone():
    _, kernel = built(SCALE, "scale")
    x = np.arange(1000, dtype=np.float32)
    source, target = Memory(x), Memory(np.zeros_like(x))
    cu = driver.require()
    before = int(cu.cuCtxGetCurrent()[1])
    launch(kernel, 8, 128, "PPif", int(source.ptr), int(target.ptr), 1000, 2.5)
    assert int(cu.cuCtxGetCurrent()[1]) == before
    np.testing.assert_array_equal(target.get(), 2.5 * x)
    source.free()
    target.free()


@pytest.mark.gpu
def test_the_driver_agrees_with_what_the_cubin_says():
    binary, kernel = built(MMA, "mma16")
    facts = driver.bindings().CUfunction_attribute
    asked = lambda which: driver.check(driver.bindings().cuFuncGetAttribute(which, kernel._function), "asking")
    assert asked(facts.CU_FUNC_ATTRIBUTE_NUM_REGS) == binary.resources()["mma16"].registers
    assert asked(facts.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES) == 0


@pytest.mark.gpu
def test_shared_memory_beyond_48_kib_can_be_used_up_to_what_was_asked():
    size = 20000
    _, kernel = built(DYNAMIC, "dynamic_reverse", 4 * size)
    x = np.arange(size, dtype=np.float32)
    memory = Memory(x)
    values = int(memory.ptr), size, 1
    launch(kernel, 1, 256, "Piq", *values, smem=4 * size)
    np.testing.assert_array_equal(memory.get(), x[::-1] + 1)
    with pytest.raises(FcError) as caught:
        launch(kernel, 1, 256, "Piq", *values, smem=4 * size + 1024)
    assert caught.value.code == "call/launch" and "CUDA_ERROR_INVALID_VALUE" in caught.value.message
    assert "at most 80000 bytes" in caught.value.hint
    with pytest.raises(FcError) as caught:
        built(DYNAMIC, "dynamic_reverse", 1 << 20)
    assert caught.value.code == "compile/budget"
    memory.free()


@pytest.mark.gpu
def test_a_kernel_that_is_not_in_the_cubin_is_named_with_those_that_are():
    with pytest.raises(FcError, match="the cubin has: scale"):
        load(built(SCALE, "scale")[0].cubin, "other", 0)


@pytest.mark.gpu
def test_a_cubin_for_another_gpu_is_refused_with_both_names():
    major = driver.device_info(0).capability[0]
    other = nvrtc.compile_cuda(SCALE, "sm_80" if major != 8 else "sm_90", name="scale").cubin
    with pytest.raises(FcError, match="compiled for sm_"):
        load(other, "scale", 0)


@pytest.mark.gpu
def test_an_array_with_the_cuda_array_interface_is_described():
    memory = Memory(np.zeros((3, 4), np.float32))
    arg = tensors.describe(memory, "q")
    assert arg[:5] == (int(memory.ptr), (3, 4), (4, 1), "f32", 0)
    memory.free()


@pytest.mark.gpu
def test_threads_launch_the_same_kernel_with_their_own_arguments():
    _, kernel = built(SCALE, "scale")
    source = Memory(np.ones(256, np.float32))
    targets = [Memory(np.zeros(256, np.float32)) for _ in range(4)]

    def work(number):
        for _ in range(200):
            launch(kernel, 2, 128, "PPif", int(source.ptr), int(targets[number].ptr), 256, float(number))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, target in enumerate(targets):
        np.testing.assert_array_equal(target.get(), np.full(256, number, np.float32))
        target.free()
    source.free()


@pytest.mark.gpu
def test_torch_tensors_run_on_torchs_stream():
    torch = pytest.importorskip("torch")
    _, kernel = built(SCALE, "scale")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.randn(4096, device="cuda")
        y = torch.empty_like(x)
        assert tensors.current_stream(0) == stream.cuda_stream
        a, b = tensors.describe(x, "x"), tensors.describe(y, "y")
        tensors.check(a, name="x", dtype="f32", shape=(None,), device=tensors.current_device())
        launch(kernel, 32, 128, "PPif", a.ptr, b.ptr, 4096, 3.0, stream=tensors.current_stream(0))
        assert torch.equal(y, 3.0 * x)
    print(f"\ndescribe: {_time(lambda: tensors.describe(x, 'x')) * 1e6:.2f} us, "
          f"check: {_time(lambda: tensors.check(a, name='x', dtype='f32', shape=(None,), device=0)) * 1e6:.2f} us, "
          f"current_stream: {_time(lambda: tensors.current_stream(0)) * 1e6:.2f} us")
    half = torch.zeros(2, 3, 8, dtype=torch.bfloat16, device="cuda").transpose(0, 1)
    by_torch, by_dlpack = tensors.describe(half, "h"), tensors.from_dlpack(half, "h")
    assert by_torch[:5] == by_dlpack[:5] == (half.data_ptr(), (3, 2, 8), (8, 24, 1), "bf16", 0)


@pytest.mark.parametrize("pdl", [False, True])
def test_a_launch_is_configured_as_the_drivers_header_says(pdl):
    """Against the structures of cuda.bindings."""
    cu = driver.bindings()
    theirs, overlap = cu.CUlaunchConfig(), cu.CUlaunchAttribute()
    theirs.gridDimX, theirs.gridDimY, theirs.gridDimZ, theirs.blockDimX, theirs.blockDimY, theirs.blockDimZ = 7, 8, 9, 128, 2, 3
    theirs.sharedMemBytes, theirs.hStream = 4567, cu.CUstream(0x1234567890)
    overlap.id = cu.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    overlap.value.programmaticStreamSerializationAllowed = 1
    if pdl:
        theirs.attrs, theirs.numAttrs = [overlap], 1
    attributes, count = OVERLAP if pdl else (0, 0)
    packed = struct.pack("<" + LaunchConfig.code, 7, 8, 9, 128, 2, 3, 4567, 0x1234567890, attributes, count)
    ours = LaunchConfig((7, 8, 9), (128, 2, 3), 4567, 0x1234567890, attributes, count)
    assert bytes(ours) == packed and len(packed) == ctypes.sizeof(LaunchConfig)
    read = lambda at, n: ctypes.string_at(int(at), n)
    assert read(theirs.getPtr(), 40) == packed[:40] and read(theirs.getPtr() + 48, 4) == packed[48:52]
    if pdl:
        array = struct.unpack("<Q", read(theirs.getPtr() + 40, 8))[0]
        assert read(array, 4) == read(attributes, 4) and read(array + 8, 4) == read(attributes + 8, 4)
