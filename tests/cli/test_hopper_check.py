"""Checking kernels of asynchronous engines from the command line and from Python: what was edited by hand is simulated before it is compiled."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import fcgen as fc
from fcgen.cli.commands import main
from fcgen.kernels.attention import attention
from fcgen.runtime import nvrtc

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "attention.py")
SCHEDULE = ("tiles={BLOCK_M: 128, BLOCK_N: 16}, warps=8, math=wgmma, copy=tma, stages=2, late=acc, persistent=dynamic, tokens=True, "
            "epilogue=quad, l2=32")
OPTIONS = ["--target", "sm_90a", "--schedule", SCHEDULE, "--set", "D=16", "--set", "E=16"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("FCGEN_CACHE_DIR", str(folder))


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that reached NVRTC."""
    seen: list[str] = []
    real = nvrtc.compile_cuda

    def compile_cuda(*args: object, **options: object) -> object:
        seen.append(str(options["name"]))
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(nvrtc, "compile_cuda", compile_cuda)
    return seen


def fcgen(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


@pytest.fixture(scope="module")
def text() -> str:
    result = fcgen("dump", EXAMPLE, *OPTIONS)
    assert result.exit_code == 0, result.output
    return result.output


def without(text: str, kind: str, which: int) -> str:
    """The text without the line that has an op for the which-th time."""
    lines = text.splitlines(keepends=True)
    at = [n for n, line in enumerate(lines) if line.strip().startswith(kind)][which]
    return "".join(lines[:at] + lines[at + 1:])


def broken(text: str) -> str:
    return without(text, "mbar_wait %v_full", 1)


def test_check_says_what_was_put_to_the_test() -> None:
    result = fcgen("check", EXAMPLE, *OPTIONS, "--seeds", "2")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    count = int(re.fullmatch(r"attention on sm_90a: no race, stale read or deadlock in (\d+) runs", lines[0])[1])  # type: ignore[index]
    assert lines[1:5] == ["  roles    load of one thread, main of 8 warps", "  shared   q x1, k x2, v x2, next x2",
                          "  engines  as late as they may, at once", "  values   those of the tile program"]
    assert re.fullmatch(r"  runs     M=\d+, N=\d+, scale=0\.125, normal: \d programs? in 1 block", lines[5])
    assert len([line for line in lines if re.search(r": \d+ programs? in \d blocks?$", line)]) == count >= 8


EDITS: dict[str, tuple[Callable[[str], str], str, list[str]]] = {
    "a wait": (broken, "sim/race", [
        r"touch(es)? v\[slot \d\] row \d+, column \d+", r"at .*edited\.fc:\d+\n", r"which comes from examples/attention\.py:25: acc <<= ",
        r"earlier: role load, its TMA copy: tma_load V, .*\(edited\.fc:\d+, attention\.py:24\)",
        r"later:   role main, warp \d: .*wgmma .*\(edited\.fc:\d+, attention\.py:25\)",
        r"hint: an mbarrier: who reads waits for `full`"]),
    "an arrival": (lambda t: without(t, "mbar_arrive %q_empty", 0), "sim/leftover", [
        r"q_empty is in phase \d and lacks [48] of its 8 arrivals \(role main, warps [\d, ]+ came\)", r"role main, warp \d: mbar_arrive "]),
    "an announcement": (lambda t: without(t, "mbar_expect %k_full", 1), "sim/deadlock", [
        r"k_full\[slot \d\] is in phase \d and lacks 1 of its 1 arrivals and has 512 bytes more than it was told of",
        r"role (load|main)", r"attention\.py:1\d"]),
    "a fence": (lambda t: without(t, "wgmma_fence", 0), "ir/verify", [r"wgmma: a wgmma_fence .* stands in front of it", r"edited\.fc:\d+"]),
    "a commit": (lambda t: without(t, "wgmma_commit", 0), "sim/stale", [r"settle does not wait for", r"was never committed|still be in flight"]),
    "the end of the claims": (lambda t: without(t, "claim_done", 0), "sim/leftover", [r"never says claim_done", r"role load: 0 of \d blocks"]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_was_left_out_of_an_edited_file_is_named(edit: str, text: str, tmp_path: Path) -> None:
    change, code, words = EDITS[edit]
    path = tmp_path / "edited.fc"
    path.write_text(change(text))
    result = fcgen("check", str(path), "--seeds", "2")
    assert result.exit_code == 1 and result.output.startswith(f"error [{code}] "), result.output
    missing = [w for w in words if not re.search(w, result.output)]
    assert not missing, f"{missing} in\n{result.output}"
    assert "Traceback" not in result.output and len(result.output.splitlines()) < 12


def test_build_simulates_an_edited_file_before_it_compiles(text: str, tmp_path: Path, compiles: list[str]) -> None:
    path = tmp_path / "edited.fc"
    path.write_text(broken(text))
    result = fcgen("build", str(path), "--out", str(tmp_path / "out"))
    assert result.exit_code == 1 and "[sim/race]" in result.output
    assert not compiles and not (tmp_path / "out").exists()
    path.write_text(text)
    result = fcgen("build", str(path), "--out", str(tmp_path / "out"))
    assert result.exit_code == 0 and re.search(r"simulated in \d+ runs: .*; values not compared", result.output) and len(compiles) == 1


def test_so_does_a_program_made_from_text(text: str, compiles: list[str]) -> None:
    with pytest.raises(fc.FcError, match=r"nothing orders them|in flight") as error:
        _ = fc.program_from_text(broken(text), "edited.fc").cubin
    assert error.value.code == "sim/race" and not compiles
    steps: list[str] = []
    p = fc.program_from_text(text, "whole.fc")
    p.progress = steps.append
    assert p.cubin and len(compiles) == 1 and steps.index("simulator") < steps.index("NVRTC")


def test_what_was_compiled_unchecked_is_still_checked_later(text: str, compiles: list[str]) -> None:
    assert fc.program_from_text(broken(text), "edited.fc", check=False).cubin and compiles
    with pytest.raises(fc.FcError):
        _ = fc.program_from_text(broken(text), "edited.fc").cubin


def test_what_is_not_to_be_checked_is_compiled_without_a_simulation() -> None:
    p = attention.compile(LSE=None, target="sm_90a", schedule=fc.Schedule.parse(SCHEDULE), check=False, T=fc.f16, D=16, E=16,
                                 mask="causal_top_left")
    steps: list[str] = []
    p.progress = steps.append
    assert p.cubin and steps[-1] == "NVRTC" and "simulator" not in steps
