"""epilogue="tma": tiles leave through shared memory and bulk copies. What the passes write, that the simulator is silent about it and gets the
right numbers, that it compiles without spills, and what is refused."""

import re

import numpy as np
import pytest

import fcgen as fc
from fcgen.backends.targets.hopper import INSTRS
from fcgen.errors import FcError
from fcgen.ir.core import walk, walk_kernel
from fcgen.ir.layout import rowwise, wgmma_c
from fcgen.ir.moves import matrix_blocks
from fcgen.ir.parse import parse_kernel
from fcgen.ir.schedule import Schedule
from fcgen.ir.text import print_kernel
from fcgen.kernels.attention import attention

PERSISTENT = ["none", "static", "dynamic"]


@fc.kernel
def product(A: "T[M, K]", B: "T[N, K]", C: "out S[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)
    fc.store(C[rows, cols], acc.to(C.dtype))


@fc.kernel
def split_product(A: "T[P, M, K]", B: "T[P, N, K]", C: "inout S[M, N]"):
    p, rows, cols = fc.grid(A.P, fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc + fc.dot(fc.load(A[p, rows, depth]), fc.load(B[p, cols, depth]).T)
    fc.atomic_add(C[rows, cols], acc.to(C.dtype))


@fc.kernel
def flipped(A: "T[M, K]", B: "T[N, K]", C: "out T[N, M]"):
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)
    fc.store(C[cols, rows], acc.to(C.dtype).T)


@fc.kernel
def repeated(A: "T[M, K]", B: "T[N, K]", C: "out T[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)
        fc.store(C[rows, cols], acc.to(C.dtype))


def schedule(groups=2, n=64, **more):
    return Schedule(tiles={"BLOCK_M": 64 * groups, "BLOCK_N": n, "BLOCK_K": 64}, warps=4 * groups,
                    **{"math": "wgmma", "copy": "tma", "stages": 2, "epilogue": "tma", **more})


def compiled(spec=product, dtype=fc.f16, out=fc.f16, target="sm_90a", **more):
    binding = {"T": dtype, "S": out} if any(p.dtype == "S" for p in spec.signature.tensors) else {"T": dtype}
    return spec.compile(target=target, schedule=schedule(**more), **binding)


def inputs(m=200, n=72, k=72, seed=0, p=None):
    rng = np.random.default_rng(seed)
    lead = () if p is None else (p,)
    return {"A": rng.standard_normal((*lead, m, k)).astype(np.float16), "B": rng.standard_normal((*lead, n, k)).astype(np.float16)}


def main_ops(p):
    return list(walk(p.machine.roles[-1].body))


def words(p):
    """The ops of stores and what orders them, in order."""
    kinds = ("bulk_wait", "barrier", "stmatrix", "st_shared", "proxy_fence", "tma_store", "bulk_commit", "st_global")
    return [o.kind + ("!" if o.get("read") else "") + ("/" + str(o["parts"]) if o.kind == "barrier" and o.get("parts") else "")
            for o in main_ops(p) if o.kind in kinds]


# ---- what the passes write ---------------------------------------------------------------------------------------------


def test_a_tile_is_staged_fenced_and_stored_by_each_warpgroup_for_itself():
    assert words(compiled()) == ["stmatrix", "proxy_fence", "barrier/2", "tma_store", "bulk_commit", "bulk_wait!"]


@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_the_next_tile_waits_for_the_store_right_before_it_stages(how):
    p = compiled(persistent=how)
    assert words(p) == ["bulk_wait!", "barrier/2", "stmatrix", "proxy_fence", "barrier/2", "tma_store", "bulk_commit", "bulk_wait!"]
    body = next(o for o in main_ops(p) if o.kind == "while").regions[0].ops
    kinds = [o.kind for o in body]
    assert kinds.index("bulk_wait") > kinds.index("for"), "the loop over depth runs beside the last tile's store"
    assert main_ops(p)[-1].kind == "bulk_wait" and main_ops(p)[-1]["read"], "the end of the kernel writes what its threads have left"


def test_one_warpgroup_needs_the_barrier_of_its_role():
    assert words(compiled(groups=1)) == ["stmatrix", "proxy_fence", "barrier", "tma_store", "bulk_commit", "bulk_wait!"]


def test_32_bits_are_staged_by_plain_stores():
    p = compiled(out=fc.f32)
    assert "st_shared" in words(p) and "stmatrix" not in words(p)
    (store,) = [o for o in main_ops(p) if o.kind == "tma_store"]
    assert str(store.operands[-1].type) == "smem f32[128,64]{panel 32 swizzle 128}"


def test_a_transposed_tile_is_staged_by_the_transposing_store():
    (op,) = [o for o in main_ops(compiled(flipped)) if o.kind == "stmatrix"]
    assert op["trans"]
    (store,) = [o for o in main_ops(compiled(flipped)) if o.kind == "tma_store"]
    assert (store["parts"], store["across"]) == (2, True), "each warpgroup has columns of its own"


def test_a_second_store_to_one_tensor_waits_until_the_first_is_complete():
    kinds = words(compiled(repeated))
    first = kinds.index("tma_store")
    assert "bulk_wait" in kinds[:first] and kinds[kinds.index("bulk_wait") + 1] == "barrier"


def test_a_staging_buffer_shares_its_bytes_with_nothing():
    m = compiled(persistent="static").machine
    spans = sorted((at, at + b.type.bytes) for b, at in zip(m.buffers, m.meta["smem_offsets"]))
    stage = next(o.operands[-1] for o in walk_kernel(m) if o.kind == "tma_store")
    at = m.meta["smem_offsets"][m.buffers.index(stage)]
    assert sum(low < at + stage.type.bytes and at < high for low, high in spans) == 1


def test_vectors_are_stored_from_registers():
    p = attention.compile(target="sm_90a", schedule=ATTENTION, T=fc.f16, D=64, E=64, mask="none", lazy=2.0)
    assert {o.operands[0].name: o.kind for o in main_ops(p) if o.kind in ("tma_store", "st_global")} == {"O": "tma_store", "LSE": "st_global"}


# ---- running -----------------------------------------------------------------------------------------------------------

ATTENTION = Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 32}, warps=8, math="wgmma", copy="tma", stages=2, late="acc", vote=True, epilogue="tma")


