"""Hopper kernels as text: what a hand-written one prints and compiles to, descriptors against layouts, and what the printer refuses."""

import re

import numpy as np
import pytest

import fcgen as fc
from benchmarks import prologue_specs, prologues
from fcgen.backends.cuda.plan import make_plan
from fcgen.backends.cuda.printer import print_cuda
from fcgen.backends.cuda.wgmma import _row_step, _steps
from fcgen.backends.targets.hopper import INSTRS, TARGETS
from fcgen.build import compiler
from fcgen.errors import FcError
from fcgen.ir.layout import native_smem, wgmma_c
from fcgen.ir.moves import quad_rows
from fcgen.ir.parse import parse_kernel
from fcgen.ir.types import Buffer, f16
from fcgen.runtime import cubin, toolchain
from fcgen.runtime.nvrtc import compile_cuda
from tests.ir.test_async_text import KERNEL

TARGET = TARGETS["sm_90a"]


@pytest.fixture(scope="module")
def product():
    cuda = print_cuda(parse_kernel(KERNEL), TARGET)
    binary = compile_cuda(cuda.text, "sm_90a", name=cuda.name, options=compiler.NVRTC_OPTIONS, line_map=cuda.line_map)
    return cuda, binary


def test_a_product_of_two_roles_compiles_without_spills_or_serialised_products(product):
    cuda, binary = product
    assert cubin.resources(binary.cubin, binary.log)[cuda.name].spill_stores == 0 and "C75" not in binary.log


@pytest.mark.skipif(toolchain.find_tool("nvdisasm") is None, reason="nvdisasm is not installed")
def test_a_product_of_two_roles_is_made_of_hoppers_instructions(product):
    code = cubin.sass(product[1].cubin)
    for word in ("HGMMA.64x64x16.F32", "UTMALDG.2D", "SYNCS", "USETMAXREG"):
        assert word in code, word


def test_maps_are_parameters_with_their_boxes(product):
    cuda, _ = product
    assert [(p.kind, p.name, p.detail) for p in cuda.params if p.kind == "map"] == [("map", "A", (64, 64, 128)), ("map", "B", (64, 64, 128))]
    assert "A" not in [p.name for p in cuda.params if p.kind == "ptr"], "what only bulk copies read needs no pointer"
    assert cuda.threads == 256


def test_the_text_tells_roles_apart_once_and_initialises_barriers_before(product):
    text = product[0].text
    assert text.index("mbar_init(") < text.index("__syncthreads();") < text.index("// role load") < text.index("// role main")
    assert text.count("// role ") == 2 and "setmaxnreg_dec<56>" in text and "setmaxnreg_inc<240>" not in text.split("// role main")[0]


