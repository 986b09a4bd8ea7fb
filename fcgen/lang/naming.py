"""`fc.name`: a value, variable, range or grid index is called what the spec says, whatever Python variable holds it.

A name that a spec gives is a name of its own in the kernel: schedules, `until` and the generated text use it. A dot or load that has one,
or that alone flows into one, is known by it (its `site`), also where a Python variable holds it on the way.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any, TypeVar

from ..ir.core import Block, Value, uses, walk
from ..ir.rewrite import edited
from .handles import Handle, Var
from .ranges import Range
from .tensors import RunDim
from .trace import current, here, mistake

X = TypeVar("X")


def name(word: str, x: X) -> X:
    """`x`, which schedules may then call `word`. x: a tile or scalar, a variable, a range, or an index of the grid."""
    if not isinstance(word, str) or not word.isidentifier() or keyword.iskeyword(word):
        raise mistake("trace/usage", "a name is a word that Python could call a variable", expected='fc.name("s", x)', got=repr(word)[:80],
                      hint="the name comes first" if isinstance(word, (Handle, Range)) else None)
    given: Any = x
    t = current()
    if not isinstance(given, (Handle, Range)) or isinstance(given, RunDim):
        raise mistake("trace/usage", "fc.name names a tile, a scalar, a variable or a range", got=repr(x)[:80],
                      hint="load it first: fc.load(...)" if hasattr(given, "tensor") else None)
    if word in t.given:
        raise mistake("trace/usage", f"two values are called {word}", got=word, notes=[f"the first is at {t.given[word]}"],
                      hint='a helper that is called twice takes the name as an argument, or numbers it: fc.name(f"s{i}", x)')
    values: dict[Any, str] = {}
    if isinstance(given, Range):
        values = {given._tile: f"{word}_tile", given._start: f"{word}_start"}
    elif not isinstance(given, Var):
        values = {given.value: word}
    before = next((t.told[v] for v in values if v in t.told), given.name if isinstance(given, Var) and given.told else "")
    if before:
        raise mistake("trace/usage", f"this value is called {before} already", got=word, hint="name it once")
    if isinstance(given, Var):
        given.name, given.told = word, True
    for v, text in values.items():
        t.told[v] = t.names[v] = text
    t.given[word] = here()
    return x


def sites(block: Block, told: Mapping[Value, str]) -> Block:
    """The block, whose dots and loads have the name as a `site` that was given to them or to what they alone flow into."""
    if not told:
        return block
    readers, found = uses(block), {}
    for op in walk(block):
        if op.kind in ("dot", "load") and op.result.type.shape:
            v = op.result
            while v not in told:
                nexts = readers.get(v, ())
                if len(nexts) != 1 or len(nexts[0].results) != 1 or nexts[0].kind in ("dot", "reduce"):
                    break
                v = nexts[0].result
            if v in told:
                found[op] = told[v]
    return edited(block, lambda op: op.with_attrs(site=found[op]) if op in found else op)
