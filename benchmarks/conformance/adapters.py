"""What each project's tests call, and what stands in its place.

An adapter's `install` puts fcgen's functions where the tests will look for torch's or FlashAttention's, before they are collected.
References that tests compute with the same functions (in f32 and f64, or with torch's backends all turned off but its own formula) stay
torch's.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fcgen.errors import FcError


class Adapter(NamedTuple):
    """files: below the checkout; install: given its folder."""

    files: tuple[str, ...]
    install: Callable[[Path], None]


def _half(x: Any) -> bool:
    import torch

    return isinstance(x, torch.Tensor) and x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)


def _formula_only() -> bool:
    """Has the test chosen torch's own formula, as references do?"""
    import torch

    cuda = torch.backends.cuda
    return not (cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.cudnn_sdp_enabled())


def _sdpa(checkout: Path) -> None:
    import torch

    import fcgen

    theirs = torch.nn.functional.scaled_dot_product_attention

    def function(query: Any, key: Any, value: Any, *args: Any, **named: Any) -> Any:
        take = _half(query) and not _formula_only()
        return (fcgen.scaled_dot_product_attention if take else theirs)(query, key, value, *args, **named)

    torch.nn.functional.scaled_dot_product_attention = function


def _flex(checkout: Path) -> None:
    from torch.nn.attention import flex_attention as module

    import fcgen

    theirs = module.flex_attention

    def function(query: Any, key: Any, value: Any, *args: Any, **named: Any) -> Any:
        return (fcgen.flex_attention if _half(query) else theirs)(query, key, value, *args, **named)

    module.flex_attention = function


def _varlen(checkout: Path) -> None:
    from torch.nn.attention import varlen as module

    from fcgen.torch.core import attend_varlen, refuse

    def function(query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, is_causal: bool = False, *,
                 return_aux: Any = None, scale: float | None = None, window_size: Any = (-1, -1), enable_gqa: bool = False,
                 seqused_k: Any = None, block_table: Any = None, num_splits: Any = None) -> Any:
        if block_table is not None:
            refuse("there are no pages of keys", "block_table=None", "a block table")
        if query.shape[1] != key.shape[1] and not enable_gqa:
            refuse("`query` and `key` differ in heads", query.shape[1], key.shape[1])
        left, right = (-1 if n is None else n for n in window_size)
        lse = return_aux is not None and bool(return_aux.lse)
        return attend_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, None, seqused_k, causal=is_causal, left=left, right=right,
                             scale=scale, lse=lse)

    module.varlen_attn = function


def _flash_attn(checkout: Path) -> None:
    """Forward and backward cases."""

    from fcgen.compat import flash_attn_interface as ours

    os.environ.update(FLASH_ATTENTION_DISABLE_BACKWARD="FALSE")
    sys.path.insert(0, str(checkout / "hopper"))
    module = types.ModuleType("flash_attn_interface")

    def lacking(name: str) -> Callable[..., Any]:
        def refused(*_: Any, **__: Any) -> Any:
            raise FcError("call/argument", f"there is no {name}")

        return refused

    for name in ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_qkvpacked_func", "flash_attn_combine"):
        setattr(module, name, getattr(ours, name))
    for name in ("flash_attn_with_kvcache", "get_scheduler_metadata"):
        setattr(module, name, lacking(name))
    sys.modules["flash_attn_interface"] = module


ADAPTERS = {
    "sdpa": Adapter(("test/test_transformers.py",), _sdpa), "flex": Adapter(("test/inductor/test_flex_attention.py",), _flex),
    "varlen": Adapter(("test/test_varlen_attention.py",), _varlen), "flash_attn": Adapter(("hopper/test_flash_attn.py",), _flash_attn)}
