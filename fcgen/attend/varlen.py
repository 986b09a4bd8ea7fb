"""`fcgen.attention_varlen`: attention over packed sequences of any lengths, none at all included.

Lengths are read on the GPU: no number of them is known to the host, nothing waits, and other lengths compile nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from ..build.captured import Family
from ..build.program import Program
from ..errors import FcError
from ..ir.schedule import Schedule
from ..ir.types import DTYPES
from ..kernels.ragged import ragged_attention, tiles_of_sequences
from . import calls, forward, packed, plans
from .learning import learns
from .outputs import _empty
from .variants import PLAIN, Choice, Functions, family, fitted, functions, quiet, run

#: `causal` -> (where windows and the mask are aligned, is there one)
ALIGN = {False: ("bottom", False), None: ("bottom", False), True: ("bottom", True), "bottom_right": ("bottom", True),
         "top_left": ("top", True)}


def attention_varlen(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None, max_seqlen_q: int | None = None,
                     max_seqlen_k: int | None = None, *, seqused_q: Any = None, seqused_k: Any = None, causal: bool | str = False,
                     window: tuple[int | None, int | None] = (None, None), scale: float | None = None, return_lse: bool = False,
                     schedule: Schedule | None = None, out: Any = None, score: Callable[..., Any] | None = None,
                     mask: Callable[..., Any] | None = None, sinks: Any = None, dropout: Any = None) -> Any:
    """softmax(q k^T * scale) v for sequences that lie one behind the other, float32 inside.

    q: [rows, H, D]; k: [keys, Hkv, D]; v: [keys, Hkv, E]; f16 or bf16, any strides with a contiguous last axis; H a multiple of Hkv.
    cu_seqlens_q, cu_seqlens_k: i32 [sequences + 1], where each begins and the last one ends; the keys' are the rows' if None.
    max_seqlen_q, max_seqlen_k: the longest sequence of each, or more; they help to choose a schedule, and may be left out.
    Rows and keys past it get no gradient.
    seqused_q, seqused_k: i32 [sequences], how many rows and keys of each count; other rows are zero.
    causal: False, True or "bottom_right" (the last row sees the last key), "top_left". window: (left, right): row i sees the keys from
    i + shift - left to i + shift + right, where shift is a sequence's keys less its rows, and 0 with "top_left"; None or -1: no end.
    score, mask, sinks, dropout: as in `fcgen.attention`; b is the number of the sequence, positions are counted from its beginning.
    Returns [rows, H, E], and with return_lse the natural log-sum-exp [H, rows] in float32. Rows that see no key give 0 and -inf.

    Raises FcError "call/argument" before anything is launched.
    """
    from ..runtime import tensors

    given = PLAIN if score is mask is sinks is dropout is None else functions(score, mask, sinks, dropout)
    if scale is not None and type(scale) is not float:
        scale = forward._scale(scale)
    if cu_seqlens_k is cu_seqlens_q:
        cu_seqlens_k = None
    key, open_ends = None, packed.ends(window)
    if open_ends is not None and (type(causal) is bool or type(causal) is str):
        key = (causal, bool(return_lse), id(schedule), cu_seqlens_k is None, seqused_q is None, seqused_k is None, out is None,
               open_ends[0] is None, open_ends[1] is None, *(calls.texts_of(given) if given != PLAIN else ()))
        for kind in packed.kinds.get(key, ()):
            result = kind(q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, out, max_seqlen_q, max_seqlen_k, *open_ends, scale,
                          given if given != PLAIN else None)
            if result is not None:
                return result
    forward._check_schedule(schedule)
    trained, plain = learns(given, q, k, v), (q, k, v)
    q, k, v = (t.detach() if trained else forward._without_gradient(t) for t in plain)
    with tensors.followed() if trained else nullcontext():
        qa, ka, va = tensors.describe(q, "q"), tensors.describe(k, "k"), tensors.describe(v, "v")
        for name, t in (("q", qa), ("k", ka), ("v", va)):
            if len(t.shape) != 3:
                raise FcError("call/argument", f"argument `{name}` has the wrong number of axes", expected="[all rows, heads, head size]",
                              got=t.shape)
        rows = [t._replace(shape=(1, t.shape[1], t.shape[0], t.shape[2])) for t in (qa, ka, va)]
        forward._check_shapes(*rows)
        align, is_causal = _causal(causal)
        left, right = _window(window)
        value = 1.0 / math.sqrt(qa.shape[2]) if scale is None else forward._scale(scale)
        arguments: dict[str, Any] = {"Q": qa, "K": ka, "V": va, "scale": value}
        sequences = _offsets(arguments, qa.device, cu_seqlens_q, cu_seqlens_k, ka.shape[0])
        given.check((sequences, qa.shape[1], 0, 0))
        for name, word, x in (("Used", "seqused_q", seqused_q), ("KUsed", "seqused_k", seqused_k)):
            if x is not None:
                arguments[name] = tensors.describe(x, word)
                tensors.check(arguments[name], name=word, dtype="i32", shape=(sequences,), device=qa.device)
        longest = _longest("max_seqlen_q", max_seqlen_q, qa.shape[0])
        most = _longest("max_seqlen_k", max_seqlen_k, ka.shape[0])
        if left is not None:
            arguments["left"] = left
        if right is not None and not is_causal:
            arguments["right"] = right
    shape = (qa.shape[0], qa.shape[1], va.shape[2])
    if trained and 0 not in shape and sequences and longest:
        from .differentiable import attend, begin
        from .training import RAGGED, Call, widened

        if out is not None:
            raise FcError("call/argument", "argument `out` is written, and a gradient is to flow through it",
                          hint="leave it away, or call under torch.no_grad()")
        again = functools.partial(attention_varlen, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
                                  max_seqlen_k=max_seqlen_k, seqused_q=seqused_q, seqused_k=seqused_k, causal=causal, window=window,
                                  scale=value, return_lse=True, schedule=schedule, score=score, mask=mask, sinks=sinks, dropout=dropout)
        wide = widened(*plain)
        if wide is not None:
            o, lse = again(*wide)
            return (o[..., :shape[2]], lse) if return_lse else o[..., :shape[2]]
        arguments |= {"longest": longest, "longest_k": most}
        bound = {"align": align, "causal": is_causal, "positive": value >= forward.SMALLEST_NORMAL,
                 **dict.fromkeys(n for n in ("Used", "KUsed", "left", "right") if n not in arguments)}
        lengths = (cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k)
        call = Call(again, RAGGED, value, forward._arch(qa.device), 1, given, bound, arguments, lengths)
        o, lse = attend(begin(call, *plain), *plain)
        return (o, lse) if return_lse else o
    if out is not None:
        forward._check_out(tensors.describe(out, "out"), shape, qa, ka, va)
    o = _empty(q, shape, None) if out is None else out
    lse = _empty(q, (shape[1], shape[0]), "float32") if return_lse else None
    if 0 not in shape and sequences and longest:
        arguments |= {"O": tensors.describe(o, "out")} | ({"LSE": tensors.describe(lse, "lse")} if return_lse else {})
        aligned = all(forward._in_lines(arguments[n]) for n in "QKVO")
        facts = Facts(qa.dtype, qa.shape[2], va.shape[2], return_lse, align, is_causal, tuple(
            n for n in ("Used", "KUsed", "left", "right") if n not in arguments))
        sizes = qa.device, (1, qa.shape[1], qa.shape[0], qa.shape[2]), (1, ka.shape[1], most, ka.shape[2])
        choice = _choice(facts, sizes, value, schedule, aligned, given)
        _lister(choice.arch).begin()
        kept = _family(facts, choice, given, schedule is not None) if given.given() else None
        program = kept.find(given.given())[0] if kept is not None else _plain(facts, choice, schedule is not None)
        arguments |= _tiles(q, arguments, choice.arch, sequences, qa.shape[0], dict(program.schedule.tiles)["BLOCK_M"])
        if kept is not None:
            run(kept, given, arguments)
        else:
            program.launcher(arguments)
        tensors.written(o)
        if key is not None:
            how = functools.partial(_planned, plans.Kept(), facts, schedule, out is not None)
            packed.learn(key, packed.Options(how, schedule), q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, out)
    elif shape[0]:
        forward._fill(o, 0.0)
    return (o, lse) if return_lse else o


def _planned(written: plans.Kept, facts: Facts, schedule: Schedule | None, out: bool, dtype: str, device: int, rows: int, heads: int,
             d: int, groups: int, most: int, e: int, scale: float, given: Functions | None, like: Any) -> plans.Plan | None:
    """How calls like this one are launched."""
    facts, given = Facts(dtype, d, e, *facts[3:]), given or PLAIN
    try:
        choice = _choice(facts, (device, (1, heads, rows, d), (1, groups, most, d)), scale, schedule, True, given)
        if given.given():
            kept = _family(facts, choice, given, schedule is not None)
            program, values, bind = kept.bound(given.given())
            part = plans.part(program, device, values, bind, list(given.given()))
        else:
            program = _plain(facts, choice, schedule is not None)
            part = plans.part(program, device)
        lister, each = plans.part(_lister(choice.arch), device), dict(program.schedule.tiles)["BLOCK_M"]
        return written.of([part, lister], each, lambda: packed.plan(part, lister, each, device, like, lse=facts[3], given=out))
    except FcError:
        return None  # the long way says why


class Facts(tuple):  # type: ignore[type-arg]
    """What a program is compiled for: dtype, head sizes, with the log-sum-exp, alignment, causal, parameters that are absent."""

    def __new__(cls, dtype: str, d: int, e: int, lse: bool, align: str, causal: bool, absent: tuple[str, ...]) -> Facts:
        return super().__new__(cls, (dtype, d, e, lse, align, causal, absent))

    def binding(self) -> dict[str, Any]:
        dtype, d, e, lse, align, causal, absent = self
        return {"T": DTYPES[dtype], "D": d, "E": e, "align": align, "causal": causal, **dict.fromkeys(absent),
                **({} if lse else {"LSE": None})}


def _choice(facts: Facts, sizes: tuple[Any, ...], scale: float, schedule: Schedule | None, aligned: bool, given: Functions) -> Choice:
    """The library's schedule for as many rows and heads."""
    device, q, k = sizes
    part, masked = given.keep is not None or "left" not in facts[6], facts[5] or "right" not in facts[6]
    kind = "part" if part else "causal_bottom_right" if masked else "none"
    choice = Choice(*forward._chosen(device, q, k, facts[2], kind, scale, schedule, aligned))
    if schedule is None and choice.schedule.epilogue == "quad" and max(facts[1:3]) <= 128:
        # registers hold more than for a padded batch: where rows end. Equal lengths over a padded batch: D = 64 1.005, as the table has it
        # 1.040, D = 128 1.003 and 1.028 (H200, 2026-11-27)
        choice = choice._replace(schedule=replace(choice.schedule, epilogue="tma", split="loops"))
    return choice


