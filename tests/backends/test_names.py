"""Names and strings, whatever they are: the same kernel, in words that are C++, and nothing of a file becomes code."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcgen.backends.cuda.names import KEYWORDS, LONGEST, Names, comment, identifier
from fcgen.backends.cuda.printer import CudaSource, print_cuda
from fcgen.backends.targets import ada, hopper
from fcgen.errors import FcError
from fcgen.ir.core import Block, Kernel, Op, Value, walk_kernel
from fcgen.ir.parse import parse_kernel
from fcgen.ir.text import print_kernel
from fcgen.ir.verify import verify

from ..sim.cases import EVERYTHING
from ..sim.generated import CASES
from .nvrtc import compile_cubin, include_dirs
from .programs import PROGRAMS
from .renaming import renamed, same_but_for_names, tokens

TARGETS = {**ada.TARGETS, **hopper.TARGETS}
CASE = {"sm_89": ("two_dots", "wmma_gemm", "branches", "row_softmax_f16", "small_shapes"), "sm_90a": ("claims", "stores")}
CASE_LIST = [(arch, name) for arch, names in CASE.items() for name in names]
#: what the issue lists, C++'s own words, CUDA's, NVRTC's macros, the printer's, and names that no compiler takes as they are
NASTY = re.findall(r"\S+", """norm round abs min max main default union k m NULL compl and_eq int asm operator group counter swizzle touch O_s0 warp lane smem
smem_base threadIdx warpSize dim3 float4 assert INF NAN uint32_t bf16 TensorMap wgmma_fence mbar_wait floor_div q_smem k_slot q_full row_s
cudaStreamDefault CU_UUID_HAS_BEEN_DEFINED CUDART_VERSION va_arg printf nvcuda wmma _x __x x__y _ lambda i j e part value lo hi t tmp""")
NASTY += ["größe", "名前", "α", "a" * 250, "b" * 100_000, "é" * 3000, "ǂ00001", "", "3", "x.y", "a b", "x\ny", "\ud800", "\0"]
#: each ends a comment, a line or a string somewhere
HOSTILE = ['full\nif (threadIdx.x == 0) __trap();', '\n#include "/etc/passwd"', "x\\", "x??/", "*/ __trap(); /*", '"); __trap(); //', "\r__trap();",
           "\u2028__trap();", "\x0b__trap();\x0c", "\x00", "\x85__trap();", "\ud800", "\u202e//", "a" * 100_000, "\\\n__trap();", "ǂ00001"]


@functools.cache
def machine(arch: str, name: str) -> Kernel:
    return CASES[name].compile().machine if arch == "sm_90a" else verify(PROGRAMS[name]())


@functools.cache
def printed(arch: str, name: str) -> CudaSource:
    return print_cuda(machine(arch, name), TARGETS[arch])


def check(k: Kernel, arch: str, name: str) -> CudaSource:
    """Prints, as the case under its own names does but for the names, which are C++'s and given once."""
    src = print_cuda(k, TARGETS[arch])
    there = same_but_for_names(printed(arch, name).text, src.text)
    new = {w for w in there.values() if w not in printed(arch, name).text}
    for w in new:
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", w) and "__" not in w and w not in KEYWORDS and len(w) < LONGEST + 20, w
    return src


@pytest.mark.parametrize(("arch", "name"), CASE_LIST)
def test_one_nasty_name_for_everything(arch, name):
    for word in NASTY if name == "small_shapes" else NASTY[::5]:
        many: dict[str, str] = {}  # parameters keep apart: a call names them
        apart = lambda kind, old, w=word, m=many: m.setdefault(kind + old, w + "'" * len(m)) if kind in ("param", "dim") else w
        check(renamed(machine(arch, name), apart), arch, name)


@pytest.mark.parametrize(("arch", "name"), [("sm_89", "two_dots"), ("sm_89", "wmma_gemm"), ("sm_90a", "claims")])
@pytest.mark.parametrize("turn", [0, 1])
def test_nasty_names_in_every_position_compile(arch, name, turn):
    """Thing n is called by name n (and those of a kind that are called alike, alike)."""
    given_: dict[tuple[str, str], str] = {}

    def nasty(kind: str, old: str) -> str:
        return given_.setdefault((kind, old), NASTY[(len(given_) + turn * 29) % len(NASTY)] + ("" if len(given_) < len(NASTY) else "2"))

    src = check(renamed(machine(arch, name), nasty), arch, name)
    _, ptx, log = compile_cubin(src.text, arch)
    assert "warning" not in log and f".entry {src.name}(".encode() in ptx


@pytest.mark.parametrize("word", [w for w in NASTY if len(w) < 1000])
def test_a_kernel_may_be_called_anything(word):
    src = print_cuda(replace(machine("sm_89", "small_shapes"), name=word), TARGETS["sm_89"])
    assert re.fullmatch(r"[a-zA-Z]\w*_sm_89", src.name, re.ASCII)


