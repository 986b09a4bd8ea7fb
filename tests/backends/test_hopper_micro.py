"""What the GPU tests of Hopper's instructions will run: it compiles, as it is meant, and leaves no record out."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from fcgen.backends.targets.hopper import INSTRS
from fcgen.runtime import nvrtc, toolchain
from fcgen.runtime.cubin import sass
from tests.gpu import micro_hopper as micro
from tests.sim.cases import EVERYTHING

TESTS = Path(micro.__file__).with_name("test_hopper_instructions.py")
#: records without a value: they order others, or move registers
ORDER = {"wgmma_fence", "wgmma_commit", "wgmma_wait", "proxy_fence", "mbar_init", "mbar_init_fence", "mbar_expect", "mbar_arrive", "mbar_wait",
         "tensormap_prefetch", "setmaxnreg_inc", "setmaxnreg_dec", "bar_sync", "bar_arrive", "grid_wait", "launch_dependents"}


@pytest.fixture(scope="module")
def binary():
    pytest.importorskip("cuda.bindings.nvrtc")
    return micro.binary


#: of the products of halves of both kinds, which one function writes, those of f16; all with FCGEN_ALL=1
@pytest.mark.parametrize("part", [part for part in micro.PARTS if EVERYTHING or part != "bf16"])
def test_every_kernel_compiles_without_complaints(binary, part):
    """No warning, no product that ptxas made wait for another (C7504 to C7520), no register that it would not move, no spill."""
    made = binary(part)
    assert not made.warnings and not re.findall(r"\bC7\d{3}\b", made.log)
    names = re.findall(r" t_(\w+)\(", "\n".join(micro.kernels(part)))
    resources = made.resources()
    assert len(names) == len(set(names)) and {f"t_{n}" for n in names} == set(resources)
    assert not [n for n, r in resources.items() if r.spill_stores]


@pytest.mark.skipif(toolchain.find_tool("nvdisasm") is None, reason="nvdisasm is not installed")
def test_warpgroups_take_and_give_registers(binary):
    code = sass(binary("rest").cubin)
    assert "USETMAXREG" in code and binary("rest").resources()["t_registers"].registers == 168


#: Records that whole programs show: what they are called -> the module with the tests.
PROGRAMS = {r"wgmma_m64n\d+k32_.*|touch_i32": "test_narrow_types.py",
            r"bulk_.*|stmatrix_.*|tma_(store|add)_.*|red_add_.*": "test_hopper_stores.py",
            r"cluster_.*|mbar_arrive_cluster|tma_load_.*_multicast(_hint)?": "test_clusters.py",
            r"(await|end)_turn": "test_turns.py",
            r"st_cluster_.*|mbar_tell|mbar_wait_cluster|block_address": "test_parts.py"}


def by_programs(name: str) -> bool:
    return any(re.fullmatch(pattern, name) and (TESTS.parent / module).exists() for pattern, module in PROGRAMS.items())


def test_every_record_is_covered():
    """Each record is said to be covered by a test that exists, and is called in a kernel; every value has an effect in NumPy."""
    own = [n for n in micro.own() if not by_programs(n)]
    assert set().union(*micro.COVERS.values()) == set(own)
    functions = {n.name for n in ast.parse(TESTS.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)}
    assert set(micro.COVERS) == {f for f in functions if f.startswith("test_")}
    text = "\n".join(k for part in micro.PARTS for k in micro.kernels(part))
    assert [n for n in own if not re.search(rf"\b{n}[(<]", text)] == []
    assert {n for n in own if INSTRS[n].effect is None} == ORDER


def test_transpositions_are_covered():
    """All that are legal, for the narrowest, the widest and some others; over all widths each occurs."""
    assert {(n, r, t) for n in micro.FULL for r in (False, True) for t in micro.turns(n, r)} >= {
        (n, r, (ta, tb)) for n in (8, 256) for r in (False, True) for ta in (0, 1) for tb in (0, 1) if not (r and ta)}
    others = [n for n in range(8, 257, 8) if n not in micro.FULL]
    assert {t for n in others for t in micro.turns(n, False)} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {t for n in others for t in micro.turns(n, True)} == {(0, 0), (0, 1)}


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("span", [128, 64, 32, 0])
def test_operands_keep_to_themselves(span, down):
    """An operand in its image: its 16-deep run and nothing else is not NaN, and its descriptor starts on it."""
    operand = micro.Operand(64, span, down, 1, 8192)
    image = np.full(operand.end // 2, 0x7FFF, np.uint16)
    halves = np.arange(64 * 16, dtype=np.uint16).reshape(64, 16)
    operand.put(image, halves)
    assert sorted(image[image != 0x7FFF]) == list(range(64 * 16))
    start = (operand.descriptor & 0x3FFF) << 4
    assert image[(start ^ ((start >> 3) & {128: 0x70, 64: 0x30, 32: 0x10, 0: 0}[span])) // 2] == 0


def test_a_kernel_that_does_not_compile_is_found():
    pytest.importorskip("cuda.bindings.nvrtc")
    with pytest.raises(Exception, match="wgmma"):
        nvrtc.compile_cuda(micro.source("rest") + "KERNEL(128) t_bad(float* d) { wgmma_m64n12k16_f16(d); }", micro.ARCH, name="bad")