def compiled(facts: Facts, choice: Choice, given: Functions = forward.PLAIN, check: bool = False) -> Program:
    """The program for a call."""
    return quiet(ragged_attention, choice.arch, choice.schedule, check=check, **choice.options(), **facts.binding(), **given.given())


def _family(facts: Facts, choice: Choice, given: Functions, caller: bool) -> Family:
    return family((facts, choice), given, lambda functions: _fitted(facts, choice, Functions(**functions), caller))


def _fitted(facts: Facts, choice: Choice, given: Functions, caller: bool) -> Program:
    def other() -> Schedule:
        from ..api import schedule_for

        return schedule_for(ragged_attention, choice.arch, positive=choice.positive, **facts.binding(), **given.given())

    return fitted(choice, given, caller, lambda c: compiled(facts, c, given, caller or bool(given.given())), other)


@functools.lru_cache(maxsize=256)
def _plain(facts: Facts, choice: Choice, caller: bool) -> Program:
    return _fitted(facts, choice, forward.PLAIN, caller)


def _tiles(like: Any, arguments: dict[str, Any], arch: str, sequences: int, rows: int, each: int) -> dict[str, Any]:
    """The tiles of the grid, found by one kernel: there are no more than whole ones of all rows and one of each sequence."""
    from ..runtime import tensors

    made = _empty(like, (2, rows // each + sequences), "int32")
    both = tensors.describe(made, "tiles")
    one = both._replace(shape=both.shape[1:], strides=both.strides[1:], owner=made)
    out = {"Sequence": one, "Number": one._replace(ptr=one.ptr + 4 * both.strides[0])}
    _lister(arch).launcher({"Begin": arguments["Begin"], "End": arguments["End"], **out, "each": each})
    return out


@functools.lru_cache(maxsize=16)
def _lister(arch: str) -> Program:
    return quiet(tiles_of_sequences, arch, Schedule(tiles={"SEQUENCES": 128}, warps=4))


def _causal(causal: Any) -> tuple[str, bool]:
    word = forward._mask_word(causal)
    return ALIGN[word] if word != "none" else ALIGN[False]


def _window(window: Any) -> tuple[int | None, int | None]:
    """(left, right) as numbers, None for no end."""
    if window is None:
        return None, None
    if isinstance(window, tuple) and len(window) == 2 and all(
            n is None or (hasattr(n, "__index__") and not isinstance(n, bool) and int(n) >= -1) for n in window):
        left, right = (None if n is None or int(n) == -1 else min(int(n), 2**31 - 1) for n in window)
        return left, right
    raise FcError("call/argument", "argument `window` is not (left, right)", expected="two whole numbers, None or -1 for no end",
                  got=repr(window)[:80])


def _longest(name: str, n: Any, all_of: int) -> int:
    if n is None:
        return all_of
    if isinstance(n, bool) or not hasattr(n, "__index__") or int(n) < 0:
        raise FcError("call/argument", f"argument `{name}` is not a length", expected="a whole number", got=repr(n)[:80])
    return min(int(n), all_of)


def _offsets(arguments: dict[str, Any], device: int, rows: Any, keys: Any, count: int) -> int:
    """Fill in where sequences begin and end; how many there are."""
    from ..runtime import tensors

    sequences = None
    for begin, end, name, x in (("Begin", "End", "cu_seqlens_q", rows), ("KBegin", "KEnd", "cu_seqlens_k", rows if keys is None else keys)):
        a = tensors.describe(x, name)
        tensors.check(a, name=name, dtype="i32", shape=(None,), device=device)
        if not a.shape[0] or sequences not in (None, a.shape[0] - 1):
            raise FcError("call/argument", f"argument `{name}` has the wrong length", got=a.shape[0],
                          expected="one more than there are sequences" if sequences is None else sequences + 1)
        sequences = a.shape[0] - 1
        arguments[begin] = a._replace(shape=(sequences,))
        arguments[end] = a._replace(shape=(sequences,), ptr=a.ptr + 4 * a.strides[0])
    assert sequences is not None
    return sequences
