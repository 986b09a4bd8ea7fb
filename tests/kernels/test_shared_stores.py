"""A tile that lies in shared memory as an operand is stored in bulk from there; tiles that loops stage for stores lie in two places in turn;
where the waits for the engine stand, and which stores need not be complete one after the other."""

from dataclasses import replace

import numpy as np
import pytest

import fcgen as fc
from fcgen.errors import FcError
from fcgen.ir.core import Op, Value, definitions, walk
from fcgen.ir.schedule import Schedule
from fcgen.ir.types import Scalar, i32
from fcgen.kernels.backward import backward, backward_scores
from fcgen.passes.facts.stores import lie_apart, stored_alone
from fcgen.sim.machine import check
from tests.kernels.test_stores import close, main_ops, words
from tests.sim.generated import kept, scores
from tests.stored_scores import backward_of_both

LOOP = ["stmatrix", "proxy_fence", "bulk_wait!", "barrier", "tma_store", "bulk_commit"]


@fc.kernel
def stored_first(A: "T[M, K]", B: "T[N, K]", S: "out T[M, N]", C: "out f32[N, K]"):
    (cols,) = fc.grid(fc.tile(B.N, "BLOCK_N"))
    b, acc = fc.load(B[cols, :]), fc.var(fc.zeros(cols, B.K))
    for rows in fc.loop(fc.tile(A.M, "BLOCK_M")):
        a = fc.load(A[rows, :])
        s = fc.dot(a, b.T).to(A.dtype)
        fc.store(S[rows, cols], s)
        acc <<= acc + fc.dot(s.T, a)
    fc.store(C[cols, :], acc)


@fc.kernel
def kept_in_part(A: "T[M, K]", B: "T[N, K]", S: "out T[M, N]", C: "out f32[N, K]"):
    """What is stored is not what the product reads."""
    (cols,) = fc.grid(fc.tile(B.N, "BLOCK_N"))
    b, acc = fc.load(B[cols, :]), fc.var(fc.zeros(cols, B.K))
    for rows in fc.loop(fc.tile(A.M, "BLOCK_M")):
        a = fc.load(A[rows, :])
        s = fc.dot(a, b.T)
        acc <<= acc + fc.dot(s.to(A.dtype).T, a)
        fc.store(S[rows, cols], (s * 2.0).to(A.dtype))
    fc.store(C[cols, :], acc)


@fc.kernel
def in_ranges(A: "T[M, K]", B: "T[N, K]", S: "out T[M, N]", *, cut: "i32"):
    """One loop that `split_loops` makes two of: a mask on rows."""
    (cols,) = fc.grid(fc.tile(B.N, "BLOCK_N"))
    b = fc.load(B[cols, :])
    for rows in fc.loop(fc.tile(A.M, "BLOCK_M")):
        s = fc.dot(fc.load(A[rows, :]), b.T)
        fc.store(S[rows, cols], fc.where(rows.index < cut, s, 0.0).to(A.dtype))


def compiled(spec, k=64, **more):
    schedule = Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 64}, warps=8, math="wgmma", copy="tma", epilogue="tma", **{"stages": 2, **more})
    return spec.compile(target="sm_90a", schedule=schedule, T=fc.f16, K=k)


def inputs(m, n=72, k=64, seed=0):
    rng = np.random.default_rng(seed)
    return {"A": (rng.standard_normal((m, k)) / 8).astype(np.float16), "B": (rng.standard_normal((n, k)) / 8).astype(np.float16)}


def loops(p):
    return [o for o in main_ops(p) if o.kind == "for" and any(x.kind == "tma_store" for x in o.regions[0].ops)]


def stores(p, name="S"):
    return [o for o in main_ops(p) if o.kind == "tma_store" and o.operands[0].name == name]


# ---- what the passes write ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [kept, stored_first])
def test_an_operand_is_staged_once_and_stored_from_there_by_one_thread(spec):
    """The engine is waited for in front of the barrier of the iteration before: there are two places."""
    p = compiled(spec)
    assert words(p)[:6] == LOOP and "stmatrix" not in words(p)[6:]
    (store,) = stores(p)
    (product,) = [o for o in main_ops(p) if o.kind == "wgmma" and store.operands[-1] in o.operands]
    assert store["parts"] == 1 and definitions(p.machine.roles[-1].body)[store.operands[-1]].operands[0].type.slots == 2
    assert (main_ops(p).index(store) < main_ops(p).index(product)) == (spec is stored_first)
    assert p.resources.spill_stores == 0 and "C75" not in p.built.log


