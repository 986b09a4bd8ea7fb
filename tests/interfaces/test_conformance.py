"""benchmarks/conformance: the adapters put fcgen in place of what tests import, and sort what comes of it."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
from benchmarks.conformance import adapters, fleet, verdicts, worker  # noqa: E402
from benchmarks.conformance.__main__ import main  # noqa: E402
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
    for switch in ("BACKWARD", "PAGEDKV", "APPENDKV", "FP8"):
        monkeypatch.setenv(f"FLASH_ATTENTION_DISABLE_{switch}", "FALSE")
    for word in ("_without_cases", "_without_cpu"):  # of modules that torch's own tests need
        monkeypatch.setattr(adapters, word, lambda: None)
    monkeypatch.setattr(adapters, "_half", lambda x: x.dtype == torch.float16)
    monkeypatch.setattr(adapters, "_EAGER", ("test_",))
    (file,) = ADAPTERS[name].files
    path = tmp_path / "checkout" / file
    path.parent.mkdir(parents=True)
    path.write_text(CALLS[name] + TESTS)
    (suite,) = fleet.of_names([name], {ADAPTERS[name].project: tmp_path / "checkout"}, tmp_path, every=8, expression="", until=time.time() + 60)
    suite.logs[0] = fleet.Log(suite.folder / "0.jsonl")
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


#: a process that runs tests by their names
STAND_IN = """
import json, os, sys, time
job = json.loads(sys.argv[1])
log = open(f"{job['folder']}/{job['number']}.jsonl", "a", buffering=1)
say = lambda **line: log.write(json.dumps(line) + "\\n")
tests = ["plain0", "dies", "hangs", "plain1", "plain2", "fails"]
done = [x["test"] for x in map(json.loads, open(job["done"])) if x.get("suite") == "flash_attn" and x["verdict"] == "passed"] if job["done"] else []
if job["number"] == 0: say(collected=7, chosen=[[t, t.rstrip("012")] for t in tests], units=6, alone=0, beside=[["other", "of float8", 1]])
for n, t in enumerate(tests):
    if job["only"] and t not in job["only"]: continue
    try: os.close(os.open(f"{job['folder']}/taken-{n}", os.O_CREAT | os.O_EXCL))
    except FileExistsError: continue
    say(unit=n, tests=[t], alone=False)
    if t in done: continue
    say(begin=t, at=time.time())
    if t == "dies" and not job["only"]: os._exit(7)
    if t == "hangs": time.sleep(600)
    say(test=t, verdict="failed" if t == "fails" else "passed", why=("AssertionError" if job["only"] else "wrong") if t == "fails" else "", seconds=0.0)
