"""`fcgen.attention`: the library's kernel behind one function, compiled on first use for the GPU that the tensors are on."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

from .compiler import target, targets
from .errors import FcError
from .ir.schedule import Schedule
from .program import Program

MASKS = {None: "none", "none": "none", "top_left": "causal_top_left", "bottom_right": "causal_bottom_right"}
HEADS = range(16, 257, 8)


def attention(q: Any, k: Any, v: Any, *, causal: bool | str = False, scale: float | None = None, return_lse: bool = False,
              schedule: Schedule | None = None, out: Any = None) -> Any:
    """softmax(q k^T * scale) v on the GPU, float32 inside.

    q: [B, H, M, D]; k: [B, Hkv, N, D]; v: [B, Hkv, N, E]; f16 or bf16, any strides with a contiguous last axis; H a multiple of Hkv
    (grouped heads); D and E multiples of 8 from 16 to 256. causal: "top_left" (key j is seen by row i if j <= i), "bottom_right"
    (j <= i + N - M), or True where M = N and both are the same. Views whose pointers or strides are not multiples of 16 bytes take a slower
    kernel with narrower accesses. scale: 1/sqrt(D) if None. Returns [B, H, M, E], and with return_lse the
    natural log-sum-exp [B, H, M] in float32. Rows that see no key give 0 and -inf. out: where to write instead of a new tensor.

    Raises FcError "call/argument" before anything is launched. The algorithm is FlashAttention-2's (Dao, 2023).
    """
    if scale is not None and type(scale) is not float:
        scale = _scale(scale)
    try:
        key = (q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride(), q.dtype, k.dtype, v.dtype, q.device, k.device, v.device,
               causal, scale, return_lse, None if schedule is None else id(schedule),
               None if out is None else (out.shape, out.stride(), out.dtype, out.device))
        known = _KNOWN.get(key)
    except (AttributeError, TypeError):  # not torch tensors: no short way
        return _checked(q, k, v, causal, scale, return_lse, schedule, out)
    if known is not None:
        return known(q, k, v, out)
    result = _checked(q, k, v, causal, scale, return_lse, schedule, out)
    _remember(key, q, k, v, causal, scale, return_lse, schedule, result)
    return result


def _checked(q: Any, k: Any, v: Any, causal: bool | str, scale: float | None, return_lse: bool, schedule: Schedule | None, out: Any) -> Any:
    """A call whose arguments may be anything."""
    from .runtime import tensors

    qa, ka, va, kind, scale = _described(q, k, v, causal, scale)
    shape = (*qa.shape[:3], va.shape[3])
    if out is not None:
        oa = tensors.describe(out, "out")
        tensors.check(oa, name="out", dtype=qa.dtype, shape=shape, device=qa.device)
        if oa.readonly:
            raise FcError("call/argument", "argument `out` is written, but its owner says it is read-only")
    o = _empty(q, shape, None) if out is None else out
    lse = _empty(q, shape[:3], "float32") if return_lse else None
    filled = ka.shape[2] == 0 and _fill(o, 0.0) and (lse is None or _fill(lse, -math.inf))
    if 0 not in shape and not filled:
        program, arguments = _call(qa, ka, va, o, lse, kind, scale, schedule)
        program.launcher(arguments)
    return (o, lse) if return_lse else o


def _call(qa: Any, ka: Any, va: Any, o: Any, lse: Any, kind: str, scale: float,
          schedule: Schedule | None) -> tuple[Program, dict[str, Any]]:
    """(the program, its arguments) of a call on these tensors; heads that share keys are rows of one where the mask allows it."""
    from .grouped import packed
    from .runtime import tensors

    given = {"Q": qa, "K": ka, "V": va, "O": tensors.describe(o, "out")} | ({} if lse is None else {"LSE": tensors.describe(lse, "lse")})
    rows = packed(given, kind)
    if rows is not None:
        given, kind = rows, "none"
    aligned = all(_in_lines(a) for n, a in given.items() if n != "LSE")
    return _program(given["Q"], ka, va, kind, scale, lse is not None, schedule, aligned), {**given, "scale": scale}


def _in_lines(a: Any) -> bool:
    """Whether bulk copies can move a tensor: its pointer and strides are multiples of 16 bytes."""
    from .ir.alignment import WIDEST, of_arguments

    return all(n == WIDEST for n in of_arguments(a.ptr, a.shape, a.strides, 2).words)


def _described(q: Any, k: Any, v: Any, causal: Any, scale: float | None) -> tuple[Any, Any, Any, str, float]:
    """The three tensors' facts, checked, the mask's kind and the scale."""
    from .runtime import tensors

    qa, ka, va = tensors.describe(q, "q"), tensors.describe(k, "k"), tensors.describe(v, "v")
    _check_shapes(qa, ka, va)
    kind = _mask_kind(causal, qa.shape[2], ka.shape[2])
    return qa, ka, va, kind, 1.0 / math.sqrt(qa.shape[3]) if scale is None else _scale(scale)


def _program(qa: Any, ka: Any, va: Any, kind: str, scale: float, return_lse: bool, schedule: Schedule | None, aligned: bool) -> Program:
    """The program for these arguments. aligned: bulk copies can move them; else they are read by a kernel that makes none."""
    arch = _arch(qa.device, schedule)
    if schedule is None:
        arch = arch if aligned else target(arch.rstrip("a")).arch
        from .kernels.schedules import choose
        from .runtime import driver

        chosen, lazy, sums = choose(arch, qa.shape, ka.shape, va.shape[3], kind, driver.device_info(qa.device).sm_count,
                                    scale > 0)
    else:
        from .kernels.hopper_schedules import LAZY

        chosen, lazy = schedule, LAZY if schedule.vote or schedule.skip_ones else 0.0
        sums = sums_of(schedule, lazy)
    return compiled(qa.dtype, qa.shape[3], va.shape[3], kind, bool(return_lse), arch, chosen, scale > 0, lazy, sums)


#: what a call looks like -> the call with everything decided but the pointers
_KNOWN: dict[tuple[Any, ...], Callable[[Any, Any, Any, Any], Any]] = {}
ORDER = ("Q", "K", "V", "O", "LSE", "scale")


def _remember(key: tuple[Any, ...], q: Any, k: Any, v: Any, causal: bool | str, scale: float | None, return_lse: bool,
              schedule: Schedule | None, result: Any) -> None:
    """After a call that went well: the next one like it only reads pointers. Only for torch tensors, on a GPU."""
    from .runtime import tensors

    torch = sys.modules.get("torch")
    raw_stream = getattr(getattr(torch, "_C", None), "_cuda_getCurrentRawStream", None)
    if torch is None or raw_stream is None or not all(isinstance(t, torch.Tensor) and t.is_cuda for t in (q, k, v)):
        return
    qa, ka, va, kind, scale = _described(q, k, v, causal, scale)
    if 0 in qa.shape or 0 in ka.shape:
        return
    o, lse = result if return_lse else (result, None)
    with_lse = bool(return_lse)
    program, arguments = _call(qa, ka, va, o, lse, kind, scale, schedule)
    launcher = program.launcher
    if launcher.order != tuple(n for n in ORDER if n != "LSE" or with_lse):
        return
    plan, values, device = launcher.resolve(arguments)
    if any(p & 15 for p in values[:-1]):
        return
    # empty_strided takes half the time of empty, which has a memory format to think about
    empty, empty_like = torch.empty_strided, torch.empty_like
    shape, rows, dtype, where, f32 = tuple(o.shape), tuple(o.shape[:3]), q.dtype, q.device, torch.float32
    packed, packed_rows = (tensors.row_major(s) for s in (shape, rows))
    alike, launch = shape == tuple(q.shape), plan.launch

    def known(q: Any, k: Any, v: Any, out: Any) -> Any:
        o = out if out is not None else empty_like(q) if alike else empty(shape, packed, dtype=dtype, device=where)
        a, b, c, d = q.data_ptr(), k.data_ptr(), v.data_ptr(), o.data_ptr()
        if (a | b | c | d) & 15:
            return _checked(q, k, v, causal, scale, return_lse, schedule, out)
        if not with_lse:
            launch(raw_stream(device), (a, b, c, d, scale))
            return o
        lse = empty(rows, packed_rows, dtype=f32, device=where)
        launch(raw_stream(device), (a, b, c, d, lse.data_ptr(), scale))
        return (o, lse) if return_lse else o

    if len(_KNOWN) >= 4096:
        _KNOWN.clear()
    _KNOWN[key] = known


def sums_of(schedule: Schedule, lazy: float) -> str:
    """The spec's option `sums` for a schedule that is not the library's: with a stale maximum, one that knows of the weights' rounding."""
    return "exact" if not lazy else "rounded" if schedule.ones else "corrected"


