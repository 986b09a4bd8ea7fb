"""Values for a kernel's arguments on a command line: `--arg scale=0.125 --arg window=200 --arg Q=q.npy`.

In: the options and a program. Out: numbers and arrays by argument. Guaranteed: every one of them is an argument that the program reads, of
its dtype, and arrays agree with each other, with `--size` and with what the program fixes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..build.program import Program
from ..errors import FcError, did_you_mean
from ..ir.core import Value
from ..ir.elementwise import to_dtype
from ..ir.sizes import is_made
from ..ir.types import Tensor
from ..runtime.files import read_bytes

WORDS = {"inf": math.inf, "-inf": -math.inf}


def argument_option(fn: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--arg", "arguments", multiple=True, metavar="NAME=VALUE",
                        help="a number or a tensor to use: scale=0.125, Q=q.npy (as np.save writes it)")(fn)


def parse_arguments(items: Iterable[str], program: Program, sizes: dict[str, int]) -> dict[str, Any]:
    """The values; what arrays say of sizes is added to `sizes`, which must not say otherwise."""
    known = {p.name: p for p in program.params if not is_made(program.machine, p.name)}
    out: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not text:
            raise FcError("cli/usage", "an argument is written NAME=VALUE", got=item, hint="--arg scale=0.125 --arg Q=q.npy")
        if name not in known:
            what = f"{name} is written by {program.name}, not read" if any(p.name == name for p in program.params) else \
                f"{program.name} has no argument {name}"
            raise FcError("cli/usage", what, expected=", ".join(known), got=item, hint=did_you_mean(name, known))
        if name in out:
            raise FcError("cli/usage", f"{name} is given twice", got=item)
        positive = "positive" in program.machine.flags.get(name, ())
        out[name] = _array(known[name], text, sizes) if isinstance(known[name].type, Tensor) else _number(known[name], text, positive)
    return out


def agree(program: Program, arguments: Mapping[str, Any]) -> None:
    """Refuse arrays that differ on a size."""
    sizes: dict[str, tuple[int, str]] = {}
    for p in program.params:
        if isinstance(p.type, Tensor) and p.name in arguments:
            for dim, n in zip(p.type.dims, np.shape(arguments[p.name])):
                have, first = sizes.setdefault(str(dim), (n, p.name))
                if have != n:
                    raise FcError("cli/usage", f"`{p.name}` and `{first}` disagree on the size of {dim}", expected=have, got=n,
                                  hint="give both, or the size")


def _number(p: Value, text: str, positive: bool) -> Any:
    dtype = p.type.dtype
    try:
        value: Any = WORDS.get(text) if dtype.is_float else None
        if value is None:
            value = float(text) if dtype.is_float else int(text, 0)
    except ValueError:
        raise FcError("cli/usage", f"{p.name} is a number", expected=dtype.name, got=text) from None
    if not dtype.is_float and not dtype.range[0] <= value <= dtype.range[1]:
        raise FcError("cli/usage", f"{p.name} does not fit", expected=dtype.name, got=text)
    if positive and not value > 0:
        raise FcError("cli/usage", f"{p.name} must be positive: the spec says so", expected="> 0", got=text)
    return value


def _array(p: Value, text: str, sizes: dict[str, int]) -> np.ndarray:
    dims, dtype = p.type.dims, p.type.dtype
    shape = f"[{', '.join(map(str, dims))}]"
    if Path(text).suffix != ".npy":
        raise FcError("cli/usage", f"{p.name} is a tensor: it comes from a file of np.save", expected=f"{dtype.name}{shape} in a .npy file",
                      got=text, hint=f"--arg {p.name}={p.name.lower()}.npy")
    raw = read_bytes(Path(text))
    try:
        x = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    except (ValueError, EOFError, TypeError, MemoryError) as e:
        raise FcError("file/missing", f"{text} is not an array of np.save", got=str(e).splitlines()[0] if str(e) else "nothing") from None
    if x.dtype.kind not in "fiub" or (not dtype.is_float and x.dtype.kind == "f"):
        raise FcError("cli/usage", f"{text} has the wrong dtype for {p.name}", expected=dtype.name, got=x.dtype)
    if x.ndim != len(dims) or any(isinstance(d, int) and d != n for d, n in zip(dims, x.shape)) or 0 in x.shape:
        raise FcError("cli/usage", f"{text} has the wrong shape for {p.name}", expected=shape, got=x.shape)
    for d, n in zip(dims, x.shape):
        if isinstance(d, str) and sizes.setdefault(d, n) != n:
            raise FcError("cli/usage", f"{text} gives {d} another size than the rest of the command", expected=sizes[d], got=n)
    return to_dtype(x, dtype)
