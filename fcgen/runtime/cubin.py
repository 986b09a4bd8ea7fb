"""What a cubin says about its kernels: registers, spills, stack, shared memory. Read from the ELF itself.

In: a cubin, and ptxas's verbose log where there is one. Out: `Resources` per kernel, the architecture, and SASS text if
nvdisasm is installed. Guaranteed: no external tool is needed except for `sass`; a damaged file raises FcError, never an
index error.

Facts used (checked against ptxas 12.4, 13.0 and 13.5 for sm_80 to sm_90a): `.nv.info` holds a register count
(EIATTR_REGCOUNT), a frame and a stack size per function; `.nv.info.<kernel>` holds the thread limit and, from CUDA 13,
one annotation for each instruction that spills or refills. Spilled bytes are nowhere in the file, only in the log.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fcgen.errors import FcError
from fcgen.runtime import toolchain

_REGCOUNT, _FRAME_SIZE, _MIN_STACK, _MAX_THREADS, _REQ_THREADS, _ANNOTATIONS = 0x2F, 0x11, 0x12, 0x05, 0x10, 0x55
_SIZED = 4  # the attribute format that is followed by a payload
_ENTRY = 0x10  # st_other of a kernel, as opposed to a device function
_SPILL_REFILL = 1
_RESERVED_SHARED = 1024  # sm_90 and later keep the first KiB of shared memory; the section's size includes it

_FUNCTION = re.compile(r"Compiling entry function '([^']+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Resources:
    """One kernel's needs. None: the file does not say (spilled bytes without a log)."""

    registers: int
    stack_bytes: int
    shared_bytes: int  # without what the hardware reserves; of a cubin: static, of a program: all
    max_threads: int | None  # of __launch_bounds__
    spill_sites: int  # instructions that spill or refill; 0 also where ptxas is older than 13
    spill_stores: int | None = None  # bytes, from the log
    spill_loads: int | None = None

    @property
    def spills(self) -> bool:
        """Does the kernel spill? Without a log a stack frame counts as one: local arrays then look like spills too."""
        if self.spill_stores is not None:
            return self.spill_stores + (self.spill_loads or 0) > 0
        return self.spill_sites > 0 or self.stack_bytes > 0


@dataclass(frozen=True)
class _Section:
    name: str
    offset: int
    size: int
    link: int


def resources(cubin: bytes, log: str = "") -> dict[str, Resources]:
    """kernel name -> what it needs. log: NVRTC's or ptxas's with -v, for the exact spilled bytes."""
    try:
        found = _read(cubin)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise FcError("file/missing", "this is not a whole cubin", got=f"{len(cubin)} bytes: {error}") from error
    for name, (stores, loads) in spilled_bytes(log).items():
        if name in found:
            found[name] = replace(found[name], spill_stores=stores, spill_loads=loads)
    return found


def spilled_bytes(log: str) -> dict[str, tuple[int, int]]:
    """kernel name -> bytes of (spill stores, spill loads), out of a verbose ptxas log.

    A kernel's `Function properties` line may come before or after that of a function it calls, whose spills are its own
    as well: they are added to the kernel that ptxas was compiling.
    """
    totals: dict[str, tuple[int, int]] = {}
    kernel = None
    for line in log.splitlines():
        entry, spills = _FUNCTION.search(line), _SPILLS.search(line)
        if entry:
            kernel = entry[1]
        elif spills and kernel is not None:
            stores, loads = totals.get(kernel, (0, 0))
            totals[kernel] = stores + int(spills[2]), loads + int(spills[3])
    return totals


def arch_of(cubin: bytes) -> str:
    """The architecture a cubin was compiled for: "sm_89"; an architecture-specific one reads as its base ("sm_90")."""
    _check_magic(cubin)
    flags, = struct.unpack_from("<I", cubin, 48)
    # ABI 8 (CUDA 13) moved the number up by a byte
    return f"sm_{(flags >> 8 if cubin[8] >= 8 else flags) & 0xFF}"