def close(got, want, limit=4e-3):
    for name, x in want.items():
        a, b = np.asarray(got[name], np.float64), np.asarray(x, np.float64)
        assert (np.isinf(a) == np.isinf(b)).all()
        both = np.isfinite(b)
        assert np.abs(a[both] - b[both]).max(initial=0) <= limit * max(1, np.abs(b[both]).max(initial=0)), name


@pytest.mark.parametrize("m, n, k", [(128, 64, 64), (200, 72, 72), (1, 8, 200)])
@pytest.mark.parametrize("how", PERSISTENT)
def test_products(how, m, n, k):
    for seed, (dtype, out) in enumerate([(fc.f16, fc.f16), (fc.f16, fc.f32), (fc.bf16, fc.bf16)]):
        p = compiled(dtype=dtype, out=out, persistent=how)
        a = inputs(m, n, k, seed)
        close(p.simulate(seed=seed, **a), p.interpret(**a), 1e-2 if out == fc.bf16 else 2e-3)


@pytest.mark.parametrize("spec", [flipped, repeated])
def test_other_ways_to_store(spec):
    for seed in range(3):
        a = inputs(200, 72, 136, seed)
        p = compiled(spec, persistent="static")
        close(p.simulate(seed=seed, **a), p.interpret(**a))


