"""How far apart two scalars can be: what is claimed holds for all sizes that are tried, and claims are made where copies of loops hang on them."""

from __future__ import annotations

import random

import pytest

from fcgen.ir.core import Block, Value, definitions
from fcgen.ir.rewrite import Builder
from fcgen.ir.types import Scalar, i1, i32
from fcgen.passes.tile.gaps import at_most

N, T, C = Value(Scalar(i32), "N"), Value(Scalar(i32), "T"), Value(Scalar(i1), "C")
RUN = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "floordiv": lambda a, b: a // b, "min": min, "max": max}


def value(v, block, inputs):
    known = dict(inputs)
    for op in block.ops:
        xs = [known[o] for o in op.operands]
        known[op.result] = op["value"] if op.kind == "const" else (xs[1] if xs[0] else xs[2]) if op.kind == "select" else RUN[op.kind](*xs)
    return known[v]


class Sums:
    """Scalars in Python's notation."""

    def __init__(self):
        self.b = Builder()

    def const(self, x):
        return x if isinstance(x, Value) else self.b.emit("const", value=x, dtype="i32")

    def __getattr__(self, kind):
        return lambda *xs: self.b.emit(kind, *map(self.const, xs))

    @property
    def block(self):
        return Block((), tuple(self.b.ops))


def tiles_of_rows(s, part, tile):
    """(end of the live tiles, end of the whole ones) under a causal mask: rows T * part to T * part + part - 1, N columns."""
    first = s.mul(T, part)
    end = s.select(C, s.min(s.floordiv(s.add(N, tile - 1), tile), s.add(s.floordiv(s.add(first, part - 1), tile), 1)), 0)
    return end, s.max(s.min(end, s.min(s.floordiv(N, tile), s.floordiv(s.add(first, 1), tile))), 0)


@pytest.mark.parametrize(("part", "tile", "most"), [(64, 128, 1), (128, 128, 1), (64, 64, 1), (16, 128, 1), (128, 64, 2), (64, 80, 2), (192, 64, 3)])
def test_masked_tiles_of_a_causal_mask_are_counted(part, tile, most):
    s = Sums()
    end, whole = tiles_of_rows(s, part, tile)
    defs = definitions(s.block)
    seen = max(value(end, s.block, at) - value(whole, s.block, at)
               for at in ({N: n, T: t, C: c} for n in range(0, 4 * tile, 7) for t in range(12) for c in (False, True)))
    assert seen <= most
    assert [at_most(end, whole, gap, defs) for gap in range(4)] == [gap >= most for gap in range(4)]


def test_what_is_claimed_holds():
    rng, claims = random.Random(0), 0
    for _ in range(600):
        s = Sums()
        made = [N, T]
        for _ in range(rng.randrange(2, 9)):
            kind = rng.choice(["add", "sub", "mul", "floordiv", "min", "max", "select"])
            a, b = rng.choice(made), rng.choice(made)
            made.append(s.select(C, a, b) if kind == "select" else s.floordiv(a, rng.choice([2, 3, 4])) if kind == "floordiv" else
                        s.mul(a, rng.choice([-2, 1, 2, 4])) if kind == "mul" else getattr(s, kind)(a, b if rng.random() < 0.5 else rng.randrange(-3, 4)))
        high, low = rng.choice(made), rng.choice(made)
        if high is low or not at_most(high, low, 1, definitions(s.block)):
            continue
        claims += 1
        for n in range(-5, 6):
            for t in range(-5, 6):
                for c in (False, True):
                    at = {N: n, T: t, C: c}
                    assert value(high, s.block, at) <= value(low, s.block, at) + 1
    assert claims > 40


def test_conditions_of_both_scalars_are_the_same_ones():
    s = Sums()
    a, b = s.select(C, N, 0), s.select(C, s.add(N, 1), 0)
    other = s.select(s.lt(N, T), N, 0)
    defs = definitions(s.block)
    assert at_most(b, a, 1, defs)
    assert not at_most(other, a, 1, defs)
