"""Pictures of a Hopper run: TFLOP/s against length for each head size and mask, and a roofline of every cell.

`python -m benchmarks.roofline RESULTS.json FOLDER` reads what hopper_forward.py wrote. Needs matplotlib (pip install 'fcgen[plot]').
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .cells import Cell
from .plot import NAMES, draw, in_pixels


def points(table: list[dict[str, Any]]) -> dict[tuple[str, str, int], list[tuple[float, float]]]:
    """(mask, candidate, head size) -> [(FLOP per byte that must move, TFLOP/s)], by length."""
    out: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for row in sorted(table, key=lambda r: (r["d"], r["s"])):
        cell = Cell(row["d"], row["s"], row["mask"] != "none", row.get("b"), row.get("h"))
        for name, r in row["results"].items():
            out.setdefault((row["mask"], name, row["d"]), []).append((cell.flops / cell.bytes, r["tflops"]))
    return out


def draw_roofline(data: dict[str, Any], path: Path, title: str) -> None:
    """A panel for each mask. Ceilings are the copy and the matrix product that were measured in the same run."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullFormatter

    matplotlib.rcParams.update({"svg.hashsalt": "roofline", "svg.fonttype": "none"})
    found = points(data["table"])
    masks = sorted({mask for mask, _, _ in found}, key=lambda m: m != "none")
    heads = sorted({d for _, _, d in found})
    every = list(dict.fromkeys(name for _, name, _ in found))
    names = [n for n in ("fcgen", "fa3", "cudnn") if n in every] or every
    xs, ys = zip(*(xy for (_, name, _), p in found.items() if name in names for xy in p))
    top, slope = data["ceilings"]["gemm_tflops"], data["ceilings"]["copy_gbps"] / 1e3
    low, high, knee = min(min(xs) / 1.4, top / slope / 1.4), max(xs) * 1.4, top / slope
    figure, axes = plt.subplots(1, len(masks), figsize=(4.3 * len(masks) + 0.6, 4.4), sharey=True, layout="constrained", squeeze=False)
    for a, mask in zip(axes[0], masks):
        a.plot([low, knee, max(high, knee * 2)], [slope * low, top, top], color="#222222", linewidth=1.2)
        a.annotate(f"cuBLAS at 8192³, same board: {top:.0f}", (knee, top), xytext=(0, 5), textcoords="offset points", fontsize=8.5)
        for name in names:
            for d, marker in zip(heads, "os^Dv"):
                a.plot(*zip(*found.get((mask, name, d), [(knee, float("nan"))])), marker=marker, markersize=5, linewidth=0.9,
                       color=NAMES.get(name, (name, None, "-"))[1], linestyle=NAMES.get(name, ("", None, "-"))[2], alpha=0.9)
        a.set_xscale("log", base=2)
        a.set_yscale("log", base=2)
        for axis in (a.xaxis, a.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axis.set_minor_formatter(NullFormatter())
        a.set_yticks([t for t in (50, 100, 150, 200, 300, 400, 500, 600, 700, 800) if min(ys) / 1.5 <= t <= top * 1.2] or [min(ys)])
        a.set_ylim(min(ys) / 1.15, max(top, *ys) * 1.15)
        a.set_title("causal" if mask != "none" else "no mask", fontsize=10)
        a.set_xlabel("FLOP per byte of Q, K, V and O")
        a.spines[["top", "right"]].set_visible(False)
        a.grid(color="#eeeeee")
    axes[0][0].set_ylabel("TFLOP/s")
    who = [Line2D([], [], color=NAMES.get(n, (n, None, "-"))[1], linestyle=NAMES.get(n, ("", None, "-"))[2], label=NAMES.get(n, (n,))[0])
           for n in names]
    size = [Line2D([], [], color="#555555", linestyle="none", marker=m, markersize=5, label=f"D = {d}") for d, m in zip(heads, "os^Dv")]
    figure.legend(handles=[*who, *size], frameon=False, fontsize=9, loc="outside lower center", ncols=len(who) + len(size))
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, **({"dpi": 130} if path.suffix == ".png" else {}))
    plt.close(figure)
    in_pixels(path)


def pictures(data: dict[str, Any], folder: str | Path) -> str:
    """Write forward.* and roofline.*, and say where; without matplotlib, say that."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "no pictures: matplotlib is not installed"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    gpu = data["environment"]["gpu"].get("name", "")
    gpu = "DRY RUN, numbers mean nothing" if data.get("dry") else gpu
    title = f"Attention forward, {data.get('dtype', '')}{', ' + gpu if gpu else ''}, {data['environment']['date'][:10]}"
    for kind in ("svg", "png"):
        draw(data["table"], folder / f"forward.{kind}", title)
        draw_roofline(data, folder / f"roofline.{kind}", title)
    return f"pictures in {folder}: forward.svg, forward.png, roofline.svg, roofline.png"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    print(pictures(json.loads(args.results.read_text(encoding="utf-8")), args.folder))


if __name__ == "__main__":
    main()
