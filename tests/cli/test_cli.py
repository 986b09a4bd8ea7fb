"""The command line: what each command prints, writes and refuses."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fcgen.cli import doctor
from fcgen.cli.commands import main
from fcgen.errors import FcError
from fcgen.runtime import driver
from fcgen.runtime.files import write_files
from fcgen.sim import trial

ROOT = Path(__file__).parents[2]
SMALL = ["--set", "T=f16", "--set", "D=32", "--set", "E=32", "--schedule", "tiles={BLOCK_M: 64, BLOCK_N: 32}"]
SPEC = "fcgen.kernels.attention:attention"


def fcgen(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def output(*arguments: str) -> str:
    result = fcgen(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(("stage", "words"), [
    ("tile", ["tile kernel attention", "dot %q", "@attention.py:"]),
    ("machine", ["machine kernel attention", "cp_async", "ldmatrix", "barrier", "smem_offsets"]),
    ("cuda", ["mma_m16n8k16_f16", "__launch_bounds__", "// acc <<= acc * fade"]),
    ("ptx", ["mma.sync", "cp.async", ".target sm_89"]),
    ("report", ["registers", "spills none"])])
def test_dump_shows_each_level(stage: str, words: list[str]) -> None:
    text = output("dump", SPEC, *SMALL, "--target", "sm_89", "--stage", stage)
    assert all(w in text for w in words)


def test_dump_stops_after_a_pass_by_name() -> None:
    text = output("dump", SPEC, *SMALL, "--target", "sm_89", "--stop-after", "place")
    assert "meta stage = placed" in text and "barrier" not in text
    result = fcgen("dump", SPEC, *SMALL, "--target", "sm_89", "--stop-after", "plaice")
    assert result.exit_code == 1 and "place" in result.output


@pytest.mark.parametrize("stage", ["ptx", "report"])
def test_dump_compiles_what_is_not_to_be_checked(stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(*_: object) -> None:
        raise FcError("sim/unwritten", "drawn sizes do not go together")

    monkeypatch.setattr(trial, "run_trials", wrong)
    monkeypatch.setenv("FCGEN_CACHE_DIR", str(tmp_path))
    result = fcgen("dump", SPEC, *SMALL, "--target", "sm_89", "--stage", stage)
    assert result.exit_code == 1 and "go together" in result.output
    assert output("dump", SPEC, *SMALL, "--target", "sm_89", "--stage", stage, "--no-check")


def test_dump_until_a_value() -> None:
    text = output("dump", SPEC, *SMALL, "--target", "sm_89", "--stage", "tile", "--until", "s")
    assert "UNTIL" in text and "store %O" not in text


def test_build_writes_every_level_and_what_it_wrote_builds_again(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    text = output("build", SPEC, *SMALL, "--target", "sm_89", "--out", str(first))
    assert "no race" in text
    assert sorted(p.name for p in first.iterdir()) == ["attention.cu", "attention.machine.fc", "attention.ptx", "attention.tile.fc"]
    output("build", str(first / "attention.machine.fc"), "--out", str(second), "--no-check")
    assert (second / "attention.cu").read_text() == (first / "attention.cu").read_text()
    output("build", str(first / "attention.tile.fc"), "--target", "sm_89", "--out", str(second), "--schedule", SMALL[-1], "--no-check")


def test_building_an_edited_file_in_its_own_folder_leaves_it_as_it_is(tmp_path: Path) -> None:
    output("build", SPEC, *SMALL, "--target", "sm_89", "--out", str(tmp_path), "--no-check")
    path = tmp_path / "attention.machine.fc"
    edited = path.read_text().replace("\n", "\n# a note to myself\n", 1)
    path.write_text(edited)
    cu = (tmp_path / "attention.cu").read_text()
    (tmp_path / "attention.cu").unlink()
    text = output("build", str(path), "--out", str(tmp_path), "--no-check")
    assert path.read_text() == edited and "as it is" in text
    assert (tmp_path / "attention.cu").read_text() == cu
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []


def test_files_are_written_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a").write_text("old")
    whole = Path.write_text

    def full(path: Path, text: str, **options: Any) -> int:
        if path.name.startswith("c."):
            whole(path, text[:1], **options)
            raise OSError(28, "No space left on device")
        return whole(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(FcError, match="cannot write"):
        write_files({folder / "a": "new", folder / "c": "new"})
    assert (folder / "a").read_text() == "old" and [p.name for p in folder.iterdir()] == ["a"]


def test_a_race_edited_into_the_machine_ir_stops_the_build(tmp_path: Path) -> None:
    output("build", SPEC, *SMALL, "--target", "sm_89", "--out", str(tmp_path))
    path = tmp_path / "attention.machine.fc"
    lines = path.read_text().splitlines(keepends=True)
    in_loop = next(i for i, line in enumerate(lines) if line.startswith("    barrier"))
    broken = tmp_path / "broken.fc"
    broken.write_text("".join(lines[:in_loop] + lines[in_loop + 1:]))
    result = fcgen("build", str(broken), "--out", str(tmp_path / "never"))
    assert result.exit_code == 1 and not (tmp_path / "never").exists()
    assert "[sim/" in result.output and "earlier:" in result.output and "hint:" in result.output
    output("build", str(broken), "--no-check", "--out", str(tmp_path / "dared"))


def test_a_slip_in_ir_text_is_shown_with_a_caret(tmp_path: Path) -> None:
    path = tmp_path / "slip.fc"
    path.write_text(output("dump", SPEC, *SMALL, "--target", "sm_89").replace("cp_async", "cp_asink", 1))
    result = fcgen("build", str(path))
    assert result.exit_code == 1 and "did you mean cp_async?" in result.output and "^^^^^^^^" in result.output


def test_check_says_what_it_ran() -> None:
    text = output("check", str(ROOT / "examples" / "gemm.py"), "--target", "sm_89", "--seeds", "1", "--size", "M=20", "--size", "N=20")
    assert "no race" in text and len(re.findall(r"M=20, (?:K=\d+, )?N=20, ", text)) == int(re.findall(r"in (\d+) runs", text)[0]) >= 8


def test_check_compares_with_the_tile_program_that_lies_beside_or_that_is_named(tmp_path: Path) -> None:
    where = {stage: tmp_path / f"attention.{stage}.fc" for stage in ("tile", "machine")}
    for stage, path in where.items():
        path.write_text(output("dump", SPEC, *SMALL, "--target", "sm_89", "--stage", stage))
    machine, apart = str(where["machine"]), tmp_path / "apart.fc"
    apart.write_text(where["machine"].read_text())
    size = ("--seeds", "1", "--size", "M=40", "--size", "N=40")
    assert f"values   those of {where['tile']}" in output("check", machine, *size)
    assert "values   not compared: nothing says" in output("check", str(apart), *size)
    where["machine"].write_text(apart.read_text().replace(" = exp2 ", " = exp "))
    for arguments in ([machine], [machine, "--against", str(apart)]):
        result = fcgen("check", *arguments, *size)
        assert result.exit_code == 1 and "[sim/value] the kernel computes something else than " in result.output, result.output
    assert fcgen("check", machine, "--against", str(ROOT / "examples" / "softmax.py")).exit_code == 1


@pytest.mark.skipif(driver.available()[0], reason="there is a GPU")
def test_run_without_a_gpu_simulates_and_compares_with_the_reference() -> None:
    text = output("run", str(ROOT / "examples" / "softmax.py"), "--size", "M=20", "--size", "n=300")
    assert "in the simulator" in text and "max error against the reference" in text


def test_demo_reports_and_writes(tmp_path: Path) -> None:
    text = output("demo", "--target", "sm_89", "--out", str(tmp_path))
    assert all(w in text for w in ("sizes     B=1", "traced", "simulated", "NVRTC", "registers, 0 B spilled", "attention.cu"))
    assert (tmp_path / "attention.machine.fc").read_text().startswith("machine kernel attention")
    again = output("demo", "--target", "sm_89", "--out", str(tmp_path))
    assert "from the cache" in again
    output("dump", str(tmp_path / "attention.tile.fc"), "--target", "sm_89", "--stop-after", "place")  # what it proposes next works


def test_doctor_lists_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "run_trials", lambda *_: None)  # (tests/runtime/test_driver_and_doctor.py has it)
    text = output("doctor")
    assert all(w in text for w in ("NVRTC", "CUDA headers", "driver"))


@pytest.mark.parametrize(("optional", "exit_code"), [(False, 1), (True, 0)])
def test_doctor_fails_only_where_something_needed_is_missing(monkeypatch: pytest.MonkeyPatch, optional: bool, exit_code: int) -> None:
    missing = doctor.Check("thing", False, "not installed", "pip install 'fcgen[thing]'", optional=optional)
    monkeypatch.setattr(doctor, "checks", lambda: [missing])
    result = fcgen("doctor")
    assert result.exit_code == exit_code and "fcgen[thing]" in result.output


def test_explain_knows_every_code_and_no_other() -> None:
    assert "nothing that orders them" in output("explain", "sim/race")
    assert len(output("explain").splitlines()) > 20
    result = fcgen("explain", "sim/rase")
    assert result.exit_code == 1 and "did you mean sim/race?" in result.output
    assert [line.split()[0] for line in output("explain", "cli").splitlines()] == ["cli/usage"]
    assert output("explain", "sim") == output("explain", "sim/") and len(output("explain", "sim").splitlines()) > 9


def test_layout_draws_text_and_svg(tmp_path: Path) -> None:
    assert "0.0:0" in output("layout", "mma_c", "16", "8")
    assert output("layout", "mma_c", "16", "16", "--svg").startswith("<svg")
    output("layout", "smem", "8", "64", "--svg", str(tmp_path / "s.svg"))
    assert (tmp_path / "s.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(("name", "warps", "rows", "cols"), [
    ("mma_c", 1, 16, 8), ("mma_c", 3, 48, 8), ("mma_a", 1, 16, 16), ("mma_a", 3, 48, 16), ("mma_b", 1, 16, 8), ("mma_b", 3, 16, 8)])
def test_the_fragments_that_a_layout_covers_whole_are_said(name: str, warps: int, rows: int, cols: int) -> None:
    for r, c in ((rows, cols), (2 * rows, 3 * cols)):
        output("layout", name, str(r), str(c), "--warps", str(warps))
    for r, c in ((3, 5), (rows, cols - 1), (rows + 1, cols), (rows // 2, cols), (rows, cols // 2)):
        result = fcgen("layout", name, str(r), str(c), "--warps", str(warps))
        assert result.exit_code == 1 and f"a multiple of {rows} rows and of {cols} columns" in result.output
        hint = result.output.split("hint: fcgen ")[1].split()
        output(*hint)


@pytest.mark.parametrize(("arguments", "words"), [
    (["dump", "nowhere.py"], ["file/missing", "nowhere.py"]),
    (["dump", "no.such.module:x"], ["file/missing", "neither a file nor a module"]),
    (["dump", "fcgen.kernels.attention:attentoin"], ["did you mean", "attention"]),
    (["dump", "examples/softmaks.py"], ["file/missing", "did you mean examples/softmax.py?"]),
    (["dump", "examples"], ["file/missing", "is a folder"]),
    (["dump", "docs/flow.svg"], ["ir/parse", "flow.svg"]),
    (["dump", "examples/softmax.py:inputs"], ["file/missing", "is not a spec", "examples/softmax.py:softmax"]),
    (["dump", SPEC, "--set", "D"], ["cli/usage", "NAME=VALUE"]),
    (["dump", SPEC, "--set", "D=32", "--set", "D=64"], ["cli/usage", "set twice"]),
    (["run", "examples/softmax.py", "--size", "m=x"], ["cli/usage", "NAME=NUMBER"]),
    (["run", "examples/softmax.py", "--size", "k=3"], ["cli/usage", "expected: m, n"]),
    (["check", "examples/softmax.py", "--size", "Q=3"], ["cli/usage", "expected: M, N"]),
    (["check", "examples/softmax.py", "--size", "M=-1"], ["cli/usage", "from 0 on"]),
    (["run", "examples/softmax.py", "--simulate", "--size", "M=9223372036854775807"], ["cli/usage", "not the memory"]),
    (["build", "examples/softmax.py", "--no-check", "--out", "README.md/x"], ["file/missing", "cannot write"]),
    (["dump", SPEC, *SMALL, "--target", "sm_75"], ["compile/unsupported", "sm_89", "oldest target is sm_80"]),
    (["dump", SPEC, *SMALL, "--target", "sm_100"], ["compile/unsupported", "newest target is sm_90a", "Blackwell"]),
    (["dump", SPEC, *SMALL, "--target", "sm_98"], ["compile/unsupported", "newest target is sm_90a"]),
    (["dump", SPEC, *SMALL, "--target", "sm89"], ["compile/unsupported", "did you mean sm_89?"]),
    (["dump", SPEC], ["trace/static", "hint: --set T=f16"]),
    (["dump", SPEC, *SMALL[:-1], "stages=2"], ["trace/static", 'hint: --schedule "tiles={BLOCK_M: 64, BLOCK_N: 64, ...}"']),
    (["dump", SPEC, "--target", "sm_89", "--set", "T=f16", *SMALL[-2:]], ["trace/static", "bind it: --set D=..., or index it: Q[b, h, m, d]"]),
    (["dump", SPEC, *SMALL[:-1], f"{SMALL[-1]}, copy=tma", "--target", "sm_89"], ['--schedule "copy=cp_async, math=mma", or --target sm_90a']),
    (["dump", SPEC, *SMALL, "--target", "sm_89", "--set", "Z=3"], ["trace/static", "Z"]),
    (["dump", SPEC, "--target", "sm_89", "--schedule", "tile={A: 1}"], ["did you mean tiles?"]),
    (["dump", SPEC, *SMALL[:-1], "tiles={BLOCK_M: 64, BLOCK_N: 32}, warps=3", "--target", "sm_89"], ["compile/schedule", "warps"])],
    ids=lambda x: x[0] if isinstance(x, list) and len(x) < 3 else None)
def test_mistakes_are_errors_with_a_hint_not_tracebacks(arguments: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = fcgen(*arguments)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert all(w in result.output for w in words), result.output


def test_a_file_may_hold_specs_of_other_modules_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.py").write_text("import fcgen as fc\nimport benchmarks.specs\ngradient = fc.grad(benchmarks.specs.gemm_nt)\n")
    Path("two.py").write_text("from benchmarks.specs import gemm_nt, norm_gemm\n")
    assert "tile kernel gemm_nt_gradient" in output("dump", "one.py", "--target", "sm_89", "--set", "T=f16", "--stage", "tile")
    said = fcgen("dump", "two.py").output
    assert "does not say which spec" in said and "gemm_nt, norm_gemm" in said and "write two.py:gemm_nt" in said


def test_a_module_of_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_specs_here.py").write_text((ROOT / "examples" / "softmax.py").read_text().replace("from harness import Example, main\n", "")
                                               .partition("\n\ndef inputs")[0])
    (tmp_path / "not_text.fc").write_bytes(b"\xff\xfe\x00")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p])
    small = ["--set", "T=f16", "--schedule", "tiles={BLOCK_M: 16, BLOCK_N: 64}", "--stage", "tile"]
    assert "tile kernel softmax" in output("dump", "my_specs_here:softmax", *small)
    assert "cannot be read as text" in fcgen("dump", "not_text.fc").output
    sys.modules.pop("my_specs_here")


def test_what_a_module_misses_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_thing_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path])
    with pytest.raises(ModuleNotFoundError, match="no_such_thing_at_all"):
        fcgen("dump", "needs_more:x")
    with pytest.raises(ModuleNotFoundError, match="no_such_thing_at_all"):
        fcgen("dump", "needs_more.py:x")
    assert "needs_more" not in sys.modules


def blocks(heading: str) -> list[str]:
    """The lines of the code blocks below a heading of the README, without indentation; `...` stands for lines that are left out."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [" ".join(line.split()) for block in re.findall(r"```\w*\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]
    return [line for line in lines if line not in ("", "...")]


def test_the_readme_shows_what_each_level_looks_like_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = ["dump", "examples/attention.py", "--target", "sm_89", "--set", "T=f16", "--set", "D=64", "--set", "E=64",
               "--schedule", "tiles={BLOCK_M: 64, BLOCK_N: 64}", "--stage"]
    now = {" ".join(line.split()) for stage in ("tile", "machine", "cuda") for line in output(*command, stage).splitlines()}
    shown = blocks("What you get at each level")
    assert len(shown) > 50 and [line for line in shown if line not in now] == []


def test_the_readme_shows_what_the_demo_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    same = lambda text: re.sub(r"cubin .*", "cubin", re.sub(r"[\d.]+(e-\d+)?", "#", text.partition("\nno GPU here")[0].partition("\non ")[0]))
    assert same(output("demo", "--target", "sm_89")) == same(shown)


def test_the_readme_shows_what_the_errors_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = blocks("When something is wrong")
    lines = output("dump", "examples/attention.py", "--target", "sm_89", "--schedule", "tiles={BLOCK_M: 64, BLOCK_N: 64}").splitlines()
    barrier = next(i for i, line in enumerate(lines) if line.startswith("    barrier"))
    edited = tmp_path / "edited.fc"
    edited.write_text("\n".join(lines[:barrier] + lines[barrier + 1:]) + "\n")
    result = fcgen("check", str(edited))
    said = [" ".join(line.split()) for line in result.output.replace(f"{tmp_path}{os.sep}", "").splitlines()]
    assert result.exit_code == 1 and len(said) > 5 and [line for line in said if line not in shown] == []


@pytest.mark.parametrize("size", ["M", "N"])
def test_a_size_may_be_zero(size: str, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    monkeypatch.chdir(ROOT)
    text = output("check", "examples/gemm.py", "--target", "sm_89", "--size", f"{size}=0")
    assert "no race" in text and f"{size}=0" in text and "0 programs" in text
    assert "C [" in output("run", "examples/gemm.py", "--simulate", "--target", "sm_89", "--size", f"{size.lower()}=0")
    assert not recwarn.list
    result = fcgen("run", "examples/softmax.py", "--simulate", "--target", "sm_89", "--size", "n=0")
    assert result.exit_code == 1 and "takes no empty tensors" in result.output
