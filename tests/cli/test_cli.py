"""The command line: what each command prints, writes and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fcgen.cli import main
from fcgen.runtime import driver

ROOT = Path(__file__).parents[2]
SMALL = ["--set", "T=f16", "--set", "D=32", "--set", "E=32", "--schedule", "tiles={BLOCK_M: 64, BLOCK_N: 32}"]
SPEC = "fcgen.kernels.attention:attention"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("FCGEN_CACHE_DIR", str(folder))


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


def test_dump_until_a_value() -> None:
    text = output("dump", SPEC, *SMALL, "--target", "sm_89", "--stage", "tile", "--until", "s")
    assert "UNTIL" in text and "store %O" not in text


def test_build_writes_every_level_and_what_it_wrote_builds_again(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    text = output("build", SPEC, *SMALL, "--target", "sm_89", "--out", str(first))
    assert "no race" in text
    assert sorted(p.name for p in first.iterdir()) == ["attention.cu", "attention.machine.fc", "attention.ptx", "attention.tile.fc"]
    output("build", str(first / "attention.machine.fc"), "--out", str(second))
    assert (second / "attention.cu").read_text() == (first / "attention.cu").read_text()
    output("build", str(first / "attention.tile.fc"), "--target", "sm_89", "--out", str(second), "--schedule", SMALL[-1])


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
    assert "no race" in text and "K=29" in text


@pytest.mark.skipif(driver.available()[0], reason="there is a GPU")
def test_run_without_a_gpu_simulates_and_compares_with_the_reference() -> None:
    text = output("run", str(ROOT / "examples" / "softmax.py"), "--size", "m=20", "--size", "n=300")
    assert "in the simulator" in text and "max error against the reference" in text


def test_demo_reports_and_writes(tmp_path: Path) -> None:
    text = output("demo", "--target", "sm_89", "--out", str(tmp_path))
    assert all(w in text for w in ("traced", "simulated", "registers, 0 B spilled", "attention.cu"))
    assert (tmp_path / "attention.machine.fc").read_text().startswith("machine kernel attention")


def test_doctor_lists_what_is_needed() -> None:
    text = output("doctor")
    assert all(w in text for w in ("NVRTC", "CUDA headers", "driver"))


def test_explain_knows_every_code_and_no_other() -> None:
    assert "nothing that orders them" in output("explain", "sim/race")
    assert len(output("explain").splitlines()) > 20
    assert fcgen("explain", "sim/nonsense").exit_code == 1


def test_layout_draws_text_and_svg(tmp_path: Path) -> None:
    assert "0.0:0" in output("layout", "mma_c", "16", "8")
    output("layout", "smem", "8", "64", "--svg", str(tmp_path / "s.svg"))
    assert (tmp_path / "s.svg").read_text().startswith("<svg")
    assert fcgen("layout", "mma_c", "10", "8").exit_code == 1


@pytest.mark.parametrize(("arguments", "words"), [
    (["dump", "nowhere.py"], ["file/missing", "nowhere.py"]),
    (["dump", "no.such.module:x"], ["file/missing", "neither a file nor a module"]),
    (["dump", "fcgen.kernels.attention:attentoin"], ["did you mean", "attention"]),
    (["dump", SPEC, *SMALL, "--target", "sm_75"], ["compile/unsupported", "sm_89"]),
    (["dump", SPEC, "--target", "sm_89", "--set", "T=f16"], ["trace/static"]),
    (["dump", SPEC, *SMALL, "--target", "sm_89", "--set", "Z=3"], ["trace/static", "Z"]),
    (["dump", SPEC, "--target", "sm_89", "--schedule", "tile={A: 1}"], ["did you mean tiles?"]),
    (["dump", SPEC, *SMALL[:-1], "tiles={BLOCK_M: 64, BLOCK_N: 32}, warps=3", "--target", "sm_89"], ["compile/schedule", "warps"])],
    ids=lambda x: x[0] if isinstance(x, list) and len(x) < 3 else None)
def test_mistakes_are_errors_with_a_hint_not_tracebacks(arguments: list[str], words: list[str]) -> None:
    result = fcgen(*arguments)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert all(w in result.output for w in words), result.output
