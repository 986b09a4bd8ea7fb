"""GPU tests do not rot where there is no GPU: they run on a pretend one, up to their first number (`tests/pretend_gpu.py`)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def on_a_pretend_gpu(*paths):
    command = [sys.executable, "-m", "pytest", "-p", "tests.pretend_gpu", "-p", "no:cacheprovider", "-p", "no:randomly", "-q", *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout


@pytest.mark.long
def test_every_gpu_test_reaches_its_first_number():
    status, said = on_a_pretend_gpu("tests/gpu")
    assert status == 0, said
    reached, ran = map(int, re.search(r"(\d+) of (\d+) reached a launch", said).groups())
    assert ran > 50 and reached > 0.55 * ran, said


ROTTEN = {
    "a name that is gone": ("from benchmarks.random_configs import gone", "ImportError"),
    "an attribute that is a method now": ("from benchmarks.random_configs import draw\ndef test_it():\n    draw(0, [(64, 64)]).kernel[3]",
                                          "not subscriptable"),
    "an argument that is gone": ("from fcgen.attend.forward import attention\ndef test_it():\n    attention(1, 2, 3, maks=4)", "unexpected keyword"),
    "an error with other words": ("import torch, pytest\nfrom fcgen import attention, FcError\ndef test_it():\n    x = torch.ones(1, 2, 64, 64)\n"
                                  "    with pytest.raises(FcError, match='it used to say this'):\n        attention(x, x, x)", "it used to say"),
    "a check before the launch": ("import fcgen\ndef test_it():\n    assert fcgen.gpu_target() == 'sm_70'", "sm_70"),
}


@pytest.fixture(scope="module")
def rotten(tmp_path_factory):
    """What is said of each, out of one run."""
    folder = tmp_path_factory.mktemp("rotten")
    for n, (text, _) in enumerate(ROTTEN.values()):
        (folder / f"test_rotten_{n}.py").write_text(text + "\n" * 2 + "def test_other():\n    assert True\n")
    return on_a_pretend_gpu(folder, "--continue-on-collection-errors")


@pytest.mark.parametrize("kind", ROTTEN)
def test_rot_is_found(kind, rotten):
    status, said = rotten
    number = list(ROTTEN).index(kind)
    assert status == 1 and re.search(rf"^(FAILED|ERROR) \S*test_rotten_{number}\.py", said, re.M) and ROTTEN[kind][1] in said, said


def test_numbers_after_a_launch_may_be_anything(tmp_path):
    (tmp_path / "test_numbers.py").write_text(
        "import torch, fcgen\ndef test_it():\n    x = torch.ones(1, 2, 64, 64, device='cuda', dtype=torch.float16)\n"
        "    assert bool((fcgen.attention(x, x, x) == 3).all())\n")
    status, said = on_a_pretend_gpu(tmp_path)
    assert status == 0 and "1 of 1 reached a launch" in said, said
