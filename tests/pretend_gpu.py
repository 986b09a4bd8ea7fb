"""`pytest -p tests.pretend_gpu tests/gpu`: GPU tests on a pretend GPU and a pretend torch, up to their first number.

Specs are traced, lowered and printed, arguments are checked, plans are made and launches are packed, all by the real code; NVRTC is not
asked and nothing runs, so results are what memory held before. What a test asserts after a launch may therefore be wrong; everything else may
not: an import that is gone, a name or an argument that has changed, an error with other words, an assertion before the first launch. Where a
test does with torch what is not pretended here, or has launched ENOUGH kernels, its end counts as reached. Of a function whose first case launches something EACH cases run
(all with --every-case); what launches nothing is cheap, and runs whole.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import math
import subprocess
import sys
import types
from collections import Counter, defaultdict
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.runtime import pretend

EACH = 2
#: so many launches of a test are packed: those that follow are of the same kind
ENOUGH = 24
NUMPY = {"float16": np.float16, "bfloat16": np.float16, "float32": np.float32, "float64": np.float64, "int8": np.int8, "uint8": np.uint8,
         "int16": np.int16, "int32": np.int32, "int64": np.int64, "uint32": np.uint32, "bool": np.bool_,
         "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}


class Unpretended(Exception):
    """What torch has and this one has not."""


class Enough(Exception):
    """A test has launched `ENOUGH` kernels."""


class Driver(pretend.Driver):
    """Ends a test that launches more than `ENOUGH` kernels."""

    before = 0

    def cuLaunchKernelEx(self, *args: Any) -> Any:
        if len(self.launches) - self.before == ENOUGH:
            raise Enough
        return super().cuLaunchKernelEx(*args)


class Dtype(pretend.Dtype):
    def __init__(self, name: str):
        super().__init__(name)
        self.numpy = np.dtype(NUMPY[name])
        self.is_floating_point = "float" in name


DTYPES = {name: Dtype(name) for name in NUMPY}


def dtype_of(array: np.ndarray) -> Dtype:
    return next(d for d in DTYPES.values() if d.numpy == array.dtype)


class Device(str):
    type = property(lambda self: self.partition(":")[0])
    index = property(lambda self: int(self.partition(":")[2] or 0))


class Tensor(pretend.Tensor):
    """An array with torch's names. bfloat16 is kept as float16."""

    __array_ufunc__ = None

    def __init__(self, array: Any, dtype: Dtype | None = None, device: str = "cpu"):
        self.array = np.asarray(array)
        self.dtype = dtype or dtype_of(self.array)
        self.device = Device("cuda:0" if device == "cuda" else device)

    shape = property(lambda self: self.array.shape)
    ndim = property(lambda self: self.array.ndim)
    is_cuda = property(lambda self: self.device.type == "cuda")
    T = property(lambda self: self._like(self.array.T))
    itemsize = property(lambda self: self.array.itemsize)

    def _like(self, array: Any, dtype: Dtype | None = None) -> Tensor:
        array = np.asarray(array)
        same = array.dtype == self.dtype.numpy
        return Tensor(array, dtype or (self.dtype if same else None), self.device)

    def stride(self, axis: int | None = None) -> Any:
        steps = tuple(s // self.array.itemsize for s in self.array.strides)
        return steps if axis is None else steps[axis]

    def data_ptr(self) -> int:
        return int(self.array.__array_interface__["data"][0])

    def get_device(self) -> int:
        return self.device.index if self.is_cuda else -1

    def cuda(self) -> Tensor:
        return Tensor(aligned(self.array), self.dtype, "cuda:0")

    def cpu(self) -> Tensor:
        return Tensor(self.array, self.dtype, "cpu")

    def numpy(self) -> np.ndarray:
        return self.array

    def to(self, *wanted: Any, **named: Any) -> Tensor:
        out = self
        for x in (*wanted, *named.values()):
            out = Tensor(aligned(self.array.astype(x.numpy)), x, out.device) if isinstance(x, Dtype) else Tensor(out.array, out.dtype, x)
        return out

    def type(self, dtype: Dtype) -> Tensor:
        return self.to(dtype)

    def view(self, *shape: Any) -> Tensor:
        if len(shape) == 1 and isinstance(shape[0], Dtype):
            return Tensor(self.array.view(shape[0].numpy), shape[0], self.device)
        return self.reshape(*shape)

    def reshape(self, *shape: Any) -> Tensor:
        return self._like(self.array.reshape(shape[0] if isinstance(shape[0], tuple) else shape))

    def transpose(self, a: int, b: int) -> Tensor:
        return self._like(self.array.swapaxes(a, b))

    def permute(self, *axes: Any) -> Tensor:
        return self._like(self.array.transpose(*axes))

    def expand(self, *shape: Any) -> Tensor:
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        strides = np.broadcast_to(self.array, shape).strides
        return self._like(np.lib.stride_tricks.as_strided(self.array, shape, strides))  # may be written, as torch's

    def contiguous(self) -> Tensor:
        return self._like(np.ascontiguousarray(self.array))

    def clone(self) -> Tensor:
        return self._like(aligned(self.array))

    detach = requires_grad_ = lambda self, *_: self
    requires_grad = False

    def is_contiguous(self) -> bool:
        return bool(self.array.flags.c_contiguous)

    def numel(self) -> int:
        return int(self.array.size)

    def element_size(self) -> int:
        return int(self.array.itemsize)

    def copy_(self, x: Tensor) -> Tensor:
        self.array[...] = x.array
        return self

    def fill_(self, x: Any) -> Tensor:
        self.array[...] = x
        return self

    def zero_(self) -> Tensor:
        return self.fill_(0)

    def masked_fill_(self, where: Tensor, x: Any) -> Tensor:
        self.array[np.broadcast_to(where.array, self.shape)] = x
        return self

    def repeat_interleave(self, n: int, axis: int) -> Tensor:
        return self._like(np.repeat(self.array, n, axis))

    def isnan(self) -> Tensor:
        return self._like(np.isnan(self.array))

    def isfinite(self) -> Tensor:
        return self._like(np.isfinite(self.array))

    def item(self) -> Any:
        return self.array.item()

    def tolist(self) -> Any:
        return self.array.tolist()

    def __getattr__(self, name: str) -> Any:
        if name in DTYPES or name in ("half", "float", "double"):
            return lambda: self.to(DTYPES[{"half": "float16", "float": "float32", "double": "float64"}.get(name, name)])
        if name in ("abs", "max", "min", "sum", "mean", "all", "any", "flatten", "ravel", "squeeze"):
            method = (lambda *a: np.abs(self.array)) if name == "abs" else getattr(self.array, name)
            return lambda *a, **k: self._like(method(*a, **k))
        if name.startswith("__"):
            raise AttributeError(name)
        raise Unpretended(f"torch.Tensor.{name}")

    def __getitem__(self, at: Any) -> Tensor:
        return self._like(self.array[at.array if isinstance(at, Tensor) else at])

    def __setitem__(self, at: Any, x: Any) -> None:
        self.array[at.array if isinstance(at, Tensor) else at] = x.array if isinstance(x, Tensor) else x

    def __bool__(self) -> bool:
        return bool(self.array)

    def __float__(self) -> float:
        return float(self.array)

    def __int__(self) -> int:
        return int(self.array)

    __index__ = __int__

    def __len__(self) -> int:
        return len(self.array)

    __hash__ = object.__hash__


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "matmul", "pow", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "radd", "rsub", "rmul",
              "rtruediv", "rfloordiv", "neg", "invert"):
    def _operator(self: Tensor, *others: Any, _word: str = f"__{_name}__") -> Tensor:
        with np.errstate(all="ignore"):
            return self._like(getattr(self.array, _word)(*(o.array if isinstance(o, Tensor) else o for o in others)))

    setattr(Tensor, f"__{_name}__", _operator)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy whose first element is at a multiple of 256 bytes, as torch's allocations are."""
    out = cleared(array.shape, array.dtype)
    out[...] = array
    return out


