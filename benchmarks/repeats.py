"""Does the backward pass give the same bits every time, where torch asks for deterministic algorithms?

    python -m benchmarks.repeats --json out/repeats.json                        head sizes, lengths, dtypes, full and causal
    python -m benchmarks.repeats --variants --heads 64,128 --lengths 1k         grouped heads, windows, gradients of what is learned, ...

Gradients are compared with float64 first. Then the pass runs a thousand times, into memory full of NaN, while another stream keeps the
multiprocessors busy every other turn, so that blocks run in changing orders; of each result every bit is compared with the first one's. The
pass without that mode runs too, which shows how often the order of its sums changed.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import fcgen as fc

from .cells import length, number
from .environment import facts
from .pool import write_json
from .timing import Checked
from .training import LIMIT, Cell, chosen, plain, prepare, variants

REPEATS = 1000
#: rows of a square product that keeps multiprocessors busy
BUSY = 1024


def ways(cell: Cell) -> dict[str, Checked]:
    """The backward pass in torch's deterministic mode, and without it."""
    import torch

    v, found = cell.variant, {}
    call = lambda q, k, w: fc.attention(q, k, w, causal=v.causal, **v.options(*cell.learned))
    for name, mode in (("deterministic", True), ("as it is", False)):
        torch.use_deterministic_algorithms(mode, warn_only=True)
        try:
            found[name] = cell.autograd(name, call)
        finally:
            torch.use_deterministic_algorithms(False)
    return found


def changed(run: Callable[[], Any], count: int, busy: Callable[[int], None]) -> int:
    """How many of so many results are not the first one's bits."""
    import torch

    bits = lambda x: x.contiguous().view(torch.int16)
    first = [x.clone() for x in run()]
    n = torch.zeros((), dtype=torch.int64, device=first[0].device)
    for turn in range(count - 1):
        busy(turn)
        found = run()
        n += torch.stack([(bits(x) != bits(y)).any() for x, y in zip(found, first)]).any()
        for x in found:
            x.fill_(float("nan"))
    return int(n)


def disturbance() -> Callable[[int], None]:
    """Work of another stream, in every other turn."""
    import torch

    aside, x = torch.cuda.Stream(), torch.randn(BUSY, BUSY, device="cuda", dtype=torch.float16)

    def busy(turn: int) -> None:
        if turn % 2:
            with torch.cuda.stream(aside):
                for _ in range(1 + turn % 7):
                    x @ x

    return busy


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="64,128,256", help="head sizes (%(default)s); heads x size is 2048")
    parser.add_argument("--lengths", default="1k,4k", help="%(default)s; batch x length is 16384")
    parser.add_argument("--dtypes", default="fp16,bf16")
    parser.add_argument("--variants", action="store_true", help="masks, scores, grouped heads, instead of the plain cells")
    parser.add_argument("--only", help="variants whose names have one of these (a,b,c) in them")
    parser.add_argument("--count", type=int, default=REPEATS, help="%(default)s results of each")
    parser.add_argument("--prepare", action="store_true", help="only compile what the plain cells need")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    heads, lengths, dtypes = list(map(int, args.heads.split(","))), list(map(number, args.lengths.split(","))), args.dtypes.split(",")
    if args.prepare or not args.variants:
        prepare(heads, dtypes)
    if args.prepare:
        return 0
    table: list[dict[str, Any]] = []
    wrong: list[str] = []
    busy = disturbance()
    for dtype, d, n in itertools.product(dtypes, heads, lengths):
        for v in [v for v in variants(n) if chosen(v, args.only)] if args.variants else [plain(False), plain(True)]:
            called = f"{dtype} D={d} {length(n)} {v.name}"
            both = ways(Cell(n, d, dtype, v))
            wrong += [f"{called} {w.name}: rms error {w.rms_error:.1e}" for w in both.values() if not (w.rms_error or 0) <= LIMIT[dtype]]
            found = {name: changed(w.run, args.count if name == "deterministic" else min(args.count, 50), busy) for name, w in both.items()}
            if found["deterministic"]:
                wrong.append(f"{called}: {found['deterministic']} of {args.count} results are not the first one's bits")
            table.append({"dtype": dtype, "head": v.head or d, "length": n, "variant": v.name, "count": args.count,
                          "changed": found["deterministic"],
                          "changed_without": found["as it is"], "rms_error": both["deterministic"].rms_error})
            print(f"{called:40} {found['deterministic']} of {args.count} changed; without the mode {found['as it is']} of 50", flush=True)
            write_json(args.json, {"part": "repeats", "environment": facts(), "table": table, "problems": wrong})
    print("\n".join(wrong) or f"the same bits {args.count} times, in {len(table)} cells")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
