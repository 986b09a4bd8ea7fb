"""From a tile kernel to a program: passes, text, NVRTC, and the disk cache around them.

In: tile IR (or edited machine IR), a schedule and a target. Out: a `Built`, which holds every level as text, the cubin and the facts that
a launch needs. Guaranteed: the same input never compiles twice on one machine while the cache is kept, and what the cache holds is used
only if the spec, the schedule, the target, fcgen's own code and NVRTC are the same as when it was made.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from ..errors import FcError, Loc, did_you_mean
from ..ir.alignment import narrow
from ..ir.core import Kernel, walk_kernel
from ..ir.schedule import Schedule
from ..ir.target import Target
from ..ir.verify import verify
from ..version import __version__
from .deep import collector_off, with_room
from .later import Later

#: Beyond what every compilation has (`runtime/nvrtc.py`): functions without a word for where they run are the device's.
NVRTC_OPTIONS: tuple[str, ...] = ("-default-device",)


@dataclass(frozen=True)
class Facts:
    """What a launch needs to know, as plain data (it is stored in the cache as JSON).

    params: (name, "tensor", dtype, dims, flags) or (name, "scalar", dtype, [], flags), in call order. flat: the kernel's own parameters,
    (kind, name, axis, detail). grid: (name, dim, tile, cluster) per axis. persistent: "none", or how blocks come to their tiles.
    pdl: the kernel itself waits for those in front of it, and may be launched before they have ended. aligned: for each tensor
    (name, bytes that its pointer is a multiple of, and those of each stride but the last). ranges: (name, least, greatest, saturates)
    of sizes and i32 scalars, where something is known. resident: blocks of a multiprocessor that registers and shared memory were made
    for. covers: places that tensors must have (`ir.covers`).
    """

    name: str
    arch: str
    threads: int
    smem_bytes: int
    params: tuple[tuple[Any, ...], ...]
    flat: tuple[tuple[Any, ...], ...]
    grid: tuple[tuple[Any, ...], ...]
    persistent: str = "none"
    pdl: bool = False
    aligned: tuple[tuple[Any, ...], ...] = ()
    ranges: tuple[tuple[Any, ...], ...] = ()
    resident: int = 1
    covers: tuple[tuple[Any, ...], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in self.__dataclass_fields__}

    @staticmethod
    def from_json(d: Mapping[str, Any]) -> Facts:
        def frozen(x: Any) -> Any:
            return tuple(map(frozen, x)) if isinstance(x, list) else x

        return Facts(**{k: frozen(v) for k, v in d.items()})


@dataclass
class Built:
    """A compiled kernel: every level as text. `cached`: it came from disk and nothing was compiled. remarks: what is worth knowing
    about it, as (kind, text): "spills", "live" (a loop that could not leave out what it was told),
    "unchecked" (why no simulator saw the program)."""

    facts: Facts
    schedule: Schedule
    tile_text: str
    machine_text: str
    cuda_text: str
    cubin: bytes
    log: str
    cached: bool = False
    line_map: dict[int, Loc] = field(default_factory=dict)
    remarks: tuple[tuple[str, str], ...] = ()


def targets() -> dict[str, Target]:
    from ..backends.targets import ada, hopper

    return {**ada.TARGETS, **hopper.TARGETS}


def target(arch: str) -> Target:
    """The record of a target, by NVRTC's name for it ("sm_89")."""
    known = targets()
    if not isinstance(arch, str) or arch not in known:
        raise FcError("compile/unsupported", f"fcgen has no target {arch!r}", expected=", ".join(known), got=arch,
                      hint=_newer_or_older(arch) or did_you_mean(arch, known))
    return known[arch]


def _newer_or_older(arch: Any) -> str | None:
    """Of a GPU that fcgen does not know: that it does not, and what it does."""
    number = re.fullmatch(r"sm_(\d+)[a-z]?", str(arch))
    known = sorted((int(name.strip("sm_a")), name) for name in targets())
    if number and int(number[1]) > known[-1][0]:
        return f"its newest target is {known[-1][1]}: nothing is generated for GPUs after Hopper (Blackwell is sm_100 and sm_120)"
    too_old = number and int(number[1]) < known[0][0]
    return f"its oldest target is {known[0][1]}: it needs the asynchronous copies of Ampere" if too_old else None


def own_target(device: int = 0) -> str:
    """The target for a GPU of this machine: the one with its own instructions (sm_90a) where there is one, else its architecture's."""
    from ..runtime import driver

    own = driver.device_info(device).arch
    return own if own in targets() else target(own.rstrip("a")).arch


F = TypeVar("F", bound=Callable[..., Any])


def bounded(fn: F) -> F:
    """A step of the compiler whose depth follows the program's: what is too deep for Python is refused."""

    @functools.wraps(fn)
    def run(kernel: Kernel, *args: Any, **named: Any) -> Any:
        try:
            return fn(kernel, *args, **named)
        except RecursionError:
            raise FcError("compile/unsupported", f"{kernel.name} is too deep: regions inside of regions, or values made of values",
                          hint="split the kernel, or carry the value through a loop") from None

    return cast(F, run)