"""


def test_processes_share_the_tests_and_late_ones_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fleet, "COMMAND", [sys.executable, "-c", STAND_IN])
    (file,) = ADAPTERS["flash_attn"].files
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).touch()
    monkeypatch.setattr(sys, "argv", ["conformance", "flash_attn", "--flash-attention", str(tmp_path), "--processes", "2", "--limit", "20", "--test-limit", "1",
                                      "--originals", "5", "--json", str(tmp_path / "out.json")])
    assert main() == 1
    said = json.loads((tmp_path / "out.json").read_text())["flash_attn"]
    assert {n: said[n] for n in verdicts.NAMES} == {"passed": 3, "not applicable": 2, "failed": 1, "stopped": 1, "not reached": 0}
    assert "ended with 7" in said["failures"]["dies"] and said["stopped_tests"] == ["hangs"]
    assert said["not_applicable_because"] == {"of float8": 1, "fails with the project's own functions too: wrong": 1}
    assert said["with_its_own_functions"]["fails"] == "failed" and said["with_its_own_functions"]["dies"] == "passed"
    assert "plain" in capsys.readouterr().out


def test_what_an_earlier_run_found_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet, "COMMAND", [sys.executable, "-c", STAND_IN])
    monkeypatch.setattr(fleet, "gpus", lambda: [])
    (tmp_path / "hopper").mkdir()
    (tmp_path / ADAPTERS["flash_attn"].files[0]).touch()
    kept, out = tmp_path / "kept.jsonl", tmp_path / "out.json"
    kept.write_text("".join(json.dumps(line) + "\n" for line in (
        {"ran": {"environment": {"date": "before"}, "seconds": 9}}, {"suite": "sdpa", "test": "dies", "verdict": "passed", "why": "", "run": "before"},
        *({"suite": "flash_attn", "test": t, "verdict": v, "why": "", "run": "before"} for t, v in (("hangs", "passed"), ("dies", "passed"), ("fails", "failed"))))))
    monkeypatch.setattr(sys, "argv", ["conformance", "flash_attn", "--flash-attention", str(tmp_path), "--processes", "1", "--limit", "20", "--done", str(kept),
                                      "--keep", str(kept), "--json", str(out)])
    assert main() == 1  # what failed was run again
    said = json.loads(out.read_text())
    assert said["flash_attn"]["passed"] == 5 and {r["seconds"]: r["tests"] for r in said["runs"]}.get(9) == 2
    lines = verdicts.kept(str(kept))
    assert sum("ran" in line for line in lines) == 2 and sum(line.get("suite") == "sdpa" for line in lines) == 1
    assert set(verdicts.settled(str(kept), "flash_attn")) == {"plain0", "plain1", "plain2", "dies", "hangs"}


def test_what_earlier_runs_found_is_told_without_running_anything(tmp_path, monkeypatch):
    path = tmp_path / ADAPTERS["varlen"].files[0]
    path.parent.mkdir()
    path.write_text("import pytest\n@pytest.mark.parametrize('n', range(5))\ndef test_told(n): raise SystemExit(9)\n")
    monkeypatch.setattr(fleet, "gpus", lambda: [])
    kept, out, name = tmp_path / "kept.jsonl", tmp_path / "out.json", "test/test_varlen_attention.py::test_told[%d]"
    ran = {"environment": {"date": "before", "gpu": {"name": "a GPU"}}, "seconds": 9, "processes": 3, "gpus": 2, "limit": 9, "test_limit": 9}
    why = ("", "AssertionError", "[compile/unsupported] x", "import of cupy halted; None in sys.modules")
    kept.write_text("".join(json.dumps(line) + "\n" for line in ({"ran": ran}, *(
        {"suite": "varlen", "test": name % n, "verdict": v, "why": why[n], "run": "before"} for n, v in enumerate(("passed", "failed", "failed", "not applicable"))))))
    monkeypatch.setattr(sys, "argv", ["conformance", "varlen", "--pytorch", str(tmp_path), "--processes", "0", "--limit", "60", "--done", str(kept),
                                      "--mended", name % 2, "--json", str(out)])
    assert main() == 1
    said = json.loads(out.read_text())
    assert {n: said["varlen"][n] for n in verdicts.NAMES} == {"passed": 1, "not applicable": 0, "failed": 1, "stopped": 0, "not reached": 3}
    assert list(said["varlen"]["failures"]) == [name % 1] and len(said["varlen"]["not_reached_because"]) == 3
    assert all(any(word in why for why in said["varlen"]["not_reached_because"]) for word in ("is mended", "this harness", "the limit"))
    assert said["environment"]["date"] == "before" and said["gpus"] == 2 and said["gathered"]["date"] != "before"


def test_a_test_that_ends_its_process_leaves_the_rest_of_its_unit_to_another(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet, "COMMAND", [sys.executable, "-c", """
import json, os, sys
job = json.loads(sys.argv[1])
log = open(f"{job['folder']}/{job['number']}.jsonl", "a", buffering=1)
say = lambda **line: log.write(json.dumps(line) + "\\n")
if job["number"] == 0: say(collected=3, chosen=[[t, t] for t in "abc"], units=1, alone=0, beside=[])
if job["number"] == 0: say(unit=0, tests=["a", "b", "c"], alone=False)
for t in job["also"] or "ab":
    say(begin=t, at=0.0)
    if t == "b": os._exit(1)
    say(test=t, verdict="passed", why="", seconds=0.0)
