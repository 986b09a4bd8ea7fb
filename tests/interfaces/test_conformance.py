"""benchmarks/conformance: the adapters put fcgen in place of what tests import, and sort what comes of it."""

from __future__ import annotations

import sys
import time

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
from benchmarks.conformance import adapters, fleet, verdicts, worker  # noqa: E402
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
def test_early(): assert 1 == 2
@pytest.mark.parametrize("n", range(40))
def test_many(n): good()
"""


def found_by(suite: fleet.Suite) -> dict[str, list[str]]:
    return {test.split("::")[-1]: x for test, x in suite.result()["found"].items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ADAPTERS)
def test_outcomes_are_sorted(kernels, name, tmp_path, monkeypatch):
    if name == "varlen":
        pytest.importorskip("torch.nn.attention.varlen", reason="needs a torch with varlen_attn")
    from torch.nn.attention import flex_attention, varlen

    for owner, word in ((torch.nn.functional, "scaled_dot_product_attention"), (flex_attention, "flex_attention"), (varlen, "varlen_attn"),
                        (torch, "_fill_mem_eff_dropout_mask_")):
        monkeypatch.setattr(owner, word, getattr(owner, word))  # put back afterwards
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    for switch in ("BACKWARD", "PAGEDKV", "APPENDKV"):
        monkeypatch.setenv(f"FLASH_ATTENTION_DISABLE_{switch}", "FALSE")
    monkeypatch.setattr(adapters, "_half", lambda x: x.dtype == torch.float16)
    monkeypatch.setattr(adapters, "_EAGER", ("test_",))
    (file,) = ADAPTERS[name].files
    path = tmp_path / "checkout" / file
    path.parent.mkdir(parents=True)
    path.write_text(CALLS[name] + TESTS)
    (suite,) = fleet.of_names([name], {ADAPTERS[name].project: tmp_path / "checkout"}, tmp_path, every=8, expression="", until=time.time() + 60)
    suite.begun = 1
    worker.run({**suite.job, "number": 0})
    found = found_by(suite)
    assert {test: verdict for test, (verdict, *_) in found.items() if "many" not in test} == {
        "test_good": "passed", "test_wrong": "failed", "test_refused": "not applicable", "test_other": "not applicable",
        "test_skipped": "not applicable", "test_early": "not applicable"}
    assert [found[test][0] for test in found if "many" in test] == ["passed"] * 5  # each eighth of forty
    assert "refused: " in found["test_refused"][1] and "no kernel" in found["test_other"][1] and "no time" in found["test_skipped"][1]
    assert "before it calls fcgen: AssertionError" in found["test_early"][1] and found["test_many[3]" if "test_many[3]" in found else "test_good"][2]
    result = suite.result()
    table = verdicts.table(result["found"], result["beside"])
    assert "all" in table and "failed (1):" in table and result["collected"] == 46


def test_processes_share_the_tests_and_late_ones_are_told(tmp_path):
    (file,) = ADAPTERS["flash_attn"].files
    path = tmp_path / "checkout" / file
    path.parent.mkdir(parents=True)
    path.write_text("import os, time, pytest\n@pytest.mark.parametrize('n', range(6))\ndef test_plain(n): pass\n"
                    "def test_hangs(): time.sleep(600)\ndef test_dies(): os._exit(7)\n")
    (suite,) = fleet.of_names(["flash_attn"], {"flash_attention": tmp_path / "checkout"}, tmp_path, every=1, expression="", until=time.time() + 90)
    fleet.run([suite], 2, 2.0, time.time() + 90)
    found = found_by(suite)
    assert len(found) == 8 and suite.begun >= 3
    assert found["test_hangs"][:2] == ["stopped", "took more than 2 s"]
    assert found["test_dies"][0] == "failed" and "ended with 7" in found["test_dies"][1]
    assert all(x[0] == "not applicable" for test, x in found.items() if "plain" in test)


def test_a_limit_of_all_tests_leaves_a_sample_of_each_function():
    tests = [(f"test_{f}[{n}]", f"test_{f}") for f in "ab" for n in range(100 if f == "a" else 20)]
    ordered = worker.order(tests, 1)
    assert sorted(ordered) == sorted(tests)
    half = [f for _, f in ordered[:60]]
    assert half.count("test_a") == 50 and half.count("test_b") == 10
    assert [f for _, f in worker.order(tests, 10)].count("test_b") == worker.LEAST


def test_a_folder_without_the_tests_is_told(tmp_path):
    with pytest.raises(SystemExit, match="--pytorch"):
        fleet.of_names(["sdpa"], {"pytorch": tmp_path}, tmp_path, every=1, expression="", until=0)
