"""What the commands share: a spinner, the resource report, files written whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def waiting(what: str, fn: Callable[[], Any]) -> Any:
    """fn(), with a spinner on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return fn()
    with console.status(what):
        return fn()


def report(program: Any) -> str:
    r, facts = program.resources, program.built.facts
    spills = f"{r.spill_stores} B stored, {r.spill_loads} B loaded" if r.spills else "none"
    return (f"{program.name} for {facts.arch}: {r.registers} registers, spills {spills}, {facts.smem_bytes} B shared memory, "
            f"{r.stack_bytes} B stack, {facts.threads} threads" + (" (from the cache)" if program.built.cached else ""))


def write_levels(program: Any, out: Path) -> list[Path]:
    """Every level as a file, each complete or absent."""
    levels = {"machine.fc": str(program.machine), "cu": program.cuda, "ptx": program.ptx}
    if program._source.level == "tile":
        levels = {"tile.fc": str(program.tile), **levels}
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, text in levels.items():
        path = out / f"{program.name}.{suffix}"
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(text)
        temporary.replace(path)
        paths.append(path)
    return paths


def milliseconds(start: float) -> str:
    return f"{(time.perf_counter() - start) * 1e3:.0f} ms"