@functools.lru_cache(maxsize=1024)
def compiled(dtype: str, d: int, e: int, mask: str, lse: bool, arch: str, schedule: Schedule | None = None,
             positive: bool = True, lazy: float = 0.0, sums: str = "") -> Program:
    """The program that `attention` runs for these compile-time facts. mask: "none", "causal_top_left", "causal_bottom_right". lazy: how far
    (in powers of e) a row's maximum may have moved before what was summed is scaled to it; sums: the kind of sum that goes with it, if not
    `sums_of`."""
    from .ir.types import DTYPES
    from .kernels.attention import SPECS
    from .kernels.schedules import pick

    chosen = schedule or pick(arch, max(d, e), "wgmma" if arch == "sm_90a" else "mma", mask)
    spec = SPECS[("" if positive else "any_scale_") + ("lse" if lse else "plain")]
    return spec.compile(target=arch, schedule=chosen, T=DTYPES[dtype], D=d, E=e, mask=mask, lazy=lazy, sums=sums or sums_of(chosen, lazy))


@functools.lru_cache(maxsize=64)
def _arch(device: int, schedule: Schedule | None = None) -> str:
    """The target whose code runs on a device: the one with its own instructions (sm_90a) unless a schedule of the caller's does without
    them; else its architecture's common one."""
    from .runtime import driver

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
        if t.shape[3] not in HEADS:
            raise FcError("call/argument", f"the head size of `{name}` is not supported", expected="a multiple of 8 from 16 to 256",
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
    try:
        out = float(scale)
    except (TypeError, ValueError):
        raise FcError("call/argument", "argument `scale` is not a number", got=repr(scale)) from None
    if not math.isfinite(out):
        raise FcError("call/argument", "argument `scale` is not finite", got=scale)
    return out


def _mask_kind(causal: Any, m: int, n: int) -> str:
    if type(causal).__name__ in ("bool", "bool_"):  # NumPy's too
        if not causal:
            return "none"
        if m != n:
            raise FcError("call/argument", "causal=True is ambiguous where q and k have different lengths", expected=f"{m} keys", got=n,
                          hint='say causal="top_left" (aligned at the start) or causal="bottom_right" (aligned at the end)')
        return MASKS["top_left"]
    if not (causal is None or isinstance(causal, str)) or causal not in MASKS:
        raise FcError("call/argument", "no such mask", expected='False, True, "top_left" or "bottom_right"', got=repr(causal))
    return MASKS[causal]


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