@pytest.mark.parametrize("cols", [16, 32, 48, 64, 80, 96, 128, 256])
def test_descriptor_steps_are_addresses(cols):
    """Every 16-deep step of a descriptor is where the layout puts the step's first element, in both majors."""
    t = Buffer(f16, (128, cols), native_smem(cols, 2))
    at = lambda i, j: np.asarray(t.layout.address(t.shape, 2, i, j))
    deep = np.arange(cols // 16) * 16
    assert (_steps(t, cols // 16, False) == at(0 * deep, deep)).all()
    down = np.arange(8) * 16
    assert (_steps(t, 8, True) == at(down, 0 * down)).all()
    assert _row_step(t, False) == at(64, 0)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_accumulator_is_the_left_operand_of_the_next_product(groups):
    """wgmma's accumulator registers hold what its A registers want: P needs no exchange."""
    layout = wgmma_c(64 * groups, 32, groups)
    c = layout.coords(4 * groups)
    w, l, r = np.meshgrid(np.arange(4 * groups), np.arange(32), np.arange(layout.regs), indexing="ij")
    assert (c[..., 0] == 16 * w + l // 4 + 8 * (r // 2 % 2)).all() and (c[..., 1] == 8 * (r // 4) + 2 * (l % 4) + r % 2).all()


def test_a_quad_holds_the_same_elements_after_it_has_swapped_columns():
    layout = wgmma_c(128, 64, 2)
    swapped = quad_rows(layout)
    a, b = layout.coords(8).reshape(8, 8, -1, 2), swapped.coords(8).reshape(8, 8, -1, 2)
    for w in range(8):
        for quad in range(8):
            assert {tuple(x) for x in a[w, quad].tolist()} == {tuple(x) for x in b[w, quad].tolist()}
    assert swapped.vector() == 8 and quad_rows(wgmma_c(64, 48, 1)) is None


def test_products_of_every_width_have_a_record():
    assert all(f"wgmma_m64n{n}k16_{d}{r}" in INSTRS for n in range(8, 257, 8) for d in ("f16", "bf16") for r in ("", "_rs"))
    assert "wgmma_m64n12k16_f16" not in INSTRS and INSTRS["wgmma_m64n24k16_bf16_rs"].shape == (64, 24, 16)


def test_long_products_of_a_left_operand_in_registers_are_one_statement(monkeypatch):
    """Short ones, and those of both in shared memory, have one for each step."""
    from fcgen.backends.cuda import wgmma
    from fcgen.ir.schedule import Schedule
    from fcgen.passes.machine import alloc
    from tests.sim.hopper import chain

    kernel = alloc.run(parse_kernel(chain(2)), Schedule(), TARGET).with_meta(stage="synced")
    assert "_x4(" not in print_cuda(kernel, TARGET).text
    monkeypatch.setattr(wgmma, "SPARED", 96)  # three steps of 32 registers
    text = print_cuda(kernel, TARGET).text
    found = {m[1]: m[2] for m in re.finditer(r"void (wgmma_m64\w+)\([^{]*\) \{\n(.*?)\n\}\n", text, re.DOTALL)}
    assert {name: (body.count("asm"), body.count("mma_async"), body.count('"+f"')) for name, body in found.items()} == {
        "wgmma_m64n64k16_f16": (1, 1, 32), "wgmma_m64n64k16_f16_rs_x4": (1, 4, 32)}
    steps = [int(n) for n in re.findall(r"add.s64 b0_\d, %48, (\d+);", found["wgmma_m64n64k16_f16_rs_x4"])]
    assert steps == [0, 128, 256, 384], "64 keys of 128 bytes, 16 at a time, in units of 16 bytes"
    assert "setp.ne.b32 first, 1, 0;" in text and text.count("_rs_x4(") == 1 + 2


@pytest.mark.parametrize("ahead, at", [(0, "a_slot"), (1, "((a_slot + 1) % 3)"), (2, "((a_slot + 2) % 3)"), (3, "a_slot")])
def test_a_slot_ahead_of_its_cursor(ahead, at):
    """Of both sides: as a copy's address, and as a descriptor's offset."""
    from fcgen.ir.schedule import Schedule
    from fcgen.passes.machine import alloc
    from tests.sim.hopper import gemm

    kernel = parse_kernel(gemm(3).replace("%sb = slot %b, %n {ahead = 0}", f"%sb = slot %b, %n {{ahead = {ahead}}}"))
    text = print_cuda(alloc.run(kernel, Schedule(), TARGET).with_meta(stage="synced"), TARGET).text
    assert f"tma_load_2d(b_smem + {at} * 8192, b_map, full + a_slot * 8, d, col);" in text
    assert f"b_desc + uint32_t({at} * 512) + k * 2" in text and "a_desc + uint32_t(a_slot * 1024)" in text


@pytest.mark.parametrize("old, new, message", [
    ("mbar_arrive %empty, %c", "%d = advance %c : cursor x1\n  mbar_arrive %empty, %c", "after it has moved on"),
    ("main warps 4 regs 240", "main warps 4 regs 256", ""),
    ("load warps 4 regs 56", "load warps 3 regs 56", "whole warpgroups"),
])
def test_what_cannot_be_printed_is_refused(old, new, message):
    kernel = parse_kernel(KERNEL.replace(old, new))
    if not message:
        kernel = parse_kernel(KERNEL.replace(old, new).replace("load warps 4 regs 56", "load warps 8 regs 152"))
        with pytest.raises(FcError, match="more registers than it was launched with"):
            compiler.to_cuda(kernel, TARGET)
        return
    with pytest.raises(FcError, match=message):
        print_cuda(kernel, TARGET)


@pytest.mark.parametrize("cols, fits", [(192, True), (208, False), (256, False)])
def test_a_product_that_is_too_wide_for_the_launch_is_refused_before_ptxas_does(cols, fits):
    """16 warps leave 128 registers at launch; ptxas wants 26 besides the accumulator of one instruction."""
    import fcgen as fc
    from tests.passes.test_carried import product

    tiles = {"BLOCK_M": 192, "BLOCK_N": cols, "BLOCK_K": 16}
    p = product.compile(target="sm_90a", T=f16, schedule=fc.Schedule(tiles=tiles, warps=12, math="wgmma", copy="tma", epilogue="direct"))
    if fits:
        assert p.resources.spill_stores == 0
    else:
        with pytest.raises(FcError, match=f"over {cols} columns does not fit the registers"):
            compiler.to_cuda(p.machine, TARGET)


def stale_addresses(text: str) -> list[str]:
    """Lines that read a constant which was made of a ring's slot before the slot moved on."""
    made: dict[str, tuple[int, str]] = {}
    gone: set[str] = set()
    out, depth = [], 0
    for line in text.splitlines():
        code = line.split("//")[0]
        if found := re.match(r"\s*const \w+ (\w+) = (.*);", code):
            gone.discard(found[1])
            made[found[1]] = depth, found[2]
        out += [line for name in gone if re.search(rf"\b{name}\b", code)]
        if moved := re.match(r"\s*if \(\+\+(\w+) == ", code):
            gone |= {name for name, (_, value) in made.items() if re.search(rf"\b{moved[1]}\b", value)}
        depth += code.count("{") - code.count("}")
        for name in [name for name, (level, _) in made.items() if level > depth]:
            del made[name]
            gone.discard(name)
    return out


@pytest.mark.parametrize("name", ["normed", "rotary", "biased"])
def test_no_address_outlives_its_slot(name):
    schedule = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 128}, warps=8, math="wgmma", copy="tma", stages=2, epilogue="quad", late="acc")
    p = getattr(prologue_specs, name).compile(target="sm_90a", schedule=schedule, check=False, **prologues.binding(name, 128))
    assert "_slot == 2" in p.cuda and not stale_addresses(p.cuda)


@fc.kernel
def read_behind(Q: "f16[B, M, D]", K: "f16[B, M, D]", V: "f16[B, M, D]", O: "out f32[B, M, D]", *, w: "f32"):
    """What the loop carries is scaled, and added to by a product; what it was is read behind that."""
    (b,) = fc.grid(Q.B)
    state = fc.var(fc.zeros(K.D, V.D))
    for rows in fc.loop(fc.tile(Q.M, "BM")):
        q, k, v = fc.load(Q[b, rows]), fc.load(K[b, rows]), fc.load(V[b, rows])
        new = state * w + fc.dot(k.T, v)
        fc.store(O[b, rows], fc.dot(q, state.to(Q.dtype)))
        state <<= new


def test_no_array_holds_two_values_at_a_time():
    """An accumulator's registers are its product's and its result's: they are none of a value that is read while the product runs, nor
    afterwards."""
    schedule = fc.Schedule(tiles={"BM": 64}, warps=4, math="wgmma", copy="tma")
    program = read_behind.compile(target="sm_90a", schedule=schedule, D=64, check=False)
    plan = make_plan(program.machine)
    for group in plan.group.values():
        assert not any(b in plan.near[a] for a in group for b in group)
    assert program.cubin