"""])
    (tmp_path / ADAPTERS["flash_attn"].files[0]).parent.mkdir()
    (tmp_path / ADAPTERS["flash_attn"].files[0]).touch()
    (suite,) = fleet.of_names(["flash_attn"], {"flash_attention": tmp_path}, tmp_path / "w", until=0.0)
    fleet.run([suite], 1, 1e12, time.time() + 20)
    assert {t: v for t, (v, *_) in suite.result()["found"].items()} == {"a": "passed", "b": "failed", "c": "passed"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_processes_are_forked_where_tests_were_collected(tmp_path):
    suite = forked(tmp_path)
    result = suite.result()
    assert len(result["found"]) == 40 and result["forked"] and not (tmp_path / "w/varlen/0.jsonl").read_text().count("chosen")
    assert {why for _, why, _ in result["found"].values()} == {"skips itself: GPU 0", "skips itself: GPU 1"}


def test_where_forked_processes_have_no_gpu_each_process_begins_by_itself(tmp_path, monkeypatch):
    serving = """
import json, sys
job = json.loads(sys.argv[1])
if "serve" in job:
    log = open(f"{job['folder']}/server.jsonl", "a", buffering=1)
    log.write(json.dumps(dict(collected=7, chosen=[["plain0", "plain"]], units=6, alone=0, beside=[])) + "\\n")
    for line in sys.stdin:
        log.write(json.dumps(dict(ended=json.loads(line)["number"], code=1)) + "\\n")
    sys.exit(0)
