"""The schedule sweep: its candidates are schedules, what it refuses is named, and a dry run goes through all of its steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fcgen as fc
from benchmarks import sweep

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("family", ["mma", "wmma"])
def test_candidates_differ_and_parse(family):
    found = sweep.candidates(family)
    assert len(set(found)) == len(found) > 50
    assert all(fc.Schedule.parse(str(s)) == s and s.math == family for s, _ in found)


@pytest.mark.parametrize("lazy", [0.0, sweep.LAZY])
def test_variations_change_one_thing_at_a_time(lazy):
    base = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, skip_ones=lazy > 0)
    found = sweep.variations(base, lazy)
    assert len(set(found)) == len(found) and (base, lazy) not in found


def test_what_does_not_fit_is_reported_and_left_out(capsys):
    s = sweep.Sweep("mma", "sm_89", sweep.Machine(dry=True))
    too_big = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 128}, stages=4)
    jobs = s.jobs((128, "none"), [(too_big, 0.0), (fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, stages=1, hold_a=False), 0.0)])
    assert s.compile(jobs) == jobs[1:]
    assert "compile/budget" in s.compiled[0]["error"] and s.compiled[1]["error"] is None
    assert "1 refused" in capsys.readouterr().out


def script(*arguments):
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_dry_run(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "sweep.json"
    done = script("benchmarks.sweep", "--dry-run", "--heads", "64", "--causal", "yes", "--limit", "1", "--json", str(path))
    assert done.returncode == 0, done.stderr
    saved = json.loads(path.read_text())
    assert saved["best"] and saved["timed"] and not saved["wrong"]
    assert {"d", "mask", "geomean", "speed", "schedule", "lazy"} <= set(saved["best"][0])


def test_scripts_run_on_a_pretend_gpu(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "random.json"
    done = script("benchmarks.dry", "benchmarks.random_configs", "--count", "3", "--heads", "6", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(path.read_text())["problems"] == []
