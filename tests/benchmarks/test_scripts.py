"""Every script imports, explains itself and does its dry part without a GPU; errors, geomeans, verdicts and merging are right."""

import importlib
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import fcgen as fc
from benchmarks import attention_forward, environment, merge, plot, random_configs, sanitize, timing
from benchmarks.pool import LAZY
from fcgen.build import compiler
from tests.gpu import micro
from tests.sim.cases import sample

ROOT = Path(__file__).parents[2]
MODULES = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if p.stem != "__init__")
SCRIPTS = [m for m in MODULES if "\ndef main(" in (ROOT / "benchmarks" / f"{m}.py").read_text(encoding="utf-8")]
SHELL = sorted((ROOT / "benchmarks").glob("*.sh"))


@pytest.mark.parametrize("name", MODULES)
def test_imports_without_torch(name):
    assert importlib.import_module(f"benchmarks.{name}").__doc__


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main = importlib.import_module(f"benchmarks.{name}").main
        old, sys.argv = sys.argv, [name, "--help"]
        try:
            main()
        finally:
            sys.argv = old
    assert caught.value.code == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize("path", SHELL, ids=lambda p: p.name)
def test_shell_scripts(path):
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0


# ---- timing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("errors", [(None, None), (1e-3, None), (None, 1e-4), (math.nan, 1e-4), (1e-3, math.inf)])
@pytest.mark.parametrize("measure", [timing.round_robin, timing.graph_times, timing.gpu_times])
def test_what_was_not_checked_is_refused(measure, errors):
    run = lambda: pytest.fail("it ran")
    with pytest.raises(ValueError, match="only what was compared"):
        measure([timing.Checked("kernel", run, *errors)], 1)


def test_a_turn_whose_queue_ran_dry_is_taken_again_and_held_for_longer(monkeypatch):
    held, runs = [], []

    class Event:
        def __init__(self, **_):
            self.record = lambda: None
            self.query = lambda: held[-1] < 10 * timing.CYCLES  # the GPU was let go while calls were still being enqueued
            self.elapsed_time = lambda other: 6.0

    cuda = types.SimpleNamespace(Event=Event, synchronize=lambda: None, _sleep=held.append)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(timing, "_preheat", lambda run, ms: None)
    found = timing.gpu_times([timing.Checked("kernel", lambda: runs.append(1), 0.0, 0.0)], launches=3, rounds=2, warm=1)
    assert [x / timing.CYCLES for x in held] == [4.0, 16.0, 16.0] and len(runs) == 1 + 3 * 4
    assert found["kernel"].ms == 2.0 and 0 < found["kernel"].host < 1e3
    monkeypatch.setattr(Event, "__init__", lambda self, **_: self.__dict__.update(record=lambda: None, query=lambda: True))
    with pytest.raises(RuntimeError, match="3 calls are not enqueued in 256"):
        timing.gpu_times([timing.Checked("kernel", lambda: None, 0.0, 0.0)], launches=3)


def test_summary_and_geomean():
    assert timing.summary([3.0, 1.0, 2.0]) == timing.Time(2.0, 1.0)
    assert timing.geomean([2.0, 8.0]) == pytest.approx(4.0)
    assert timing.geomean(iter([0.5])) == 0.5


# ---- forward ---------------------------------------------------------------------------------------------------------


def result(ms, error=1e-4):
    return {"ms": ms, "tflops": 100 / ms, "speed": 2.0 / ms, "max_error": error, "rms_error": error / 10, "error_ratio": error / 1e-4}


TABLE = [{"d": d, "s": s, "mask": m, "results": {"mma": result(ms), "wmma": result(4.0, 1.6e-4), "fa2": result(2.0)}}
         for d, s, m, ms in [(128, 4096, "none", 4.0), (64, 4096, "causal_top_left", 1.0), (64, 1024, "none", 1.0), (64, 4096, "none", 4.0)]]


def test_geomeans_and_problems():
    means = attention_forward.geomeans(TABLE)
    assert means == pytest.approx({"mma": 1.0, "wmma": 0.5, "fa2": 1.0})
    found = attention_forward.problems(TABLE, means, strict=True)
    assert len(found) == 4 and all("wmma: error 1.60" in p for p in found)
    assert "mma: 0.800 of FA2's speed" in attention_forward.problems([], {"mma": 0.8}, strict=True)[0]
    assert attention_forward.problems([], {"mma": 0.8}, strict=False) == []


def test_flops():
    assert attention_forward.flops(1, 1, 1024, 64, False) == 4 * 1024**2 * 64 == 2 * attention_forward.flops(1, 1, 1024, 64, True)


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90"])
def test_jobs(arch):
    named = attention_forward.jobs("f16", arch, sweep=False)
    assert set(named) == {"mma", "wmma"}
    for kernels in named.values():
        assert [(j.d, j.mask) for j in kernels] == [(d, m) for d in (64, 128) for m in attention_forward.MASKS]
    assert {j.lazy for j in named["wmma"]} == {LAZY} and {j.lazy for j in named["mma"]} == {0.0}
    assert sum(map(len, attention_forward.jobs("f16", arch, sweep=True).values())) == 2 * sum(map(len, attention_forward.SWEEP.values()))


