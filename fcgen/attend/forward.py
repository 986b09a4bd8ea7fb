"""`fcgen.attention`: the library's kernel behind one function, compiled on first use for the GPU that the tensors are on."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..build.captured import Family
from ..build.compiler import target
from ..build.program import Program
from ..errors import FcError
from ..ir.schedule import Schedule
from ..ir.types import DTYPES
from . import blocks as listed
from . import calls, plans
from .learning import learns, recorded
from .outputs import _empty, _fill
from .variants import PLAIN, Choice, Functions, _arch, family, fitted, functions, run

MASKS = {None: "none", "none": "none", "top_left": "causal_top_left", "bottom_right": "causal_bottom_right"}
#: of float32. A scale below the first may be 0 to a multiplication: it takes the kernels for a scale of any sign, 0 included.
SMALLEST_NORMAL, LARGEST = calls.SMALLEST_NORMAL, (2.0 - 2.0**-23) * 2.0**127


def _tracing() -> bool:
    """Is Dynamo reading this? It knows torch's function by its identity and takes it for true; called, it is false."""
    compiler = sys.modules.get("torch.compiler")
    return compiler is not None and compiler.is_dynamo_compiling()


def attention(q: Any, k: Any, v: Any, *, causal: bool | str = False, scale: float | None = None, return_lse: bool = False,
              schedule: Schedule | None = None, out: Any = None, score: Callable[..., Any] | None = None,
              mask: Callable[..., Any] | None = None, sinks: Any = None, dropout: Any = None, blocks: Any = None) -> Any:
    """softmax(q k^T * scale) v on the GPU, float32 inside.

    q: [B, H, M, D]; k: [B, Hkv, N, D]; v: [B, Hkv, N, E]; f16 or bf16, any strides with a contiguous last axis; H a multiple of Hkv
    (grouped heads); D and E multiples of 8 from 8 to 512. causal: "top_left" (key j is seen by row i if j <= i), "bottom_right"
    (j <= i + N - M), or True where M = N and both are the same. Views whose pointers or strides are not multiples of 16 bytes take a slower
    kernel with narrower accesses. scale: 1/sqrt(D) if None. Returns [B, H, M, E], and with return_lse the
    natural log-sum-exp [B, H, M] in float32. Rows that see no key give 0 and -inf. out: where to write instead of a new tensor.
    score: a function of fcgen's language (s, b, h, i, j) -> s that changes the scaled scores of row i and key j, a tile of them at a time:
    `lambda s, b, h, i, j: s + bias[h, i, j]`. Numbers and tensors that it holds are read at each call. `fcgen.scores` has ready-made ones.
    mask: a function (b, h, i, j) -> condition: which keys a row sees, beside `causal`; `fcgen.masks` has ready-made ones that combine.
    sinks: a score for each head, tensor [H] or one number, that every row has besides its keys', and whose value is zero; 0.0 is the
    softmax off by one. The log-sum-exp counts it. dropout: `fcgen.Dropout(p, seed, offset)`. blocks: what `fcgen.block_lists` made of the
    mask, for many calls with it.

    Raises FcError "call/argument" before anything is launched. The algorithm is FlashAttention-2's (Dao, 2023).
    """
    if _tracing():
        from .torch_op import traced

        more = {"score": score, "mask": mask, "sinks": sinks, "dropout": dropout, "blocks": blocks}
        return traced(q, k, v, causal, scale, return_lse, schedule, out, more)
    last = calls.last
    if (last is not None and last[0] is causal and last[3] is (out is not None) and last[1] is return_lse and last[2] is schedule
            and (last[4] is scale or (type(scale) is float and last[4] == scale)) and score is mask is sinks is dropout is blocks is None):
        try:
            if not (q.is_nested or k.is_nested or v.is_nested or (out is not None and out.is_nested)) and (
                    last[5](q, k, v) if out is None else last[5](q, k, v, out)) and calls.forward_ad._current_level < 0:
                result = last[6](q, k, v, out)
                if result is not None:
                    return result
        except AttributeError:  # not torch's tensors
            pass
    if type(causal) is not bool and type(causal) is not str:
        causal = _mask_word(causal)  # type: ignore[assignment]
    if scale is not None and type(scale) is not float:
        scale = _scale(scale)
    given, key = None, (causal, bool(return_lse), id(schedule), out is not None)
    if not (score is mask is sinks is dropout is blocks is None):
        given = functions(score, mask, sinks, dropout)
        given = None if given == PLAIN else given
        key = None if blocks is not None else key if given is None else (*key, *calls.texts_of(given))  # type: ignore[assignment]
    for kind in calls.kinds.get(key, ()):
        result = kind(q, k, v, out, scale, given)
        if result is not None:
            return result
    return _unknown(key, q, k, v, _mask_word(causal), scale, bool(return_lse), schedule, out, given, blocks)


