"""Finding what a command line names: a spec in a file or module, an example, or IR text; and its binding, schedule and sizes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .api import compile, program_from_text
from .errors import FcError
from .ir.schedule import Schedule
from .ir.types import DTYPES
from .lang.spec import Spec
from .program import Program


@dataclass
class Found:
    """A spec with the binding and schedule that came along with it (an example has both), or IR text."""

    spec: Spec | None = None
    text: str = ""
    filename: str = ""
    binding: Mapping[str, Any] = field(default_factory=dict)
    schedule: Schedule | None = None
    example: Any = None

    def program(self, arch: str | None, settings: Iterable[str], schedule: str | None) -> Program:
        chosen = Schedule.parse(schedule) if schedule else self.schedule
        if self.spec is None:
            return program_from_text(self.text, self.filename, target=arch, schedule=chosen)
        return compile(
            self.spec, target=arch or default_target(), schedule=chosen or Schedule(), **{**self.binding, **parse_settings(settings)}
        )


def default_target() -> str:
    from .api import gpu_available, gpu_target

    return gpu_target() if gpu_available() else "sm_89"


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """`D=64`, `T=f16`, `mask=causal_top_left`, `lazy=5.5`."""
    out: dict[str, Any] = {}
    for item in settings:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise FcError("file/missing", "a setting is written NAME=VALUE", got=item, hint="--set D=64 --set T=f16")
        out[name] = _value(value)
    return out


def _value(text: str) -> Any:
    if text in DTYPES:
        return DTYPES[text]
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def find(name: str) -> Found:
    """`file.py`, `file.py:spec`, `package.module:spec`, or a file of IR text."""
    where, _, member = name.partition(":") if not (len(name) > 2 and name[1:3] == ":\\") else (name, "", "")
    path = Path(where)
    if path.suffix == ".py":
        return _member(_load_file(path), member, where)
    if path.exists() and path.is_file():
        return Found(text=path.read_text(), filename=str(path))
    if "/" in where or path.suffix in (".fc", ".txt", ".cu"):
        raise FcError("file/missing", f"there is no file {where}", got=where)
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as e:
        raise FcError("file/missing", f"{where} is neither a file nor a module", got=str(e),
                      hint="name a spec as path/to/file.py:name or package.module:name") from None
    return _member(module, member, where)


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise FcError("file/missing", f"there is no file {path}", got=str(path))
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _member(module: Any, member: str, where: str) -> Found:
    specs = {k: v for k, v in vars(module).items() if isinstance(v, Spec) and v.fn.__module__ == module.__name__}
    if not member and hasattr(module, "example") and isinstance(getattr(module.example, "spec", None), Spec):
        e = module.example
        return Found(e.spec, binding=e.binding, schedule=e.schedule, example=e)
    if not member and len(specs) == 1:
        return Found(next(iter(specs.values())))
    if member in specs or isinstance(getattr(module, member or "?", None), Spec):
        return Found(getattr(module, member))
    near = get_close_matches(member, specs, 1)
    raise FcError("file/missing", f"{where} has no spec called {member}" if member else f"{where} does not say which spec",
                  expected=", ".join(specs) or "a function decorated with @fc.kernel", got=member or None,
                  hint=f"did you mean {where}:{near[0]}?" if near else (f"write {where}:{next(iter(specs))}" if specs else None))


def random_inputs(program: Program, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Any]:
    """Random inputs for a kernel: normal tensors of the given sizes, scalars that suit (1/sqrt of the last compile-time size for a positive
    one)."""
    import numpy as np

    from .ir.types import Tensor

    rng = np.random.default_rng(seed)
    source = program._source
    out: dict[str, Any] = {}
    known = dict(sizes)
    for p in source.params:
        flags = source.flags.get(p.name, ())
        if isinstance(p.type, Tensor):
            if "out" in flags:
                continue
            shape = [d if isinstance(d, int) else known.setdefault(d, 2 if d in ("B", "H", "G") else 100) for d in p.type.dims]
            x = rng.standard_normal(shape) if p.type.dtype.is_float else rng.integers(0, 4, shape)
            out[p.name] = x.astype(p.type.dtype.np_dtype)
        else:
            out[p.name] = 0.125 if p.type.dtype.is_float else 1
    return out


def simulate_cases(program: Program, given: Mapping[str, int], seeds: int, doing: Any) -> list[str]:
    """Run the machine code in the simulator for trip counts 1 to 2 x stages + 1 of its loops, the first and the last program of the grid,
    several orders of the warps. Raises the first report; returns what was run. doing(text, fn) runs fn."""
    from .sim.machine import check

    machine = program.machine
    counted = [o for r in machine.roles for o in r.body.ops if o.kind == "for" and o.get("tile")]
    tile = max([o["tile"] for o in counted], default=16)
    ring = max([b.type.slots for b in machine.buffers], default=1)
    plain = {g.dim for g in machine.grid if g.tile == 1}
    dims = dict.fromkeys(d for p in machine.params for d in getattr(p.type, "dims", ()) if isinstance(d, str) and d not in given)
    done = []
    for n in range(1, 2 * ring + 2):
        sizes = {**{d: 1 if d in plain or (d not in plain and _groups(d, machine)) else n * tile - 3 for d in dims}, **given}
        inputs = random_inputs(program, sizes)
        counts = [g.count(sizes) if not isinstance(g.dim, int) else g.dim for g in machine.grid]
        ends = [tuple(0 for _ in counts), tuple(c - 1 for c in counts)]
        for seed in range(seeds):
            doing(
                f"simulating {sizes}", lambda i=inputs, s=seed, e=ends: check(machine, i, program.target, seed=s, programs=dict.fromkeys(e))
            )
        done.append(", ".join(f"{d}={s}" for d, s in sizes.items() if s > 1))
    return done


def _groups(dim: str, machine: Any) -> bool:
    """A dimension that is only ever a position (a head of K and V), never an axis of a tile."""
    for role in machine.roles:
        from .ir.core import walk

        for op in walk(role.body):
            if op.get("index") and op.operands and hasattr(op.operands[0].type, "dims"):
                for d, word in zip(op.operands[0].type.dims, op["index"]):
                    if d == dim and word != "at":
                        return False
    return True
