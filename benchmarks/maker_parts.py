# ruff: noqa: E501
"""What the rotary kernel's maker costs: its CUDA text with parts left out or written otherwise, timed beside the plain kernel.

    python -m benchmarks.maker_parts --json out/maker_parts.json
    python -m benchmarks.maker_parts --compile-only

A variant that leaves work out is wrong by intent, and says so; one that only writes it otherwise is compared with float64 first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import fcgen as fc
from fcgen.passes.memory import pieces
from fcgen.runtime import nvrtc

from . import prologues as before
from .environment import facts
from .pool import Made, launcher, processes, write_json
from .timing import Checked, finishes, round_robin

PLAIN = "tiles={BLOCK_M: 128, BLOCK_N: 128}, warps=8, math=wgmma, copy=tma, epilogue=quad, late=acc"
ROTARY = PLAIN.replace("copy=tma", "copy=tma, stages={c: 0, s: 0}") + ", makers=4"


def _in_maker(t: str, change: Callable[[str], str]) -> str:
    i, j = t.index("role make"), t.index("role main")
    return t[:i] + change(t[i:j]) + t[j:]


def in_place(t: str) -> str:
    """What is made lies where it was copied to, in rings of four slots."""
    for raw, new in (("x", "k0_tile"), ("y", "k1_tile")):
        t = re.sub(rf"\b{new}_smem = smem_base \+ {new}_offset", f"{new}_smem = smem_base + {raw}_offset", t)
        t = re.sub(rf"\b{new}_empty = smem_base \+ {new}_empty_offset", f"{new}_empty = smem_base + {raw}_empty_offset", t)
        t = re.sub(rf"\+\+({raw}|{new})_slot == 2", r"++\1_slot == 4", t)
        t = re.sub(rf"i < 2; \+\+i\) mbar_init\(smem_base \+ ({raw}|{new})_", r"i < 4; ++i) mbar_init(smem_base + \1_", t)
        t = t.replace(f"mbar_init(smem_base + {raw}_empty_offset + 8 * i, 4)", f"mbar_init(smem_base + {raw}_empty_offset + 8 * i, 8)")
        t = _in_maker(t, lambda m, raw=raw, new=new: re.sub(  # type: ignore[misc]
            rf"mbar_wait\({new}_empty[^;]*;|if \(lane == 0\) mbar_arrive\({raw}_empty[^;]*;", ";", m))
    at = {"v": 0, "x": 65536, "y": 131072, "q0_tile": 196608, "q1_tile": 212992}
    bars = ("x_full", "x_empty", "y_full", "y_empty", "v_full", "v_empty", "k0_tile_full", "k0_tile_empty", "k1_tile_full", "k1_tile_empty")
    at |= {"k0_tile": 65536, "k1_tile": 131072} | {b: 229376 + 32 * n for n, b in enumerate(bars)}
    for name, offset in at.items():
        t, n = re.subn(rf"(constexpr uint32_t {name}_offset = )\d+", rf"\g<1>{offset}", t)
        assert n == 1, name
    return t


def makers_last(t: str) -> str:
    """The makers are the block's last warps."""
    t, n = re.subn(r"else if \(group < 2\)", "else if (group == 3)", t)
    i, j = t.index("role make"), t.index("role main")
    assert n == 1 and "/ 32, 0) - 4;" in t[i:j] and "/ 32, 0) - 8;" in t[j:]
    return t[:i] + t[i:j].replace("/ 32, 0) - 4;", "/ 32, 0) - 12;") + t[j:].replace("/ 32, 0) - 8;", "/ 32, 0) - 4;")


def spread(t: str) -> str:
    """Tables are not read before the pieces that stand in front of them."""
    def change(m: str) -> str:
        k = m.index("full part of the range")
        end = m.index("masked part of the range", k)
        loop, last = [], ""
        for line in m[k:end].split("\n"):
            if found := re.search(r"ld_shared_b32x4\((x_\d+),", line):
                last = found[1]
            if last:
                line = re.sub(r"ld_global_b32x4\((\w+), (\w+)\)", rf"ld_global_b32x4(\1, \2 + ({last}[0] & none))", line)
            loop.append(line)
        at = m.index("\n", m.index("setmaxnreg")) + 1
        return m[:at] + "const uint32_t none = M == -12345 ? ~0u : 0;\n" + m[at:k] + "\n".join(loop) + m[end:]

    return _in_maker(t, change)


def nothing_else(t: str) -> str:
    """No products, no exponentials: who consumes has next to nothing to do."""
    i = t.index("role main")
    return t[:i] + re.sub(r"wgmma_m64\w+<[^;]*;", ";", t[i:]).replace("exp2_approx(", "(")


def no_stores(t: str) -> str:
    return _in_maker(t, lambda m: re.sub(r"st_shared_b32x4\([^;]*;", ";", m))


def no_tables(t: str) -> str:
    return _in_maker(t, lambda m: re.sub(r"(?:if \([^()]*\) )?ld_global_b32x4\(([cs](?:_\d+)?), [^;]*;",
                                         r"\1[0] = \1[1] = \1[2] = \1[3] = 0x3c003800u;", m))


