"""`fcgen.dropout_mask`: which weights a dropout keeps, as a tensor."""

from __future__ import annotations

from typing import Any

from ..build.program import Program
from ..dropout import Dropout
from ..errors import FcError
from ..ir.schedule import Schedule
from ..kernels.readback import kept_weights
from .outputs import _empty
from .variants import Functions, _arch, family, quiet

_TILES = Schedule(tiles={"ROWS": 64, "KEYS": 128}, warps=4)


def dropout_mask(dropout: Dropout, batch: int, heads: int, rows: int, keys: int, like: Any) -> Any:
    """Which weights stay, int8 [batch, heads, rows, keys] of ones and zeros, on the device of the tensor `like`: what `fcgen.attention`
    with this dropout multiplies its weights with, but for the factor 1 / (1 - p). In NumPy: `dropout.mask(batch, heads, rows, keys)`."""
    from ..runtime import tensors

    if not isinstance(dropout, Dropout):
        raise FcError("call/argument", "argument `dropout` is no dropout", got=repr(dropout)[:80],
                      expected="fcgen.Dropout(p, seed, offset)")
    out = _empty(like, (batch, heads, rows, keys), "int8")
    if 0 not in out.shape:
        arch = _arch(tensors.describe(like, "like").device)
        programs = family(("kept", arch), Functions(weigh=dropout), lambda functions: _program(arch, **functions))
        programs.run({"dropout": dropout}, {"Kept": out})
    return out


def _program(arch: str, dropout: Dropout) -> Program:
    return quiet(kept_weights, arch, _TILES, dropout=dropout)
