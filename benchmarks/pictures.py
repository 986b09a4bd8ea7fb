"""The page of benchmarks and its pictures, from the result files of one GPU: `python -m benchmarks.pictures RESULTS_FOLDER ... docs`.

Of files of one name in several folders those of the last folder count. Writes docs/benchmarks.md (`--text` writes nothing else) and
docs/bench-*.svg, hopper.svg and roofline.svg; pictures need matplotlib (pip install 'fcgen[plot]'). Every number of the page is read from
the files, so that a test can tell when it is not theirs any more.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from . import plot, roofline
from .page import FORWARD, TRAINING, Race, Results, page, short

OURS, OTHER, THEIRS, FLEX, GOOD, BAD = "#0072b2", "#56b4e9", "#d55e00", "#e69f00", (0.0, 0.45, 0.70), (0.84, 0.37, 0.0)


def _figure(wide: float, high: float) -> Any:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "fcgen", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"})
    return plt.subplots(figsize=(wide, high), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    plot.in_pixels(path)


def _plain(a: Any, *kept: str) -> None:
    a.spines[[s for s in ("top", "right", "left", "bottom") if s not in kept]].set_visible(False)
    a.tick_params(length=0)


def draw_race(results: Results, path: Path) -> None:
    _squares({d: results.race(d) for d in FORWARD if results.has(FORWARD[d])}, path)


def draw_backward_race(results: Results, path: Path) -> None:
    _squares({d: found for d in FORWARD if (found := results.backward(d))}, path)


def _squares(by: dict[str, Race], path: Path) -> None:
    """A square per cell: blue where fcgen is faster, red where it is slower, the ratio in it."""
    lengths = sorted({s for race in by.values() for cells in race.values() for s in cells})
    names = list(by["fp16"])
    figure, a = _figure(1.6 + 0.62 * len(lengths) * len(by), 0.9 + 0.42 * len(names))
    for block, (dtype, race) in enumerate(by.items()):
        for y, key in enumerate(names):
            for n, s in enumerate(lengths):
                if s not in race.get(key, {}):
                    continue
                _, ratio, other = race[key][s]
                strength = min(1.0, abs(ratio - 1.0) / 0.25)
                hue = GOOD if round(ratio, 2) >= 1 else BAD
                color = tuple(1 - (1 - c) * (0.12 + 0.88 * strength) for c in hue)
                x = n + block * (len(lengths) + 0.6)
                a.add_patch(_square(x, y, color))
                dark = strength > 0.55
                a.text(x + 0.5, y + 0.42, f"{ratio:.2f}", ha="center", va="center", color="white" if dark else "#222222", fontsize=8.5)
                a.text(x + 0.5, y + 0.78, {"fa3": "FA3", "cudnn": "cuDNN"}[other], ha="center", va="center", fontsize=5.5,
                       color="white" if dark else "#555555")
        a.text(block * (len(lengths) + 0.6) + len(lengths) / 2, -0.75, dtype, ha="center", va="center", fontsize=10)
        for n, s in enumerate(lengths):
            a.text(n + 0.5 + block * (len(lengths) + 0.6), -0.25, short(s), ha="center", va="center", color="#555555")
    a.set_xlim(0, len(by) * (len(lengths) + 0.6) - 0.6)
    a.set_ylim(len(names), -1.1)
    a.set_yticks([n + 0.5 for n in range(len(names))], [f"D = {d}, {mask}" for d, mask in names])
    a.set_xticks([])
    _plain(a)
    a.set_title("fcgen over the faster of FlashAttention-3 and cuDNN, by length", fontsize=10)
    _save(figure, path)


def _square(x: float, y: float, color: Any) -> Any:
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch((x + 0.06, y + 0.06), 0.88, 0.88, boxstyle="round,pad=0,rounding_size=0.08", linewidth=0, facecolor=color)


def _bars(a: Any, names: list[str], values: list[list[tuple[float, str, str]]], limit: float = math.inf) -> None:
    """Horizontal bars in groups: for each name (value, colour, label). One beyond the limit is cut; its number is not."""
    thick = 0.8 / max(map(len, values))
    labels: set[str] = set()
    for y, group in enumerate(values):
        for n, (x, color, label) in enumerate(group):
            at = y + thick * (n + 0.5 - len(group) / 2)
            a.barh(at, min(x, limit), thick * 0.86, color=color, label=None if label in labels else label)
            labels.add(label)
            number = f"{x:.0f}" if x >= 20 else f"{x:.2f}"
            text = number + (" →" if x > limit else "")
            a.annotate(text, (min(x, limit), at), (3, 0), textcoords="offset points", va="center", fontsize=7, color="#333333",
                       bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.75}, zorder=4)
    a.set_yticks(range(len(names)), names)
    a.set_ylim(len(names) - 0.4, -0.6)
    _plain(a, "bottom")


def _legend(a: Any, columns: int) -> None:
    a.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.4, 1.0), fontsize=8, ncols=columns)


def draw_variants(results: Results, path: Path) -> None:
    table = results.variants()
    figure, a = _figure(7.4, 1.1 + 0.34 * len(table))
    shown = {what + ("" if "base" in next(iter(by.values())) else ", over FA3"): by for what, by in table.items()}
    heads = ((64, OURS), (128, OTHER))
    _bars(a, list(shown), [[(by[h].get("base", by[h].get("fa3", math.nan)), color, f"fcgen, D = {h}") for h, color in heads if h in by]
                           for by in shown.values()], 3.0)
    for who, color, label in (("fa3", THEIRS, "FlashAttention-3"), ("flex", FLEX, "FlexAttention")):
        both = [(t[f"{who}, base"], y - 0.2 + 0.4 * n) for y, by in enumerate(shown.values()) for n, (h, _) in enumerate(heads)
                for t in [by.get(h, {})] if f"{who}, base" in t]
        if both:
            a.plot(*zip(*both), "d", color=color, markersize=5, markeredgecolor="white", linewidth=0, label=label)
    a.axvline(1.0, color="#888888", linewidth=0.8, linestyle=":")
    a.set_xlim(0, 5)
    a.set_xlabel("time over that of what the variant is held to: shorter is faster, 1 is as fast")
    _legend(a, 3)
    _save(figure, path)


def draw_backward(results: Results, path: Path) -> None:
    table = results.training()
    figure, a = _figure(7.0, 1.0 + 0.46 * len(table))
    colors = dict(zip(TRAINING.values(), (OURS, OTHER, "#555555", "#e69f00")))
    _bars(a, [what for what, _ in table], [[(who[n], colors[n], n) for n in TRAINING.values() if n in who] for _, who in table])
    a.set_xlabel("TFLOP/s of a backward pass under autograd, 4k tokens")
    _legend(a, 4)
    _save(figure, path)


def draw_gemms(results: Results, path: Path) -> None:
    table = results.gemms()
    figure, a = _figure(7.0, 1.0 + 0.46 * len(table))
    words = (OURS, "what fcgen chooses"), (OTHER, "best of a search")
    _bars(a, [f"{what}" for what, *_ in table], [[(x, *word) for x, word in zip(rates, words)] for _, *rates, _ in table])
    a.axvline(1.0, color="#888888", linewidth=0.8, linestyle=":")
    a.set_xlabel("rate over that of the library calls which do the same (longer is faster)")
    a.set_xlim(right=1.12 * max(x for _, *rates, _ in table for x in rates))
    _legend(a, 2)
    _save(figure, path)


def draw_lengths(results: Results, path: Path) -> None:
    data = results.read(FORWARD["fp16"])
    plot.draw(data["table"], path, f"Attention forward, f16, {data['environment']['gpu']['name']}, {data['environment']['date'][:10]}")


def draw_roofline(results: Results, path: Path) -> None:
    data = results.read(FORWARD["fp16"])
    roofline.draw_roofline(data, path, f"Attention forward, f16, {data['environment']['gpu']['name']}, {data['environment']['date'][:10]}")


PICTURES = {"bench-race": draw_race, "bench-backward-race": draw_backward_race, "bench-variants": draw_variants,
            "bench-backward": draw_backward, "bench-gemms": draw_gemms, "hopper": draw_lengths, "roofline": draw_roofline}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="folders; what a later one has counts")
    parser.add_argument("docs", type=Path)
    parser.add_argument("--text", action="store_true", help="the page only")
    args = parser.parse_args(argv)
    results = Results(*args.results)
    (args.docs / "benchmarks.md").write_text(page(results, *(folder.as_posix() for folder in args.results)), encoding="utf-8")
    for name, draw in {} if args.text else PICTURES.items():
        draw(results, args.docs / f"{name}.svg")


if __name__ == "__main__":
    main()
