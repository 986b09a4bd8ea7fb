"""How long it takes from a spec to a loaded kernel: cold (empty caches, fcgen's and the one that NVRTC has beside a driver; fresh process),
from disk (fresh process), warm. Python's bytecode is there in each, as it is where a package is installed.

Also counts NVRTC's work: none from disk, none for a second sequence length. Without a GPU the kernel is compiled but not loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from .environment import ROOT, facts
from .pool import write_json


def probe(arch: str | None, head: int) -> dict[str, Any]:
    """In this process: times in milliseconds, and how often NVRTC compiled."""
    begin = time.perf_counter()
    import fcgen as fc
    import fcgen.kernels.attention
    import fcgen.kernels.schedules
    import fcgen.launch
    from fcgen.attend.forward import compiled
    from fcgen.runtime import nvrtc

    calls = [0]
    compile_cuda = nvrtc.compile_cuda

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return compile_cuda(*args, **kwargs)

    nvrtc.compile_cuda = counted
    gpu = fc.gpu_available()
    if gpu:
        from fcgen.runtime import driver

        driver.primary_context(0)  # making the context is the driver's time, not ours
    arch = arch or fc.gpu_target()
    imported = time.perf_counter()

    def load() -> None:
        program = compiled("f16", head, head, "causal_top_left", True, arch)
        program.cubin  # noqa: B018
        if gpu:
            program.launcher.loaded(0)

    load()
    loaded = time.perf_counter()
    first = calls[0]
    load()
    again = time.perf_counter()
    other = compiled("bf16", head, head, "causal_top_left", True, arch)  # another kernel of the same process: every module is imported
    other.cubin  # noqa: B018
    if gpu:
        other.launcher.loaded(0)
    next_one = time.perf_counter()
    out = {"spec_to_loaded_ms": (loaded - imported) * 1e3, "next_kernel_ms": (next_one - again) * 1e3,
           "with_imports_ms": (loaded - begin) * 1e3, "warm_ms": (again - loaded) * 1e3,
           "nvrtc_calls": first, "loaded": gpu}
    if gpu:
        out |= _second_length(calls, head)
    return out


def _second_length(calls: list[int], head: int) -> dict[str, Any]:
    """Of two that the library's table has one row for."""
    import torch

    from fcgen.attend.forward import attention

    times = []
    for s in (900, 1000):
        q = torch.randn(1, 2, s, head, device="cuda", dtype=torch.float16)
        before, start = calls[0], time.perf_counter()
        attention(q, q, q, causal=True, return_lse=True)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return {"second_length_nvrtc_calls": calls[0] - before, "second_length_ms": times[1]}


def fresh(cache: str, bytecode: str, arch: str | None, head: int) -> dict[str, Any]:
    """`probe` in a new process with the given folders, and that process's whole time."""
    command = [sys.executable, "-m", "benchmarks.compile_time", "--probe", f"--head={head}", *(["--arch", arch] if arch else [])]
    start = time.perf_counter()
    env = {**os.environ, "FCGEN_CACHE_DIR": cache, "CUDA_CACHE_PATH": cache, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return {**json.loads(done.stdout.splitlines()[-1]), "process_ms": (time.perf_counter() - start) * 1e3}


def measure(repeats: int, arch: str | None, head: int) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {"cold": [], "disk": []}
    with tempfile.TemporaryDirectory(prefix="fcgen-bytecode-") as bytecode:
        for n in range(repeats + 1):  # the first time writes the bytecode
            with tempfile.TemporaryDirectory(prefix="fcgen-cache-") as cache:
                for state in ("cold", "disk"):
                    sample = fresh(cache, bytecode, arch, head)
                    out[state] += [sample] if n else []
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--arch", help="target (the GPU's own)")
    parser.add_argument("--head", type=int, default=64, help="head size of the causal kernel (%(default)s)")
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--probe", action="store_true", help="one measurement in this process, as JSON")
    args = parser.parse_args(argv)
    if args.probe:
        print(json.dumps(probe(args.arch, args.head)))
        return 0

    samples = measure(args.repeats, args.arch, args.head)
    keys = ("spec_to_loaded_ms", "next_kernel_ms", "with_imports_ms", "warm_ms", "second_length_ms")
    medians = {state: {k: statistics.median(s[k] for s in found) for k in keys if k in found[0]} for state, found in samples.items()}
    for state, found in medians.items():
        print(f"{state:5} " + "  ".join(f"{k.removesuffix('_ms')} {v:.2f} ms" for k, v in found.items()))
    problems = [f"{state}: NVRTC ran {s['nvrtc_calls']} times, expected {want}" for state, want in (("cold", 1), ("disk", 0))
                for s in samples[state] if s["nvrtc_calls"] != want]
    problems += [f"{state}: a second length compiled {s['second_length_nvrtc_calls']} kernels" for state, found in samples.items()
                 for s in found if s.get("second_length_nvrtc_calls")]
    lengths = ", never for a second length" if "second_length_ms" in medians["disk"] else ""
    print("\n".join(problems) or f"NVRTC ran once when cold, never from disk{lengths}")
    write_json(args.json, {"part": "compile", "head": args.head, "environment": facts(), "medians": medians, "samples": samples,
                           "problems": problems})
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