def sass(cubin: bytes) -> str:
    """The machine code as text. Needs nvdisasm (pip install nvidia-cuda-nvdisasm, or a toolkit)."""
    tool = toolchain.find_tool("nvdisasm")
    if tool is None:
        raise FcError("compile/toolchain", "nvdisasm is not installed", hint="pip install nvidia-cuda-nvdisasm")
    with tempfile.TemporaryDirectory(prefix="fcgen-") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([str(tool), "-c", str(path)], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise FcError("compile/toolchain", "nvdisasm refused the cubin", got=done.stderr.strip().split("\n")[0],
                      hint="an nvdisasm as new as NVRTC is needed: pip install -U nvidia-cuda-nvdisasm")
    return done.stdout


def _check_magic(cubin: bytes) -> None:
    if len(cubin) < 64 or cubin[:6] != b"\x7fELF\x02\x01":
        raise FcError("file/missing", "this is not a cubin", expected="a 64-bit little-endian ELF file",
                      got=repr(bytes(cubin[:6])))


def _sections(elf: bytes) -> list[_Section]:
    table, = struct.unpack_from("<Q", elf, 40)
    size, count, names_at = struct.unpack_from("<HHH", elf, 58)
    raw = [struct.unpack_from("<IIQQQQIIQQ", elf, table + size * i) for i in range(count)]
    names = raw[names_at][4]
    return [_Section(_text(elf, names + s[0]), s[4], s[5], s[6]) for s in raw]


def _text(elf: bytes, at: int) -> str:
    return elf[at:elf.index(b"\0", at)].decode()


def _symbols(elf: bytes, sections: list[_Section]) -> list[tuple[str, int]]:
    """(name, st_other) by symbol number."""
    for section in sections:
        if section.name == ".symtab":
            names = sections[section.link].offset
            raw = (struct.unpack_from("<IBB", elf, section.offset + 24 * i) for i in range(section.size // 24))
            return [(_text(elf, names + s[0]), s[2]) for s in raw]
    return []


def _attributes(elf: bytes, section: _Section) -> Iterator[tuple[int, bytes]]:
    at, end = section.offset, section.offset + section.size
    while at + 4 <= end:
        form, attribute, value = struct.unpack_from("<BBH", elf, at)
        size = value if form == _SIZED else 0
        yield attribute, elf[at + 4:at + 4 + size]
        at += 4 + size


def _read(elf: bytes) -> dict[str, Resources]:
    _check_magic(elf)
    sections = _sections(elf)
    symbols = _symbols(elf, sections)
    by_name = {s.name: s for s in sections}
    per_function: dict[int, dict[str, int]] = {_REGCOUNT: {}, _FRAME_SIZE: {}, _MIN_STACK: {}}
    if ".nv.info" in by_name:
        for attribute, payload in _attributes(elf, by_name[".nv.info"]):
            if attribute in per_function:
                symbol, value = struct.unpack("<II", payload)
                per_function[attribute][symbols[symbol][0]] = value
    reserved = _RESERVED_SHARED if int(arch_of(elf)[3:]) >= 90 else 0
    found = {}
    for name in (n for n, other in symbols if other & _ENTRY and ".text." + n in by_name):
        shared = by_name.get(".nv.shared." + name)
        threads, sites = _launch_facts(elf, by_name.get(".nv.info." + name))
        found[name] = Resources(
            registers=per_function[_REGCOUNT].get(name, 0),
            stack_bytes=max(per_function[_FRAME_SIZE].get(name, 0), per_function[_MIN_STACK].get(name, 0)),
            shared_bytes=max(0, shared.size - reserved) if shared else 0,
            max_threads=threads, spill_sites=sites)
    return found


def _launch_facts(elf: bytes, section: _Section | None) -> tuple[int | None, int]:
    """(thread limit, instructions that spill) of one kernel."""
    threads, sites = None, 0
    for attribute, payload in _attributes(elf, section) if section else ():
        if attribute in (_MAX_THREADS, _REQ_THREADS):
            x, y, z = struct.unpack("<III", payload)
            threads = x * y * z
        elif attribute == _ANNOTATIONS:
            for at in range(0, len(payload) - 7, 8):
                kind, _offset = struct.unpack_from("<II", payload, at)
                if kind != _SPILL_REFILL:
                    break  # other kinds differ in length; what was counted so far is enough to know that it spills
                sites += 1
    return threads, sites
