"""Finding what a command line names: a spec in a file or module, an example, or IR text; and its binding, schedule and sizes."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..api import compile, program_from_text
from ..build.program import Program
from ..errors import FcError, closest, did_you_mean
from ..ir.schedule import Schedule
from ..ir.types import DTYPES
from ..lang.spec import Spec
from ..runtime.files import kind_of, read_bytes

if TYPE_CHECKING:
    from ..sim.oracle import Oracle


@dataclass
class Found:
    """A spec with the binding that came along with it (an example has one, and a schedule for the target it names), or IR text."""

    spec: Spec | None = None
    text: str = ""
    filename: str = ""
    binding: Mapping[str, Any] = field(default_factory=dict)
    example: Any = None

    def program(self, arch: str | None, settings: Iterable[str], schedule: str | None) -> Program:
        target = arch or ("" if self.spec is None else default_target())
        chosen = None if schedule == "auto" else Schedule.parse(schedule) if schedule else self._own(target)
        if self.spec is None:
            settings = tuple(settings)
            if settings:
                raise FcError("cli/usage", "--set binds names of a spec, and IR text has none left", got=" ".join(settings))
            if schedule == "auto":
                raise FcError("cli/usage", "a schedule is chosen for a spec, and IR text has its tile sizes", got="--schedule auto",
                              hint='--schedule "warps=4, stages=2" for tile IR; machine IR is scheduled')
            return program_from_text(self.text, self.filename, target=arch, schedule=chosen)
        return compile(
            self.spec, target=target, schedule=chosen, **{**self.binding, **parse_settings(settings)}
        )

    def _own(self, target: str) -> Schedule | None:
        """The example's own schedule, where it was written for this target: on another one its instructions may be the wrong ones."""
        own = getattr(self.example, "schedule", None)
        return own if getattr(self.example, "target", target) == target else None


def default_target() -> str:
    from ..api import gpu_available, gpu_target

    return gpu_target() if gpu_available() else "sm_89"


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """`D=64`, `T=f16`, `mask=causal_top_left`, `lazy=5.5`."""
    out: dict[str, Any] = {}
    for item in settings:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise FcError("cli/usage", "a setting is written NAME=VALUE", got=item, hint="--set D=64 --set T=f16")
        if name in out:
            raise FcError("cli/usage", f"{name} is set twice", got=item)
        out[name] = _value(value)
    return out


def parse_sizes(sizes: Iterable[str], known: Iterable[str]) -> dict[str, int]:
    """`M=100` for the names in `known`; `m` finds `M` and the other way around where only one of them is known."""
    known = list(known)
    out: dict[str, int] = {}
    for item in sizes:
        name, equals, value = item.partition("=")
        if not equals or not (value.isascii() and value.isdigit()):
            raise FcError("cli/usage", "a size is written NAME=NUMBER", expected="a number from 0 on", got=item, hint="--size M=100")
        same = [k for k in known if k == name] or [k for k in known if k.lower() == name.lower()]
        if len(same) != 1:
            raise FcError("cli/usage", f"there is no size {name} here", expected=", ".join(known) or "none", got=item,
                          hint=did_you_mean(name, known))
        if same[0] in out:
            raise FcError("cli/usage", f"{same[0]} is given twice", got=item)
        out[same[0]] = int(value)
    if math.prod(out.values()) > 1 << 40:
        raise FcError("cli/usage", "this machine has not the memory for it", got=", ".join(f"{n}={x}" for n, x in out.items()),
                      hint="smaller sizes: --size M=100")
    return out


def oracle(found: Found, program: Program, against: str | None = None) -> Oracle | None:
    """What a program should compute: what `against` names; else its own tile program; else, for NAME.machine.fc, the one in NAME.tile.fc
    beside it if that takes the same arguments."""
    from ..sim.trial import Oracle

    if against is not None:
        other = find(against).program(program.target.arch, (), None)
        return Oracle(other.tile if other.level == "tile" else other.machine, program.target, against)
    if program.level == "tile":
        return Oracle(program.tile, program.target)
    beside = Path(found.filename.removesuffix(".machine.fc") + ".tile.fc")
    if not found.filename.endswith(".machine.fc") or not beside.is_file():
        return None
    other = find(str(beside)).program(program.target.arch, (), None)
    same = other.level == "tile" and [(p.name, p.type) for p in other.params] == [(p.name, p.type) for p in program.params]
    return Oracle(other.tile, program.target, str(beside)) if same else None


