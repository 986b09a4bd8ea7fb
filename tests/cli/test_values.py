"""`--arg`: numbers and tensors from the command line; what is written, and what is not written over; files that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fcgen.cli.commands import main
from fcgen.errors import FcError, visible
from fcgen.runtime.files import is_ours, signed, write_files

SPEC = '''import fcgen as fc

@fc.kernel
def scaled(X: "T[M, N]", Y: "out f32[M, N]", *, scale: "f32 > 0", window: "i32"):
    rows, cols = fc.grid(fc.tile(X.M, "R"), fc.tile(X.N, "C"))
    x = fc.load(X[rows, cols]).to(fc.f32)
    fc.store(Y[rows, cols], fc.where(cols.index < window, x * scale, 0.0))
'''
SETTINGS = ["--set", "T=f16", "--schedule", "tiles={R: 16, C: 32}", "--target", "sm_89"]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("scaled.py").write_text(SPEC)
    np.save("x.npy", np.ones((20, 40), np.float32))
    return "scaled.py"


def fcgen(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def test_run_takes_numbers_and_tensors(spec: str) -> None:
    run = ["run", spec, *SETTINGS, "--simulate", "--arg", "X=x.npy", "--arg", "window=10"]
    assert "Y [20, 40]  mean +0.5000" in fcgen(*run, "--arg", "scale=2").output
    assert "Y [20, 40]  mean +0.1250" in fcgen(*run, "--arg", "scale=0.5").output
    assert "Y [20, 40]  mean +0.0000" in fcgen(*run[:-1], "window=-1", "--arg", "scale=0.5").output


def test_check_takes_them_too_and_arrays_fix_their_sizes(spec: str) -> None:
    assert fcgen("build", spec, *SETTINGS, "--arg", "X=x.npy", "--arg", "window=200").exit_code == 0
    for what in ([spec, *SETTINGS], ["out/scaled.machine.fc"], ["out/scaled.tile.fc", *SETTINGS[2:]]):
        text = fcgen("check", *what, "--arg", "X=x.npy", "--arg", "window=200", "--seeds", "1").output
        assert "no race" in text and "M=20, N=40" in text


def test_numbers_reach_the_simulator(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fcgen.sim import trial

    seen, real = [], trial.simulate

    def simulate(kernel: object, inputs: dict[str, object], *args: object, **named: object) -> object:
        seen.append((inputs["window"], inputs["scale"], inputs["X"].shape))  # type: ignore[attr-defined]
        return real(kernel, inputs, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(trial, "simulate", simulate)
    fcgen("check", spec, *SETTINGS, "--arg", "window=200", "--arg", "scale=0.5", "--seeds", "1", "--size", "M=5", "--size", "N=7")
    assert set(seen) == {(200, 0.5, (5, 7))}


def test_an_examples_reference_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((20, 300), 3.0))
    example = str(Path(__file__).parents[2] / "examples" / "softmax.py")
    text = fcgen("run", example, "--simulate", "--arg", f"X={tmp_path / 'x.npy'}").output
    assert "[20, 300]  mean +0.0033" in text and "max error against the reference" in text


@pytest.mark.parametrize(("arguments", "words"), [
    (["scale"], ["NAME=VALUE"]), (["scale="], ["NAME=VALUE"]), (["skale=1"], ["no argument skale", "X, scale, window", "did you mean scale?"]),
    (["Y=x.npy"], ["Y is written by scaled"]), (["scale=1", "--arg", "scale=2"], ["given twice"]), (["scale=one"], ["a number", "f32"]),
    (["window=1.5"], ["a number", "i32"]), (["scale=0"], ["must be positive"]), (["scale=nan"], ["must be positive"]),
    (["window=2147483648"], ["does not fit"]), (["X=1"], ["is a tensor", "X=x.npy"]), (["X=gone.npy"], ["file/missing", "gone.npy"]),
    (["X=text.npy"], ["not an array"]), (["X=flat.npy"], ["wrong shape", "[M, N]"]), (["X=words.npy"], ["wrong dtype"]),
    (["X=x.npy", "--size", "M=21"], ["M another size", "21"]), (["X=pickled.npy"], ["not an array"])], ids=lambda x: "-".join(x)[:30])
def test_mistakes_in_values_are_told(arguments: list[str], words: list[str], spec: str) -> None:
    Path("text.npy").write_text("no array")
    np.save("flat.npy", np.ones(7))
    np.save("words.npy", np.array([["a"]]))
    np.save("pickled.npy", np.array([[{}]], object), allow_pickle=True)
    for command in ("run", "check", "build"):
        result = fcgen(command, spec, *SETTINGS, "--arg", *arguments)
        assert result.exit_code == 1 and all(w in result.output for w in words), result.output


# ---- files that were edited ----------------------------------------------------------------------------------------------


def test_a_build_does_not_write_over_a_file_that_was_edited(spec: str) -> None:
    build = ["build", spec, *SETTINGS, "--no-check"]
    os.utime(spec, (10**9, 10**9))
    assert fcgen(*build).exit_code == 0
    edited = Path("out/scaled.machine.fc")
    edited.write_text(edited.read_text().replace("\n", "\n# mine\n", 1))
    mine, before = edited.read_text(), Path("out/scaled.cu").read_text()
    Path("scaled.py").write_text(SPEC.replace("x * scale", "x - scale"))
    os.utime(spec, (10**9, 10**9 + 0.5))  # as long as before, in the same second: Python's cache of what it compiled holds good for it
    said = fcgen(*build).output
    assert edited.read_text() == mine and "scaled.machine.fc is not as fcgen wrote it, and stays" in said
    assert "sub" in Path("out/scaled.machine.new.fc").read_text() and Path("out/scaled.cu").read_text() != before
    assert sorted(p.name for p in Path("out").iterdir()) == sorted(f"scaled.{s}" for s in (
        "cu", "ptx", "tile.fc", "machine.fc", "machine.new.fc"))
    assert fcgen(*build).exit_code == 0 and len(list(Path("out").iterdir())) == 5, "the one beside is fcgen's own"
    Path("out/scaled.machine.new.fc").write_text("mine too")
    fcgen(*build)
    assert Path("out/scaled.machine.new.fc").read_text() == "mine too" and Path("out/scaled.machine.new.new.fc").exists()


def test_what_was_written_is_read_again(spec: str) -> None:
    fcgen("build", spec, *SETTINGS, "--no-check")
    assert fcgen("build", "out/scaled.machine.fc", "--no-check", "--out", "again").exit_code == 0
    assert Path("again/scaled.cu").read_text() == Path("out/scaled.cu").read_text()


@pytest.mark.parametrize("suffix", [".fc", ".cu", ".ptx", ".svg"])
@pytest.mark.parametrize("edit", [lambda t: "x" + t, lambda t: t + "x", lambda t: t.replace("b", "c", 1), lambda t: "", lambda t: "\n",
                                  lambda t: t.replace("\n", "\r\n"), lambda t: t[:-1]])
def test_an_edit_anywhere_is_seen(suffix: str, edit) -> None:
    for body in ("a\nb\n", "ab", "b\n\n"):
        text = signed(body, suffix)
        assert is_ours(text, suffix) and text.startswith(body) and (not is_ours(edit(text), suffix) or edit(text) == text[:-1])


def test_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "a.fc").write_text("somebody's")
    assert write_files({tmp_path / "a.fc": "ours\n"}) == {tmp_path / "a.new.fc": tmp_path / "a.fc"}
    (tmp_path / "b.fc").mkdir()
    with pytest.raises(FcError, match="not an ordinary file"):
        write_files({tmp_path / "c.fc": "x", tmp_path / "b.fc": "ours\n"})
    assert not (tmp_path / "c.fc").exists()


# ---- files that are none, and texts that are more than text -----------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX")
@pytest.mark.parametrize("command", ["dump", "check", "run", "build"])
@pytest.mark.parametrize("name", ["pipe.fc", "pipe.py", "pipe"])
def test_a_pipe_is_not_waited_for(command: str, name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    result = fcgen(command, str(tmp_path / name))
    assert result.exit_code == 1 and "is a pipe" in result.output


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX")
@pytest.mark.parametrize("what", ["pipe", "/dev/zero", "/", "\\x1b[2J", "gone"])
def test_a_source_that_is_no_file_is_not_opened(what: str, spec: str) -> None:
    os.mkfifo("pipe")
    text = fcgen("dump", spec, *SETTINGS).output
    source = next(line for line in text.splitlines() if line.startswith("source"))
    Path("k.fc").write_text(text.replace(source, f'source "{what}"').replace("fn = mul", "fn = mull", 1))
    code = """from fcgen.cli.commands import main
