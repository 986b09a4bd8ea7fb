"""Calling a compiled kernel: arguments are checked, packed and launched on the caller's stream and device.

The first call with given shapes, strides and dtypes checks everything and remembers the launch that follows from them; a later call with
the same ones only reads pointers, and one with other sizes finds everything ready but the sizes. Nothing is touched before all checks have
passed.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from .build.compiler import Built, Facts
from .errors import FcError
from .ir.alignment import WIDEST, Promise, of_arguments
from .ir.covers import check_covers, needs
from .ir.ranges import HIGHEST, WIDTHS, Admitted
from .ir.sizes import number
from .ir.types import DTYPES
from .runtime import counters, driver, module, steady, streams, tensormap, tensors
from .straight import View

#: launches with sizes of their own that are kept
_REMEMBERED = 4096


class Launcher:
    """One compiled kernel on the devices it has been called on. order: the arguments whose values vary from call to call, tensors first.
    narrower: the launcher of the same kernel for tensors that keep less than this one asks of pointers and strides."""

    def __init__(self, built: Built, narrower: Callable[[dict[str, Promise]], Launcher] | None = None):
        self.built, self.facts, self._narrower = built, built.facts, narrower
        self.names = tuple(p[0] for p in self.facts.params)
        self._kinds = {p[0]: "ptr" if p[1] == "tensor" else p[2] for p in self.facts.params}
        self.order = tuple(sorted(self.names, key=lambda n: self._kinds[n] != "ptr"))
        self._ranges = ranges_of(self.facts)
        #: scalars that size the grid, or that places follow from: a launch is decided with them, as it is with sizes
        self._counts = [p[0] for p in self.facts.params if p[0] in counts_of(self.facts)]
        self._written = tuple(p[0] for p in self.facts.params if p[1] == "tensor" and "out" in p[4])
        self._loaded: dict[int, Loaded] = {}
        self._plans: dict[Any, steady.SteadyLaunch] = {}
        self._lock = threading.Lock()

    def __call__(self, arguments: Mapping[str, Any], stream: Any = None) -> None:
        on = None if stream is None else streams.address(stream)
        plan, values, device = self.resolve(arguments)
        plan.launch(tensors.current_stream(device) if on is None else on, values)
        for name in self._written:
            tensors.written(arguments[name])

    def resolve(self, arguments: Mapping[str, Any]) -> tuple[steady.SteadyLaunch, tuple[Any, ...], int]:
        """Check the arguments: (the launch of every call like this one, what varies, in `order`; the device)."""
        described, scalars = {}, []
        counts: tuple[int, ...] = ()
        for name, kind, dtype, _, flags in self.facts.params:
            if name not in arguments:
                raise FcError("call/argument", f"argument `{name}` is missing", expected=", ".join(self.names))
            if kind == "tensor":
                described[name] = tensors.describe(arguments[name], name)
            else:
                value = scalar(name, dtype, flags, arguments[name])
                scalars.append(self._ranges[name](name, value) if name in self._ranges else value)
                if name in self._counts:
                    counts += (scalars[-1],)
        device = next(iter(described.values())).device
        key = (counts, *((a.shape, a.strides, a.dtype, a.device, a.ptr & 15, a.readonly) for a in described.values()))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plan(described, device, counts)
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            self._plans[key] = plan
        return plan, (*(a.ptr for a in described.values()), *scalars), device

    def loaded(self, device: int) -> Loaded:
        """The kernel on a device."""
        found = self._loaded.get(device)
        if found is None:
            check_arch(self.facts, device)
            with self._lock:
                found = self._loaded.get(device)
                if found is None:
                    found = self._loaded[device] = Loaded(self.facts, self.built.cubin, self._kinds, self.order, device)
        return found

    def _plan(self, described: dict[str, tensors.TensorArg], device: int, counts: tuple[int, ...]) -> steady.SteadyLaunch:
        """Check shapes, dtypes, devices and alignment; then what is the same for every call like this one."""
        check_arch(self.facts, device)
        sizes = sizes_of(self.facts, {n: a.shape for n, a in described.items()})
        known = {**sizes, **dict(zip(self._counts, counts))}
        check_covers(self.facts.covers, self.facts.grid, {p[0]: p[3] for p in self.facts.params}, known)
        for name, kind, dtype, _, flags in self.facts.params:
            if kind == "tensor":
                tensors.check(described[name], name=name, dtype=dtype, device=device)
                if "out" in flags and described[name].readonly:
                    raise FcError("call/argument", f"argument `{name}` is written, but its owner says it is read-only")
        refused = self._misaligned(described)
        if refused:
            maps = {flat[1] for flat in self.facts.flat if flat[0] == "map"}
            if self._narrower is None:
                raise next(iter(refused.values()))
            have = {n: of_arguments(a.ptr, a.shape, a.strides, tensors.ITEMSIZE[a.dtype]) for n, a in described.items()}
            try:
                narrower = self._narrower(have)
            except FcError as e:
                if e.code != "compile/schedule" or maps.isdisjoint(refused):
                    raise
                raise next(refused[name] for name in refused if name in maps) from None  # only bulk copies can move it
            return narrower._plan(described, device, counts)
        # nobody steps along an axis of one element, but addresses that are not used are made of its stride too
        steps = {name: [s if n > 1 else 0 for n, s in zip(a.shape[:-1], a.strides)] for name, a in described.items()}
        numbers = [x for name, a in described.items() for x in (*a.shape, *steps[name], *a.strides[-1:])]
        return self.loaded(device).launch([*numbers, *counts])

    def _misaligned(self, described: dict[str, tensors.TensorArg]) -> dict[str, FcError]:
        """What is wrong with each tensor that does not keep what the kernel's accesses need."""
        out = {}
        for name, pointer, *strides in self.facts.aligned:
            a = described[name]
            wrong = misaligned(name, Promise(pointer, tuple(strides)), a.ptr, a.shape, a.strides, tensors.ITEMSIZE[a.dtype])
            if wrong is not None:
                out[name] = wrong
        return out


