"""Pictures of a Hopper run: TFLOP/s against length for each head size and mask, and a roofline of every cell.

`python -m benchmarks.roofline RESULTS.json FOLDER` reads what hopper_forward.py wrote. Needs matplotlib (pip install 'fcgen[plot]').
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .cells import Cell
from .plot import NAMES, draw


def points(table: list[dict[str, Any]]) -> dict[str, list[tuple[float, float, int]]]:
    """candidate -> [(FLOP per byte that must move, TFLOP/s, head size)]."""
    out: dict[str, list[tuple[float, float, int]]] = {}
    for row in table:
        cell = Cell(row["d"], row["s"], row["mask"] != "none", row.get("b"), row.get("h"))
        for name, r in row["results"].items():
            out.setdefault(name, []).append((cell.flops / cell.bytes, r["tflops"], row["d"]))
    return out


def draw_roofline(data: dict[str, Any], path: Path, title: str) -> None:
    """Ceilings are the copy and the matrix product that were measured in the same run."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "roofline", "svg.fonttype": "none"})
    figure, a = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    found = points(data["table"])
    xs = [x for p in found.values() for x, _, _ in p]
    top, slope = data["ceilings"]["gemm_tflops"], data["ceilings"]["copy_gbps"] / 1e3
    low, high, knee = min(xs) / 2, max(xs) * 2, top / slope
    a.plot([min(low, knee / 2), knee, max(high, knee * 2)], [slope * min(low, knee / 2), top, top], color="#222222", linewidth=1)
    a.annotate(f"cuBLAS {top:.0f} TFLOP/s", (knee, top), xytext=(4, 4), textcoords="offset points", fontsize=8)
    for name in [n for n in ("fcgen", "fa3", "cudnn") if n in found] or list(found):
        label, color, _ = NAMES.get(name, (name, None, "-"))
        for d, marker in zip(sorted({d for _, _, d in found[name]}), "os^Dv"):
            chosen = [(x, y) for x, y, size in found[name] if size == d]
            a.plot(*zip(*chosen), marker, markersize=4, color=color, label=f"{label}, D = {d}", linestyle="none")
    a.set_xscale("log", base=2)
    a.set_yscale("log", base=2)
    a.set_xlabel("FLOP per byte of Q, K, V and O")
    a.set_ylabel("TFLOP/s")
    a.spines[["top", "right"]].set_visible(False)
    a.grid(color="#eeeeee")
    a.legend(frameon=False, fontsize=7)
    a.set_title(title, fontsize=10)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


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
        draw(data["table"], folder / f"forward.{kind}", title, columns=2)
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
