"""Does a kernel fit its target? Checked before compiling, so that the message can name the schedule field to change.

`check_budget(kernel, target)` raises FcError "compile/budget" for shared memory, threads or registers; else it returns the
`Usage` it counted. Registers are the fragments that are live together at the worst point, by exact liveness; what addresses and
temporaries need comes on top, so a kernel is refused only where its fragments alone do not fit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..errors import FcError
from ..ir.core import Kernel, Role, walk_kernel
from ..ir.memory_map import told
from ..ir.registers import at_launch
from ..ir.target import Target
from .cuda.plan import Plan, make_plan

#: registers that addresses, loop counters and temporaries take besides fragments (observed: 20 to 40)
MARGIN = 24
#: registers that ptxas wants for one wgmma besides its accumulator
PRODUCT = 26


@dataclass(frozen=True)
class Usage:
    """What a kernel needs. fragment_regs: live fragment registers per thread at the worst point; regs: with the margin; limit: those that
    a thread can have; blocks: how many blocks per multiprocessor shared memory and threads allow."""

    smem_bytes: int
    threads: int
    fragment_regs: int
    regs: int
    limit: int
    blocks: int


def check_budget(kernel: Kernel, target: Target) -> Usage:
    """The kernel's needs, or FcError "compile/budget"."""
    threads = kernel.warps * 32
    if threads > target.max_threads:
        raise FcError("compile/budget", f"{kernel.name} needs more threads per block than {target.arch} has",
                      expected=f"at most {target.max_threads}", got=threads, hint="lower Schedule.warps")
    smem = kernel.meta.get("smem_bytes", sum(b.type.bytes for b in kernel.buffers))
    if smem > target.smem_per_block:
        raise FcError("compile/budget", f"{kernel.name} needs more shared memory per block than {target.arch} has",
                      expected=f"at most {target.smem_per_block} bytes", got=f"{smem} bytes", hint=_smem_hint(kernel),
                      notes=told(dict(zip(kernel.buffers, kernel.meta.get("smem_offsets", ())))))
    blocks = kernel.meta.get("min_blocks", 1) or 1
    if blocks > 1 and blocks * (smem + target.smem_reserved) > target.smem_per_sm:
        raise FcError("compile/budget", f"{blocks} blocks of {kernel.name} do not fit the shared memory of a multiprocessor",
                      expected=f"at most {target.smem_per_sm} bytes with {target.smem_reserved} reserved per block",
                      got=f"{blocks} x {smem} bytes", hint="lower Schedule.min_blocks, or " + _smem_hint(kernel))
    launch = at_launch(target, threads, blocks)
    roles = [_of_role(kernel, role, target, launch) for role in kernel.roles]
    plan, limit = next((r for r in roles if r[0].live_regs > r[1]), max(roles, key=lambda r: r[0].live_regs))
    _check_products(kernel, launch, threads)
    pool = sum(r.warps * r.regs for r in kernel.roles)
    if len(kernel.roles) > 1 and pool > launch * kernel.warps:
        raise FcError("compile/budget", "the roles of a block take more registers than it was launched with",
                      expected=f"at most {launch * kernel.warps} x 32", got=f"{pool} x 32", hint="lower the roles' `regs`")
    if plan.live_regs > limit:
        worst = plan.live_at
        raise FcError("compile/budget", f"the fragments of {kernel.name} do not fit the registers of a thread",
                      expected=f"at most {limit} registers ({threads} threads, {blocks} per multiprocessor)",
                      got=f"{plan.live_regs} live at `{worst.kind}`" if worst is not None else plan.live_regs,
                      loc=worst.loc if worst is not None else None, hint=_regs_hint(blocks))
    per_sm = target.smem_per_sm // (smem + target.smem_reserved) if smem else target.max_blocks_per_sm
    return Usage(smem, threads, plan.live_regs, plan.live_regs + MARGIN, limit, max(1, min(per_sm, target.max_blocks_per_sm)))


def _of_role(kernel: Kernel, role: Role, target: Target, launch: int) -> tuple[Plan, int]:
    """A role's registers, and those that each of its threads can have."""
    most = role.regs if len(kernel.roles) > 1 and role.regs else launch
    return make_plan(replace(kernel, roles=(role,))), min(target.regs_per_thread, most)


def _check_products(kernel: Kernel, launch: int, threads: int) -> None:
    """One wgmma has to fit the registers that the block was launched with: what roles take later does not help (ptxas C7602)."""
    for op in walk_kernel(kernel):
        if op.kind == "wgmma":
            cols = max(int(n) for name in (op["instr"], op.get("first") or "") for n in re.findall(r"m64n(\d+)k", name))
            if cols // 2 + PRODUCT > launch:
                raise FcError("compile/budget", f"a matrix product over {cols} columns does not fit the registers of a thread",
                              expected=f"at most {launch} registers ({threads} threads at launch)", got=cols // 2 + PRODUCT, loc=op.loc,
                              hint="fewer columns in Schedule.tiles, or fewer Schedule.warps")


def _smem_hint(kernel: Kernel) -> str:
    """The largest ring is what to shrink: fewer slots if it has several, else smaller tiles."""
    largest = max(kernel.buffers, key=lambda b: b.type.bytes, default=None)
    if largest is not None and largest.type.slots > 1:
        return f"lower Schedule.stages ({largest.name} has {largest.type.slots} slots), or use smaller Schedule.tiles"
    return "use smaller Schedule.tiles"


def _regs_hint(blocks: int) -> str:
    first = "lower Schedule.min_blocks, " if blocks > 1 else ""
    return f"{first}use smaller Schedule.tiles, more Schedule.warps, or hold_a=False"
