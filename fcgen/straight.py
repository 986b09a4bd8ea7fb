"""Launches written out: a function of Python, as text of ours, that does for one kind of call only what its sizes and pointers decide.

What `Launcher` finds out in loops over parameters is in such a text: sizes and strides are read once, tested in one expression, packed in
one call. Guaranteed: what the text lets pass, `Launcher` would launch with the same arguments; for everything else it gives None and has
touched nothing of the caller's, and whoever wrote it asks `Launcher`, which launches or says what is wrong. Tensors must have passed a
guard before: the text asks for no class, dtype or device. It holds no tensor and keeps nothing of a call.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from .ir.alignment import WIDEST
from .ir.covers import Cover, Grid, needs
from .ir.ranges import HIGHEST, Admitted
from .runtime.module import LaunchConfig
from .runtime.tensors import ITEMSIZE

if TYPE_CHECKING:
    from .launch import Loaded

#: as `runtime.steady` packs them, but for floats, which are packed as such
_CODES = {"ptr": "Q", "f32": "f4x", "i32": "i4x", "u32": "I4x", "i64": "q"}


class View(NamedTuple):
    """A tensor in the text: expressions of numbers."""

    pointer: str
    shape: tuple[str, ...]
    strides: tuple[str, ...]


class Script:
    """A function in the making: lines, and the objects that its names stand for."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._names: dict[str, Any] = {}
        self._blocks: dict[int, str] = {}

    def known(self, x: Any, stem: str = "x") -> str:
        """A name for an object."""
        name = f"_{stem}{len(self._names)}"
        self._names[name] = x
        return name

    def line(self, *texts: str) -> None:
        self._lines += texts

    def refuse(self, condition: str) -> None:
        """Nothing has been launched, and nothing is."""
        if condition:
            self.line(f"if {condition}: return None")

    def tensor(self, name: str, rank: int, shape: str = "", strides: str = "") -> View:
        """The view of a tensor whose name this is. shape, strides: expressions, where they have been read."""
        sizes, steps = tuple(f"{name}_{n}" for n in range(rank)), tuple(f"{name}_s{n}" for n in range(rank))
        self.line(f"{', '.join(sizes)}, = {shape or name + '.shape'}", f"{', '.join(steps)}, = {strides or name + '.stride()'}",
                  f"{name}_p = {name}.data_ptr()")
        return View(f"{name}_p", sizes, steps)

    def function(self, parameters: Sequence[str], result: str) -> Callable[..., Any]:
        """The function of these parameters, which gives `result`."""
        text = "\n    ".join([f"def run({', '.join(parameters)}):", *self._lines, f"return {result}"])
        exec(compile(text, "<a call written out>", "exec"), self._names)
        return self._names.pop("run")  # type: ignore[no-any-return]

    # ---- a launch ----------------------------------------------------------------------------------------------------------

    def launch(self, loaded: Loaded, views: Mapping[str, View], scalars: Mapping[str, str], stream: str, given: Sequence[str] = (),
               wide: Sequence[str] = ()) -> None:
        """Launch a kernel. views, scalars: its arguments. given: outputs that were not made for this call, which may share memory with
        another argument. wide: tensors whose pointers and strides have to be multiples of 16 bytes, whatever the kernel asks."""
        self.check(loaded, views, scalars, given, wide)
        self.go(loaded, views, scalars, stream)

    def check(self, loaded: Loaded, views: Mapping[str, View], scalars: Mapping[str, str], given: Sequence[str] = (),
              wide: Sequence[str] = ()) -> None:
        """Refuse what a launch may not take as it is."""
        self.refuse(loaded.unusual(views, wide))
        self.refuse(self._misaligned(loaded, views, wide))
        self.refuse(" or ".join(self._short(loaded, views, scalars, cover) for cover in loaded.facts.covers))
        for name in loaded.order[len(loaded.frame.arguments):]:
            self.refuse(self._unfit(loaded, name, scalars[name]))
        for name in given:
            self.refuse(self._shared(loaded, name, views))
        self._blocks[id(loaded)] = blocks = f"blocks{len(self._blocks)}"
        self.line(f"{blocks} = {loaded.told(self._places(loaded, views, scalars))}")
        self.refuse(f"{blocks} <= 0 or {blocks} >> 31")

    @staticmethod
    def _places(loaded: Loaded, views: Mapping[str, View], scalars: Mapping[str, str]) -> list[str]:
        """Sizes and strides, in the order of `Frame`."""
        of_tensors = [x for a in loaded.frame.arguments for x in (*views[a.name].shape, *views[a.name].strides)]
        return [*of_tensors, *(scalars[n] for n in loaded.counts)]

    def go(self, loaded: Loaded, views: Mapping[str, View], scalars: Mapping[str, str], stream: str) -> None:
        """Launch what `check` has let pass."""
        frame, places = loaded.frame, self._places(loaded, views, scalars)
        named = [(_CODES[loaded.kinds[n]], views[n].pointer if loaded.kinds[n] == "ptr" else scalars[n]) for n in loaded.order]
        values = [value if n in frame.values else None for n, value in enumerate(named)]
        values += [("Q", f"{self.known(frame.counter, 'counter')}({stream})")] if frame.counter is not None else []
        values += [("q", x) if n in frame.sizes else None for n, x in enumerate(places)]
        maps = [(m, loaded.order[m.at], frame.described(m, places)) for m in frame.maps]
        values += [("Q", x) for _, _, layout in maps for x in layout]
        packed = struct.Struct("<" + LaunchConfig.code + "".join("8x" if v is None else v[0] for v in values))
        fixed = [self._blocks[id(loaded)], *map(str, frame.shape), stream, *map(str, frame.attributes)]
        free, start, pack = (self.known(x, stem) for x, stem in ((frame.free, "free"), (frame.start, "start"), (packed.pack_into, "pack")))
        self.line(f"try: block = {free}.pop()", f"except IndexError: block = {self.known(frame.block, 'block')}()", "try:",
                  f"    {pack}(block.memory, block.at, {', '.join([*fixed, *(v[1] for v in values if v is not None)])})")
        if maps:
            self.line("    held, windows = block.held, block.windows")
        for n, (m, name, layout) in enumerate(maps):
            v, write, encode = views[name], self.known(m.box.write, "write"), self.known(m.box.encode, "encode")
            self.line(f"    now = {', '.join((v.pointer, *v.shape, *v.strides))}",
                      f"    if held[{n}] != now:", f"        held[{n}] = None",
                      f"        window = windows[{n}]", f"        window.pointer.value = {v.pointer}",
                      f"        if {write}(*window.arguments): {encode}(window, {v.pointer}, ({', '.join(layout)}))",
                      f"        held[{n}] = now")
        self.line(f"    {start}(block.config, block.params)", f"finally: {free}.append(block)")

    def _short(self, loaded: Loaded, views: Mapping[str, View], scalars: Mapping[str, str], cover: Cover) -> str:
        """Does a tensor lack a place of a line of `meta covers`?"""
        (name, axis, place, *conditions), facts = cover, loaded.facts
        sizes = {d: text for p in facts.params if p[1] == "tensor" for d, text in zip(p[3], views[p[0]].shape) if isinstance(d, str)}
        sizes |= {n: scalars[n] for n in loaded.counts}
        have = views[name].shape[axis]
        if isinstance(place, int):
            return f"{have} <= {place}"
        if place[0] == "at" and not conditions and facts.grid[place[1]][2] == 1:
            return f"{have} < {sizes.get(dim := facts.grid[place[1]][1], dim)}"
        named = sorted(needs(cover) | {axis[1] for axis in facts.grid if isinstance(axis[1], str)})
        short = functools.lru_cache(256)(lambda n, *of: Grid(facts.grid, dict(zip(named, of))).outside(cover, n) is not None)
        return f"{self.known(short, 'short')}({', '.join([have, *(sizes[n] for n in named)])})"

    @staticmethod
    def _misaligned(loaded: Loaded, views: Mapping[str, View], wide: Sequence[str]) -> str:
        """Is a pointer 0, or not a multiple of what is asked of it?"""
        asked = {name: pointer for name, pointer, *_ in loaded.facts.aligned}
        masks: dict[int, list[str]] = {}
        for a in loaded.frame.arguments:
            size = ITEMSIZE[a.dtype]
            masks.setdefault(max(WIDEST if a.name in wide else size, asked.get(a.name, 1)) - 1, []).append(views[a.name].pointer)
        tests = [f"({' | '.join(pointers)}) & {mask}" for mask, pointers in masks.items() if mask]
        return " or ".join([*tests, f"not ({' and '.join(views[a.name].pointer for a in loaded.frame.arguments)})"])

    @staticmethod
    def _unfit(loaded: Loaded, name: str, x: str) -> str:
        """May a number be another one to the kernel, or refused?"""
        _, _, dtype, _, flags = next(p for p in loaded.facts.params if p[0] == name)
        least = 0 if "positive" in flags else None
        if dtype == "f32":
            return f"not {'0 <' if least == 0 else f'{-LARGEST!r} <='} {x} <= {LARGEST!r}"
        admitted = loaded.ranges.get(name) or Admitted(-HIGHEST, HIGHEST)
        return f"type({x}) is not int or not {max(admitted.lo, 1) if least == 0 else admitted.lo} <= ({x}) <= {admitted.hi}"

    @staticmethod
    def _shared(loaded: Loaded, name: str, views: Mapping[str, View]) -> str:
        """May an output that somebody gave share memory with itself or another argument? (`runtime.overlap` looks closer.)"""
        size = {a.name: ITEMSIZE[a.dtype] for a in loaded.frame.arguments}

        def end(of: str) -> str:
            v = views[of]
            return f"{v.pointer} + {size[of]} * (1 + {' + '.join(f'({n} - 1) * {s}' for n, s in zip(v.shape, v.strides))})"

        v = views[name]
        axes = list(zip(v.shape, v.strides))
        orders = [axes] if len(axes) < 3 else [axes, [*axes[:-3], axes[-2], axes[-3], axes[-1]]]  # [.., H, M, D] or [.., M, H, D] in memory
        packed = " or ".join("(" + " and ".join(f"{s} >= {n} * {t}" for (_, s), (n, t) in pairwise(order)) + ")" for order in orders)
        apart = [f"not ({v.pointer} >= {end(of)} or {views[of].pointer} >= {end(name)})" for of in size if of != name]
        return " or ".join([*([f"not ({packed})"] if len(axes) > 1 else []), *apart])


#: of float32
LARGEST = (2.0 - 2.0**-23) * 2.0**127