def known(q: Any, k: Any, v: Any, causal: bool | str, scale: float | None, given: Functions | None = None, lse: bool = False) -> Any:
    """The result of a call of a kind that is known, None for others. scale: a float or None. given: functions, if any."""
    for kind in calls.kinds.get(key_of(causal, lse, given), ()):
        result = kind(q, k, v, None, scale, given)
        if result is not None:
            return result
    return None


def key_of(causal: bool | str, lse: bool, given: Functions | None) -> tuple[Any, ...]:
    """By what the kinds of a call without a schedule, `out` and lists are found."""
    return causal, lse, _NO_SCHEDULE, False, *(() if given is None else calls.texts_of(given))


_NO_SCHEDULE = id(None)


def _unknown(key: Any, q: Any, k: Any, v: Any, causal: Any, scale: float | None, return_lse: bool, schedule: Schedule | None, out: Any,
             given: Functions | None, blocks: Any) -> Any:
    """A call of a kind that is not known, or that has to be looked at closely."""
    global _tracing
    if "torch.compiler" in sys.modules:
        _tracing = sys.modules["torch.compiler"].is_dynamo_compiling  # cheaper than to look for it each time
    if scale is not None:
        scale = _scale(scale)
    _check_schedule(schedule)
    if schedule is given is blocks is None and recorded(q, k, v):
        from .torch_op import operator

        return operator(q, k, v, causal, scale, return_lse, out)
    if learns(given or PLAIN, q, k, v):
        return _trained(q, k, v, causal, scale, return_lse, schedule, out, given or PLAIN, blocks)
    q, k, v = (_without_gradient(t) for t in (q, k, v))
    result = _checked(q, k, v, causal, scale, return_lse, schedule, out, given or PLAIN, blocks)
    learn(key, q, k, v, causal, return_lse, schedule, out)
    return result


def learn(key: Any, q: Any, k: Any, v: Any, causal: Any, return_lse: bool, schedule: Schedule | None = None, out: Any = None) -> None:
    """After a call that went well: know its kind."""
    program = functools.partial(_program, return_lse=return_lse, schedule=schedule)
    plan = functools.partial(_plan, plans.Kept(), return_lse, schedule, out is not None)
    mask = MASKS["top_left"] if causal is True else MASKS[causal or None]
    calls.learn(key, calls.Options(mask, causal is True, return_lse, schedule, plan, program), q, k, v, out)


def _check_schedule(schedule: Any) -> None:
    if schedule is not None:
        from ..api import a_schedule

        a_schedule(schedule)


