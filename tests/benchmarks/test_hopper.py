"""The Hopper comparison: which cells are meant, what passes as right, what is said about the rates, and every script in a dry run."""

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import fcgen as fc
from benchmarks import accuracy, cells, hopper_forward, peers, pool, roofline, search_schedules, timing
from benchmarks.cells import Cell, Errors

ROOT = Path(__file__).parents[2]
LIBRARY = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64})


# ---- cells -------------------------------------------------------------------------------------------------------------


def test_all_cells():
    found = cells.all_cells()
    assert len(found) == len(set(found)) == 36
    assert {(c.batch * c.s, c.heads * c.d) for c in found} == {(16384, 2048)}
    assert Cell(64, 512, False).flops == 4 * 32 * 32 * 512**2 * 64 == 2 * Cell(64, 512, True).flops


@pytest.mark.parametrize("text, count", [(None, 36), ("D64", 12), ("causal", 18), ("D128:full:S16k", 1), ("S512,S1024", 12), ("D64,D64:S1k", 12),
                                         ("D96:S3000:causal", 1)])
def test_choose(text, count):
    assert len(cells.choose(text)) == count


@pytest.mark.parametrize("text", ["D64:upside", "64", "Dx", "", "D64,,S1k"][:3])
def test_no_such_cell(text):
    with pytest.raises(ValueError, match="no such cell"):
        cells.choose(text)


def test_names():
    assert str(Cell(64, 16384, True)) == "D64:S16k:causal" and cells.choose("D64:S16k:causal") == [Cell(64, 16384, True)]
    assert [cells.number(x) for x in ("512", "1k", "16K")] == [512, 1024, 16384]


def test_verdicts():
    assert Errors(1e-3, 3e-4, 1e-3).problem("fp16") is None
    assert "rms" in Errors(1e-3, 3e-3, 1e-3).problem("fp16") and Errors(1e-3, 3e-3, 1e-3).problem("bf16") is None
    assert "row" in Errors(1e-3, 3e-4, 0.5).problem("fp16")
    assert cells.BAD.problem("bf16") and Errors(math.nan, math.nan, math.nan).problem("fp16") and Errors(0.0, 0.0, math.nan).problem("fp16")


@pytest.mark.parametrize("causal", [False, True])
def test_reference_and_what_it_notices(causal, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(cells, "ROWS", 7)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 24, 3, 16) for _ in range(3))
    x = cells.Inputs(q, k, v, causal)
    reference = cells.Reference(x)
    whole = torch.nn.functional.scaled_dot_product_attention(*(t.double() for t in x.bhsd), is_causal=causal).transpose(1, 2)
    assert reference.errors(whole).rms < 1e-12 and sorted(reference.want) == [(0, 0), (1, 1), (1, 2)]
    missing = whole.clone()
    missing[0, 3, 1, 5] = math.nan  # in no sampled slice
    assert reference.errors(missing) == cells.BAD
    row = whole.clone()
    row[1, 20, 2] = row[1, 19, 2]
    assert "error" in reference.errors(row).problem("bf16")


# ---- order and rates ---------------------------------------------------------------------------------------------------


def test_everyone_runs_behind_everyone_else():
    ways = [timing.Checked(n, lambda: None, 0.0, 0.0) for n in "abcd"]
    orders = ["".join(c.name for c in timing.turned(ways, n)) for n in range(16)]
    assert all(sorted(o) == list("abcd") for o in orders) and all(a == b[::-1] for a, b in zip(orders[::2], orders[1::2]))
    assert {pair for o in orders for pair in pairwise(o)} == {(a, b) for a in "abcd" for b in "abcd" if a != b}


def row(d, s, mask, **rates):
    out = {"d": d, "s": s, "mask": mask, "board": {}, "results": {n: {"tflops": t, "ms": 1 / t, "spread": 0.01} for n, t in rates.items()}}
    return {**out, "ratio": hopper_forward.ratio(out["results"])}


TABLE = [row(64, 512, "none", fcgen=400.0, fa3=320.0, cudnn=200.0), row(64, 512, "causal_top_left", fcgen=100.0, fa3=100.0, cudnn=200.0),
         row(128, 4096, "none", fcgen=600.0, flash=300.0), row(128, 512, "none", fa3=500.0, cudnn=400.0)]


def test_ratio_is_to_the_faster_peer():
    assert [r["ratio"] for r in TABLE] == [1.25, 0.5, None, None]


def test_summary(capsys):
    found = hopper_forward.summary_of(TABLE)
    assert found["cells"] == 2 and found["geomean"] == pytest.approx(math.sqrt(1.25 * 0.5))
    assert found["worst"] == {"d": 64, "s": 512, "mask": "causal_top_left", "ratio": 0.5} and list(found["by_d"]) == [64]
    assert hopper_forward.summary_of(TABLE[2:]) == {}
    race = hopper_forward.Race("fp16", {}, {"flex": "no"}, table=TABLE, left_out=["D64:S16k:full"])
    hopper_forward.print_summary(race)
    said = capsys.readouterr().out
    assert "without flex: no" in said and "worst cell: D=64" in said and "no time for: D64:S16k:full" in said
    assert "400" in hopper_forward.text_of(TABLE[0], ["fcgen", "flex"]) and "-" in hopper_forward.text_of(TABLE[2], ["fa3"])


