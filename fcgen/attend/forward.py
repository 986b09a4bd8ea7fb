"""`fcgen.attention`: the library's kernel behind one function, compiled on first use for the GPU that the tensors are on."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np

from ..build.captured import Captured, Family
from ..build.compiler import target, targets
from ..build.program import Program
from ..errors import FcError
from ..ir.schedule import Schedule
from ..lang.captures import identity
from . import calls

MASKS = {None: "none", "none": "none", "top_left": "causal_top_left", "bottom_right": "causal_bottom_right"}
#: of float32. A scale below the first may be 0 to a multiplication: it takes the kernels for a scale of any sign, 0 included.
SMALLEST_NORMAL, LARGEST = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127


def _tracing() -> bool:
    """Is Dynamo reading this? It knows torch's function by its identity and takes it for true; called, it is false."""
    compiler = sys.modules.get("torch.compiler")
    return compiler is not None and compiler.is_dynamo_compiling()


def attention(q: Any, k: Any, v: Any, *, causal: bool | str = False, scale: float | None = None, return_lse: bool = False,
              schedule: Schedule | None = None, out: Any = None, score: Callable[..., Any] | None = None) -> Any:
    """softmax(q k^T * scale) v on the GPU, float32 inside.

    q: [B, H, M, D]; k: [B, Hkv, N, D]; v: [B, Hkv, N, E]; f16 or bf16, any strides with a contiguous last axis; H a multiple of Hkv
    (grouped heads); D and E multiples of 8 from 16 to 256, on Hopper of 32 to 512. causal: "top_left" (key j is seen by row i if j <= i),
    "bottom_right" (j <= i + N - M), or True where M = N and both are the same. Views whose pointers or strides are not multiples of 16
    bytes take a slower kernel with narrower accesses. scale: 1/sqrt(D) if None. Returns [B, H, M, E], and with return_lse the natural
    log-sum-exp [B, H, M] in float32. Rows that see no key give 0 and -inf. out: where to write instead of a new tensor.
    score: a function of fcgen's language (s, b, h, i, j) -> s that changes the scaled scores of row i and key j, a tile of them at a time:
    `lambda s, b, h, i, j: s + bias[h, i, j]`. Numbers and tensors that it holds are read at each call.

    Raises FcError "call/argument" before anything is launched. The algorithm is FlashAttention-2's (Dao, 2023).
    """
    if score is not None or _tracing():
        return _beside(q, k, v, causal, scale, return_lse, schedule, out, score)
    if scale is not None and type(scale) is not float:
        scale = _scale(scale)
    for last in calls.recent:
        if (last.causal is causal and last.scale == scale and last.return_lse is return_lse and last.schedule is schedule
                and last.given is (out is not None) and calls.forward_ad._current_level < 0):
            try:
                alike = not (q.is_nested or k.is_nested or v.is_nested) and (
                    last.guard(q, k, v) if out is None else not out.is_nested and last.guard(q, k, v, out))
            except AttributeError:  # not torch's tensors
                break
            if alike:
                return last.run(q, k, v, out)
    return _found(q, k, v, causal, scale, bool(return_lse), schedule, out)


def _beside(q: Any, k: Any, v: Any, causal: Any, scale: Any, return_lse: Any, schedule: Any, out: Any, score: Any) -> Any:
    """A call in a graph of torch.compile, or with a score function."""
    if _tracing():
        from .torch_op import traced

        return traced(q, k, v, causal, scale, return_lse, schedule, out, score)
    if not callable(score):
        raise FcError("call/argument", "argument `score` is not a function", expected="lambda s, b, h, i, j: s", got=repr(score)[:80])
    q, k, v = (_without_gradient(t) for t in (q, k, v))
    scale = None if scale is None else _scale(scale)
    return _checked(q, k, v, _mask_word(causal), scale, bool(return_lse), schedule, out, score)


