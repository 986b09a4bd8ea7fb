"""Files that people name, read and written with care.

Guaranteed: what is not an ordinary file (a pipe, a device, a folder, a link to nothing) is refused and never waited for; files are written
all or none; and a file that fcgen wrote and somebody edited since is not written over.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from fcgen.errors import FcError

#: No file that is read here comes near it: IR text, NumPy arrays, sources.
LARGEST = 1 << 30


def read_bytes(path: Path) -> bytes:
    """The bytes of an ordinary file; FcError "file/missing" for anything else."""
    handle = -1
    try:
        # opening a pipe that nobody writes to would wait, and some devices do things when they are opened
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0))
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise FcError("file/missing", f"{path} is not an ordinary file", expected="a file", got=kind_of(found.st_mode))
        if found.st_size > LARGEST:
            raise FcError("file/missing", f"{path} is too large to be what it should be", expected=f"at most {LARGEST >> 20} MiB",
                          got=f"{found.st_size >> 20} MiB")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read()
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise FcError("file/missing", f"{path} cannot be read", got=getattr(e, "strerror", None) or str(e)) from None
    finally:
        if handle >= 0:
            os.close(handle)


def kind_of(mode: int) -> str:
    names = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFREG: "a file"}
    return names.get(stat.S_IFMT(mode), "a device")


# ---- writing --------------------------------------------------------------------------------------------------------------

_COMMENT = {".cu": "// {}", ".ptx": "// {}", ".svg": "<!-- {} -->"}


def signed(text: str, suffix: str) -> str:
    """The text with a last line that says what the rest was when fcgen wrote it."""
    body = text if text.endswith("\n") else text + "\n"
    digest = hashlib.sha256(body.encode()).hexdigest()[:16]
    return body + _COMMENT.get(suffix, "# {}").format(f"written by fcgen, sha256 {digest}: edited, it is not written over") + "\n"


def is_ours(text: str, suffix: str) -> bool:
    """Nobody has edited the text since `signed`."""
    body, newline, _ = text.removesuffix("\n").rpartition("\n")
    return bool(newline) and signed(body + newline, suffix) == text


def write_files(files: Mapping[Path, str], keep: Path | None = None) -> dict[Path, Path | None]:
    """Write texts beside their places, signed, then move all of them there. A file that is there and not fcgen's, or edited since fcgen
    wrote it, stays: its text goes beside it (`x.new.fc`). keep: a file to leave alone, without its text. Returns {what was written: the one
    that stayed}."""
    stayed: dict[Path, Path | None] = {}
    chosen: dict[Path, str] = {}
    for path, text in files.items():
        if keep is not None and path.exists() and keep.exists() and path.samefile(keep):
            continue
        place = path
        while os.path.exists(place) and not is_ours(read_bytes(place).decode(errors="replace"), place.suffix):
            place = place.with_name(f"{place.stem}.new{place.suffix}")
        chosen[place], stayed[place] = signed(text, place.suffix), None if place == path else path
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
    return stayed
