"""The public functions around a spec: compile it, call it on tensors, make a program from IR text."""

from __future__ import annotations

import functools
import os
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from .build import compiler
from .build.captured import Captured, family_of, known_by
from .build.program import Program, by_name
from .errors import FcError
from .ir.schedule import Schedule
from .ir.types import DType
from .lang.spec import Spec


def compile(spec: Spec, *, target: str | None = None, schedule: Schedule | None = None, check: bool = True, **binding: Any) -> Program:
    """A program of a spec for a target ("sm_80", "sm_86", "sm_89", "sm_90", "sm_90a"; the GPU's own if None).

    binding: the spec's compile-time facts. schedule: what `schedule_for` chooses, if None. check: the first compilation of spec, schedule
    and target also runs them in the simulator, at small sizes and for seconds at most (FCGEN_CHECK=0 in the environment turns this off
    everywhere). Raises FcError with the spec's line where the spec, the schedule or the target does not allow it.
    """
    if not isinstance(spec, Spec):
        raise FcError("trace/usage", "fc.compile takes a spec", expected="a function decorated with @fc.kernel", got=repr(spec)[:80])
    arch, trust = target or gpu_target(), not check or os.environ.get("FCGEN_CHECK") == "0"
    why: tuple[str, ...] = ()
    if schedule is None:
        schedule, why = _choice(spec, arch, binding, {})
    schedule = a_schedule(schedule)
    held = spec.given(binding)
    program = Captured(family_of(spec, schedule, arch, trust, binding, held, lambda: schedule), held) if held else \
        Program(spec.scheduled(dict(schedule.tiles), **binding)[0], schedule, arch)
    program.trust, program.why = trust, why
    program.absent = frozenset(p.name for p in spec.signature.params if p.optional and p.name in binding)
    return program


def schedule_for(spec: Spec, target: str | None = None, **sizes: Any) -> Schedule:
    """A sound schedule for any spec on a target (the GPU's own if None): tile sizes, warps, instructions, rings, found by a model of the
    machine in a fraction of a second. It compiles, and spills only where every other one that was tried would.

    sizes: what the spec is compiled for (T=fc.f16, D=64), and the sizes of other dimensions, and scalars that count, as far as they are
    known (N=4096): small grids then get small tiles, and the last wave of blocks counts. Why it is this one: `fcgen dump --stage report`.
    """
    if not isinstance(spec, Spec):
        raise FcError("trace/usage", "fc.schedule_for takes a spec", expected="a function decorated with @fc.kernel", got=repr(spec)[:80])
    counts = {p.name: sizes[p.name] for p in spec.signature.params if p.kind == "scalar" and sizes.get(p.name) is not None}
    given = {k: v for k, v in sizes.items() if k not in counts}
    spec.check_binding(given)
    hints = {k: v for k, v in given.items() if k in spec.signature.dims and k not in _whole_dims(spec)}
    try:
        return _choice(spec, target or gpu_target(), {k: v for k, v in given.items() if k not in hints}, {**hints, **counts})[0]
    except FcError as e:
        if e.code != "trace/static" or not hints:
            raise
        return _choice(spec, target or gpu_target(), given, counts)[0]  # one of them must be known when it is compiled


