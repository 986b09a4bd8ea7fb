"""Who runs beside fcgen: FlashAttention-3, cuDNN, PyTorch's flash attention, FlexAttention, Mosaic GPU and Triton's tutorial kernel.

`load(names)` gives those that are here and the reasons for those that are not. A peer binds one input to a `Call`. FA3 is the binary that
get_fa3.sh fetches; Triton's tutorial (06-fused-attention.py) is used if its file is in the same folder as triton_attention.py.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .attention_forward import sdpa
from .cells import Inputs

NAMES = ("fcgen", "fcgen_serial", "fa3", "cudnn", "flash", "flex", "mosaic", "triton")
#: fcgen is compared with the faster of these
BEST = ("fa3", "cudnn")
#: dry runs have neither; float32 stands for them then
STAND_IN = False


@dataclass(frozen=True)
class Call:
    """run: enqueues one call. output: what `run` returned -> [B, S, H, D]. finish: see timing.Checked."""

    run: Callable[[], Any]
    output: Callable[[Any], Any]
    finish: Callable[[Any], Any] | None = None


Peer = Callable[[Inputs], Call]


class Absent(Exception):
    """Why a peer cannot run here, or not this cell."""


def reason(error: BaseException) -> str:
    """One line."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:160]
    return said if isinstance(error, Absent) else f"{type(error).__name__}: {said}" if said else type(error).__name__


def swap(out: Any) -> Any:
    return out.transpose(1, 2)


def same(out: Any) -> Any:
    return out


# ---- PyTorch's ---------------------------------------------------------------------------------------------------------


def _torch(backend: str, x: Inputs) -> Call:
    return Call(sdpa(backend, *x.bhsd, x.causal), swap)


def stand_in(x: Inputs) -> Call:
    q, k, v = (t.float() for t in x.bhsd)
    run = sdpa("MATH", q, k, v, x.causal)
    return Call(lambda: run().to(x.q.dtype), swap)


def cudnn() -> Peer:
    return stand_in if STAND_IN else functools.partial(_torch, "CUDNN_ATTENTION")


def flash() -> Peer:
    return functools.partial(_torch, "FLASH_ATTENTION")


def flex() -> Peer:
    if STAND_IN:
        raise Absent("a dry run compiles only fcgen's kernels")
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def bind(x: Inputs) -> Call:
        # Dynamo gives up on a function after a few shapes and then runs it op by op; `fullgraph` makes that an error.
        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
        s = x.q.shape[1]
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, s, s, device="cuda") if x.causal else None
        q, k, v = x.bhsd
        return Call(lambda: compiled(q, k, v, block_mask=mask), swap)

    return bind


# ---- FlashAttention-3 --------------------------------------------------------------------------------------------------


def _unpacked(folder: Path) -> Path:
    """The extension in that folder, or a copy of it that was unpacked from fa3.so.xz."""
    if (folder / "_C.so").exists():
        return folder / "_C.so"
    packed = folder / "fa3.so.xz"
    if not packed.exists():
        raise Absent(f"neither _C.so nor fa3.so.xz in {folder} (benchmarks/get_fa3.sh {folder}, then --fa3 {folder})")
    out = (folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp())) / "_C.so"
    part = out.with_suffix(f".{os.getpid()}")
    with part.open("wb") as f:
        subprocess.run(["xz", "-dc", "-T0", str(packed)], stdout=f, check=True)
    part.rename(out)
    return out


def fa3(folder: str) -> Peer:
    if STAND_IN:
        return stand_in
    import ctypes

    import torch

    library = _unpacked(Path(folder).resolve())
    ctypes.CDLL(f"{Path(folder).resolve()}/libcudart.so.12", mode=ctypes.RTLD_GLOBAL)
    torch.ops.load_library(str(library))
    forward = torch.ops.flash_attn_3.fwd

    def bind(x: Inputs) -> Call:
        return Call(lambda: forward(x.q, x.k, x.v, softmax_scale=x.scale, is_causal=x.causal, num_splits=1)[0], same)

    return bind


# ---- others ------------------------------------------------------------------------------------------------------------


