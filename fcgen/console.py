"""What the commands share: a spinner, the resource report, files written together or not at all."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import FcError


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
            f"{r.stack_bytes} B stack, {facts.threads} threads" + (" (from the cache)" if program.built.cached else "")
            + "".join(f"\n  {kind:8} {text}" for kind, text in program.built.remarks))


def write_levels(program: Any, out: Path, source: Path | None = None) -> list[Path]:
    """Every level as a file: all of them, or none where one cannot be made or written. `source`, the file that the program was read from,
    is left as it is: its comments are its author's."""
    levels = {"machine.fc": str(program.machine), "cu": program.cuda, "ptx": program.ptx}
    if program.level == "tile":
        levels = {"tile.fc": str(program.tile), **levels}
    return write_files({out / f"{program.name}.{suffix}": text for suffix, text in levels.items()}, source)


def write_files(files: Mapping[Path, str], keep: Path | None = None) -> list[Path]:
    """Write texts beside their places, then move all of them there."""
    chosen = {p: text for p, text in files.items() if keep is None or not p.exists() or not keep.exists() or not p.samefile(keep)}
    parts = {p: p.with_name(f"{p.name}.{os.getpid()}.part") for p in chosen}
    path = next(iter(files))
    try:
        for path, text in chosen.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            parts[path].write_text(text, encoding="utf-8")
        for path, part in parts.items():
            part.replace(path)
    except OSError as e:
        raise FcError("file/missing", f"cannot write {path}", got=e.strerror, hint="name a place that you may write to") from None
    finally:
        for part in parts.values():
            with contextlib.suppress(OSError):
                part.unlink()
    return list(chosen)


class Steps:
    """How long each step of something takes: call it with the step's name as the step begins; `text` ends the last one."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, float]] = []

    def __call__(self, name: str) -> None:
        self.begun.append((name, time.perf_counter()))

    def text(self) -> str:
        ends = [*(t for _, t in self.begun[1:]), time.perf_counter()]
        return ", ".join(f"{name} {(end - start) * 1e3:.0f} ms" for (name, start), end in zip(self.begun, ends))


def milliseconds(start: float) -> str:
    return f"{(time.perf_counter() - start) * 1e3:.0f} ms"
