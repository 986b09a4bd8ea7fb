"""A spec compiled for one target: every level of it to look at, to run without a GPU, and to call on tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FcError, FcWarning, did_you_mean, warn
from ..ir.alignment import Promise, natural, nothing, of_arguments, promised, with_promises
from ..ir.core import Kernel, Value, walk_kernel
from ..ir.schedule import Schedule
from ..ir.sizes import is_made
from ..ir.types import DType, Tensor
from . import compiler
from .later import Later

if TYPE_CHECKING:
    from ..launch import Launcher

#: kinds of remarks on a compiled kernel that are warnings; all are in `fcgen dump --stage report`
TOLD = ("spills", "unchecked")


def by_name(owner: str, names: list[str], given: Sequence[Any], named: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """Arguments given by position and by name, by name. Raises FcError "call/argument" for what is too much. more: words for the hint."""
    if len(given) > len(names):
        raise FcError("call/argument", f"{owner} takes {len(names)} arguments", expected=", ".join(names), got=len(given))
    out = dict(zip(names, given))
    for name in named:
        if name in out:
            raise FcError("call/argument", f"argument `{name}` is given twice", expected=", ".join(names), got=name)
        if name not in names:
            raise FcError("call/argument", f"{owner} has no parameter `{name}`", expected=", ".join(names), got=name,
                          hint=did_you_mean(name, [*names, *more]))
    return {**out, **named}


if TYPE_CHECKING:
    from functools import cached_property as kept
else:
    class kept:
        """functools.cached_property, without the lock that Python before 3.12 holds for all objects at once while one of them waits."""

        def __init__(self, make):
            self.make, self.__doc__ = make, make.__doc__

        def __set_name__(self, owner, name):
            self.name = name

        def __get__(self, of, owner=None):
            return self if of is None else of.__dict__.setdefault(self.name, self.make(of))


class Program:
    """What `spec.compile(...)` returns. Nothing is compiled before it is needed: `tile`, `machine` and `cuda` only run passes and the
    printer, `cubin` and a call run NVRTC (or find the result on disk).

    A call takes the spec's tensors and scalars, by position or name, and writes the `out` tensors; sizes are read from the tensors. stream:
    torch's current one, or any library's stream, or its address.
    """

    def __init__(self, kernel: Kernel, schedule: Schedule, arch: str):
        self.target = compiler.target(arch)
        self.schedule = schedule
        self._source = kernel
        self._launcher: Launcher | None = None
        self._narrowed: dict[Any, Program] = {}
        #: parameters that the spec can do without, and this program does
        self.absent: frozenset[str] = frozenset()
        self._begun: Later[compiler.Built] | None = None
        #: compiled without a run in the simulator
        self.trust = False
        #: remarks are no warnings: whoever calls did not choose the schedule
        self.quiet = False
        #: why the schedule was chosen, where nobody gave one
        self.why: tuple[str, ...] = ()
        #: told the name of each step of a compilation as it begins
        self.progress: Callable[[str], None] | None = None

    def __repr__(self) -> str:
        return f"<fcgen program {self.name} for {self.target.arch}: {self.schedule}>"

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def params(self) -> tuple[Value, ...]:
        """Tensors and scalars, in call order."""
        return self._source.params

    def is_output(self, name: str) -> bool:
        return "out" in self._source.flags.get(name, ())

    @property
    def level(self) -> str:
        """What the program was made from: "tile" or "machine"."""
        return self._source.level

    # ---- levels ----------------------------------------------------------------------------------------------------

    @property
    def tile(self) -> Kernel:
        """The tile IR as traced (a program made from edited machine IR has none)."""
        if self._source.level != "tile":
            raise FcError("compile/unsupported", f"{self.name} was built from machine IR and has no tile level")
        return self._source

    @kept
    def machine(self) -> Kernel:
        """The machine IR after all passes."""
        return compiler.to_machine(self._source, self.schedule, self.target)

    def stages(self) -> dict[str, Kernel]:
        """pass name -> the kernel after it, in order."""
        out: dict[str, Kernel] = {}

        def keep(name: str, kernel: Kernel) -> None:
            out[name if name not in out else f"{name}-{sum(k.split('-')[0] == name for k in out) + 1}"] = kernel

        compiler.lower(self.tile, self.schedule, self.target, trace=keep)
        return out

    def begin(self) -> Program:
        """Compile beside what the caller does until it asks for `built`."""
        if "built" not in self.__dict__ and self._begun is None:
            self._begun = Later(self._build)
        return self

    @kept
    def built(self) -> compiler.Built:
        begun, self._begun = self._begun, None
        built = begun.result() if begun is not None else self._build()
        for kind, text in built.remarks:
            if kind in TOLD and not self.quiet:
                warn(FcWarning(text))
        return built

    def _build(self) -> compiler.Built:
        build = lambda: compiler.build(self._source, self.schedule, self.target, check=not self.trust, progress=self.progress,
                                       lowered=lambda: self.machine)
        try:
            return build()
        except FcError as e:
            if e.code != "compile/ptxas" or not (self.why and self.schedule.late):
                raise
            # which products this toolkit keeps in flight is known when it has compiled them; the schedule was ours to choose
            self.schedule, self.why = replace(self.schedule, late=(), tokens=False), (*self.why, "no dot runs late: ptxas serialised them")
            for made in ("machine", "_printed"):
                self.__dict__.pop(made, None)
            return build()

    @property
    def cuda(self) -> str:
        """The generated CUDA C++. NVRTC is asked only where it has a say in the schedule (`built`)."""
        if "built" in self.__dict__ or (self.why and self.schedule.late):
            return self.built.cuda_text
        return self._printed

    @kept
    def _printed(self) -> str:
        return compiler.to_cuda(self.machine, self.target).text

    @property
    def cubin(self) -> bytes:
        return self.built.cubin

    @kept
    def ptx(self) -> str:
        from ..runtime.nvrtc import ptx_of

        return ptx_of(self.cuda, self.target.arch, name=self.name, options=compiler.NVRTC_OPTIONS, line_map=self.built.line_map)

    @kept
    def sass(self) -> str:
        """The machine code, disassembled (needs nvdisasm or cuobjdump: `pip install fcgen[sass]`)."""
        from ..runtime.cubin import sass

        return sass(self.cubin)

    @kept
    def resources(self) -> Any:
        """Registers, spills, stack and shared memory, read from the cubin; of shared memory also what a launch asks for."""
        from ..runtime.cubin import resources

        found, facts = resources(self.cubin, self.built.log), self.built.facts
        return replace(found[facts.name], shared_bytes=found[facts.name].shared_bytes + facts.smem_bytes)

    # ---- without a GPU -----------------------------------------------------------------------------------------------

    def interpret(self, **arguments: Any) -> dict[str, np.ndarray]:
        """Run the tile IR in NumPy. Takes the input arrays and scalars, returns the outputs."""
        from ..sim.tile import interpret

        return interpret(self.tile, self._inputs(arguments))

    def simulate(self, *, seed: int = 0, **arguments: Any) -> dict[str, np.ndarray]:
        """Run the machine IR in the simulator; raises the first race, stale read or deadlock that it finds. What could not be printed as
        CUDA is refused as a compilation would."""
        from ..sim.machine import check

        inputs = self._inputs(arguments)
        program = self._for_arrays(inputs)
        _ = program._printed
        return check(program.machine, inputs, self.target, seed=seed).outputs

    def _for_arrays(self, inputs: Mapping[str, Any]) -> Program:
        """This program, or where arrays do not keep what it asks of strides, the one that a call would take. Where bulk copies read a
        tensor there is no other: the simulator lays such an array out as a call must."""
        from ..sim.addresses import row_strides

        asked = promised(self.machine) or {}
        bulk = {op.operands[0].name for op in walk_kernel(self.machine) if op.kind in ("tma_load", "tma_store")}
        have, fits = {}, True
        for p in self._source.params:
            x = inputs.get(p.name)
            strides = row_strides(x) if p.name not in bulk else None
            if x is not None and strides is not None and isinstance(p.type, Tensor) and len(strides) == len(p.type.dims):
                have[p.name] = of_arguments(0, x.shape, strides, p.type.dtype.bytes)
                fits = fits and have[p.name].covers(asked.get(p.name) or nothing(p.type))
        return self if fits or self.level != "tile" else self.narrowed(have)

    def present(self, named: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arguments without those that are None because there is no such parameter."""
        return {k: x for k, x in named.items() if x is not None or k not in self.absent} if self.absent else named

    def _inputs(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        names = [p.name for p in self._source.params]
        want = [n for n in names if not is_made(self._source, n)]
        out = by_name(self.name, names, (), self.present(arguments), "seed")
        for name in want:
            if name not in out:
                raise FcError("call/argument", f"argument `{name}` is missing", expected=", ".join(want))
        return out

    # ---- on the GPU ----------------------------------------------------------------------------------------------------

    @property
    def launcher(self) -> Launcher:
        if self._launcher is None:
            from ..launch import Launcher

            self._launcher = Launcher(self.built, (lambda have: self.narrowed(have).launcher) if self.level == "tile" else None)
        return self._launcher

    def narrowed(self, have: Mapping[str, Promise]) -> Program:
        """This program for tensors of which so much is known, whose accesses are as wide as that allows; a kernel of its own, compiled when
        it is called."""
        kept = {p.name: natural(p.type).either(have[p.name]) if p.name in have else natural(p.type)
                for p in self._source.params if isinstance(p.type, Tensor)}
        key = tuple((name, *p.words) for name, p in kept.items())
        if key not in self._narrowed:
            source, schedule = with_promises(self._source, kept), self.schedule
            if self.why and "tma" in (schedule.copy, schedule.epilogue):  # ours: where bulk copies cannot move a tensor, another is better
                from .choose import choose_for_kernel

                schedule = choose_for_kernel(source, self.target, {}).schedule
            self._narrowed[key] = Program(source, schedule, self.target.arch)
            self._narrowed[key].trust, self._narrowed[key].quiet = self.trust, self.quiet
        return self._narrowed[key]

    def __call__(self, *tensors: Any, stream: Any = None, **named: Any) -> None:
        names = [p.name for p in self._source.params]
        self.launcher(by_name(self.name, names, tensors, self.present(named), "stream"), stream)

    def run(self, **arguments: Any) -> dict[str, np.ndarray]:
        """Run on the GPU with NumPy arrays: inputs are copied there, outputs come back (poisoned with NaN before, unless they are inputs
        too). Uses torch; FcError "call/driver" without it."""
        try:
            import torch
        except ModuleNotFoundError as e:
            raise FcError("call/driver", "`run` moves arrays with torch, which is not installed", got=str(e),
                          hint="pip install 'fcgen[torch]'; `simulate` needs none, and a call takes CUDA tensors of any library") from e

        from ..ir.elementwise import to_dtype
        from ..ir.sizes import output_shape
        from ..runtime.tensors import TORCH_NAMES
        from ..sim.tile import poison

        def on_gpu(x: np.ndarray, d: DType) -> Any:  # byte by byte: torch's casts do not know all dtypes
            raw = np.ascontiguousarray(to_dtype(x, d).astype(d.stored))
            return torch.from_numpy(raw.reshape(-1).view(np.uint8)).cuda().view(getattr(torch, TORCH_NAMES[d.name])).reshape(raw.shape)

        def back(t: Any, d: DType) -> np.ndarray:
            return t.reshape(-1).view(torch.uint8).cpu().numpy().view(d.stored).reshape(tuple(t.shape)).astype(d.np_dtype)

        sizes: dict[str, int] = {}
        given: dict[str, Any] = {}
        inputs = self._inputs(arguments)
        for p in self._source.params:
            if isinstance(p.type, Tensor) and p.name in inputs:
                x = np.asarray(inputs[p.name])
                sizes.update({d: n for d, n in zip(p.type.dims, x.shape) if isinstance(d, str)})
                given[p.name] = on_gpu(x, p.type.dtype)
            elif not isinstance(p.type, Tensor):
                given[p.name] = inputs[p.name]
        sizes |= {p.name: int(inputs[p.name]) for p in self._source.counts}
        outs = {name: x for name, x in given.items() if self.is_output(name)}
        for p in self._source.params:
            if isinstance(p.type, Tensor) and p.name not in given:
                shape = output_shape(self._source, p.name, sizes)
                given[p.name] = on_gpu(poison(shape, p.type.dtype), p.type.dtype)
        outs = {p.name: given[p.name] for p in self._source.params if self.is_output(p.name)}  # those that it adds to among them
        self(**given)
        torch.cuda.synchronize()
        return {p.name: back(outs[p.name], p.type.dtype) for p in self._source.params if p.name in outs}
