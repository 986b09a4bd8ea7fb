"""A pretend GPU, so that what needs one can be tried before one is at hand: torch's CPU tensors stand for CUDA's, kernels are interpreted.

    python -m benchmarks.dry benchmarks.attention_forward --rounds 2     any script here, with small sizes
    python -m benchmarks.dry examples/ladder.py
    python -m pytest -p benchmarks.dry -m gpu tests/gpu/test_attention.py

Arguments are checked, planned and packed as for a launch; then the kernel's tile IR runs in NumPy. Times mean nothing. Kernels that are not
fcgen's own (tests/gpu/micro.py) cannot run. Needs torch, with or without CUDA.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ARCH = "sm_90"
#: module -> names that are set to something small
SMALL: dict[str, dict[str, Any]] = {
    "benchmarks.attention_forward": {"TOKENS": 128, "WIDTH": 128, "LENGTHS": (32, 128)},
    "benchmarks.cells": {"TOKENS": 64, "WIDTH": 256, "LENGTHS": (32, 64)}, "benchmarks.peers": {"STAND_IN": True},
    "benchmarks.ceilings": {"GEMM": 64, "COPY": 1 << 16}, "benchmarks.gemms": {"SIZE": 128, "WIDE": 192, "MANY": 96, "SETS": 2},
    "benchmarks.training": {"TOKENS": 64, "WIDTH": 128, "WINDOW": 8},
    "benchmarks.backward": {"TOKENS": 128, "WIDTH": 128, "LENGTH": 128},
    "benchmarks.llama": {"HIDDEN": 64, "HEADS": 4, "GROUPS": 2, "HEAD": 16, "WIDE": 96, "LENGTH": 64},
    "benchmarks.prologues": {"LENGTH": 128, "HEADS": 1, "CHECKED": 72},
    "benchmarks.accuracy": {"CELLS": "D64:S32", "REPEATS": 3}, "benchmarks.search_schedules": {"LENGTHS": (32, 64)},
    "benchmarks.random_configs": {"LENGTHS": (1, 2, 7, 16, 33, 65)}, "ladder": {"H": 2, "S": 64}}
#: what a graph that is being captured has seen
_capturing: list[list[Callable[[], Any]]] = []


def _on_gpu(x: Any) -> bool:
    import torch

    return (isinstance(x, str) and x.split(":")[0] == "cuda") or (isinstance(x, torch.device) and x.type == "cuda")


class Event:
    def __init__(self, enable_timing: bool = False, **_: Any):
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: Event) -> float:
        return max(1e-6, (other.at - self.at) * 1e3)

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class Stream:
    cuda_stream = 0

    def wait_stream(self, other: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return False


class Graph:
    """Keeps the last launch of fcgen's; torch's own work is not replayed."""

    def __init__(self) -> None:
        self.launches: list[Callable[[], Any]] = []

    def replay(self) -> None:
        for launch in self.launches:
            launch()


@contextlib.contextmanager
def capture(graph: Graph, **_: Any) -> Iterator[None]:
    _capturing.append(graph.launches)
    try:
        yield
    finally:
        _capturing.pop()


@functools.lru_cache(maxsize=4096)
def _tile(text: str) -> Any:
    from fcgen.build.compiler import from_text

    return from_text(text, "<dry>")


def _tensor(x: Any) -> Any:
    """A tensor that a call has described, as torch's again, on the same memory; anything else as it is."""
    import torch

    from fcgen.runtime.tensors import ITEMSIZE, TensorArg

    if not isinstance(x, TensorArg):
        return x
    facts = {"data": (x.ptr, False), "shape": x.shape, "strides": tuple(s * ITEMSIZE[x.dtype] for s in x.strides), "version": 3,
             "typestr": {"f16": "<f2", "bf16": "<i2", "f32": "<f4", "i32": "<i4", "u8": "|u1"}[x.dtype]}
    whole = torch.from_numpy(np.asarray(SimpleNamespace(__array_interface__=facts)))
    return whole.view(torch.bfloat16) if x.dtype == "bf16" else whole


def interpret_into(built: Any, arguments: Mapping[str, Any]) -> None:
    """The kernel's tile IR on these tensors; outputs are written in place."""
    import torch

    arguments = {name: _tensor(x) for name, x in arguments.items()}

    from fcgen.ir.sizes import is_made
    from fcgen.sim.tile import interpret

    kernel = _tile(built.tile_text)
    wide = lambda x: (x.float() if x.dtype == torch.bfloat16 else x).detach().numpy().copy() if isinstance(x, torch.Tensor) else x
    given = {p.name: wide(arguments[p.name]) for p in kernel.params if not is_made(kernel, p.name)}
    with np.errstate(all="ignore"):
        for name, value in interpret(kernel, given).items():
            target = arguments[name]
            target.copy_(torch.from_numpy(np.ascontiguousarray(value)).to(target.dtype))


