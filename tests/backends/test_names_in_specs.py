"""Whatever a spec's kernel, tensors, sizes, scalars and variables are called: the same CUDA but for the names, on both kinds of target."""

from __future__ import annotations

import functools
import importlib.util
import keyword
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fcgen as fc
from fcgen.backends.cuda.printer import CudaSource
from fcgen.build import compiler
from fcgen.ir.parse import parse_kernel
from fcgen.ir.text import print_kernel
from fcgen.lang.tensors import TensorParam

from .nvrtc import compile_cubin
from .renaming import same_but_for_names

SPEC = '''
import fcgen as fc

@fc.kernel
def {kernel}({A}: "f16[{M}, {K}]", {B}: "f16[{K}, {N}]", {C}: "out f32[{M}, {N}]", *, {scale}: "f32"):
    {rows}, {cols} = fc.grid(fc.tile({A}.{M}, "BLOCK_M"), fc.tile({B}.{N}, "BLOCK_N"))
    {acc} = fc.var(fc.zeros({rows}, {cols}))
    for {deep} in fc.loop(fc.tile({A}.{K}, "BLOCK_K")):
        {acc} <<= {acc} + fc.dot(fc.load({A}[{rows}, {deep}]), fc.load({B}[{deep}, {cols}]))
    {last} = fc.where({rows}.index < {cols}.index, {acc} * {scale}, 0.0)
    fc.store({C}[{rows}, {cols}], {last})
'''
PLAIN = ("kernel", "A", "B", "C", "M", "N", "K", "scale", "rows", "cols", "acc", "deep", "last")
SCHEDULES = {
    "sm_89": fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}),
    "sm_90a": fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}, warps=4, math="wgmma", copy="tma"),
}
NASTY = ("norm", "round", "abs", "max", "main", "default", "union", "k", "m", "NULL", "compl", "swizzle", "touch", "O_s0", "group", "counter",
         "größe", "名前", "α", "a" * 250, "b" * 100_000, "__x", "_X", "x__y", "warp", "lane", "smem_base", "threadIdx", "cudaStreamDefault", "char",
         "wgmma_fence", "uint32_t", "int", "i", "INF", "register", "TensorMap", "asm", "tmp")


def printed(names: tuple[str, ...], arch: str, folder: Path) -> CudaSource:
    path = folder / "spec.py"
    path.write_text(SPEC.format(**dict(zip(PLAIN, names))), encoding="utf-8")
    found = importlib.util.spec_from_file_location("spec", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)  # (no byte code: files follow each other quickly)
    program = getattr(module, unicodedata.normalize("NFKC", names[0])).compile(target=arch, schedule=SCHEDULES[arch])
    text = print_kernel(program.machine)
    assert print_kernel(parse_kernel(text)) == text
    return compiler.to_cuda(program.machine, program.target)


@functools.cache
def plain(arch: str, folder: Path) -> CudaSource:
    return printed(PLAIN, arch, folder)


def check(names: tuple[str, ...], arch: str, folder: Path) -> CudaSource:
    src = printed(names, arch, folder)
    same_but_for_names(plain(arch, folder).text, src.text)
    return src


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("specs")


@pytest.mark.parametrize("arch", SCHEDULES)
@pytest.mark.parametrize("turn", range(3))
def test_nasty_names(arch, turn, folder):
    """Each is the name of something; with the other turns, of another thing."""
    names = (NASTY * 2)[13 * turn: 13 * turn + 13]
    src = check(names, arch, folder)
    if turn == 0:
        _, _, log = compile_cubin(src.text, arch)
        assert "warning" not in log


LETTERS = st.text(st.characters(categories=("Lu", "Ll", "Lt", "Lm", "Lo", "Nl", "Nd"), include_characters="_"), min_size=1, max_size=8)
IDENTIFIERS = LETTERS.filter(lambda s: s.isidentifier() and not keyword.iskeyword(s) and s == unicodedata.normalize("NFKC", s)
                             and not hasattr(TensorParam, s) and s not in ("fc", "T", "out", "inout"))


@pytest.mark.parametrize("arch", SCHEDULES)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(names=st.lists(IDENTIFIERS, min_size=13, max_size=13, unique=True))
def test_any_names(arch, names, folder):
    check(tuple(names), arch, folder)
