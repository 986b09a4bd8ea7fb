"""Which schedule is fastest on this GPU for one head size and mask: candidates are compiled side by side, checked, and timed in turns.

    python -m benchmarks.search_schedules --d 128 --causal --lengths 2k,16k --candidates schedules.txt --json out/d128.json
    python -m benchmarks.search_schedules --d 64 --limit 40                 the built-in candidates: the library's and changes of it
    python -m benchmarks.search_schedules --d 64 --compile-only             which fit without spills or serialised wgmma; needs no GPU
    python -m benchmarks.search_schedules --d 64 --of backward              of the backward pass (or backward_rows: dQ alone, in order)
    python -m benchmarks.search_schedules --plan plan.txt                   lines of options (--of backward --d 64), candidates below each

A file of candidates has one schedule a line (as `str(Schedule)` prints it; # starts a comment). Left out, each with its reason: what does
not compile, spills, or draws a C75xx note of ptxas ("wgmma serialised"); what is wrong. FA3 and cuDNN run in the same rounds. A kernel that
does not end costs the process: the results so far are in --json with its name, and the same command again goes on without it.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import fcgen as fc
from fcgen.ir.schedule import CHOICES
from fcgen.kernels.backward_schedules import FEW_BYTES, candidates
from fcgen.kernels.schedules import pick

from . import backward as back
from . import peers as peers_of
from .cells import BAD, DTYPES, Cell, Reference, inputs, length, number
from .environment import facts
from .hopper_forward import Hung, launches
from .peers import BEST, Call
from .pool import BACKWARD, LAZY, Job, Made, build_all, launcher, program, write_json
from .timing import Checked, finishes, geomean, round_robin

LENGTHS = (2048, 16384)
TILES_M, TILES_N = (64, 128, 192, 256), (32, 48, 64, 80, 96, 128, 160, 176, 192)
#: what a Hopper schedule is made of: warpgroups of 64 rows, keys per tile, ring slots, and the fields that most often matter
GROUPS, KEYS, SLOTS = (2, 3), (64, 80, 96, 112, 128, 160, 176, 192), (2, 3)
WAYS: tuple[dict[str, Any], ...] = ({}, {"late": ("acc",)}, {"late": ("acc",), "vote": True}, {"tokens": True},
                                    {"late": ("acc",), "vote": True, "persistent": "static"},
                                    {"late": ("acc",), "vote": True, "persistent": "dynamic", "l2": 32},
                                    {"late": ("acc",), "vote": True, "own_rows": True, "persistent": "dynamic", "l2": 32},
                                    {"late": ("acc",), "vote": True, "tokens": True, "persistent": "dynamic", "l2": 32})
#: the same of backward programs: warpgroups and what they share (keys, or rows of backward_rows), the other side of a tile, ring slots of
#: what loops load, products that run behind or ahead
BACK_KEYS, BACK_ROWS, BACK_SLOTS = ((1, 64), (2, 64), (2, 128), (3, 192)), (64, 128), ((2, 2), (2, 1), (1, 1), (3, 2))
BACK_WAYS: tuple[dict[str, Any], ...] = ({}, {"late": ("dq",)}, {"late": ("dv", "dk", "dq")}, {"early": ("s",)}, {"early": ("s", "dp")})
#: candidates of one round robin, so that a turn comes back while the board is in the same state
HEAT = 10
#: of rows, where heads share keys
HEADS = 64
SERIALISED = re.compile(r"\(?(C75\d\d)\)?")


# ---- candidates --------------------------------------------------------------------------------------------------------


def lines_of(path: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def from_file(path: str) -> list[str]:
    return list(dict.fromkeys(lines_of(path)))


def changes(base: fc.Schedule) -> Iterator[fc.Schedule]:
    """Every field changed by itself, whatever fields a schedule has: switches, choices, and numbers one step up and down."""
    for f in fields(base):
        value = getattr(base, f.name)
        if isinstance(value, bool):
            others: tuple[Any, ...] = (not value,)
        elif f.name in CHOICES and isinstance(value, str):
            others = tuple(c for c in CHOICES[f.name] if c != value)
        elif isinstance(value, int):
            others = tuple(x for x in (value // 2, value - 1, value + 1, value * 2) if x > 0 and x != value)
        else:
            continue
        for other in dict.fromkeys(others):
            try:
                yield replace(base, **{f.name: other})
            except fc.FcError:  # not a value of that field
                continue


def shipped(arch: str, d: int, mask: str, of: str = "plain") -> fc.Schedule:
    """What the library runs, first of all for the backward pass; for a target of Hopper's own instructions that has no table yet, the table
    of the target without them."""
    if of in BACKWARD:
        return candidates(of.replace("_keys", ""), arch, d, of != "backward_keys", mask != "none")[0]
    try:
        return pick(arch, d, mask=mask)
    except (fc.FcError, KeyError):
        return pick(arch.rstrip("a"), d, mask=mask)


def hopper() -> Iterator[fc.Schedule]:
    """Schedules of wgmma and bulk copies."""
    ways = [*WAYS, *({k: x for k, x in way.items() if k != "l2"} for way in WAYS if "l2" in way)]  # l2 is refused where all tiles are alike
    for way, groups, n, slots in product(ways, GROUPS, KEYS, SLOTS):
        yield fc.Schedule(tiles={"BLOCK_M": 64 * groups, "BLOCK_N": n}, warps=4 * groups, math="wgmma", copy="tma", stages=slots, **way)


def hopper_backward(base: fc.Schedule, of: str) -> Iterator[fc.Schedule]:
    """The same of the backward pass, whose products are s, dp, dv, dk and dq (s, dp and dq of `backward_rows`)."""
    rings, keys = (("q", "do"), "BLOCK_N") if of != "backward_rows" else (("k", "v"), "BLOCK_M")
    other = "BLOCK_M" if keys == "BLOCK_N" else "BLOCK_N"
    there = {"backward_keys": {"s", "dp", "dv", "dk"}, "backward_rows": {"s", "dp", "dq"}}.get(of, {"s", "dp", "dv", "dk", "dq"})
    for way, held, (groups, n), m, slots in product(BACK_WAYS, ((), ("dp", "s")), BACK_KEYS, BACK_ROWS, BACK_SLOTS):
        if all(there.issuperset(names) for names in way.values()):
            for blocks in (1, 2) if groups == 1 else (1,):
                yield replace(base, tiles={keys: n, other: m}, warps=4 * groups, stages=dict(zip(rings, slots)), min_blocks=blocks,
                              **{"late": (), "early": (), "regs_a": held, **way})  # type: ignore[arg-type]


def built_in(base: fc.Schedule, arch: str = "sm_90", of: str = "plain") -> list[str]:
    """The library's schedule, each of its fields changed, and other tiles; on Hopper's own target the families of `hopper`."""
    found = [base, *changes(base)]
    if arch.endswith("a") and of in BACKWARD:
        return list(dict.fromkeys(map(str, [*found, *hopper_backward(base, of)])))
    if arch.endswith("a"):
        return list(dict.fromkeys(map(str, [*found, *hopper()])))
    for m, n in product(TILES_M, TILES_N):
        tiles = {**dict(base.tiles), "BLOCK_M": m, "BLOCK_N": n}
        found += [replace(base, tiles=tiles), *(replace(base, tiles=tiles, stages=s) for s in (1, 2, 3) if s != base.stages)]
    return list(dict.fromkeys(map(str, found)))


# ---- compiling ---------------------------------------------------------------------------------------------------------


def refusal(made: Made, few: int = 0) -> str | None:
    """Why a compiled candidate is not timed. few: bytes that it may spill."""
    if made.error:
        return (made.error.splitlines() or ["error"])[0][:200]
    if made.resources.spills and (made.resources.spill_stores or few + 1) > few:
        return f"spills {made.resources.spill_stores} bytes"
    if note := SERIALISED.search(made.built.log or ""):
        return f"ptxas says {note[1]}: its matrix products are serialised"
    return None


@dataclass
class Search:
    """lazy: the spec's option, for schedules that make use of it (vote, skip_ones); 0 for the others. good: text -> what compiled.
    left_out: text -> why. rows: one per candidate and length that was timed."""

    d: int
    causal: bool
    lengths: Sequence[int]
    arch: str
    dtype: str = "fp16"
    rounds: int = 7
    lazy: float = LAZY
    good: dict[str, Made] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    hung: list[str] = field(default_factory=list)
    compiled: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    running: tuple[str, ...] = ()
    jobs: dict[str, Job] = field(default_factory=dict)
    #: what of the library is searched for; its operations over the forward's; its errors over those that a forward may have
    spec: str = "plain"
    work, slack, few = 1.0, 1.0, 0
    #: of the backward pass: heads of rows for each of keys, and keys that rows see in front of their own
    groups: int = 1
    window: int = 0

    def compile(self, texts: Sequence[str]) -> None:
        mask = Cell(self.d, 1, self.causal).mask
        jobs: dict[str, Job] = {}
        for text in texts:
            try:
                schedule = fc.Schedule.parse(text)
            except (fc.FcError, ValueError) as error:
                self.left_out[text] = (str(error).splitlines() or ["?"])[0]
                continue
            if (name := str(schedule)) not in self.hung:
                lazy = self.lazy if schedule.vote or schedule.skip_ones else 0.0
                jobs[name] = Job(schedule, self.d, self.d, mask, DTYPES[self.dtype], lazy, self.spec, self.arch,
                                 groups=self.groups, window=self.window)
        self.jobs |= jobs
        begin = time.monotonic()
        made = build_all(jobs.values()) if jobs else {}
        for text, job in jobs.items():
            r = made[job].resources
            if why := refusal(made[job], self.few):
                self.left_out[text] = why
            else:
                self.good[text] = made[job]
            self.compiled.append({"schedule": text, "refused": self.left_out.get(text), **({
                "registers": r.registers, "spilled_bytes": r.spill_stores, "smem_bytes": made[job].built.facts.smem_bytes} if r else {})})
        print(f"{len(jobs)} kernels in {time.monotonic() - begin:.0f} s: {len(self.left_out)} left out, {len(self.good)} to time",
              flush=True)

    # ---- timing ----------------------------------------------------------------------------------------------------

    def given(self, cell: Cell) -> tuple[Any, Any]:
        """Inputs, and what has the exact results."""
        x = inputs(cell, self.dtype)
        return x, Reference(x)

    def flops(self, cell: Cell, x: Any) -> float:
        return self.work * cell.flops

    def bind(self, text: str, x: Any) -> Call:
        import torch

        q, k, v = x.bhsd
        out = torch.full_like(x.q, float("nan"))
        launch = launcher(self.good[text])
        arguments = {"Q": q, "K": k, "V": v, "O": out.transpose(1, 2), "scale": x.scale}
        return Call(lambda: launch(arguments), lambda _: out)

    def check(self, name: str, call: Call, reference: Any) -> Checked | None:
        self.running = (name,)
        try:
            out = call.run()
        except fc.FcError as error:  # refused before anything was launched
            self.left_out[name] = (str(error).splitlines() or ["?"])[0]
            self.good.pop(name, None)
            return None
        if not finishes():
            raise Hung("the kernel does not end")
        errors = reference.errors(call.output(out))
        if problem := (errors.problem(self.dtype, self.slack) if errors != BAD else "not everything was written, or it is not finite"):
            self.left_out[name] = f"wrong: {problem}"
            self.good.pop(name, None)
            print(f"WRONG {name}: {problem}", flush=True)
            return None
        return Checked(name, call.run, errors.max, errors.rms)

    def check_peer(self, name: str, peer: Callable[[Any], Call], x: Any, reference: Any) -> Checked | None:
        try:
            return self.check(name, peer(x), reference)
        except (peers_of.Absent, RuntimeError) as error:
            print(f"without {name}: {(str(error).splitlines() or ['?'])[0]}", flush=True)
            return None

    def race(self, s: int, texts: Sequence[str], peers: dict[str, Any]) -> None:
        """Rates at one length, `HEAT` candidates at a time; the peers run in every heat."""
        import torch

        cell = Cell(self.d, s, self.causal)
        x, reference = self.given(cell)
        work = self.flops(cell, x)
        fixed = [c for name, peer in peers.items() if (c := self.check_peer(name, peer, x, reference)) is not None]
        n = max(2, round(launches(cell) * cell.flops / work))
        for at in range(0, len(texts), HEAT):
            heat = [c for t in texts[at:at + HEAT] if t in self.good and (c := self.check(t, self.bind(t, x), reference)) is not None]
            if not heat:
                continue
            self.running = tuple(c.name for c in heat)  # which of them it is cannot be told
            times = round_robin([*fixed, *heat], n, self.rounds, warm=max(1, n // 4))
            best = max((work / times[c.name].ms / 1e9 for c in fixed), default=None)
            for c in [*fixed, *heat]:
                t = times[c.name]
                rate = work / t.ms / 1e9
                self.rows.append({"s": s, "name": c.name, "tflops": rate, "ratio": rate / best if best else None, "spread": t.spread,
                                  "heat": at // HEAT, "max_error": c.max_error, "rms_error": c.rms_error, "peer": c in fixed})
            torch.cuda.synchronize()

    def ranking(self) -> list[dict[str, Any]]:
        """Candidates timed at every length, best first: by the ratio to the peers of the same heat, or by the rate where there are none."""
        by: dict[str, dict[int, dict[str, Any]]] = {}
        for r in self.rows:
            if not r["peer"] and r["name"] in self.good:
                by.setdefault(r["name"], {})[r["s"]] = r
        whole = {t: rows for t, rows in by.items() if set(rows) >= set(self.lengths)}
        score = lambda r: r["ratio"] if r["ratio"] is not None else r["tflops"]
        return sorted(({"schedule": t, "score": geomean(score(r) for r in rows.values()),
                        "tflops": {s: rows[s]["tflops"] for s in self.lengths}, "ratio": {s: rows[s]["ratio"] for s in self.lengths}}
                       for t, rows in whole.items()), key=lambda r: -r["score"])

    def to_json(self) -> dict[str, Any]:
        return {"part": "search", "environment": facts(), "dry": peers_of.STAND_IN, "of": self.spec, "d": self.d, "causal": self.causal,
                "groups": self.groups, "window": self.window,
                "dtype": self.dtype, "arch": self.arch, "lazy": self.lazy, "lengths": list(self.lengths), "ranking": self.ranking(),
                "rows": self.rows, "compiled": self.compiled, "left_out": self.left_out, "hung": self.hung}


@dataclass
class Backward(Search):
    """Of the kernel that adds up all gradients ("backward", "backward_in_turn"), or those of keys and values ("backward_keys") or of q
    ("backward_rows") alone, without what runs beside it. Its peers are whole passes."""

    slack, few = 2.0, FEW_BYTES

    def __post_init__(self) -> None:
        self.work = {"backward": 2.5, "backward_in_turn": 2.5, "backward_keys": 2.0, "backward_rows": 1.5}[self.spec]

    def given(self, cell: Cell) -> tuple[Any, Any]:
        x = back.Cell(cell.batch, cell.s, HEADS if self.groups > 1 else cell.heads, cell.d, cell.causal,
                      {"fp16": "float16", "bf16": "bfloat16"}[self.dtype], self.groups, self.window)
        return x, x

    def flops(self, cell: Cell, x: Any) -> float:
        return self.work / 2.5 * float(x.work)

    def bind(self, text: str, x: Any) -> Call:
        arguments, of = x.arguments(self.spec)
        rounds, made = self.spec in ("backward", "backward_in_turn"), self.good[text]
        if self.window:
            p = program(self.jobs[text])
            arguments |= p.family.find(p._given)[2]
        launch = launcher(made)
        begin = arguments["Turns"].zero_ if "Turns" in arguments else lambda: None
        return Call(lambda: (begin(), launch(arguments)), lambda _: {n: g * x.scale if n == "dQ" and rounds else g for n, g in of.items()})


def show(search: Search, now: str, most: int = 25) -> None:
    ranked = search.ranking()
    print(f"\nD={search.d} {'causal' if search.causal else 'full'} groups={search.groups} window={search.window} {search.dtype}: "
          f"geometric mean of the ratio to the better of {', '.join(BEST)}; TFLOP/s at {', '.join(map(length, search.lengths))}")
    for r in ranked[:most]:
        rates = " ".join(f"{x:6.0f}" for x in r["tflops"].values())
        print(f"{r['score']:8.3f}  {rates}   {r['schedule']}" + ("   <- the library's" if r["schedule"] == now else ""))
    if len(ranked) > most:
        print(f"and {len(ranked) - most} more")


def hung_before(path: str | None) -> list[str]:
    """What an earlier run with this file did not survive."""
    if not path or not Path(path).exists():
        return []
    return list(json.loads(Path(path).read_text(encoding="utf-8")).get("hung", ()))


def run(search: Search, peers: dict[str, Any], keep: int, save: Any) -> None:
    """All candidates at the first length, the `keep` best of them at the others."""
    first, *rest = search.lengths
    search.race(first, list(search.good), peers)
    save()
    score = {r["name"]: r["ratio"] if r["ratio"] is not None else r["tflops"] for r in search.rows if not r["peer"]}
    best = sorted((t for t in score if t in search.good), key=lambda t: -score[t])[:keep]
    for s in rest:
        search.race(s, best, peers)
        save()


def planned(path: str) -> Iterator[list[str]]:
    """Of each search of a plan: the file of its candidates, and its options (a line that begins with --)."""
    part: list[str] = []
    for line in [*lines_of(path), "--"]:
        if line.startswith("--") and part:
            options, *texts = part
            with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as f:
                f.write("\n".join(texts) + "\n")
            yield [f.name, *options.split()]
            part = []
        part.append(line)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", choices=("plain", *BACKWARD), default="plain", help="the forward, or of the backward pass")
    parser.add_argument("--d", type=int, default=128, help="head size")
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--groups", type=int, default=1, help="of the backward pass: heads of rows for each of keys")
    parser.add_argument("--window", type=int, default=0, help="of the backward pass: rows see so many keys in front of their own")
    parser.add_argument("--lengths", type=lambda text: [number(t) for t in text.split(",")], default=None)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16")
    parser.add_argument("--candidates", metavar="FILE", help="one schedule a line (the built-in ones)")
    parser.add_argument("--limit", type=int, help="only the first candidates")
    parser.add_argument("--keep", type=int, default=20, help="candidates that are timed at every length")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lazy", type=float, default=LAZY, help="how stale a maximum may be, with vote or skip_ones (%(default)s)")
    parser.add_argument("--spilled", type=int, help="bytes that a candidate may spill")
    parser.add_argument("--peers", default=",".join(BEST))
    parser.add_argument("--fa3", metavar="FOLDER", default=os.environ.get("FCGEN_PEERS", ".peers"))
    parser.add_argument("--target", help="the GPU's own (sm_90 for --compile-only)")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--plan", metavar="FILE", help="several searches in one process: lines of options, and of candidates below them")
    args = parser.parse_args(argv)
    if args.plan:
        return max(main([*(argv or sys.argv[1:]), "--plan", "", "--candidates", *options]) for options in planned(args.plan))

    arch = args.target or ("sm_90" if args.compile_only else fc.gpu_target())
    kind = functools.partial(Backward, spec=args.of) if args.of in BACKWARD else Search
    search = kind(args.d, args.causal, args.lengths or LENGTHS, arch, args.dtype, args.rounds, args.lazy, hung=hung_before(args.json),
                  groups=args.groups, window=args.window)
    search.few = search.few if args.spilled is None else args.spilled
    now = shipped(arch, args.d, Cell(args.d, 1, args.causal).mask, args.of)
    search.compile(((from_file(args.candidates) if args.candidates else []) or built_in(now, arch, args.of))[:args.limit])
    save = lambda: write_json(args.json, search.to_json())
    save()
    for text, why in list(search.left_out.items())[:20 if not args.compile_only else None]:
        print(f"  left out: {why}   {text}")
    if args.compile_only:
        for c in search.compiled:
            if not c["refused"]:
                print(f"  {c['registers']} registers, {c['smem_bytes']} bytes smem   {c['schedule']}")
        return 0
    load = back.peers if args.of in BACKWARD else peers_of.load
    peers, absent = load([n for n in args.peers.split(",") if n], args.fa3)
    for name, why in absent.items():
        print(f"without {name}: {why}")
    try:
        run(search, peers, args.keep, save)
    except (Hung, RuntimeError) as error:  # the GPU is lost to this process
        search.hung += search.running
        save()
        said = (str(error).splitlines() or ["?"])[0]
        print(f"STOPPED by {' or '.join(search.running)}: {said}; run the same command again to go on without it", flush=True)
        os._exit(3)
    show(search, str(now))
    save()
    return not search.ranking()


if __name__ == "__main__":
    sys.exit(main())