def _plan(kept: plans.Kept, return_lse: bool, schedule: Schedule | None, out: bool, dtype: str, device: int, q: tuple[int, ...],
          k: tuple[int, ...], e: int, mask: str, scale: float, given: Functions | None, rows: bool, like: Any) -> plans.Plan | None:
    """How calls like this one are launched. rows: grouped heads are rows of one."""
    if q[3] not in calls.HEADS or e not in calls.HEADS:
        return None
    try:
        if given is None:
            seen = (q[0], k[1], q[1] // k[1] * q[2], q[3]) if rows else q
            program = _program(dtype, device, seen, k, e, mask, scale, return_lse, schedule)
            part, lister = plans.part(program, device), None
            return kept.of([part], rows, lambda: plans.plan(part, device, like, lse=return_lse, given=out, rows=rows))
        facts, shift = (dtype, q[3], e, mask, return_lse), _shift(mask, q[2], k[2])
        choice = _choice((device, q, k, e, mask, scale), given, schedule, True)
        found: Any = listed.wanted(k[2], given, choice, shift)
        lister = None
        if found.lister is None:
            choice = _choice((device, q, k, e, mask, scale), given, schedule, True, listed.table(k[2], given, choice, shift))
            programs = _family(facts, choice, given, schedule)
        else:
            absent = tuple(n for n, there in (("shift", shift is not None), ("LSE", return_lse)) if not there)
            programs = listed.over_lists(facts, given, choice, schedule is not None, found.block, absent)
            where = shift, "0" if mask == "causal_top_left" else "(k_2 - q_2)"
            lister = listed.planned(found, given, device, choice.arch, where)
        program, values, bind = programs.bound(given.given())
        part = plans.part(program, device, values, bind, list(given.given()))
        write = functools.partial(plans.plan, part, device, like, lse=return_lse, given=out, lists=lister, keys=found.keys)
        return kept.of([part, lister and lister.part], found.keys, write)
    except FcError:
        return None  # the long way says why


def _trained(q: Any, k: Any, v: Any, causal: Any, scale: float | None, return_lse: bool, schedule: Schedule | None, out: Any,
             given: Functions, blocks: Any) -> Any:
    """A call through which a gradient flows."""
    from . import trained

    if out is not None:
        raise FcError("call/argument", "argument `out` is written, and a gradient is to flow through it",
                      hint="leave it away, or call under torch.no_grad()")
    if blocks is not None and given.keep is None:
        raise FcError("call/argument", "no gradient flows through `blocks` alone", hint="give the mask that they were made of too")
    call_of = functools.partial(_training_call, causal=causal, scale=scale, schedule=schedule, given=given, blocks=blocks)
    return trained.attention(q, k, v, return_lse, (causal, scale), given == PLAIN and schedule is None, call_of)


def _training_call(q: Any, k: Any, v: Any, causal: Any, scale: float | None, schedule: Schedule | None, given: Functions,
                   blocks: Any) -> Any:
    """What the backward pass has to know of a call (`training.Call`)."""
    from ..runtime import tensors
    from .training import DENSE, Call

    qa, ka, va = (tensors.outline(x, name) for x, name in zip((q, k, v), "qkv"))
    _check_shapes(qa, ka, va)
    scale = 1.0 / math.sqrt(qa.shape[3]) if scale is None else scale
    run = functools.partial(_with_lse, causal=causal, scale=scale, schedule=schedule, given=given, blocks=blocks)
    facts = {"mask": _mask_kind(causal, qa.shape[2], ka.shape[2]), "positive": scale >= SMALLEST_NORMAL}
    return Call(run, DENSE, scale, _arch(qa.device), 1, given, facts, {})


def _with_lse(q: Any, k: Any, v: Any, causal: Any, scale: float, schedule: Schedule | None, given: Functions, blocks: Any) -> Any:
    """(out, log-sum-exp); calls of a kind that is known go its way."""
    some = None if given == PLAIN else given
    steady = schedule is None and blocks is None
    if steady:
        q, k, v = q.detach(), k.detach(), v.detach()
        found = known(q, k, v, causal, scale, some, lse=True)
        if found is not None:
            return found
    result = _checked(q, k, v, causal, scale, True, schedule, None, given, blocks)
    if steady:
        learn(key_of(causal, True, some), q, k, v, causal, True)
    return result


def _without_gradient(x: Any) -> Any:
    """Under torch.no_grad(), a tensor that requires grad is only its values."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor) and x.requires_grad and not torch.is_grad_enabled():
        return x.detach()
    return x


def _checked(q: Any, k: Any, v: Any, causal: bool | str | None, scale: float | None, return_lse: bool, schedule: Schedule | None,
             out: Any, given: Functions = PLAIN, blocks: Any = None) -> Any:
    """A call whose arguments may be anything."""
    from ..runtime import tensors
    from .grouped import packed

    qa, ka, va = tensors.describe(q, "q"), tensors.describe(k, "k"), tensors.describe(v, "v")
    _check_shapes(qa, ka, va)
    given.check((*qa.shape[:3], ka.shape[2]))
    kind = _mask_kind(causal, qa.shape[2], ka.shape[2])
    scale = 1.0 / math.sqrt(qa.shape[3]) if scale is None else scale
    shape = (*qa.shape[:3], va.shape[3])
    if out is not None:
        _check_out(tensors.describe(out, "out"), shape, qa, ka, va)
    o = _empty(q, shape, None) if out is None else out
    lse = _empty(q, shape[:3], "float32") if return_lse else None
    filled = given.sink is None and ka.shape[2] == 0 and _fill(o, 0.0) and (lse is None or _fill(lse, -math.inf))
    if 0 not in shape and not filled:
        arguments = {"Q": qa, "K": ka, "V": va, "O": tensors.describe(o, "out")}
        arguments |= {"LSE": tensors.describe(lse, "lse")} if return_lse else {}
        plain = given == PLAIN and blocks is None
        rows = packed(arguments, kind) if plain else None
        if rows is not None:
            arguments, kind = rows, "none"
        aligned = all(a.in_lines for n, a in arguments.items() if n != "LSE")
        sizes = qa.device, arguments["Q"].shape, ka.shape, va.shape[3], kind, scale
        if plain:
            _program(qa.dtype, *sizes, return_lse, schedule, aligned).launcher({**arguments, "scale": scale})
        else:
            facts = qa.dtype, qa.shape[3], va.shape[3], kind, return_lse
            launch(facts, sizes, given, schedule, aligned, {**arguments, "scale": scale}, blocks, q)
        tensors.written(o)
    return (o, lse) if return_lse else o


def launch(facts: tuple[Any, ...], sizes: tuple[Any, ...], given: Functions, schedule: Schedule | None, aligned: bool,
           arguments: dict[str, Any], blocks: Any, like: Any) -> None:
    """A call with functions. facts: dtype, head sizes, mask, with the log-sum-exp; sizes: device, shapes of q and k, value head size, mask,
    scale."""
    _, q, k, _, kind, _ = sizes
    choice = _choice(sizes, given, schedule, aligned)
    if blocks is not None or given.keep is not None:
        if blocks is not None and kind != "none":
            raise FcError("call/argument", "lists of blocks are of the mask alone", expected="causal=False", got=kind,
                          hint="mask & fcgen.masks.causal(), of which the lists are made then")
        shift = _shift(kind, q[2], k[2])
        lists = blocks if blocks is not None else listed.automatic(sizes, given, choice, like, shift)
        if lists is not None:
            listed.launch(facts, given, choice, schedule is not None, arguments, lists, shift)
            return
        choice = _choice(sizes, given, schedule, aligned, listed.table(k[2], given, choice, shift))
    run(_family(facts, choice, given, schedule), given, arguments)


def _shift(kind: str, rows: int, keys: int) -> int | None:
    """Where a mask's diagonal is."""
    return {"none": None, "causal_top_left": 0, "causal_bottom_right": keys - rows}[kind]


def _choice(sizes: tuple[Any, ...], given: Functions, schedule: Schedule | None, aligned: bool,
            masked: str = "causal_bottom_right") -> Choice:
    """masked: the kind of mask that a function of the call is taken for, `listed.table`'s where there are no lists of its blocks."""
    device, q, k, e, kind, scale = sizes
    table = kind if given.keep is None or (kind != "none" and masked != "part") else masked
    return Choice(*_chosen(device, q, k, e, table, scale, schedule, aligned))


def _family(facts: tuple[Any, ...], choice: Choice, given: Functions, schedule: Schedule | None) -> Family:
    """The programs with functions for a choice."""
    from ..kernels.attention import attention as spec

    def other(like: Functions) -> Schedule:
        from ..api import schedule_for

        more = {**like.given(), **({} if facts[4] else {"LSE": None})}
        return schedule_for(spec, choice.arch, T=DTYPES[facts[0]], D=facts[1], E=facts[2], mask=facts[3], positive=choice.positive, **more)

    def make(functions: Mapping[str, Any]) -> Program:
        like = Functions(**functions)
        return fitted(choice, like, schedule is not None, lambda c: compiled.__wrapped__(*facts, *c, functions=like), lambda: other(like))

    return family((facts, choice), given, make)


def _in_lines(a: Any) -> bool:
    return bool(a.in_lines)


def _check_out(oa: Any, shape: tuple[int, ...], *others: Any) -> None:
    from ..runtime import overlap, tensors

    tensors.check(oa, name="out", dtype=others[0].dtype, shape=shape, device=others[0].device)
    if oa.readonly:
        raise FcError("call/argument", "argument `out` is written, but its owner says it is read-only")
    named = (("out", oa), *zip("qkv", others))
    areas = [overlap.Area(name, a.shape, a.strides, tensors.ITEMSIZE[a.dtype], name == "out") for name, a in named]
    overlap.check_itself(areas[0])
    overlap.check(areas, [a.ptr for _, a in named])


def _program(dtype: str, device: int, q: tuple[int, ...], k: tuple[int, ...], e: int, mask: str, scale: float, return_lse: bool,
             schedule: Schedule | None, aligned: bool = True) -> Program:
    """The program for q and k of these shapes, and values of head size e. aligned: bulk copies can move the tensors; else the kernel makes
    none."""
    return compiled(dtype, q[3], e, mask, return_lse, *_chosen(device, q, k, e, mask, scale, schedule, aligned))


def _chosen(device: int, q: tuple[int, ...], k: tuple[int, ...], e: int, mask: str, scale: float, schedule: Schedule | None,
            aligned: bool) -> tuple[str, Schedule, bool, float | None, str]:
    """(target, schedule, is the scale positive, `lazy`, `sums`)"""
    arch, positive = _arch(device, schedule), scale >= SMALLEST_NORMAL
    if schedule is not None:
        return arch, schedule, positive, None, ""
    arch = arch if aligned else target(arch.rstrip("a")).arch
    from ..kernels.schedules import choose
    from ..runtime import driver

    chosen, lazy, sums = choose(arch, q, k, e, mask, driver.device_info(device).sm_count, positive)
    return arch, chosen, positive, lazy, sums


@functools.lru_cache(maxsize=1024)
def compiled(dtype: str, d: int, e: int, mask: str, lse: bool, arch: str, schedule: Schedule | None = None,
             positive: bool = True, lazy: float | None = None, sums: str = "", check: bool | None = None,
             functions: Functions = PLAIN) -> Program:
    """The program that `attention` runs for these compile-time facts. mask: "none", "causal_top_left", "causal_bottom_right". lazy: how far
    (in powers of e) a row's maximum may have moved before what was summed is scaled to it, if not `lazy_of`; sums: the kind of sum that
    goes with it, if not `sums_of`. check: it is tried in the simulator when it is compiled first; if None, where the schedule is
    not the library's."""
    from ..kernels.attention import attention as spec
    from ..kernels.schedules import pick, shipped

    chosen = schedule or pick(arch, max(d, e), "wgmma" if arch == "sm_90a" else "mma", mask)
    ours = chosen in shipped() and functions == PLAIN
    more = {**({} if lse else {"LSE": None}), **functions.given()}
    program = spec.compile(target=arch, schedule=chosen, check=not ours if check is None else check, T=DTYPES[dtype], D=d, E=e, mask=mask,
                           **Choice(arch, chosen, positive, lazy, sums).options(), **more)
    program.quiet = chosen in shipped()
    return program


def _check_shapes(q: Any, k: Any, v: Any) -> None:
    for name, t in (("q", q), ("k", k), ("v", v)):
        if len(t.shape) != 4:
            raise FcError("call/argument", f"argument `{name}` has the wrong number of axes", expected="[batch, heads, length, head size]",
                          got=t.shape)
        if t.dtype not in ("f16", "bf16"):
            raise FcError("call/argument", f"argument `{name}` has the wrong dtype", expected="f16 or bf16", got=t.dtype)
        if t.device != q.device:
            raise FcError("call/argument", f"`q` and `{name}` are on different devices", expected=f"cuda:{q.device}",
                          got=f"cuda:{t.device}")
        if t.dtype != q.dtype:
            raise FcError("call/argument", f"`q` and `{name}` have different dtypes", expected=q.dtype, got=t.dtype)
        if t.shape[3] not in calls.HEADS:
            raise FcError("call/argument", f"the head size of `{name}` is not supported", expected="a multiple of 8 from 8 to 512",
                          got=t.shape[3], hint="pad the last axis with zeros")
    if k.shape[:3] != v.shape[:3]:
        raise FcError("call/argument", "`k` and `v` differ in batch, heads or length", expected=k.shape[:3], got=v.shape[:3])
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise FcError("call/argument", "`q` and `k` differ in batch or head size", expected=(q.shape[0], q.shape[3]),
                      got=(k.shape[0], k.shape[3]))
    if q.shape[1] % k.shape[1] if k.shape[1] else q.shape[1]:
        raise FcError("call/argument", "the heads of `q` are not a multiple of those of `k`", expected=f"a divisor of {q.shape[1]}",
                      got=k.shape[1])


def _scale(scale: Any) -> float:
    if isinstance(scale, (bool, str, bytes, bytearray)):
        raise FcError("call/argument", "argument `scale` is not a number", got=repr(scale))
    try:
        out = float(scale)
    except OverflowError:
        out = math.inf
    except (TypeError, ValueError):
        raise FcError("call/argument", "argument `scale` is not a number", got=repr(scale)) from None
    if not abs(out) <= LARGEST:
        raise FcError("call/argument", "argument `scale` is not finite in float32", expected=f"at most {LARGEST:.7g} in size", got=scale)
    return out


def _mask_word(causal: Any) -> bool | str | None:
    """`causal` as a bool, a string of `MASKS` or None."""
    if isinstance(causal, np.bool_):
        causal = bool(causal)
    if causal is None or type(causal) is bool or (isinstance(causal, str) and causal in MASKS):
        return causal  # type: ignore[no-any-return]
    raise FcError("call/argument", "no such mask", expected='False, True, "top_left" or "bottom_right"', got=repr(causal))


def _mask_kind(causal: bool | str | None, m: int, n: int) -> str:
    if causal is True:
        if m != n:
            raise FcError("call/argument", "causal=True is ambiguous where q and k have different lengths", expected=f"{m} keys", got=n,
                          hint='say causal="top_left" (aligned at the start) or causal="bottom_right" (aligned at the end)')
        return MASKS["top_left"]
    return MASKS[causal or None]
