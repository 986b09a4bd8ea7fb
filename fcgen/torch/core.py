"""The call that all of torch's interfaces end in, on tensors [B, H, M, D], and its operators for graphs.

A `graph` is whatever records operators in place of running them: torch.compile, torch.export, make_fx, fake tensors. Guaranteed: the same
arguments give the same result in a graph and outside; sizes are no part of a graph; what an operator cannot say is refused, not dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from typing import Any

import torch

from .. import masks, scores
from ..attend import forward, learning
from ..attend.calls import HEADS
from ..attend.learning import moving
from ..attend.operators import define, learnt
from ..attend.torch_op import _OPS as PLAIN
from ..attend.torch_op import beside, transforming
from ..attend.training import in_order
from ..attend.variants import Functions, functions
from ..attend.varlen import attention_varlen
from ..dropout import Dropout
from ..errors import FcError
from . import variants

#: no end of a window
OPEN = -1


def recorded(*tensors: Any) -> bool:
    """Is this call being written down, rather than made?"""
    return torch.compiler.is_compiling() or learning.recorded(*tensors)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, table: torch.Tensor | None = None, sinks: torch.Tensor | None = None,
           causal: str = "none", left: int = OPEN, right: int = OPEN, shift: int | None = None, chunk: int = 0,
           softcap: float | None = None, dropout: float | None = None, scale: float | None = None, lse: bool = False,
           deterministic: bool = False) -> Any:
    """softmax of the scores times v, or (that, log-sum-exp).

    table: added to the scores, or bools that say which count; 4 axes, those of one element broadcast. causal: "none", "top_left",
    "bottom_right", or "shifted". left, right: a window around the diagonal. shift: where row i stands among the keys is i + shift; the
    diagonal ends bottom right if None. chunk: rows see their own chunk of so many
    positions. softcap: scores go through softcap * tanh(score / softcap). sinks: one more score per head, of a key without a value.
    dropout: the share of weights that fall, by random numbers of torch's default generator. deterministic: gradients are summed up in one
    order.
    """
    if recorded(q, k, v):
        if transforming():
            return beside(attend, q, k, v, table=table, sinks=sinks, causal=causal, left=left, right=right, shift=shift, chunk=chunk,
                          softcap=softcap, dropout=dropout, scale=scale, lse=lse, deterministic=deterministic)
        if wants_gradient(q, k, v, table, sinks):
            seed = new_seed() if dropout else None
            both = LEARNT(q, k, v, table, sinks, causal, left, right, shift, chunk, softcap, dropout, scale, seed, deterministic)
            return both if lse else both[0]
        op = torch.ops.fcgen.attend_lse if lse else torch.ops.fcgen.attend
        if (table is None and sinks is None and left < 0 and right < 0 and not chunk and not softcap and not dropout and causal != "shifted"
                and q.shape[3] == v.shape[3]):
            return PLAIN[lse, False](q, k, v, causal, scale)
        return op(q, k, v, table, sinks, causal, left, right, shift, chunk, softcap, dropout, scale)
    if deterministic:
        with ordered():
            return _attend(q, k, v, table, sinks, causal, left, right, shift, chunk, softcap, dropout, scale, lse)
    return _attend(q, k, v, table, sinks, causal, left, right, shift, chunk, softcap, dropout, scale, lse)


def _attend(q: Any, k: Any, v: Any, table: Any, sinks: Any, causal: str, left: int, right: int, shift: int | None, chunk: int,
            softcap: float | None, dropout: float | None, scale: float | None, lse: bool, seed: Any = None) -> Any:
    below = k.shape[2] - q.shape[2]
    shift = below if shift is None else shift
    if right == 0 and causal == "none":
        causal, right = "shifted", OPEN
    if causal == "shifted" and shift in (0, below):
        causal = "bottom_right" if shift == below else "top_left"
    if table is None and sinks is None and left < 0 and right < 0 and not chunk and not softcap and not dropout and causal != "shifted":
        out = None if q.shape[3] == v.shape[3] or derived(q, k, v) else like_q(q, v)
        return forward.attention(q, k, v, causal=False if causal == "none" else causal, scale=scale, return_lse=lse, out=out)
    learns = derived(q, k, v, table, sinks)
    return _with_functions(q, k, v, table, sinks, causal, left, right, shift, chunk, softcap, dropout, scale, lse, learns, seed)


def _with_functions(q: Any, k: Any, v: Any, table: Any, sinks: Any, causal: str, left: int, right: int, shift: int, chunk: int,
                    softcap: float | None, dropout: float | None, scale: float | None, lse: bool, learns: bool, seed: Any) -> Any:
    """A call with masks, scores or sinks."""
    word: Any = causal if causal in ("top_left", "bottom_right") else False
    seen, scored, given = _of_positions(left, 0 if causal == "shifted" else right, chunk, shift, softcap)
    plain = table is None and sinks is None and not dropout and q.shape[3] == v.shape[3]
    if plain and not learns and (scale is None or type(scale) is float):
        found = forward.known(q, k, v, word, scale, given, lse)
        if found is not None:
            return found
    if table is not None:
        at = variants.table(table, (*q.shape[:3], k.shape[2]))
        if table.dtype == torch.bool:
            seen = (*seen, at)
        else:
            scored = (*scored, variants.added(at))
    out = None if q.shape[3] == v.shape[3] or learns else like_q(q, v)
    return forward.attention(q, k, v, causal=word, scale=scale, return_lse=lse, out=out, score=joined(scored), sinks=sinks,
                             mask=_all_of(seen), dropout=drawn(dropout, q, seed))


@lru_cache(maxsize=1024)
def _of_positions(left: int, right: int, chunk: int, shift: int, softcap: float | None) -> tuple[Any, Any, Functions]:
    """Masks and scores of a call's numbers, and both as `fcgen.attention` has them."""
    seen, scored = tuple(positions(left, right, chunk, shift)), (scores.soft_cap(float(softcap)),) if softcap else ()
    return seen, scored, functions(score=joined(scored), mask=_all_of(seen))


