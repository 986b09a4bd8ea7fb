"""Names that Python would carry from one iteration to the next, and a trace cannot: refused, and only those."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.sim.tile import interpret

TILES = {"BM": 16, "BN": 16}
X = np.random.default_rng(0).standard_normal((20, 40)).astype(np.float32)


class State:
    """What a user keeps values in."""

    def __init__(self, t: Any):
        self.t = t


def part(X: Any, rows: Any, cols: Any) -> Any:
    return fc.sum(fc.load(X[rows, cols]), axis=1)


def body(text: str) -> fc.Spec:
    lines = text.replace("LOOP", 'for cols in fc.loop(fc.tile(X.N, "BN"))').replace("PART", "part(X, rows, cols)").strip("\n")
    scope: dict[str, Any] = {"fc": fc, "State": State, "part": part}
    head = 'def spec(X: "f32[M, N]", Y: "out f32[M]", *, n: "i32"):\n    (rows,) = fc.grid(fc.tile(X.M, "BM"))\n    zero = fc.zeros(rows)\n'
    exec(compile(head + "\n".join("    " + line for line in lines.splitlines()), "<spec>", "exec"), scope)
    return fc.kernel(scope["spec"])


@pytest.mark.parametrize(("name", "text"), [
    ("t", "t = zero\nLOOP:\n    t = t + PART\n    fc.store(Y[rows], t)"),
    ("t", "t = zero\nLOOP:\n    t += PART\nfc.store(Y[rows], t)"),
    ("t", "t = fc.var(zero)\nLOOP:\n    t = t + PART\n    fc.store(Y[rows], t)"),
    ("t", "LOOP:\n    t = zero\n    for j in fc.loop(n):\n        t = t + 1.0\n    fc.store(Y[rows], t)"),
    ("i", "i = 0\nLOOP:\n    fc.store(Y[rows], zero + i)\n    i += 1"),
    ("first", "first = True\nLOOP:\n    if first:\n        fc.store(Y[rows], zero)\n    first = False"),
    ("prev", "prev = None\nLOOP:\n    x = PART\n    if prev is not None:\n        fc.store(Y[rows], prev)\n    prev = x"),
    ("last", "last = 0.0\nLOOP:\n    last = 5.0\nfc.store(Y[rows], zero + last)"),
    ("accs[0]", "accs = [zero, zero]\nLOOP:\n    accs[0] = accs[0] + PART\n    fc.store(Y[rows], accs[0])"),
    ("accs['a']", "accs = {'a': zero}\nLOOP:\n    accs['a'] += PART\n    fc.store(Y[rows], accs['a'])"),
    ("state.t", "state = State(zero)\nLOOP:\n    state.t = state.t + PART\n    fc.store(Y[rows], state.t)"),
    ("t", "t = zero\ndef step(cols):\n    nonlocal t\n    t = t + PART\n    fc.store(Y[rows], t)\nLOOP:\n    step(cols)"),
    ("t", "t = zero\ndef blocks():\n    LOOP:\n        yield cols\nfor cols in blocks():\n    t = t + PART\n    fc.store(Y[rows], t)"),
    ("k", "k = 1.0\nwith fc.when(n > 3):\n    k = 2.0\nfc.store(Y[rows], zero + k)")])
def test_refused(name: str, text: str) -> None:
    with pytest.raises(fc.FcError) as caught:
        body(text).trace(TILES)
    assert caught.value.code == "trace/usage" and f"`{name}`" in caught.value.message and "<<=" in (caught.value.hint or "")
    assert caught.value.loc is not None and caught.value.loc.line > 3


@pytest.mark.parametrize("text", [
    "x = q = zero\nt = fc.var(zero)\nLOOP:\n    x = q + PART\n    t <<= t + x\nfc.store(Y[rows], t)",
    "x = zero\nt = fc.var(zero)\nLOOP:\n    x = PART\n    x = x + 1.0\n    x -= 1.0\n    t <<= t + x\nx = t\nfc.store(Y[rows], x)",
    "t = fc.var(zero)\nfor j in range(5):\n    t <<= t * 1.0\nLOOP:\n    for j in range(2):\n        t <<= t + PART * j\nfc.store(Y[rows], t)",
    "t, k = fc.var(zero), 3\nwith fc.when(n > 0):\n    k = 5\n    t <<= t + k * 0.0\nk = 0.0\nLOOP:\n    t <<= t + PART\nfc.store(Y[rows], t + k)",
    "accs = [fc.var(zero), fc.var(zero)]\nLOOP:\n    for i in range(2):\n        accs[i] <<= accs[i] + 0.5 * PART\nfc.store(Y[rows], accs[0] + accs[1])",
    "def blocks():\n    LOOP:\n        yield cols\nt = fc.var(zero)\nfor cols in blocks():\n    t <<= t + PART\nfc.store(Y[rows], t)",
    "state = State(fc.var(zero))\nLOOP:\n    state.t <<= state.t + PART\nfc.store(Y[rows], state.t)",
    "seen = []\nt = fc.var(zero)\nLOOP:\n    seen.append(cols)\n    t <<= t + PART\nassert len(seen) == 1\nfc.store(Y[rows], t)"])
def test_not_refused(text: str) -> None:
    got = interpret(body(text).trace(TILES), {"X": X, "n": 4})["Y"]
    np.testing.assert_allclose(got, X.sum(1), rtol=1e-4, atol=1e-4)
