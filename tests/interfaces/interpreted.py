"""Kernels that run in the tile interpreter, on torch's CPU tensors: for numbers of what stands around `fcgen.attention`, without a GPU.

Everything but the launch is what a call on a GPU does: arguments are checked, specs are traced, what functions hold is found.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from fcgen.attend import backward_plans, blocks, calls, forward, packed, trained, variants, varlen
from fcgen.build import captured
from fcgen.build.program import Program
from fcgen.ir.sizes import is_made
from fcgen.ir.types import DTYPES
from fcgen.runtime import tensors
from tests.runtime.pretend import Driver, install, real_torch


def memory(a: tensors.TensorArg) -> np.ndarray:
    """A tensor's memory, with its strides."""
    d = DTYPES[a.dtype]
    if 0 in a.shape:
        return np.empty(a.shape, d.stored)
    last = sum((n - 1) * s for n, s in zip(a.shape, a.strides))
    raw = np.frombuffer((ctypes.c_char * ((last + 1) * d.bytes)).from_address(a.ptr), np.dtype(d.stored))
    return np.lib.stride_tricks.as_strided(raw, a.shape, [s * d.bytes for s in a.strides])


class Interpreted:
    """In place of a launcher. seen: every program that was run, by name."""

    seen: list[Program] = []

    def __init__(self, program: Program):
        self.program = program

    def __call__(self, arguments: Any, stream: Any = None) -> None:
        self.seen.append(self.program)
        given, outputs = {}, {}
        for name, x in arguments.items():
            if isinstance(x, (bool, int, float)):
                given[name] = x
                continue
            array = memory(tensors.describe(x, name))
            if self.program.is_output(name):
                outputs[name] = array
            if not is_made(self.program.tile, name):
                given[name] = array.astype(next(p for p in self.program.params if p.name == name).type.dtype.np_dtype)
        for name, x in self.program.interpret(**given).items():
            outputs[name][...] = x


def alone(monkeypatch: Any) -> None:
    """No program that others made is found from here on, and none that is made is left to them."""
    for module, name in ((variants, "_kept"), (blocks, "_programs"), (captured, "_shared"), (captured, "_families"), (calls, "kinds"), (packed, "kinds"), (trained, "_passes")):
        monkeypatch.setattr(module, name, {})
    monkeypatch.setattr(calls, "last", None)
    for module in (forward, variants, varlen, blocks):
        for name, kept in list(vars(module).items()):
            if hasattr(kept, "cache_clear"):
                monkeypatch.setattr(module, name, functools.lru_cache(kept.__wrapped__))


def interpreted(monkeypatch: Any) -> list[Program]:
    """torch's CPU tensors are a GPU's from here on, and programs are interpreted; gives the list of those that are."""
    alone(monkeypatch)
    install(monkeypatch, Driver())
    real_torch(monkeypatch)
    monkeypatch.setattr(Program, "launcher", property(Interpreted))
    monkeypatch.setattr(Program, "begin", lambda program: program)
    monkeypatch.setattr(variants, "_fits", lambda program: True)
    for module in (calls, packed, backward_plans):
        monkeypatch.setattr(module, "learn", lambda *_: None)
    monkeypatch.setattr(Interpreted, "seen", [])
    return Interpreted.seen
