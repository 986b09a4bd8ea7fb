"""Walking, copying, rewriting and dead code on programs with regions."""

from __future__ import annotations

from fcgen.ir.core import Block, Kernel, Op, Role, Value, definitions, uses, walk
from fcgen.ir.ops import has_effect
from fcgen.ir.rewrite import Builder, Env, copy_block, map_bodies, remove_dead, rewrite, substitute_block
from fcgen.ir.text import print_kernel
from fcgen.ir.types import Scalar, Tensor, Tile, f32, i1, i32
from fcgen.ir.verify import verify

from .programs import same, tile_kernel

I, F = Scalar(i32), Scalar(f32)
OUT = Value(Tensor(f32, ("N",)), "O")


def kernel(block: Block) -> Kernel:
    return verify(Kernel("k", "tile", (OUT,), (), (Role("all", 0, block),)))


def kinds(block: Block) -> list[str]:
    return [o.kind for o in walk(block)]


def const(b: Builder, n: float = 0, dtype: str = "i32", name: str = "") -> Value:
    return b.emit("const", value=n, dtype=dtype, name=name)


def store(b: Builder, v: Value) -> None:
    b.do("store", OUT, v, const(b), index=("tile",), guard=(True,))


def stored(b: Builder, v: Value) -> list[Value]:
    store(b, v)
    return []


def tile_of(b: Builder, v: Value) -> Value:
    return b.emit("full", v, shape=(8,))


def loop(b: Builder, inits: list[Value], build, live=None, **attrs) -> tuple[Value, ...]:
    """A loop whose body is `build(builder, index, carried) -> yielded`, and its results."""
    lo, hi = const(b, 0), const(b, 4)
    j, carried = Value(I, "j"), tuple(Value(v.type, v.name) for v in inits)
    body = Builder()
    body.do("yield", *build(body, j, carried))
    regions = [body.block((j, *carried))]
    if live is not None:
        k = Value(I, "jl")
        cond = Builder()
        cond.do("yield", live(cond, k))
        regions.append(cond.block((k,)))
    results = tuple(Value(v.type, v.name) for v in inits)
    b.add(Op("for", (lo, hi, *inits), results, attrs, tuple(regions)))
    return results


# ---- dead code -----------------------------------------------------------------------------------------------------------


def test_a_pure_loop_nobody_reads_goes():
    b = Builder()
    loop(b, [const(b, 1.0, "f32")], lambda c, j, v: [c.emit("exp", v[0])])
    assert kinds(remove_dead(b.block())) == []


def test_a_pure_if_nobody_reads_goes():
    b, then, other = Builder(), Builder(), Builder()
    then.do("yield", const(then))
    other.do("yield", const(other))
    b.emit("if", const(b, 1, "i1"), type=I, regions=(then.block(), other.block()))
    assert kinds(remove_dead(b.block())) == []


def test_a_loop_that_stores_stays_and_what_it_reads_too():
    b = Builder()
    x = tile_of(b, const(b, 1.0, "f32"))
    loop(b, [], lambda c, j, v: stored(c, c.emit("exp", x)))
    assert kinds(remove_dead(kernel(b.block()).body)) == [
        "const", "full", "const", "const", "for", "exp", "const", "store", "yield"]


def test_effects_are_seen_at_any_depth():
    b = Builder()
    loop(b, [], lambda c, j, v: loop(c, [], lambda d, j2, w: stored(d, tile_of(d, const(d, 1.0, "f32")))))
    assert has_effect(b.ops[-1])
    block = remove_dead(b.block())
    assert kinds(block).count("store") == 1 and kinds(block).count("for") == 2
    kernel(block)


def test_carried_values_that_matter_to_nobody_are_dropped():
    b = Builder()
    x, y, z = (tile_of(b, const(b, float(n), "f32")) for n in range(3))

    def body(c, j, v):
        # x feeds the store; y only itself; z feeds x
        return [c.emit("add", v[0], v[2]), c.emit("exp", v[1]), c.emit("neg", v[2])]

    r = loop(b, [x, y, z], body)
    store(b, r[0])
    block = remove_dead(b.block())
    (op,) = [o for o in block.ops if o.kind == "for"]
    assert len(op.results) == len(op.operands) - 2 == len(op.regions[0].args) - 1 == len(op.regions[0].yielded) == 2
    assert "exp" not in kinds(block) and kinds(block).count("full") == 2
    kernel(block)