@pytest.mark.parametrize("how", PERSISTENT)
def test_attention(how):
    from dataclasses import replace

    p = attention.compile(target="sm_90a", schedule=replace(ATTENTION, persistent=how), T=fc.f16, D=16, E=24, mask="causal_top_left",
                             lazy=2.0)
    rng = np.random.default_rng(1)
    draw = lambda h, s, w: rng.standard_normal((1, h, s, w)).astype(np.float16)
    for seed in range(3):
        a = {"Q": draw(2, 150, 16), "K": draw(1, 70, 16), "V": draw(1, 70, 24), "scale": 0.4}
        close(p.simulate(seed=seed, **a), p.interpret(**a))


@pytest.mark.parametrize("out", [fc.f32, fc.f16, fc.bf16])
@pytest.mark.parametrize("epilogue", ["tma", "direct"])
def test_programs_add_to_one_tensor(epilogue, out):
    p = compiled(split_product, out=out, epilogue=epilogue)
    for seed in range(3):
        a = inputs(200, 72, 72, seed, p=3)
        a["C"] = np.ones((200, 72), np.float32)
        close(p.simulate(seed=seed, **a), p.interpret(**a), 3e-2 if out == fc.bf16 else 4e-3)


def test_what_is_added_prints_as_a_reduction():
    text = compiled(split_product, out=fc.f32).cuda
    assert "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group" in text and "tma_add_2d(c_map" in text
    assert "red_add_f32(" in compiled(split_product, out=fc.f32, epilogue="direct").cuda
    assert "red_add_bf16(c_ptr" in compiled(split_product, out=fc.bf16, epilogue="direct").cuda


@pytest.mark.parametrize("kind, code", [("proxy_fence", "sim/proxy"), ("barrier", "sim/race"), ("bulk_wait", "sim/"), ("bulk_commit", "sim/")])
def test_a_missing_op_of_a_generated_store_is_reported(kind, code):
    from dataclasses import replace

    from fcgen.ir.core import Block
    from fcgen.sim.machine import simulate

    p = compiled(persistent="static")

    def without(block, victim):
        ops = tuple(replace(o, regions=tuple(without(r, victim) for r in o.regions)) if o.regions else o for o in block.ops if o is not victim)
        return Block(block.args, ops)

    victims = [o for o in main_ops(p) if o.kind == kind]
    assert victims
    for victim in victims:
        roles = (*p.machine.roles[:-1], replace(p.machine.roles[-1], body=without(p.machine.roles[-1].body, victim)))
        codes = {e.code for seed in range(3) for e in simulate(replace(p.machine, roles=roles), inputs(400, 136, 64), p.target, seed=seed).reports}
        assert any(c.startswith(code) for c in codes), (kind, codes)


# ---- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", PERSISTENT)
@pytest.mark.parametrize("out", [fc.f16, fc.f32])
def test_products_compile_without_spills(how, out):
    p = compiled(out=out, n=128, persistent=how)
    assert p.resources.spill_stores == 0 and "C75" not in p.built.log
    copies = re.findall(r"tma_store_2d\(c_map, .*, rows_start\w* \+ warp / 4 \* 64, ", p.cuda)
    assert len(copies) == 128 * out.bytes // 128, "one per panel of 128 bytes"


def test_attention_compiles_without_spills_and_needs_no_pointer_to_its_output():
    from dataclasses import replace

    s = replace(ATTENTION, tiles={"BLOCK_M": 128, "BLOCK_N": 128}, persistent="dynamic")
    p = attention.compile(LSE=None, target="sm_90a", schedule=s, T=fc.f16, D=128, E=128, mask="causal_top_left", lazy=2.0)
    assert p.resources.spill_stores == 0 and "C75" not in p.built.log
    flat = [(kind, name, detail) for kind, name, _, detail in p.built.facts.flat if name == "O"]
    assert flat == [("map", "O", (1, 1, 64, 64, 128))]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", "_trans"])
def test_a_matrix_store_is_the_inverse_of_the_matrix_load(count, trans):
    regs = np.arange(32 * 2 * count).reshape(32, 2 * count)
    blocks = INSTRS[f"stmatrix_x{count}{trans}"].effect(regs)
    np.testing.assert_array_equal(INSTRS[f"ldmatrix_x{count}{trans}"].effect(blocks), regs)