def cleared(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + 256, np.uint8)
    start = -raw.ctypes.data % 256
    return raw[start:start + size].view(dtype).reshape(shape)


class Module(types.ModuleType):
    """A module of torch: what it has not is `Unpretended`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Unpretended(f"{self.__name__}.{name}")


class Anything:
    """A stream, an event, a graph."""

    cuda_stream = 77

    def __init__(self, *_: Any, **__: Any):
        pass

    def __enter__(self) -> Anything:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def query(self) -> bool:
        return False

    def manual_seed(self, seed: int) -> Anything:
        return self

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Anything) -> float:
        return 1.0

    wait_stream = record = replay = lambda self, *_: None


def torch() -> types.ModuleType:
    """As much of torch as the tests use."""
    out = Module("torch")
    out.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    drawn = np.random.default_rng(0).standard_normal(4099)

    def shaped(values: Any) -> Any:
        """Tensors of these values, over and over; of 0, memory that nobody has touched."""
        def new(*shape: Any, dtype: Dtype | None = None, device: str = "cpu", **_: Any) -> Tensor:
            shape = tuple(shape[0]) if shape and isinstance(shape[0], (tuple, list)) else shape
            dtype = dtype or DTYPES["float32"]
            array = cleared(shape, dtype.numpy)
            if values is not None:
                array[...] = np.resize(np.asarray(values).astype(dtype.numpy), shape)
            return Tensor(array, dtype, device)

        return new

    def full(shape: Any, value: Any, dtype: Dtype | None = None, device: str = "cpu", **_: Any) -> Tensor:
        with np.errstate(all="ignore"):
            return shaped(value)(tuple(shape), dtype=dtype, device=device)

    def alike(make: Any) -> Any:
        return lambda x, *a, **k: make(x.shape, *a, **{"dtype": x.dtype, "device": x.device, **k})

    out.Tensor, out.device = Tensor, Device
    for name, value in DTYPES.items():
        setattr(out, name, value)
    out.half, out.float, out.int = out.float16, out.float32, out.int32
    out.randn, out.zeros, out.ones, out.empty = map(shaped, (drawn, None, 1, None))
    out.full, out.empty_strided = full, lambda shape, strides, dtype, device: out.empty(shape, dtype=dtype, device=device)
    out.randn_like, out.zeros_like, out.ones_like, out.empty_like = (alike(f) for f in (out.randn, out.zeros, out.ones, out.empty))
    out.full_like = lambda x, value, **k: full(x.shape, value, **{"dtype": x.dtype, "device": x.device, **k})
    out.arange = lambda *a, device="cpu", dtype=None: Tensor(np.arange(*a), dtype, device)
    out.from_numpy = lambda x: Tensor(x)
    out.equal = lambda a, b: bool(np.array_equal(a.array, b.array))
    out.stack = lambda xs, axis=0: xs[0]._like(np.stack([x.array for x in xs], axis))
    out.cat = lambda xs, axis=0: xs[0]._like(np.concatenate([x.array for x in xs], axis))
    out.exp = lambda x: x._like(np.exp(x.array))
    out.where = lambda c, a, b: Tensor(np.where(c.array, *(x.array if isinstance(x, Tensor) else x for x in (a, b))), None, c.device)
    out.logsumexp = lambda x, axis: x._like(np.log(np.exp(x.array).sum(axis)))
    out.manual_seed = lambda seed: None
    out.Generator = Anything
    out.no_grad = out.inference_mode = Anything
    pretend.inside(out)
    cuda = Module("torch.cuda")
    cuda.is_available = cuda.is_initialized = lambda: True
    cuda.device_count, cuda.current_device = lambda: 1, lambda: 0
    cuda.get_device_capability, cuda.get_device_name = lambda *a: (9, 0), lambda *a: pretend.INFO.name
    cuda.synchronize = cuda._sleep = cuda.empty_cache = lambda *a: None
    cuda.Stream = cuda.CUDAGraph = cuda.Event = cuda.stream = cuda.graph = cuda.device = Anything
    cuda.current_stream = Anything
    out.cuda, out.version = cuda, types.SimpleNamespace(cuda="13.0")
    out.nn = Module("torch.nn")
    out.nn.Module = type("Module", (), {})
    out.nn.functional = Module("torch.nn.functional")
    return out


# ---- the plugin -----------------------------------------------------------------------------------------------------------


class Everything(dict):  # type: ignore[type-arg]
    """The resources of whatever kernel is asked for."""

    def __missing__(self, name: str) -> Any:
        from fcgen.runtime.cubin import Resources

        return Resources(128, 0, 0, 128, 0, 0, 0)


FAKE = Driver()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-case", action="store_true", help=f"on the pretend GPU: not only {EACH} cases of each test")


def pytest_configure(config: pytest.Config) -> None:
    import fcgen.api  # noqa: F401
    from fcgen import passes
    from fcgen.build import compiler
    from fcgen.runtime import cache, cubin, driver, nvrtc
    from fcgen.sim import trial

    sys.modules["torch"] = torch()
    pretend.install(pytest.MonkeyPatch(), FAKE)
    patch = pytest.MonkeyPatch()
    patch.setattr(driver, "device_count", lambda: 1)
    patch.setattr(cache, "open_cache", lambda: cache.DiskCache(None))
    patch.setattr(cubin, "resources", lambda binary, log="": Everything())
    made = lambda source, arch, *, name, **_: nvrtc.Binary(hashlib.sha256(source.encode()).digest(), "", arch, name)
    patch.setattr(nvrtc, "compile_cuda", made)
    patch.setattr(nvrtc, "ptx_of", lambda source, arch, **_: f".target {arch}")
    patch.setattr(compiler, "nvrtc_fingerprint", lambda: "pretend")
    patch.setattr(trial, "run_trials", lambda *_: None)
    patch.setattr(passes, "verify", lambda kernel, **_: kernel)  # passes have tests of their own
    patch.setattr(subprocess, "run", run_here)


def run_here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    """`python -m module arguments` in this process: one of its own would have a real driver."""
    assert command[:2] == [sys.executable, "-m"], f"not on a pretend GPU: {command}"
    importlib.import_module(command[2]).main(*command[3:])
    return subprocess.CompletedProcess(command, 0, "", "")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--every-case"):
        return
    cases = defaultdict(list)
    for item in items:
        cases[getattr(item, "function", item)].append(item)
    for of in cases.values():
        kept = {n * (len(of) - 1) // (EACH - 1) for n in range(EACH)}
        SPARED.update(item.nodeid for n, item in enumerate(of) if n not in kept)


#: cases that run only if no case of their function has launched anything before; functions that have
SPARED: set[str] = set()
LAUNCHED: set[Any] = set()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    return True if item.nodeid in SPARED and getattr(item, "function", None) in LAUNCHED else None


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    before = FAKE.before = len(FAKE.launches)
    with np.errstate(all="ignore"):
        try:
            return (yield)
        except Unpretended as error:
            pyfuncitem.user_properties.append(("unpretended", str(error)))
        except Enough:
            pass
        except ModuleNotFoundError as error:  # a module of torch's that is imported by its whole name
            if not (error.name or "").startswith("torch."):
                raise
            pyfuncitem.user_properties.append(("unpretended", error.name))
        except AssertionError:
            if len(FAKE.launches) == before:
                raise
        finally:
            pyfuncitem.user_properties.append(("launches", len(FAKE.launches) - before))
            LAUNCHED.update([pyfuncitem.function] if len(FAKE.launches) > before else [])
    return True


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How far it went: tests that reached a launch, and what was not pretended."""
    passed = terminalreporter.stats.get("passed", [])
    said = [dict(report.user_properties) for report in passed]
    terminalreporter.write_line(f"{sum(s.get('launches', 0) > 0 for s in said)} of {len(said)} reached a launch")
    for name, n in sorted(Counter(s["unpretended"] for s in said if "unpretended" in s).items()):
        terminalreporter.write_line(f"not pretended: {name} ({n})")
