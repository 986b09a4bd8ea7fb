"""Every fault planted in a kernel of asynchronous engines shows, and its report names the role, and the op or what it works on."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fcgen.build.compiler import target
from fcgen.errors import FcError
from fcgen.ir.core import Kernel, walk
from fcgen.sim.machine import simulate
from tests.sim.async_faults import ASYNC_FAULTS, role_of
from tests.sim.faults import FAULTS, Mutant

from . import generated
from .hopper import CASES, Case

RACE, STALE, DEADLOCK, LEFTOVER, PROTOCOL, PROXY, REGISTER, WRONG = (
    "sim/race", "sim/stale", "sim/deadlock", "sim/leftover", "sim/protocol", "sim/proxy", "sim/register", "wrong")

#: fault -> codes, one of which each of its mutants must show
EXPECTED: dict[str, set[str]] = {
    "drop-arrive": {DEADLOCK},
    "drop-phase-wait": {RACE, PROTOCOL},
    "wrong-lag": {DEADLOCK, RACE, PROTOCOL},
    "early-arrive": {RACE},
    "arrive-twice": {PROTOCOL},
    "more-bytes": {DEADLOCK},
    "fewer-bytes": {PROTOCOL},
    "drop-expect": {DEADLOCK},  # bytes may come before they are announced; the arrival is what never comes
    "count-more": {DEADLOCK},
    "count-less": {PROTOCOL, RACE},
    "wait-other": {DEADLOCK, RACE, PROTOCOL},
    "arrive-other": {PROTOCOL, DEADLOCK},
    "drop-load": {DEADLOCK},
    "early-load": {RACE, PROTOCOL},
    "one-stage-fewer": {RACE},
    "load-far": {RACE, STALE},
    "read-far": {RACE, WRONG},  # a tile that was read before and not yet overwritten: only the numbers tell
    "drop-advance": {PROTOCOL},
    "drop-wgmma-fence": {REGISTER},
    "drop-wgmma-commit": {STALE},
    "weaken-settle": {STALE},
    "drop-wgmma-wait": {RACE},
    "forget-left": {REGISTER},
    "touch-accumulator": {REGISTER},
    "drop-proxy-fence": {PROXY},
    "late-proxy-fence": {PROXY},
    "drop-store-barrier": {RACE},
    "drop-read-wait": {RACE},
    "weaken-read-wait": {RACE},
    "late-read-wait": {RACE},
    "drop-final-wait": {LEFTOVER},
    "drop-bulk-commit": {RACE, LEFTOVER},
    "early-bulk-store": {RACE, PROXY},
    "drop-token-start": {DEADLOCK},
    "drop-token-give": {DEADLOCK},
    "drop-token-take": {PROTOCOL},
    "take-twice": {DEADLOCK},
    "give-twice": {PROTOCOL},
    "drop-post": {STALE, RACE, DEADLOCK},  # deadlock: what was posted two tiles ago is taken for news
    "drop-claim-done": {LEFTOVER},
    "drop-grid-wait": {"sim/launch"},
    "own-arrive": {DEADLOCK},
    "forget-peers": {RACE},
    "drop-cluster-sync": {LEFTOVER},
}

#: (fault, cases, pattern of the site, why it changes nothing)
BENIGN = [
    ("drop-arrive", {"chain-2", "chain-3"}, r"v_empty, ev, before st_global", "nobody fills the slot of the last tile again"),
    ("early-arrive", {"chain-2", "chain-3"}, r"before settle, chain-\d.fcir:93", "the same"),
    ("drop-arrive", {"tiles-2"}, r"empty, e$", "nobody fills the slot of the last number again"),
    ("early-arrive", {"chain-2", "chain-3"}, r"before settle, chain-\d.fcir:79",
     "K is refilled behind a V whose release followed `settle groups = 0`: the producer's own order covers it"),
    ("late-proxy-fence", {"turns-2"}, r".", "taking the token is a barrier of the warpgroup, and each reads its own rows"),
    ("drop-store-barrier", {"turns-2"}, r"^barrier 1", "the same"),
]


def reason(case: str, name: str, site: str) -> str | None:
    return next((why for f, cases, pattern, why in BENIGN if f == name and case in cases and re.search(pattern, site)), None)


def show(case: Case, mutant: Kernel, stop: bool = False) -> tuple[set[str], str]:
    """(codes, all reports as text) of the first run in which the mutant shows. stop: only its first report."""
    for steps in sorted(case.counts(), key=lambda n: abs(n - case.stages - 1)):
        for seed in range(4):
            arguments, expected = case.draw(seed, steps)
            try:
                result = simulate(mutant, arguments, target("sm_90a"), seed=seed, stop=stop)
            except FcError as e:
                return {e.code}, str(e)
            codes = {e.code for e in result.reports}
            if not all(np.allclose(result.outputs[n], want, rtol=5e-3, atol=5e-3) for n, want in expected.items()):
                codes.add(WRONG)
            if codes:
                return codes, "\n".join(map(str, result.reports))
    return set(), ""


def names(kernel: Kernel, mutant: Mutant) -> tuple[str | None, list[str]]:
    """(role, any of these must be named): the op's line or that of a neighbour, or the buffers and barriers that these work on."""
    if mutant.op is None:
        return None, [mutant.site.split()[-1]]
    ops = [op for r in kernel.roles for op in walk(r.body)]
    at = next(n for n, op in enumerate(ops) if op is mutant.op)
    made = {r: op for op in ops for r in op.results}
    near = ops[max(0, at - 3):at + 5] + [op for op in ops if ops[at].kind == "advance" and set(op.operands) & set(ops[at].operands)]
    words = [op.loc.short for op in near if op.loc is not None]
    for v in (v for op in near for v in op.operands):
        ring = made[v].operands[0] if v in made and made[v].kind == "slot" else v
        words += [ring.name] if ring in kernel.buffers else []
    words += ["mbar_arrive"] if ops[at].kind == "cluster_sync" else []  # what reaches a block that may have ended
    words += ["named barrier"] if ops[at].kind.startswith("token") else []
    post = ops[at].kind == "post" or any(op.kind == "post" and set(op.operands) & set(ops[at].results) for op in ops)
    return None if post else role_of(kernel, mutant.op), words  # who reads what nobody posted cannot say who should have


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("case", ["gemm-2", "chain-2", "turns-2", "stores-2", "tiles-2", "bulk-1", "pair-2"])
def test_every_mutant_shows(case, name):
    c = CASES[case]
    unexpected = [f"{m.site}: {wrong}" for m in ASYNC_FAULTS[name].mutants(c.kernel) if complaint(c, name, m, True) and (wrong := complaint(c, name, m, False))]
    assert not unexpected, "\n".join(unexpected)