def test_no_macro_is_given_as_a_name():
    """Every macro that CUDA's headers could define and NVRTC does."""
    defined = re.compile(r"^\s*#\s*define\s+([A-Za-z]\w*)", re.MULTILINE)
    files = [p for d in include_dirs() for p in Path(d).glob("*.h*")]
    words = {w for p in files for w in defined.findall(p.read_text(errors="replace"))} | {"NULL", "NAN", "INFINITY", "linux", "unix"}
    probe = "".join(f'#ifdef {w}\n#pragma message("{w}")\n#endif\n' for w in sorted(words) if "__" not in w)
    _, _, log = compile_cubin(f"#include <mma.h>\n#include <cuda_bf16.h>\n{probe}", "sm_90a")
    found = set(re.findall(r'#pragma message: "(\w+)"', log))
    assert "NULL" in found and (not files or len(found) > 50)
    assert not [w for w in found if identifier(w) == w]


#: each string in two of the kernels, in turns; in all with FCGEN_ALL=1
TURNS = [(n, *case) for n in range(len(HOSTILE)) for m, case in enumerate(CASE_LIST) if EVERYTHING or (m - 2 * n) % len(CASE_LIST) < 2]


@pytest.mark.parametrize(("number", "arch", "name"), TURNS)
def test_hostile_strings_stay_in_comments(number, arch, name):
    text = HOSTILE[number]
    k = renamed(machine(arch, name), lambda kind, old: old, lambda s: text)
    check(k, arch, name)
    # what is read has words where words have a meaning, roles that are told apart, and no text without end
    again = renamed(machine(arch, name), lambda kind, old: old, lambda s: s if s in ("masked", "full") else s + text[:900])
    check(parse_kernel(print_kernel(again)), arch, name)


@pytest.mark.parametrize("arch", CASE)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_strings_in_any_place(arch, data):
    name = data.draw(st.sampled_from(CASE[arch]))
    some = data.draw(st.lists(st.text(max_size=12) | st.sampled_from(NASTY + HOSTILE), min_size=1, max_size=8))
    given_: dict[tuple[str, str], str] = {}

    def drawn(kind: str, old: str) -> str:
        return given_.setdefault((kind, old), some[len(given_) % len(some)] + (f"'{len(given_)}" if kind in ("param", "dim") else ""))

    check(renamed(machine(arch, name), drawn, lambda s: some[len(s) % len(some)]), arch, name)


@pytest.mark.parametrize(("arch", "name"), CASE_LIST)
def test_a_string_for_any_attribute_is_refused_or_no_code(arch, name):
    """One string at a time: every attribute of every kind of op, and every fact of the kernel."""
    k, evil = machine(arch, name), 'x\n__trap(); /* " */ \\'
    spots = {(o.kind, a): o for o in walk_kernel(k) for a in o.attrs}
    edited = [swapped(k, o, o.with_attrs(**{a: evil})) for (_, a), o in spots.items()]
    edited += [swapped(k, o, o.with_attrs(**{a: (evil,) * len(o[a])})) for (_, a), o in spots.items() if isinstance(o[a], tuple)]
    edited += [k.with_meta(**{m: evil}) for m in (*k.meta, "min_blocks", "anything")]
    refused = 0
    for e in edited:
        try:
            src = print_cuda(verify(e), TARGETS[arch])
        except FcError:
            refused += 1
            continue
        assert "__trap" not in tokens(src.text)
    assert refused


def swapped(k: Kernel, old: Op, new: Op) -> Kernel:
    def block(b: Block) -> Block:
        return replace(b, ops=tuple(new if o is old else replace(o, regions=tuple(map(block, o.regions))) if o.regions else o for o in b.ops))

    return replace(k, roles=tuple(replace(r, body=block(r.body)) for r in k.roles))


def test_two_parameters_of_one_name_are_refused():
    k = machine("sm_89", "row_softmax_f16")
    twice = replace(k, params=(*k.params, Value(k.params[0].type, k.params[0].name)))
    with pytest.raises(FcError, match="two parameters"):
        verify(twice)


# ---- the allocator, and the escapes ----------------------------------------------------------------------------------


def test_names_are_given_once_and_as_near_as_can_be():
    names = Names()
    wishes = ["a", "a", "int", "x.y", "3", "", "max", "NULL", "größe", "α", "Ω", "cuda_x", "__x__y", "名"]
    text = [names(w) for w in wishes]
    given_ = names.settle(" ".join(text) + " max(y)")
    assert [given_[t] for t in text] == ["a", "a_2", "int_", "x_y", "v3", "t", "max_", "NULL_", given_[text[8]], "alpha",
                                         "Omega", "cuda_x_", "x_y_2", "u540d"]
    assert given_[text[8]].isascii()


def test_a_wish_may_hold_another_name():
    names = Names()
    a, b = names("x"), names("max")
    row = names(f"row_{b}")
    assert names.settle(f"{a} {row} max")[row] == "row_max"
    assert names.settle(f"{row}")[row] == "row_max"


def test_long_names_are_cut_and_stay_apart():
    a, b = identifier("x" * 100_000), identifier("x" * 99_999)
    assert a != b and a == identifier("x" * 100_000) and len(a) <= LONGEST


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_escapes_hold_any_text(text):
    assert re.fullmatch(r"[A-Za-z]\w*", identifier(text), re.ASCII)
    assert tokens(f"{comment(text)}\nx") == ["x"] and len(f"{comment(text)} x".splitlines()) == 1
