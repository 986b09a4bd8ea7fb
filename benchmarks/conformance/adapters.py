"""What each project's tests call, and what stands in its place.

An adapter's `install` puts fcgen's functions where the tests will look for torch's or FlashAttention's, before they are collected.
References that tests compute with the same functions stay torch's: in f32 and f64, with torch's backends all turned off but its own
formula, and of FlexAttention what is not compiled. So gradients and results are compared with what torch computes.
"""

from __future__ import annotations

import os
import re
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from fcgen.errors import FcError

#: how often fcgen was called outside of graphs, and the refusals that a test went on after
calls: list[str] = []
partly: list[str] = []


class Adapter(NamedTuple):
    """files: below the checkout; project: whose that is; install: given its folder; original: what the project's own functions need, given
    that folder and the one of benchmarks/peers.py (none: nothing); beside: why a test, by its name, has nothing for fcgen (None: it may
    have); collected: what to do with the modules of the tests; alone: functions whose tests want a whole GPU; alike: what of a test's name
    says which kernels it needs; most: how many processes of a GPU may run these tests, for their memory."""

    files: tuple[str, ...]
    project: str
    install: Callable[[Path], None]
    original: Callable[[Path, str], None] = lambda checkout, peers: None
    beside: Callable[[str], str | None] = lambda name: None
    collected: Callable[[Any], None] = lambda module: None
    alone: tuple[str, ...] = ()
    alike: Callable[[str], str] = lambda name: name
    most: int = 99


def _without(pattern: str) -> Callable[[str], str]:
    """Names without what says lengths, counts and scales, which few kernels hang on."""
    sizes = re.compile(pattern)
    return lambda name: sizes.sub("", name)


#: what is taken for a tensor of a GPU
_on_gpu: list[Callable[[Any], bool]] = [lambda x: x.is_cuda]


def _half(x: Any) -> bool:
    import torch

    return isinstance(x, torch.Tensor) and _on_gpu[0](x) and x.dtype in (torch.float16, torch.bfloat16)


def without_gpu() -> None:
    """From here on torch's tensors on the CPU are a GPU's, and kernels are interpreted."""
    import torch

    from .. import dry

    dry.install()
    _on_gpu[0] = lambda x: True
    if "torch.testing._internal.common_device_type" in sys.modules:
        from torch.testing._internal import common_device_type, common_utils

        common_device_type._has_sufficient_memory = lambda device, size: True
        for policy in (common_utils.CudaNonDefaultStream, common_utils.CudaMemoryLeakCheck):
            policy.__init__ = policy.__exit__ = lambda *_: None
            policy.__enter__ = lambda self: self
    more: dict[str, Any] = {"device_count": lambda: 1, "get_device_capability": lambda *_: (9, 0), "manual_seed": lambda n: None,
                            "manual_seed_all": lambda n: None, "memory_reserved": lambda *_: 0,
                            "is_current_stream_capturing": lambda: False}
    for name, value in more.items():
        setattr(torch.cuda, name, value)


def _formula_only() -> bool:
    """Has the test chosen torch's own formula, as references do?"""
    import torch

    cuda = torch.backends.cuda
    return not (cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.cudnn_sdp_enabled())


def _called(name: str) -> None:
    import torch

    if not torch.compiler.is_compiling():
        calls.append(name)


#: torch's tests that hold torch to something of its own, by the beginnings of their names
_TORCHS_OWN = {
    "test_custom_op_": "is of torch's own operators, by their names",
    "test_fused_backwards_throws_determinism_warning": "expects warnings of torch's kernels",
    "test_symmetric_bias": "expects a refusal of torch's compiler",
    "test_zero_length_sequence_error": "expects a refusal of torch's compiler",
    "test_fused_sdp_priority_order": "is of the speed of torch's own kernels",
    "test_fused_sdp_choice": "is of torch's choice among its kernels",
    "test_math_backend_high_precision": "is of torch's own formula",
    "test_multiheadattention_fastpath_fp16_head_dim_alignment": "is of MultiheadAttention's own kernel",
    **dict.fromkeys(("test_script_", "test_transformerencoderlayer_subclass"),
                    "is of TorchScript, which takes no function in another's place"),
    "test_fused_attention_vs_math_ref_grads_cudagraph": "is of torch's own operators, by their names",
    **dict.fromkeys((
        "test_cudnn_attention_fail_d128", "test_invalid_fused_inputs_", "test_invalid_last_dim_stride", "test_mask_invalid_last_dim_stride",
        "test_invalid_sdpa_kernel_", "test_dispatch_fails_no_backend", "test_fused_kernels_seq_len_0_inputs", "test_nested_fails_on_",
        "test_fused_kernels_nested_broadcasting_error_cases", "test_fused_kernels_nested_broadcasting_requires_grad_failure",
        "test_mem_efficient_fail_", "test_flash_fail_fp32", "test_flash_attention_fail_with_non_square_causal_attention",
        "test_mem_eff_attention_fail_with_batch_size_geq_65536_error", "test_mem_eff_attention_backward_requires_bias_when_bias_grad",
        "test_flash_backward_failure_", "test_unaligned_tensors"),
        "expects a refusal of one of torch's kernels, where fcgen or another kernel computes")}