def complaint(case, name, mutant, stop):
    """What is wrong with the way in which a mutant shows. stop: in its first report."""
    codes, text = show(case, mutant.kernel, stop)
    why = reason(case.name, name, mutant.site)
    if why is not None:
        return f"{sorted(codes)}, said to be benign: {why}" if codes else None
    role, words = names(case.kernel, mutant)
    if codes == {"ir/verify"}:
        return None  # refused before it runs
    if not codes & EXPECTED[name]:
        return f"{sorted(codes) or 'not seen'}\n{text}"
    if codes != {WRONG} and not ((role is None or f"role {role}" in text) and any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text) for w in words)):
        return f"names neither role {role} nor {words}:\n{text}"
    return None


def test_table_is_complete():
    assert set(EXPECTED) == set(ASYNC_FAULTS) and not set(ASYNC_FAULTS) & set(FAULTS)
    assert len(FAULTS) + len(ASYNC_FAULTS) >= 30
    for name, f in ASYNC_FAULTS.items():
        assert f.name == name and f.doc.endswith(".")
        assert any(True for c in (*CASES.values(), *generated.CASES.values()) for _ in f.mutants(c.kernel)), f"{name} fits nowhere"
    for name, cases, pattern, why in BENIGN:
        for case in cases:
            assert any(re.search(pattern, m.site) for m in ASYNC_FAULTS[name].mutants(CASES[case].kernel)), (name, case, why)


def test_a_deadlock_says_who_waits_for_what():
    mutant = next(ASYNC_FAULTS["drop-arrive"].mutants(CASES["gemm-2"].kernel))
    text = show(CASES["gemm-2"], mutant.kernel)[1]
    assert re.search(r"role load: waits at mbar_wait empty, n +\(gemm-2.fcir:\d+\) for the end of phase 0; empty\[slot 0\] is in phase 0 and "
                     r"lacks 8 of its 8 arrivals", text)
    assert "role main, warps 0, 1, 2, 3, 4, 5, 6, 7: waits at mbar_wait full, n" in text


def test_an_early_release_names_both_sides():
    mutant = next(ASYNC_FAULTS["early-arrive"].mutants(CASES["gemm-2"].kernel))
    text = show(CASES["gemm-2"], mutant.kernel)[1]
    assert re.search(r"earlier: role main, warp \d, its wgmma: p = wgmma sa, sb, acc +\(gemm-2.fcir:\d+\)", text)
    assert re.search(r"later: +role load: tma_load A, row, d, sa, full, n +\(gemm-2.fcir:\d+\)", text)
