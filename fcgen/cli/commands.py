"""The command line: `fcgen demo | dump | build | run | check | doctor | explain | layout`.

Mistakes print as errors with a hint and exit with 1; a traceback is only ever a bug of fcgen.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import click

from ..errors import ERROR_CODES, FcError, did_you_mean
from ..runtime.files import write_files
from .console import as_options, report, say, waiting, write_levels, written
from .values import argument_option, parse_arguments

SPEC_HELP = "SPEC is path/to/file.py[:name], package.module:name, or a file of IR text."


class Group(click.Group):
    """Shows an FcError as a message, not as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            try:
                return super().invoke(ctx)
            except MemoryError as e:  # sizes are anyone's
                raise FcError("cli/usage", "this machine has not the memory for it", got=str(e),
                              hint="smaller sizes: --size M=100") from None
        except FcError as e:
            e.hint = as_options(e.hint)
            head, _, rest = e.render().partition("\n")
            click.echo(click.style("error ", fg="red", bold=True, reset=False) + click.style("", reset=True) + head, err=True)
            if rest:
                click.echo(rest, err=True)
            ctx.exit(1)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fcgen")
def main() -> None:
    """fcgen: tiled kernels from a small Python DSL, as readable CUDA C++, checked without a GPU."""


def spec_options(fn: Callable[..., Any]) -> Callable[..., Any]:
    """What every command on a spec takes."""
    for option in (
            click.option("--schedule", help='"tiles={BLOCK_M: 128, BLOCK_N: 64}, stages=2"; "auto" for one chosen by a model of the GPU'),
            click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="a compile-time fact: D=64, T=f16, mask=none"),
            click.option("--target", help="sm_80, sm_86, sm_89, sm_90, sm_90a (the GPU's own, else sm_89)")):
        fn = option(fn)
    return click.argument("spec")(fn)


out_option = click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out"), show_default=True,
                          help="folder for the files")
size_option = click.option("--size", "sizes", multiple=True, metavar="NAME=N", help="a size to run it with: M=100")


@main.command(epilog=SPEC_HELP)
@spec_options
@click.option("--stage", type=click.Choice(["tile", "machine", "cuda", "ptx", "sass", "report"]), default="machine", show_default=True)
@click.option("--stop-after", metavar="PASS", help="the IR after this pass")
@click.option("--until", metavar="NAME", help="the kernel that writes out this value of the spec")
@click.option("--check/--no-check", default=True, show_default=True, help="run it through the simulator before compiling it")
def dump(spec: str, target: str | None, settings: tuple[str, ...], schedule: str | None, stage: str, stop_after: str | None,
         until: str | None, check: bool) -> None:
    """Print one level of a kernel. ptx, sass and report take a compilation, before which the simulator runs the kernel at drawn sizes."""
    from dataclasses import replace

    from ..build import compiler
    from .specs import find

    found = find(spec)
    if until:
        if found.spec is None:
            raise FcError("file/missing", "--until works on a spec, not on IR text", got=spec)
        found = replace(found, spec=found.spec.until(until))
    program = found.program(target, settings, schedule)
    program.trust = not check
    if stop_after:
        say(str(compiler.lower(program.tile, program.schedule, program.target, stop_after=stop_after)))
        return
    text = {"tile": lambda: str(program.tile), "machine": lambda: str(program.machine),
            "cuda": lambda: compiler.to_cuda(program.machine, program.target).text,  # to be read, also where NVRTC is missing or refuses it
            "ptx": lambda: program.ptx, "sass": lambda: program.sass, "report": lambda: report(program)}[stage]
    say(waiting(f"compiling {program.name}", text) if stage in ("cuda", "ptx", "sass", "report") else text())


