"""Clusters: which tiles the blocks of a cluster share, and what a program must be like for its blocks to run in one.

Blocks of a cluster are neighbours along one axis of the grid. A tile whose place does not depend on the index on that axis is the same
for all of them. They may share its copies if they all come by them equally often and in the same order: nothing that decides whether a
copy is made may depend on the index either.

The launch is rounded up to whole clusters. A block outside of the grid takes part in the copies and computes on zeros; its accesses must
be ones that a guard keeps inside of the tensor.
"""

from __future__ import annotations

from ...errors import FcError, did_you_mean
from ...ir.access import Access
from ...ir.async_ops import share
from ...ir.core import Block, GridAxis, Kernel, Op, Value, definitions, walk
from ...ir.depends import depending
from ...ir.known import const_of
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Buffer


def _refused(message: str, **more: object) -> FcError:
    return FcError("compile/schedule", message, **more)  # type: ignore[arg-type]


def axis_of(kernel: Kernel, schedule: Schedule, target: Target) -> tuple[int, int] | None:
    """(number of the grid axis that clusters lie along, blocks per cluster), if the schedule asks for clusters."""
    names = [axis.name.removesuffix("_tile") for axis in kernel.grid]
    for name, _ in schedule.cluster:
        if name.removesuffix("_tile") not in names:
            raise _refused(f"the grid has no axis {name} for clusters to lie along", got=name, expected=", ".join(names),
                           hint=did_you_mean(name, names))
    asked = [(name, n) for name, n in schedule.cluster if n > 1]
    if not asked:
        return None
    (name, n), = asked
    if target.max_cluster < n:
        what = f"has clusters of at most {target.max_cluster} blocks" if target.max_cluster > 1 else "has no clusters of blocks"
        raise _refused(f"{target.arch} {what}", expected="a Hopper target (sm_90a)" if target.max_cluster == 1 else None, got=n)
    if schedule.copy != "tma":
        raise _refused("the blocks of a cluster share bulk copies", expected="copy=tma", got=f"copy={schedule.copy}")
    if schedule.persistent == "dynamic":
        raise _refused("the blocks of a cluster cannot claim tiles one by one: they would not work on neighbours",
                       expected="persistent=none or static", got="persistent=dynamic")
    found = [a for a, axis in enumerate(kernel.grid) if name in (axis.name, axis.name.removesuffix("_tile"))]
    return found[0], n


def shared_loads(kernel: Kernel) -> dict[Op, int]:
    """Each load into shared memory whose copies the cluster shares -> how many blocks share it.

    Raises FcError "compile/schedule" where the blocks cannot run as a cluster, or have nothing to share."""
    axis = next((a for a, g in enumerate(kernel.grid) if g.cluster > 1), None)
    if axis is None or any(op.kind == "sum_blocks" for op in walk(kernel.body)):
        return {}  # blocks that share a loop's iterations have no tile in common
    grid, n = kernel.grid[axis], kernel.grid[axis].cluster
    name = grid.name.removesuffix("_tile")
    index = kernel.body.args[axis]
    varying = depending(kernel.body, index)
    same = {o for o in walk(kernel.body)
            if o.kind == "load" and isinstance(o.result.type, Buffer) and not any(v in varying for v in o.operands)}
    _check_lockstep(kernel.body, varying, same, name)
    out = {o: n for o in same if share(o.result.type, n) is not None}
    if not out:
        whole = next((o for o in walk(kernel.body) if o in same), None)
        if whole is not None:
            raise _refused(f"no tile that blocks along {name} share divides into {n} parts", loc=whole.loc, got=whole.result.type,
                           expected=f"{n} panels, or {8 * n} rows", hint="a smaller cluster, or larger tiles")
        raise _refused(f"the blocks along {name} share no tile: each copied tile lies at a place that depends on {name}",
                       hint=f"a cluster along another axis than {name}")
    _check_guards(kernel, grid, index, varying)
    return out


def _check_lockstep(block: Block, varying: set[Value], same: set[Op], name: str) -> None:
    for op in block.ops:
        if not op.regions:
            continue
        control = op.operands[:2] if op.kind == "for" else op.operands[:1]
        shared = [o for r in op.regions for o in walk(r) if o in same]
        if shared and any(v in varying for v in control):
            what = "how often this loop runs depends" if op.kind == "for" else "whether this branch is taken depends"
            raise _refused(f"{what} on {name}: blocks along it would not make their shared copies in step", loc=op.loc,
                           hint=f"no cluster along {name}, or bounds that do not depend on it (a mask that skips tiles makes them do)")
        for r in op.regions:
            _check_lockstep(r, varying, same, name)


def _check_guards(kernel: Kernel, grid: GridAxis, index: Value, varying: set[Value]) -> None:
    """Blocks outside of the grid must neither write nor read outside of tensors."""
    if isinstance(grid.dim, int) and grid.count({}) % grid.cluster == 0:
        return
    defs = definitions(kernel.body)
    name = grid.name.removesuffix("_tile")
    for op in walk(kernel.body):
        if op.kind not in ("load", "store") or (op.kind == "load" and isinstance(op.result.type, Buffer)):
            continue
        access = Access.of(op)
        if (op.kind == "store" or any(v in varying for v in access.scalars)) and not _guarded(access, grid, index, defs):
            what = "writes" if op.kind == "store" else "reads"
            raise _refused(f"a block outside of the grid, which fills up the last cluster, {what} where no guard keeps it off", loc=op.loc,
                           expected=f"an access of {name}'s own positions along a dimension of size {grid.dim}",
                           hint=f"a cluster along another axis than {name}")


def _guarded(access: Access, grid: GridAxis, index: Value, defs: dict[Value, Op]) -> bool:
    """Whether the access runs along the grid axis's own dimension from the tile's start on, guarded: all of it is outside for a block that
    is outside."""
    return any(a.guard and a.dim == grid.dim and a.start is not None and _start(a.start, grid, index, defs) for a in access.axes)


def _start(v: Value, grid: GridAxis, index: Value, defs: dict[Value, Op]) -> bool:
    if grid.tile == 1:
        return v is index
    d = defs.get(v)
    if d is None or d.kind != "mul" or index not in d.operands:
        return False
    return bool(const_of(d.operands[1] if d.operands[0] is index else d.operands[0], defs) == grid.tile)
