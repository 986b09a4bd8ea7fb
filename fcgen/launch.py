"""Calling a compiled kernel: arguments are checked, packed and launched on the caller's stream and device.

The first call with given shapes, strides and dtypes checks everything and remembers what follows from them (sizes, strides, grid); a later
call with the same ones only reads pointers. Nothing is touched before all checks have passed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from .compiler import Built, Facts
from .errors import FcError
from .ir.alignment import Promise, of_arguments, refusal
from .ir.ranges import HIGHEST, LOWEST, Admitted
from .runtime import counters, driver, module, steady, tensors

WIDTHS = {"i32": (LOWEST, HIGHEST), "i64": (-(2**63), 2**63 - 1)}


class Launcher:
    """One compiled kernel on the devices it has been called on. order: the arguments whose values vary from call to call, tensors first.
    narrower: the launcher of the same kernel for tensors that keep less than this one asks of pointers and strides."""

    def __init__(self, built: Built, narrower: Callable[[dict[str, Promise]], Launcher] | None = None):
        self.built, self.facts, self._narrower = built, built.facts, narrower
        self.names = tuple(p[0] for p in self.facts.params)
        self._kinds = {p[0]: "ptr" if p[1] == "tensor" else p[2] for p in self.facts.params}
        self.order = tuple(sorted(self.names, key=lambda n: self._kinds[n] != "ptr"))
        limits = {name: Admitted(*r) for name, *r in self.facts.ranges}
        self._ranges = {p[0]: limits.get(p[0], Admitted(*WIDTHS[p[2]])) for p in self.facts.params if p[1] == "scalar" and p[2] in WIDTHS}
        self._loaded: dict[int, module.LoadedKernel] = {}
        self._counters: dict[int, counters.Counters] = {}
        self._plans: dict[Any, steady.SteadyLaunch] = {}
        self._lock = threading.Lock()

    def __call__(self, arguments: Mapping[str, Any], stream: int | None = None) -> None:
        plan, values, device = self.resolve(arguments)
        plan.launch(tensors.current_stream(device) if stream is None else stream, values)

    def resolve(self, arguments: Mapping[str, Any]) -> tuple[steady.SteadyLaunch, tuple[Any, ...], int]:
        """Check the arguments: (the launch of every call like this one, what varies, in `order`; the device)."""
        described, scalars = {}, []
        for name, kind, dtype, _, flags in self.facts.params:
            if name not in arguments:
                raise FcError("call/argument", f"argument `{name}` is missing", expected=", ".join(self.names))
            if kind == "tensor":
                described[name] = tensors.describe(arguments[name], name)
            else:
                value = _scalar(name, dtype, flags, arguments[name])
                scalars.append(self._ranges[name](name, value) if name in self._ranges else value)
        device = next(iter(described.values())).device
        key = tuple((a.shape, a.strides, a.dtype, a.device, a.ptr & 15, a.readonly) for a in described.values())
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plan(described, device)
            if len(self._plans) > 4096:
                self._plans.clear()
            self._plans[key] = plan
        return plan, (*(a.ptr for a in described.values()), *scalars), device

    def _load(self, device: int) -> module.LoadedKernel:
        with self._lock:
            if device not in self._loaded:
                self._loaded[device] = module.load(self.built.cubin, self.facts.name, self.facts.smem_bytes, device)
            return self._loaded[device]

    def _counter(self, device: int) -> counters.Counters:
        with self._lock:
            if device not in self._counters:
                self._counters[device] = counters.Counters(device)
            return self._counters[device]

    def _plan(self, described: dict[str, tensors.TensorArg], device: int) -> steady.SteadyLaunch:
        """Check shapes, dtypes, devices and alignment; then what is the same for every call like this one."""
        check_arch(self.facts, device)
        sizes = sizes_of(self.facts, {n: a.shape for n, a in described.items()})
        for name, kind, dtype, _, flags in self.facts.params:
            if kind == "tensor":
                tensors.check(described[name], name=name, dtype=dtype, device=device)
                if "out" in flags and described[name].readonly:
                    raise FcError("call/argument", f"argument `{name}` is written, but its owner says it is read-only")
        refused = self._misaligned(described)
        if refused:
            maps = {flat[1] for flat in self.facts.flat if flat[0] == "map"}
            if self._narrower is None or not maps.isdisjoint(refused):
                raise next(iter(refused.values()))
            have = {n: of_arguments(a.ptr, a.shape, a.strides, tensors.ITEMSIZE[a.dtype]) for n, a in described.items()}
            return self._narrower(have)._plan(described, device)
        blocks = grid_blocks(self.facts, sizes)
        if self.facts.persistent != "none":
            cluster = prod(axis[3] for axis in self.facts.grid)
            blocks = min(blocks, driver.device_info(device).sm_count // cluster * cluster)
        parameters = [self._parameter(flat, described, sizes) for flat in self.facts.flat]
        for p in parameters:
            if isinstance(p, steady.Map):  # what TMA cannot take is refused before the kernel is loaded
                p.at(described[self.order[p.index]].ptr)
        kernel = self._loaded.get(device) or self._load(device)
        counted = any(isinstance(p, steady.Counter) for p in parameters)
        return steady.SteadyLaunch([self._kinds[n] for n in self.order], parameters,
                                   kernel.bind((blocks, 1, 1), (self.facts.threads, 1, 1), self.facts.smem_bytes, self.facts.pdl),
                                   self._counter(device).address if counted and blocks else lambda stream: 0)

    def _misaligned(self, described: dict[str, tensors.TensorArg]) -> dict[str, FcError]:
        """What is wrong with each tensor that does not keep what the kernel's accesses need."""
        out = {}
        for name, pointer, *strides in self.facts.aligned:
            a = described[name]
            wrong = refusal(name, Promise(pointer, tuple(strides)), a.ptr, a.shape, a.strides, tensors.ITEMSIZE[a.dtype])
            if wrong is not None:
                out[name] = wrong
        return out

    def _parameter(self, flat: tuple[Any, ...], described: dict[str, tensors.TensorArg], sizes: dict[str, int]) -> steady.Parameter:
        kind, name, axis, detail = flat
        if kind == "stride":
            a = described[name]  # nobody steps along an axis of one element, but addresses that are not used are made of its stride too
            return steady.Constant("i64", a.strides[axis] if a.shape[axis] > 1 else 0)
        if kind == "size":
            return steady.Constant("i32", sizes[name])
        if kind == "counter":
            return steady.Counter()
        if kind == "map":
            a = described[name]
            return steady.Map(self.order.index(name), a.dtype, a.shape, a.strides, tuple(detail[:-1]), detail[-1], name)
        return steady.Varying(self.order.index(name))


def sizes_of(facts: Facts, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """dimension name -> size, with every tensor in agreement."""
    sizes: dict[str, int] = {}
    limits = {limit: Admitted(*r) for limit, *r in facts.ranges}
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
            limits.get(dim, Admitted(0, HIGHEST)).size(name, n)
    return sizes


def grid_blocks(facts: Facts, sizes: Mapping[str, int]) -> int:
    """Of whole clusters."""
    blocks = 1
    for _, dim, tile, cluster in facts.grid:
        blocks *= -(-(dim if isinstance(dim, int) else sizes[dim]) // (tile * cluster)) * cluster
    if blocks >= 2**31:
        raise FcError("call/argument", "the call needs more blocks than a grid can have", expected="below 2**31", got=blocks)
    return blocks


def check_arch(facts: Facts, device: int) -> None:
    """A cubin runs on its own major architecture from its minor one on; one with the features of an `a` target on exactly that."""
    have = driver.device_info(device).arch.removeprefix("sm_").rstrip("a")
    want = facts.arch.removeprefix("sm_").rstrip("a")
    exact = facts.arch.endswith("a")
    if have[:-1] != want[:-1] or int(have) < int(want) or (exact and have != want):
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