class _Kernel:
    def starter(self) -> Any:
        return lambda config, params: None


@functools.cache
def install() -> None:
    """Put the pretend GPU in place, for the rest of the process."""
    import torch
    from torch.overrides import TorchFunctionMode

    from fcgen import launch
    from fcgen.attend import guards
    from fcgen.runtime import driver, tensors

    class ToCpu(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.cuda:
                return args[0]
            args = tuple("cpu" if _on_gpu(a) else a for a in args)
            return func(*args, **{k: "cpu" if _on_gpu(x) else x for k, x in (kwargs or {}).items()})

    ToCpu().__enter__()
    made: Any = torch.Generator
    torch.Generator = type("Generator", (made,), {"__new__": lambda cls, device="cpu": made("cpu")})  # type: ignore[misc]
    fake: dict[str, Any] = {
        "synchronize": lambda *a: None, "is_available": lambda: True, "is_initialized": lambda: True, "current_device": lambda: 0,
        "Event": Event, "Stream": Stream, "current_stream": lambda *a: Stream(), "stream": lambda s: contextlib.nullcontext(),
        "CUDAGraph": Graph, "graph": capture, "_sleep": lambda n: None, "empty_cache": lambda: None}
    for name, value in fake.items():
        setattr(torch.cuda, name, value)
    torch.backends.cudnn.version = lambda: None  # type: ignore[assignment]

    kib = 1024
    info = driver.DeviceInfo(0, "pretend GPU", (9, 0), ARCH + "a", 132, 227 * kib, 228 * kib, 65536, 140 << 30, (13, 0))
    driver.available = driver.present = lambda: (True, info.name)  # type: ignore[assignment]
    driver.device_info = lambda ordinal=0: info  # type: ignore[assignment]
    driver.device_count = lambda: 1
    driver.primary_context = lambda ordinal: 0
    from_torch = tensors._from_torch
    tensors._from_torch = lambda x, name: from_torch(x, name)._replace(device=0)
    tensors.current_stream = lambda device: 0
    launch.module.load = lambda *a: _Kernel()  # type: ignore[assignment,return-value]
    succeeds = lambda *a: 0
    driver.native = lambda: SimpleNamespace(cuTensorMapEncodeTiled=succeeds)  # type: ignore[assignment]
    launch.counters.of = lambda device: SimpleNamespace(address=succeeds)  # type: ignore[assignment,return-value]
    guards.usable = lambda: False  # every call is one that a launcher sees
    plan = launch.Launcher.__call__

    def call(self: Any, arguments: Mapping[str, Any], stream: int | None = None) -> None:
        plan(self, arguments, stream)
        if _capturing:
            _capturing[-1][:] = [lambda: interpret_into(self.built, arguments)]
        else:
            interpret_into(self.built, arguments)

    launch.Launcher.__call__ = call  # type: ignore[method-assign]


def shrink() -> None:
    """Small sizes in the loaded modules that have large ones (defaults of arguments that hold them change too), and one round of timing."""
    from . import timing

    whole, alone = timing.round_robin, timing.gpu_times
    for name, module in list(sys.modules.items()):
        for key, value in SMALL.get(name, {}).items():
            old = getattr(module, key)
            setattr(module, key, value)
            for f in vars(module).values():
                if getattr(f, "__defaults__", None):
                    f.__defaults__ = tuple(value if d is old else d for d in f.__defaults__)
        if name.startswith("benchmarks.") and getattr(module, "round_robin", None) is whole:
            module.round_robin = lambda ways, launches, rounds=1, preheat_ms=0.0, warm=0: whole(ways, 1, 1, 0.0)  # type: ignore[attr-defined]
        if name.startswith("benchmarks.") and getattr(module, "gpu_times", None) is alone:
            module.gpu_times = lambda ways, launches, rounds=1, preheat_ms=0.0, warm=0: whole(ways, 1, 1, 0.0)  # type: ignore[attr-defined]


def pytest_configure(config: Any) -> None:
    """`pytest -p benchmarks.dry`."""
    install()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", help="a module (benchmarks.attention_forward) or a file (examples/ladder.py)")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    install()
    path = Path(args.script)
    if path.suffix == ".py":
        sys.path.insert(0, str(path.parent))
    module = importlib.import_module(path.stem if path.suffix == ".py" else args.script)
    importlib.import_module("benchmarks.timing")
    shrink()
    raise SystemExit(module.main(args.arguments))


if __name__ == "__main__":
    main()