def draw(found: Found, program: Program, sizes: Iterable[str], arguments: Iterable[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Random inputs, or what `arguments` gives, and the outputs that an example's reference wants for them (none for other specs)."""
    from ..sim.trial import dimensions, random_inputs
    from .values import agree, parse_arguments

    if found.example is None:
        given = parse_sizes(sizes, dimensions(program.machine))
        fixed = parse_arguments(arguments, program, given)
        taken = {p.name for p in program.params}  # what a function of the spec holds is not drawn
        return {**{name: x for name, x in random_inputs(program.machine, given).items() if name in taken}, **fixed}, {}
    names = list(inspect.signature(found.example.inputs).parameters)[1:]  # after the generator
    given = parse_sizes(sizes, names)
    try:
        inputs, want = found.example.draw(**given)
    except (ValueError, ZeroDivisionError) as e:
        if all(given.values()):
            raise
        raise FcError("cli/usage", "the example's reference takes no empty tensors", got=f"{', '.join(sizes)}: {e}",
                      hint="fcgen check runs the kernel with them") from None
    fixed = parse_arguments(arguments, program, {})
    if fixed:
        inputs.update(fixed)
        agree(program, inputs)
        with np.errstate(all="ignore"):
            want = found.example.reference(**{k: v.astype(np.float64) if isinstance(v, np.ndarray) else v for k, v in inputs.items()})
    return inputs, want


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
    """`file.py`, `file.py:spec`, `package.module:spec`, or a file of IR text. Modules are also looked for in the current folder."""
    where, _, member = name.partition(":") if not (len(name) > 2 and name[1:3] == ":\\") else (name, "", "")
    path = Path(where)
    if path.suffix == ".py":
        return _member(_load_file(path), member, where)
    if path.is_file():
        return Found(text=_text(path), filename=str(path))
    if "/" in where or path.is_dir() or path.suffix in (".fc", ".txt", ".cu") or not all(w.isidentifier() for w in where.split(".")):
        raise _no_file(path)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{where}.".startswith(f"{e.name}."):
            raise  # the module is there; something that it imports is not
        raise FcError("file/missing", f"{where} is neither a file nor a module", got=str(e),
                      hint="name a spec as path/to/file.py:name or package.module:name") from None
    return _member(module, member, where)


def _no_file(path: Path) -> FcError:
    near = closest(path.name, [p.name for p in path.parent.glob("*")]) if path.parent.is_dir() else None
    there = kind_of(path.stat().st_mode) if os.path.exists(path) else None
    return FcError("file/missing", f"{path} is {there}" if there else f"there is no file {path}", expected="a file",
                   got=str(path), hint=f"did you mean {path.parent / near}?" if near and not there else None)


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as e:
        raise FcError("file/missing", f"{path} cannot be read as text", got=str(e),
                      hint="SPEC is a Python file, or IR text as `fcgen dump` prints it") from None


class _AsWritten(importlib.machinery.SourceFileLoader):
    """Compiles a file as it stands: Python's own cache takes it for the same where second and size of its last change are."""

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self.get_data(self.path), self.path)


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise _no_file(path)
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path, loader=_AsWritten(path.stem, str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    added = sys.modules.setdefault(path.stem, module) is module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if added:
            del sys.modules[path.stem]
        raise
    return module


def _member(module: Any, member: str, where: str) -> Found:
    every = {k: v for k, v in vars(module).items() if isinstance(v, Spec)}
    specs = {k: v for k, v in every.items() if v.fn.__module__ == module.__name__} or every
    named: Any = getattr(module, member or "example", None)
    if isinstance(getattr(named, "spec", None), Spec) and hasattr(named, "binding"):
        return Found(named.spec, binding=named.binding, example=named)
    if not member and len(specs) == 1:
        return Found(next(iter(specs.values())))
    if member and isinstance(named, Spec):
        return Found(named)
    near = closest(member, specs)
    if member and named is not None:
        raise FcError("file/missing", f"{where}:{member} is not a spec", got=f"a {type(named).__name__}",
                      expected=", ".join(specs) or "a function decorated with @fc.kernel",
                      hint=f"write {where}:{next(iter(specs))}" if specs else "decorate it with @fc.kernel")
    raise FcError("file/missing", f"{where} has no spec called {member}" if member else f"{where} does not say which spec",
                  expected=", ".join(specs) or "a function decorated with @fc.kernel", got=member or None,
                  hint=f"did you mean {where}:{near}?" if near else (f"write {where}:{next(iter(specs))}" if specs else None))
