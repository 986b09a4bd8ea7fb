"""Compiled kernels on disk, shared by every process of a user.

In: a key that names everything the files depend on. Out: the files. Guaranteed: an entry is either whole or absent
(written aside and moved into place; a damaged one is removed and built again, never used); processes that want the
same key at once build it once; what is used was written by this user, in a folder that nobody else can write to: a
kernel is code, and runs with the user's rights. A folder or a disk that will not do costs one warning and the
speed-up, not the program: entries are then kept in memory.

An entry is one file: magic, format, payload size and SHA-256, then a JSON head (key, meta, file names and sizes) and the
files' bytes. Nothing in it is ever executed by reading it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcgen.errors import FcError, warn

_MAGIC, _FORMAT = b"FCGENENT", 1
_HEAD = struct.Struct("<8sIQ32s")
_JSON_SIZE = struct.Struct("<I")
#: A process that hangs while it builds must not hang the others: after this long they build for themselves.
LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Entry:
    """One key's files. hit: they were on disk, nothing was built."""

    files: dict[str, bytes]
    meta: dict[str, Any] = field(default_factory=dict)
    hit: bool = False


@dataclass(frozen=True)
class Stats:
    """path is None where there is no cache."""

    path: Path | None
    entries: int
    bytes: int


def key_of(*parts: Any) -> str:
    """A hex key for any mix of str, bytes, numbers, bool, None, lists, tuples and dicts; order in a dict is free.

    Types and lengths are part of it: ("ab", "c"), ("a", "bc"), (1,) and (True,) all differ.
    """
    digest = hashlib.sha256()
    _feed(digest.update, parts)
    return digest.hexdigest()


def _feed(update: Callable[[bytes], object], part: Any) -> None:
    if isinstance(part, (list, tuple)):
        update(b"l%d:" % len(part))
        for item in part:
            _feed(update, item)
    elif isinstance(part, Mapping):
        update(b"d%d:" % len(part))
        for item in sorted(part.items(), key=lambda kv: str(kv[0])):
            _feed(update, item)
    elif isinstance(part, bytes):
        update(b"y%d:" % len(part) + part)
    elif part is None or isinstance(part, (str, bool, int, float)):
        text = repr(part).encode() if not isinstance(part, str) else part.encode()
        update(f"{type(part).__name__}{len(text)}:".encode() + text)
    else:
        raise TypeError(f"a cache key cannot hold a {type(part).__name__}")


def cache_dir() -> Path:
    """The cache folder: FCGEN_CACHE_DIR, else the user's. It is made, private, if it is not there."""
    try:
        return _prepare(_wanted_dir())
    except OSError as error:
        raise FcError("cache/unusable", "the cache folder cannot be made", got=str(error),
                      hint="set FCGEN_CACHE_DIR to a folder that you can write to") from error


def open_cache() -> DiskCache:
    """The user's cache. A folder that cannot be written or is open to others gives one in memory, with one warning per process."""
    try:
        return DiskCache(_prepare(_wanted_dir()))
    except (OSError, FcError) as error:
        _warn_once(os.environ.get("FCGEN_CACHE_DIR") or "the user's cache folder", error)
        return _in_memory()


@functools.cache
def _in_memory() -> DiskCache:
    """One for the whole process."""
    return DiskCache(None)


def _wanted_dir() -> Path:
    import platformdirs

    named = os.environ.get("FCGEN_CACHE_DIR")
    try:
        path = Path(os.path.expanduser(named or platformdirs.user_cache_dir("fcgen", appauthor=False)))
    except RuntimeError:  # what platformdirs says where HOME is missing, from 4.4 on
        path = Path()
    if not named and not path.is_absolute():
        raise FileNotFoundError("this user has no home folder")
    return path.absolute()