#: what fcgen refuses in a graph, where it cannot say so, by the beginnings of tests' names
IN_GRAPHS = {"test_return_aux": "the maxima of scores are not kept", "test_dynamic_shapes_with_custom_kernel_options":
             "`kernel_options` are those of torch's kernels"}


def _of_torch(name: str) -> str | None:
    """Of torch's tests, whose names say device, dtype and parameters."""
    test = name.rpartition("::")[2]
    for begin, why in _TORCHS_OWN.items():
        if test.startswith(begin):
            return why
    if test.startswith("test_flash_attention_vs_math_ref_grads") and re.search("dropout_p_0_[1-9]", test):
        return "calls torch's operator by its name, for its dropout mask"
    if re.search(r"(_cpu(_|$)|CPU(::|$))", name):
        return "runs on the CPU"
    found = re.search(r"(?<=[_:])float(32|64)(?=$|_|\])", name)
    return f"is of {found[0]}: fcgen has f16 and bf16" if found else None


# ---- torch.nn.functional.scaled_dot_product_attention -----------------------------------------------------------------------


def _sdpa(checkout: Path) -> None:
    import torch

    import fcgen

    theirs = torch.nn.functional.scaled_dot_product_attention

    def function(query: Any, key: Any, value: Any, *args: Any, **named: Any) -> Any:
        lowered = isinstance(query, torch.Tensor) and _on_gpu[0](query) and torch.is_autocast_enabled("cuda")
        if not (_half(query) or (lowered and query.dtype == torch.float32)) or _formula_only():
            return theirs(query, key, value, *args, **named)
        _called("scaled_dot_product_attention")
        return fcgen.scaled_dot_product_attention(query, key, value, *args, **named)

    _without_cases()
    torch.nn.functional.scaled_dot_product_attention = function
    torch._fill_mem_eff_dropout_mask_ = _kept  # type: ignore[attr-defined]


def _without_cases() -> None:
    """Cases of f32, and those of dropout that call torch's flash operator by its name, are not made: they are half of all cases, and every
    process makes all."""
    import torch
    from torch.testing._internal.common_utils import parametrize

    make = parametrize.__init__

    def fewer(self: Any, names: str, values: Any, *more: Any, **named: Any) -> None:
        values = list(values)
        if names == "dtype":
            values = [x for x in values if x is not torch.float32] or values
        make(self, names, [0.0] if names == "dropout_p" and len(values) == 3 else values, *more, **named)

    parametrize.__init__ = fewer


def _kept(mask: Any, p: float, seed: int, offset: int) -> Any:
    """Above p where fcgen keeps a weight. Tests seed torch anew in front of this, as they did in front of the call."""
    import fcgen
    from fcgen.torch.core import new_seed

    b, h, rows, keys = mask.shape
    mask.copy_(fcgen.dropout_mask(fcgen.Dropout(p, int(new_seed())), b, h, rows, keys, mask))
    return mask


# ---- FlexAttention ----------------------------------------------------------------------------------------------------------

#: tests whose only calls are not compiled
_EAGER = ("test_head_bias_req_grad", "test_comparison_vs_sdpa_with_learnable_bias")
_here = [""]


def _flex(checkout: Path) -> None:
    import torch
    from torch.nn.attention import flex_attention as module

    import fcgen

    _without_cpu()
    theirs = module.flex_attention

    def function(query: Any, key: Any, value: Any, *args: Any, **named: Any) -> Any:
        if not _half(query) or not (torch.compiler.is_compiling() or _here[0].startswith(_EAGER)):
            return theirs(query, key, value, *args, **named)
        _called("flex_attention")
        return fcgen.flex_attention(query, key, value, *args, **named)

    module.flex_attention = function


def _without_cpu() -> None:
    """torch's helpers of tests compile C++ when they are imported, to see whether they can: in many processes at once for minutes."""
    from torch._inductor.codecache import CppCodeCache

    with patch.object(CppCodeCache, "load", side_effect=OSError("no tests of the CPU")), suppress(ImportError):
        import torch.testing._internal.inductor_utils  # noqa: F401


def _flex_collected(module: Any) -> None:
    """What a test does besides with pages is a part of its own: a refusal there leaves the other part to be judged."""
    name = "run_test_with_paged_attention"
    for cls in [x for x in vars(module).values() if isinstance(x, type) and name in vars(x)]:
        setattr(cls, name, _in_part(vars(cls)[name]))


