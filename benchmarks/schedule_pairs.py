# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own: "T[M, K]")
"""Every pair of schedule fields on a few small specs: what compiles is right in the simulator, what is refused is refused in words.

    python -m benchmarks.schedule_pairs --json benchmarks/results/schedule_pairs.json       all pairs (an hour on two cores); needs no GPU
    python -m benchmarks.schedule_pairs --sample 200 --seed 3                                some of them

A case is a spec, a target, a base schedule and two fields changed. Each goes through the passes and is printed as CUDA; the machine program
runs in the simulator at a small size, and its numbers are compared with the tile program's. Anything but a right result or an FcError that
says what to do is a bug; so is a field that asks for something and changes nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

import numpy as np

import fcgen as fc
from fcgen.build import compiler
from fcgen.kernels.attention import attention
from fcgen.sim.machine import check
from fcgen.sim.trial import random_inputs


@fc.kernel
def product(A: "T[M, K]", B: "T[K, N]", C: "out T[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    acc = fc.var(fc.zeros(rows, cols))
    for ks in fc.loop(fc.tile(A.K, "BK")):
        a, b = fc.load(A[rows, ks]), fc.load(B[ks, cols])
        acc <<= acc + fc.dot(a, b)
    fc.store(C[rows, cols], acc.to(C.dtype))


@fc.kernel
def row_softmax(X: "T[M, D]", Y: "out T[M, D]"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    x = fc.load(X[rows]).to(fc.f32)
    e = fc.exp(x - fc.max(x, axis=1))
    y = e / fc.sum(e, axis=1)
    fc.store(Y[rows], y.to(Y.dtype))


@fc.kernel
def gated(X: "T[M, D]", U: "T[N, D]", W: "T[N, D]", Y: "out f32[M, E]", P: "T[N, E]"):
    """Two products of a loop that meet before a third one, with work between a load and its product."""
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    x = fc.load(X[rows])
    y = fc.var(fc.zeros(rows, P.E))
    for cols in fc.loop(fc.tile(U.N, "BN")):
        u, w = fc.load(U[cols]), fc.load(W[cols])
        g = fc.dot(x, u.T)
        r = fc.dot(x, w.T)
        z = fc.where(cols.valid, g * r / (1.0 + fc.exp(-g)), 0.0)
        y <<= y + fc.dot(z.to(P.dtype), fc.load(P[cols]) * 0.5)
    fc.store(Y[rows], y)


@dataclass(frozen=True)
class Spec:
    """values: what the spec's own names are for the fields that take names. sizes: of the simulated run."""

    spec: Any
    binding: Mapping[str, Any]
    tiles: tuple[dict[str, int], ...]
    values: Mapping[str, tuple[Any, ...]]
    sizes: Mapping[str, int]