def test_a_carried_value_read_only_by_an_effect_in_the_body_stays():
    b = Builder()
    x = tile_of(b, const(b, 1.0, "f32"))

    def body(c, j, v):
        store(c, v[0])
        return [c.emit("neg", v[0])]

    loop(b, [x], body)
    block = remove_dead(b.block())
    (op,) = [o for o in block.ops if o.kind == "for"]
    assert len(op.results) == 1 and "neg" in kinds(block)
    kernel(block)


def test_what_only_the_live_region_reads_stays():
    b = Builder()
    limit = const(b, 7, name="limit")
    dead = const(b, 9, name="dead")
    x = tile_of(b, const(b, 1.0, "f32"))
    r = loop(b, [x, dead], lambda c, j, v: [c.emit("neg", v[0]), c.emit("add", v[1], j)], live=lambda c, k: c.emit("lt", k,
                                                                                                                   limit))
    store(b, r[0])
    block = remove_dead(b.block())
    (op,) = [o for o in block.ops if o.kind == "for"]
    assert len(op.regions) == 2 and kinds(op.regions[1]) == ["lt", "yield"]
    assert limit in definitions(block) and dead not in definitions(block) and len(op.results) == 1
    kernel(block)


def test_dead_code_inside_the_live_region_goes():
    b = Builder()

    def live(c, k):
        c.emit("mul", k, k)
        return c.emit("lt", k, k)

    x = tile_of(b, const(b, 1.0, "f32"))
    store(b, *loop(b, [x], lambda c, j, v: [c.emit("neg", v[0])], live=live))
    assert "mul" not in kinds(remove_dead(b.block()))


def test_results_of_an_if_shrink_with_its_yields():
    b, then, other = Builder(), Builder(), Builder()
    x = tile_of(b, const(b, 1.0, "f32"))
    then.do("yield", then.emit("exp", x), then.emit("neg", x))
    other.do("yield", x, x)
    results = (Value(x.type), Value(x.type))
    b.add(Op("if", (const(b, 1, "i1"),), results, {}, (then.block(), other.block())))
    store(b, results[1])
    block = remove_dead(b.block())
    (op,) = [o for o in block.ops if o.kind == "if"]
    assert len(op.results) == 1 and "exp" not in kinds(block) and "neg" in kinds(block)
    kernel(block)


def test_nested_loops_shrink_inside_out():
    b = Builder()
    x, y = tile_of(b, const(b, 1.0, "f32")), tile_of(b, const(b, 2.0, "f32"))

    def outer(c, j, v):
        return loop(c, [v[0], v[1]], lambda d, j2, w: [d.emit("neg", w[0]), d.emit("exp", w[1])])

    store(b, loop(b, [x, y], outer)[0])
    block = remove_dead(b.block())
    assert [len(o.results) for o in walk(block) if o.kind == "for"] == [1, 1] and "exp" not in kinds(block)
    kernel(block)


def test_dead_code_keeps_a_whole_program_as_it_is():
    k = tile_kernel()
    assert print_kernel(map_bodies(k, remove_dead)) == print_kernel(k)


def test_values_named_by_the_caller_stay():
    b = Builder()
    v = const(b)
    const(b)
    assert [o.result for o in remove_dead(b.block(), {v}).ops] == [v]


# ---- walking -------------------------------------------------------------------------------------------------------------


def test_free_values_of_nested_regions():
    b = Builder()
    x, y = tile_of(b, const(b, 1.0, "f32")), tile_of(b, const(b, 2.0, "f32"))
    limit = const(b, 3)
    loop(b, [x], lambda c, j, v: loop(c, [v[0]], lambda d, j2, w: [d.emit("add", w[0], y)]), live=lambda c, k: c.emit("lt", k,
                                                                                                                      limit))
    op = b.ops[-1]
    assert op.regions[0].reads == {y} and op.regions[1].reads == {limit}
    assert Block((), (op,)).reads == {y, limit, *op.operands}
    assert b.block().reads == set()