@main.command(epilog=SPEC_HELP)
@spec_options
@out_option
@click.option("--check/--no-check", default=True, show_default=True, help="run machine IR through the simulator before compiling")
@size_option
@argument_option
def build(
    spec: str, target: str | None, settings: tuple[str, ...], schedule: str | None, out: Path, check: bool, sizes: tuple[str, ...],
    arguments: tuple[str, ...]
) -> None:
    """Compile a spec, or an edited file of IR text, and write every level of it."""
    from ..build import compiler
    from ..sim.trial import dimensions, run_trials
    from .specs import find, oracle, parse_sizes

    found = find(spec)
    program = found.program(target, settings, schedule)
    program.trust = True  # it is checked here, at the sizes that were asked for, or not at all
    given = parse_sizes(sizes, dimensions(program.machine))
    fixed = parse_arguments(arguments, program, given)
    if check:
        compiler.to_cuda(program.machine, program.target)
        tried = run_trials(program.machine, program.target, given, 2, waiting, fixed, oracle(found, program))
        click.echo(f"simulated in {len(tried.ran)} runs: no race, stale read or deadlock; values {tried.values}")
        for line in tried.gaps():
            click.echo(f"  {line}")
    waiting(f"compiling {program.name} for {program.target.arch}", lambda: program.cubin)
    say(report(program))
    source = Path(spec)
    paths = write_levels(program, out, source)
    for line in written(paths):
        click.echo(line)
    if source.is_file() and source.parent.resolve() == out.resolve() and source not in paths:
        click.echo(f"left  {source} as it is")


@main.command(epilog=SPEC_HELP)
@spec_options
@size_option
@argument_option
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="orders of the engines to try")
@click.option("--against", metavar="FILE", help="what it should compute: the file before the edit, its tile IR, or a spec")
def check(spec: str, target: str | None, settings: tuple[str, ...], schedule: str | None, sizes: tuple[str, ...], seeds: int,
          against: str | None, arguments: tuple[str, ...]) -> None:
    """Run a kernel's machine IR in the simulator until all of it has run: look for races, stale reads, deadlocks, elements that nothing
    writes, and, where the tile program is known, for wrong values. It is that of SPEC, or lies beside NAME.machine.fc as NAME.tile.fc."""
    from ..build import compiler
    from ..sim.trial import WORK, dimensions, run_trials
    from .specs import find, oracle, parse_sizes

    found = find(spec)
    program = found.program(target, settings, schedule)
    machine = program.machine
    compiler.to_cuda(machine, program.target)  # what cannot be printed is refused before it runs
    given = parse_sizes(sizes, dimensions(machine))
    fixed = parse_arguments(arguments, program, given)
    tried = run_trials(machine, program.target, given, seeds, waiting, fixed, oracle(found, program, against), work=WORK)
    click.echo(f"{program.name} on {program.target.arch}: no race, stale read or deadlock in {len(tried.ran)} runs")
    for line in tried.lines():
        click.echo(f"  {line}")


@main.command(epilog=SPEC_HELP)
@spec_options
@size_option
@argument_option
@click.option("--simulate", is_flag=True, help="in the simulator even where there is a GPU")
def run(spec: str, target: str | None, settings: tuple[str, ...], schedule: str | None, sizes: tuple[str, ...], simulate: bool,
        arguments: tuple[str, ...]) -> None:
    """Run a kernel on random inputs, or those that are given: on the GPU, or in the simulator where there is none."""
    import numpy as np

    from ..api import gpu_available
    from .specs import draw, find

    found = find(spec)
    program = found.program(target, settings, schedule)
    inputs, want = draw(found, program, sizes, arguments)
    on_gpu = gpu_available() and not simulate
    if on_gpu and importlib.util.find_spec("torch") is None:
        raise FcError("call/driver", "running on the GPU from here takes torch, which is not installed",
                      hint="pip install 'fcgen[torch]', or --simulate")
    outputs = waiting("running", lambda: program.run(**inputs) if on_gpu else program.simulate(**inputs))
    click.echo(f"{program.name} {'on the GPU' if on_gpu else 'in the simulator'}")
    for name, x in outputs.items():
        x = np.asarray(x, np.float64)
        if not x.size:
            click.echo(f"  {name} {list(x.shape)}")
            continue
        line = f"  {name} {list(x.shape)}  mean {x.mean():+.4f}  rms {np.sqrt((x * x).mean()):.4f}"
        if name in want:
            line += f"  max error against the reference {np.abs(x - want[name]).max():.1e}"
        click.echo(line)


