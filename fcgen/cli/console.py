"""What the commands share: a spinner, the resource report, the files of a program's levels."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ..backends.cuda.names import identifier
from ..errors import visible
from ..runtime.files import write_files


def waiting(what: str, fn: Callable[[], Any]) -> Any:
    """fn(), with a spinner on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return fn()
    with console.status(what):
        return fn()


#: how a hint writes in Python what a command takes as an option
_PYTHON = ((re.compile(r"compile\((?:\.\.\., )?(\w+=[\w.]+(?:, \w+=[\w.]+)*)\)"),
            lambda m: " ".join(f"--set {x}" for x in m[1].replace("=fc.", "=").split(", "))),
           (re.compile(r"(?:fc\.)?Schedule\(([^()]*)\)"), lambda m: '--schedule "' + m[1].replace('"', "") + '"'),
           (re.compile(r'\btarget="(\w+)"'), r"--target \1"))


def as_options(hint: str | None) -> str | None:
    """A hint that says what to pass to `compile` or `Schedule`, in words of the command line."""
    for pattern, option in _PYTHON if hint else ():
        hint = pattern.sub(option, hint)  # type: ignore[arg-type]
    return hint


def say(text: str) -> None:
    """To the terminal, what it would obey or hide as escapes; to a file or a pipe as it is."""
    click.echo(visible(text) if sys.stdout.isatty() else text)


def report(program: Any) -> str:
    r, facts = program.resources, program.built.facts
    spills = f"{r.spill_stores} B stored, {r.spill_loads} B loaded" if r.spills else "none"
    return (f"{program.name} for {facts.arch}: {r.registers} registers, spills {spills}, {r.shared_bytes} B shared memory, "
            f"{r.stack_bytes} B stack, {facts.threads} threads" + (" (from the cache)" if program.built.cached else "")
            + f"\n  schedule {program.schedule}" + "".join(f"\n  chosen   {line}" for line in program.why)
            + "".join(f"\n  {kind:8} {text}" for kind, text in program.built.remarks))


def write_levels(program: Any, out: Path, source: Path | None = None) -> dict[Path, Path | None]:
    """Every level as a file: all of them, or none where one cannot be made or written. `source`, the file that the program was read from,
    is left as it is, and so is one that was edited: `runtime/files.py`."""
    levels = {"machine.fc": str(program.machine), "cu": program.cuda, "ptx": program.ptx}
    if program.level == "tile":
        levels = {"tile.fc": str(program.tile), **levels}
    stem = identifier(program.name, "kernel")  # a kernel's name is anyone's: ../x, or longer than a file's may be
    return write_files({out / f"{stem}.{suffix}": text for suffix, text in levels.items()}, source)


def written(paths: Mapping[Path, Path | None], width: int = 5) -> list[str]:
    """What was written, in lines, and what was not."""
    return [f"{'wrote':{width}} {path}" + (f" ({stayed.name} is not as fcgen wrote it, and stays)" if stayed else "")
            for path, stayed in paths.items()]


class Steps:
    """How long each step of something takes: call it with the step's name as the step begins; `text` ends the last one, and leaves out
    those that took no time, since what they make was there."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, float]] = []

    def __call__(self, name: str) -> None:
        self.begun.append((name, time.perf_counter()))

    def text(self) -> str:
        ends = [*(t for _, t in self.begun[1:]), time.perf_counter()]
        took = [(name, round((end - start) * 1e3)) for (name, start), end in zip(self.begun, ends)]
        return ", ".join(f"{name} {ms} ms" for name, ms in took if ms)


def milliseconds(start: float) -> str:
    return f"{(time.perf_counter() - start) * 1e3:.0f} ms"