def _all_of(seen: Sequence[Any]) -> Any:
    return masks.and_masks(*seen) if len(seen) > 1 else seen[0] if seen else None


def attend_varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, keys: torch.Tensor, most_rows: int, most_keys: int,
                  used_rows: torch.Tensor | None = None, used_keys: torch.Tensor | None = None, *, sinks: torch.Tensor | None = None,
                  causal: bool = False, left: int = OPEN, right: int = OPEN, chunk: int = 0, softcap: float | None = None,
                  scale: float | None = None, lse: bool = False, deterministic: bool = False) -> Any:
    """`attend` for sequences that lie one behind the other: `fcgen.attention_varlen`. causal is "bottom_right"."""
    given = (q, k, v, rows, keys, used_rows, used_keys, sinks, most_rows, most_keys, causal, left, right, chunk, softcap, scale)
    if recorded(q, k, v):
        if transforming():
            return beside(_attend_varlen, *given, lse)
        if wants_gradient(q, k, v, sinks):
            both = LEARNT_VARLEN(*given, deterministic)
            return both if lse else both[0]
        return (torch.ops.fcgen.attend_varlen_lse if lse else torch.ops.fcgen.attend_varlen)(*given)
    with ordered() if deterministic else nullcontext():
        return _attend_varlen(*given, lse)


def _attend_varlen(q: Any, k: Any, v: Any, rows: Any, keys: Any, used_rows: Any, used_keys: Any, sinks: Any, most_rows: int, most_keys: int,
                   causal: bool, left: int, right: int, chunk: int, softcap: float | None, scale: float | None, lse: bool) -> Any:
    mask = None
    if chunk:
        mask = variants.chunks(chunk, _used(keys, used_keys) - _used(rows, used_rows))
    return attention_varlen(q, k, v, rows, keys, most_rows, most_keys, seqused_q=used_rows, seqused_k=used_keys, causal=causal,
                            window=(left, right), scale=scale, return_lse=lse, sinks=sinks, mask=mask,
                            score=scores.soft_cap(float(softcap)) if softcap else None)


def _used(offsets: Any, used: Any) -> Any:
    """How long each sequence is."""
    there = offsets[1:] - offsets[:-1]
    return there if used is None else torch.minimum(there, used)


def positions(left: int, right: int, chunk: int, shift: int) -> list[Any]:
    """Masks of a window and of chunks, where there are any."""
    out = [masks.window(left if left >= 0 else None, right if right >= 0 else None, shift)] if left >= 0 or right >= 0 else []
    return [*out, variants.chunks(chunk, shift)] if chunk else list(out)


def joined(scored: Sequence[Any]) -> Any:
    """Score functions, one after the other."""
    return scores.chain(*scored) if len(scored) > 1 else scored[0] if scored else None


def new_seed() -> Any:
    """A seed of torch's default generator, so that torch.manual_seed repeats it."""
    return torch.randint(0, 2**63 - 1, (), device="cpu")


def drawn(p: float | None, like: Any, seed: Any = None) -> Dropout | None:
    """Dropout with this seed, or a new one."""
    if not p:
        return None
    if like.is_cuda and torch.cuda.is_current_stream_capturing():
        raise FcError("call/argument", "dropout draws its seed on the host, and a CUDA graph would repeat it", expected="dropout_p=0.0",
                      got=p, hint="call fcgen.attention with a Dropout whose seed you change")
    seed, of = new_seed() if seed is None else seed, torch._C._functorch
    while of.is_gradtrackingtensor(seed):
        seed = of.get_unwrapped(seed)
    if of.is_batchedtensor(seed):
        refuse("torch.func.vmap gives dropout another seed for each index", 'vmap(..., randomness="same")', 'randomness="different"',
               "pass the axis as part of the batch: its elements drop other weights")
    return Dropout(p, int(seed))