def test_launches_fill_a_turn():
    counts = {str(c): hopper_forward.launches(c) for c in cells.all_cells()}
    assert min(counts.values()) == 2 and max(counts.values()) == 60


def test_absent_peers_say_why(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    here, absent = peers.load(["cudnn", "fa3", "triton"], str(tmp_path))
    assert list(here) == ["cudnn"] and "get_fa3.sh" in absent["fa3"] and "tutorial" in absent["triton"]
    with pytest.raises(ValueError, match="no such peer: fa9"):
        peers.load(["fa9"])


def test_accuracy_ratios():
    assert accuracy.over(Errors(2.0, 3.0), Errors(1.0, 2.0)) == {"rms": 1.5, "max": 2.0}
    assert accuracy.over(Errors(0.0, 0.0), Errors(0.0, 0.0)) == {"rms": 1.0, "max": 1.0}


def test_roofline_points():
    found = roofline.points(TABLE[:1])
    assert found[TABLE[0]["mask"], "fcgen", 64] == [(256.0, 400.0)]


def test_the_largest_spread_is_told_with_its_cell():
    rows = [{"d": 64, "s": 512 << n, "mask": "none", "results": {"fcgen": {"spread": x}}} for n, x in enumerate((0.01, 0.05, 0.02))]
    assert hopper_forward.spread_of(rows) == {"median": 0.02, "largest": 0.05, "at": "D64:S1k:full"}
    assert hopper_forward.spread_of([]) == {}


def test_a_peer_that_fails_in_any_way_is_left_out_with_its_reason(monkeypatch):
    def broken():
        raise ValueError("no such layout\nand more")

    monkeypatch.setattr(peers, "cudnn", broken)
    assert peers.load(["cudnn"]) == ({}, {"cudnn": "ValueError: no such layout"})


# ---- the search --------------------------------------------------------------------------------------------------------


def test_built_in_candidates_parse():
    found = search_schedules.built_in(LIBRARY)
    assert found[0] == str(LIBRARY) and len(set(found)) == len(found) > 50
    assert all(str(fc.Schedule.parse(t)) == t for t in found)
    switches = {f for t in found for f in ("hold_a=False", "ahead=True", "skip_ones=True", "epilogue=direct") if f in t}
    assert len(switches) == 4


def test_hopper_candidates_parse():
    found = search_schedules.built_in(search_schedules.shipped("sm_90a", 128, "none"), "sm_90a")
    assert all(str(fc.Schedule.parse(t)) == t for t in found) and sum("math=wgmma" in t and "copy=tma" in t for t in found) > 50
    assert {"late=acc", "vote=True", "tokens=True", "persistent=dynamic", "l2=32"} <= {w for t in found for w in t.split(", ")}


def test_candidates_of_a_file(tmp_path):
    path = tmp_path / "c.txt"
    path.write_text(f"# first\n{LIBRARY}  # the library's\n\n{LIBRARY}\nstages=3\n")
    assert search_schedules.from_file(str(path)) == [str(LIBRARY), "stages=3"]


class Fake:
    def __init__(self, spills=False, log=""):
        self.spills, self.spill_stores, self.log = spills, 8, log


@pytest.mark.parametrize("made, why", [
    (pool.Made(error="FcError: no\nmore"), "FcError: no"), (pool.Made(Fake(), Fake(spills=True)), "spills 8"),
    (pool.Made(Fake(log="ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async ..."), Fake()), "C7510"),
    (pool.Made(Fake(log="ptxas info : Used 168 registers"), Fake()), None)])
def test_refusals(made, why):
    found = search_schedules.refusal(made)
    assert found is None if why is None else why in found


def test_unparsable_candidates_and_those_that_hung_are_left_out():
    search = search_schedules.Search(64, False, (32,), "sm_90", hung=[str(LIBRARY)])
    search.compile(["warp=3", str(LIBRARY)])
    assert not search.good and list(search.left_out) == ["warp=3"] and not search.compiled


def test_ranking_wants_every_length():
    search = search_schedules.Search(64, False, (32, 64), "sm_90", good={"a": 1, "b": 1, "c": 1})
    rated = lambda name, s, x: {"name": name, "s": s, "ratio": x, "tflops": 100 * x, "peer": name == "fa3"}
    search.rows = [rated("a", 32, 1.0), rated("a", 64, 1.0), rated("b", 32, 1.5), rated("b", 64, 1.5), rated("c", 32, 9.0), rated("fa3", 32, 1.0)]
    assert [r["schedule"] for r in search.ranking()] == ["b", "a"]


def test_hung_before(tmp_path):
    path = tmp_path / "s.json"
    assert search_schedules.hung_before(str(path)) == [] == search_schedules.hung_before(None)
    path.write_text(json.dumps({"hung": ["x"]}))
    assert search_schedules.hung_before(str(path)) == ["x"]


# ---- dry runs ----------------------------------------------------------------------------------------------------------


def dry(script, path, *arguments):
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-m", "benchmarks.dry", f"benchmarks.{script}", "--json", str(path), *arguments], cwd=ROOT,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text()), done.stdout


def test_forward(tmp_path):
    saved, said = dry("hopper_forward", tmp_path / "f.json", "--cells", "D64", "--plots", str(tmp_path))
    assert len(saved["table"]) == 4 and len(saved["small"]) == 2 and saved["dry"] and not saved["problems"]
    assert {"fcgen", "fa3", "cudnn"} <= set(saved["table"][0]["results"]) and saved["summary"]["cells"] == 4
    assert "geometric mean" in said and "worst cell" in said and set(saved["small"][0]["us"]) == {"fcgen", "fa3", "cudnn"}
    assert "no pictures" in said or ((tmp_path / "roofline.svg").exists() and (tmp_path / "forward.png").exists())


def test_budget_leaves_cells_out(tmp_path):
    saved, said = dry("hopper_forward", tmp_path / "f.json", "--cells", "D64", "--budget-s", "0", "--peers", "fa3", "--dtype", "bf16")
    assert not saved["table"] and len(saved["left_out"]) == 4 and "no time for: D64:S32:full" in said


def test_a_schedule_of_ones_own(tmp_path):
    saved, _ = dry("hopper_forward", tmp_path / "f.json", "--cells", "D64:S32:causal", "--no-small", "--schedule", str(LIBRARY), "--dtype", "bf16")
    assert saved["schedule"] == str(LIBRARY) and saved["table"][0]["results"]["fcgen"]["rms_error"] < 1e-2


def test_gemm(tmp_path):
    saved, _ = dry("gemms", tmp_path / "g.json", *(f"--only={name}" for name in ("gelu", "swiglu", "norm", "int4-16")))
    assert [r["case"] for r in saved["table"] if "chosen" in r["name"]] == ["gelu", "swiglu", "norm", "int4-16"] and not saved["problems"]


def test_backward(tmp_path):
    saved, said = dry("backward", tmp_path / "b.json", "--heads", "64")
    parts = {"fcgen, kernel", "fcgen, whole", "fcgen, in front", "fcgen, behind"}
    assert {r["name"].split(":")[0] for r in saved["table"]} == parts and not saved["problems"] and "fa3:" in said


def test_the_race_of_backward_passes(tmp_path):
    saved, said = dry("training", tmp_path / "t.json", "--heads", "64", "--lengths", "32", "--dtypes", "bf16", "--variants", "--only", "bias",
                      "--rounds", "2")
    assert {(r["variant"], r["name"]) for r in saved["table"]} >= {("bias", "fcgen")} and not saved["problems"] and "timed was right" in said


@pytest.mark.parametrize("of", ["backward", "backward_keys", "backward_rows"])
def test_search_of_the_backward_programs(of, tmp_path):
    path = tmp_path / "c.txt"
    path.write_text("tiles={BLOCK_M: 32, BLOCK_N: 32}, stages=1\nwarps=3\n")
    saved, _ = dry("search_schedules", tmp_path / "s.json", "--of", of, "--d", "64", "--lengths", "32", "--candidates", str(path))
    assert saved["of"] == of and len(saved["ranking"]) == len(saved["left_out"]) == 1


def test_prologues(tmp_path):
    saved, _ = dry("prologues", tmp_path / "p.json", "--only", "rotary", "--only", "backward-64")
    assert [r["spec"] for r in saved["table"]] == ["plain", "rotary", "rotated", "backward"] and not saved["problems"]


def test_choices(tmp_path):
    saved, _ = dry("choices", tmp_path / "c.json", "--more", "0", "--cells", "sm_90a:64:full:32")
    assert [r["kind"] for r in saved["table"]] == ["tuned", "chosen"] and not saved["problems"]


def test_accuracy(tmp_path):
    saved, said = dry("accuracy", tmp_path / "a.json")
    assert [r["inputs"] for r in saved["table"]] == 2 * list(accuracy.INPUTS) and "3 results, 0 differ" in said


def test_search(tmp_path):
    path = tmp_path / "c.txt"
    path.write_text(f"{LIBRARY}\n{LIBRARY}, hold_a=False\ntiles={{BLOCK_M: 128, BLOCK_N: 128}}, stages=8\nwarps=3\n")
    saved, _ = dry("search_schedules", tmp_path / "s.json", "--d", "64", "--causal", "--candidates", str(path))
    assert len(saved["ranking"]) == 2 and len(saved["left_out"]) == 2 and saved["environment"]["date"]