@main.command()
@click.option("--target", default=None, help="sm_80, sm_86, sm_89, sm_90, sm_90a (the GPU's own, else sm_89)")
@out_option
def demo(target: str | None, out: Path) -> None:
    """Attention from spec to kernel: trace, simulate, compile, report; with a GPU also run and time it."""
    from .demo import run_demo

    run_demo(target, out)


@main.command()
def doctor() -> None:
    """What this machine has of what fcgen needs, and how to get the rest."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from .doctor import checks

    found = waiting("looking", checks)
    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "found"):
        table.add_column(column, overflow="fold")
    for c in found:
        mark = "[green]ok[/]" if c.ok else "[yellow]--[/]" if c.optional else "[red]missing[/]"
        table.add_row(mark, c.name, escape(c.detail) + (f"\n[dim]{escape(c.hint)}[/]" if c.hint and not c.ok else ""))
    Console(highlight=False).print(table)
    if any(not c.ok and not c.optional for c in found):
        sys.exit(1)


@main.command()
@click.argument("code", required=False)
def explain(code: str | None) -> None:
    """What an error code means, or the codes that begin with CODE (all of them without it)."""
    asked = [name for name in ERROR_CODES if code is None or name == code or name.startswith(f"{code.rstrip('/')}/")]
    if not asked:
        raise FcError("cli/usage", f"no error has the code {code}", got=code,
                      hint=did_you_mean(code, ERROR_CODES, "`fcgen explain` lists all codes"))
    for name in asked:
        click.echo(f"{name:22} {ERROR_CODES[name]}")


#: rows and columns of the operands of one matrix instruction
UNITS = {"mma_a": (16, 16), "mma_b": (16, 8), "mma_c": (16, 8)}


@main.command()
@click.argument("name", type=click.Choice([*UNITS, "rowwise", "smem"]))
@click.argument("rows", type=click.IntRange(1))
@click.argument("cols", type=click.IntRange(1))
@click.option("--warps", default=1, show_default=True, type=click.IntRange(1, 32))
@click.option("--svg", is_flag=False, flag_value="-", metavar="[FILE]", help="a drawing instead of text, to FILE or the terminal")
def layout(name: str, rows: int, cols: int, warps: int, svg: str | None) -> None:
    """Picture of a layout: which lane and register, or which bank, holds each element of a ROWS x COLS tile."""
    from ..ir import layout as layouts
    from . import picture

    if name == "smem":
        shared = layouts.native_smem(cols, 2)
        text, value = picture.chunks(shared, (rows, cols), 2), cast(Any, shared)
    elif name == "rowwise":
        value = layouts.rowwise(rows, cols, warps)
        text = picture.registers(value)
    else:
        down, across = UNITS[name][0] * (1 if name == "mma_b" else warps), UNITS[name][1]  # warps share out rows, and read all of b
        if rows % down or cols % across:
            more = f" --warps {warps}" * (warps > 1)
            raise FcError("cli/usage", f"{name} covers whole fragments", expected=f"a multiple of {down} rows and of {across} columns",
                          got=f"{rows} x {cols}" + f" for {warps} warps" * (warps > 1),
                          hint=f"fcgen layout {name} {-(-rows // down) * down} {-(-cols // across) * across}{more}")
        value = getattr(layouts, name)(rows, cols, (warps, 1))
        text = picture.registers(value)
    if svg == "-":
        click.echo(picture.svg(value, shape=(rows, cols)))
    elif svg:
        path = Path(svg)
        if path.suffix != ".svg":
            raise FcError("cli/usage", "a drawing is an .svg file", got=svg, hint=f"--svg {path.with_suffix('.svg')}")
        for line in written(write_files({path: picture.svg(value, shape=(rows, cols))})):
            click.echo(line)
    else:
        click.echo(f"{value}\n{text}")
