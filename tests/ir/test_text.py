"""Kernels print, parse back and print again identically."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcgen.errors import Loc
from fcgen.ir.core import Block, Kernel, Op, Role, Value, walk
from fcgen.ir.layout import blocked
from fcgen.ir.parse import parse_kernel, read
from fcgen.ir.rewrite import Builder, Env, copy_op
from fcgen.ir.text import attr_text, base_name, print_kernel, print_op
from fcgen.ir.types import Frag, Scalar, f32, i32
from fcgen.ir.verify import verify
from tests.work import calls

from . import strategies
from .programs import machine_kernel, same, tile_kernel

KERNELS = {"tile": tile_kernel, "machine": machine_kernel}


def round_trip(kernel: Kernel) -> str:
    text = print_kernel(verify(kernel))
    again = parse_kernel(text, "k.fcir")
    assert print_kernel(again) == text
    same(kernel, again)
    return text


@pytest.mark.parametrize("name", KERNELS)
def test_round_trip(name):
    kernel = KERNELS[name]()
    assert round_trip(kernel) == str(kernel)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(strategies.kernels())
def test_random_kernels(kernel):
    round_trip(kernel)


@pytest.mark.parametrize("name", ["¹", "x¹", "٣", "1.5", "_.7", "a b"])
def test_the_name_in_text_is_its_own_name_in_text(name):
    assert base_name(base_name(name)) == base_name(name)
    assert not base_name(name) or parse_kernel(print_kernel(replace(tile_kernel(), name=base_name(name))), "k.fcir").name == base_name(name)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=6), strategies.attr_values, max_size=4))
def test_random_attributes(meta):
    kernel = replace(tile_kernel(), meta=meta)
    text = print_kernel(kernel)
    again, _ = read(text)
    assert print_kernel(again) == text
    same(kernel, again)


def test_the_look():
    text = print_kernel(tile_kernel())
    assert text.startswith('tile kernel attention\nsource "examples/attention.py"\nsource "lib/score.py"\n'
                           'source "other/score.py" as score.py.1\nparam %Q: tensor f16[B, M, 64]\n')
    for line in ["param %O: tensor f32[B, M, 64] out", "param %scale: f32 positive", "grid %b: B, %mt: M / 128 reverse",
                 "order 1, 0", "meta until_loops = ((UNTIL_n, N, 64), (UNTIL_m, M, 1))", 'meta target = "say \\"hi\\", #1"']:
        assert line in text.splitlines()
    assert "%s.1 = mul %s, %scale : f32[128,64]" in text
    assert "%q = load %Q, %b, %rows {index = (at, tile, all), guard = (true, false)} : f16[128,64]" in text
    assert "} live (%j.1: i32) {" in text and "} else {" in text
    columns = {line.index("@") for line in text.splitlines() if "@" in line and " for " not in line}
    assert len(columns) == 1


def test_long_heads_of_regions_are_broken():
    k = tile_kernel()
    lines = print_kernel(k).splitlines()
    at = next(i for i, s in enumerate(lines) if " = for " in s)
    assert lines[at].endswith("{descending = true, label = BLOCK_N, tile = 64}")
    assert lines[at + 1].split("  @") == ["      (%j: i32, %m.2: f32[128], %acc.2: f32[128,64]) {".ljust(len(lines[at + 1]) - 17),
                                          "attention.py:7"]
    many, b, body = [Value(Scalar(f32), f"a_long_name_{n}") for n in range(20)], Builder(), Builder()
    lo, x = b.emit("const", value=0, dtype="i32"), b.emit("const", value=0.0, dtype="f32")
    body.do("yield", *many)
    b.add(Op("for", (lo, lo, *[x] * 20), tuple(Value(Scalar(f32)) for _ in many), {}, (body.block((Value(Scalar(i32), "i"),
                                                                                                   *many)),)))
    text = round_trip(Kernel("k", "tile", (), (), (Role("all", 0, b.block()),)))
    assert all(len(s) < 130 for s in text.splitlines() if s.strip().startswith(("(", "%a_long")))


def test_layouts_that_repeat_get_a_name():
    text = print_kernel(machine_kernel())
    assert "layout $1 = {w4@1 r2@2 l8@4 | r8@4 l4@1 r2@1}\n" in text
    assert "mma %fa, %fb, %acc.2 {instr = mma.m16n8k16.f16} : frag f32[64,64]$1" in text
    assert "frag f16[64,16]{w4@1 r2@2 l8@4 | r2@4 l4@1 r2@1}" in text, "one that occurs once is written out"


def test_names_do_not_depend_on_how_a_program_was_built():
    """Text is part of cache keys: a copy of a program prints the same."""
    k = tile_kernel()
    env = Env()
    copy = k.with_body(Block(k.body.args, tuple(copy_op(o, env) for o in k.body.ops)))
    assert str(copy) == str(k)


def test_a_value_made_in_two_sibling_regions_still_round_trips():
    """Legal, if odd: both regions of a loop use one `Value` object as their index."""
    j = Value(Scalar(i32), "j")
    b, body, live = Builder(), Builder(), Builder()
    zero = b.emit("const", value=0, dtype="i32")
    body.do("yield")
    live.do("yield", live.emit("lt", j, j))
    b.do("for", zero, zero, regions=(body.block((j,)), live.block((j,))))
    text = str(verify(Kernel("k", "tile", (), (), (Role("all", 0, b.block()),))))
    assert str(parse_kernel(text)) == text


def test_broken_ir_still_prints():
    a = Value(Scalar(f32), "a")
    b = Builder()
    b.emit("exp", a)
    k = Kernel("k", "tile", (), (), (Role("all", 0, b.block()),))
    assert "exp %a : f32" in str(k)
    assert print_op(b.ops[0]) == "%0 = exp %a : f32"


def test_print_op_with_its_kernel_uses_the_kernels_names():
    k = tile_kernel()
    loop = next(o for o in k.body.ops if o.kind == "for")
    assert print_op(loop,
                    k).startswith("%m.1, %acc.1 = for %1, %hi, %m, %acc {") and print_op(loop).endswith(": f32[128], f32[128,64]")
    assert "{ ... } { ... }" in print_op(loop)
    assert str(loop.regions[0].ops[-1]) == "yield %m, %acc"


def test_numpy_numbers_print_as_numbers():
    import numpy as np

    assert attr_text((np.int64(3), np.float32(0.5), np.bool_(True), [1])) == "(3, 0.5, true, (1))"
    with pytest.raises(TypeError, match="an attribute holds a dict"):
        attr_text({})


def test_people_may_annotate_and_break_lines():
    k = parse_kernel("""
      # a kernel by hand
      tile kernel k
      param %x: f32  // a scalar
      {   // the body
        %z = const {value = 0, dtype = i32} : i32
        %a,   # first
          %b = for %z,
                   %z, %x, %x (%i: i32, %p: f32,

                      # a comment inside a list
                      %q: f32) {
          yield %q, %p
        } : f32,

            f32   # swapped

        # nothing else
      }  # end""", "k.fcir", locate=True)
    assert [(o.kind, o.loc) for o in walk(k.body)] == [("const", Loc("k.fcir", 6)), ("for", Loc("k.fcir", 8)),
                                                       ("yield", Loc("k.fcir", 13))]
    assert "source" not in str(parse_kernel("tile kernel k\n{\n%z = iota {shape = (4)} : i32[4]\n}"))


def test_a_kernel_of_300_ops_prints_in_a_blink():
    """Its work grows with its ops, some 30 calls for each."""
    small, env = tile_kernel(), Env()
    large = small.with_body(Block(small.body.args, tuple(copy_op(o, env) for _ in range(9) for o in small.body.ops)))
    ops = sum(1 for _ in walk(large.body))
    work = calls(lambda: str(large))
    assert ops >= 280 and work < 100 * ops and work < 12 * calls(lambda: str(small))


def test_the_parser_is_loaded_only_when_needed():
    code = "import sys, fcgen.ir.text, fcgen.ir.ops; assert 'lark' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_user_chosen_layout_names():
    layout = blocked(8, 32, 1)
    b = Builder()
    x = b.emit("full", b.emit("const", value=0.0, dtype="f32"), type=Frag(f32, (8, 32), layout))
    b.emit("exp", x)
    text = str(Kernel("k", "machine", (), (), (Role("all", 1, b.block()),)))
    assert str(parse_kernel(text.replace("$0", "$rows"))) == text
