"""Which keys a row sees: functions `mask_mod(b, h, q_idx, kv_idx) -> condition`, as FlexAttention has them, ready-made and combined.

    causal() & window(1023) & documents(ids)        prefix(lengths) | causal()        ~padding(lengths)
    @fcgen.masks.mask
    def mine(b, h, q_idx, kv_idx): return (q_idx // n == kv_idx // n) | (kv_idx == 0)

`b` and `h` are numbers of the program, `q_idx` and `kv_idx` the positions of a tile of rows and of keys. What a function holds is read at
each call: another number, length or tensor compiles nothing. Tiles in which a mask holds nowhere are left out and those in which it
holds everywhere are not masked, as far as that follows from positions and numbers; where elements of tensors decide, a kernel finds out
(`fcgen.blocks`). Everything here is written in fcgen's language, as a user's own mask would be.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

from .errors import FcError
from .ir.types import i1
from .lang.functions import positive
from .lang.handles import Handle
from .lang.trace import place_in

WRITTEN_IN_THE_LANGUAGE = True

MaskMod = Callable[[Any, Any, Any, Any], Any]
#: what tensors of a function cover: (argument, how many, of 0 batches, 1 heads, 2 rows, 3 keys). Calls with more are refused.
Sizes = tuple[tuple[str, int, int], ...]


class Mask:
    """A mask function that combines: `a & b`, `a | b`, `~a`. `str(mask)` draws its tiles, `mask.plot(file)` saves a picture."""

    def __init__(self, fn: MaskMod, called: str = "", sizes: Sizes = ()):
        _check(fn)
        self.fn, self.called, self.sizes = fn, called or getattr(fn, "__name__", "mask"), sizes

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        out = self.fn(b, h, q_idx, kv_idx)
        if not isinstance(out, bool) and not (isinstance(out, Handle) and out.dtype == i1):
            raise wrong_result("mask", self.fn, "a condition", out)
        return out

    def __and__(self, other: MaskMod) -> Mask:
        return and_masks(self, other)

    def __rand__(self, other: MaskMod) -> Mask:
        return and_masks(other, self)

    def __or__(self, other: MaskMod) -> Mask:
        return or_masks(self, other)

    def __ror__(self, other: MaskMod) -> Mask:
        return or_masks(other, self)

    def __invert__(self) -> Mask:
        inner = self
        return Mask(lambda b, h, q_idx, kv_idx: ~inner(b, h, q_idx, kv_idx), f"~{self.called}", self.sizes)

    def __repr__(self) -> str:
        return f"<mask {self.called}>"

    def __str__(self) -> str:
        return self.drawn()

    def drawn(self, rows: int = 512, keys: int | None = None, *, b: int = 0, h: int = 0, tile: tuple[int, int] | None = None) -> str:
        """The tiles of a mask as text: `█` full, `▒` partial, `·` empty. rows, keys: lengths; tile: rows and keys of one."""
        from .attend.tilemap import tile_map

        return str(tile_map(self, rows, rows if keys is None else keys, b=b, h=h, tile=tile))

    def plot(self, file: Any, rows: int = 512, keys: int | None = None, *, b: int = 0, h: int = 0,
             tile: tuple[int, int] | None = None) -> None:
        """Save a picture of the mask and its tiles (needs matplotlib: `pip install fcgen[plot]`)."""
        from .attend.tilemap import tile_map

        tile_map(self, rows, rows if keys is None else keys, b=b, h=h, tile=tile).plot(file)


def mask(fn: MaskMod) -> Mask:
    """Decorator: a function (b, h, q_idx, kv_idx) -> condition as a mask that combines."""
    return Mask(fn)


def takes(fn: Any, count: int) -> bool:
    """Whether this is a plain function of so many arguments. (To ask for its signature takes ten times as long.)"""
    code = fn.__code__ if type(fn) is FunctionType else None
    return code is not None and code.co_argcount == count and not code.co_kwonlyargcount


def _check(fn: Any) -> None:
    if takes(fn, 4):
        return
    try:
        inspect.signature(fn).bind(0, 0, 0, 0)
    except (TypeError, ValueError) as e:
        code = getattr(fn, "__code__", None)
        raise FcError("call/argument", "this is not a mask", expected="a function (b, h, q_idx, kv_idx) -> condition", got=str(e),
                      notes=[f"{code.co_filename}:{code.co_firstlineno}"] if code else []) from None


def wrong_result(what: str, fn: Any, expected: str, got: Any) -> FcError:
    """What a function returned is not what it should be: told at the function."""
    code = getattr(fn, "__code__", None)
    return FcError("trace/dtype", f"the {what} function returns something else than {expected}", expected=expected, got=repr(got)[:80],
                   loc=None if code is None else place_in(code, 0))


def _number(name: str, x: Any, least: int | None = None) -> Any:
    """A whole number (at least so large), or a tensor of one per batch; refused where it is neither."""
    if isinstance(x, bool) or not (hasattr(x, "__index__") or (hasattr(x, "shape") and hasattr(x, "dtype"))):
        raise FcError("call/argument", f"argument `{name}` of a mask is not a whole number", expected="an int, or an int tensor per batch",
                      got=repr(x)[:80])
    if hasattr(x, "shape") and len(x.shape):
        return x
    if least is not None and int(x) < least:
        raise FcError("call/argument", f"argument `{name}` of a mask is too small", expected=f"{least} or more", got=repr(x)[:80])
    return int(x)


def _each(**given: Any) -> Sizes:
    """What those of some numbers cover that are tensors with one per batch."""
    return tuple((name, x.shape[0], 0) for name, x in given.items() if hasattr(x, "shape"))


def _of(x: Any, b: Any) -> Any:
    """A number, or an element of one per batch."""
    return x[b] if hasattr(x, "shape") else x


# ---- combined --------------------------------------------------------------------------------------------------------------


def and_masks(*masks: MaskMod) -> Mask:
    """Where all of them hold."""
    given = tuple(m if isinstance(m, Mask) else Mask(m) for m in masks)

    def all_of(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        out: Any = True
        for n, m in enumerate(given):
            out = m(b, h, q_idx, kv_idx) if n == 0 else out & m(b, h, q_idx, kv_idx)
        return out

    return Mask(all_of, " & ".join(m.called for m in given), sum([m.sizes for m in given], ()))


def or_masks(*masks: MaskMod) -> Mask:
    """Where one of them holds."""
    given = tuple(m if isinstance(m, Mask) else Mask(m) for m in masks)

    def one_of(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        out: Any = False
        for n, m in enumerate(given):
            out = m(b, h, q_idx, kv_idx) if n == 0 else out | m(b, h, q_idx, kv_idx)
        return out

    return Mask(one_of, " | ".join(m.called for m in given), sum([m.sizes for m in given], ()))


# ---- ready-made ------------------------------------------------------------------------------------------------------------


def everything() -> Mask:
    """Every row sees every key."""
    return Mask(lambda b, h, q_idx, kv_idx: True, "everything")


def causal(shift: Any = 0) -> Mask:
    """Row i sees key j if j <= i + shift. shift: 0 aligns at the start ("top_left"), keys - rows at the end ("bottom_right"); a number,
    or one per batch."""
    shift = _number("shift", shift)
    return Mask(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx + _of(shift, b), "causal", _each(shift=shift))


def window(left: int | None = None, right: int | None = None, shift: Any = 0) -> Mask:
    """Row i sees the keys from i + shift - left to i + shift + right; None: no end on that side."""
    if left is None and right is None:
        return everything()
    shift = _number("shift", shift)
    lo, hi = None if left is None else _number("left", left), None if right is None else _number("right", right)

    def inside(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        at = q_idx + _of(shift, b)
        if lo is None:
            return kv_idx <= at + hi
        if hi is None:
            return kv_idx >= at - lo
        return (kv_idx >= at - lo) & (kv_idx <= at + hi)

    return Mask(inside, "window", _each(shift=shift))


def prefix(length: Any) -> Mask:
    """Every row sees the first keys. length: how many, a number or a tensor with one per batch. `prefix(n) | causal()` is a prefix LM."""
    length = _number("length", length)
    return Mask(lambda b, h, q_idx, kv_idx: kv_idx < _of(length, b), "prefix", _each(length=length))


def padding(keys: Any, rows: Any = None) -> Mask:
    """Keys at or past a batch's number of keys are seen by nobody, rows at or past its number of rows see nothing. Tensors with one number
    per batch, or numbers."""
    keys = _number("keys", keys)
    if rows is None:
        return Mask(lambda b, h, q_idx, kv_idx: kv_idx < _of(keys, b), "padding", _each(keys=keys))
    rows = _number("rows", rows)
    return Mask(lambda b, h, q_idx, kv_idx: (kv_idx < _of(keys, b)) & (q_idx < _of(rows, b)), "padding", _each(keys=keys, rows=rows))


def left_padding(keys: Any) -> Mask:
    """A batch's first keys, so many as it says, are seen by nobody: a tensor with one number per batch, or a number."""
    keys = _number("keys", keys)
    return Mask(lambda b, h, q_idx, kv_idx: kv_idx >= _of(keys, b), "left_padding", _each(keys=keys))


