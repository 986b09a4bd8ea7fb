"""Random edits of the machine IR of every kernel that is shipped, each under what `fcgen check` does: which are refused or reported, and
which pass in silence. `--only` runs one of those on at other sizes for longer: what shows there was missed. The rest are as good as before;
`reason` says why.

    python -m benchmarks.random_edits --edits 1000 --json out.json      # in one process; --part 0/2 and 1/2 in two
    python -m benchmarks.random_edits --sound 20 --json sound.json      # no edit: the kernels themselves at 20 drawn sizes
    python -m benchmarks.random_edits --summary out.*.json              # what became of all of them

An edit is a pure function of kernel, seed and number: `--only KERNEL:NUMBER` runs one again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from hashlib import sha1
from pathlib import Path
from typing import Any

import numpy as np

import fcgen as fc
from fcgen.build import compiler
from fcgen.errors import FcError
from fcgen.ir.core import Kernel, walk_kernel
from fcgen.kernels import hopper_schedules, schedules
from fcgen.kernels.attention import VARIANTS, attention
from fcgen.sim.trial import WORK, Oracle, run_trials

from .alike import alike, always, more_programs
from .edits import EDITS
from .environment import without_folders
from .judged import judged
from .pool import LAZY
from .same_values import same_values

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CAUSAL = ("causal_top_left", "causal_bottom_right")


def shipped() -> dict[str, Callable[[], Any]]:
    """name -> how to compile it: every row of the library's schedules, its spec and mask in turns, and every example."""
    out: dict[str, Callable[[], Any]] = {}
    for table in ("ROWS", "SMALL", "FINE", "CHUNK", "ANY_SCALE"):
        for n, row in enumerate(getattr(hopper_schedules, table)):
            spec = ("any_scale_" if table == "ANY_SCALE" else "") + ("lse", "plain")[n % 2]
            mask = "none" if row.masks == "none" else CAUSAL[n // 2 % 2]
            facts = {"T": (fc.f16, fc.bf16)[n % 2], "D": row.head, "E": min(row.head, row.value), "mask": mask}
            facts |= {"lazy": hopper_schedules.LAZY, **VARIANTS[spec]}
            out[f"sm_90a {table} {n}"] = partial(attention.compile, target="sm_90a", schedule=row.schedule, sums=row.sums, **facts)
    for (arch, math), rows in schedules.TABLES.items():
        if arch in ("sm_80", "sm_89"):
            for n, (head, mask, schedule) in enumerate(rows):
                chosen = "none" if mask == "none" else CAUSAL[n % 2]
                facts = {"T": (fc.f16, fc.bf16)[n % 2], "D": head, "E": head, "mask": chosen}
                facts["lazy"] = LAZY if math == "wmma" else 0.0
                out[f"{arch} {math} {n}"] = partial(attention.compile, target=arch, schedule=schedule, **facts)
    for name in sorted(p.stem for p in EXAMPLES.glob("*.py") if p.stem not in ("harness", "ladder")):
        out[f"example {name}"] = lambda n=name: example(n).compile()  # type: ignore[misc]
    return out


def example(name: str) -> Any:
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name).example


@dataclass
class Outcome:
    """verdict: "refused" (by parsing, verification, or the budget), "reported", "silent", "missed" (shows at other sizes only),
    "traceback", "no edit"."""

    kernel: str
    number: int
    kind: str
    site: str
    verdict: str
    code: str = ""
    message: str = ""
    seconds: float = 0.0
    why: str = ""  # of a silent one: why it is as good as none


class Remembering(Oracle):
    """Interprets each trial once, and each shaken one, for all edits of a kernel."""

    def __init__(self, says: Kernel, target: Any) -> None:
        super().__init__(says, target)
        self.known: dict[Any, Any] = {}

    def run(self, inputs: Any, programs: Any) -> Any:
        return self.once(inputs, None, lambda: super(Remembering, self).run(inputs, programs))

    def shaken(self, inputs: Any, programs: Any, seed: int) -> Any:
        return self.once(inputs, seed, lambda: super(Remembering, self).shaken(inputs, programs, seed))

    def once(self, inputs: Any, seed: int | None, make: Callable[[], Any]) -> Any:
        arrays = ((n, np.asarray(x)) for n, x in inputs.items())
        key = (seed, *((n, x.shape, sha1(np.ascontiguousarray(x).tobytes()).digest()) for n, x in arrays))
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]


@lru_cache(maxsize=64)
def program(name: str) -> tuple[Any, Oracle]:
    p = shipped()[name]()
    return p, Remembering(p.tile, p.target)