@bounded
def lower(kernel: Kernel, schedule: Schedule, to: Target, *, stop_after: str | None = None,
          trace: Callable[[str, Kernel], None] | None = None) -> Kernel:
    """Run the passes on a tile kernel; `stop_after` names one of them."""
    from ..passes import run_passes

    with collector_off():
        return with_room(lambda: run_passes(kernel, schedule, to, stop_after=stop_after, trace=trace), ops_of(kernel))


def ops_of(kernel: Kernel) -> int:
    return sum(1 for _ in walk_kernel(kernel))


_asked: list[str] = []  # names of kernels: threads append to it


def compile_count() -> int:
    """How many kernels this process has asked the compiler for so far, those that it found in the cache on disk included. Other lengths,
    strides, captured numbers and tensors ask for none."""
    return len(_asked)


def build(kernel: Kernel, schedule: Schedule, to: Target, *, check: bool = True, cache: bool = True,
          progress: Callable[[str], None] | None = None, lowered: Callable[[], Kernel] | None = None) -> Built:
    """Compile a tile kernel, or a machine kernel as it is, to a cubin. check: the machine program is tried in the simulator, once: what it
    finds is raised, and that it found nothing is kept beside the cubin. What passes made is compiled meanwhile, what someone wrote after
    that. progress: told the name of each step. lowered: gives the machine program, where somebody may have asked for it before."""
    from ..ir.text import print_kernel
    from ..runtime.cache import key_of, open_cache

    _asked.append(kernel.name)
    text, say = print_kernel(kernel), progress or (lambda step: None)
    made = functools.cache(lambda: _lowered(lowered or (lambda: to_machine(kernel, schedule, to)), to, say))

    def kept(kind: str, make: Callable[[], tuple[dict[str, bytes], dict[str, Any]]]) -> tuple[Mapping[str, bytes], Mapping[str, Any], bool]:
        if not cache:
            return *make(), False
        key = key_of(kind, text, repr(schedule), to.arch, code_fingerprint(), nvrtc_fingerprint(), NVRTC_OPTIONS)
        entry = open_cache().get_or_build(key, make)
        return entry.files, entry.meta, entry.hit

    def compiled(say: Callable[[str], None]) -> tuple[Mapping[str, bytes], Mapping[str, Any], bool]:
        return kept("built", lambda: _build(kernel, text, *made(), to, say))

    def tried() -> tuple[dict[str, bytes], dict[str, Any]]:
        machine = made()[0]
        if kernel.level == "machine":
            return {}, {"remarks": _tried(machine, to, say)}
        with Later(lambda: compiled(lambda step: None)) as cubin:
            remarks = _tried(machine, to, say)
            say("NVRTC")
        beside.append(cubin)
        return {}, {"remarks": remarks}

    beside: list[Later[tuple[Mapping[str, bytes], Mapping[str, Any], bool]]] = []
    said = kept("tried", tried)[1]["remarks"] if check else []
    return _unpack(*(beside[0].result() if beside else compiled(say)), schedule, said)


def _lowered(lowered: Callable[[], Kernel], to: Target, say: Callable[[str], None]) -> tuple[Kernel, Any]:
    """The machine program and its text. What cannot be printed is refused here, before anything runs it."""
    say("passes")
    machine = lowered()
    say("CUDA text")
    return machine, to_cuda(machine, to)


def _tried(machine: Kernel, to: Target, say: Callable[[str], None]) -> list[tuple[str, str]]:
    """Run the trials of a machine program; what was not put to the test is told. Unlike `check`, values are not compared with those of the
    tile program: it takes two to four times as long, and what explains a difference by rounding is an estimate, which must not refuse
    anyone's right program."""
    from ..sim.trial import run_trials

    say("simulator")
    try:
        run_trials(machine, to)
    except FcError as e:
        if e.code != "compile/unsupported":
            raise
        return [("unchecked", f"{machine.name} was not run in the simulator: {e.message}")]
    return []


def to_machine(kernel: Kernel, schedule: Schedule, to: Target) -> Kernel:
    return verify(kernel) if kernel.level == "machine" else lower(kernel, schedule, to)


@bounded
def to_cuda(machine: Kernel, to: Target) -> Any:
    """The CUDA C++ of a machine kernel, after its budgets were checked."""
    from ..backends.budget import check_budget
    from ..backends.cuda.printer import print_cuda
    from ..ir.fits import check_fits
    from ..ir.kernel_rules import require

    def text() -> Any:
        require(machine, "synced", "the CUDA printer")
        check_fits(machine, to)
        check_budget(machine, to)
        return print_cuda(machine, to)

    with collector_off():
        return with_room(text, ops_of(machine))


