"""From one element at a time to tuned tiles: the same spec under eight schedules, each one idea faster than the last.

With a GPU: latency of each beside PyTorch's, registers, spills, shared memory and error. Without one: what the compiler says for sm_90, and
each schedule's machine code simulated on a small shape.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import fcgen as fc
from fcgen.kernels.attention import attention
from fcgen.kernels.reference import attention_reference

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

B, H, S, D = 1, 8, 512, 64
SMALL = (1, 1, 80)  # B, H, S of the simulated shape


def step(name, m, n, **schedule):
    return name, fc.Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, **schedule)


LADDER = dict([
    step("scalar", 4, 64, math="fma", copy="scalar", epilogue="direct", stages=1),
    step("16-byte loads", 4, 64, math="fma", copy="vector", epilogue="direct", stages=1),
    step("16 query rows per block", 16, 64, math="fma", copy="vector", epilogue="direct", stages=1),
    step("WMMA for Q K^T", 64, 64, math={"s": "wmma", "acc": "fma"}, copy="vector", stages=1),
    step("WMMA for both", 64, 64, math="wmma", copy="vector", stages=1, skip_ones=True),
    step("mma.sync, P in registers", 64, 64, copy="vector", stages=1),
    step("cp.async, two stages", 64, 64, stages=2),
    step("tuned tiles", 64, 128, stages=2),
])


def compile(name, arch):
    return attention.compile(target=arch, schedule=LADDER[name], T=fc.f16, D=D, E=D)


def simulated(arch="sm_90"):
    """name -> (program, max error of the simulated machine code on the small shape)."""
    b, h, s = SMALL
    rng = np.random.default_rng(0)
    q, k, v = (fc.round_to(rng.standard_normal((b, h, s, D)), fc.f16) for _ in range(3))
    want, _ = attention_reference(q, k, v)
    for name in LADDER:
        program = compile(name, arch)
        got = program.simulate(Q=q, K=k, V=v, scale=D**-0.5)
        yield name, program, float(np.abs(got["O"].astype(np.float64) - want).max())


def measured():
    """(rows of the ladder, PyTorch's): latency by graph replay, after each result was compared with float64."""
    import torch

    from benchmarks.attention_forward import sdpa
    from benchmarks.timing import Checked, graph_times

    torch.manual_seed(0)
    q, k, v = (torch.randn(B, H, S, D, device="cuda", dtype=torch.float16) for _ in range(3))
    want = torch.softmax(q.double() @ k.double().transpose(-1, -2) * D**-0.5, -1) @ v.double()
    programs, checked = {}, []
    for name in LADDER:
        programs[name] = p = compile(name, fc.gpu_target())
        o, lse = torch.full_like(q, float("nan")), torch.full((B, H, S), float("nan"), device="cuda")
        run = lambda p=p, o=o, lse=lse: p.launcher({"Q": q, "K": k, "V": v, "O": o, "LSE": lse, "scale": D**-0.5})
        run()
        checked.append(compared(name, run, o, want))
    for name, backend in (("FlashAttention-2", "FLASH_ATTENTION"), ("cuDNN", "CUDNN_ATTENTION")):
        run = sdpa(backend, q, k, v, False)
        try:
            checked.append(compared(name, run, run(), want))
        except RuntimeError:  # not in every build
            continue
    wrong = [c.name for c in checked if not c.max_error < 2e-3]
    if wrong:
        raise SystemExit(f"wrong results: {', '.join(wrong)}")
    times = graph_times([Checked(c.name, c.run, c.max_error, c.rms_error) for c in checked])
    return [row(c.name, programs.get(c.name), c.max_error, times[c.name].ms * 1e3) for c in checked]


def compared(name, run, output, want):
    from benchmarks.timing import Checked

    diff = output.double() - want
    return Checked(name, run, diff.abs().max().item(), diff.square().mean().sqrt().item())


def row(name, program, error, us=None):
    out = {"name": name, "us": us, "max_error": error}
    if program is not None:
        r = program.resources
        out |= {"registers": r.registers, "spilled_bytes": r.spill_stores, "smem_bytes": program.built.facts.smem_bytes,
                "schedule": str(program.schedule)}
    return out


def show(rows):
    print(f"{'':26}{'us':>8}{'registers':>11}{'spills':>8}{'smem':>8}{'max error':>11}   schedule")
    for r in rows:
        us = f"{r['us']:.2f}" if r["us"] else "-"
        print(f"{r['name']:26}{us:>8}{r.get('registers', '-'):>11}{r.get('spilled_bytes', '-'):>8}{r.get('smem_bytes', '-'):>8}"
              f"{r['max_error']:>11.1e}   {r.get('schedule', '')}")


def plot(rows, path, title):
    """Bars on a logarithmic axis, PyTorch's as lines."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "ladder", "svg.fonttype": "none"})
    ours, theirs = [r for r in rows if r["name"] in LADDER], [r for r in rows if r["name"] not in LADDER]
    figure, axes = plt.subplots(figsize=(8.5, 4.2), layout="constrained")
    bars = axes.barh([r["name"] for r in ours], [r["us"] for r in ours], color="#3b6ea5", height=0.65)
    axes.bar_label(bars, [f"{r['us']:.3g} µs" for r in ours], padding=5, zorder=3,
                   bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
    for r, style in zip(theirs, ("--", ":")):
        axes.axvline(r["us"], color="#b5542b", linestyle=style, linewidth=1.4, zorder=0.5, label=f"{r['name']}, {r['us']:.3g} µs")
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(3, max(r["us"] for r in ours) * 1.7)
    ticks = [t for t in (3, 5, 10, 20, 50, 100, 200) if t <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set_xlabel(f"µs per call (B={B}, H={H}, S={S}, D={D}, fp16), logarithmic")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    if theirs:
        axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, metadata={"Date": None} if str(path).endswith(".svg") else None)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--plot", metavar="PATH", help="save a picture (needs matplotlib: pip install 'fcgen[plot]')")
    parser.add_argument("--from-json", metavar="PATH", help="only plot what --json saved")
    args = parser.parse_args(argv)

    if args.from_json:
        saved = json.loads(Path(args.from_json).read_text(encoding="utf-8"))
        plot(saved["rows"], args.plot, saved["title"])
        return
    if fc.gpu_available():
        from fcgen.runtime import driver

        rows, title = measured(), f"One spec, {len(LADDER)} schedules ({driver.device_info(0).name})"
    else:
        rows, title = [row(*found) for found in simulated()], "no GPU: simulated"
    show(rows)
    if args.json:
        from benchmarks.environment import facts
        from benchmarks.pool import write_json

        write_json(args.json, {"part": "ladder", "environment": facts(), "title": title, "rows": rows, "problems": []})
    if args.plot and rows[0]["us"]:
        plot(rows, args.plot, title)


if __name__ == "__main__":
    main()
