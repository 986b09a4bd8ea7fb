"""The commands that use a GPU: the demo on every target it runs, `run`, and doctor, all of whose checks are ok."""

import numpy as np
import pytest
from click.testing import CliRunner

import fcgen as fc
from fcgen.cli.commands import main
from fcgen.runtime import driver

pytestmark = pytest.mark.gpu
pytest.importorskip("torch")


def fcgen(*arguments):
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("named", [False, True], ids=["its own choice", "the common target"])
def test_the_demo_runs_what_it_compiled(named, tmp_path):
    """Left to itself it takes the GPU's own instructions, as `fcgen.attention` does."""
    target = fc.gpu_target() if named else driver.device_info().arch
    text = fcgen("demo", *(["--target", target] if named else []), "--out", str(tmp_path))
    assert f"for {target}" in text and "PyTorch" in text and "TFLOP/s" in text and "no GPU here" not in text


def test_run_takes_a_tensor(tmp_path):
    np.save(tmp_path / "x.npy", np.full((20, 300), 3.0))
    text = fcgen("run", "examples/softmax.py", "--arg", f"X={tmp_path / 'x.npy'}")
    assert "on the GPU" in text and "mean +0.0033" in text


def test_doctor_finds_nothing_missing():
    text = fcgen("doctor")
    assert f"{fc.gpu_target()} on GPU 0" in text and "attention ran, largest error" in text
