"""`flex_attention` in a graph of torch.compile: functions written as text, and what they hold as the operator's own arguments.

A function is its code, which stands in a table of this process, and what its closure holds: tensors and numbers, which are inputs of the
graph, functions, and those attributes of objects that it names. Guaranteed: one graph for all lengths, tensors and numbers; each call
computes with what its function holds then. Made inside of the compiled function, a closure is not there to be read: that is refused, as is
what cannot be written, and export.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import FcError
from ..masks import Mask
from ..scores import Score
from . import block_masks
from .core import define, learnt, like_q, refuse, rows_of, wants_gradient
from .variants import Held

#: code, and the module whose globals it reads
_codes: list[tuple[types.CodeType, str]] = []
#: names of attributes
_attributes: list[tuple[str, ...]] = []
#: lists of blocks -> (what they and the function were, whether the function says them all)
_seen: Any = WeakTensorKeyDictionary()


@torch._dynamo.assume_constant_result  # (a code object is a constant of the graph, and guarded as one)
def _number_of(code: types.CodeType, module: str) -> int:
    held = sys.modules[module].__dict__
    for name in _names(code):
        x = held.get(name)
        if isinstance(x, torch.Tensor) and x.requires_grad and torch.is_grad_enabled():
            raise FcError("call/argument", "a function in a graph reads a global tensor that requires grad: no gradient would reach it",
                          expected="a tensor that its closure holds", got=name, hint="hold it in a closure, or pass its .detach()")
    known = (code, module)
    if known not in _codes:
        _codes.append(known)
    return _codes.index(known)


def _names(code: types.CodeType) -> tuple[str, ...]:
    """What code, and what is written in it, names: globals and attributes."""
    inner = [name for c in code.co_consts if isinstance(c, types.CodeType) for name in _names(c)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))


_names_of = torch._dynamo.assume_constant_result(_names)


@torch._dynamo.assume_constant_result
def _number_of_attributes(*names: str) -> int:
    if names not in _attributes:
        _attributes.append(names)
    return _attributes.index(names)


def _written(x: Any, tensors: list[Any], whole: list[Any], real: list[Any], names: tuple[str, ...] = ()) -> str:
    """A function or what one holds as text; tensors and numbers go into the lists. names: what the function that holds it names."""
    if isinstance(x, torch.Tensor):
        tensors.append(x)
        return f"t{len(tensors) - 1}"
    if x is None or isinstance(x, bool):
        return repr(x)
    if isinstance(x, int):
        whole.append(x)
        return f"i{len(whole) - 1}"
    if isinstance(x, float):
        real.append(x)
        return f"r{len(real) - 1}"
    if isinstance(x, (tuple, list)):
        return "(" + "".join([_written(y, tensors, whole, real, names) + "," for y in x]) + ")"
    if isinstance(x, (Mask, Score)):
        return _written(x.fn, tensors, whole, real)
    if isinstance(x, (str, type, dict, types.ModuleType, types.MethodType, types.BuiltinFunctionType)):
        refuse("what a function holds cannot be written into a graph", "tensors, numbers, functions, tuples and objects of them",
               type(x).__name__, "call it outside of torch.compile, or capture the numbers and tensors in it")
    if not isinstance(x, types.FunctionType):
        own = [name for name in names if hasattr(x, name)]
        out = f"o{_number_of_attributes(*own)}("
        for name in own:
            out += _written(getattr(x, name), tensors, whole, real, names) + ","
        return out + ")"
    try:
        cells, defaults = x.__closure__ or (), x.__defaults__
    except AttributeError:
        refuse("a function that is made inside of the compiled function cannot be read while that is traced", "one that is made before",
               x.__name__, "make it outside, or pass what it holds as a tensor")
    if defaults:
        refuse("a function with default arguments cannot be written into a graph", "a closure", x.__name__)
    out, names = f"f{_number_of(x.__code__, x.__module__)}(", _names_of(x.__code__)
    for cell in cells:
        out += _written(cell.cell_contents, tensors, whole, real, names) + ","
    return out + ")"


_TOKEN = re.compile(r"([tirfo])(\d+)|(None|True|False)|([(),])")


def _read(text: str, tensors: Any, whole: Any, real: Any) -> Any:
    """What `_written` wrote."""
    return _one(_TOKEN.finditer(text), tensors, whole, real)


def _one(tokens: Iterator[re.Match[str]], *lists: Any) -> Any:
    token = next(tokens)
    kind, number, constant, mark = token.groups()
    if constant:
        return {"None": None, "True": True, "False": False}[constant]
    if mark == "(":
        return _several(tokens, *lists)
    if mark:
        return mark
    if kind in "tir":
        return lists["tir".index(kind)][int(number)]
    next(tokens)
    if kind == "o":
        return Held(dict(zip(_attributes[int(number)], _several(tokens, *lists))))
    code, module = _codes[int(number)]
    cells = tuple(types.CellType(x) for x in _several(tokens, *lists))
    out = types.FunctionType(code, sys.modules[module].__dict__, code.co_name, None, cells)
    out.__module__ = module
    return out


def _several(tokens: Iterator[re.Match[str]], *lists: Any) -> tuple[Any, ...]:
    out = []
    while (x := _one(tokens, *lists)) != ")":
        out.append(x)
        next(tokens)  # the comma
    return tuple(out)


def in_graph(q: Any, k: Any, v: Any, score: Any, block: Any, scale: Any, lse: bool) -> Any:
    """What a call is in a graph."""
    if getattr(torch.compiler, "_is_exporting_flag", False):  # (is_exporting() is True in every graph before torch 2.14)
        refuse("functions of Python cannot be exported", "fcgen.scaled_dot_product_attention, which exports", "flex_attention")
    tensors: list[Any] = []
    whole: list[Any] = []
    real: list[Any] = []
    scored = "" if score is None else _written(score, tensors, whole, real)
    masked, lists, sizes = "", [None, None, None, None], [0, 0]
    if block is not None and not block_masks.boundless(block):
        masked = _written(block.mask_mod, tensors, whole, real)
        lists = [block.kv_num_blocks, block.kv_indices, block.full_kv_num_blocks, block.full_kv_indices]
        sizes = [block.BLOCK_SIZE[0], block.BLOCK_SIZE[1]]
    if wants_gradient(q, k, v, *tensors):
        both = LEARNT(q, k, v, scored, masked, tensors, whole, real, *lists, *sizes, scale)
        return both if lse else both[0]
    op = torch.ops.fcgen.flex_lse if lse else torch.ops.fcgen.flex
    return op(q, k, v, scored, masked, tensors, whole, real, *lists, *sizes, scale)


def _run(q: Any, k: Any, v: Any, scored: str, masked: str, tensors: Any, whole: Any, real: Any, count: Any, indices: Any, full_count: Any,
         full_indices: Any, tall: int, wide: int, scale: Any, lse: bool) -> Any:
    score = _read(scored, tensors, whole, real) if scored else None
    if not masked:
        return block_masks.call(q, k, v, score, None, scale, lse)
    mask = _read(masked, tensors, whole, real)
    lists = block_masks.Lists((count, indices, full_count, full_indices), (q.shape[2], k.shape[2]), (tall, wide), mask)
    key = masked, tuple(whole), tuple(real), [(t.data_ptr(), t._version) for t in tensors], lists.versions()
    found = _seen.get(count)
    if found is None or found[0] != key:
        found = _seen[count] = key, lists.looked_at().said
    return block_masks.call(q, k, v, score, lists._replace(said=found[1]), scale, lse)


_ARGUMENTS = ("(Tensor q, Tensor k, Tensor v, str score, str mask, Tensor[] tensors, SymInt[] whole, float[] real, Tensor? count, "
              "Tensor? indices, Tensor? full_count, Tensor? full_indices, SymInt tall, SymInt wide, float? scale)")
define("flex", _ARGUMENTS, "Tensor", partial(_run, lse=False), lambda q, k, v, *_: like_q(q, v))
define("flex_lse", _ARGUMENTS, "(Tensor, Tensor)", partial(_run, lse=True), lambda q, k, v, *_: (like_q(q, v), rows_of(q)))
LEARNT = learnt("flex_learnt", _ARGUMENTS, partial(_run, lse=True), lambda q, k, v, *_: (like_q(q, v), rows_of(q)))