def test_plot_series():
    panels = plot.series(plot.table_of({"parts": {"forward": {"table": TABLE}}}))
    assert list(panels) == [(64, "none"), (128, "none"), (64, "causal_top_left")]
    assert panels[64, "none"]["mma"] == [(1024, 100.0), (4096, 25.0)]


def test_plot_draws(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "r.json").write_text(json.dumps({"environment": {"gpu": {"name": "GPU"}}, "table": TABLE}))
    plot.main([str(tmp_path / "r.json"), str(tmp_path / "p.svg")])
    assert "FlashAttention-2" in (tmp_path / "p.svg").read_text()


# ---- random configurations -------------------------------------------------------------------------------------------


def test_configs_are_a_function_of_the_seed_and_cover_the_space():
    heads = random_configs.head_sizes(0, 24)
    drawn = [random_configs.draw(s, heads) for s in range(2000)]
    assert drawn[7] == random_configs.draw(7, heads) and heads == random_configs.head_sizes(0, 24)
    assert {c.causal for c in drawn} == set(random_configs.CAUSAL) and {c.dtype for c in drawn} == {"f16", "bf16"}
    assert {x for c in drawn for x in c.layouts} == {*random_configs.LAYOUTS, *random_configs.ODD}
    assert all(c.h % c.g == 0 and (c.refused or (16 <= c.d <= 256 and 16 <= c.e <= 256)) for c in drawn)
    assert 0 < sum(c.refused for c in drawn) < 200 and any(c.spread > 1e3 for c in drawn)
    drawn = [c for c in drawn if not c.refused]
    assert {c.m for c in drawn} == set(random_configs.LENGTHS) and any(c.n < c.m for c in drawn)
    assert any(c.g < c.h for c in drawn) and any(c.scale is not None and c.scale < 0 for c in drawn)
    assert "broadcast" not in {c.layouts[3] for c in drawn}
    assert len({c.kernel("sm_90") for c in drawn}) <= 24 * 2 * 3 * 2 < len({c.kernel("sm_90a") for c in drawn})


