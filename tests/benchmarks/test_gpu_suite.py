"""The GPU suite's runner: every marked test once, in some process; what fails, hangs or takes its process along is said."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = """
import os, time, pytest
@pytest.mark.gpu
@pytest.mark.parametrize("n", range(5))
def test_good(n): pass
@pytest.mark.gpu
def test_bad(): assert 1 == 2
@pytest.mark.gpu
def test_skipped(): pytest.skip("no")
@pytest.mark.gpu
@pytest.mark.alone
def test_alone(): pass
def test_of_no_gpu(): raise RuntimeError
@pytest.mark.gpu
def test_dies(): os._exit(9)
"""


def test_each_test_runs_once_and_is_counted(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    record = tmp_path / "r.json"
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu_suite", "--processes", "2", "--json", str(record), str(tmp_path)],
                          cwd=ROOT, capture_output=True, text=True, timeout=120)
    said = json.loads(record.read_text())
    assert done.returncode == 1 and (said["failed"], said["skipped"]) == (1, 1), done.stdout + done.stderr
    assert said["passed"] == 6 and [n.rsplit("::")[-1] for n in said["not_run"]] == ["test_dies"]
    assert [n.rsplit("::")[-1] for n in said["failures"]] == ["test_bad"] and "1 == 2" in str(said["failures"])
    assert len(said["broken"]) == 1 and len(said["slowest"]) == said["passed"] + 2
    assert said["environment"]["date"] and said["processes"] == 2 and "test_bad" in said["problems"][0]
