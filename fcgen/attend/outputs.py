"""New tensors of the caller's library."""

from __future__ import annotations

import sys
from typing import Any

from ..errors import FcError


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