def test_layouts_keep_the_last_axis_and_the_alignment():
    for layout in random_configs.LAYOUTS:
        strides = []

        class View:
            """Shape and strides of a dense array, under the operations that `place` uses."""

            def __init__(self, array):
                self.array = array

            def transpose(self, i, j):
                return View(self.array.swapaxes(i, j))

            def expand(self, *shape):
                return View(np.broadcast_to(self.array, shape))

            def __getitem__(self, key):
                return View(self.array[key])

        view = random_configs.place((2, 3, 5, 40), layout, lambda shape: View(np.zeros(shape, np.float16))).array
        strides = [s // 2 for s in view.strides]
        assert view.shape == (2, 3, 5, 40) and strides[-1] == 1 and all(s % 8 == 0 for s in strides[:-1]), layout


# ---- sanitizer -------------------------------------------------------------------------------------------------------


def test_every_schedule_field_is_sanitized():
    assert sanitize.uncovered() == []


def test_sanitized_kernels_compile(monkeypatch, tmp_path):
    """A few of them, the same from run to run; all with FCGEN_ALL=1."""
    pytest.importorskip("cuda.bindings.nvrtc")
    monkeypatch.setenv("FCGEN_CACHE_DIR", str(tmp_path))
    assert sanitize.main(["--dry-run", "--kernels", *sample(sanitize.KERNELS, "sanitized", 6)]) == 0


@pytest.mark.parametrize("text, want", [
    ("default: result is right\n========= ERROR SUMMARY: 0 errors", "clean"),
    ("default: result is right\n========= ERROR SUMMARY: 3 errors", "3 found"),
    ("default: result is right\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", "clean"),
    ("default: result is right\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", "1 found"),
    ("========= ERROR SUMMARY: 0 errors", "the result is wrong, or the run did not end"), ("Killed", "no summary in the log")])
def test_sanitizer_logs(text, want):
    assert sanitize.log_verdict(text) == want


READ = """\
========= COMPUTE-SANITIZER
hopper: result is right
========= Uninitialized __global__ memory read of size 4 bytes
=========     at attention+0x1a0 in attention.cu:30
=========     by thread (0,0,0) in block (1,0,0)
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: [0x2f0a1f] in libcuda.so.1
=========
========= Uninitialized __global__ memory read of size 4 bytes
=========     at attention+0x1b0 in attention.cu:31
=========
========= ERROR SUMMARY: 2 errors
"""
COPIED = """\
========= COMPUTE-SANITIZER
========= Host API uninitialized memory access: 8 bytes at 0x7f0012 on access by cudaMemcpyAsync source
=========     Saved host backtrace up to driver entry point at error
=========         Host Frame: [0x2f0a1f] in libcuda.so.1
=========         Host Frame: at::native::nonzero_cuda(at::Tensor const&) in libtorch_cuda.so
=========
========= Host API uninitialized memory access: 8 bytes at 0x7f0212 on access by cudaMemcpyAsync source
hopper: result is right
========= ERROR SUMMARY: 2 errors
"""
RACE = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at attention(float *, int)+0x3c0 in attention.cu:77
=========     and Read access at attention(float *, int)+0x520 in attention.cu:91 [128 hazards]
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""


@pytest.mark.parametrize("text, kinds, kernel, line, frames", [
    (READ, {"Uninitialized __global__ memory read of size 4 bytes": 2}, "attention", 30, 0),
    (COPIED, {"Host API uninitialized memory access: 8 bytes at 0x... on access by cudaMemcpyAsync source": 2}, "", 0, 2),
    (RACE, {"Error: Race reported between Write access at attention(float *, int)+0x... in attention.cu:77": 1}, "attention", 77, 0),
    ("========= Invalid __shared__ read of size 2\n=========     at 0x90 in attention.cu:41:attention", None, "attention", 41, 0)])
def test_the_first_error_of_a_log(text, kinds, kernel, line, frames):
    error = sanitize.first_error(text)
    assert (error["kernel"], error["line"], len(error["frames"])) == (kernel, line, frames)
    assert kinds in (None, error["kinds"])


def test_a_clean_log_has_no_first_error():
    assert sanitize.first_error("========= COMPUTE-SANITIZER\nhopper: result is right\n========= ERROR SUMMARY: 0 errors") is None


def test_the_summary_shows_the_generated_line(tmp_path, capsys, monkeypatch):
    """Of kernels compiled with line numbers: the text of the line is next to the tool's words, in the table and in the file."""
    pytest.importorskip("cuda.bindings.nvrtc")
    monkeypatch.setenv("FCGEN_CACHE_DIR", str(tmp_path / "cache"))
    made = sanitize.made_for("hopper", "sm_90").built
    line = next(n for n, text in enumerate(made.cuda_text.splitlines(), 1) if n in made.line_map and "tma_load" in text)
    (tmp_path / "initcheck-hopper.log").write_text(READ.replace("attention.cu:30", f"attention.cu:{line}").replace(
        "at attention+", f"at {made.facts.name}+"))
    path = tmp_path / "out.json"
    assert sanitize.main(["--summary", str(tmp_path), "--tools", "initcheck", "--kernels", "hopper", "--json", str(path)]) == 1
    text = made.cuda_text.splitlines()[line - 1].strip()
    said = capsys.readouterr().out
    assert text in said and "2 x Uninitialized" in said and said.splitlines()[-1] == "dirty"
    error = json.loads(path.read_text())["first_errors"]["initcheck hopper"]
    assert error["text"] == text and error["spec"] and error["kernel"] == made.facts.name
    assert "-lineinfo" not in compiler.NVRTC_OPTIONS


def test_a_missing_log_is_dirty(tmp_path, capsys):
    for name in sanitize.KERNELS:
        (tmp_path / f"memcheck-{name}.log").write_text("x: result is right\n========= ERROR SUMMARY: 0 errors")
    assert sanitize.main(["--summary", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "dirty"


# ---- merging ---------------------------------------------------------------------------------------------------------


def test_merge():
    merged = merge.merge([{"part": "random", "environment": {}, "count": 3, "problems": []}, {"part": "forward", "problems": ["slow"]}],
                         {"gpu": {}}, failed=["tests"])
    assert merged == {"environment": {"gpu": {}}, "failed": ["forward", "tests"],
                      "parts": {"random": {"count": 3, "problems": []}, "forward": {"problems": ["slow"]}}}


def test_merge_writes_one_file(tmp_path, capsys):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "random.json").write_text(json.dumps({"part": "random", "problems": []}))
    assert merge.main([str(tmp_path)]) == 0
    assert merge.main([str(tmp_path), "--failed", "tests"]) == 1
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["failed"] == ["tests"]
    assert merge.file_name({"date": "2026-01-31T10:00:00", "gpu": {"name": "NVIDIA H200"}}) == "2026-01-31-nvidia-h200.json"


def test_facts_know_the_commit(monkeypatch):
    assert {"gpu", "torch", "nvrtc", "cuda_bindings", "date", "commit", "dirty"} <= set(environment.facts())
    monkeypatch.setattr(environment, "_output", lambda *command: None)
    monkeypatch.setenv("FCGEN_COMMIT", "abc")
    assert environment.facts()["commit"] == "abc"


# ---- what the GPU tests will run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_instruction_kernels_compile(arch):
    pytest.importorskip("cuda.bindings.nvrtc")
    assert micro.cubin(arch)


@pytest.mark.parametrize("math", ["mma", "fma"])
def test_every_step_of_the_ladder_is_a_schedule(math, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    ladder = importlib.import_module("ladder").LADDER
    assert len(ladder) == 8 and any(s.math == math for s in ladder.values())
    assert all(fc.Schedule.parse(str(s)) == s for s in ladder.values())
