"""Random schedules, and the chosen ones, on the kernels of `specs.py`: each is right in the simulator, or refused in words.

    python -m benchmarks.random_schedules --json out/random.json --jobs 16           500 schedules; needs no GPU
    python -m benchmarks.random_schedules --part 2/4 ...                             the second quarter of them
    python -m benchmarks.random_schedules --chosen --cubin --jobs 16                 what `schedule_for` chooses: right, and without spills

A case is a spec, a target and a schedule whose fields are drawn, the names in them from what the spec has. It goes through the passes and
is printed as CUDA; the machine program runs in the simulator at a small size, and its numbers are compared with the tile program's.
Anything but a right result or an FcError that says what to do is a bug; so is a field that asks for something and changes nothing. A field
that is refused is left out, and the rest tried on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import re
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import fcgen as fc
from fcgen.build import compiler
from fcgen.build.choose import choose
from fcgen.build.workload import Probe
from fcgen.ir.core import walk_kernel
from fcgen.ir.text import base_name
from fcgen.passes import run_passes
from fcgen.sim.trial import random_inputs

from .pool import write_json
from .schedule_pairs import DECLINING, DEFAULTS, FIELDS, OF_BASES, unlike
from .specs import CASES, Case

TARGETS = ("sm_80", "sm_89", "sm_90a")
SIZES = (16, 16, 32, 32, 48, 64, 64, 128, 128)
#: how often a field is drawn besides tiles and warps
SHARE = 0.12


@dataclass(frozen=True)
class Drawn:
    """schedule: as text; "chosen" where `schedule_for` is asked."""

    spec: str
    target: str
    schedule: str

    def __str__(self) -> str:
        return f"{self.spec} on {self.target}: {self.schedule}"


def names_of(case: Case) -> dict[str, list[str]]:
    """What a schedule can name in a spec: tiles, dots, loads, axes of the grid."""
    probe = Probe({n for n in case.binding.values() if isinstance(n, int)})
    kernel = run_passes(case.spec.trace(probe, **case.binding), fc.Schedule(), compiler.target("sm_89"), stop_after="bind")
    of = lambda kind: sorted({base_name(op["site"]) for op in walk_kernel(kernel) if op.kind == kind and op.get("site")})
    return {"tiles": list(probe), "dots": of("dot"), "loads": of("load"), "axes": [a.name.removesuffix("_tile") for a in kernel.grid]}


def draw(seed: int) -> Drawn:
    rng = random.Random(f"schedule {seed}")
    name = rng.choice(list(CASES))
    case, target = CASES[name], rng.choice(TARGETS)
    names = names_of(case)
    some = lambda of: rng.sample(of, rng.randint(1, min(2, len(of))))
    warps = rng.choice((1, 2, 4, 4, 8))
    whole = [n for n in SIZES if n % (16 * warps) == 0] if rng.random() < 0.8 else SIZES
    fields: dict[str, Any] = {"tiles": {n: rng.choice(whole) for n in names["tiles"]}, "warps": warps}
    if target == "sm_90a" and rng.random() < 0.6:
        warps = rng.choice((4, 8, 12))
        fields |= {"math": "wgmma", "copy": "tma", "warps": warps, "tiles": {n: rng.choice((1, 1, 2)) * 16 * warps for n in names["tiles"]}}
    for field, values in FIELDS.items():
        if field not in fields and rng.random() < SHARE:
            fields[field] = rng.choice(values)
    for field, of, value in (("late", "dots", None), ("ones", "dots", None), ("regs_a", "dots", None), ("from_end", "axes", None),
                             ("stages", "loads", (1, 2, 3)), ("math", "dots", ("mma", "fma", "wmma")), ("cluster", "axes", (2,))):
        if names[of] and rng.random() < SHARE / 2:
            chosen = some(names[of])[:1 if field == "cluster" else 2]
            fields[field] = "+".join(chosen) if value is None else {n: rng.choice(value) for n in chosen}
    return Drawn(name, target, str(fc.Schedule(**fields)))


def compiled(d: Drawn, schedule: fc.Schedule) -> Any:
    return CASES[d.spec].spec.compile(target=d.target, schedule=schedule, check=False, **CASES[d.spec].binding)


def text(program: Any) -> str:
    """The machine program, without what only says how it was made."""
    return "\n".join(line for line in str(program.machine).splitlines() if not line.startswith("meta schedule"))


def verdict(d: Drawn, cubin: bool = False) -> tuple[str, str, list[str]]:
    """("right" | "refused" | "bug", what was said, the refusals on the way there)."""
    refusals: list[str] = []
    while True:
        kind, said, rest = once(d, cubin)
        if kind != "refused":
            return kind, said, refusals
        refusals.append(said)
        if rest is None:
            return kind, said, refusals
        d = replace(d, schedule=str(rest))


def once(d: Drawn, cubin: bool) -> tuple[str, str, fc.Schedule | None]:
    """The verdict on a schedule as it is; where it is refused, also the schedule without the field that the refusal names."""
    try:
        if d.schedule == "chosen":
            case = CASES[d.spec]
            schedule = choose(case.spec, compiler.target(d.target), case.binding, case.large).schedule
        else:
            schedule = fc.Schedule.parse(d.schedule)
        program = compiled(d, schedule)
        compiler.to_cuda(program.machine, program.target)
    except fc.FcError as e:
        if e.message.startswith("internal") or e.code.startswith(("ir/", "sim/", "trace/")) or d.schedule == "chosen":
            return "bug", f"{e.code}: {e.message}: expected {e.expected}, got {e.got}", None
        if not e.hint and not e.expected:
            return "bug", f"refused without a word of what to do: {e.code}: {e.message}", None
        named = re.match(r"Schedule\.(\w+)", e.message)
        given = named is not None and named[1] not in ("tiles", "warps") and getattr(schedule, named[1]) != DEFAULTS[named[1]]
        return "refused", f"{e.code}: {e.message}", replace(schedule, **{named[1]: DEFAULTS[named[1]]}) if named and given else None
    except Exception as e:
        return "bug", f"{type(e).__name__}: {e}", None
    idle = "" if d.schedule == "chosen" else without_effect(d, schedule, text(program))
    said = idle or wrong(CASES[d.spec], program)
    if not said and cubin:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spilled = program.resources.spill_stores
        said = f"{spilled} bytes spill" if spilled else ""
    return ("bug" if said else "right"), said or (str(schedule) if d.schedule == "chosen" else ""), None


def without_effect(d: Drawn, schedule: fc.Schedule, made: str) -> str:
    """The fields that ask for something and leave the program as it is without them."""
    idle = []
    for field, default in DEFAULTS.items():
        value = getattr(schedule, field)
        declined = (field, value if isinstance(value, (str, int, bool)) else str(value)) in DECLINING
        as_it_is = field == "stages" and not isinstance(value, int) and {n for _, n in value} <= {1, default}
        if field in ("tiles", "warps", *OF_BASES) or value == default or declined or as_it_is:
            continue
        try:
            same = text(compiled(d, replace(schedule, **{field: default}))) == made
        except fc.FcError:
            continue  # others need it
        if same:
            idle.append(f"{field}={value} changes nothing")
    return "; ".join(idle)


def wrong(case: Case, program: Any) -> str:
    """What is wrong with the machine program, at a small size; "" if nothing is."""
    return unlike(program, {**random_inputs(program.machine, case.sizes), **case.given}, case.rtol)


def _timed(job: tuple[Drawn, bool]) -> tuple[Drawn, str, str, list[str], float]:
    start = time.perf_counter()
    return job[0], *verdict(*job), time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first one")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="the I-th of N parts")
    parser.add_argument("--chosen", action="store_true", help="what schedule_for chooses for every spec and target, instead of random ones")
    parser.add_argument("--cubin", action="store_true", help="compile what is right, and ask for spills")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    part, parts = map(int, args.part.split("/"))
    if args.chosen:
        todo = [Drawn(name, target, "chosen") for target in TARGETS for name in CASES]
    else:
        todo = [draw(seed) for seed in range(args.seed, args.seed + args.count)]
    todo = todo[part - 1::parts]
    counts: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    bugs: list[dict[str, str]] = []
    right: dict[str, str] = {}
    begin = time.monotonic()
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as executor:
        for d, kind, said, refused, seconds in executor.map(_timed, [(d, args.cubin) for d in todo], chunksize=2):
            counts[kind] += 1
            refusals.update(refused)
            if kind == "bug":
                bugs.append({"case": str(d), "said": said})
                print(f"{d}\n    {said}  ({seconds:.1f} s)", flush=True)
            if kind == "right" and args.chosen:
                right[f"{d.spec} on {d.target}"] = said
    print(f"{len(todo)} cases in {time.monotonic() - begin:.0f} s: {dict(counts)}")
    if args.json:
        write_json(args.json, {"part": f"random schedules {args.part}", "cases": len(todo), "specs": len(CASES), **counts, "bugs": bugs,
                               "refusals": dict(refusals.most_common()), "chosen": right, "problems": [str(b) for b in bugs]})
    return 1 if bugs else 0


if __name__ == "__main__":
    sys.exit(main())
