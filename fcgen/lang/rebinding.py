"""Python names that a loop or branch of the program changes: what Python would do on the GPU and a trace cannot.

The body of `fc.loop` is traced once. A name that holds another object at its end than at its beginning is harmless if the body sets
it before it reads it. If it reads it first, the next iteration would see the new object in Python, and sees the old one in the program;
so does what follows a branch that may not run. Which comes first is read off the byte code of the user's function.
"""

from __future__ import annotations

import dis
import functools
import re
from collections.abc import Iterator, Mapping
from types import CodeType, FrameType
from typing import Any

from ..errors import FcError, Loc
from ..ir.core import Block, Value, walk
from .handles import Handle, Var
from .trace import place_of

_ACCESS = re.compile(r"(LOAD|STORE)_(?:FAST|NAME|DEREF|GLOBAL)(?:_(?:CHECK|BORROW))?")
Held = dict[tuple[int, str], Any]  # (frame, path such as `t`, `accs[0]`, `state.t`) -> object


def snapshot(frames: tuple[FrameType, ...]) -> Held:
    """What the user's names hold, and the values of the program that lists, dicts and objects under those names hold."""
    return {(n, path): x for n, frame in enumerate(frames) for path, x in _paths(frame.f_locals)}


def _paths(names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, x in list(names.items()):
        yield name, x
        if isinstance(x, (list, dict)):
            inner = [(f"{name}[{k!r}]", y) for k, y in (x.items() if isinstance(x, dict) else enumerate(x))]
        elif hasattr(x, "__dict__") and not isinstance(x, type) and type(x).__module__ not in ("builtins", "types"):
            inner = [(f"{name}.{k}", y) for k, y in list(vars(x).items())]
        else:
            continue
        yield from ((path, y) for path, y in inner if isinstance(y, Handle))


def check_loop(frames: tuple[FrameType, ...], before: Held, read: dict[Value, Value], body: Block, where: Loc) -> None:
    """At the end of a loop's body. before: the names at its beginning. read: what the body reads a variable as -> its value before."""
    after = snapshot(frames)
    used = {read.get(v, v) for op in walk(body) for v in op.operands}
    for (n, path), old in before.items():
        new = after.get((n, path), old)
        if not _differ(old, new):
            continue
        code, at = frames[n].f_code, frames[n].f_lasti
        end = _loop_end(code, at)
        first = first_accesses(code, at + 2, end) if end is not None else {}
        later = first_accesses(code, end, None) if end is not None else {}
        if path.isidentifier() and path in first:
            wrong = first[path] == "LOAD" or (not isinstance(old, Handle) and later.get(path) == "LOAD")
        else:  # changed by a function that the body calls, or inside a list, dict or object
            wrong = isinstance(old, Handle) and isinstance(new, Handle) and old._value in used
        if wrong:
            variable = isinstance(old, Var)
            raise FcError("trace/usage", f"`{path}` changes in a loop of the program, whose body is traced once: every iteration would see "
                          "what it held before the loop", loc=_set_at(frames[n], path, at + 2, end) or where,
                          notes=[] if isinstance(old, Handle) else [f"{_shown(old)} before the loop, {_shown(new)} at the end of its body"],
                          hint=f"`{path} <<= ...` gives a variable its next value; `=` makes a new name for another one" if variable
                          else f"make it a variable: {path} = fc.var({path}) before the loop, {path} <<= ... in it")


def check_branch(frames: tuple[FrameType, ...], before: Held, where: Loc) -> None:
    """At the end of a branch: Python values that it changes and that are read behind it (of the program's own, the read is refused)."""
    after = snapshot(frames)
    for (n, path), old in before.items():
        new = after.get((n, path), old)
        if not isinstance(new, Handle) and path.isidentifier() and _differ(old, new):
            later = first_accesses(frames[n].f_code, frames[n].f_lasti + 2, None)
            if later.get(path) == "LOAD":
                raise FcError("trace/usage", f"`{path}` is set in a branch that may not run, and read after it", loc=where,
                              notes=[f"{_shown(old)} before the branch, {_shown(new)} at its end"],
                              hint=f"make it a variable of the program: {path} = fc.var({path}) before, {path} <<= ... in the branch")


def _set_at(frame: FrameType, name: str, start: int, stop: int | None) -> Loc | None:
    """Where a stretch of code sets a name for the first time."""
    inside = (i for i in _code(frame.f_code) if start <= i.offset < (stop or start))
    at = next((i.offset for i in inside if i.argval == name and i.opname.startswith("STORE")), None)
    return None if at is None else place_of(frame, at)


def in_for_statement(frame: FrameType | None) -> bool:
    """Whether the frame is at the beginning of a `for` statement, and not at a call such as enumerate(...) or list(...)."""
    return frame is None or dis.opname[frame.f_code.co_code[frame.f_lasti]] in ("GET_ITER", "GET_YIELD_FROM_ITER")


def _differ(old: Any, new: Any) -> bool:
    if isinstance(old, (bool, int, float, str, tuple)) and type(old) is type(new) and not isinstance(old, Handle):
        return _flat(old) != _flat(new)
    return old is not new


def _flat(x: Any) -> Any:
    return tuple(map(id, x)) if isinstance(x, tuple) else x


def _shown(x: Any) -> str:
    return repr(x) if isinstance(x, (Handle, bool, int, float, str, type(None))) else f"a {type(x).__name__}"


@functools.lru_cache(maxsize=64)
def _code(code: CodeType) -> list[dis.Instruction]:
    return list(dis.get_instructions(code))


def _loop_end(code: CodeType, at: int) -> int | None:
    """Where the `for` statement that is asking for its next item goes on when there is none; None where the frame does something else."""
    op = next((i for i in reversed(_code(code)) if i.offset <= at), None)  # a frame may stand in the caches behind its instruction
    return op.argval if op is not None and op.opname == "FOR_ITER" else None


@functools.lru_cache(maxsize=256)
def first_accesses(code: CodeType, start: int, stop: int | None) -> Mapping[str, str]:
    """name -> whether a stretch of code reads ("LOAD") or sets ("STORE") it first, in the order of the text."""
    out: dict[str, str] = {}
    for i in _code(code):
        if i.offset >= start and (stop is None or i.offset < stop):
            names = i.argval if isinstance(i.argval, tuple) else (i.argval,)
            for (kind, _), name in zip(_halves(i.opname), names):
                out.setdefault(name, kind)
    return out


@functools.cache
def _halves(opname: str) -> list[tuple[str, str]]:
    """The accesses of one instruction: newer Pythons make two of them at once."""
    return [(m[1], m[0]) for m in _ACCESS.finditer(opname)]
