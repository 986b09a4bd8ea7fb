"""benchmarks/conformance: the adapters put fcgen in place of what tests import, and sort what comes of it."""

from __future__ import annotations

import sys

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
from benchmarks.conformance.__main__ import run  # noqa: E402
from benchmarks.conformance.adapters import ADAPTERS  # noqa: E402

CALLS = {
    "sdpa": "import torch\nfrom torch.nn.functional import scaled_dot_product_attention as call\nq = torch.ones(1, 2, 9, 16).half()\n"
            "good = lambda: call(q, q, q)\nrefused = lambda: call(q, q, q[..., :8, :])\nother = lambda: call(q.float(), q.float(), q.float())\n",
    "flex": "import torch\nfrom torch.nn.attention.flex_attention import flex_attention as call\nq = torch.ones(1, 2, 9, 16).half()\n"
            "good = lambda: call(q, q, q)\nrefused = lambda: call(q, q, q, kernel_options={'BLOCK_M': 1})\nother = lambda: call(q.float(), q.float(), q.float())\n",
    "varlen": "import torch\nfrom torch.nn.attention.varlen import varlen_attn as call\nq, at = torch.ones(9, 2, 16).half(), torch.tensor([0, 4, 9], dtype=torch.int32)\n"
              "good = lambda: call(q, q, q, at, at, 5, 5, window_size=(-1, 0))\nrefused = lambda: call(q, q, q, at, at, 5, 5, block_table=at)\nother = lambda: None\n",
    "flash_attn": "import torch\nfrom flash_attn_interface import flash_attn_func as call, flash_attn_with_kvcache\nq = torch.ones(1, 9, 2, 16).half().requires_grad_()\n"
                  "good = lambda: call(q, q, q)\nrefused = lambda: flash_attn_with_kvcache(q, q, q)\nother = lambda: None\n"}
TESTS = """
import pytest
def test_good(): good()
def test_wrong(): good(); assert 1 == 2
def test_refused(): refused()
def test_other(): other()
def test_skipped(): pytest.skip("no time")
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ADAPTERS)
def test_outcomes_are_sorted(kernels, name, tmp_path, monkeypatch, capsys):
    if name == "varlen":
        pytest.importorskip("torch.nn.attention.varlen", reason="needs a torch with varlen_attn")
    from torch.nn.attention import flex_attention, varlen

    from benchmarks.conformance import adapters

    for owner, word in ((torch.nn.functional, "scaled_dot_product_attention"), (flex_attention, "flex_attention"), (varlen, "varlen_attn")):
        monkeypatch.setattr(owner, word, getattr(owner, word))  # put back afterwards
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    monkeypatch.setenv("FLASH_ATTENTION_DISABLE_BACKWARD", "FALSE")
    monkeypatch.setattr(adapters, "_half", lambda x: x.dtype == torch.float16)
    (file,) = ADAPTERS[name].files
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(CALLS[name] + TESTS)
    verdicts = run(name, tmp_path)
    found = {test.split("::")[-1]: x for test, x in verdicts.found.items()}
    assert {test: verdict for test, (verdict, _) in found.items()} == {
        "test_good": "passed", "test_wrong": "failed", "test_refused": "not applicable", "test_other": "not applicable", "test_skipped": "not applicable"}
    assert "refused: " in found["test_refused"][1] and "no kernel" in found["test_other"][1] and "no time" in found["test_skipped"][1]
    table = verdicts.table()
    assert "all" in table and "failed (1):" in table


def test_a_folder_without_the_tests_is_told(tmp_path):
    with pytest.raises(SystemExit, match="--checkout"):
        run("sdpa", tmp_path)
