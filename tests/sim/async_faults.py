"""Faults planted in kernels of asynchronous engines: mbarriers, bulk copies, wgmma, proxies, tokens, tiles handed out at run time.

`ASYNC_FAULTS[name].mutants(kernel)` as in `faults`. A mutant need not be a kernel that `verify` accepts: some of these mistakes the types
refuse, and the simulator must see them all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

from fcgen.ir.async_ops import accumulator
from fcgen.ir.core import Kernel, Op, Value, walk, walk_kernel
from fcgen.ir.rewrite import Env, map_bodies, substitute_block
from fcgen.ir.types import Buffer, Cursor, Mbarrier, Pending

from .faults import Fault, Mutant, _blocks, _drop, _replace, _sites, _substitute, fault

#: name -> fault
ASYNC_FAULTS: dict[str, Fault] = {}
Make = Callable[[Kernel], Iterator[Mutant]]


def _fault(name: str) -> Callable[[Make], Make]:
    return fault(name, ASYNC_FAULTS)


def _change(kernel: Kernel, kind: str, edit: Callable[[Op], tuple[Op, ...] | None]) -> Iterator[Mutant]:
    """Each op of a kind replaced by others; None: the fault does not fit here."""
    for op, words in _sites(kernel, kind):
        new = edit(op)
        if new is not None:
            yield Mutant(_replace(kernel, {op: new}), op.loc, words, op)


def _move_before(kernel: Kernel, kinds: tuple[str, ...], past: tuple[str, ...]) -> Iterator[Mutant]:
    """An op moved to the front of the nearest op of `past` before it in its block, if one is there."""
    words = {id(op): text for kind in kinds for op, text in _sites(kernel, kind)}
    for block in _blocks(kernel):
        before: Op | None = None
        for op in block.ops:
            if op.kind in kinds and before is not None:
                yield Mutant(_replace(kernel, {op: (), before: (op, before)}), op.loc, f"{words[id(op)]}: before {before.kind}, {op.loc}",
                             op)
            elif op.kind in past:
                before = op


# ---- mbarriers -----------------------------------------------------------------------------------------------------------


@_fault("drop-arrive")
def _drop_arrive(kernel: Kernel) -> Iterator[Mutant]:
    """An `mbar_arrive` is missing."""
    return _drop(kernel, "mbar_arrive")


@_fault("drop-phase-wait")
def _drop_phase_wait(kernel: Kernel) -> Iterator[Mutant]:
    """An `mbar_wait` is missing."""
    return _drop(kernel, "mbar_wait")


@_fault("wrong-lag")
def _wrong_lag(kernel: Kernel) -> Iterator[Mutant]:
    """A wait is for the phase before, or after, the one that it needs."""
    return _change(kernel, "mbar_wait", lambda op: (op.with_attrs(lag=1 - op["lag"]),))


@_fault("early-arrive")
def _early_arrive(kernel: Kernel) -> Iterator[Mutant]:
    """A slot is released in front of the settle that ends its reads."""
    return _move_before(kernel, ("mbar_arrive",), ("settle",))


@_fault("arrive-twice")
def _arrive_twice(kernel: Kernel) -> Iterator[Mutant]:
    """A warp arrives twice in one phase."""
    return _change(kernel, "mbar_arrive", lambda op: (op, replace(op)))


@_fault("more-bytes")
def _more_bytes(kernel: Kernel) -> Iterator[Mutant]:
    """More bytes are announced than come."""
    return _change(kernel, "mbar_expect", lambda op: (op.with_attrs(bytes=op["bytes"] + 128),))


@_fault("fewer-bytes")
def _fewer_bytes(kernel: Kernel) -> Iterator[Mutant]:
    """Fewer bytes are announced than come."""
    return _change(kernel, "mbar_expect", lambda op: (op.with_attrs(bytes=op["bytes"] - 128),))


@_fault("drop-expect")
def _drop_expect(kernel: Kernel) -> Iterator[Mutant]:
    """An `mbar_expect` is missing."""
    return _drop(kernel, "mbar_expect")


def _counts(kernel: Kernel, more: int) -> Iterator[Mutant]:
    for b in kernel.buffers:
        if isinstance(b.type, Mbarrier) and b.type.count + more > 0:
            yield Mutant(_substitute(kernel, {b: Value(replace(b.type, count=b.type.count + more), b.name)}), None, f"barriers {b.name}")


@_fault("count-more")
def _count_more(kernel: Kernel) -> Iterator[Mutant]:
    """A barrier counts one arrival more than it gets."""
    return _counts(kernel, 1)


@_fault("count-less")
def _count_less(kernel: Kernel) -> Iterator[Mutant]:
    """A barrier counts one arrival less than it gets."""
    return _counts(kernel, -1)


def _other(kernel: Kernel, kind: str) -> Iterator[Mutant]:
    for op, words in _sites(kernel, kind):
        other = next((b for b in kernel.buffers if isinstance(b.type, Mbarrier) and b is not op.operands[0]
                      and b.type.slots == op.operands[0].type.slots), None)
        if other is not None:
            yield Mutant(_replace(kernel, {op: (replace(op, operands=(other, *op.operands[1:])),)}), op.loc, words, op)


@_fault("wait-other")
def _wait_other(kernel: Kernel) -> Iterator[Mutant]:
    """A wait is on the other barriers of its ring: full and empty exchanged."""
    return _other(kernel, "mbar_wait")


@_fault("arrive-other")
def _arrive_other(kernel: Kernel) -> Iterator[Mutant]:
    """An arrival is on the other barriers of its ring."""
    return _other(kernel, "mbar_arrive")


# ---- clusters ------------------------------------------------------------------------------------------------------------


def _alone(op: Op) -> Op:
    return replace(op, attrs={name: v for name, v in op.attrs.items() if name != "cluster"})


@_fault("own-arrive")
def _own_arrive(kernel: Kernel) -> Iterator[Mutant]:
    """A slot that several blocks fill is released in the warp's own block alone."""
    return _change(kernel, "mbar_arrive", lambda op: (_alone(op),) if op.get("cluster") else None)