def edited(name: str, seed: int, number: int) -> tuple[str, str, Kernel] | None:
    """(kind, place, kernel) of one edit: kinds in an order of the kernel's own, the next one where one has no place in it."""
    place = list(shipped()).index(name)
    order = np.random.default_rng([seed, place]).permutation(len(EDITS))
    rng = np.random.default_rng([seed, place, number])
    names = list(EDITS)
    for k in range(len(names)):
        kind = names[int(order[(number + k * 7) % len(names)])]
        found = EDITS[kind](program(name)[0].machine, rng)
        if found is not None:
            return kind, found[1], found[0]
    return None


def run(name: str, seed: int, number: int, longer: bool = False) -> Outcome:
    """longer: also at other sizes and in more orders, which `check` does not do."""
    made = edited(name, seed, number)
    assert made is not None
    kind, site, kernel = made
    out, start = Outcome(name, number, kind, site, "silent"), time.process_time()
    p, oracle = program(name)
    try:
        try:
            text = str(kernel)
            machine = compiler.from_text(text, "edited.fc")
            out.verdict = "refused"
            if text == str(p.machine):
                out.verdict = "no edit"
                return out
        except FcError as e:
            out.verdict, out.code, out.message = "refused", e.code, e.message
            return out
        try:
            run_trials(machine, p.target, seeds=3, against=oracle, work=WORK)
            out.verdict = "silent"
        except FcError as e:
            out.verdict, out.code, out.message = "reported", e.code, e.message
            return out
        out.seconds = time.process_time() - start
        try:
            compiler.to_cuda(machine, p.target)
        except FcError as e:
            out.verdict, out.code, out.message = "refused", e.code, e.message
            return out
        try:
            if longer or told(kind, site):
                out.why = BY_CLOCKS if told(kind, site) else ""
            for first, seeds in ((100, 3), (200, 8)) if longer or out.why else ():
                run_trials(machine, p.target, seeds=seeds, against=oracle, first=first, work=2 * WORK)
            out.why = reason(kind, site) or judged(name, kind, site) or computed(p.machine, kernel) or out.why
            if not out.why and same_values(p.machine, kernel, p.target, oracle):
                out.why = OTHERWISE
        except FcError as e:
            out.verdict, out.code, out.message = "missed", e.code, e.message
    except Exception:  # the very thing that is looked for
        out.verdict, out.message = "traceback", without_folders(traceback.format_exc(limit=-3))
    finally:
        out.seconds = out.seconds or time.process_time() - start
    return out


PURE = (r"(slot|const|size|add|sub|mul|max|min|div|floordiv|mod|lt|le|gt|ge|eq|ne|and|or|not|neg|abs|exp2?|log2?|full|iota|broadcast|"
        r"select|cast|reduce|combine|slice|transpose|bits|from_bits|row_part|quad_transpose|fma|sigmoid|tanh|rcp|cursor|advance)")
