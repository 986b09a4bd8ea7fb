"""TFLOP/s against sequence length, one panel per head size and mask: `python -m benchmarks.plot RESULTS.json PICTURE.svg`.

Reads what attention_forward.py or gpu_check.sh wrote. Needs matplotlib (pip install 'fcgen[plot]').
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

#: name -> label, colour (Okabe and Ito's, which the colour-blind can tell apart) and line
NAMES = {"mma": ("fcgen, mma", "#0072b2", "-"), "wmma": ("fcgen, WMMA", "#56b4e9", "-"), "fa2": ("FlashAttention-2", "#d55e00", "--"),
         "cudnn": ("cuDNN", "#555555", ":"), "fcgen": ("fcgen", "#0072b2", "-"), "fa3": ("FlashAttention-3", "#d55e00", "--"),
         "flash": ("PyTorch flash", "#e69f00", "-."), "flex": ("FlexAttention", "#009e73", ":"), "mosaic": ("Mosaic GPU", "#cc79a7", "-."),
         "triton": ("Triton's tutorial", "#56b4e9", "--")}


def table_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    return data["table"] if "table" in data else data["parts"]["forward"]["table"]


def series(table: list[dict[str, Any]]) -> dict[tuple[int, str], dict[str, list[tuple[int, float]]]]:
    """(head size, mask) -> candidate -> [(length, TFLOP/s)], by length."""
    out: dict[tuple[int, str], dict[str, list[tuple[int, float]]]] = {}
    for row in sorted(table, key=lambda r: r["s"]):
        panel = out.setdefault((row["d"], row["mask"]), {})
        for name, r in row["results"].items():
            if name == "fcgen_serial":  # on top of fcgen's line
                continue
            panel.setdefault(name, []).append((row["s"], r["tflops"]))
    return dict(sorted(out.items(), key=lambda p: (p[0][1] != "none", p[0][0])))


def draw(table: list[dict[str, Any]], path: Path, title: str, columns: int | None = None) -> None:
    """A row of panels for each mask, unless `columns` says how many panels a row has."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "forward", "svg.fonttype": "none"})
    panels = series(table)
    wide = min(columns or max(sum(m == mask for _, m in panels) for _, mask in panels), len(panels))
    rows = -(-len(panels) // wide)
    figure, axes = plt.subplots(rows, wide, figsize=(3.1 * wide, 2.6 * rows + 0.8), sharex=True, sharey=True,
                                layout="constrained", squeeze=False)
    for a in axes.flat[len(panels):]:
        a.axis("off")
    for a, ((d, mask), lines) in zip(axes.flat, panels.items()):
        for name, points in lines.items():
            label, color, style = NAMES.get(name, (name, None, "-"))
            a.plot(*zip(*points), style, marker="o", markersize=4.5, color=color, label=label)
        lengths = sorted({s for points in lines.values() for s, _ in points})
        a.set_xscale("log", base=2)
        a.set_xticks(lengths, [f"{s // 1024}k" if s % 1024 == 0 else str(s) for s in lengths])
        a.minorticks_off()
        a.set_title(f"D = {d}, {'causal' if mask != 'none' else 'no mask'}", fontsize=10)
        a.spines[["top", "right"]].set_visible(False)
        a.grid(axis="y", color="#e5e5e5")
    for row in axes:
        row[0].set_ylabel("TFLOP/s")
    for n, a in enumerate(axes.flat[:len(panels)]):
        if n + wide >= len(panels):
            a.set_xlabel("sequence length")
            a.tick_params(labelbottom=True)
    axes[0][0].set_ylim(0, 1.05 * max(r["tflops"] for row in table for r in row["results"].values()))  # shared by all panels
    named = {label: line for a in axes.flat for line, label in zip(*a.get_legend_handles_labels())}
    figure.legend(named.values(), named.keys(), frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    figure.suptitle(title)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, **({"dpi": 130} if path.suffix == ".png" else {}))
    plt.close(figure)
    in_pixels(path)


def in_pixels(path: Path) -> None:
    """An SVG's size without a unit: not every viewer knows points."""
    if path.suffix == ".svg":
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r'\b(width|height)="([\d.]+)pt"', r'\1="\2"', text, count=2), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args(argv)
    data = json.loads(args.results.read_text(encoding="utf-8"))
    gpu = data["environment"]["gpu"].get("name", "")
    draw(table_of(data), args.picture, f"Attention forward{', ' + gpu if gpu else ''}")


if __name__ == "__main__":
    main()
