"""Programs of specs whose functions hold numbers and tensors: which program is a call's, and what it is given.

A `Family` keeps the programs of one spec for whatever its functions hold. A program is a call's if the facts that it was traced from are
the call's too (`lang.captures`); else the spec is traced again. Guaranteed: programs that differ in names and places alone are one, with
one kernel; the captured parameters of a call are read at the call, and nothing of them is kept.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import FcError
from ..ir.core import Block, Kernel, Value
from ..ir.schedule import Schedule
from ..ir.text import print_kernel
from ..lang.captures import Held, identity
from ..lang.spec import Spec
from .bound import written_out
from .program import Program, by_name
from .tables import kept_in

#: values of captured parameters, of functions in the order of their names
Bind = Callable[..., "tuple[Any, ...] | None"]
#: a program of some functions, what it asks of them, and what tells whether it is that of others: of functions in the order of their names
Entry = tuple[Held, Program, Bind]
#: programs of one family, and traced programs of all, that are kept
_EACH, _ALL = 64, 1024
_shared: dict[Any, Program] = {}
_families: dict[Any, Family] = {}


def nameless(kernel: Kernel, but: frozenset[str]) -> str:
    """A traced kernel as text, without the names of its values, but for some, and without places: what it computes."""
    known: dict[Value, Value] = {}

    def value(v: Value) -> Value:
        if v in kernel.params or v.name in but:
            return v
        if v not in known:
            known[v] = replace(v, name="")
        return known[v]

    def block(b: Block) -> Block:
        ops = tuple(replace(o, operands=tuple(map(value, o.operands)), results=tuple(map(value, o.results)),
                            regions=tuple(map(block, o.regions)), loc=None) for o in b.ops)
        return Block(tuple(map(value, b.args)), ops)

    return print_kernel(kernel.with_body(block(kernel.body)))


class Family:
    """trace: what the functions are -> the traced kernel, and what it asks of them."""

    def __init__(self, trace: Callable[[Mapping[str, Any]], tuple[Kernel, Held]], schedule: Schedule, arch: str, trust: bool):
        self._trace, self._schedule, self._arch, self._trust = trace, schedule, arch, trust
        self._known: tuple[Entry, ...] = ()

    def find(self, given: Mapping[str, Any]) -> tuple[Program, Held, dict[str, Any]]:
        """The program for these functions, what it asks of them, and the values of its captured parameters."""
        (held, program, _), values = self._found(given)
        return program, held, values

    def _found(self, given: Mapping[str, Any]) -> tuple[Entry, dict[str, Any]]:
        for entry in self._known:
            held, _, bind = entry
            values = bind(*[given[name] for name in sorted(given)])
            if values is not None:
                return entry, dict(zip([name for name, _ in held.values], values))
        held, program, _ = entry = self._made(given)
        named = held.bind(given)
        if named is None:
            raise FcError("trace/capture", f"what a function of {program.name} holds is another thing each time it is looked at",
                          expected=", ".join(f"`{name}`" for name in given), hint="a property that computes, or counts its reads?")
        self._known = (entry, *self._known[:_EACH - 1])
        return entry, named

    def _made(self, given: Mapping[str, Any]) -> Entry:
        """For functions that no program here is for."""
        kernel, held = self._trace(given)
        key = nameless(kernel, frozenset(re.findall(r"\w+", repr(self._schedule)))), self._schedule, self._arch, self._trust

        def program() -> Program:
            made = Program(kernel, self._schedule, self._arch)
            made.trust = self._trust
            return made

        return held, kept_in(_shared, _ALL, key, program), written_out(held, sorted(given))

    def entry(self, given: Mapping[str, Any]) -> Entry:
        """All that is known of these functions' program."""
        return self._found(given)[0]

    def bound(self, given: Mapping[str, Any]) -> tuple[Program, dict[str, Any], Bind]:
        """The program for these functions, the values of its captured parameters, and what tells whether it is that of others."""
        (_, program, bind), values = self._found(given)
        return program, values, bind

    def run(self, given: Mapping[str, Any], arguments: Mapping[str, Any], stream: Any = None) -> None:
        """Launch the program for these functions. arguments: all that is not captured, by name."""
        program, held, values = self.find(given)
        try:
            program.launcher({**arguments, **values}, stream)
        except FcError as e:
            told = tuple(held.told(name) for name in values if f"`{name}`" in e.message)
            raise FcError(e.code, e.message, expected=e.expected, got=e.got, loc=e.loc, hint=e.hint, notes=(*e.notes, *told)) from None


