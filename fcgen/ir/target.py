"""What a GPU can do, as data: limits and instruction records. Passes, printer and simulator receive a `Target`; none imports one.

An `Instr` is declared once: the fragments it works on, the text it prints as, and its meaning in NumPy on physical registers. The printer
and the simulator both use that record; one conformance test per record on a GPU keeps it true.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from .layout import RegLayout


@dataclass(frozen=True, eq=False)
class Instr:
    """One hardware instruction.

    name: also the name of the device function that wraps it. shape: (m, n, k) of one issue for matrix instructions, else ().
    dtype: operand element type. a, b, c: register maps of one warp's operands, straight from the PTX tables (`RegLayout` of one
    instruction's tile). signature: the C++ parameter list of the wrapper; body: its statement, holding one inline-PTX
    instruction. effect: NumPy on arrays [lanes, regs] per operand ([warps, lanes, regs] where a warpgroup works together), returning the
    result's. needs: lowest compute capability (80 for sm_80). doc: the PTX section. ptx: the instruction's name there, of those that are
    printed in chains.
    """

    name: str
    signature: str
    body: str
    doc: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    a: RegLayout | None = None
    b: RegLayout | None = None
    c: RegLayout | None = None
    effect: Callable[..., np.ndarray] | None = None
    needs: int = 80
    returns: str = "void"
    ptx: str = ""


@dataclass(frozen=True, eq=False)
class Target:
    """One compile target: `arch` is what NVRTC is given. Sizes in bytes; per block unless said otherwise. max_cluster: the most blocks
    of a cluster on any chip of the architecture; 1 where there are no clusters."""

    arch: str
    capability: int
    smem_per_block: int
    smem_per_sm: int
    max_threads: int = 1024
    regs_per_sm: int = 65536
    regs_per_thread: int = 255
    max_blocks_per_sm: int = 32
    smem_reserved: int = 1024
    max_cluster: int = 1
    instrs: Mapping[str, Instr] = field(default_factory=dict)

    def matrix_instr(self, family: str, dtype: str) -> Instr | None:
        """The first instruction of a family for dots of this operand dtype, or None."""
        names = (n for n in self.instrs if n.startswith(f"{family}_m") and dtype in n.split("_"))
        return next((i for i in map(self.instrs.__getitem__, names) if i.needs <= self.capability), None)