Edits = tuple[Callable[[str], str], ...]
TOKENS = ", tokens=true"
#: spec, schedule, pieces read ahead, label, is the result right, edits
VARIANTS: list[tuple[str, str, dict[str, int], str, bool, Edits]] = [
    ("plain", PLAIN, {}, "plain", True, ()),
    ("plain", PLAIN + TOKENS, {}, "plain, tokens", True, ()),
    ("rotated", ROTARY, {}, "as it is", True, ()),
    ("rotated", ROTARY + TOKENS, {}, "tokens", True, ()),
    ("rotated", ROTARY, {}, "makers last", True, (makers_last,)),
    ("rotated", ROTARY, {}, "spread", True, (spread,)),
    ("rotated", ROTARY, {}, "in place", True, (in_place,)),
    ("rotated", ROTARY + TOKENS, {}, "in place, tokens", True, (in_place,)),
    ("rotated", ROTARY, {}, "in place, makers last", True, (in_place, makers_last)),
    ("rotated", ROTARY, {}, "no tables", False, (no_tables,)),
    ("rotated", ROTARY, {}, "in place, no tables", False, (in_place, no_tables)),
    ("rotated", ROTARY, {}, "in place, no stores", False, (in_place, no_stores)),
    ("rotated", ROTARY, {}, "nothing else", False, (nothing_else,)),
]


def made(variant: tuple[str, str, dict[str, int], str, bool, Edits]) -> tuple[Made, Any]:
    spec, schedule, ahead, _, _, edits = variant
    usual = dict(pieces.AHEAD)
    pieces.AHEAD.update(ahead)
    try:
        p = getattr(before.specs, spec).compile(target="sm_90a", schedule=fc.Schedule.parse(schedule), check=False, **before.binding(spec, 128))
        built, resources = p.built, p.resources
    except fc.FcError as e:
        return Made(error=(str(e).splitlines() or [""])[0]), None
    finally:
        pieces.AHEAD.update(usual)
    text = built.cuda_text
    try:
        for edit in edits:
            new = edit(text)
            if new == text:
                return Made(error=f"{edit.__name__} changes nothing"), None
            text = new
    except AssertionError as e:
        return Made(error=f"an edit found {e}"), None
    if not edits and not ahead:
        return Made(built, resources), p
    binary = nvrtc.compile_cuda(text, "sm_90a", name="edited")
    said = [w for w in binary.warnings if "(C7" in w]
    return (Made(error=said[0]) if said else Made(replace(built, cuda_text=text, cubin=binary.cubin), resources)), p


def _cubin(n: int) -> tuple[str | None, bytes, str]:
    m, _ = made(VARIANTS[n])
    return m.error, m.built.cubin if m.built else b"", m.built.cuda_text if m.built else ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    with ProcessPoolExecutor(min(processes(), len(VARIANTS)), mp_context=multiprocessing.get_context("spawn")) as executor:
        cubins = list(executor.map(_cubin, range(len(VARIANTS))))
    for v, (wrong, _, _) in zip(VARIANTS, cubins):
        if wrong or args.compile_only:
            print(f"{v[3]}: {wrong or 'compiles'}", flush=True)
    if args.compile_only:
        return 0
    ways: list[Checked] = []
    for v, (wrong, cubin, text) in zip(VARIANTS, cubins):
        spec, schedule, _, label, right, _ = v
        if wrong:
            continue
        p = before.build((spec, 128, "sm_90a", fc.Schedule.parse(schedule)))
        assert not isinstance(p, str)
        built = replace(p.built, cuda_text=text, cubin=cubin, facts=replace(p.built.facts, smem_bytes=p.built.facts.smem_bytes + 256))
        launch, call = launcher(Made(built, None)), before.arguments(p, 128)
        launch(call)
        if not finishes():
            raise SystemExit(f"{label}: the kernel does not end")
        off = error(launch, p, spec) if right else 0.0
        if not off <= before.LIMIT:
            print(f"{label}: rms error {off:.1e}")
            continue
        ways.append(Checked(label, partial(launch, call), off, off))
    times = round_robin(ways, 8, args.rounds, warm=2)
    wrong_on_purpose = {v[3] for v in VARIANTS if not v[4]}
    rows: list[dict[str, Any]] = [{"name": w.name, "ms": times[w.name].ms, "ratio": times[w.name].ms / times["plain"].ms, "rms_error": w.rms_error} for w in ways]
    for r in rows:
        said = "wrong on purpose" if r["name"] in wrong_on_purpose else f"rms error {r['rms_error']:.1e}"
        print(f"{r['ms'] * 1e3:8.1f} us  {r['ratio']:.3f} x plain's time  {said}  {r['name']}")
    write_json(args.json, {"part": "maker_parts", "environment": facts(), "table": rows})
    return 0


def error(launch: Any, program: fc.Program, spec: str) -> float:
    """As prologues.error, of an edited kernel."""
    import numpy as np
    import torch

    held, exact = before.specs.stored(program, before.specs.draw(spec, before.CHECKED, m=before.CHECKED - 7, d=128))
    want = before.specs.reference(spec, exact)["O"]
    call = {n: torch.from_numpy(np.ascontiguousarray(x)).cuda() if isinstance(x, np.ndarray) else x for n, x in held.items()}
    out = torch.zeros(want.shape, dtype=torch.float16, device="cuda")
    launch({**call, "O": out})
    torch.cuda.synchronize()
    got = out.cpu().numpy().astype(np.float64)
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))) if np.isfinite(got).all() else float("inf")


if __name__ == "__main__":
    sys.exit(main())