def _choice(spec: Spec, arch: str, binding: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[Schedule, tuple[str, ...]]:
    from .build.choose import choose

    found = choose(spec, compiler.target(arch), binding, sizes)
    return found.schedule, found.why


def a_schedule(given: Any) -> Schedule:
    """The schedule that was given, or the default one."""
    if given is None or isinstance(given, Schedule):
        return given or Schedule()
    raise FcError("compile/schedule", "this is not a Schedule", got=repr(given)[:80], expected="fc.Schedule(tiles={\"BLOCK_M\": 64})",
                  hint="fc.Schedule.parse(...) reads one from text" if isinstance(given, str) else None)


def program_from_text(text: str, filename: str = "<ir>", *, target: str | None = None, schedule: Schedule | None = None,
                      check: bool = True) -> Program:
    """A program from IR text of either level. Machine IR names its target itself (`meta target`); it may be compiled for a newer one, but
    what was made for the instructions of an `a` target for no other.

    check: machine IR runs in the simulator, at a few small sizes, before it is compiled for the first time; what that finds is raised."""
    kernel = compiler.from_text(text, filename)
    if kernel.level == "machine" and schedule not in (None, Schedule()):
        raise FcError("compile/schedule", f"{kernel.name} is machine IR, which has its schedule already", got=schedule,
                      expected=kernel.meta.get("schedule"), hint="edit the IR, or lower the tile IR again")
    made_for = str(kernel.meta.get("target") or "")
    arch = target or made_for or gpu_target()
    number = lambda name: int(name.removeprefix("sm_").rstrip("a"))
    if arch != made_for and {arch, made_for} <= set(compiler.targets()) and (made_for.endswith("a") or number(arch) < number(made_for)):
        raise FcError("compile/unsupported", f"{kernel.name} was lowered for {made_for} and does not compile for {arch}", expected=made_for,
                      got=arch, hint="leave the target out, or lower the spec or its tile IR again")
    if schedule is not None and kernel.level == "machine":
        raise FcError("compile/schedule", f"{kernel.name} is machine IR, which a schedule has no say in", got=str(schedule),
                      hint="leave the schedule out, or lower the spec or its tile IR again")
    why: tuple[str, ...] = ()
    if schedule is None and kernel.level == "tile":
        from .build.choose import choose_for_kernel

        schedule, why = choose_for_kernel(kernel, compiler.target(arch), {})
    program = Program(kernel, a_schedule(schedule), arch)
    program.trust, program.why = not check, why
    return program


def call(spec: Spec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Compile `spec` for what it is called with, and run it: dtypes are those of the tensors, sizes that the spec needs at compile time
    are theirs too. `schedule=` gives the schedule (that of `schedule_for` without); programs are kept."""
    from .runtime import tensors

    schedule = kwargs.pop("schedule", None)
    if schedule is not None:
        schedule = a_schedule(schedule)
    given = by_name(spec.name, spec.names, args, kwargs, "schedule")
    binding: dict[str, Any] = {}
    device = 0
    for p in spec.signature.params:
        if p.optional and given.get(p.name) is None:
            given.pop(p.name, None)
            binding[p.name] = None
            continue
        if p.name not in given:
            if p.kind != "static":
                raise FcError("call/argument", f"argument `{p.name}` is missing", expected=", ".join(spec.names))
            continue
        if p.kind == "tensor":
            arg = tensors.describe(given[p.name], p.name)
            device = arg.device
            if len(arg.shape) != len(p.dims):
                raise FcError(
                    "call/argument",
                    f"argument `{p.name}` has the wrong number of axes",
                    expected=f"[{', '.join(map(str, p.dims))}]",
                    got=arg.shape,
                )
            if p.dtype in spec.signature.dtype_names:
                binding.setdefault(p.dtype, arg.dtype)
            for dim, n in zip(p.dims, arg.shape):
                if isinstance(dim, str) and dim in _whole_dims(spec):
                    binding.setdefault(dim, n)
        elif p.kind == "static":
            binding[p.name] = given.pop(p.name)
    held = spec.given(binding)
    for name, value in (known_by(binding, held) if held else binding).items():
        if not isinstance(value, Hashable) or (isinstance(value, tuple) and not all(isinstance(v, Hashable) for v in value)):
            raise FcError("call/argument", f"the compile-time parameter `{name}` cannot be remembered", got=f"a {type(value).__name__}",
                          expected="a value that does not change: a number, a string, a tuple, a function",
                          hint="programs are kept by their compile-time parameters: pass a tuple for a list, or use compile(...)")
    if held:
        arch, trust = _arch(device), os.environ.get("FCGEN_CHECK") == "0"
        family_of(spec, schedule, arch, trust, binding, held, lambda: _choice(spec, arch, binding, {})[0]).run(held, given)
    else:
        _program(spec, schedule, _arch(device), tuple(sorted(binding.items(), key=lambda kv: kv[0])))(**given)


@functools.lru_cache(maxsize=1024)
def _program(spec: Spec, schedule: Schedule | None, arch: str, binding: tuple[tuple[str, Any], ...]) -> Program:
    return compile(spec, target=arch, schedule=schedule, **dict(binding))


@functools.lru_cache(maxsize=256)
def _whole_dims(spec: Spec) -> frozenset[str]:
    """Dimensions that the spec uses whole, as a tile's axis: names that its code reads but never tiles, by the last letter of the shape.

    A dimension is needed at compile time where tracing says so; the last dimension of a tensor of rank 2 or more is taken to be."""
    tiled = {d for p in spec.signature.tensors for d in p.dims[:-1]}
    return frozenset(
        p.dims[-1] for p in spec.signature.tensors if len(p.dims) > 1 and isinstance(p.dims[-1], str) and p.dims[-1] not in tiled
    )


def gpu_available() -> bool:
    """Is there a GPU? To ask does not start CUDA here: processes forked later may still use it."""
    from .runtime import driver

    return driver.present()[0]


def gpu_target(device: int = 0) -> str:
    """The target for a GPU of this machine, with the instructions that only its kind has ("sm_90a" on Hopper)."""
    return _arch(device)


_arch = functools.lru_cache(maxsize=64)(compiler.own_target)


def round_to(x: np.ndarray, dtype: DType) -> np.ndarray:
    """An array rounded to a dtype of fcgen, as the interpreters hold it (bf16 as float32)."""
    from .ir.elementwise import to_dtype

    return to_dtype(np.asarray(x), dtype)