def documents(ids: Any, key_ids: Any = None) -> Mask:
    """Rows see the keys of their own document. ids: int tensor [rows] or [B, rows], the document of each; key_ids: of each key, if
    these are not the rows."""
    rows, keys = _ids("ids", ids), _ids("key_ids", ids if key_ids is None else key_ids)
    r, k = len(rows.shape) == 2 and rows.shape[0] > 1, len(keys.shape) == 2 and keys.shape[0] > 1
    rows, keys = _flat(rows), _flat(keys)

    def same(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (rows[b, q_idx] if r else rows[q_idx]) == (keys[b, kv_idx] if k else keys[kv_idx])

    sizes = [(name, n, axis) for name, x, last in (("ids", rows, 2), ("key_ids", keys, 3))
               for n, axis in zip(reversed(x.shape), (last, 0))]
    return Mask(same, "documents", tuple(sizes))


def _ids(name: str, x: Any) -> Any:
    if not (hasattr(x, "shape") and hasattr(x, "dtype") and len(x.shape) in (1, 2) and "int" in str(x.dtype)):
        raise FcError("call/argument", f"argument `{name}` of a mask is no tensor of document numbers", got=repr(x)[:80],
                      expected="an int tensor [rows] or [B, rows]")
    return x


def _flat(x: Any) -> Any:
    return x[0] if len(x.shape) == 2 and x.shape[0] == 1 else x


def dilated(step: int, left: int | None = None, right: int | None = None) -> Mask:
    """Every `step`-th key, counted from the row's own; with left and right, inside that window."""
    step = _number("step", step, 1)
    every = Mask(lambda b, h, q_idx, kv_idx: (q_idx - kv_idx) % step == 0, "dilated")
    return every if left is None and right is None else window(left, right) & every


def neighbourhood(shape: tuple[int, ...], radius: int | tuple[int, ...]) -> Mask:
    """Positions are those of a grid of two or three axes, row by row; a row sees the keys that are at most `radius` away along each."""
    shape = tuple(_number("shape", n, 1) for n in (shape if isinstance(shape, (tuple, list)) else (shape,)))
    far = tuple(_number("radius", r, 0) for r in (radius if isinstance(radius, tuple) else (radius,) * len(shape)))
    if len(shape) not in (1, 2, 3) or len(far) != len(shape):
        raise FcError("call/argument", "a neighbourhood is of one to three axes", expected="shape=(32, 32), radius=3 or (3, 5)",
                      got=f"shape={shape}, radius={radius}")

    def near(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        out: Any = None
        size: Any = None
        for n in reversed(range(len(shape))):
            i, j = (q_idx, kv_idx) if size is None else (q_idx // positive(size), kv_idx // size)
            if n:
                i, j = i % positive(shape[n]), j % shape[n]
            close = abs(i - j) <= far[n]
            out = close if out is None else close & out
            size = shape[n] if size is None else size * shape[n]
        return out

    return Mask(near, f"neighbourhood of {len(shape)} axes")


def block_sparse(layout: Any, block: int | tuple[int, int] = 128) -> Mask:
    """Blocks of rows and keys, each seen or not. layout: int8, uint8 or int32 tensor [B or 1, H or 1, row blocks, key blocks], or without
    the first axes; other than 0 means seen. block: rows and keys of one."""
    bm, bn = (_number("block", n, 1) for n in (block if isinstance(block, tuple) else (block, block)))
    if not hasattr(layout, "shape") or not 2 <= len(layout.shape) <= 4 or "bool" in str(layout.dtype):
        raise FcError("call/argument", "argument `layout` of a mask is no tensor of blocks", got=repr(layout)[:80],
                      expected="an int tensor [B or 1, H or 1, row blocks, key blocks]", hint="layout.to(torch.int8)")
    seen, at = _broadcast(layout)
    return Mask(lambda b, h, q_idx, kv_idx: at(seen, b, h, q_idx // bm, kv_idx // bn) != 0, "block_sparse",
                _covered("layout", layout, (bm, bn)))


def _covered(name: str, x: Any, by: tuple[int, int] = (1, 1)) -> Sizes:
    """What a tensor of `_broadcast` covers. by: rows and keys of an element."""
    return tuple((name, n * (1, 1, *by)[axis], axis) for n, axis in zip(reversed(x.shape), (3, 2, 1, 0)) if n > 1 or axis == 3)


def _broadcast(x: Any) -> tuple[Any, Callable[..., Any]]:
    """A tensor of [B or 1, H or 1, M or 1, N], or of its last axes, without the axes of one, and how to read it at (b, h, i, j)."""
    used = [n > 1 for n in x.shape[:-1]] + [True]
    for axis in reversed(range(len(used))):
        if not used[axis]:
            x = x[(slice(None),) * axis + (0,)]
    given = (False,) * (4 - len(used)) + tuple(used)
    one, two, three, _ = given

    def at(x: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return x[tuple(p for p, there in ((b, one), (h, two), (i, three), (j, True)) if there)]

    return x, at
