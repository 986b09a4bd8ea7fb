"""The page of benchmarks, from folders of result files: `benchmarks.pictures` writes it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SUITES = {"sdpa": "PyTorch, SDPA", "flex": "PyTorch, FlexAttention", "varlen": "PyTorch, varlen", "flash_attn": "FlashAttention-3"}
VERDICTS, MOST_REASONS = ("passed", "failed", "not applicable", "not reached", "stopped"), 5
FORWARD = {"fp16": "forward_fp16.json", "bf16": "forward_bf16.json"}
#: rows of training.json; cases of gemms.json, and what each is held to
TRAINING = {"fcgen": "fcgen", "fcgen, deterministic": "fcgen, deterministic", "sdpa CUDNN_ATTENTION": "cuDNN",
            "sdpa FLASH_ATTENTION": "torch's flash"}
GEMMS = {"product": ("product, 8192³", "cuBLAS"), "gelu": ("with bias and GELU, 8192³", "cuBLAS, then the rest"),
         "swiglu": ("SwiGLU, 8192³", "cuBLAS, then the rest"), "norm": ("RMSNorm in front, 8192³", "a norm, then cuBLAS"),
         "norm-same": ("RMSNorm in front, factors of 16 bits, 8192³", "a norm, then cuBLAS"),
         "int4-4096": ("4-bit weights, 4096 rows", "cuBLAS"), "int4-16": ("4-bit weights, 16 rows", "cuBLAS")}


#: (head size, mask) -> length -> TFLOP/s, over the fastest other's, which that is
Race = dict[tuple[int, str], dict[int, tuple[float, float, str]]]


class Results:
    def __init__(self, *folders: Path):
        self.folders = folders

    def has(self, name: str) -> bool:
        return bool(self.names(name))

    def names(self, pattern: str) -> set[str]:
        return {path.name for folder in self.folders for path in folder.glob(pattern)}

    def read(self, name: str) -> Any:
        last = next((folder for folder in reversed(self.folders) if (folder / name).exists()), self.folders[0])
        return json.loads((last / name).read_text(encoding="utf-8"))

    def race(self, dtype: str) -> Race:
        """(head size, mask) -> length -> TFLOP/s, over the fastest other's, which that is."""
        out: Race = {}
        for row in self.read(FORWARD[dtype])["table"]:
            others = {n: r["tflops"] for n, r in row["results"].items() if n in ("fa3", "cudnn")}
            best = max(others, key=lambda n: others[n])
            ours = row["results"]["fcgen"]["tflops"]
            out.setdefault((row["d"], "full" if row["mask"] == "none" else "causal"), {})[row["s"]] = ours, ours / others[best], best
        return {key: dict(sorted(cells.items())) for key, cells in sorted(out.items(), key=lambda kv: (kv[0][0], kv[0][1] == "causal"))}

    def variants(self) -> dict[str, dict[int, dict[str, float]]]:
        """variant -> head size -> over what it is held to (base, or a padded batch) and other libraries' times, and theirs over that base:
        each of the last run that had it"""
        out: dict[str, dict[int, dict[str, float]]] = {}
        for run in (self.read("variants.json"), *self.by_date("variants-*.json")):
            for name, case in run["cases"].items():
                head, what = re.fullmatch(r"D=(\d+) (.*)", name).groups()  # type: ignore[union-attr]
                t = case["times"]
                words = {"base": "base", "padded": "base", "fa3": "fa3", "flex": "flex"}
                others = {word: t[key] for key, word in words.items() if key in t}
                theirs = {f"{who}, base": others[who] / others["base"] for who in ("fa3", "flex") if who in others and "base" in others}
                out.setdefault(what, {}).setdefault(int(head), {}).update({word: t["fcgen"] / x for word, x in others.items()} | theirs)
        return out

    def backward(self, dtype: str) -> Race:
        """The same of backward passes."""
        out: Race = {}
        for (kind, d, mask, n), by in self.backward_rates("backward-race*.json").items():
            if kind == dtype:
                best = max((x for x in by if x in ("fa3", "cudnn")), key=lambda x: by[x])
                out.setdefault((d, mask), {})[n] = by["fcgen"], by["fcgen"] / by[best], best
        return out

    def by_date(self, pattern: str) -> list[Any]:
        """Files of such names, the last run last."""
        return sorted(map(self.read, self.names(pattern)), key=lambda run: run["environment"]["date"])

    def backward_rates(self, pattern: str) -> dict[tuple[str, int, str, int], dict[str, float]]:
        """(dtype, head size, variant, length) -> who -> TFLOP/s, each of the last run that had it."""
        out: dict[tuple[str, int, str, int], dict[str, float]] = {}
        for run in self.by_date(pattern):
            cells: dict[tuple[str, int, str, int], dict[str, float]] = {}
            for r in run["table"]:
                cells.setdefault((r["dtype"], r["head"], r["variant"], r["length"]), {})[r["name"]] = r["tflops"]
            out |= cells
        return out

    def training(self) -> list[tuple[str, dict[str, float]]]:
        """What -> who -> TFLOP/s of a backward pass under autograd."""
        out: dict[str, dict[str, float]] = {}
        for r in self.read("training.json")["table"]:
            what = f"D={r['head']} {'causal' if r['causal'] else 'full'}{', soft cap' if r['cap'] else ''}"
            if r["name"] in TRAINING:
                out.setdefault(what, {})[TRAINING[r["name"]]] = r["tflops"]
        return sorted(out.items(), key=lambda kv: ("soft" in kv[0], kv[0].startswith("D=128"), "causal" in kv[0]))

    def shapes(self, name: str) -> list[tuple[str, float, float]]:
        """Products that no schedule is kept for: rows x columns x depth, fcgen's choice over cuBLAS, and its bytes over a copy's."""
        run = self.read(name)
        cublas = {r["case"]: r for r in run["table"] if r["name"] == "cuBLAS"}
        return [(r["case"], r["tflops"] / cublas[r["case"]]["tflops"], r["gbps"] / run["ceilings"]["copy_gbps"])
                for r in run["table"] if r["case"].count("x") == 2 and "chosen" in r["name"]]

    def gemms(self) -> list[tuple[str, float, float, str]]:
        """What, TFLOP/s of fcgen's choice, of the best of a search, of what it is held to and which that is, all over the latter's."""
        runs = [self.read(name)["table"] for name in sorted(self.names("gemms*.json"), key=lambda x: Path(x).stem, reverse=True)]
        out = []
        for case, (title, held) in GEMMS.items():
            mine = next((found for run in runs if (found := [r for r in run if r["case"] == case])), [])  # of the last run that has it
            base = next((r for r in mine if r["name"] == held), None)
            if base is None:
                continue
            chosen = next(r["tflops"] for r in mine if r["name"].startswith(f"{case}, chosen"))
            best = max(r["tflops"] for r in mine if r["name"].startswith(f"{case},"))
            out.append((title, chosen / base["tflops"], best / base["tflops"], held))
        return out

    def stack(self) -> list[tuple[str, str, float, float, float]]:
        """Of layers end to end: what, who, milliseconds of all, of attention, and that over fcgen's attention. Empty without its file."""
        if not self.has("llama.json"):
            return []
        parts = {"prefill": "prefill", "step": "forward and backward"}
        table = self.read("llama.json")["table"]
        return [(what, who, t["whole"], t["attention"], t["attention"] / table[part]["fcgen"]["attention"])
                for part, what in parts.items() for who, t in table[part].items()]

    def host(self) -> list[tuple[str, float]]:
        found = next((n for n in ("host_time-interfaces.json", "host_time.json") if self.has(n)), None)
        return [(r["what"], r["us"]) for r in self.read(found)["rows"] if r["causal"]] if found else []