def wants_gradient(*tensors: Any) -> bool:
    return torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in tensors])


def derived(*tensors: Any) -> bool:
    """Whether a derivative may be taken, outside of graphs: `wants_gradient`, or transforms and tangents."""
    return wants_gradient(*tensors) or any([t is not None and moving(t) for t in tensors])


def fits(size: int) -> bool:
    """Is there a kernel for this head size? (In arithmetic, which graphs can write down.)"""
    return size % HEADS.step == 0 and size >= HEADS.start


def padded(x: Any) -> Any:
    """With zeros beside it, up to a head size that there are kernels for."""
    size = x.shape[-1]
    return x if fits(size) else torch.nn.functional.pad(x, (0, max(HEADS.start, -(-size // HEADS.step) * HEADS.step) - size))


def lined(x: Any) -> Any:
    """With a contiguous last axis."""
    if x.stride(-1) == 1:
        return x
    if x.layout is not torch.strided:
        refuse("an argument is not a strided tensor", torch.strided, x.layout, "call its to_dense()")
    return x.contiguous()


@contextmanager
def ordered() -> Iterator[None]:
    """Gradients of calls in here are summed up in one order."""
    before = in_order.set(True)
    try:
        yield
    finally:
        in_order.reset(before)


@torch.compiler.disable(reason="fcgen refuses this call; called without torch.compile it says why")
def refuse(message: str, expected: Any = None, got: Any = None, hint: str | None = None) -> None:
    raise FcError("call/argument", message, expected=expected, got=got, hint=hint)


# ---- operators ---------------------------------------------------------------------------------------------------------

_ARGUMENTS = ("(Tensor q, Tensor k, Tensor v, Tensor? table, Tensor? sinks, str causal, SymInt left, SymInt right, SymInt? shift, "
              "SymInt chunk, float? softcap, float? dropout, float? scale)")


def like_q(q: Any, v: Any) -> Any:
    """An output, its axes in memory in the order of q's."""
    if q.shape[3] == v.shape[3]:
        return torch.empty_like(q, requires_grad=False)
    (b, h, m, _), e = q.shape, v.shape[3]
    return q.new_empty((b, m, h, e)).transpose(1, 2) if q.stride(1) < q.stride(2) else q.new_empty((b, h, m, e))


def rows_of(q: Any) -> Any:
    return q.new_empty(q.shape[:3], dtype=torch.float32)


_SEEDED = torch.Tag.nondeterministic_seeded
define("attend", _ARGUMENTS, "Tensor", partial(_attend, lse=False), lambda q, k, v, *_: like_q(q, v), _SEEDED)
define("attend_lse", _ARGUMENTS, "(Tensor, Tensor)", partial(_attend, lse=True), lambda q, k, v, *_: (like_q(q, v), rows_of(q)), _SEEDED)


_BOTH, _BOTH_VARLEN = partial(_attend, lse=True), partial(_attend_varlen, lse=True)


def _learnt(*args: Any) -> Any:
    *given, seed, deterministic = args
    with ordered() if deterministic else nullcontext():
        return _BOTH(*given, seed=seed)


LEARNT = learnt("attend_learnt", f"{_ARGUMENTS[:-1]}, Tensor? seed, bool deterministic)", _learnt,
                lambda q, k, v, *_: (like_q(q, v), rows_of(q)))

_PACKED = ("(Tensor q, Tensor k, Tensor v, Tensor rows, Tensor keys, Tensor? used_rows, Tensor? used_keys, Tensor? sinks, "
           "SymInt most_rows, SymInt most_keys, bool causal, SymInt left, SymInt right, SymInt chunk, float? softcap, float? scale)")


def _packed_like(q: Any, v: Any) -> Any:
    return torch.empty_like(q) if q.shape[2] == v.shape[2] else q.new_empty((*q.shape[:2], v.shape[2]))


def _packed_rows(q: Any) -> Any:
    return q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


define("attend_varlen", _PACKED, "Tensor", partial(_attend_varlen, lse=False), lambda q, k, v, *_: _packed_like(q, v))
define("attend_varlen_lse", _PACKED, "(Tensor, Tensor)", partial(_attend_varlen, lse=True),
       lambda q, k, v, *_: (_packed_like(q, v), _packed_rows(q)))


def _learnt_varlen(*given: Any) -> Any:
    with ordered() if given[-1] else nullcontext():
        return _BOTH_VARLEN(*given[:-1])


LEARNT_VARLEN = learnt("attend_varlen_learnt", f"{_PACKED[:-1]}, bool deterministic)", _learnt_varlen,
                       lambda q, k, v, *_: (_packed_like(q, v), _packed_rows(q)))