def known_by(binding: Mapping[str, Any], held: Mapping[str, Any]) -> dict[str, Any]:
    """What programs are looked up by: of functions that hold something (`held`) their text."""
    return {name: identity(x) if name in held else x for name, x in binding.items()}


def family_of(spec: Spec, schedule: Schedule | None, arch: str, trust: bool, binding: Mapping[str, Any], held: Mapping[str, Any],
              choose: Callable[[], Schedule]) -> Family:
    """The programs of a spec for whatever the functions in its binding hold; kept, if the rest of the binding can be looked up. choose:
    gives the schedule, where none is given, once."""
    key = spec, schedule, arch, trust, tuple(sorted(known_by(binding, held).items(), key=lambda kv: kv[0]))

    def make() -> Family:
        plain = {name: x for name, x in binding.items() if name not in held}
        chosen = schedule or choose()
        bound = lambda held: {k: x for k, x in {**plain, **held}.items() if k}  # but for the spec's own function
        return Family(lambda held: spec.scheduled(dict(chosen.tiles), **bound(held)), chosen, arch, trust)

    try:
        hash(key)
    except TypeError:
        return make()
    return kept_in(_families, _ALL, key, make)


class Captured(Program):
    """A program of a spec whose functions hold something. given: those functions. What it shows (`tile`, `cuda`, ...) is for what they
    held when it was made; what runs is for what they hold now."""

    def __init__(self, family: Family, given: Mapping[str, Any]):
        self.family, self._given = family, given
        self.first, held, _ = family.find(given)
        self._captured = tuple(name for name, _ in held.values)
        super().__init__(self.first._source, self.first.schedule, self.first.target.arch)
        self.trust, self._names = self.first.trust, [p.name for p in self.params]

    @property
    def params(self) -> tuple[Value, ...]:
        return tuple(p for p in super().params if p.name not in self._captured)

    @property
    def machine(self) -> Kernel:  # type: ignore[override]
        return self.first.machine

    @property
    def cuda(self) -> str:
        return self.first.cuda

    @property
    def launcher(self) -> Any:
        return self.first.launcher

    def begin(self) -> Program:
        self.first.begin()
        return self

    @property
    def built(self) -> Any:  # type: ignore[override]
        self.first.quiet, self.first.progress = self.quiet, self.progress
        return self.first.built

    def interpret(self, **arguments: Any) -> dict[str, np.ndarray]:
        return self._now(Program.interpret, arguments)

    def simulate(self, *, seed: int = 0, **arguments: Any) -> dict[str, np.ndarray]:
        return self._now(Program.simulate, arguments, seed=seed)

    def run(self, **arguments: Any) -> dict[str, np.ndarray]:
        return self._now(Program.run, arguments)

    def _now(self, how: Callable[..., Any], arguments: Mapping[str, Any], **more: Any) -> Any:
        """In NumPy, with what the functions hold now; arguments may give it another value."""
        program, _, values = self.family.find(self._given)
        return how(program, **{**{name: _array(x) for name, x in values.items()}, **self.present(arguments)}, **more)

    def __call__(self, *tensors: Any, stream: Any = None, **named: Any) -> None:
        self.family.run(self._given, by_name(self.name, self._names, tensors, self.present(named), "stream"), stream)


def _array(x: Any) -> Any:
    """A captured tensor for the interpreters."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        x = x.detach()
        return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()
    return x