def _found(q: Any, k: Any, v: Any, causal: Any, scale: float | None, return_lse: bool, schedule: Schedule | None, out: Any) -> Any:
    """A call that is not like the last one."""
    global _tracing
    if "torch.compiler" in sys.modules:
        _tracing = sys.modules["torch.compiler"].is_dynamo_compiling  # cheaper than to look for it each time
    if scale is not None:
        scale = _scale(scale)
    if causal is not False and causal is not True:
        causal = _mask_word(causal)
    options = (causal, return_lse, None if schedule is None else id(schedule), out is not None)
    result = calls.run(options, q, k, v, out, scale)
    if result is not None:
        return result
    q, k, v = (_without_gradient(t) for t in (q, k, v))
    result = _checked(q, k, v, causal, scale, return_lse, schedule, out)

    def program(dtype: str, device: int, q: Any, k: Any, e: int, mask: str, scale: float) -> Program:
        return _program(dtype, device, q, k, e, mask, scale, return_lse, schedule)

    def checked(q: Any, k: Any, v: Any, scale: float, out: Any) -> Any:
        return _checked(q, k, v, causal, scale, return_lse, schedule, out)

    mask = MASKS["top_left"] if causal is True else MASKS[causal or None]
    calls.learn(options, calls.Options(mask, causal is True, program, checked, causal, return_lse, schedule), q, k, v, out)
    return result


def _without_gradient(x: Any) -> Any:
    """Under torch.no_grad(), a tensor that requires grad is only its values."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor) and x.requires_grad and not torch.is_grad_enabled():
        return x.detach()
    return x


def _checked(q: Any, k: Any, v: Any, causal: bool | str | None, scale: float | None, return_lse: bool, schedule: Schedule | None,
             out: Any, score: Any = None) -> Any:
    """A call whose arguments may be anything."""
    from ..runtime import tensors
    from .grouped import packed

    qa, ka, va = tensors.describe(q, "q"), tensors.describe(k, "k"), tensors.describe(v, "v")
    _check_shapes(qa, ka, va)
    kind = _mask_kind(causal, qa.shape[2], ka.shape[2])
    scale = 1.0 / math.sqrt(qa.shape[3]) if scale is None else scale
    shape = (*qa.shape[:3], va.shape[3])
    if out is not None:
        _check_out(tensors.describe(out, "out"), shape, qa, ka, va)
    o = _empty(q, shape, None) if out is None else out
    lse = _empty(q, shape[:3], "float32") if return_lse else None
    filled = ka.shape[2] == 0 and _fill(o, 0.0) and (lse is None or _fill(lse, -math.inf))
    if 0 not in shape and not filled:
        given = {"Q": qa, "K": ka, "V": va, "O": tensors.describe(o, "out")} | ({"LSE": tensors.describe(lse, "lse")} if return_lse else {})
        rows = packed(given, kind) if score is None else None
        if rows is not None:
            given, kind = rows, "none"
        aligned = all(_in_lines(a) for n, a in given.items() if n != "LSE")
        sizes = qa.device, given["Q"].shape, ka.shape, va.shape[3], kind, scale
        if score is None:
            _program(qa.dtype, *sizes, return_lse, schedule, aligned).launcher({**given, "scale": scale})
        else:
            facts = qa.dtype, qa.shape[3], va.shape[3], kind, return_lse
            family = _scored(score, facts, _chosen(*sizes, schedule, aligned), schedule is not None)
            family.run({"score": score}, {**given, "scale": scale})
        tensors.written(o)
    return (o, lse) if return_lse else o


def _in_lines(a: Any) -> bool:
    """Whether bulk copies can move a tensor: its pointer and strides are multiples of 16 bytes."""
    from ..ir.alignment import WIDEST, of_arguments

    return all(n == WIDEST for n in of_arguments(a.ptr, a.shape, a.strides, 2).words)


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


def _scored(score: Any, facts: tuple[Any, ...], choice: tuple[str, Schedule, bool, float | None, str], given: bool) -> Family:
    """The programs with a score function. given: the schedule is the caller's; else its tiles shrink until the function has room."""
    key = identity(score), *facts, *choice
    if key not in _with_score:
        arch, schedule, *rest = choice
        while True:
            program = cast(Captured, compiled.__wrapped__(*facts, arch, schedule, *rest, score=score))
            tiles = dict(schedule.tiles)
            columns = tiles.get("BLOCK_N", 0) // 2
            if given or not columns or columns % 16 or _fits(program.first):
                break
            schedule = replace(schedule, tiles={**tiles, "BLOCK_N": columns})
        if len(_with_score) >= 256:
            _with_score.clear()
        _with_score[key] = program.family
    return _with_score[key]


