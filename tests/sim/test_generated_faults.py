"""Nothing that orders a generated kernel can be left out unseen: each such op is dropped, alone, and the simulator says so, naming the role
and the spec's line; or the op is in a table, with the reason why the kernel is right without it. One site of each fault in each kernel
is run, and all of them with FCGEN_ALL=1 in the environment."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fcgen.ir.async_ops import reaches_tensors
from fcgen.ir.core import Kernel, Op, walk_kernel
from fcgen.ir.types import Buffer, Mbarrier
from fcgen.sim.machine import simulate
from tests.sim.async_faults import ASYNC_FAULTS, role_of
from tests.sim.faults import FAULTS, Mutant

from .cases import EVERYTHING, sample
from .generated import CASES, Generated

RACE, STALE, DEADLOCK, LEFTOVER, PROTOCOL, PROXY, REGISTER, LAUNCH, WRONG = (
    "sim/race", "sim/stale", "sim/deadlock", "sim/leftover", "sim/protocol", "sim/proxy", "sim/register", "sim/launch", "wrong")

#: kind of op -> faults that take one away, with the codes one of which each of their mutants must show
DROPS: dict[str, dict[str, set[str]]] = {
    "mbar_wait": {"drop-phase-wait": {RACE, PROTOCOL}},
    "mbar_arrive": {"drop-arrive": {DEADLOCK, LEFTOVER}},  # leftover: where nobody fills that slot again
    "mbar_expect": {"drop-expect": {PROTOCOL, DEADLOCK}},  # deadlock: where no bytes follow
    "tma_load": {"drop-load": {DEADLOCK}},
    "advance": {"drop-advance": {PROTOCOL}},
    "wgmma_fence": {"drop-wgmma-fence": {REGISTER}},
    "wgmma_commit": {"drop-wgmma-commit": {STALE}},
    "settle": {"weaken-settle": {STALE}},
    "wgmma_wait": {"drop-wgmma-wait": {RACE, REGISTER}},  # register: what the product reads there is never let go
    "proxy_fence": {"drop-proxy-fence": {PROXY}},
    "barrier": {"drop-store-barrier": {RACE}},
    "syncwarp": {"drop-syncwarp": {RACE}},
    "bulk_commit": {"drop-bulk-commit": {RACE, LEFTOVER}},
    "bulk_wait": {"drop-read-wait": {RACE}, "drop-final-wait": {LEFTOVER}},
    "cluster_sync": {"drop-cluster-sync": {LEFTOVER}},
    "token_start": {"drop-token-start": {DEADLOCK}},
    "token_give": {"drop-token-give": {DEADLOCK}},
    "token_take": {"drop-token-take": {PROTOCOL}},
    "post": {"drop-post": {STALE, RACE, DEADLOCK}},  # deadlock: what was posted two tiles ago is taken for news
    "grid_wait": {"drop-grid-wait": {LAUNCH}},
    "claim_done": {"drop-claim-done": {LEFTOVER}},
}
#: ops in the wrong place, or for the wrong phase
MOVES = {"wrong-lag": {DEADLOCK, RACE, PROTOCOL}, "early-arrive": {RACE, PROTOCOL},  # protocol: what is let go
         # before it was waited for may be let go once more before its writer looks, who then sees the wrong parity
         "early-load": {RACE, PROTOCOL, LAUNCH}, "late-proxy-fence": {PROXY}, "late-read-wait": {RACE}, "early-bulk-store": {RACE, PROXY}}
EXPECTED = {**{name: codes for faults in DROPS.values() for name, codes in faults.items()}, **MOVES}
STORES = ("st_shared", "st_global", "stmatrix", "tma_store")
SPEED = ("launch_dependents",)  # nothing depends on it
ALL = {**FAULTS, **ASYNC_FAULTS}

#: (fault, cases, pattern of the site, why the kernel is right without it)
BENIGN: list[tuple[str, set[str], str, str]] = [
    ("drop-wgmma-fence", {"claims", "programs", "stores", "cluster"},
     r"^wgmma_fence [35]: wgmma_fence, before acc = wgmma \w+, v, late(, ones)?$",
     "the fence in front of the other product of the step covers it: between the two, nothing touches a register"),
    ("drop-phase-wait", {"claims"}, r"^mbar_wait 12: mbar_wait k_full, k_at, before mbar_arrive",
     "a K that this warpgroup does not read: it is started before the V that was waited for, or, in front of the first of a tile, a turn "
     "ago the other group had released all K: so the arrival falls into the right phase"),
    ("drop-phase-wait", {"programs"}, r"^mbar_wait [01]: mbar_wait [qk]_empty", "the first tile of a ring, which is empty"),
    ("drop-phase-wait", {"kept", "ahead", "in turn"}, r"^mbar_wait 0: mbar_wait b_empty", "the first tile of a ring, which is empty"),
    ("early-load", {"kept", "ahead", "in turn"}, r"^tma_load 0: tma_load B", "the first tile of a ring, which is empty"),
    ("drop-arrive", {"kept", "ahead", "in turn"}, r"^mbar_arrive 0: mbar_arrive b_empty", "nobody fills the slot of B again"),
    *((fault, {"ahead", "in turn"}, r"^mbar_arrive 1: mbar_arrive a(_tile)?_empty", "behind the loop: nobody fills the slot of the last A again")
      for fault in ("drop-arrive", "early-arrive")),
    ("drop-wgmma-fence", {"kept", "ahead"}, r"^wgmma_fence [123]: wgmma_fence, before (acc|s) = wgmma",
     "the fence in front of the other product covers it: between the two, nothing touches its registers"),
    ("drop-bulk-commit", {"ahead"}, r"^bulk_commit 1: bulk_commit, before acc = settle",
     "behind the loop: the store belongs to the next one's group then, and nobody writes its tile again"),
    ("drop-phase-wait", {"staged"}, r"^mbar_wait 0: mbar_wait b_empty", "the tile made in front of the loop is the first of a ring, which is empty"),
    *((fault, {"staged"}, rf"^{op} \d: {op}, before st_shared acc, acc_tile",
       "no product reads the tile that the last step made: `sync` has a fence at any barrier behind stores to a ring that products read")
      for fault, op in (("drop-proxy-fence", "proxy_fence"), ("late-proxy-fence", "barrier"))),
    ("early-load", {"programs"}, r"^tma_load 1: tma_load K", "the first tile of a ring, which is empty"),
    ("early-load", {"staged"}, r"^tma_load 0: tma_load B", "the tile made in front of the loop is the first of a ring, which is empty"),
    ("early-load", {"carried"}, r"^tma_load 1: tma_load B",
     "A's slot was waited for, and is released behind the same settle as B's; bytes may come before they are announced"),
    ("drop-syncwarp", {"carried", "made"}, r"^syncwarp 0: syncwarp, before st_shared acc, acc_tile$",
     "arrivals since the last tile have gathered the warp; `sync` does not count them"),
    ("early-arrive", {"programs"}, r"^mbar_arrive [34]: mbar_arrive [qv]_empty", "nobody fills the slots of Q and of the last V again"),
    ("drop-phase-wait", {"jobs", "sent"}, r"^mbar_wait 0: mbar_wait a_empty", "the first tile of a ring, which is empty"),
    ("early-load", {"jobs", "sent"}, r"^tma_load 0: tma_load A", "the first tile of a ring, which is empty"),
    ("drop-arrive", {"jobs", "sent"}, r"^mbar_arrive [01]: mbar_arrive a_empty", "nobody fills the slot of A again"),
    *((fault, {"sent"}, site, "a wait for the slots of P's ring, in case that something is stored over them, and here nothing is")
      for fault, site in (("drop-phase-wait", "^mbar_wait 8: mbar_wait p_tile_empty"), ("drop-advance", "^advance 6: p_tile_at"))),
    ("drop-wgmma-fence", {"jobs", "sent"}, r"^wgmma_fence 2: wgmma_fence, before d = wgmma",
     "the fence in front of the other product of the step covers it: between the two, nothing touches a register"),
    ("drop-bulk-commit", {"jobs", "sent"}, r"^bulk_commit \d: bulk_commit, before st_shared d", "C and D have places of their own, and the last wait is for all"),
]
#: (fault, cases, pattern of the site, why the report names those whom it misleads, and not its own role)
MISLED = [
    ("drop-post", {"claims", "stores", "cluster", "carried", "made"}, r".", "who reads what nobody posted cannot say who should have"),
    ("drop-phase-wait", {"cluster"}, r"^mbar_wait 10: mbar_wait k_full, k_at, before mbar_arrive",
     "a K that nobody reads: it is let go before it has landed, and what shows is that its slot is filled again"),
    ("drop-phase-wait", {"carried"}, r"^mbar_wait 3: mbar_wait [ab]_tile_empty",
     "a slot is filled again too early, and those who let tiles go unread are a phase ahead of the others: they are named"),
]


def reason(case: str, name: str, site: str, table: list[tuple[str, set[str], str, str]] = BENIGN) -> str | None:
    return next((why for f, cases, pattern, why in table if f == name and case in cases and re.search(pattern, site)), None)


def show(case: Generated, mutant: Kernel, silent: bool = False, stop: bool = False) -> tuple[set[str], str]:
    """(codes, all reports as text) of the first run in which the mutant shows. stop: only its first report. silent: none is expected to, so that all will run: each
    number of steps with two of the four seeds, in turns."""
    for n, steps in enumerate(case.counts):
        for seed in range(4) if EVERYTHING or not silent else (n % 2, 2 + n // 2 % 2):
            arguments, expected = case.draw(seed, steps)
            result = simulate(mutant, arguments, case.program.target, seed=seed, stop=stop)
            codes = {e.code for e in result.reports}
            if not all(np.allclose(result.outputs[n].astype(np.float64), want, rtol=5e-3, atol=5e-3) for n, want in expected.items()):
                codes.add(WRONG)
            if codes:
                return codes, "\n".join(map(str, result.reports))
    return set(), ""


def concerned(kernel: Kernel, op: Op) -> tuple[set[str], set[str]]:
    """(spec lines, buffers and barriers) that an op has to do with: its own and those of the ops on the same ring or barriers; of an op on
    none, those around it."""
    ops = list(walk_kernel(kernel))
    slots = {o.result: o.operands[0] for o in ops if o.kind == "slot"}
    places = lambda o: {slots.get(v, v) for v in o.operands if isinstance(v.type, (Buffer, Mbarrier))}
    ring = {re.sub("_(full|empty)$", "", v.name) for v in places(op)}
    if op.kind == "advance":
        ring = {v.name.removesuffix("_at") for v in op.operands}
    same = lambda o: any(re.sub("_(full|empty)$", "", v.name) in ring for v in places(o))
    at = next(n for n, o in enumerate(ops) if o is op)
    near = [o for o in ops if same(o)] if ring else ops[max(0, at - 4):at + 5]
    if op.kind == "grid_wait":  # what should have waited
        near = [o for o in ops[at:] if reaches_tensors(o)]
    return {o.loc.short for o in [op, *near] if o.loc is not None}, ring


def complaint(case: Generated, name: str, mutant: Mutant) -> str | None:
    """What is wrong with the way in which a mutant shows. Where the first report does not say enough, all are asked."""
    return _complaint(case, name, mutant, True) and _complaint(case, name, mutant, False)


def _complaint(case: Generated, name: str, mutant: Mutant, stop: bool) -> str | None:
    why = reason(case.name, name, mutant.site)
    codes, text = show(case, mutant.kernel, why is not None, stop)
    if why is not None:
        return f"{sorted(codes)}, said to be benign: {why}" if codes else None
    if not codes & EXPECTED[name]:
        return f"{sorted(codes) or 'not seen'}\n{text}"
    if reason(case.name, name, mutant.site, MISLED):
        return None
    assert mutant.op is not None
    role, (lines, ring) = role_of(case.kernel, mutant.op), concerned(case.kernel, mutant.op)
    if f"role {role}" not in text:
        return f"does not name role {role}:\n{text}"
    named = lambda words: any(re.search(rf"(?<!\\w){re.escape(w)}(?!\\w|\\d)", text) for w in words)
    if lines and not named(lines):
        return f"names none of {sorted(lines)}:\n{text}"
    words = {r + end for r in ring for end in ("", "_full", "_empty")} or {mutant.op.kind.partition("_")[0]}
    if not lines and not named(words):
        return f"names none of {sorted(words)}:\n{text}"
    return None


@pytest.mark.parametrize("case", CASES)
def test_as_generated_it_is_silent_and_right(case: str) -> None:
    assert show(CASES[case], CASES[case].kernel, True) == (set(), "")


FITS = [(c, name) for c in CASES for name in EXPECTED if any(True for _ in ALL[name].mutants(CASES[c].kernel))]


@pytest.mark.parametrize(("case", "name"), FITS)
def test_every_mutant_shows(case: str, name: str) -> None:
    c = CASES[case]
    found = [(m, complaint(c, name, m)) for m in sample(ALL[name].mutants(c.kernel), case + name, 1)]
    wrong = [f"{m.site} ({m.loc}): {what}" for m, what in found if what]
    assert not wrong, "\n".join(wrong)


def test_every_op_that_orders_something_is_dropped_once() -> None:
    """An op without results is there for what it does. Stores aside, whose absence the numbers show, that is to order."""
    kinds: set[str] = set()
    for c in CASES.values():
        ops = [op for op in walk_kernel(c.kernel) if op.kind in ("settle", "advance")
               or not (op.results or op.regions or op.kind == "yield" or op.kind in STORES + SPEED)]
        assert {op.kind for op in ops} <= set(DROPS)
        for kind in {op.kind for op in ops}:
            dropped = [m for name in DROPS[kind] for m in ALL[name].mutants(c.kernel)]
            assert len(dropped) == sum(op.kind == kind for op in ops), kind
        kinds |= {op.kind for op in ops}
    assert kinds == set(DROPS)


def test_every_site_in_a_table_exists() -> None:
    for fault, cases, pattern, why in BENIGN + MISLED:
        for case in cases:
            assert any(re.search(pattern, m.site) for m in ALL[fault].mutants(CASES[case].kernel)), (fault, case, why)
