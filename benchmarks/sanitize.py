"""A few small kernels that together use every field of a schedule but those of `ELSEWHERE`, for compute-sanitizer (see sanitize.sh).

`--list` names them, `--kernel NAME` runs one (or all) and compares it with float64. `--summary` reads the logs of sanitize.sh.

Only the kernel under test is instrumented. Everything it reads comes from the host by a copy, and its outputs are compared there. initcheck
follows copies and memsets, but takes what a kernel without instruments wrote (torch's fills, reductions, lists of indices) for
uninitialised, and reports every copy of that to the host.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fcgen as fc
from fcgen.build import compiler
from fcgen.runtime import driver

from .environment import facts
from .pool import LAZY, Job, Made, build, launcher, write_json


def _schedule(m: int, n: int, **rest: Any) -> fc.Schedule:
    return fc.Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, **rest)


def _hopper(m: int, n: int, groups: int, **rest: object) -> fc.Schedule:
    return _schedule(m, n, warps=4 * groups, math="wgmma", copy="tma", **{"late": "acc", "vote": True, "epilogue": "quad", **rest})


#: name -> kernel. Every field of Schedule has a value besides its default in at least one of them.
KERNELS: dict[str, Job] = {
    "default": Job(_schedule(64, 64)),
    "three_stages": Job(_schedule(64, 32, stages=3), mask="causal_top_left"),
    "ahead": Job(_schedule(64, 64, stages=1, ahead=True), mask="causal_bottom_right", dtype="bf16"),
    "warps_8": Job(_schedule(128, 32, warps=8, hold_a=False), d=128, e=128, mask="causal_top_left"),
    "one_warp": Job(_schedule(16, 64, warps=1, min_blocks=2)),
    "through_smem": Job(_schedule(64, 64, reuse_frags=False, epilogue="direct"), mask="causal_top_left"),
    "plain_loops": Job(_schedule(64, 64, split="none", defer=False, longest_first=False), mask="causal_bottom_right"),
    "vector": Job(_schedule(64, 64, copy="vector", stages=1), d=72, e=40),
    "scalar": Job(_schedule(4, 64, math="fma", copy="scalar", epilogue="direct", stages=1), mask="causal_top_left"),
    "fma": Job(_schedule(16, 64, math="fma", copy="vector", stages=1)),
    "wmma_qk": Job(_schedule(64, 64, math={"s": "wmma", "acc": "fma"}, copy="vector", stages=1)),
    "wmma": Job(_schedule(64, 64, math="wmma", stages=1, ahead=True, skip_ones=True), mask="causal_top_left", lazy=LAZY),
    "wmma_two": Job(_schedule(64, 32, math="wmma", stages=2), mask="causal_bottom_right"),
    "hopper": Job(_hopper(64, 64, 1, ones="acc"), mask="causal_top_left", lazy=LAZY, arch="sm_90a"),
    "hopper_plain": Job(
        _hopper(128, 32, 2, late="", vote=False, epilogue="smem", own_rows=False), d=72, e=40, mask="causal_bottom_right", arch="sm_90a"
    ),
    "hopper_turns": Job(
        _hopper(192, 80, 3, tokens=True, compare_bits=True, persistent="dynamic", l2=32, hints=True, stages={"q": 2, "k": 3, "v": 3}),
        d=128,
        e=128,
        mask="causal_top_left",
        lazy=LAZY,
        arch="sm_90a",
    ),
    "hopper_static": Job(
        _hopper(128, 64, 2, persistent="static", epilogue="direct", regs_a="s"), mask="none", dtype="bf16", lazy=LAZY, arch="sm_90a"
    ),
    "hopper_from_end": Job(_hopper(128, 64, 2, from_end="rows", split="branch"), mask="causal_bottom_right", lazy=LAZY, arch="sm_90a"),
    "hopper_stores": Job(
        _hopper(128, 64, 2, persistent="dynamic", epilogue="tma", pdl=True), d=64, e=72, mask="causal_top_left", lazy=LAZY, arch="sm_90a"
    ),
    "hopper_cluster": Job(_hopper(64, 64, 1, persistent="static", cluster={"rows": 2}), lazy=LAZY, arch="sm_90a"),
    "warp_grid": Job(_schedule(32, 32, grid={"s": (2, 2)}), mask="causal_top_left"),
    "hopper_grid": Job(_hopper(64, 32, 2, vote=False, grid={"s": (1, 1), "acc": (1, 2)}), mask="causal_bottom_right", arch="sm_90a"),
    "ragged_heads": Job(_schedule(64, 64), d=24, e=56, mask="causal_top_left"),
}
#: (B, H, G, M, N) of each run: odd ends, grouped heads, more than one row tile and key tile
SHAPE = (1, 2, 1, 97, 133)
TOOLS = ("memcheck", "racecheck", "initcheck")


#: fields that have nothing to do in attention without functions, and who runs kernels with them on a GPU
ELSEWHERE = {"makers": "tests/gpu/test_prologues.py", "made": "tests/gpu/test_jobs.py", "parts": "tests/gpu/test_parts.py",
             "early": "tests/gpu/test_training.py", "behind": "tests/gpu/test_training.py", "rolling": "tests/gpu/test_training.py",
             "sender": "tests/gpu/test_training.py"}


def uncovered() -> list[str]:
    """Fields of Schedule that no kernel sets."""
    return [f.name for f in fields(fc.Schedule) if f.name not in ELSEWHERE
            and all(getattr(j.schedule, f.name) == f.default for j in KERNELS.values())]


def made_for(name: str, arch: str) -> Made:
    """Compiled with line numbers: the tools then name the generated line. The machine code is the same."""
    job = KERNELS[name]
    usual = compiler.NVRTC_OPTIONS
    compiler.NVRTC_OPTIONS = (*usual, "-lineinfo")
    try:
        return build(job if job.arch == "sm_90a" else replace(job, arch=arch))
    finally:
        compiler.NVRTC_OPTIONS = usual


def storage(x: Any) -> Any:
    """All elements of what a tensor is a view of."""
    import torch

    whole = x.untyped_storage()
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(whole, 0, (whole.nbytes() // x.element_size(),), (1,))


def on_gpu(x: Any) -> Any:
    """The same view on the GPU, of everything around it too, by one copy."""
    return storage(x).cuda().as_strided(x.shape, x.stride(), x.storage_offset())


def run(name: str, arch: str) -> str | None:
    """Returns what is wrong with the result."""
    import torch

    from .random_configs import Config, Guarded, inputs, reference, verdict

    job = KERNELS[name]
    b, h, g, m, n = SHAPE
    causal = {"none": False, "causal_top_left": "top_left", "causal_bottom_right": "bottom_right"}[job.mask]
    c = Config(0, job.dtype, b, h, g, m, n, job.d, job.e, causal, None, 1.0, ("plain", "bshd", "padded", "plain"))
    made = made_for(name, arch)
    if made.error:
        return made.error
    q, k, v = inputs(c, "cpu")
    out, lse = Guarded((b, h, m, job.e), q.dtype, device="cpu"), Guarded((b, h, m), torch.float32, device="cpu")
    there = {"Q": on_gpu(q), "K": on_gpu(k), "V": on_gpu(v), "O": on_gpu(out.tensor), "LSE": on_gpu(lse.tensor)}
    launcher(made)({**there, "scale": job.d**-0.5})
    torch.cuda.synchronize()
    for host, device in ((out, there["O"]), (lse, there["LSE"])):
        host.buffer.copy_(storage(device))
    wrong = verdict(c, (out.tensor, lse.tensor), reference(c, q, k, v))[1]
    wrong += [f"{n} elements of {what} written outside it" for what, n in (("O", out.damage()), ("LSE", lse.damage())) if n]
    return "; ".join(wrong) or None


def find_tool() -> str:
    """compute-sanitizer in NVIDIA's wheels or the default toolkit; empty where it is not."""
    wheels = find_spec("nvidia")
    places = [Path(d) for d in (wheels and wheels.submodule_search_locations) or []]
    found = [p for d in places for p in sorted(d.glob("*/compute-sanitizer/compute-sanitizer"))]
    found += [p for p in [Path("/usr/local/cuda/bin/compute-sanitizer")] if p.exists()]
    for p in found[:1]:
        for helper in p.parent.iterdir():  # wheels do not always keep the executable bit
            if helper.is_file() and not os.access(helper, os.X_OK):
                helper.chmod(0o755)
    return str(found[0]) if found else ""