_with_score: dict[Any, Family] = {}


@functools.lru_cache(maxsize=256)
def _fits(program: Program) -> bool:
    """Whether a program has registers and memory enough."""
    program.quiet = True
    try:
        return not program.resources.spills
    except FcError as e:
        if e.code != "compile/budget":
            raise
        return False


def lazy_of(schedule: Schedule) -> float:
    """The spec's option `lazy` for a schedule that is not the library's."""
    from ..kernels.hopper_schedules import LAZY

    return LAZY if schedule.vote or schedule.skip_ones else 0.0


def sums_of(schedule: Schedule, lazy: float) -> str:
    """The spec's option `sums` for a schedule that is not the library's: with a stale maximum, one that knows of the weights' rounding."""
    return "exact" if not lazy else "rounded" if schedule.ones else "corrected"


@functools.lru_cache(maxsize=1024)
def compiled(dtype: str, d: int, e: int, mask: str, lse: bool, arch: str, schedule: Schedule | None = None,
             positive: bool = True, lazy: float | None = None, sums: str = "", check: bool | None = None, score: Any = None) -> Program:
    """The program that `attention` runs for these compile-time facts. mask: "none", "causal_top_left", "causal_bottom_right". lazy: how far
    (in powers of e) a row's maximum may have moved before what was summed is scaled to it, if not `lazy_of`; sums: the kind of sum that
    goes with it, if not `sums_of`. check: it is tried in the simulator when it is compiled first; if None, where the schedule is
    not the library's."""
    from ..ir.types import DTYPES
    from ..kernels.attention import attention as spec
    from ..kernels.schedules import pick, shipped

    chosen = schedule or pick(arch, max(d, e), "wgmma" if arch == "sm_90a" else "mma", mask)
    lazy = lazy_of(chosen) if lazy is None else lazy
    ours = chosen in shipped() and score is None
    more = {**({} if lse else {"LSE": None}), **({} if score is None else {"score": score})}
    program = spec.compile(target=arch, schedule=chosen, check=not ours if check is None else check, T=DTYPES[dtype], D=d, E=e, mask=mask,
                           positive=positive, lazy=lazy, sums=sums or sums_of(chosen, lazy), **more)
    program.quiet = chosen in shipped()
    return program


@functools.lru_cache(maxsize=64)
def _arch(device: int, schedule: Schedule | None = None) -> str:
    """The target whose code runs on a device: the one with its own instructions (sm_90a) unless a schedule of the caller's does without
    them; else its architecture's common one."""
    from ..runtime import driver

    own = driver.device_info(device).arch
    if own in targets() and (schedule is None or "wgmma" in str(schedule.math)):
        return own
    return target(own.rstrip("a")).arch


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
            raise FcError("call/argument", f"the head size of `{name}` is not supported", got=t.shape[3],
                          expected="a multiple of 8 from 16 to 256, on Hopper of 32 to 512", hint="pad the last axis with zeros")
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


def _fill(x: Any, value: float) -> bool:
    """Fill a tensor of torch or CuPy; False where its library is not known."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and isinstance(x, torch.Tensor):
        with torch.no_grad():
            x.fill_(value)
        return True
    if cupy is not None and isinstance(x, cupy.ndarray):
        x.fill(value)
        return True
    return False


def _empty(like: Any, shape: tuple[int, ...], dtype: str | None) -> Any:
    """A new tensor of the caller's library, on the caller's device."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        if dtype is None and shape == tuple(like.shape):
            return torch.empty_like(like, requires_grad=False)
        return torch.empty(shape, dtype=getattr(torch, dtype) if dtype else like.dtype, device=like.device)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(like, cupy.ndarray):
        return cupy.empty(shape, dtype=dtype or like.dtype)
    raise FcError("call/argument", f"cannot make an output tensor for a {type(like).__name__}",
                  hint="pass `out`; for the log-sum-exp, call the compiled program with an LSE tensor of your own")