def _prepare(path: Path) -> Path:
    """Make the folder and refuse one that others could put kernels into. OSError: it cannot be written."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid"):
        found = path.stat()
        if found.st_uid != os.getuid():
            raise FcError("cache/unusable", f"the cache folder {path} belongs to another user",
                          expected=f"owner {os.getuid()}", got=f"owner {found.st_uid}",
                          hint="set FCGEN_CACHE_DIR to a folder of your own")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise FcError("cache/unusable", f"others can write to the cache folder {path}", expected="mode 0700",
                          got=f"mode {stat.S_IMODE(found.st_mode):04o}", hint=f"chmod 700 {path}")
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write to {path}")
    return path


_warned: set[str] = set()


def _warn_once(where: str, error: Exception) -> None:
    if where not in _warned:
        _warned.add(where)
        said = f"{error.message}, {error.got}" if isinstance(error, FcError) else str(error)
        warn(UserWarning(f"fcgen keeps no compiled kernels: {where} cannot be used ({said}). Every process compiles its "
                         "kernels again; set FCGEN_CACHE_DIR to a folder that only you can write to."))


class DiskCache:
    """A folder of entries. root None: they are kept in memory, for this process."""

    def __init__(self, root: Path | None):
        self.root = root
        self.memory: dict[str, Entry] = {}

    def get(self, key: str) -> dict[str, bytes] | None:
        """The files under a key, None where there are none (or only damaged ones, which are removed)."""
        entry = self.get_entry(key)
        return entry.files if entry else None

    def get_entry(self, key: str) -> Entry | None:
        """As `get`, with the meta data."""
        if self.root is None:
            return self.memory.get(key)
        path = self._path(key)
        try:
            raw = _read_own(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            _warn_once(str(self.root), error)
            return None
        entry = None if raw is None else _decode(raw, key)
        if entry is None:
            _remove(path)
        return entry

    def put(self, key: str, files: Mapping[str, bytes], meta: Mapping[str, Any] | None = None) -> None:
        """Write an entry, whole or not at all. meta: whatever JSON can hold."""
        if self.root is None:
            self.memory[key] = Entry(dict(files), dict(meta or {}), hit=True)
            return
        raw = _encode(key, files, meta or {})
        path = self._path(key)
        temporary = None
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
            with os.fdopen(handle, "wb") as out:
                out.write(raw)
            os.replace(temporary, path)
        except OSError as error:
            if temporary is not None:
                _remove(Path(temporary))
            _warn_once(str(self.root), error)

    def get_or_build(self, key: str, build: Callable[[], tuple[Mapping[str, bytes], Mapping[str, Any]]]) -> Entry:
        """The entry under a key; `build` makes (files, meta) where it is absent, in one process at a time.

        An error in `build` passes through and leaves nothing behind.
        """
        entry = self.get_entry(key)
        if entry is not None:
            return entry
        lock = self._lock(key)
        try:
            entry = self.get_entry(key) if lock else None  # another process may have built it while this one waited
            if entry is None:
                files, meta = build()
                self.put(key, files, meta)
                entry = Entry(dict(files), dict(meta), hit=False)
            return entry
        finally:
            if lock:
                lock.release()

    def clear(self) -> int:
        """Remove all entries; how many there were. Safe beside processes that read and build."""
        if self.root is None:
            self.memory.clear()
            return 0
        removed = 0
        for path in self.root.glob("??/*"):
            removed += path.suffix == ".fce"
            # An unlinked lock file may let two processes build the same key. Both results are right, one is kept.
            _remove(path)
        return removed

    def stats(self) -> Stats:
        """How much is kept."""
        sizes = [p.lstat().st_size for p in self.root.glob("??/*.fce")] if self.root else []
        return Stats(self.root, len(sizes), sum(sizes))

    def _path(self, key: str) -> Path:
        assert self.root is not None
        assert key and all(c in "0123456789abcdef" for c in key), f"not a key of key_of: {key!r}"
        return self.root / key[:2] / f"{key}.fce"

    def _lock(self, key: str) -> Any:
        """The key's lock, held; None where there is nothing to lock or no locking to be had."""
        if self.root is None:
            return None
        import filelock  # a hit needs no lock, and importing it takes longer than the hit

        path = self._path(key).with_suffix(".lock")
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            lock = filelock.FileLock(str(path), timeout=LOCK_SECONDS)
            lock.acquire(poll_interval=0.005)
        except filelock.Timeout:
            return None
        except (OSError, NotImplementedError) as error:
            _warn_once(str(self.root), error)
            return None
        return lock


def _read_own(path: Path) -> bytes | None:
    """The bytes of an entry; None where something else is in its place: a link, a pipe, a folder, a file of another user."""
    if path.is_symlink():
        return None
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
            return None
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def _encode(key: str, files: Mapping[str, bytes], meta: Mapping[str, Any]) -> bytes:
    head = json.dumps({"key": key, "meta": dict(meta), "files": [[n, len(b)] for n, b in files.items()]}).encode()
    payload = b"".join([_JSON_SIZE.pack(len(head)), head, *files.values()])
    return _HEAD.pack(_MAGIC, _FORMAT, len(payload), hashlib.sha256(payload).digest()) + payload


def _decode(raw: bytes, key: str) -> Entry | None:
    """The entry, None where anything about it is off."""
    if len(raw) < _HEAD.size + _JSON_SIZE.size:
        return None
    magic, version, size, digest = _HEAD.unpack_from(raw)
    payload = memoryview(raw)[_HEAD.size:]
    if magic != _MAGIC or version != _FORMAT or size != len(payload) or hashlib.sha256(payload).digest() != digest:
        return None
    json_size, = _JSON_SIZE.unpack_from(payload)
    at = _JSON_SIZE.size + json_size
    try:
        head = json.loads(bytes(payload[_JSON_SIZE.size:at]))
        if head["key"] != key:
            return None  # a file that was renamed
        files = {}
        for name, length in head["files"]:
            files[name] = bytes(payload[at:at + length])
            at += length
        return Entry(files, head["meta"], hit=True)
    except (ValueError, TypeError, KeyError):  # well hashed, but not written by `_encode`
        return None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # on Windows a file that another process reads stays; it will be replaced
        _warn_once(str(path.parents[1]), error)