def test_a_tile_that_is_stored_otherwise_than_it_is_read_has_a_place_of_its_own():
    p = compiled(kept_in_part)
    assert words(p).count("stmatrix") == 2 and stores(p)[0]["parts"] == 2


def test_a_product_that_follows_behind_keeps_its_channel():
    schedule = Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 128}, warps=8, math="wgmma", copy="tma", epilogue="tma", stages={"q": 2, "do": 2},
                        behind="dq", split="branch")
    p = backward_of_both.compile(target="sm_90a", schedule=schedule, T=fc.f16, D=32, E=32)
    read = {v for o in main_ops(p) if o.kind == "wgmma" for v in o.operands}
    assert stores(p, "dS") and not any(o.operands[-1] in read for o in stores(p, "dS"))


def test_a_sender_has_what_products_do_not_read():
    with pytest.raises(FcError, match="no loop stores a tile by bulk copies that no product reads"):
        _ = compiled(kept, sender=True).machine
    assert "send" in [r.name for r in compiled(kept_in_part, sender=True).machine.roles]


@pytest.mark.parametrize("spec, alone", [(kept, {"c_tile"}), (kept_in_part, {"c_tile", "s_tile"}), (scores, {"s_tile"})])
def test_which_tiles_bulk_stores_alone_read(spec, alone):
    assert {v.name for v in stored_alone(compiled(spec).machine)} == alone


@pytest.mark.parametrize("more", [{}, {"early": "s"}])
def test_a_loop_that_stages_for_its_stores_has_two_places_and_one_barrier_of_each_part(more):
    p = compiled(scores, **more)
    (loop,) = loops(p)
    kinds = [o.kind for o in loop.regions[0].ops if o.kind in ("barrier", "bulk_wait", "stmatrix", "tma_store")]
    assert kinds == ["stmatrix", "bulk_wait", "barrier", "tma_store"]
    assert all(o["read"] for o in walk(loop) if o.kind == "bulk_wait") and all(o["parts"] == 2 for o in walk(loop) if o.kind == "barrier")


def test_what_hangs_on_no_result_of_the_last_product_is_staged_while_that_runs():
    """In front of the wait for it, behind which the next iteration's products are issued."""
    schedule = Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 128}, warps=8, math="wgmma", copy="tma", epilogue="tma", stages={"q": 2, "do": 2},
                        split="branch", early="s")
    ops = loop_of(backward_scores.compile(target="sm_90a", schedule=schedule, T=fc.f16, D=64, E=64, mask="none")).regions[0].ops
    products = [n for n, o in enumerate(ops) if o.kind == "wgmma"]
    staged = [n for n, o in enumerate(ops) if o.kind in ("stmatrix", "tma_store")]
    assert len(products) == 4 and len(staged) == 2 and products[2] < staged[0] < staged[1] < products[3]
    assert next(o for o in ops[staged[1]:] if o.kind in ("settle", "wgmma_fence")).kind == "settle"


def test_without_room_for_two_places_there_is_one():
    p = compiled(scores, k=128, stages=6)
    (loop,) = loops(p)
    kinds = [o.kind for o in loop.regions[0].ops if o.kind in ("barrier", "bulk_wait", "stmatrix", "tma_store")]
    assert kinds == ["bulk_wait", "barrier", "stmatrix", "barrier", "tma_store"]


def test_the_backward_pass_of_large_heads_keeps_the_gradient_of_scores_for_nothing():
    """Shared memory, barriers and matrix stores are those of the same pass without that store."""
    schedule = Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, warps=8, math="wgmma", copy="tma", epilogue="tma", stages={"q": 2, "do": 2},
                        split="branch")
    facts = {"target": "sm_90a", "schedule": schedule, "check": False, "T": fc.f16, "D": 256, "E": 256, "mask": "causal_top_left"}
    with_it, without = backward_scores.compile(**facts), backward.compile(**facts, dQ=None)
    assert with_it.machine.meta["smem_bytes"] == without.machine.meta["smem_bytes"]
    count = lambda p, kind: sum(o.kind == kind for o in walk(loop_of(p)))
    for kind in ("barrier", "stmatrix", "proxy_fence"):
        assert count(with_it, kind) == count(without, kind) == 2, kind
    (wait,) = [o for o in walk(loop_of(with_it)) if o.kind == "bulk_wait"]
    assert (wait["n"], wait["read"]) == (1, True)


def loop_of(p):
    return next(o for o in main_ops(p) if o.kind == "for" and any(x.kind == "wgmma" for x in o.regions[0].ops))