def mosaic() -> Peer:
    """The best of a few tile sizes. The kernel has no scale, so Q is scaled before. Timed by the host's clock: JAX has its own stream."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import torch
    from jax.experimental.pallas.ops.gpu import attention_mgpu as mgpu

    if STAND_IN or jax.default_backend() != "gpu":
        raise Absent("JAX sees no GPU")

    def bind(x: Inputs) -> Call:
        import time

        torch.cuda.synchronize()
        q, k, v = (jax.dlpack.from_dlpack(t.contiguous()) for t in ((x.q * x.scale).to(x.q.dtype), x.k, x.v))
        found: list[tuple[float, Callable[[], Any]]] = []
        said = ""
        for block in (64, 128, 256):
            try:
                config = mgpu.TuningConfig(block_q=64, block_kv=block, max_concurrent_steps=2, causal=x.causal)
                run = functools.partial(mgpu.attention, q, k, v, config)
                run().block_until_ready()
                begin = time.perf_counter()
                for _ in range(4):
                    out = run()
                out.block_until_ready()
                found.append((time.perf_counter() - begin, run))
            except Exception as error:  # a tile size that does not fit, in whatever way it says so
                said = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
        if not found:
            raise Absent(said)
        return Call(min(found, key=lambda f: f[0])[1], torch.from_dlpack, lambda out: out.block_until_ready())

    return bind


def triton(folder: str) -> Peer:
    path = Path(folder) / "triton_attention.py"
    if STAND_IN or not path.exists():
        raise Absent(f"Triton has no attention kernel in its package; put its tutorial 06-fused-attention.py at {path}")
    spec = importlib.util.spec_from_file_location("triton_attention", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]

    def bind(x: Inputs) -> Call:
        q, k, v = (t.contiguous() for t in x.bhsd)
        return Call(lambda: module.attention(q, k, v, x.causal, x.scale, True), swap)

    return bind


def fcgen(schedule: Any = None) -> Peer:
    """`fcgen.attention`, into an output of NaN; the library's schedule, or this one."""
    import torch

    import fcgen as fc

    def bind(x: Inputs) -> Call:
        q, k, v = x.bhsd
        out = torch.full_like(x.q, float("nan"))
        into = out.transpose(1, 2)
        return Call(lambda: fc.attention(q, k, v, causal=x.causal, scale=x.scale, schedule=schedule, out=into), swap)

    return bind


def fcgen_serial() -> Peer:
    """The library's choice, launched when the kernel in front has ended: what programmatic dependent launch brings is the difference."""
    import torch

    from fcgen.attend import forward
    from fcgen.kernels.schedules import choose
    from fcgen.runtime import driver

    def bind(x: Inputs) -> Call:
        q, k, v = x.bhsd
        arch, mask = forward._arch(q.device.index or 0), "causal_top_left" if x.causal else "none"
        chosen = choose(arch, q.shape, k.shape, v.shape[3], mask, driver.device_info(0).sm_count)
        dtype = {torch.float16: "f16", torch.bfloat16: "bf16"}[q.dtype]
        serial = replace(chosen.schedule, pdl=False)
        program = forward.compiled(dtype, q.shape[3], v.shape[3], mask, False, arch, serial, True, chosen.lazy, chosen.sums)
        out = torch.full_like(x.q, float("nan"))
        plan, values, device = program.launcher.resolve({"Q": q, "K": k, "V": v, "O": out.transpose(1, 2), "scale": x.scale})

        def run() -> Any:
            plan.launch(torch.cuda.current_stream(device).cuda_stream, values)
            return out

        return Call(run, same)

    return bind


def load(names: Sequence[str], folder: str = ".peers", schedule: Any = None) -> tuple[dict[str, Peer], dict[str, str]]:
    """(name -> peer, name -> why it is absent)."""
    makers: dict[str, Callable[[], Peer]] = {
        "fcgen": lambda: fcgen(schedule), "fcgen_serial": fcgen_serial, "fa3": lambda: fa3(folder), "cudnn": cudnn, "flash": flash,
        "flex": flex, "mosaic": mosaic, "triton": lambda: triton(folder)}
    here: dict[str, Peer] = {}
    absent: dict[str, str] = {}
    for name in names:
        if name not in makers:
            raise ValueError(f"no such peer: {name} ({', '.join(NAMES)})")
        try:
            here[name] = makers[name]()
        except Exception as error:  # in whatever way a library says that it cannot run here
            absent[name] = reason(error)
    return here, absent
