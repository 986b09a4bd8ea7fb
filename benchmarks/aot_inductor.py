"""AOTInductor and fcgen's operator: a module is exported, compiled into a package, loaded again and run, in a process of its own.

    python -m benchmarks.aot_inductor --json out/aot.json

Three modules, since a package that cannot be loaded ends its process: one of torch's operators alone, one with an operator of somebody
else's in Python, and one with fcgen's attention. If the first two end so as well, it is not fcgen's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .environment import facts
from .pool import write_json

KINDS = ("torch", "other", "fcgen")
WIDTH, HEADS = 128, 2


def module(kind: str, device: str) -> Any:
    import torch

    import fcgen as fc

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = torch.nn.Linear(WIDTH, 3 * WIDTH, device=device, dtype=torch.float16)

        def forward(self, x: Any) -> Any:
            q, k, v = (y.view(*x.shape[:2], HEADS, -1).transpose(1, 2) for y in self.into(x).chunk(3, -1))
            if kind == "fcgen":
                out = fc.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                out = q * k + v if kind == "torch" else torch.ops.example.sum_of.default(q, k, v)
            return out.transpose(1, 2).reshape(x.shape)

    return Block()


def one(kind: str, device: str) -> None:
    import torch

    library = torch.library.Library("example", "FRAGMENT")
    library.define("sum_of(Tensor q, Tensor k, Tensor v) -> Tensor")
    library.impl("sum_of", lambda q, k, v: q * k + v, "CompositeExplicitAutograd")
    torch.library.register_fake("example::sum_of", lambda q, k, v: torch.empty_like(q), lib=library)
    block = module(kind, device)
    print("made", flush=True)
    dims = {0: torch.export.Dim("b", max=64), 1: torch.export.Dim("n", min=2, max=4096)}
    draw = lambda *shape: torch.randn(*shape, WIDTH, device=device, dtype=torch.float16)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        program = torch.export.export(block, (draw(2, 90),), dynamic_shapes=(dims,))
        print("exported", flush=True)
        fast = {"aot_inductor.compile_wrapper_opt_level": "O0", "compile_threads": 1}
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / "block.pt2"), inductor_configs=fast)
        print("compiled", flush=True)
        package = torch._inductor.aoti_load_package(path)
        print("loaded", flush=True)
        for shape in ((2, 90), (3, 140)):
            x = draw(*shape)
            print("off by", (package(x) - block(x)).abs().max().item(), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--one", choices=KINDS, help="this module, in this process")
    parser.add_argument("--seconds", type=float, default=75.0, help="then they are ended (%(default)s)")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    if args.one:
        one(args.one, args.device)
        return 0
    end = time.monotonic() + args.seconds
    command = [sys.executable, "-m", "benchmarks.aot_inductor", "--device", args.device, "--one"]
    running = {kind: subprocess.Popen([*command, kind], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for kind in KINDS}
    table: dict[str, dict[str, Any]] = {}
    for kind, process in running.items():
        try:
            said = process.communicate(timeout=max(0.1, end - time.monotonic()))[0].splitlines()
        except subprocess.TimeoutExpired:
            process.kill()
            said = [*process.communicate()[0].splitlines(), f"killed after {args.seconds:.0f} s"]
        steps = [line for line in said if line.startswith(("made", "exported", "compiled", "loaded", "off by"))]
        table[kind] = {"status": process.returncode, "steps": steps, "last": said[-3:] if process.returncode else []}
        print(f"{kind:8} ends with {process.returncode}: {', '.join(steps)}", *table[kind]["last"], sep="\n  ", flush=True)
    write_json(args.json, {"part": "aot_inductor", "environment": facts(), "table": table})
    return int(table["fcgen"]["status"] != 0)


if __name__ == "__main__":
    raise SystemExit(main())
