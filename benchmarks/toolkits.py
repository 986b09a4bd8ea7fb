"""Everything that is shipped, compiled with the NVRTC of this environment: no GPU is needed, and spills or serialised products fail.

    for v in 12.4.127 12.6.85 12.8.93 12.9.86; do      # one environment each; the headers' wheels in the same minor version
        python3 -m venv .v-$v && .v-$v/bin/pip install -q -e ".[cu12]" nvidia-cuda-nvrtc-cu12==$v
        .v-$v/bin/python -m benchmarks.toolkits
    done
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from fcgen.errors import FcError
from fcgen.kernels import hopper_schedules, schedules
from fcgen.runtime import nvrtc

from .environment import facts
from .pool import LAZY, Job, build_all, write_json

CAUSAL = "causal_bottom_right"


def jobs() -> Iterator[Job]:
    """A kernel per row of every table, at the row's own head size; a row for both masks with the causal one."""
    for (arch, math), table in schedules.TABLES.items():
        if arch in ("sm_80", "sm_86"):  # one of each size of shared memory: the others have the same tables
            for head, kind, s in table:
                yield Job(s, head, head, "none" if kind == "none" else CAUSAL, lazy=LAZY if math == "wmma" else 0.0, arch=arch)
    for row in hopper_schedules.rows():
        spec = "any_scale_lse" if row in hopper_schedules.ANY_SCALE else "lse"
        mask = "none" if row.masks == "none" else CAUSAL
        yield Job(row.schedule, row.head, row.head, mask, lazy=hopper_schedules.LAZY, spec=spec, arch="sm_90a", sums=row.sums)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TARGET:D", help="the first kernel for a target and head size")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    version = ".".join(map(str, nvrtc.nvrtc_version()))
    print(f"NVRTC {version}")
    chosen = list(jobs())
    start = time.time()
    if args.only:
        from .pool import build

        chosen = [j for j in chosen if f"{j.arch}:{j.d}" == args.only][:1]
        if not chosen:
            raise FcError("cli/usage", f"nothing is shipped for {args.only}")
        made = {j: build(j) for j in chosen}
    else:
        made = build_all(chosen)
    said: list[dict[str, Any]] = []
    for job, one in made.items():
        wrong = one.error or (f"{one.resources.spill_stores} bytes spilled" if one.resources.spills else "")
        name = f"{job.arch} D={job.d} {job.mask} {job.spec} {job.schedule}"
        said.append({"kernel": name, "registers": one.resources.registers if one.resources else None, "wrong": wrong})
        print(f"{'FAILED' if wrong else 'ok'} {name}{': ' + wrong.splitlines()[0] if wrong else f', {one.resources.registers} registers'}")
    wrong_ones = [s["kernel"] for s in said if s["wrong"]]
    print(f"{len(said)} kernels, {len(wrong_ones)} failed, {time.time() - start:.0f} s")
    write_json(args.json, {"part": "toolkits", "environment": facts(), "nvrtc": version, "kernels": said, "problems": wrong_ones})
    return bool(wrong_ones)


if __name__ == "__main__":
    sys.exit(main())
