"""Ops in words, for reports."""

from __future__ import annotations

from ..ir.core import Op


def describe(op: Op) -> str:
    """One op in a line: kind, what it works on, and its place."""
    names = ", ".join(v.name for v in op.operands if v.name)
    made = f"{op.results[0].name} = " if op.results and op.results[0].name else ""
    places = ", ".join(dict.fromkeys(p.short for p in (op.place, op.loc) if p is not None))
    return f"{made}{op.kind} {names}".rstrip() + (f"  ({places})" if places else "")