SPECS: dict[str, Spec] = {
    "attention": Spec(attention, {"LSE": None, "T": fc.f16, "D": 32, "E": 32, "mask": "causal_top_left", "lazy": 5.5, "sums": "rounded"},
                      tuple({"BLOCK_M": m, "BLOCK_N": n} for m, n in ((64, 32), (128, 64), (16, 16), (64, 48))),
                      {"math": ({"s": "wmma", "acc": "fma"}, {"s": "mma", "acc": "wgmma"}, {"s": "fma"}),
                       "stages": ({"k": 3}, {"q": 2, "k": 1}),
                       "late": ("acc", "s"), "early": ("s", "acc"), "behind": ("acc", "s"), "rolling": ("acc",), "ones": ("acc",),
                       "regs_a": ("s",), "made": ("s",), "from_end": ("rows",),
                       "cluster": ({"rows": 2}, {"h": 2}), "grid": ({"acc": (1, 2)}, {"s": (1, 2)}, {"s": (2, 2), "acc": (1, 4)})},
                      {"B": 1, "H": 2, "G": 1, "M": 70, "N": 100}),
    "product": Spec(product, {"T": fc.f16}, tuple({"BM": m, "BN": n, "BK": k} for m, n, k in ((64, 64, 32), (64, 32, 16), (32, 24, 16))),
                    {"math": ({"acc": "fma"}, {"acc": "wmma"}), "stages": ({"a": 3}, {"b": 1}), "late": ("acc",), "early": ("acc",),
                     "behind": ("acc",), "rolling": ("acc",), "ones": ("acc",), "regs_a": ("acc",), "made": ("acc",),
                     "from_end": ("rows", "cols"),
                     "cluster": ({"rows": 2}, {"cols": 2}), "grid": ({"acc": (1, 2)}, {"acc": (2, 2)})},
                    {"M": 72, "N": 80, "K": 88}),
    "row_softmax": Spec(row_softmax, {"T": fc.bf16, "D": 40}, ({"BM": 32}, {"BM": 4}, {"BM": 64}),
                        {"math": ({"y": "mma"},), "stages": ({"x": 3},), "late": ("y",), "early": ("y",), "behind": ("y",),
                         "rolling": ("y",), "ones": ("y",), "regs_a": ("y",), "made": ("y",), "from_end": ("rows",),
                         "cluster": ({"rows": 2},),
                         "grid": ({"y": (1, 1)},)}, {"M": 37}),
    "gated": Spec(gated, {"T": fc.bf16, "D": 32, "E": 24}, tuple({"BM": m, "BN": n} for m, n in ((64, 32), (64, 64), (32, 16))),
                  {"math": ({"g": "wmma", "r": "fma", "y": "mma"}, {"y": "fma"}),
                   "stages": ({"u": 3, "w": 2}, {"u": 1}), "late": ("y", "g"),
                   "early": ("g", "g+r"), "behind": ("y", "g"), "rolling": ("y",), "ones": ("y",),
                   "regs_a": ("g", "g+r"), "made": ("g+r", "g"),
                   "from_end": ("rows",), "cluster": ({"rows": 2},),
                   "grid": ({"y": (1, 2)}, {"g": (2, 2), "r": (1, 1)})}, {"M": 70, "N": 100}),
}
#: values of the fields that do not depend on the spec
FIELDS: dict[str, tuple[Any, ...]] = {
    "warps": (1, 2, 4, 8), "math": ("mma", "wmma", "fma", "wgmma"), "copy": ("cp_async", "vector", "scalar", "tma"), "stages": (1, 2, 3),
    "ahead": (True,), "hold_a": (False,), "reuse_frags": (False,), "split": ("branch", "none"), "skip_ones": (True,), "defer": (False,),
    "epilogue": ("direct", "quad", "tma"), "longest_first": (False,), "min_blocks": (2,), "vote": (True,), "tokens": (True,),
    "persistent": ("static", "dynamic"), "l2": (8,), "own_rows": (False,), "compare_bits": (True,), "hints": (True,), "pdl": (True,),
    "makers": (4,), "parts": (2, 3), "sender": (True,),
}
#: target, name -> what the pairs are changes of
BASES: dict[tuple[str, str], dict[str, Any]] = {
    ("sm_89", "mma"): {},
    ("sm_90a", "mma"): {},
    ("sm_90a", "wgmma"): {"math": "wgmma", "copy": "tma"},
    ("sm_90a", "late"): {"math": "wgmma", "copy": "tma", "warps": 8, "late": "acc", "vote": True},
}


#: fields and values that decline something: they have their way where nothing is changed
DECLINING = {("hold_a", False), ("reuse_frags", False), ("split", "none"), ("defer", False), ("longest_first", False), ("own_rows", False),
             ("epilogue", "direct"), ("stages", 1)}
DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(fc.Schedule)}


OF_BASES = {field for base in BASES.values() for field in base}


@dataclass(frozen=True)
class Case:
    """changed: the fields in which the schedule differs from its base."""

    spec: str
    target: str
    schedule: tuple[tuple[str, Any], ...]
    changed: tuple[str, ...] = ()

    @property
    def base(self) -> Case | None:
        """The case without its one change, if that asks for something."""
        if len(self.changed) != 1 or self.changed[0] in OF_BASES:
            return None
        field, value = next((k, v) for k, v in self.schedule if k in self.changed)
        rest = tuple((k, v) for k, v in self.schedule if k != field)
        return Case(self.spec, self.target, rest) if field != "tiles" and (field, _key(value)) not in DECLINING else None

    def __str__(self) -> str:
        return f"{self.spec} on {self.target}: {', '.join(f'{k}={v}' for k, v in self.schedule)}"


def options(spec: Spec) -> dict[str, tuple[Any, ...]]:
    out = {"tiles": spec.tiles[1:], **FIELDS}
    for name, more in spec.values.items():
        out[name] = (*out.get(name, ()), *more)
    return out