def geomean(xs: Iterable[float]) -> float:
    logs = [math.log(x) for x in xs]
    return math.exp(sum(logs) / len(logs))


def short(s: int) -> str:
    return f"{s // 1024}k" if s % 1024 == 0 else str(s)


# ---- the page --------------------------------------------------------------------------------------------------------------


def rows(head: list[str], body: Iterable[Iterable[Any]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def page(results: Results, *folders: str) -> str:
    """docs/benchmarks.md."""
    read = ", then ".join(f"[{folder}](../{folder})" for folder in folders)
    env = results.read(FORWARD["fp16"])["environment"]
    gpu, commit = env["gpu"].get("name", "one GPU"), str(env.get("commit", ""))[:7]
    race = {d: results.race(d) for d in FORWARD if results.has(FORWARD[d])}
    ratios = {d: [c[1] for cells in r.values() for c in cells.values()] for d, r in race.items()}
    lengths = sorted({s for cells in race["fp16"].values() for s in cells})
    cells = [[f"{d} {mask}", *(f"{by[s][0]:.0f} ({by[s][1]:.2f})" for s in lengths)] for (d, mask), by in race["fp16"].items()]
    small = [(r["mask"], r["us"]) for r in results.read(FORWARD["fp16"]).get("small", [])]
    over = lambda t, head: [f"{t[head][w]:.2f}" if head in t and w in t[head] else "" for w in ("base", "fa3", "flex")]
    variants = [[what, *over(t, 64), *over(t, 128)] for what, t in results.variants().items()]
    training = [[what, *(f"{who[n]:.0f}" if n in who else "" for n in TRAINING.values())] for what, who in results.training()]
    shapes, others = ([[what, f"{over:.2f}", f"{moved:.2f}"] for what, over, moved in results.shapes(name)]
                      for name in ("gemms-shapes.json", "gemms-held-out.json"))
    gemms = [[what, f"{chosen:.2f}", f"{best:.2f}", held] for what, chosen, best, held in results.gemms()]
    said = ", ".join(f"{geomean(x):.3f} in {d} (worst cell {min(x):.2f})" for d, x in ratios.items())
    words = {"fcgen": "fcgen", "cudnn": "cuDNN", "fa3": "FlashAttention-3"}
    tiny = "; ".join(f"{'full' if mask == 'none' else 'causal'} {', '.join(f'{words[n]} {us[n]:.1f} us' for n in words if n in us)}"
                     for mask, us in small)
    return f"""# Benchmarks

One {gpu}, torch {env.get('torch', '')}, all in one process, in turns, preheated, each result checked against float64 before it is timed.
The numbers are read from {read}; pictures and page are made by
`python -m benchmarks.pictures {' '.join(folders)} docs`.

## Attention forward: the race

TFLOP/s of fcgen in f16, and in brackets over the faster of FlashAttention-3 and cuDNN, for batches of 16k tokens and 2048 columns of heads.
Geometric mean over {len(ratios['fp16'])} cells: {said}. Commit {commit}.

![Each cell over the faster of FlashAttention-3 and cuDNN](bench-race.svg)

{rows(['', *map(short, lengths)], cells)}

Small problems (B=1, H=8, S=512, D=64, replayed from a CUDA graph): {tiny}.

![TFLOP/s against length](hopper.svg)

![Against the roofline](roofline.svg)

The flat roof is what cuBLAS reaches at 8192³ in the same run: the board's power limits both, and long attention draws less than a plain
product.

## Masks, scores, packed sequences

Time over that of what a variant is held to (the plain kernel of the same shape; for masks scaled by what is seen, for packed sequences
of equal lengths the padded batch), over FlashAttention-3's where it has the variant, and over compiled FlexAttention's. Below 1 is
faster. All are timed as CUDA graphs; what the host needs for a call is in `variants.json` (`host`) and in `host_time-interfaces.json`.
Each number is of the last run that had it (`variants.json`, then `variants-*.json`): FlexAttention ran in the first one alone.

![Variants over what they are held to](bench-variants.svg)

{rows(['', 'D=64', 'over FA3', 'over Flex', 'D=128', 'over FA3', 'over Flex'], variants)}

## Backward

TFLOP/s of the backward pass under torch's autograd at 4k, for 16k tokens and 2048 columns of heads, every launch counted: an earlier run,
with torch's own flash kernels and a soft cap beside it. The cells below it are of the state after it.

![Backward passes](bench-backward.svg)

{rows(['', *TRAINING.values()], training)}
{_of_backward(results)}
## Products with something before or behind

Rate over that of the library call or calls that do the same. "chosen": what `fc.schedule_for` gives without help; "best": of a search.

![Products](bench-gemms.svg)

{rows(['', 'chosen', 'best', 'over'], gemms)}

Plain products of other shapes, rows x columns x depth: what `fc.schedule_for` chooses over cuBLAS, and the bytes that must be moved
per second over a copy's (`python -m benchmarks.gemms --only shapes`). No schedule is kept for any of them, but the constants of the model
for up to 64 rows were fitted to measurements of these shapes, so those rows show the fit, not a forecast.

{rows(['', 'over cuBLAS', 'over a copy'], shapes)}

Ten shapes that nothing was fitted to:

{rows(['', 'over cuBLAS', 'over a copy'], others)}
{_of_stack(results)}{_of_conformance(results)}
## Host time

Microseconds until a call returns, causal, B=1, H=8, S=512, D=64 (`python -m benchmarks.host_time --quick --interfaces`). Host times
hang on the machine: compare with the bare launch and with `torch.empty_like`, which is part of every call that makes its output.

{rows(['', 'us'], [[what, f'{us:.1f}'] for what, us in results.host()])}
"""


def _of_stack(results: Results) -> str:
    found = results.stack()
    if not found:
        return ""
    shape = results.read("llama.json")["shape"]
    of = "{layers} layers of Llama-8B's shape (hidden {hidden}, {heads} heads, {kv_heads} of keys, D={head}), {length} tokens, bf16,"
    body = [[what, who, f"{whole:.2f}", f"{part:.2f}", f"{over:.2f}"] for what, who, whole, part, over in found]
    return f"""
## A stack of layers

{of.format(**shape)}
with attention through `scaled_dot_product_attention` of fcgen and of torch. Milliseconds of all, of attention (between CUDA events around
its calls), and the latter over fcgen's. Outputs and gradients are checked against float64 first.

{rows(['', '', 'all', 'attention', 'over fcgen'], body)}
"""


def _of_backward(results: Results) -> str:
    by = {d: results.backward(d) for d in FORWARD}
    ratios = {d: [c[1] for cells in r.values() for c in cells.values()] for d, r in by.items()}
    lengths = sorted({s for cells in by["fp16"].values() for s in cells})
    said = ", ".join(f"{geomean(x):.3f} in {d} (worst cell {min(x):.2f})" for d, x in ratios.items() if x)
    cells = [[f"{d} {mask}", *(f"{c[s][0]:.0f} ({c[s][1]:.2f})" for s in lengths)] for (d, mask), c in by["fp16"].items()]
    more = ""
    if results.has("backward-variants*.json"):
        names = {"fcgen": "fcgen", "fcgen, deterministic": "fcgen, deterministic", "cudnn": "cuDNN", "fa3": "FlashAttention-3",
                 "flex": "FlexAttention"}
        found = results.backward_rates("backward-variants*.json").items()
        table = [[f"D={d}, {what}", short(length), *(f"{rates[n]:.0f}" if n in rates else "" for n in names)]
                 for (_, d, what, length), rates in sorted(found, key=lambda cell: cell[0][1:])]
        said_of = "With masks, scores and grouped heads (FlexAttention adds up the gradient of slopes a number at a time)"
        more = f"\n{said_of}:\n\n{rows(['', 'length', *names.values()], table)}\n"
    return f"""
Every cell, in f16 (in brackets over the faster of cuDNN's and FlashAttention-3's, which is timed by its own call):
geometric mean {said}. Time of the GPU alone: it is held until all calls of a turn are in its queue.

![Each cell over the faster of FlashAttention-3 and cuDNN](bench-backward-race.svg)

{rows(['', *map(short, lengths)], cells)}

What bounds them, by ncu and by counting. Up to D=128: shared memory, whose cycles are 1.10 to 1.15 of the tensor cores' (scores and
gradients of weights are products of 64 keys that read both operands there, and dQ goes through it in float32); masks and selects
are a tenth of the loop's instructions at D=64. At 1k the two kernels around the main one: 120 us of 700 to 820, at 3.9 and 4.0 TB/s
(a copy has 4.1), and 3 to 5 us that a block takes to begin and to end. D=256: L2, which sends 64 KiB for each tile of 64 x 64
scores.
{more}{_of_repeats(results)}
"""


def _of_repeats(results: Results) -> str:
    table = [row for name in sorted(results.names("repeats*.json")) for row in results.read(name)["table"]]
    if not table:
        return ""
    same = sum(not row["changed"] for row in table)
    return (f"\nIn torch's deterministic mode {same} of {len(table)} cells gave the same bits {table[0]['count']:,} times, into memory full"
            " of NaN and beside other work on the GPU (`python -m benchmarks.repeats`).\n")


def _of_conformance(results: Results) -> str:
    if not results.has("conformance.json"):
        return ""
    record = results.read("conformance.json")
    suites = [(name, record[name]) for name in SUITES if name in record]
    body = [[SUITES[name], *(f"{r[n]:,}" for n in ("collected", "passed", "failed", "not applicable")),
             f"{r['not reached'] + r['stopped']:,}", f"{r['collected'] - sum(r[n] for n in VERDICTS):,}"] for name, r in suites]
    why = [f"- {SUITES[name]}: " + "; ".join(f"{reason} ({n:,})" for reason, n in list(r["not_applicable_because"].items())[:MOST_REASONS])
           for name, r in suites]
    lost = {word: sum(n for _, r in suites for reason, n in r.get("not_reached_because", {}).items() if word in reason)
            for word in ("is mended", "mistake of this harness")}
    said = (f"\n{lost['is mended']} failed, are mended since and were not run again; {lost['mistake of this harness']:,} were lost to a"
            " mistake of the harness: both are counted as not reached too." if any(lost.values()) else "")
    sources = "\n".join(f"- {line}" for line in record.get("sources", []))
    runs = record.get("runs", [record])
    *before, last = (f"{run['seconds']:.0f} s in {run['processes']} processes" for run in runs)
    took = " and ".join([*([", ".join(before)] if before else []), last])
    made = sum(r["time"]["kernels_made"] for _, r in suites if "time" in r)
    spent = sum(r["time"]["compile_seconds"] for _, r in suites if "time" in r)
    cards = record.get("gpus") or 1
    compiled = f" {made:,.0f} kernels were compiled for them, in {spent / made:.1f} s each." if made else ""
    return f"""
## Other projects' own tests

`python -m benchmarks.conformance` runs PyTorch's and FlashAttention's own tests, forward and backward, with fcgen's functions in place of
theirs: {took} that share {cards} GPU{"s" * (cards > 1)}.
Of functions with many cases a sample is taken, spread evenly over their parameters; what the limit of time cut off is counted as not
reached.{said}{compiled}

{rows(['', 'cases', 'passed', 'failed', 'not applicable', 'not reached', 'not in the sample'], body)}

Most of what is not applicable:

{chr(10).join(why)}

The tests are those of

{sources}
"""
