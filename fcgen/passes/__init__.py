"""The compiler's passes. `PIPELINE` is the table of contents: what happens to a program, in order.

A pass is `run(kernel, schedule, target) -> kernel`: it takes a verified program and returns a new one that means the same. Its
module says what comes in, what goes out and what is guaranteed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import FcError, did_you_mean
from ..ir.core import Kernel
from ..ir.schedule import Schedule
from ..ir.target import Target
from ..ir.verify import Known, verify
from .machine import (
    ahead,
    alloc,
    alternate,
    at_use,
    behind,
    counted,
    early_launch,
    early_reads,
    overlap,
    select,
    sender,
    sync,
    tidy,
    together,
)
from .memory import pieces, pipeline, prefetch, prologues, roles
from .registers import branches, defer, held, one_place, place, vote
from .tile import (
    bind,
    factors,
    flatten,
    from_end,
    limits,
    order,
    pad,
    parts,
    ranges,
    row_sums,
    scale,
    signs,
    simplify,
    skew,
    split_loops,
    totals,
)


@dataclass(frozen=True)
class Pass:
    """name: what `stop_after` and traces call it; a pass that runs again has a number (`simplify.2`)."""

    name: str
    run: Callable[[Kernel, Schedule, Target], Kernel]
    doc: str


PIPELINE: tuple[Pass, ...] = (
    Pass("bind", bind.run, "names of the schedule are looked up: loads and dots get sites, and what was decided about them"),
    Pass("ranges", ranges.run, "which sizes and scalars a launch admits, so that no arithmetic on positions overflows"),
    Pass("simplify", simplify.run, "fold constants, compute once, move what does not change out of loops, exp and log in base 2"),
    Pass("totals", totals.run, "what a loop adds to one place of memory is summed up, and added once behind it"),
    Pass("scale", scale.run, "positive factors move out of maxima, masks and loops to where they cost least"),
    Pass("simplify.2", simplify.run, "merge the factors that have met"),
    Pass("signs", signs.run, "a loop that multiplies by a number of unknown sign is written twice, once for one above zero"),
    Pass("parts", parts.run, "blocks of a cluster share a loop that adds up, and one of them adds up what they found"),
    Pass("pad", pad.run, "axes become multiples of what matrix instructions work on"),
    Pass("from_end", from_end.run, "tiles of the axes named in `from_end` are counted from the end: the ragged one comes first"),
    Pass("split_loops", split_loops.run, "leave out dead tiles; separate copies of a loop for masked and for whole tiles"),
    Pass("simplify.3", simplify.run, "remove the masks that are constant in a copy"),
    Pass("limits", limits.run, "masks on positions become one comparison per element"),
    Pass("factors", factors.run, "of a product of tiles, those that are known early are multiplied early"),
    Pass("order", order.run, "programs that share tiles run together, those with the most work first"),
    Pass("row_sums", row_sums.run, "row sums named in `ones` become columns of the dots that read the same tile"),
    Pass("flatten", flatten.run, "a loop that does nothing but run another one becomes one loop with it"),
    Pass("skew", skew.run, "dots named in `late` run one iteration behind, so that two are in flight"),
    Pass("ranges.2", ranges.run, "the same, for the bounds and limits that were made"),
    # from here on: machine IR
    Pass("place", place.run, "a memory space and a layout for every tile; changes of layout are explicit"),
    Pass("defer", defer.run, "lane sums carried by a loop are finished once, after it"),
    Pass("vote", vote.run, "what hangs on a rarely true row condition is skipped by a vote of the warp"),
    Pass("held", held.run, "what follows from rows that only a rare branch changes is carried, votes included"),
    Pass("branches", branches.run, "choices that a scalar decides for a whole tile become branches"),
    Pass("one_place", one_place.run, "tiles that are read of one place of a tensor are read once"),
    Pass("prologues", prologues.run, "operands that a loop computes are made while the products of the tile before run"),
    Pass("pieces", pieces.run, "tiles on their way from shared memory to shared memory pass through registers a few rows at a time"),
    Pass("pipeline", pipeline.run, "shared tiles become rings that are filled ahead of their readers"),
    Pass("roles", roles.run, "bulk copies become a role of their own; tiles pass through channels of full and empty barriers"),
    Pass("prefetch", prefetch.run, "tables, and rows that no ring takes, are read an iteration before they are used"),
    Pass("select", select.run, "dots, staging, loads and stores become the target's instructions"),
    Pass("behind", behind.run, "products named in `behind` follow an iteration behind what they read, which goes through a channel"),
    Pass("alternate", alternate.run, "tiles that a loop stages for its products lie in two places in turn, where there is room"),
    Pass("ahead", ahead.run, "products named in `early` are issued behind the last product of the iteration before"),
    Pass("early_reads", early_reads.run, "tiles that meet a product's result are read while it runs"),
    Pass("overlap", overlap.run, "products in flight are waited for where their results are needed"),
    Pass("at_use", at_use.run, "rows in rings are read where element work uses them, and let go behind it"),
    Pass("sender", sender.run, "with `sender`: a thread of its own starts the bulk stores of loops and waits for them"),
    Pass("counted", counted.run, "what a loop divides its index by is counted along"),
    Pass("tidy", tidy.run, "scalar constants folded, nothing computed twice"),
    Pass("early_launch", early_launch.run, "with `pdl`: what touches tensors waits for the kernels in front, the rest does not"),
    Pass("together", together.run, "what blocks of a cluster found comes into shared memory of the first one"),
    Pass("alloc", alloc.run, "shared-memory offsets; buffers whose uses are apart share bytes"),
    Pass("sync", sync.run, "barriers and waits where the hazards are"),
)


def run_passes(kernel: Kernel, schedule: Schedule, target: Target, stop_after: str | None = None,
               trace: Callable[[str, Kernel], None] | None = None) -> Kernel:
    """Run the pipeline, to its end or through the pass called `stop_after`, verifying after each pass.

    trace(name, kernel) sees the program after each pass. A program that stops verifying is a mistake in a pass: the error names
    the pass and shows the program."""
    names = [p.name for p in PIPELINE]
    if stop_after is not None and stop_after not in names:
        raise FcError("compile/schedule", "no pass has this name", expected=", ".join(names), got=stop_after,
                      hint=did_you_mean(stop_after, names))
    known: Known = {}
    for p in PIPELINE:
        before, kernel = kernel, p.run(kernel, schedule, target)
        try:
            if kernel is not before:
                verify(kernel, known=known)
        except FcError as e:
            raise FcError(e.code, f"internal error: after the pass {p.name}: {e.message}", expected=e.expected, got=e.got,
                          loc=e.loc, notes=[*e.notes, "the program:", *str(kernel).splitlines()],
                          hint="this is a bug in fcgen, not in your kernel: please report it with this text") from e
        if trace is not None:
            trace(p.name, kernel)
        if p.name == stop_after:
            break
    return kernel