def summary(folder: Path) -> dict[str, dict[str, str]]:
    """tool -> kernel -> "clean" or what its log says."""
    out: dict[str, dict[str, str]] = {}
    for log in sorted(folder.glob("*.log")):
        tool, _, name = log.stem.partition("-")
        out.setdefault(tool, {})[name] = log_verdict(log.read_text(encoding="utf-8", errors="replace"))
    return out


def log_verdict(text: str) -> str:
    """memcheck ends in "ERROR SUMMARY: n errors", racecheck in "RACECHECK SUMMARY: n hazards displayed (...)"; the last one counts."""
    found = re.findall(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", text)
    if not found:
        return "no summary in the log"
    if "result is right" not in text:
        return "the result is wrong, or the run did not end"
    count = int(found[-1][0] or found[-1][1])
    return "clean" if count == 0 else f"{count} found"


def reports(text: str) -> list[list[str]]:
    """The paragraphs of a log: what each says happened, then where."""
    lines = [line.removeprefix("=========") for line in text.splitlines() if line.startswith("=========")]
    paragraphs: list[list[str]] = []
    for line in lines:
        if line[:5].strip():  # indented lines belong to the one before
            paragraphs.append([line.strip()])
        elif line.strip() and paragraphs:
            paragraphs[-1].append(line.strip())
    return [p for p in paragraphs if not re.match(r"COMPUTE-SANITIZER|Target application|.*SUMMARY:", p[0])]


def first_error(text: str) -> dict[str, Any] | None:
    """Of a log: how often each kind of error occurs, and where the first one is. line: of the generated text, 0 where none is named.
    frames: who asked, where it is a call of the host and not a kernel."""
    found = reports(text)
    if not found:
        return None
    at = next((line for line in found[0] if re.search(r"\+0x[0-9a-f]+ in |\.cu:\d", line) and "Frame:" not in line), "")
    kernel = re.search(r"([A-Za-z_]\w*)(?:\([^()]*\))?\+0x[0-9a-f]+", at) or re.search(r"\.cu:\d+:(\w+)", at)
    place = re.search(r"[^\s/]+\.cu:(\d+)", at)
    frames = [line.split("Host Frame:")[1].strip() for line in found[0] if "Host Frame:" in line]
    kinds = Counter(re.sub(r"0x[0-9a-f]+", "0x...", p[0]) for p in found)
    return {"kinds": dict(kinds), "what": found[0][0], "at": at, "kernel": kernel[1] if kernel else "",
            "line": int(place[1]) if place else 0, "frames": [] if at else frames[:6]}


def first_errors(folder: Path, arch: str) -> dict[str, dict[str, Any]]:
    """"tool kernel" -> the first error of its log, with the generated line and the spec's where the kernel is the one under test."""
    out = {}
    for log in sorted(folder.glob("*.log")):
        tool, _, name = log.stem.partition("-")
        error = first_error(log.read_text(encoding="utf-8", errors="replace"))
        if error is None:
            continue
        if error["line"] and name in KERNELS and (built := made_for(name, arch).built) is not None:
            text, loc = built.cuda_text.splitlines(), built.line_map.get(error["line"])
            error |= {"text": text[error["line"] - 1].strip() if error["line"] <= len(text) else "", "spec": loc.short if loc else ""}
        out[f"{tool} {name}"] = error
    return out


def show(error: dict[str, Any]) -> str:
    kinds = [f"{n} x {what}" for what, n in error["kinds"].items()]
    where = [error["at"], *(error[k] for k in ("text", "spec") if error.get(k)), *error["frames"]]
    return "\n".join(f"             {line}" for line in [*kinds, *where] if line)


def summarise(folder: Path, tools: Iterable[str], kernels: Iterable[str], json: str | None) -> int:
    found = summary(folder)
    errors = first_errors(folder, fc.gpu_target() if driver.available()[0] else "sm_90")
    for tool, by_kernel in found.items():
        for name, text in by_kernel.items():
            print(f"{tool:10} {name:14} {text}")
            if f"{tool} {name}" in errors:
                print(show(errors[f"{tool} {name}"]))
    bad = [f"{t} {n}: {x}" for t, by in found.items() for n, x in by.items() if x != "clean"]
    bad += [f"no log of {t} for {n}" for t in tools for n in kernels if n not in found.get(t, {})]
    print("dirty" if bad else "clean")
    write_json(json, {"part": "sanitize", "environment": facts(), "verdicts": found, "first_errors": errors, "problems": bad})
    return int(bool(bad))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--find-tool", action="store_true", help="where compute-sanitizer is")
    parser.add_argument("--kernel", choices=(*KERNELS, "all"))
    parser.add_argument("--dry-run", action="store_true", help="only compile them, for sm_90")
    parser.add_argument("--summary", metavar="FOLDER", type=Path)
    parser.add_argument("--tools", nargs="+", default=TOOLS, help="whose logs must be there")
    parser.add_argument("--kernels", nargs="+", default=tuple(KERNELS), help="of which kernels")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)

    if args.find_tool:
        print(find_tool())
    if args.list:
        print("\n".join(KERNELS))
    if args.dry_run:
        made = {name: made_for(name, "sm_90") for name in args.kernels}
        print("\n".join(f"{name:14} {m.error or f'{m.resources.registers} registers'}" for name, m in made.items()))
        return any(m.error for m in made.values())
    if args.kernel:
        wrong = {name: run(name, fc.gpu_target()) for name in (KERNELS if args.kernel == "all" else [args.kernel])}
        print("\n".join(f"{name}: {w or 'result is right'}" for name, w in wrong.items()))
        return any(wrong.values())
    if args.summary:
        return summarise(args.summary, args.tools, args.kernels, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