def test_uses_and_definitions_see_regions():
    b = Builder()
    x = tile_of(b, const(b, 1.0, "f32"))
    (r,) = loop(b, [x], lambda c, j, v: [c.emit("add", v[0], x)])
    block = b.block()
    assert [o.kind for o in uses(block)[x]] == ["for", "add"] and definitions(block)[r].kind == "for"
    body = block.ops[-1].regions[0]
    assert uses(block)[body.ops[0].result] == [body.ops[1]] and body.args[1] not in definitions(block)


# ---- copying and rewriting -----------------------------------------------------------------------------------------------


def test_a_copy_shares_nothing_but_what_is_outside():
    k = tile_kernel()
    env = Env()
    new = copy_block(k.body, env)
    old_values = set(definitions(k.body)) | {a for o in walk(k.body) for r in o.regions for a in r.args} | set(k.body.args)
    new_values = set(definitions(new)) | {a for o in walk(new) for r in o.regions for a in r.args} | set(new.args)
    assert not old_values & new_values and {env[v] for v in old_values} == new_values
    assert new.reads == k.body.reads <= set(k.params)
    same(k, verify(k.with_body(new)))


def test_what_a_pass_leaves_alone_stays_the_same_object():
    """What is known of it then holds: that it is right, what it reads."""
    k = tile_kernel()
    block = remove_dead(k.body)
    assert remove_dead(block) is block and substitute_block(block, Env()) is block and rewrite(block, lambda op, b, env: False) is block
    assert map_bodies(k, lambda body: body) is k
    loop_op = next(o for o in block.ops if o.regions)
    other = substitute_block(block, Env({loop_op.operands[0]: const(Builder())}))
    kept = [o for o in block.ops if loop_op.operands[0] not in {v for x in walk(Block((), (o,))) for v in x.operands}]
    assert other is not block and kept and all(o in other.ops for o in kept)


def test_rewrite_reaches_regions_and_renames_what_it_replaces():
    k = tile_kernel()

    def no_exp(op, b, env):
        if op.kind == "exp":
            env[op.result] = b.emit("exp2", b.emit("mul", op.operands[0], b.emit("const", value=1.4426950408889634, dtype="f32")))
            return True
        if op.kind == "cast":
            assert "exp2" in [o.kind for o in b.ops], "operands are substituted before the rule sees the op"
        return False

    new = verify(map_bodies(k, lambda body: rewrite(body, no_exp)))
    assert kinds(new.body).count("exp2") == 1 and "exp" not in kinds(new.body)
    (op,) = [o for o in walk(new.body) if o.kind == "exp2"]
    assert op.loc is not None and op.loc.line == 11, "a new op has the place of the one it replaces"


def test_rewrite_may_drop_an_op_for_one_of_its_operands():
    b = Builder()
    x = tile_of(b, const(b, 1.0, "f32"))
    y = b.emit("neg", b.emit("neg", x))
    store(b, y)

    def double_neg(op, out, env):
        if op.kind == "neg":
            inner = next((o for o in out.ops if o.results == op.operands), None)
            if inner is not None and inner.kind == "neg":
                env[op.result] = inner.operands[0]
                return True
        return False

    block = remove_dead(rewrite(b.block(), double_neg))
    assert "neg" not in kinds(block)
    kernel(block)


def test_rewrite_without_rules_is_a_copy():
    k = tile_kernel()
    same(k, k.with_body(rewrite(k.body, lambda op, b, env: False)))


def test_yielded():
    b = Builder()
    v = b.emit("const", value=True, dtype="i1")
    assert b.block().yielded == ()
    b.do("yield", v)
    assert b.block().yielded == (v,) and v.type == Scalar(i1)
    assert Tile(f32, (2,)) != Tile(f32, (3,))