"""
    monkeypatch.setattr(fleet, "COMMAND", [sys.executable, "-c", serving + STAND_IN.replace('if job["number"] == 0: ', "")])
    (tmp_path / ADAPTERS["flash_attn"].files[0]).parent.mkdir()
    (tmp_path / ADAPTERS["flash_attn"].files[0]).touch()
    (suite,) = fleet.of_names(["flash_attn"], {"flash_attention": tmp_path}, tmp_path / "w", until=0.0, done=None, serve={})
    fleet.run([suite], 2, 1.0, time.time() + 20)
    result = suite.result()
    assert not result["forked"] and [verdict for verdict, *_ in result["found"].values()].count("passed") == 3


def forked(folder):
    path = folder / ADAPTERS["varlen"].files[0]
    path.parent.mkdir()
    path.write_text("import os, pytest, torch\nassert torch.cuda.get_device_capability() == (9, 0) and torch.ones(2, device='cuda').sum() == 2\n"
                    "at = os.getpid()\n@pytest.mark.parametrize('n', range(40))\n"
                    "def test_forked(n):\n    assert os.getpid() != at\n    pytest.skip('GPU ' + os.environ['CUDA_VISIBLE_DEVICES'])\n")
    facts = {"name": "a GPU", "capability": [9, 0], "memory": 1 << 30}
    (suite,) = fleet.of_names(["varlen"], {"pytorch": folder}, folder / "w", every=1, expression="", until=time.time() + 60, done=None, dry=True, serve=facts)
    fleet.run([suite], 2, 60.0, time.time() + 60, 2)
    return suite


def test_the_limit_of_all_tests_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet, "COMMAND", [sys.executable, "-c", "import time; time.sleep(600)"])
    (tmp_path / ADAPTERS["flash_attn"].files[0]).parent.mkdir()
    (tmp_path / ADAPTERS["flash_attn"].files[0]).touch()
    (suite,) = fleet.of_names(["flash_attn"], {"flash_attention": tmp_path}, tmp_path / "w", until=0.0)
    begin = time.time()
    fleet.run([suite], 2, 60.0, begin + 0.5)
    assert time.time() - begin < 3 and "nothing was collected" in suite.result()["problem"]


def test_a_limit_of_all_tests_leaves_a_sample_of_each_function():
    tests = [(f"test_{f}[{n}]", f"test_{f}") for f in "ab" for n in range(100 if f == "a" else 20)]
    whole = lambda units: [t for unit in units for t in unit]
    ordered = whole(worker.order(tests, 1))
    assert sorted(ordered) == sorted(tests)
    half = [f for _, f in ordered[:60]]
    assert half.count("test_a") == 50 and half.count("test_b") == 10
    assert [f for _, f in whole(worker.order(tests, 10))].count("test_b") == worker.LEAST


def test_tests_that_need_the_same_kernels_are_units_and_groups_take_turns():
    tests = [(f"test_a[{d}-{n}]", "test_a") for d in (64, 128) for n in range(10)]
    alike = lambda name: name.split("-")[0]
    units = worker.order(tests, 1, alike)
    assert [len(unit) for unit in units] == [4, 4, 4, 4, 2, 2] and all(len({alike(t) for t, _ in unit}) == 1 for unit in units)
    assert {alike(units[0][0][0]), alike(units[1][0][0])} == {"test_a[64", "test_a[128"}
    assert sorted(len(unit) for unit in worker.order(tests, 5, alike)) == [2, 2]  # of each group as many


def test_tests_that_want_a_gpu_of_their_own_are_a_sample_and_each_gpu_has_one_process_for_them(tmp_path):
    tests = [(f"test_{f}[{n}]", f"test_{f}") for f in "ab" for n in range(80)]
    chosen = [f for unit in worker.order(tests, 1, alone=("test_b",)) for _, f in unit]
    assert chosen.count("test_a") == 80 and chosen.count("test_b") == 80 // worker.DEAR
    suite = fleet.Suite("flash_attn", {"only": []}, tmp_path / "w")
    suite.head = {"units": 2, "alone": 2}
    suite.running = {0: (0, True), 1: (1, False)}
    assert not suite.wants(0) and suite.wants(1)


@pytest.mark.parametrize("name,first,second", [
    ("sdpa", "t_batch_size_1_seq_len_q_4_seq_len_k_8_head_dim_8_is_causal_True_scale0", "t_batch_size_8_seq_len_q_312_seq_len_k_4_head_dim_8_is_causal_True_scale_l1"),
    ("flex", "t_batch:2_head:4_seq_len:37_headdim:16_mode_default_cuda", "t_batch:2_head:4_seq_len:277_headdim:16_mode_max-autotune_cuda"),
    ("flash_attn", "t[512-256-64-False-mha-dtype1]", "t[1-239-64-False-mha-dtype1]"), ("varlen", "t_window_size1_num_perms_1", "t_window_size1_num_perms_5")])
def test_lengths_do_not_tell_groups_apart_and_head_sizes_do(name, first, second):
    alike = ADAPTERS[name].alike
    assert alike(first) == alike(second)
    assert len({alike(x.replace(n, "96")) for x in (first, second) for n in ("dim_8_", "headdim:16", "-64-", "size1")}) > 1


def test_a_kernel_that_cannot_be_made_is_no_refusal():
    assert verdicts.refusal("FcError: [call/argument] there are no pages of 16 keys") == "there are no pages of n keys"
    assert verdicts.refusal("FcError: [compile/budget] the fragments do not fit") is None


def test_a_folder_without_the_tests_is_told(tmp_path):
    with pytest.raises(SystemExit, match="--pytorch"):
        fleet.of_names(["sdpa"], {"pytorch": tmp_path}, tmp_path, every=1, expression="", until=0)


@pytest.mark.parametrize("words", [["--every", "0"], ["--processes", "-1"], ["--limit", "nan"], ["--test-limit", "-1"], ["--originals", "inf"]])
def test_numbers_that_count_nothing_are_refused(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["conformance", "sdpa", *words])
    with pytest.raises(SystemExit):
        main()
    assert f"argument {words[0]}: " in capsys.readouterr().err
