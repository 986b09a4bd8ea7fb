"""`fc.name`: what a spec calls a value is what schedules, texts and `until` call it, whatever Python holds it in."""

from __future__ import annotations

import pytest

import fcgen as fc
from fcgen.errors import FcError
from fcgen.ir.core import walk
from fcgen.ir.parse import parse_kernel
from fcgen.lang.naming import name

TILES = {"BM": 64, "BN": 64, "BK": 32}


def product(x, y):
    """A helper with variables of its own, called twice."""
    raw = fc.dot(x, y.T)
    return raw * 0.5


@fc.kernel
def spec(A: "T[M, K]", B: "T[N, K]", C: "out T[M, N]"):
    i, j = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    fc.name("rows", i)
    held = [fc.name("acc", fc.var(fc.zeros(i, j))), fc.var(fc.zeros(i, j))]
    for d in fc.loop(fc.tile(A.K, "BK")):
        x = fc.name("a", fc.load(A[i, d]))
        y = fc.load(B[j, d])
        held[0] <<= held[0] + product(x, y)
        held[1] <<= held[1] + fc.name("twice", product(x, y) * 2.0)
    fc.store(C[i, j], (held[0] + held[1]).to(C.dtype))


def compiled(**schedule):
    return spec.compile(target="sm_89", schedule=fc.Schedule(tiles=TILES, **schedule), T=fc.f16)


def test_names_are_in_the_kernel_and_its_text() -> None:
    tile = compiled().tile
    assert [op["site"] for op in walk(tile.body) if op.kind in ("load", "dot") and op.get("site")] == ["a", "acc", "twice"]
    assert tile.grid[0].name == "rows_tile" and str(parse_kernel(str(tile))) == str(tile)


def test_schedules_use_them() -> None:
    program = compiled(math={"acc": "fma", "twice": "mma"}, stages={"a": 3, "y": 1}, from_end="rows")
    kept = program.stages()["bind"]
    assert [(op["site"], op["math"]) for op in walk(kept.body) if op.kind == "dot"] == [("acc", "fma"), ("twice", "mma")]
    assert str(program.machine)


@pytest.mark.parametrize("asked, near", [({"late": "twicee"}, "twice"), ({"late": "raw"}, None), ({"stages": {"aa": 3}}, "a")])
def test_names_that_are_not_there_are_refused_with_those_that_are(asked, near) -> None:
    with pytest.raises(FcError) as e:
        compiled(**asked).machine  # noqa: B018
    assert e.value.code == "compile/schedule" and ("acc" in e.value.expected or "a" in e.value.expected)
    assert near is None or f"did you mean {near}?" == e.value.hint


def test_until_finds_them() -> None:
    assert spec.until("twice").trace(TILES, T=fc.f16).name == "spec_until_twice"


@pytest.mark.parametrize("give, message", [
    (lambda x, r: [name("s", x), name("s", x * 2.0)], "two values are called s"),
    (lambda x, r: [name("s", x), name("t", x)], "called s already"),
    (lambda x, r: [name("s", r), name("t", r)], "called s already"),
    (lambda x, r: [(v := fc.var(x), name("s", v), name("t", v))], "called s already"),
    (lambda x, r: name("s 1", x), "a word that Python"), (lambda x, r: name(x, "s"), "a word that Python"),
    (lambda x, r: name("s", 2.0), "names a tile"), (lambda x, r: name("s", fc.tile(64, "BM")), "names a tile")])
def test_what_cannot_be_a_name_is_refused(give, message) -> None:
    @fc.kernel
    def bad(X: "f32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows])
        give(x, rows)
        fc.store(Y[rows], x)

    with pytest.raises(FcError, match=message) as e:
        bad.trace({"BM": 16})
    assert e.value.code == "trace/usage" and e.value.loc is not None and "test_name.py" in e.value.loc.file
