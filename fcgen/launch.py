"""Calling a compiled kernel: arguments are checked, packed and launched on the caller's stream and device.

The first call with given shapes, strides and dtypes checks everything and remembers what follows from them (sizes, strides, grid); a later
call with the same ones only reads pointers. Nothing is touched before all checks have passed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from .compiler import Built, Facts
from .errors import FcError
from .runtime import driver, module, tensormap, tensors

_KIND = {"f32": "f32", "i32": "i32", "i64": "i64"}


class Launcher:
    """One compiled kernel on the devices it has been called on."""

    def __init__(self, built: Built):
        self.built, self.facts = built, built.facts
        self.names = tuple(p[0] for p in self.facts.params)
        kinds = {p[0]: p[2] for p in self.facts.params if p[1] == "scalar"}
        table = {"ptr": "ptr", "stride": "i64", "size": "i32", "map": "tensormap", "counter": "ptr"}
        self.packer = module.ArgPacker(tuple(table.get(k) or _KIND[kinds[n]] for k, n, *_ in self.facts.flat))
        self._counters: dict[tuple[int, int], int] = {}
        self._loaded: dict[int, module.LoadedKernel] = {}
        self._plans: dict[Any, tuple[list[Any], list[tuple[int, str]], int]] = {}
        self._lock = threading.Lock()

    def __call__(self, arguments: Mapping[str, Any], stream: int | None = None) -> None:
        described, scalars = {}, {}
        for name, kind, dtype, _, flags in self.facts.params:
            if name not in arguments:
                raise FcError("call/argument", f"argument `{name}` is missing", expected=", ".join(self.names))
            if kind == "tensor":
                described[name] = tensors.describe(arguments[name], name)
            else:
                scalars[name] = _scalar(name, dtype, flags, arguments[name])
        key = tuple((a.shape, a.strides, a.dtype, a.device, a.ptr & 15) for a in described.values())
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plan(described, key)
        values, holes, blocks = plan
        values = list(values)
        device = next(iter(described.values())).device
        if stream is None:
            stream = tensors.current_stream(device)
        for i, name in holes:
            kind, _, _, detail = self.facts.flat[i]
            if kind == "map":
                a = described[name]
                values[i] = tensormap.encode(a.ptr, a.dtype, a.shape, a.strides, detail[:-1], detail[-1], name)
            elif kind == "counter":
                values[i] = self._counter(device, stream)
            else:
                values[i] = described[name].ptr if name in described else scalars[name]
        kernel = self._loaded.get(device) or self._load(device)
        if blocks:
            kernel.launch((blocks, 1, 1), (self.facts.threads, 1, 1), self.facts.smem_bytes, self.packer.pack(values), stream)

    def _load(self, device: int) -> module.LoadedKernel:
        with self._lock:
            if device not in self._loaded:
                self._loaded[device] = module.load(self.built.cubin, self.facts.name, self.facts.smem_bytes, device)
            return self._loaded[device]

    def _counter(self, device: int, stream: int) -> int:
        """Two zeroed numbers that launches on one stream use in turn; the kernel leaves them zero."""
        if (device, stream) not in self._counters:
            with self._lock:
                self._counters[device, stream] = module.zeroed(8, device)
        return self._counters[device, stream]

    def _plan(self, described: dict[str, tensors.TensorArg], key: Any) -> tuple[list[Any], list[tuple[int, str]], int]:
        """Check shapes, dtypes, devices and alignment; then what is the same for every call like this one."""
        device = next(iter(described.values())).device
        check_arch(self.facts, device)
        sizes = sizes_of(self.facts, {n: a.shape for n, a in described.items()})
        for name, kind, dtype, dims, flags in self.facts.params:
            if kind == "tensor":
                itemsize = tensors.ITEMSIZE[dtype]
                wide = len(dims) > 1 and itemsize <= 4
                tensors.check(described[name], name=name, dtype=dtype, device=device, align=16 if wide else itemsize,
                              stride_align=16 if wide and described[name].shape[-1] * itemsize % 16 == 0 else itemsize)
                if "out" in flags and described[name].readonly:
                    raise FcError("call/argument", f"argument `{name}` is written, but its owner says it is read-only")
        values: list[Any] = []
        holes: list[tuple[int, str]] = []
        for i, (kind, name, axis, _) in enumerate(self.facts.flat):
            if kind == "stride":
                values.append(described[name].strides[axis])
            elif kind == "size":
                values.append(sizes[name])
            else:
                values.append(0)
                holes.append((i, name))
        blocks = grid_blocks(self.facts, sizes)
        if self.facts.persistent != "none":
            blocks = min(blocks, driver.device_info(device).sm_count)
        plan = (values, holes, blocks)
        if len(self._plans) > 4096:
            self._plans.clear()
        self._plans[key] = plan
        return plan


def sizes_of(facts: Facts, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """dimension name -> size, with every tensor in agreement."""
    sizes: dict[str, int] = {}
    first: dict[str, str] = {}
    for name, kind, _, dims, _ in facts.params:
        if kind != "tensor":
            continue
        shape = shapes[name]
        if len(shape) != len(dims):
            raise FcError("call/argument", f"argument `{name}` has the wrong number of axes",
                          expected=f"[{', '.join(map(str, dims))}]", got=shape)
        for dim, n in zip(dims, shape):
            if isinstance(dim, int):
                if n != dim:
                    raise FcError("call/argument", f"argument `{name}` has the wrong shape",
                                  expected=f"[{', '.join(map(str, dims))}]", got=shape,
                                  hint="this size is fixed in the kernel: compile one for the new size")
            elif sizes.setdefault(dim, n) != n:
                raise FcError("call/argument", f"`{name}` and `{first[dim]}` disagree on the size of {dim}", expected=sizes[dim], got=n)
            else:
                first.setdefault(dim, name)
            if n >= 2**31:
                raise FcError("call/argument", f"argument `{name}` is too large", expected="sizes below 2**31", got=n)
    return sizes


def grid_blocks(facts: Facts, sizes: Mapping[str, int]) -> int:
    blocks = 1
    for _, dim, tile in facts.grid:
        blocks *= -(-(dim if isinstance(dim, int) else sizes[dim]) // tile)
    if blocks >= 2**31:
        raise FcError("call/argument", "the call needs more blocks than a grid can have", expected="below 2**31", got=blocks)
    return blocks


def check_arch(facts: Facts, device: int) -> None:
    """A cubin runs on its own major architecture from its minor one on."""
    have = driver.device_info(device).arch.removeprefix("sm_").rstrip("a")
    want = facts.arch.removeprefix("sm_").rstrip("a")
    if facts.arch.endswith("a") and have != want:
        raise FcError("call/driver", f"{facts.name} was compiled for {facts.arch} and runs on exactly that", expected=facts.arch,
                      got=f"sm_{have}", hint=f"compile it with target='sm_{have}', or leave `target` out")
    if have[:-1] != want[:-1] or int(have) < int(want):
        raise FcError("call/driver", f"{facts.name} was compiled for {facts.arch} and cannot run on this GPU", expected=facts.arch,
                      got=f"sm_{have}", hint=f"compile it with target='sm_{have}', or leave `target` out")


def _scalar(name: str, dtype: str, flags: tuple[str, ...], value: Any) -> Any:
    try:
        out = float(value) if dtype == "f32" else int(value)
    except (TypeError, ValueError):
        raise FcError("call/argument", f"argument `{name}` is not a number", expected=dtype, got=repr(value)) from None
    if "positive" in flags and not out > 0:
        raise FcError("call/argument", f"argument `{name}` must be positive: the spec says so", expected="> 0", got=value)
    return out