def test_which_fragments_are_made_of_blocks():
    assert matrix_blocks(wgmma_c(128, 64, 2), 8) == "rows" and matrix_blocks(wgmma_c(64, 32, 1).transpose(), 4) == "columns"
    assert matrix_blocks(wgmma_c(64, 32, 1), 8) is None, "copies: two warps would write one block"
    assert matrix_blocks(rowwise(64, 64, 4, 8, 8), 4) is None and matrix_blocks(wgmma_c(64, 32, 1).drop(1), 4) is None


def test_bulk_ops_read_back_as_they_were_printed():
    text = print_kernel(compiled(persistent="static").machine)
    assert print_kernel(parse_kernel(text)) == text


@pytest.mark.parametrize("old, new, rule", [
    ("parts = 2, reduce", "parts = 3, reduce", "equal parts of the rows"),
    ("tma_store %C", "tma_store %A", "staged tile|one dtype|dtype|one index word per tensor dimension"),
    ("reduce = add", "reduce = mul", "attribute 'reduce' may not have this value"),
    ("panel 32 swizzle 128", "panel 32 pad 4", "without padding"),
])
def test_a_bulk_store_that_breaks_a_rule_is_named(old, new, rule):
    text = print_kernel(compiled(split_product, out=fc.f32).machine)
    assert old in text
    with pytest.raises(FcError, match=rule) as e:
        parse_kernel(text.replace(old, new))
    assert e.value.code in ("ir/verify", "ir/parse")


# ---- refusals ----------------------------------------------------------------------------------------------------------


def refused(match, *args, **more):
    with pytest.raises(FcError, match=match) as e:
        _ = compiled(*args, **more).machine
    assert e.value.code == "compile/unsupported" and e.value.loc is not None and e.value.hint
    return e.value


def test_other_targets_have_no_bulk_stores():
    refused("sm_89 has no bulk tensor stores", target="sm_89", math="mma", copy="cp_async", groups=1)


def test_mma_on_hopper_stores_in_bulk_too():
    p = compiled(math="mma", copy="cp_async")
    assert words(p)[-6:] == ["stmatrix", "proxy_fence", "barrier/2", "tma_store", "bulk_commit", "bulk_wait!"]
    close(p.simulate(**inputs()), p.interpret(**inputs()))


def test_rows_of_a_box_are_whole_runs_of_16_bytes():
    @fc.kernel
    def narrow(X: "f32[M, N]", Y: "out f32[M, N]"):
        rows, cols = fc.grid(fc.tile(X.M, "BLOCK_M"), fc.tile(X.N, "BLOCK_N"))
        fc.store(Y[rows, cols], fc.load(X[rows, cols]))

    with pytest.raises(FcError, match="a bulk store of Y takes rows are multiples of 16 bytes"):
        _ = narrow.compile(target="sm_90a", schedule=Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 2}, epilogue="tma")).machine


def test_element_types_without_a_map():
    @fc.kernel
    def copied(X: "i64[M, 8]", Y: "out i64[M, 8]"):
        (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
        fc.store(Y[rows, :], fc.load(X[rows, :]))

    with pytest.raises(FcError, match="an element type that tensor maps have"):
        _ = copied.compile(target="sm_90a", schedule=Schedule(tiles={"BLOCK_M": 64}, epilogue="tma")).machine


def test_a_tensor_that_is_read_too():
    @fc.kernel
    def twice(X: "inout f32[M, 64]"):
        (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
        fc.store(X[rows, :], 2.0 * fc.load(X[rows, :]))

    with pytest.raises(FcError, match="X is written by bulk stores and is read too"):
        _ = twice.compile(target="sm_90a", schedule=Schedule(tiles={"BLOCK_M": 64}, epilogue="tma")).machine
