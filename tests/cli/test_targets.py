"""Every command on every target: it works, or says in an error what the target has not."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fcgen.build.compiler import targets
from fcgen.cli.commands import main
from fcgen.runtime import toolchain

ROOT = Path(__file__).parents[2]
ROWS = str(ROOT / "examples" / "softmax.py")
SPEC = ["fcgen.kernels.attention:attention", "--set", "T=f16", "--set", "D=64", "--set", "E=64", "--schedule"]
AMPERE, HOPPER = "tiles={BLOCK_M: 64, BLOCK_N: 64}", "tiles={BLOCK_M: 64, BLOCK_N: 64}, math=wgmma, copy=tma"
#: command -> arguments but the target, words that it prints
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "dump tile": (["dump", *SPEC, AMPERE, "--stage", "tile"], ["tile kernel attention"]),
    "dump machine": (["dump", *SPEC, AMPERE], ["machine kernel attention", "mma"]),
    "dump cuda": (["dump", *SPEC, AMPERE, "--stage", "cuda"], ["mma_m16n8k16_f16"]),
    "dump ptx": (["dump", ROWS, "--stage", "ptx"], [".version"]),
    "dump report": (["dump", ROWS, "--stage", "report"], ["registers", "spills none"]),
    "dump --stop-after": (["dump", *SPEC, AMPERE, "--stop-after", "select"], ["meta stage = selected"]),
    "dump --until": (["dump", *SPEC, AMPERE, "--until", "s"], ["UNTIL"]),
    "check": (["check", ROWS, "--seeds", "1", "--size", "M=20", "--size", "N=70"], ["no race"]),
    "run": (["run", ROWS, "--simulate", "--size", "m=20", "--size", "n=70"], ["in the simulator", "max error against the reference"]),
    "build": (["build", ROWS, "--no-check"], ["softmax.machine.fc", "softmax.cu", "softmax.ptx"]),
    "demo": (["demo"], ["simulated", "registers, 0 B spilled", "attention.cu"]),
}


def fcgen(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_every_target(command: str, target: str, tmp_path: Path) -> None:
    arguments, words = COMMANDS[command]
    out = ["--out", str(tmp_path)] if arguments[0] in ("build", "demo") else []
    text = fcgen(*arguments, "--target", target, *out)
    assert all(w in text for w in words), text
    assert command == "run" or target in text or arguments[0] in ("dump", "build")
    for path in tmp_path.glob("*.ptx"):
        assert f".target {target}\n" in path.read_text()


@pytest.mark.parametrize(("target", "given", "words"), [
    ("sm_89", [], "tiles={BLOCK_M: 16, BLOCK_N: 256}"), ("sm_89", ["--schedule", "auto"], "chosen"), ("sm_90a", [], "chosen")])
def test_an_example_s_schedule_is_for_its_own_target(target: str, given: list[str], words: str) -> None:
    text = fcgen("dump", ROWS, "--stage", "report", "--target", target, *given)
    assert words in text and ("chosen" in text) == (words == "chosen"), text


def test_no_schedule_is_chosen_for_ir_text(tmp_path: Path) -> None:
    path = tmp_path / "softmax.tile.fc"
    path.write_text(fcgen("dump", ROWS, "--stage", "tile", "--target", "sm_89"))
    result = CliRunner().invoke(main, ["dump", str(path), "--target", "sm_89", "--schedule", "auto"])
    assert result.exit_code == 1 and "--schedule auto" in result.output and "chosen for a spec" in result.output


def test_these_are_all_commands_that_take_a_target() -> None:
    takes = {name for name, c in main.commands.items() if any(p.name == "target" for p in c.params)}
    assert takes == {c.split()[0] for c in COMMANDS}
    stages = next(p for p in main.commands["dump"].params if p.name == "stage").type.choices  # type: ignore[attr-defined]
    assert set(stages) == {c.split()[1] for c in COMMANDS if c.startswith("dump ") and "--" not in c} | {"sass"}


@pytest.mark.parametrize("target", targets())
def test_machine_code_is_shown_or_its_tool_is_named(target: str) -> None:
    result = CliRunner().invoke(main, ["dump", ROWS, "--stage", "sass", "--target", target], catch_exceptions=False)
    tool = toolchain.find_tool("nvdisasm")
    assert (result.exit_code, "EXIT" if tool else "nvidia-cuda-nvdisasm" in result.output) == ((0, "EXIT") if tool else (1, True))


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("command", ["dump", "build"])
def test_hopper_instructions_are_refused_elsewhere(command: str, target: str, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")] if command == "build" else []
    result = CliRunner().invoke(main, [command, *SPEC, HOPPER, "--target", target, *out], catch_exceptions=False)
    if target == "sm_90a":
        assert result.exit_code == 0
    else:
        assert result.exit_code == 1 and f"{target} has no " in result.output and "sm_90a" in result.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("made_for", "target", "taken"), [
    ("sm_80", "sm_80", True), ("sm_80", "sm_89", True), ("sm_80", "sm_90a", True), ("sm_89", "sm_80", False), ("sm_90a", "sm_90", False),
    ("sm_90a", "sm_90a", True), ("sm_90a", "sm_89", False)])
@pytest.mark.parametrize("command", ["dump", "build"])
def test_machine_ir_is_not_compiled_for_an_older_target(command: str, made_for: str, target: str, taken: bool, tmp_path: Path) -> None:
    path = tmp_path / "softmax.fc"
    path.write_text(fcgen("dump", ROWS, "--target", made_for))
    out = ["--out", str(tmp_path / "out"), "--no-check"] if command == "build" else ["--size", "M=20", "--size", "N=70"] * (command != "dump")
    result = CliRunner().invoke(main, [command, str(path), "--target", target, *out], catch_exceptions=False)
    assert result.exit_code == (0 if taken else 1), result.output
    assert taken or f"was lowered for {made_for}" in result.output