#: (kind, pattern of the place, why a kernel is as good with the edit as without)
HARMLESS: tuple[tuple[str, str, str], ...] = (
    ("double an op that orders", r"_wait|wait_group|wgmma_fence|proxy_fence|syncwarp|barrier|cluster_sync",
     "what was waited for once, or fenced, is done the second time too"),
    ("double an op that orders", r"commit", "a group without members is complete, and the waits that count groups are for all of them"),
    ("double an op that moves data", r"st_shared|st_global|stmatrix|post|wmma_store",
     "the same threads store the same values twice in a row"),
    ("drop an op that orders", r"(wait_group|bulk_wait) \d+ \(\)", "the last wait of a kernel that has nothing in flight by then"),
    ("swap operands", r": (max|min|add|mul|eq|ne|and|or|xor) \d+", "the function is commutative"),
    ("guard", r"tma_(load|store)", "a bulk copy is cut off at the tensor's end by the hardware, guarded or not"),
    ("read", r"-> bulk_wait \{n = \d+, read = false\}", "waits for more than it must"),
    ("groups", r"(groups|n) = 0\}", "waits for more than it must"),
    ("read", r"bulk_wait \d+ \(\) -> bulk_wait \{n = 0, read = true\}",
     "at the end of a kernel only the tile in shared memory is at stake: what has been read is written by the end of the grid"),
    ("grid", r"reverse=(\w+),.*reverse=(?!\1)", "only the order in which programs start"),
    ("an op of another role", r"(grid_wait|proxy_fence) ", "one wait or fence more than is needed"),
    ("lag", r"mbar_arrive .*\{lag = 0\}$", "the same as none"),
    ("bytes of shared memory", r" by (16|1024|65536)$", "more than is needed, and the target has it"),
    ("descending", r"", "the loop's steps are added up in another order, or there is one"),
    *((f"move an op that {what} {way}", rf"{mover} .* past ({PURE}|{beside})(, ({PURE}|{beside}))*$", why)
      for what, mover, beside, why in (
          ("orders", r"\w+", "const", "what it passes works on registers that it does not touch"),
          ("orders", "mbar_wait", "mbar_wait|wgmma_fence", "waits in another order, before anything that needs them"),
          ("moves data", r"\w+", "const", "what it passes works on registers that it does not touch"),
          ("moves data", "cp_async", "cp_async", "copies of one group are complete together"),
          ("moves data", "st_global", "st_global|wait_group", "stores to different tensors, which nothing of the kernel waits for"))
      for way in ("up", "down")),
    ("move an op that orders up", r": mbar_wait ",
     "waits earlier than it must; whether somebody then waits for ever is the same in every order"),
    ("move an op that orders up", rf": mbar_expect .* past ({PURE}|mbar_wait)(, ({PURE}|mbar_wait))*$",
     "announced early; that the slot's last copy has landed by then shows in the order in which copies land as late as they may"),
    *((kind, rf"mbar_expect .* {way} tma_load$", "bytes may land before they are announced, as long as the arrival is to come")
      for kind, way in (("swap neighbours", "with"), ("move an op that orders down", "by 1 past"))),
    ("move an op that moves data up", rf": tma_load .* past ({PURE}|mbar_expect)(, ({PURE}|mbar_expect))*$",
     "bytes may land before they are announced, as long as the arrival is to come"),
    ("swap neighbours", r": mbar_wait .* with mbar_expect$", "announced early; that the phase before has ended by then is told by clocks"),
    ("parts", r": tma_store .* -> tma_store ", "more threads store smaller parts: what each of them may read is told by clocks"),
    ("swap neighbours", r"st_global .* with (wait_group|bulk_wait) ?", "stores of registers; what is waited for reads and writes tiles"),
    ("move an op out of its block", r": wgmma_fence ",
     "the fence of the product in front covers both: had anything touched their registers between, it would be sim/register"),
    ("another function", r"%(far|moved)\S* = ge ", "at the bound itself both ways are right"),
    ("warps", r"^load 8$", "a role of one thread has more warps that stand by"),
    ("warps", r"^main (8|12|16)$", "warps beyond those of the layouts hold copies, of which one is stored"),
    ("swap neighbours", r"(mbar_wait|wgmma_fence).* with (mbar_wait|wgmma_fence)$", "waits in another order, before what needs them"),
    ("swap neighbours", r"(cp_async|st_global).* with (cp_async|st_global)$", "copies or stores that do not meet, in the same group"),
)


#: Classes in which nothing changes but who waits for whom, how often and how long: values, places and counts of bytes are as before. That
#: every access is ordered after those it needs, every group complete and every phase the right one is told by clocks, groups and
#: phase numbers, in whatever order things happen (`tests/sim/test_oracle.py` holds the clocks against the definition of a race), and
#: a wait that never ends is one in every order. What is left is that a run of another length shows something else, so these run longer.
ORDERS = (r": (barrier|syncwarp|wait_group|commit_group|mbar_wait|mbar_arrive|mbar_expect|wgmma_fence|wgmma_commit|wgmma_wait|proxy_fence|"
          r"bulk_commit|bulk_wait|token_take|token_give|token_start|cluster_sync|claim_done) ")
TOLD: tuple[tuple[str, str], ...] = (
    *((kind, ORDERS) for kind in ("move an op that orders up", "move an op that orders down", "move an op out of its block",
                                  "drop an op that orders", "double an op that orders")),
    ("swap neighbours", ORDERS + rf".* with ({ORDERS[3:-2]}|for|if|while|tma_load|wgmma|settle|fetch|advance)$"),
    ("groups", r""), ("another barrier", r": (mbar_wait|mbar_arrive) "), ("another cursor", r": (mbar_wait|mbar_arrive|mbar_expect) "),
    ("offset", r""), ("parts", r": barrier "),
    ("move an op that moves data up", rf": tma_load .* past ({PURE}|mbar_expect|mbar_wait)(, ({PURE}|mbar_expect|mbar_wait))*$"),
)
OTHERWISE = "only whole numbers are other, and where steps are, it computes the same at every such size"
BY_CLOCKS = "only what orders is other, or where bytes lie: told by clocks, groups and phases, in more runs too"


def told(kind: str, site: str) -> bool:
    return any(k == kind and re.search(pattern, site) for k, pattern in TOLD)


def reason(kind: str, site: str) -> str | None:
    """Why an edit that passed in silence is as good as none, where its class says so."""
    return next((why for k, pattern, why in HARMLESS if k == kind and re.search(pattern, site)), None)