def _in_part(method: Callable[..., Any]) -> Callable[..., Any]:
    from .verdicts import refusal

    def part(*args: Any, **named: Any) -> None:
        try:
            method(*args, **named)
        except Exception as e:  # what is no refusal goes on
            said = refusal(f"{type(e).__name__}: {e}")
            if said is None:
                raise
            partly.append(f"with pages: {said}")

    return part


# ---- torch.nn.attention.varlen ------------------------------------------------------------------------------------------------


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
        _called("varlen_attn")
        left, right = (-1 if n is None else n for n in window_size)
        lse = return_aux is not None and bool(return_aux.lse)
        return attend_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, None, seqused_k, causal=is_causal, left=left, right=right,
                             scale=scale, lse=lse)

    module.varlen_attn = function


# ---- FlashAttention-3 ---------------------------------------------------------------------------------------------------------


def _flash_attn(checkout: Path) -> None:
    """Forward and backward cases. By the tests' own switches there are none of float8, and those of a cache of keys, for which fcgen has no
    function, are without pages and new keys."""
    from fcgen.compat import flash_attn_interface as ours

    switches = {"BACKWARD": "FALSE", "PAGEDKV": "TRUE", "APPENDKV": "TRUE", "FP8": "TRUE"}
    os.environ.update({f"FLASH_ATTENTION_DISABLE_{name}": word for name, word in switches.items()})
    sys.path.insert(0, str(checkout / "hopper"))
    module = types.ModuleType("flash_attn_interface")

    def counted(name: str) -> Callable[..., Any]:
        fn = getattr(ours, name)

        def call(*args: Any, **named: Any) -> Any:
            _called(name)
            return fn(*args, **named)

        return call

    def lacking(name: str) -> Callable[..., Any]:
        def refused(*_: Any, **__: Any) -> Any:
            raise FcError("call/argument", f"there is no {name}")

        return refused

    for name in ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_qkvpacked_func", "flash_attn_combine"):
        setattr(module, name, counted(name))
    for name in ("flash_attn_with_kvcache", "get_scheduler_metadata"):
        setattr(module, name, lacking(name))
    sys.modules["flash_attn_interface"] = module


def _original_flash_attn(checkout: Path, peers: str) -> None:
    """The checkout's own module, on kernels that were built elsewhere."""
    import ctypes

    import torch

    from ..peers import _unpacked

    folder = Path(peers).resolve()
    ctypes.CDLL(f"{folder}/libcudart.so.12", mode=ctypes.RTLD_GLOBAL)
    torch.ops.load_library(str(_unpacked(folder)))
    sys.path.insert(0, str(checkout / "hopper"))
    sys.modules["flash_attn_3"], sys.modules["flash_attn_3._C"] = types.ModuleType("flash_attn_3"), types.ModuleType("flash_attn_3._C")
    config = types.ModuleType("flash_attn_config")
    config.CONFIG = {"build_flags": defaultdict(bool)}  # type: ignore[attr-defined]
    sys.modules["flash_attn_config"] = config


def _beside_flash_attn(name: str) -> str | None:
    """Of parameters in the order of the tests' decorators, the innermost first."""
    function, _, cases = name.rstrip("]").rpartition("::")[2].partition("[")
    words = cases.split("-")
    if function in ("test_flash_attn_output", "test_flash_attn_varlen_output"):
        return "asks for `qv`, which fcgen refuses" if words[-3] == "True" else None
    if function == "test_flash_attn_kvcache":
        return "asks for flash_attn_with_kvcache, which fcgen has not"
    return "is of the operators' schemas" if function == "test_flash3_bw_compatibility" else None


ADAPTERS = {
    "sdpa": Adapter(("test/test_transformers.py",), "pytorch", _sdpa, lambda *_: _without_cases(), beside=_of_torch, most=12,
                    alike=_without(r"_(batch_size|(max_)?seq_len_(q|k|kv))_\d+|_scale(0|_l\d)")),
    "flex": Adapter(("test/inductor/test_flex_attention.py",), "pytorch", _flex, lambda *_: _without_cpu(), _of_torch, _flex_collected,
                    most=7, alike=_without(r"_batch_dims\d+|batch:\d+_|seq_len:\d+_|mode_[a-z-]+_|_BLOCK_SIZE[\d_]+(?=cuda)")),
    "varlen": Adapter(("test/test_varlen_attention.py",), "pytorch", _varlen, beside=_of_torch,
                      alike=_without(r"_num_perms_\d+|_scale_?[\d_]+")),
    "flash_attn": Adapter(("hopper/test_flash_attn.py",), "flash_attention", _flash_attn, _original_flash_attn, _beside_flash_attn,
                          alone=("test_flash_attn_race_condition",),
                          alike=_without(r"(?<=\[)\d+-\d+(_\d)?-|(?<=\d)-(True|False)(?=-(True|False)-(True|False)-\d)|"
                                         r"(?<=False-False-)(mha|mqa|gqa)-"))}