def _build(kernel: Kernel, text: str, machine: Kernel, cuda: Any, to: Target,
           say: Callable[[str], None]) -> tuple[dict[str, bytes], dict[str, Any]]:
    from ..ir.text import print_kernel
    from ..runtime.nvrtc import compile_cuda

    say("NVRTC")
    binary = compile_cuda(cuda.text, to.arch, name=cuda.name, options=NVRTC_OPTIONS, line_map=cuda.line_map)
    refuse_serialised(binary.log, machine)
    facts = facts_of(machine, cuda, to)
    places = {str(line): [loc.file, loc.line] for line, loc in cuda.line_map.items()}
    files = {"tile": text.encode(), "machine": print_kernel(machine).encode(), "cuda": cuda.text.encode(), "cubin": binary.cubin,
             "log": binary.log.encode(), "lines": json.dumps(places).encode()}
    slow = [("narrow", f"{kind} of {tensor}'s tiles move {text}") for (kind, tensor), text in narrow(machine).items()]
    remarks = [*machine.meta.get("remarks", ()), *slow, *_spills(binary, cuda.name, machine.name)]
    return files, {"facts": facts.to_json(), "remarks": remarks}


def _spills(binary: Any, symbol: str, name: str) -> list[tuple[str, str]]:
    from ..runtime.cubin import resources

    r = resources(binary.cubin, binary.log)[symbol]
    if not r.spills:
        return []
    much = f"{r.spill_stores} bytes go to memory and {r.spill_loads} come back" if r.spill_stores is not None else "some go to memory"
    return [("spills", f"{name} has more values than registers: {much}; smaller Schedule.tiles, more warps or hold_a=False help")]


def refuse_serialised(log: str, machine: Kernel) -> None:
    """ptxas says in its notes C7504 to C7520 that it made matrix products wait for each other, or ignored a role's registers: the kernel
    would be right and slow. Raises FcError "compile/ptxas" at the spec's line of the first product."""
    notes = [line.strip() for line in log.splitlines() if re.search(r"\bC75[012]\d\b", line)]
    if notes:
        from ..runtime.nvrtc import nvrtc_version

        first = next((op.loc for op in walk_kernel(machine) if op.kind == "wgmma"), None)
        raise FcError("compile/ptxas", f"ptxas serialised the matrix products of {machine.name}", loc=first, notes=notes[:4],
                      expected="products in flight together", got=re.findall(r"C75\d\d", notes[0])[0],
                      hint="fewer registers in flight: smaller Schedule.tiles, or no `late` dot; or another NVRTC than "
                           + ".".join(map(str, nvrtc_version())))


def _unpack(files: Mapping[str, bytes], meta: Mapping[str, Any], hit: bool, schedule: Schedule, said: list[Any]) -> Built:
    lines = {int(k): Loc(f, n) for k, (f, n) in json.loads(files["lines"]).items()}
    return Built(Facts.from_json(json.loads(json.dumps(meta["facts"]))), schedule, files["tile"].decode(), files["machine"].decode(),
                 files["cuda"].decode(), files["cubin"], files["log"].decode(), hit, lines,
                 tuple((kind, words) for kind, words in (*meta["remarks"], *said)))


def facts_of(machine: Kernel, cuda: Any, to: Target) -> Facts:
    from ..ir.alignment import asked
    from ..ir.core import walk_kernel
    from ..ir.covers import covered
    from ..ir.ranges import admitted
    from ..ir.types import Tensor

    params = []
    for p in machine.params:
        flags = tuple(machine.flags.get(p.name, ()))
        if isinstance(p.type, Tensor):
            params.append((p.name, "tensor", p.type.dtype.name, p.type.dims, flags))
        else:
            params.append((p.name, "scalar", p.type.dtype.name, (), flags))
    flat = tuple((s.kind, s.name, s.axis, s.detail) for s in cuda.params)
    grid = tuple((a.name, a.dim, a.tile, a.cluster) for a in machine.grid)
    return Facts(cuda.name, to.arch, cuda.threads, cuda.smem_bytes, tuple(params), flat, grid, machine.meta.get("persistent", "none"),
                 any(op.kind == "grid_wait" for op in walk_kernel(machine)), asked(machine),
                 tuple((name, *r) for name, r in admitted(machine).items()), machine.meta.get("min_blocks", 1) or 1,
                 covered(machine))


@functools.cache
def code_fingerprint() -> str:
    """Changes when any file of the package does: what was compiled by other code is not used."""
    root = Path(__file__).parent.parent
    parts = []
    for folder, _, names in sorted(os.walk(root)):
        for name in sorted(names):
            if name.endswith((".py", ".lark")):
                s = os.stat(os.path.join(folder, name))
                parts.append(f"{name}:{s.st_size}:{s.st_mtime_ns}")
    from hashlib import sha256

    return __version__ + ":" + sha256("|".join(parts).encode()).hexdigest()[:16]


@functools.cache
def nvrtc_fingerprint() -> str:
    """Which NVRTC would be used, without loading it (that costs more than a cache hit): the version in its wheel or toolkit."""
    from ..runtime.toolchain import nvrtc_identity

    return nvrtc_identity()


def from_text(text: str, filename: str) -> Kernel:
    """Parse IR text of either level; what was edited by hand goes through the same checks as what the passes made."""
    from ..ir.parse import parse_kernel

    return parse_kernel(text, filename)
