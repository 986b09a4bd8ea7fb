"""Argument packing (anywhere) and launches (on a GPU)."""

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
from fcgen.runtime.module import OVERLAP, ArgPacker, LaunchConfig, load
from tests.work import calls


def read(address: int, number: int, code: str):
    """The value of argument `number`, as the driver would read it."""
    pointer = ctypes.c_void_p.from_address(address + 8 * number).value
    return struct.unpack("<" + code, ctypes.string_at(pointer, struct.calcsize("<" + code)))[0]


def test_each_value_is_where_its_pointer_says():
    packer = ArgPacker(("i32", "ptr", "f32", "i64", "i32"))
    address = packer.pack((-7, 2**63 + 1, 1.5, -2**40, 9))
    assert [read(address, n, c) for n, c in enumerate("iQfqi")] == [-7, 2**63 + 1, 1.5, -2**40, 9]


def test_values_are_aligned_to_their_size():
    packer = ArgPacker(("i32", "ptr", "i32", "tensormap", "f32", "i64"))
    assert packer.offsets == (0, 8, 16, 64, 192, 200) and packer.size == 208
    address = packer.pack((1, 2, 3, bytes(range(128)), 4.0, 5))
    pointers = [ctypes.c_void_p.from_address(address + 8 * n).value for n in range(6)]
    assert [p % a for p, a in zip(pointers, (4, 8, 4, 64, 4, 8))] == [0] * 6
    assert ctypes.string_at(pointers[3], 128) == bytes(range(128))


def test_numpy_numbers_and_special_floats_are_taken():
    packer = ArgPacker(("i32", "f32", "f32"))
    address = packer.pack((np.int64(5), np.float32(0.25), float("-inf")))
    assert [read(address, n, c) for n, c in enumerate("iff")] == [5, 0.25, float("-inf")]


def test_packing_again_reuses_the_buffer():
    packer = ArgPacker(("i32",))
    assert packer.pack((1,)) == packer.pack((2,))


def test_no_arguments_are_fine():
    assert ArgPacker(()).pack(()) != 0


def test_each_thread_has_values_of_its_own():
    packer = ArgPacker(("i32", "i64"))
    wrong, barrier = [], threading.Barrier(4)

    def work(number):
        barrier.wait()
        for step in range(2000):
            address = packer.pack((number, step))
            if (read(address, 0, "i"), read(address, 1, "q")) != (number, step):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(("kinds", "values", "said"), [
    (("i32", "f32"), (1,), "wrong number"),
    (("i32", "f32"), (1, 2.0, 3), "wrong number"),
    (("i32", "i32"), (1, 2**31), "argument 1"),
    (("ptr",), (-1,), "argument 0"),
    (("f32",), ("x",), "argument 0"),
    (("f32",), (1e40,), "argument 0"),
    (("i32",), (1.5,), "argument 0"),
])
def test_a_value_that_does_not_fit_is_named(kinds, values, said):
    with pytest.raises(FcError) as caught:
        ArgPacker(kinds).pack(values)
    assert caught.value.code == "call/argument" and said in caught.value.message


def test_an_unknown_kind_is_refused():
    with pytest.raises(FcError, match="unknown kind"):
        ArgPacker(("f8",))


def test_packing_is_a_few_calls_however_many_arguments():
    packer = ArgPacker(("ptr",) * 4 + ("i32",) * 6 + ("f32",) * 2 + ("i64",) * 6)
    values = [1] * 10 + [1.0] * 2 + [3] * 6
    assert calls(lambda: packer.pack(values)) <= 6


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


@pytest.mark.gpu
def test_a_kernel_runs_and_leaves_the_current_context_alone():
    _, kernel = built(SCALE, "scale")
    x = np.arange(1000, dtype=np.float32)
    source, target = Memory(x), Memory(np.zeros_like(x))
    packer = ArgPacker(("ptr", "ptr", "i32", "f32"))
    cu = driver.require()
    before = int(cu.cuCtxGetCurrent()[1])
    kernel.launch((8, 1, 1), (128, 1, 1), 0, packer.pack((int(source.ptr), int(target.ptr), 1000, 2.5)), 0)
    assert int(cu.cuCtxGetCurrent()[1]) == before
    np.testing.assert_array_equal(target.get(), 2.5 * x)
    kernel.launch((0, 1, 1), (128, 1, 1), 0, packer.pack((0, 0, 0, 0.0)), 0)
    source.free()
    target.free()


@pytest.mark.gpu
def test_the_driver_agrees_with_what_the_cubin_says():
    binary, kernel = built(MMA, "mma16")
    assert kernel.attribute("NUM_REGS") == binary.resources()["mma16"].registers
    assert kernel.attribute("LOCAL_SIZE_BYTES") == 0
    kernel.unload()


@pytest.mark.gpu
def test_shared_memory_beyond_48_kib_can_be_used_up_to_what_was_asked():
    size = 20000
    _, kernel = built(DYNAMIC, "dynamic_reverse", 4 * size)
    x = np.arange(size, dtype=np.float32)
    memory = Memory(x)
    packer = ArgPacker(("ptr", "i32", "i64"))
    params = packer.pack((int(memory.ptr), size, 1))
    kernel.launch((1, 1, 1), (256, 1, 1), 4 * size, params, 0)
    np.testing.assert_array_equal(memory.get(), x[::-1] + 1)
    with pytest.raises(FcError) as caught:
        kernel.launch((1, 1, 1), (256, 1, 1), 4 * size + 1024, params, 0)
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
    packer = ArgPacker(("ptr", "ptr", "i32", "f32"))
    source = Memory(np.ones(256, np.float32))
    targets = [Memory(np.zeros(256, np.float32)) for _ in range(4)]

    def work(number):
        for _ in range(200):
            params = packer.pack((int(source.ptr), int(targets[number].ptr), 256, float(number)))
            kernel.launch((2, 1, 1), (128, 1, 1), 0, params, 0)

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
@pytest.mark.alone
def test_a_steady_launch_costs_the_host_a_few_microseconds():
    _, kernel = built(SCALE, "scale")
    memory = Memory(np.ones(1, np.float32))
    packer = ArgPacker(("ptr", "ptr", "i32", "f32"))
    cu = driver.require()
    driver.check(cu.cuCtxPushCurrent(driver.primary_context(0)), "context")
    values = (int(memory.ptr), int(memory.ptr), 0, 1.0)

    def call():
        kernel.launch((1, 1, 1), (32, 1, 1), 0, packer.pack(values), 0)

    best = min(_time(call, 500) for _ in range(20))
    print(f"\npack and launch: {best * 1e6:.2f} us; pack: {_time(lambda: packer.pack(values)) * 1e6:.2f} us")
    driver.check(cu.cuCtxSynchronize(), "sync")
    driver.check(cu.cuCtxPopCurrent(), "context")
    memory.free()
    assert best < 15e-6


@pytest.mark.gpu
def test_torch_tensors_run_on_torchs_stream():
    torch = pytest.importorskip("torch")
    _, kernel = built(SCALE, "scale")
    packer = ArgPacker(("ptr", "ptr", "i32", "f32"))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.randn(4096, device="cuda")
        y = torch.empty_like(x)
        assert tensors.current_stream(0) == stream.cuda_stream
        a, b = tensors.describe(x, "x"), tensors.describe(y, "y")
        tensors.check(a, name="x", dtype="f32", shape=(None,), device=tensors.current_device())
        kernel.launch((32, 1, 1), (128, 1, 1), 0, packer.pack((a.ptr, b.ptr, 4096, 3.0)), tensors.current_stream(0))
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