def misaligned(name: str, want: Promise, pointer: int, shape: Sequence[int], strides: Sequence[int], itemsize: int) -> FcError | None:
    """What is wrong with an argument that does not keep what a kernel was promised; None if it does."""
    have = of_arguments(pointer, shape, strides, itemsize)
    for axis, (w, h) in enumerate(zip(want.strides, have.strides)):
        if h % w:
            packed = shape[-1] * itemsize % w == 0
            return FcError("call/argument", f"axis {axis} of argument `{name}` is not aligned",
                           expected=f"a stride that is a multiple of {w} bytes", got=f"{strides[axis]} elements of {itemsize} bytes",
                           hint=f"call {name}.contiguous()" if packed else
                           f"pad the last axis of {name} to a multiple of {w // itemsize} elements")
    if have.pointer % want.pointer:
        return FcError("call/argument", f"argument `{name}` is not aligned", expected=f"a multiple of {want.pointer} bytes",
                       got=f"{pointer:#x}, {pointer % want.pointer} bytes past one",
                       hint=f"{name} looks like a slice that starts inside a row: call {name}.clone()")
    return None


class Loaded:
    """A kernel on a device, ready for any sizes: the axes of each tensor and its strides, tensor by tensor, and the scalars that decide
    a launch."""

    def __init__(self, facts: Facts, cubin: bytes, kinds: Mapping[str, str], order: tuple[str, ...], device: int):
        self.facts, self.kinds, self.order, self.counts, self.ranges = facts, kinds, order, counts_of(facts), ranges_of(facts)
        arguments: dict[str, steady.Argument] = {}
        where: dict[Any, int] = {}
        at = 0
        for name, kind, dtype, dims, flags in facts.params:
            if kind == "tensor":
                arguments[name] = steady.Argument(name, dtype, at, len(dims), "out" in flags)
                for axis, dim in enumerate(dims):
                    where.setdefault(dim, at + axis)
                at += 2 * len(dims)
        for name in self.counts:
            where[name] = at
            at += 1
        places = [f"s{n}" for n in range(at)]
        cluster = prod(axis[3] for axis in facts.grid)
        most = 2**31 if facts.persistent == "none" else driver.device_info(device).sm_count * facts.resident // cluster * cluster
        #: the blocks of a launch, as text of what sizes and strides are called
        self.told = lambda places: _blocks(facts, where, places, most)
        self._blocks = steady.written_out(places, self.told(places))

        def parameter(kind: str, name: str, axis: int, detail: tuple[int, ...]) -> steady.Parameter:
            if kind == "stride":
                return steady.Size(arguments[name].at + arguments[name].rank + axis)
            if kind == "size":
                return steady.Size(where[name])
            if kind == "counter":
                return steady.Counter()
            if kind == "map":
                rank = max(2, arguments[name].rank)  # the map of a vector has a row
                box = tensormap.Box(arguments[name].dtype, tuple(detail[:rank]), detail[rank], name, *detail[rank + 1:])
                return steady.Map(order.index(name), box)
            return steady.Varying(order.index(name))

        parameters = [parameter(*flat) for flat in facts.flat]
        counted = any(isinstance(p, steady.Counter) for p in parameters)
        kernel = module.load(cubin, facts.name, facts.smem_bytes, device)
        self.frame = steady.Frame(list(arguments.values()), [kinds[n] for n in order], parameters, kernel, facts.threads, facts.smem_bytes,
                                  facts.pdl, counters.of(device).address if counted else None, len(self.counts))

    def unusual(self, views: Mapping[str, View], wide: Sequence[str]) -> str:
        """Do tensors disagree, is a row not contiguous, a stride not a multiple of what is asked for (of 16 bytes in those that are
        `wide`), or a number large or, of what bulk copies read, 0? As text. What this lets pass, `Launcher._plan` and TMA take as it is;
        what it does not may be legal or not."""
        asked = {name: strides for name, _, *strides in self.facts.aligned}
        limits = {limit: r for limit, _, *r in self.facts.ranges}
        bulk = {of for kind, of, *_ in self.facts.flat if kind == "map"}
        equal: dict[Any, list[str]] = {}
        steps: dict[tuple[int, int], list[str]] = {}
        some: list[str] = []
        cut: list[str] = []
        for a in self.frame.arguments:
            v, dims = views[a.name], next(p[3] for p in self.facts.params if p[0] == a.name)
            for dim, size in zip(dims, v.shape):
                equal.setdefault(dim, [str(dim)] if isinstance(dim, int) else []).append(size)
            some += [d for d in dims if a.name in bulk and not isinstance(d, int) and d not in some]
            equal.setdefault("", ["1"]).extend(v.strides[-1:])
            if a.rank > 1:
                itemsize = tensors.ITEMSIZE[a.dtype]
                cuts = any(kind == "map" and of == a.name and len(detail) > a.rank + 1 for kind, of, _, detail in self.facts.flat)
                need = max([WIDEST if a.name in wide else itemsize, *asked.get(a.name, [])]) // itemsize
                steps.setdefault((32 if cuts else 37, need - 1), []).extend(s for s in v.strides[:-1] if s != "0")
                cut += v.shape if cuts else ()
        least: dict[int, list[str]] = {}
        for dim, names in equal.items():
            if isinstance(dim, str) and dim:
                least.setdefault((limits.get(dim, [HIGHEST])[0] + 1).bit_length() - 1, []).append(names[0])
        tests = [f"not {' == '.join(dict.fromkeys(names))}" for names in equal.values() if len(set(names)) > 1]
        tests += [f"({' | '.join(names)}) >> {bits}" for bits, names in [*least.items(), *([(30, cut)] if cut else [])]]
        for (bits, mask), names in steps.items():
            tests += [f"({' | '.join(names)}) >> {bits}", *([f"({' | '.join(names)}) & {mask}"] if mask else [])] if names else []
        tests += [f"not ({' and '.join(equal[d][0] for d in some)})"] if some else []
        return " or ".join(tests)

    def launch(self, sizes: Sequence[int]) -> steady.SteadyLaunch:
        """The launch for sizes and strides that have been checked."""
        blocks = self._blocks(*sizes)
        if blocks >= 2**31:
            raise FcError("call/argument", "the call needs more blocks than a grid can have", expected="below 2**31", got=blocks)
        return steady.SteadyLaunch(self.frame, blocks, tuple(sizes)) if blocks else steady.NOTHING