for command in (["dump", "k.fc", "--stage", "cuda"], ["check", "k.fc"], ["dump", "k.fc"]):
    try:
        main(command)
    except SystemExit as e:
        assert e.code in (0, 1), e.code
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)  # one that waits can be stopped
    assert done.returncode == 0 and "Traceback" not in done.stderr and "\x1b[2J" not in done.stdout + done.stderr


@pytest.mark.parametrize(("text", "shown"), [("a\x1b[31mb", "a\\x1b[31mb"), ("\x9b2J", "\\x9b2J"), ("a\rb", "a\\x0db"), ("\u202eabc", "\\u202eabc"),
                                             ("tab\tline\n", "tab\tline\n"), ("é µ 漢", "é µ 漢"), ("\x00\x7f", "\\x00\\x7f")])
def test_what_a_terminal_obeys_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert shown.strip() in str(FcError("ir/parse", text, got=text, notes=[text], hint=text, expected=text))


def test_a_hostile_ir_file_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "k.fc").write_text('machine kernel \x1b[31mred {\n "\x1b]0;title\x07" \x9b2J\n')
    result = fcgen("check", str(tmp_path / "k.fc"))
    assert result.exit_code == 1 and not {"\x1b", "\x07", "\x9b"} & set(result.output)


@pytest.mark.parametrize("value", [10**5000, (1, [10**5000]), -(10**4301)], ids=["number", "inside", "negative"])
def test_an_error_about_what_has_no_text_is_shown(value) -> None:
    """Python puts no number of more than 4300 digits into words."""
    text = str(FcError("ir/verify", "too much", expected=value, got=value, hint="less"))
    assert text.count("ValueError") == 2 and "less" in text
