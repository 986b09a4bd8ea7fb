"""The printed text: golden, accepted by NVRTC without a warning, with the instructions it promises, and no stack."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fcgen.backends.cuda.printer import CudaSource, ParamSpec, print_cuda
from fcgen.backends.targets.ada import TARGETS
from fcgen.errors import FcError
from fcgen.ir.core import GridAxis, Value
from fcgen.ir.layout import mma_c
from fcgen.ir.types import Frag, Tensor, f16, f32
from fcgen.ir.verify import verify

from .nvrtc import compile_cubin, sass
from .programs import PROGRAMS, K, gemm, kernel, row_softmax

EXPECT = {
    "gemm": (("mma.sync.aligned.m16n8k16", "ldmatrix", "cp.async.cg"), ("HMMA.16816", "LDSM", "LDGSTS")),
    "two_dots": (("mma.sync.aligned.m16n8k16", "ldmatrix", "ex2.approx.ftz"), ("HMMA.16816", "LDSM", "LDGSTS", "MUFU.EX2")),
    "wmma_gemm": (("wmma.mma.sync",), ("HMMA",)),
}


def printed(name: str, arch: str = "sm_89") -> CudaSource:
    return print_cuda(verify(PROGRAMS[name]()), TARGETS[arch])


@pytest.mark.parametrize("name", PROGRAMS)
def test_golden(name, golden):
    golden(f"cuda/{name}.cu", printed(name).text)


@pytest.mark.parametrize("name", PROGRAMS)
def test_printing_is_deterministic(name):
    assert printed(name).text == printed(name).text


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiles_clean(name, arch, tmp_path):
    cubin, ptx, log = compile_cubin(printed(name, arch).text, arch)
    assert "warning" not in log and "error" not in log, log
    if name != "two_dots_plain":  # 128 x 128 accumulators leave no register for luck
        assert " 0 bytes stack frame, 0 bytes spill stores" in log.replace("    ", " "), log
    for text in EXPECT.get(name, ((), ()))[0]:
        assert text in ptx.decode()
    if name in EXPECT and arch != "sm_90":
        code = sass(cubin, tmp_path)
        for text in EXPECT[name][1]:
            assert text in code


def test_line_map_points_into_the_spec():
    src = printed("two_dots")
    lines = src.text.splitlines()
    for n, loc in src.line_map.items():
        assert 0 < n <= len(lines) and loc.file == "spec.py"
    mma = [n for n, t in enumerate(lines, 1) if "mma_m16n8k16_bf16(&" in t]
    assert [src.line_map[n].line for n in mma] == [7, 13]


def test_params_are_flat_and_only_those_used():
    src = print_cuda(row_softmax(), TARGETS["sm_80"])
    assert src.params == (
        ParamSpec("ptr", "X", -1, "const float*"),
        ParamSpec("stride", "X", 0, "long long"),
        ParamSpec("ptr", "Y", -1, "float*"),
        ParamSpec("stride", "Y", 0, "long long"),
        ParamSpec("scalar", "scale", -1, "float"),
        ParamSpec("size", "M", -1, "int"),
    )
    assert (src.threads, src.smem_bytes, src.name) == (128, 0, "row_softmax_sm_80")


def test_only_used_functions_are_printed():
    for name in PROGRAMS:
        text = printed(name).text
        for fn in re.findall(r"__forceinline__ [\w ]+ (\w+)\(", text):
            assert len(re.findall(rf"\b{fn}\b", text)) > 1, fn
        for fn in re.findall(r"constexpr int (\w+)\(", text):
            assert len(re.findall(rf"\b{fn}\b", text)) > 1, fn


def test_no_copies_in_the_main_loop():
    """Accumulators work in place: the only copy is the row maximum, whose old value is read after the new one is made."""
    text = printed("two_dots").text
    assert re.findall(r"^ +(\w+)\[i\] = (\w+)\[i\];$", text, re.M) == [("mx", "new_")]
    assert text.count("float acc[") == 1 and text.count("float s[") == 1


def test_inner_loops_do_no_address_arithmetic_that_varies():
    """An ldmatrix address is a hoisted base, one XOR and one constant."""
    text = printed("two_dots").text
    for call in re.findall(r"ldmatrix_x4(?:_trans)?\(&\w+\[i \* 4\], (.*)\);", text):
        assert re.fullmatch(r"\(\w+ \^ \((?:i % 4|i|k\w*) \* 32\)\) \+ (?:i|k\w*|i / 4) \* 2048", call), call


def test_a_moved_register_is_refused():
    """An accumulator layout is no left operand where the instruction wants its own order of registers."""

    def build(b: K, i: Value) -> None:
        a = b.full(1.0, Frag(f16, (64, 16), mma_c(64, 16, (4, 1))), "a")
        bb = b.full(1.0, Frag(f16, (16, 8), mma_c(16, 8, (1, 1))), "b")
        acc = b.full(0.0, Frag(f32, (64, 8), mma_c(64, 8, (4, 1))), "acc")
        b.emit("mma", a, bb, acc, type=acc.type, name="acc", instr="mma_m16n8k16_f16")

    k = kernel("wrong", [Value(Tensor(f16, ("M",)), "X")], [GridAxis("i", "M", 64)], 4, build)
    with pytest.raises(FcError, match="one after the other"):
        print_cuda(k, TARGETS["sm_89"])


def test_unknown_ops_and_levels_are_refused():
    k = gemm()
    with pytest.raises(FcError, match="machine"):
        print_cuda(replace(k, level="tile"), TARGETS["sm_89"])