def computed(before: Kernel, after: Kernel) -> str | None:
    """The same, where it follows from what the kernels do."""
    dynamic = before.meta.get("persistent") == "dynamic"
    apart = before.cluster == after.cluster or not any(op.get("cluster") or op.get("multicast") for op in walk_kernel(before))
    if dynamic and apart and str(replace(after, grid=before.grid)) == str(before):
        return "blocks claim their tiles: the grid says only how many begin, and which side by side"
    return next((why for same, why in COMPUTED if same(before, after)), None)


COMPUTED: tuple[tuple[Callable[[Kernel, Kernel], bool], str], ...] = (
    (alike, "does the same to every place, at every size"),
    (more_programs, "more programs, which store nothing inside of a tensor"),
    (always, "a branch that lanes vote for is taken in any case: it is right for rows that did not ask for it"),
)


def summary(outcomes: list[dict[str, Any]]) -> list[str]:
    """What became of edits, in lines."""
    by = Counter(o["verdict"] for o in outcomes)
    silent = [(o, o.get("why") or reason(o["kind"], o["site"]) or judged(o["kernel"], o["kind"], o["site"]))
              for o in outcomes if o["verdict"] == "silent"]
    open_ = [o for o, why in silent if not why]
    bad = by["refused"] + by["reported"]
    out = [f"edits             {len(outcomes)}", *(f"{v:17} {by[v]}" for v in ("refused", "reported", "no edit", "traceback", "missed")),
           f"silent, harmless  {len(silent) - len(open_)}", f"silent, unjudged  {len(open_)}",
           f"seconds           {sum(o['seconds'] for o in outcomes):.0f}",
           f"caught            {100 * bad / max(1, bad + len(open_) + by['missed'] + by['traceback']):.2f} % if all unjudged ones do harm"]
    out += [f"  {n:4} {why}" for why, n in Counter(why for _, why in silent if why).most_common()]
    return out + [f"  {o['verdict']}: {o['kernel']}:{o['number']} {o['kind']} | {o['site']}" for o in
                  [*open_, *(o for o in outcomes if o["verdict"] in ("traceback", "missed"))]]


def kept(path: Path | None) -> list[dict[str, Any]]:
    """The results in a file, one a line; a last line that was cut off is left out."""
    out = []
    for line in path.read_text().splitlines() if path and path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            out.append(json.loads(line))
    return out


def keep(path: Path | None, result: dict[str, Any]) -> None:
    """Append one result; after a line that was cut off on a line of its own."""
    if path is not None:
        cut = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
        with path.open("a") as f:
            f.write(("\n" if cut else "") + json.dumps(result) + "\n")


def plan(edits: int) -> Iterator[tuple[str, int]]:
    names = list(shipped())
    for n in range(edits):
        yield names[n % len(names)], n // len(names)


def sound(name: str, count: int) -> list[str]:
    """Reports on the kernel as it is, over drawn inputs that are not those of `check`."""
    (p, oracle), out = program(name), []
    for n in range(count):
        try:
            run_trials(p.machine, p.target, seeds=3, against=oracle, first=1000 + n, most=1)
        except FcError as e:
            out.append(str(e))
    return out


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--edits", type=int, default=0)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--part", default="0/1", help="which of how many processes this is")
    arguments.add_argument("--json", type=Path, help="results, one a line; what is in it already is not run again")
    arguments.add_argument("--only", help="KERNEL:NUMBER")
    arguments.add_argument("--sound", type=int, default=0)
    arguments.add_argument("--summary", type=Path, nargs="+", help="files of results")
    options = arguments.parse_args()
    part, parts = map(int, options.part.split("/"))
    if options.summary:
        print(*summary([o for path in options.summary for o in kept(path)]), sep="\n")
        return
    if options.only:
        name, _, number = options.only.rpartition(":")
        print(json.dumps(asdict(run(name, options.seed, int(number), True)), indent=1))
        return
    if options.sound:
        done = {o["kernel"] for o in kept(options.json)}
        for n, name in enumerate(shipped()):
            if n % parts == part and name not in done:
                start = time.process_time()
                wrong = sound(name, options.sound)
                keep(options.json, {"kernel": name, "runs": options.sound, "reports": wrong, "seconds": time.process_time() - start})
                print(f"{name}: {len(wrong)} reports in {options.sound} runs", *wrong[:1], flush=True)
        return
    before = kept(options.json)
    seen, outcomes = {(o["kernel"], o["number"]) for o in before}, list(before)
    for n, (name, number) in enumerate(plan(options.edits)):
        if n % parts == part and (name, number) not in seen:
            out = run(name, options.seed, number)
            outcomes.append(asdict(out))
            keep(options.json, asdict(out))
            print(n, f"{out.seconds:.1f} s", out.verdict, out.kernel, out.kind, out.code, flush=True)
    print(*summary(outcomes), sep="\n")


if __name__ == "__main__":
    main()
