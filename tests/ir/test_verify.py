"""What a kernel must hold beyond its ops' rules: phases, facts, places in shared memory, barriers by number, and how far anything may go."""

from __future__ import annotations

import re
from functools import cache, lru_cache

import pytest

import fcgen as fc
from fcgen.build import compiler
from fcgen.errors import FcError, visible
from fcgen.ir import kernel_rules
from fcgen.ir.attrs import FLAG
from fcgen.ir.core import walk_kernel
from fcgen.ir.op_table import PHASES
from fcgen.ir.ops import OPS
from fcgen.ir.parse import parse_kernel
from fcgen.ir.text import print_kernel
from fcgen.kernels.attention import attention
from fcgen.passes import PIPELINE

from .test_async_text import KERNEL

TMA = {"copy": "tma", "math": "wgmma"}


@lru_cache(maxsize=8)
def stages(arch: str = "sm_89", **fields) -> dict[str, str]:
    """The text of an attention kernel after each pass."""
    schedule = fc.Schedule(tiles={"BLOCK_M": 64 * (fields.get("warps", 4) // 4), "BLOCK_N": 64}, **fields)
    tile = attention.trace(dict(schedule.tiles), T=fc.f16, D=64, E=64, mask="causal_top_left")
    out = {"trace": print_kernel(tile)}
    compiler.lower(tile, schedule, compiler.target(arch), trace=lambda name, k: out.update({name: print_kernel(k)}))
    return out


def refused(text: str, code: str = "ir/verify") -> FcError:
    with pytest.raises(FcError) as e:
        compiler.to_cuda(parse_kernel(text, "k.fc"), compiler.target("sm_90a"))
    assert e.value.code == code, e.value
    return e.value


#: what a pass has nothing to do for has the text of the pass before
parsed = cache(parse_kernel)


@cache
def refused_by_the_printer(text: str) -> str:
    """The message, for IR that prints again as it was read."""
    kernel = parsed(text)
    assert print_kernel(kernel) == text
    with pytest.raises(FcError) as e:
        compiler.to_cuda(kernel, compiler.target("sm_90a"))
    assert e.value.code == "compile/unsupported"
    return e.value.message


def changed(text: str, old: str, new: str) -> str:
    assert re.search(old, text, flags=re.M), old
    return re.sub(old, new, text, count=1, flags=re.M)


# ---- phases --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [p.name for p in PIPELINE if p.name not in ("sync",)])
@pytest.mark.parametrize("arch", ["sm_89", "sm_90a"])
def test_what_is_not_synced_is_not_printed(arch, name):
    """IR stopped at any pass is read again, and refused by the printer: it is no program yet."""
    assert "synced" in refused_by_the_printer(stages(arch, **(TMA if arch == "sm_90a" else {}))[name])


def test_an_op_of_another_phase_is_named():
    e = refused(changed(stages()["sync"], "meta stage = synced", "meta stage = selected"))
    assert "phase allocated" in e.message and e.loc is not None and e.loc.file == "k.fc"
    e = refused(changed(stages()["select"], "meta stage = selected", "meta stage = pipelined"))
    assert "does not occur in this phase" in e.message and e.got == "pipelined" and "^^" in str(e)
    e = refused(changed(stages()["sync"], r"^meta smem_offsets.*\n", ""))
    assert e.message.startswith("smem_offsets is known from the phase allocated on")


def test_every_op_of_the_pipeline_is_in_its_phases():
    for fields in ({}, {**TMA, "warps": 8, "epilogue": "tma", "persistent": "dynamic"}):
        for text in stages("sm_90a" if fields else "sm_89", **fields).values():
            kernel = parsed(text)
            at = kernel_rules.phase(kernel)
            assert (at is None) == (kernel.level == "tile")
            for op in walk_kernel(kernel):
                first, last = OPS[op.kind].phases
                assert at is None or first <= at <= last


def test_every_attribute_has_a_type_and_a_range():
    for d in OPS.values():
        assert 0 <= d.phases[0] <= d.phases[1] < len(PHASES)
        for name, a in d.attrs.items():
            assert a.words and not any(map(a.admits, ("\0" * 5000, 1 << 70, ("\0",) * 5000))), (d.kind, name)
    assert FLAG.admits(True) and not FLAG.admits(1)


# ---- edits that parse and make no sense ------------------------------------------------------------------------------------

HUGE = 10**12
#: name -> (stage, pattern, replacement, a word of the message)
EDITS = {
    "no-iota-shape": ("trace", r"iota \{shape = \(64\)\}", "iota", "shape"),
    "min-blocks-a-word": ("sync", r"min_blocks = 1", "min_blocks = many", "min_blocks"),
    "huge-tile-of-a-loop": ("trace", r"label = BLOCK_N, tile = 64", f"label = BLOCK_N, tile = {HUGE}", "tile"),
    "huge-tile-of-the-grid": ("trace", r"/ 64", f"/ {HUGE}", "tiles of the grid"),
    "huge-tile": ("trace", r"full (%\d+) \{shape = \(64, 64\)\} : f32\[64,64\]", r"full \1 {shape = (64, 640000)} : f32[64,640000]", "elements"),
    "grid-over-nothing": ("trace", r"%b: B", "%b: BB", "dimension"),
    "a-flag": ("trace", r"^(param %Q: .*)$", r"\1 outt", "flags"),
    "a-fact": ("sync", r"^meta stage", "meta stagee", "knows no fact"),
    "a-fact-twice": ("sync", r"^(meta stage = synced)", r"\1\n\1", "twice"),
    "offsets-a-word": ("sync", r"smem_offsets = \(.*\)", "smem_offsets = none", "smem_offsets"),
    "offset-not-aligned": ("sync", r"smem_offsets = \((\d+), ", r"smem_offsets = (8, ", "multiple of"),
    "offset-outside": ("sync", r"smem_bytes = \d+", "smem_bytes = 1024", "lies in"),
    "too-many-warps": ("sync", r"role main warps 4", "role main warps 64", "warps"),
    "too-few-warps": ("sync", r"role main warps 4", "role main warps 1", "warps"),
    "a-wide-layout": ("sync", r"w4@1", "w4@100000", "warps"),
    "no-such-instruction": ("sync", r"instr = \w+", "instr = mma_m1n1k1", "no such matrix instruction"),
    "another-instruction": ("sync", r"instr = mma_m16n8k16_f16", "instr = mma_m16n8k16_bf16", "dtype"),
    "a-negative-wait": ("sync", r"wait_group \{n = \d", "wait_group {n = -1", "may not have this value"),
    "lanes-too-far": ("sync", r"lanes = \(1, 2\)", "lanes = (1, 2, 64)", "may not have this value"),
    "vectors-of-three": ("sync", r"vec = 8", "vec = 3", "may not have this value"),
    "a-region-of-a-load": ("trace", r"^(  %q = load [^:]*?)( : )", r"\1 {\n  }\2", "no regions"),
    "a-wide-panel": ("sync", r"\{panel 64 swizzle 128\}", "{panel 128 swizzle 128}", "panel"),
    "a-number-of-i32": ("trace", r"value = 64, dtype = i32", "value = 5000000000, dtype = i32", "holds the number"),
    "a-slot-of-a-slot": ("sync", r"%k.3 = slot %k, ", "%k.3 = slot %k.2, ", "ring of the kernel"),
    "a-block-from-inside-a-block": ("sync", r"= mul (?=%k\.\d+, %\d+ : i32)", "= add ", "blocks start on 16 bytes"),
    "a-choice-of-a-buffer": ("sync", r"^(  %q.1 = ldmatrix )%q", "  %yes = const {value = true, dtype = i1} : i1\n  %one = if %yes {\n    yield %q\n"
                             r"  } else {\n    yield %q\n  } : smem f16[64,64]{panel 64 swizzle 128}\n\1%one", "passes on memory"),
    "a-layout-of-many-digits": ("sync", r"\{w4@1 ", "{" + "r2@1 " * 50000 + "w4@1 ", "a layout covers a tile"),
    "a-number-of-128-bits": ("sync", r"min_blocks = 1", f"min_blocks = {1 << 100}", "64 bits"),
    "alpha-for-a-number": ("trace", r"value = 64, dtype = i32", "value = 0.5, dtype = i32", "whole number"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_without_sense_is_refused_at_its_line(name):
    stage, old, new, word = EDITS[name]
    text = changed(stages()[stage], old, new)
    with pytest.raises(FcError) as e:
        kernel = parse_kernel(text, "k.fc")
        compiler.to_cuda(kernel, compiler.target("sm_89"))
    assert e.value.code in ("ir/verify", "ir/parse", "compile/unsupported") and word in str(e.value), str(e.value)
    assert e.value.loc is not None and e.value.loc.file == "k.fc" and "^" in str(e.value)
    before, after = stages()[stage].split("\n"), text.split("\n")
    first = next(n for n, (a, b) in enumerate(zip(before, after), 1) if a != b)
    assert e.value.loc.line >= first or name in ("too-few-warps",), "not before the edit"


def test_a_product_without_its_fence_is_refused():
    text = stages("sm_90a", **TMA)["sync"]
    e = refused(changed(text, r"^ *wgmma_fence.*\n", ""), "ir/verify")
    assert "wgmma_fence" in e.message and e.loc is not None


@pytest.mark.parametrize("old, new, word", [
    (r"(?<=wgmma_m64n)64(?=k16_f16)", "72", "columns"),
    (r"wgmma_m64n64k16_f16", "wgmma_m64n64k16_bf16", "dtype"),
    (r"wgmma_m64n64k16_f16", "wgmma_m64n63k16_f16", "no such warpgroup instruction"),
    (r"wgmma_m64n64k16_f16", "mma_m16n8k16_f16", "no such warpgroup instruction"),
])
def test_an_instruction_that_does_not_fit_is_refused_by_printer_and_simulator(old, new, word):
    from fcgen.sim.machine import simulate

    text = changed(KERNEL, old, new)
    assert word in refused(text, "compile/unsupported").message
    with pytest.raises(FcError, match=word):
        simulate(parse_kernel(text), {}, compiler.target("sm_90a"))


@pytest.mark.parametrize("old, new", [(r"mbar_arrive %empty, %c$", "mbar_arrive %empty, %c {cluster = 4}"),
                                      (r"(tma_load %A.*)\}$", r"\1, multicast = 4}")])
def test_blocks_of_another_cluster_are_refused(old, new):
    text = changed(changed(KERNEL, r"%i: M / 64", "%i: M / 64 cluster 2"), old, new)
    e = refused(text)
    assert "cluster" in e.message and (e.expected, e.got) == (2, 4)


# ---- the memory map and the numbers of barriers -----------------------------------------------------------------------------


@pytest.mark.parametrize("offsets, word", [
    ("(0, 8192, 16384, 16384)", "%empty and %full share bytes"),
    ("(0, 8192, 8192, 16392)", "%full and %b share bytes"),
    ("(0, 8192, 16383, 16392)", "multiple of 8"),
    ("(0, 8192, 16384, 16444)", "multiple of 8"),
    ("(0, 8192, 16384, 16448)", "0 to 16448"),
    ("(0, 8704, 16896, 16904)", "multiple of 1024"),
    ("(0, 8192, 16384)", "one number per buffer"),
    ("(8192, 0, 8192, 16392)", "%full and %a share bytes"),
])
def test_mbarriers_own_their_bytes(offsets, word):
    e = refused(KERNEL.replace("(0, 8192, 16384, 16392)", offsets))
    assert word in str(e), str(e)
    assert e.loc is not None and ("smem" in str(e))


def test_tiles_may_share_bytes_and_barriers_may_stand_anywhere_else():
    parse_kernel(KERNEL.replace("(0, 8192, 16384, 16392)", "(0, 0, 16440, 16384)"))


TURNS = """\
machine kernel turns
meta smem_bytes = 16
meta smem_offsets = (0,)
meta stage = synced
smem %full: mbarrier count 1
role main warps 8 {
  %0 = const {value = 0.0, dtype = f32} : f32
  %1 = full %0 : frag f32[32]{l32@1}
  token_start {id = ID}
  token_take {id = ID}
  barrier {parts = 2}
  token_give {id = ID}
  barrier
}
role load warps 4 {
  %0 = const {value = 0.0, dtype = f32} : f32
  %1 = full %0 : frag f32[32]{l32@1}
  barrier
}
"""


@pytest.mark.parametrize("id, word", [(1, ""), (6, ""), (7, "named barrier 8 has two purposes"), (8, "named barrier 8 has two purposes"),
                                      (9, "named barrier 9 has two purposes"), (10, ""), (13, "named barrier 14 has two purposes|15"),
                                      (14, "named barrier 15 has two purposes"), (15, "there are 16 named barriers"),
                                      (16, "may not have this value"), (0, "may not have this value")])
def test_named_barriers_exist_and_have_one_purpose(id, word):
    text = TURNS.replace("ID", str(id))
    if not word:
        parse_kernel(text)
        return
    with pytest.raises(FcError, match=word):
        parse_kernel(text)


@pytest.mark.parametrize("old, new, word", [
    ("parts = 2}\n", "parts = 2}\n  barrier {parts = 4}\n", "named barrier 8 has two purposes"),
    ("parts = 2", "parts = 3", "equal parts of the role's warps"),
    ("{l32@1}\n  barrier", "{l32@1}\n  barrier {parts = 2}", "named barrier 8 has two purposes"),
    ("%1 = full %0 : frag f32[32]{l32@1}\n  barrier", "barrier", "one thread, and would wait for ever"),
    ("%1 = full %0 : frag f32[32]{l32@1}\n  barrier", "syncwarp", "one thread, and would wait for ever"),
    ("main warps 8", "main warps 4", "several warpgroups"),
])
def test_named_barriers_have_one_count_of_threads(old, new, word):
    assert old in TURNS
    with pytest.raises(FcError, match=word):
        parse_kernel(TURNS.replace("ID", "1").replace(old, new))


# ---- how far anything may go ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, word", [
    ("tile kernel k\nmeta target = " + "(" * 50 + ")" * 50 + "\n{\n}", "tuples are nested too deeply"),
    ("tile kernel k\n{\n  %go = const {value = true, dtype = i1} : i1\n" + "if %go {\n" * 300 + "yield\n" + "} else {\nyield\n}\n" * 300 + "}",
     "regions are nested too deeply"),
    ("tile kernel k\n{\n" + "#" * 1_000_001 + "\n}", "too long"),
    ("tile kernel k\nmeta target = " + "9" * 50 + "\n{\n}", "whole numbers are of 64 bits"),
])
def test_what_is_too_deep_or_too_long_is_refused(text, word):
    with pytest.raises(FcError, match=word) as e:
        parse_kernel(text, "k.fc")
    assert e.value.code in ("ir/parse", "ir/verify") and len(str(e.value)) < 5000


def test_regions_inside_of_regions_are_read_back():
    text = "tile kernel k\n{\n  %go = const {value = true, dtype = i1} : i1\n" + "if %go {\n" * 150 + "yield\n} else {\nyield\n}\n" * 150 + "}"
    once = print_kernel(parse_kernel(text))
    assert print_kernel(parse_kernel(once)) == once and once.count("if") == 150


def test_values_made_of_values_are_computed_once():
    adds = "\n".join(f"  %x{n} = add %x{n - 1}, %x{n - 1} : i32" for n in range(1, 3000))
    text = (f"machine kernel k\nparam %Y: tensor i32[4] out\nmeta stage = synced\nmeta smem_bytes = 0\nmeta smem_offsets = ()\n"
            f"role all warps 1 {{\n  %x0 = const {{value = 1, dtype = i32}} : i32\n{adds}\n"
            "  %y = full %x2999 : frag i32[4]{l4@1}\n  st_global %Y, %y {index = (all,), guard = (false,), vec = 1}\n}\n")
    cuda = compiler.to_cuda(parse_kernel(text), compiler.target("sm_89")).text
    assert len(max(cuda.split(), key=len)) < 100, "no number that is no i32"


def test_control_characters_do_not_reach_the_terminal():
    text = stages()["sync"].replace("label = BLOCK_N", 'label = "\\u001b]0;x\\u0007"').replace("fn = max", 'fn = "\\u001b[31m\\u202e"')
    with pytest.raises(FcError) as e:
        parse_kernel(text, "k\x1b[2J.fc")
    assert visible(str(e.value)) == str(e.value) and "\\x1b[31m" in str(e.value)