# ---- running -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 128, 129, 300, 600])
@pytest.mark.parametrize("spec", [kept, stored_first, kept_in_part, scores])
def test_any_number_of_iterations(spec, m):
    p = compiled(spec)
    for seed in range(3):
        a = inputs(m, seed=seed)
        close(p.simulate(seed=seed, **a), p.interpret(**a))


@pytest.mark.parametrize("reader", ["tma_store", "wgmma"])
def test_a_tile_that_is_written_again_too_early_is_seen_with_either_reader(reader):
    """Planted: the engine is given one iteration more; or, without it, the next tile goes where a product still reads."""
    p, a = compiled(kept), inputs(500)
    zero = next(o.result for o in main_ops(p) if o.kind == "const" and o["value"] == 0 and o.result.type == Scalar(i32))
    (stored,) = stores(p)

    def early(block):
        ops = []
        for o in block.ops:
            if reader == "tma_store" and o.kind == "bulk_wait" and o["read"]:
                o = o.with_attrs(n=o["n"] + 1)
            elif reader == "wgmma" and o.kind == "slot" and o.operands[0].name == "w_tile":
                o = replace(o, operands=(o.operands[0], zero))
            ops += [o.within(early)] if o is not stored or reader == "tma_store" else []
        return replace(block, ops=tuple(ops))

    main = p.machine.roles[-1]
    kernel = replace(p.machine, roles=(*p.machine.roles[:-1], replace(main, body=early(main.body))))
    with pytest.raises(FcError, match=rf"(?s)sim/race.*w_tile.*{reader}"):
        for seed in range(4):
            check(kernel, a, p.target, seed=seed)
    check(p.machine, a, p.target)


# ---- stores that need not be complete one after the other -----------------------------------------------------------------


def test_parts_of_a_loop_do_not_wait_for_each_others_stores():
    p = compiled(in_ranges, split="loops")
    assert len(loops(p)) > 1 and all(o["read"] for loop in loops(p) for o in walk(loop) if o.kind == "bulk_wait")
    assert not any(o.kind == "bulk_wait" and not o["read"] for o in main_ops(p))
    for seed, m in enumerate((100, 400, 600)):
        a = {**inputs(m, seed=seed), "cut": 200}
        close(p.simulate(seed=seed, **a), p.interpret(**a))


def test_the_last_iteration_behind_a_loop_does_not_wait_for_its_stores():
    assert [o["read"] for o in main_ops(compiled(scores, early="s")) if o.kind == "bulk_wait"] == [True, True]


@pytest.mark.parametrize("index, apart", [
    (lambda lo, hi, sub: hi, True), (lambda lo, hi, sub: sub(hi, -1), True), (lambda lo, hi, sub: sub(lo, 1), True),
    (lambda lo, hi, sub: lo, False), (lambda lo, hi, sub: sub(hi, 1), False), (lambda lo, hi, sub: Value(Scalar(i32), "x"), False)])
def test_which_stores_lie_apart(index, apart):
    """One in a loop, and one behind it for some index."""
    p = compiled(scores, early="s")
    inside, behind = stores(p)
    body = p.machine.roles[-1].body
    defs, (loop,) = dict(definitions(body)), loops(p)

    def made(kind, *operands, **attrs):
        v = Value(Scalar(i32), kind)
        defs[v] = Op(kind, operands, (v,), attrs)
        return v

    lo, hi = loop.operands[:2]
    at = index(lo, hi, lambda v, n: made("sub", v, made("const", value=n, dtype="i32")))
    start = made("mul", at, made("const", value=128, dtype="i32"))
    other = replace(behind, operands=tuple(start if v in walk_starts(behind, defs) else v for v in behind.operands))
    assert lie_apart(inside, other, {loop.regions[0].args[0]: loop}, defs) is apart
    half = made("mul", at, made("const", value=64, dtype="i32"))
    closer = replace(behind, operands=tuple(half if v in walk_starts(behind, defs) else v for v in behind.operands))
    assert not lie_apart(inside, closer, {loop.regions[0].args[0]: loop}, defs)


def walk_starts(store, defs):
    """Where its rows begin."""
    return [v for v in store.operands[1:-1] if v.name.startswith("rows")]


def test_iterations_that_store_one_place_wait_until_the_last_one_is_complete():
    from tests.kernels.test_stores import compiled as product
    from tests.kernels.test_stores import repeated

    (loop,) = loops(product(repeated))
    assert any(o.kind == "bulk_wait" and not o["read"] for o in walk(loop))