def cases() -> Iterator[Case]:
    """The bases, every field changed, and every two fields changed."""
    for name, spec in SPECS.items():
        values_of = options(spec)
        for (target, kind), base in BASES.items():
            if kind == "late" and name != "attention":
                continue
            first = {"tiles": spec.tiles[1 if base.get("warps") == 8 else 0], **base}
            every = [(), *((f,) for f in values_of), *combinations(values_of, 2)]
            for chosen in every:
                for values in _choices([values_of[f] for f in chosen]):
                    changed = dict(zip(chosen, values))
                    if all(first.get(k, DEFAULTS[k]) != v for k, v in changed.items()):
                        yield Case(name, target, tuple({**first, **changed}.items()), chosen)


def _program(case: Case) -> Any:
    spec = SPECS[case.spec]
    return spec.spec.compile(target=case.target, schedule=fc.Schedule(**dict(case.schedule)), **spec.binding)


def _text(program: Any) -> str:
    """The machine program, without what only says how it was made."""
    return "\n".join(line for line in str(program.machine).splitlines() if not line.startswith("meta schedule"))


def _key(value: Any) -> Any:
    return value if isinstance(value, (str, int, bool)) else str(value)


def _choices(sets: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    if not sets:
        yield ()
        return
    for x in sets[0]:
        for rest in _choices(sets[1:]):
            yield (x, *rest)


_RUN: dict[tuple[str, str], str] = {}  # machine programs that were run, as text without the schedule -> what came of it


def verdict(case: Case, simulate: bool = True) -> tuple[str, str]:
    """("right" | "refused" | "bug", what was said)."""
    spec = SPECS[case.spec]
    try:
        program = _program(case)
        compiler.to_cuda(program.machine, program.target)
    except fc.FcError as e:
        if e.message.startswith("internal") or e.code.startswith(("ir/", "sim/")):
            return "bug", f"{e.code}: {e.message}: expected {e.expected}, got {e.got}"
        if not e.hint and not e.expected:
            return "bug", f"refused without a word of what to do: {e.code}: {e.message}"
        return "refused", f"{e.code}: {e.message}"
    except Exception as e:
        return "bug", f"{type(e).__name__}: {e}"
    text = _text(program)
    if case.base is not None and _text(_program(case.base)) == text:
        return "bug", f"{case.changed[0]} changes nothing"
    if not simulate:
        return "right", "not run"
    if (case.spec, text) not in _RUN:
        _RUN[case.spec, text] = unlike(program, random_inputs(program.machine, spec.sizes), 1e-2)
    said = _RUN[case.spec, text]
    return ("bug", said) if said else ("right", "")


def unlike(program: Any, inputs: dict[str, Any], rtol: float) -> str:
    """How the machine program differs from the tile program in the simulator; "" if it does not."""
    try:
        want = program.interpret(**inputs)
        got = check(program.machine, inputs, program.target).outputs
    except fc.FcError as e:
        return f"{e.code}: {e.message}"
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    for name, x in want.items():
        x, y = np.asarray(x, np.float64), np.asarray(got[name], np.float64)
        error = float(np.sqrt(np.mean((x - y) ** 2)) / max(np.sqrt(np.mean(x * x)), 1e-30))
        if not error < rtol:
            return f"{name} is wrong: rms error {error:.2g}"
    return ""


def _timed(case: Case) -> tuple[Case, str, str, float]:
    start = time.perf_counter()
    kind, said = verdict(case)
    return case, kind, said, time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="so many cases, drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SPECS, help="one spec")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    todo = [c for c in cases() if args.only in (None, c.spec)]
    total = len(todo)
    random.Random(args.seed).shuffle(todo)
    if args.sample is not None:
        todo = todo[:args.sample]
    counts: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    bugs: list[dict[str, str]] = []
    begin = time.monotonic()
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as executor:
        for case, kind, said, _ in executor.map(_timed, todo, chunksize=8):
            counts[kind] += 1
            if kind == "refused":
                refusals[said] += 1
            if kind == "bug":
                bugs.append({"case": str(case), "said": said})
                print(f"{case}\n    {said}", flush=True)
            if time.monotonic() - begin > args.seconds:
                executor.shutdown(cancel_futures=True)
                break
    done = sum(counts.values())
    print(f"{done} of {total} cases in {time.monotonic() - begin:.0f} s: {dict(counts)}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"cases": done, "of": total, **counts, "bugs": bugs, "refusals": dict(refusals.most_common())}, f, indent=1)
            f.write("\n")
    return 1 if bugs else 0


if __name__ == "__main__":
    sys.exit(main())
