"""How exact fcgen's attention is beside FA3's and cuDNN's, on inputs that are not kind, and whether it gives the same bits every time.

    python -m benchmarks.accuracy --fa3 .peers --json out/accuracy.json

Errors are against float64 on every element (of few, the largest error is a matter of luck): rms over the reference's rms, and largest
absolute. The table shows each one's error and fcgen's over FA3's (over cuDNN's where FA3 is absent).
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import fcgen as fc

from . import peers as peers_of
from .cells import DTYPES, Cell, Errors, Inputs, Reference, choose, inputs, poison
from .environment import facts
from .peers import BEST, Peer, reason
from .pool import warm_library, write_json
from .timing import finishes

CELLS = "S2k"
REPEATS = 1000
#: fcgen's errors may be this many times FA3's
TARGETS = {"rms": 1.1, "max": 1.5}


def outliers(x: Any, which: int) -> Any:
    """One entry in a hundred is twenty times as large."""
    import torch

    return torch.where(torch.rand(x.shape, device=x.device) < 0.01, x * 20, x)


#: name -> change of the N(0, 1) tensors (0 for q, 1 for k, 2 for v)
INPUTS: dict[str, Callable[[Any, int], Any]] = {
    "normal": lambda x, which: x, "q x 4": lambda x, which: x * 4 if which == 0 else x, "all x 16": lambda x, which: x * 16,
    "outliers": outliers}


def result(peer: Peer, x: Inputs) -> Any:
    import torch

    call = peer(x)
    poison(x.q)
    got = call.output(call.run())
    if not finishes():
        raise SystemExit("the kernel does not end")
    torch.cuda.synchronize()
    return got


def over(mine: Errors, other: Errors) -> dict[str, float]:
    divided = lambda a, b: a / b if b else (1.0 if not a else math.inf)
    return {"rms": divided(mine.rms, other.rms), "max": divided(mine.max, other.max)}


def compare(cells: Sequence[Cell], dtype: str, peers: dict[str, Peer], absent: dict[str, str], until: float = math.inf,
            keep: Callable[[list[dict[str, Any]]], None] = lambda table: None) -> tuple[list[dict[str, Any]], list[str]]:
    """until: when no new row is begun, by `time.monotonic`. keep: is given the table after every row."""
    table: list[dict[str, Any]] = []
    wrong: list[str] = []
    for cell in cells:
        for name, change in INPUTS.items():
            if time.monotonic() > until:
                print(f"no time for {cell} {name}")
                continue
            x = inputs(cell, dtype, change)
            batch, _, heads, _ = x.q.shape
            reference = Reference(x, itertools.product(range(batch), range(heads)))
            found: dict[str, Errors] = {}
            for p, peer in peers.items():
                try:
                    found[p] = reference.errors(result(peer, x))
                except Exception as error:  # in whatever way a peer says that it does not take this cell
                    (wrong.append if p == "fcgen" else lambda text, p=p: absent.setdefault(p, text))(f"{cell} {p}: {reason(error)}")
            base = next((b for b in BEST if b in found), None)
            row: dict[str, Any] = {"d": cell.d, "s": cell.s, "mask": cell.mask, "inputs": name, "against": base,
                   "errors": {p: {"max": e.max, "rms": e.rms} for p, e in found.items()},
                   "ratio": over(found["fcgen"], found[base]) if base and "fcgen" in found else None}
            table.append(row)
            keep(table)
            print(text_of(row), flush=True)
            if "fcgen" in found and not math.isfinite(found["fcgen"].rms):
                wrong.append(f"{cell} {name}: fcgen's output is not finite")
            for kind, most in TARGETS.items() if row["ratio"] else ():
                if not row["ratio"][kind] <= most:
                    wrong.append(f"{cell} {name}: fcgen's {kind} error is {row['ratio'][kind]:.2f} times {base}'s, at most {most}")
    return table, wrong


def text_of(row: dict[str, Any]) -> str:
    each = "   ".join(f"{p} rms {e['rms']:.2e} max {e['max']:.2e}" for p, e in row["errors"].items())
    ratio = f"   fcgen/{row['against']} rms {row['ratio']['rms']:.2f} max {row['ratio']['max']:.2f}" if row["ratio"] else ""
    return f"D={row['d']:<4} S={row['s']:<6} {row['mask']:16} {row['inputs']:9} {each}{ratio}"


def repeats(cells: Sequence[Cell], dtype: str, peer: Peer, count: int, until: float = math.inf) -> list[str]:
    """The cells whose output was not the same bits `count` times, each time into memory full of NaN."""
    import torch

    wrong = []
    for cell in cells:
        if time.monotonic() > until:
            print(f"no time to repeat {cell}")
            continue
        call = peer(inputs(cell, dtype))
        first = call.output(call.run()).clone()
        changed = torch.zeros((), dtype=torch.int64, device=first.device)
        for _ in range(count - 1):
            out = call.output(call.run())
            changed += (out.view(torch.int16) != first.view(torch.int16)).any()
            out.fill_(float("nan"))
        if n := int(changed):
            wrong.append(f"{cell}: {n} of {count} results differ from the first")
        print(f"{cell}: {count} results, {n} differ from the first", flush=True)
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", metavar="PATTERNS", help=f"as hopper_forward's ({CELLS})")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16")
    parser.add_argument("--peers", default="fcgen,fa3,cudnn")
    parser.add_argument("--fa3", metavar="FOLDER", default=os.environ.get("FCGEN_PEERS", ".peers"))
    parser.add_argument("--schedule", metavar="TEXT")
    parser.add_argument("--repeats", type=int, default=None, help=f"{REPEATS}; 0 for none")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no new row after that long")
    parser.add_argument("--json", metavar="PATH", help="written after every row")
    args = parser.parse_args(argv)

    until = time.monotonic() + args.seconds
    cells = choose(args.cells or CELLS)
    schedule = fc.Schedule.parse(args.schedule) if args.schedule else None
    peers, absent = peers_of.load([n.strip() for n in args.peers.split(",")], args.fa3, schedule)
    wrong = warm_library(sorted({(c.d, c.mask) for c in cells}), DTYPES[args.dtype], schedule) if "fcgen" in peers else []
    count = REPEATS if args.repeats is None else args.repeats
    where = facts()

    def keep(table: list[dict[str, Any]]) -> None:
        write_json(args.json, {"part": "accuracy", "environment": where, "dry": peers_of.STAND_IN, "dtype": args.dtype,
                               "table": table, "repeats": count, "absent": absent, "problems": wrong})

    table, more = compare(cells, args.dtype, peers, absent, until, keep)
    wrong += more
    if "fcgen" in peers and count > 1:
        wrong += repeats(cells, args.dtype, peers["fcgen"], count, until)
    for name, why in absent.items():
        print(f"without {name}: {why}")
    print("\n".join(wrong) or "errors within the target, the same bits every time")
    keep(table)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
