"""Calls of `fcgen.attention` and its relatives on NumPy arrays: everything but the launch is what a call on a GPU does, and programs run in
the tile interpreter or the simulator."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np

from fcgen.attend import backward_plans, calls, forward, packed, variants
from fcgen.backends.budget import check_budget
from fcgen.build.program import Program
from fcgen.errors import FcError
from fcgen.ir.sizes import is_made
from fcgen.ir.types import DTYPES
from fcgen.runtime import driver, tensors

TYPESTR = {"float16": "<f2", "bfloat16": "<V2", "float32": "<f4", "int32": "<i4", "int8": "|i1", "uint8": "|u1", "int64": "<i8"}


class Array:
    """An array that says it lies on GPU 0."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype
        place = array.__array_interface__["data"][0]
        self.__cuda_array_interface__ = {"shape": array.shape, "typestr": TYPESTR[str(array.dtype)], "version": 3,
                                         "data": (place if 0 not in array.shape else 0, False),
                                         "strides": None if array.flags.c_contiguous else array.strides}

    def fill(self, value: float) -> None:
        self.array.fill(value)


def memory(a: tensors.TensorArg) -> np.ndarray:
    """A tensor's memory, with its strides."""
    import ctypes

    d = DTYPES[a.dtype]
    if 0 in a.shape:
        return np.empty(a.shape, d.stored)
    last = sum((n - 1) * s for n, s in zip(a.shape, a.strides))
    held: Any = (ctypes.c_char * ((last + 1) * d.bytes)).from_address(a.ptr)
    raw = np.frombuffer(held, np.dtype(d.stored))
    return np.lib.stride_tricks.as_strided(raw, a.shape, [s * d.bytes for s in a.strides])


class Runs:
    """In place of a launcher."""

    how = "interpret"
    seen: list[Program] = []
    order: tuple[str, ...] = ()  # of a kernel's arguments, for calls that write them by themselves: there is no kernel

    def __init__(self, program: Program):
        self.program = program

    def __call__(self, arguments: Any, stream: Any = None) -> None:
        self.seen.append(self.program)
        given: dict[str, Any] = {}
        outputs: dict[str, np.ndarray] = {}
        for name, x in arguments.items():
            if isinstance(x, (bool, int, float, np.ndarray)):
                given[name] = x
            else:
                array = memory(tensors.describe(x, name))
                (outputs if self.program.is_output(name) else given)[name] = array
        types_of = {p.name: p.type for p in self.program.params}
        inputs = {n: x.astype(types_of[n].dtype.np_dtype) if isinstance(x, np.ndarray) else x for n, x in given.items()}
        inputs |= {n: x.astype(types_of[n].dtype.np_dtype) for n, x in outputs.items() if not is_made(self.program.tile, n)}
        for name, x in getattr(self.program, self.how)(**inputs).items():
            outputs[name][...] = x


class Patch:
    """For scripts, what a test has in its `monkeypatch`; nothing is put back."""

    setattr = staticmethod(setattr)

    @staticmethod
    def setitem(where: Any, name: Any, x: Any) -> None:
        where[name] = x


def fits_on_paper(program: Program) -> bool:
    """Whether a program is within its budgets, without a compilation."""
    try:
        check_budget(program.machine, program.target)
    except FcError as e:
        if e.code != "compile/budget":
            raise
        return False
    return True


def on_cpu(monkeypatch: Any = Patch, target: str = "sm_90a", how: str = "interpret", fits: bool = True) -> list[Program]:
    """From here on calls run on arrays; gives the list of programs that ran. fits: whether programs
    have registers enough is estimated, not compiled."""
    empty = lambda shape, dtype: Array(np.full(shape, -1 if "int" in str(dtype) else np.nan, dtype))
    module = types.SimpleNamespace(ndarray=Array, empty=empty)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setitem(tensors._TYPESTR, "<V2", "bf16")
    monkeypatch.setattr(tensors, "_device_of", lambda ptr: 0)
    monkeypatch.setattr(driver, "device_info", lambda device: types.SimpleNamespace(arch=target, sm_count=132))
    monkeypatch.setattr(forward, "_arch", lambda device, schedule=None: target if schedule is None or target == "sm_89"
                        or "wgmma" in str(schedule.math) else "sm_90")
    monkeypatch.setattr(Program, "launcher", property(Runs))
    monkeypatch.setattr(Program, "begin", lambda program: program)
    monkeypatch.setattr(Runs, "seen", [])
    monkeypatch.setattr(Runs, "how", how)
    for one in (calls, packed, backward_plans):  # there is no kernel that a later call could launch
        monkeypatch.setattr(one, "learn", lambda *_: None)
    if fits:
        monkeypatch.setattr(variants, "_fits", fits_on_paper)
    return Runs.seen