@_fault("forget-peers")
def _forget_peers(kernel: Kernel) -> Iterator[Mutant]:
    """The same, and the barriers count the block's own arrivals alone."""
    bars = {op.operands[0]: op["cluster"] for op in walk_kernel(kernel) if op.kind == "mbar_arrive" and op.get("cluster")}
    for b, blocks in bars.items():
        lone = {op: (_alone(op),) for op in walk_kernel(kernel) if op.kind == "mbar_arrive" and op.operands[0] is b}
        fewer = Value(replace(b.type, count=b.type.count // blocks), b.name)
        yield Mutant(_substitute(_replace(kernel, lone), {b: fewer}), None, f"barriers {b.name}")


@_fault("drop-cluster-sync")
def _drop_cluster_sync(kernel: Kernel) -> Iterator[Mutant]:
    """A `cluster_sync` is missing."""
    return _drop(kernel, "cluster_sync")


# ---- rings and copies ----------------------------------------------------------------------------------------------------


@_fault("drop-load")
def _drop_load(kernel: Kernel) -> Iterator[Mutant]:
    """A `tma_load` is missing."""
    return _drop(kernel, "tma_load")


@_fault("early-load")
def _early_load(kernel: Kernel) -> Iterator[Mutant]:
    """A copy starts in front of the wait for its slot."""
    return _move_before(kernel, ("tma_load",), ("mbar_wait",))


@_fault("one-stage-fewer")
def _one_stage_fewer(kernel: Kernel) -> Iterator[Mutant]:
    """A ring has one slot fewer than its cursors and barriers count."""
    for b in kernel.buffers:
        if isinstance(b.type, Buffer) and b.type.slots > 1:
            yield Mutant(_substitute(kernel, {b: Value(replace(b.type, slots=b.type.slots - 1), b.name)}), None, f"ring {b.name}")


def _slots(kernel: Kernel, users: tuple[str, ...]) -> Iterator[Mutant]:
    used = {v for op in walk_kernel(kernel) if op.kind in users for v in op.operands}
    for op, words in _sites(kernel, "slot"):
        if op.result in used and isinstance(op.operands[1].type, Cursor) and op.operands[0].type.slots > 1:
            yield Mutant(_replace(kernel, {op: (op.with_attrs(ahead=op["ahead"] + 1),)}), op.loc, words, op)


@_fault("load-far")
def _load_far(kernel: Kernel) -> Iterator[Mutant]:
    """A copy, or a post, goes to the slot after its own."""
    return _slots(kernel, ("tma_load", "post"))


@_fault("read-far")
def _read_far(kernel: Kernel) -> Iterator[Mutant]:
    """A wgmma, or a fetch, reads the slot after its own."""
    return _slots(kernel, ("wgmma", "fetch"))


@_fault("drop-advance")
def _drop_advance(kernel: Kernel) -> Iterator[Mutant]:
    """A cursor stays where it is."""
    for op, words in _sites(kernel, "advance"):
        stays = Env({op.result: op.operands[0]})
        yield Mutant(map_bodies(_replace(kernel, {op: ()}), lambda body, env=stays: substitute_block(body, env)),  # type: ignore[misc]
                     op.loc, words, op)


# ---- wgmma ---------------------------------------------------------------------------------------------------------------


@_fault("drop-wgmma-fence")
def _drop_wgmma_fence(kernel: Kernel) -> Iterator[Mutant]:
    """A `wgmma_fence` is missing."""
    return _drop(kernel, "wgmma_fence")


@_fault("drop-wgmma-commit")
def _drop_wgmma_commit(kernel: Kernel) -> Iterator[Mutant]:
    """A `wgmma_commit` is missing."""
    return _drop(kernel, "wgmma_commit")


@_fault("weaken-settle")
def _weaken_settle(kernel: Kernel) -> Iterator[Mutant]:
    """A `settle` lets one more group be in flight."""
    return _change(kernel, "settle", lambda op: (op.with_attrs(groups=op["groups"] + 1),))


@_fault("drop-wgmma-wait")
def _drop_wgmma_wait(kernel: Kernel) -> Iterator[Mutant]:
    """A `wgmma_wait` is missing: what follows does not know that the product before the last is done."""
    return _drop(kernel, "wgmma_wait")


@_fault("forget-left")
def _forget_left(kernel: Kernel) -> Iterator[Mutant]:
    """A `settle` does not name the left operand in registers."""
    def edit(op: Op) -> tuple[Op, ...] | None:
        kept = tuple(v for v in op.operands if isinstance(v.type, Pending))
        return (replace(op, operands=kept),) if len(kept) < len(op.operands) else None

    return _change(kernel, "settle", edit)


@_fault("touch-accumulator")
def _touch_accumulator(kernel: Kernel) -> Iterator[Mutant]:
    """An ordinary instruction reads an accumulator between the fence and the wgmma that is given it."""
    def edit(op: Op) -> tuple[Op, ...] | None:
        if accumulator(op) is None or isinstance(op.operands[2].type, Pending):
            return None
        acc = op.operands[2]
        return Op("add", (acc, acc), (Value(acc.type, "touched"),), loc=op.loc), op

    return _change(kernel, "wgmma", edit)


# ---- proxies -------------------------------------------------------------------------------------------------------------


@_fault("drop-proxy-fence")
def _drop_proxy_fence(kernel: Kernel) -> Iterator[Mutant]:
    """A `proxy_fence` is missing."""
    return _drop(kernel, "proxy_fence")


@_fault("late-proxy-fence")
def _late_proxy_fence(kernel: Kernel) -> Iterator[Mutant]:
    """The proxy fence comes after the barrier that shows the stores to the other warps."""
    return _move_before(kernel, ("barrier",), ("proxy_fence",))


@_fault("drop-store-barrier")
def _drop_store_barrier(kernel: Kernel) -> Iterator[Mutant]:
    """A `barrier` of a role is missing."""
    return _drop(kernel, "barrier")


# ---- bulk stores ---------------------------------------------------------------------------------------------------------


@_fault("drop-read-wait")
def _drop_read_wait(kernel: Kernel) -> Iterator[Mutant]:
    """A staging buffer is written without a wait for the store that reads it."""
    last = _final_waits(kernel)
    return _change(kernel, "bulk_wait", lambda op: () if op["read"] and op not in last else None)


@_fault("weaken-read-wait")
def _weaken_read_wait(kernel: Kernel) -> Iterator[Mutant]:
    """A wait for bulk stores lets one more be under way."""
    last = _final_waits(kernel)
    return _change(kernel, "bulk_wait", lambda op: (op.with_attrs(n=op["n"] + 1),) if op["read"] and op not in last else None)


@_fault("late-read-wait")
def _late_read_wait(kernel: Kernel) -> Iterator[Mutant]:
    """The wait for a bulk store comes after the barrier that tells the other warps of it."""
    for block in _blocks(kernel):
        for op, after in pairwise(o for o in block.ops if o.kind != "proxy_fence"):
            if op.kind == "bulk_wait" and after.kind == "barrier":
                yield Mutant(_replace(kernel, {op: (), after: (after, op)}), op.loc, f"bulk_wait after barrier, {op.loc}", op)


@_fault("drop-final-wait")
def _drop_final_wait(kernel: Kernel) -> Iterator[Mutant]:
    """The kernel ends while bulk stores read shared memory."""
    last = _final_waits(kernel)
    return _change(kernel, "bulk_wait", lambda op: () if op in last else None)


def _final_waits(kernel: Kernel) -> set[Op]:
    """Waits for bulk stores at the ends of roles."""
    return {next(op for op in reversed(r.body.ops) if op.kind not in ("claim_done", "cluster_sync", "wait_group")) for r in kernel.roles}


@_fault("drop-bulk-commit")
def _drop_bulk_commit(kernel: Kernel) -> Iterator[Mutant]:
    """A `bulk_commit` is missing: no wait covers the store."""
    return _drop(kernel, "bulk_commit")


@_fault("early-bulk-store")
def _early_bulk_store(kernel: Kernel) -> Iterator[Mutant]:
    """A bulk store starts in front of the barrier that shows it what the other warps staged."""
    return _move_before(kernel, ("tma_store",), ("barrier",))


# ---- turns ---------------------------------------------------------------------------------------------------------------


@_fault("drop-token-start")
def _drop_token_start(kernel: Kernel) -> Iterator[Mutant]:
    """Nobody has the token at first."""
    return _drop(kernel, "token_start")


@_fault("drop-token-give")
def _drop_token_give(kernel: Kernel) -> Iterator[Mutant]:
    """The token is kept."""
    return _drop(kernel, "token_give")


@_fault("drop-token-take")
def _drop_token_take(kernel: Kernel) -> Iterator[Mutant]:
    """A turn is not waited for."""
    return _drop(kernel, "token_take")


@_fault("take-twice")
def _take_twice(kernel: Kernel) -> Iterator[Mutant]:
    """The token is taken twice."""
    return _change(kernel, "token_take", lambda op: (op, replace(op)))


@_fault("give-twice")
def _give_twice(kernel: Kernel) -> Iterator[Mutant]:
    """The token is given twice."""
    return _change(kernel, "token_give", lambda op: (op, replace(op)))


# ---- tiles handed out at run time ------------------------------------------------------------------------------------------


@_fault("drop-post")
def _drop_post(kernel: Kernel) -> Iterator[Mutant]:
    """A number is announced and never written."""
    return _drop(kernel, "post")


@_fault("drop-claim-done")
def _drop_claim_done(kernel: Kernel) -> Iterator[Mutant]:
    """The counter of tiles is left as it is."""
    return _drop(kernel, "claim_done")


@_fault("drop-grid-wait")
def _drop_grid_wait(kernel: Kernel) -> Iterator[Mutant]:
    """A role does not wait for the kernels in front."""
    return _drop(kernel, "grid_wait")


def role_of(kernel: Kernel, op: Op) -> str | None:
    """The role that has an op."""
    return next((r.name for r in kernel.roles if any(o is op for o in walk(r.body))), None)