def ranges_of(facts: Facts) -> dict[str, Admitted]:
    """Which whole numbers each scalar may be."""
    limits = {name: Admitted(*r) for name, *r in facts.ranges}
    return {p[0]: limits.get(p[0], Admitted(*WIDTHS[p[2]])) for p in facts.params if p[1] == "scalar" and p[2] in WIDTHS}


def counts_of(facts: Facts) -> tuple[str, ...]:
    """The scalars that axes of the grid run over, or that places of tensors follow from, in the order of the parameters."""
    dims = {d for p in facts.params for d in p[3]}
    names = {axis[1] for axis in facts.grid} | set().union(*map(needs, facts.covers))
    return tuple(p[0] for p in facts.params if p[1] == "scalar" and p[0] not in dims and p[0] in names)


def _blocks(facts: Facts, where: Mapping[Any, int], places: Sequence[str], most: int) -> str:
    """How many blocks there are, of whole clusters."""
    axes = [(dim if isinstance(dim, int) else f"({places[where[dim]]})", tile * cluster, cluster) for _, dim, tile, cluster in facts.grid]
    product = " * ".join(f"-(-{n} // {span}) * {cluster}" if span > 1 else str(n) for n, span, cluster in axes) or "1"
    return product if facts.persistent == "none" else f"min({product}, {most})"


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


def check_arch(facts: Facts, device: int) -> None:
    """A cubin runs on its own major architecture from its minor one on; one with the features of an `a` target on exactly that."""
    have = driver.device_info(device).arch.removeprefix("sm_").rstrip("a")
    want = facts.arch.removeprefix("sm_").rstrip("a")
    exact = facts.arch.endswith("a")
    if have[:-1] != want[:-1] or int(have) < int(want) or (exact and have != want):
        raise FcError("call/driver", f"{facts.name} was compiled for {facts.arch} and cannot run on this GPU", expected=facts.arch,
                      got=f"sm_{have}", hint=f"compile it with target='sm_{have}', or leave `target` out")


def scalar(name: str, dtype: str, flags: tuple[str, ...], value: Any) -> int:
    """A scalar as a launch takes it: an int, or the bits of a float. Refused where the kernel would see another number."""
    x = number(name, DTYPES[dtype], flags, value)
    return int(struct.unpack("<I", struct.pack("<f", x))[0]) if dtype == "f32" else int(x)
