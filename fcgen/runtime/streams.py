"""Streams of any library, as the address that the driver takes.

In: an int, torch.cuda.Stream, cupy.cuda.Stream, an object with `__cuda_stream__`, a CUstream of cuda.bindings, None for CUDA's default
stream. Out: an int. Guaranteed: anything else is refused, not launched on some other stream.
"""

from __future__ import annotations

import operator
from typing import Any

from fcgen.errors import FcError


def address(stream: Any) -> int:
    """The stream's handle."""
    if isinstance(stream, bool):
        raise _not_one(stream)
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:  # (version, handle), a method or, in older producers, an attribute
        version, handle = protocol() if callable(protocol) else protocol
        if version != 0:
            raise FcError("call/argument", "argument `stream` speaks a newer protocol", expected="__cuda_stream__ version 0", got=version)
    else:
        handle = next((getattr(stream, name) for name in ("cuda_stream", "ptr", "handle") if hasattr(stream, name)), stream)
    try:
        number = operator.index(handle) if hasattr(handle, "__index__") else int(handle) if type(handle).__name__ == "CUstream" else -1
    except (TypeError, ValueError):
        raise _not_one(stream) from None
    if not 0 <= number < 2**64:
        raise _not_one(stream)
    return number


def _not_one(stream: Any) -> FcError:
    return FcError("call/argument", "argument `stream` is not a stream", got=f"a {type(stream).__name__}: {str(stream)[:60]}",
                   expected="a torch.cuda.Stream, a cupy.cuda.Stream, an object with __cuda_stream__, or the address of one as an int")
