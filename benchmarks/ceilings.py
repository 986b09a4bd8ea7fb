"""What this board reaches today: cuBLAS on a large square product, a device-to-device copy, and its clock and power under load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .timing import Checked, round_robin

GEMM = 8192
#: bytes that are copied
COPY = 2 << 30


def ceilings(dtype: str = "fp16") -> dict[str, float]:
    """TFLOP/s of torch.matmul, and GB/s of a copy (bytes read plus bytes written). Random data: zeros run faster."""
    import torch

    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    a, b = (torch.randn(GEMM, GEMM, device="cuda").to(kind) for _ in range(2))
    source = torch.randn(COPY // 4, device="cuda")
    into = torch.empty_like(source)
    found = round_robin([Checked("gemm", lambda: a @ b.T, 0.0, 0.0), Checked("copy", lambda: into.copy_(source), 0.0, 0.0)], 8, 5, warm=2)
    return {"gemm_tflops": 2.0 * GEMM**3 / found["gemm"].ms / 1e9, "copy_gbps": 2.0 * COPY / found["copy"].ms / 1e6}


def under_load(run: Callable[[], Any], calls: int) -> dict[str, int]:
    """SM clock (MHz) and power (W) while `calls` of `run` are on the GPU; empty where the driver's library does not say."""
    import torch

    try:
        for _ in range(calls):
            run()
        return {"mhz": int(torch.cuda.clock_rate()), "watts": round(torch.cuda.power_draw() / 1e3)}
    except Exception:  # pynvml is absent, or has no such counter: the numbers stand without it
        return {}
    finally:
        torch.cuda.synchronize()
