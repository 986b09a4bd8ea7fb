"""Loops, walked backwards: where all that a loop carries, and gradients go through, is a sum or a largest value, a second loop over the
same tiles (`sums`); any other loop from its last iteration to its first (`reverse`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir.core import Op, Value
from .again import Known
from .reverse import through_states
from .states import states_of
from .sums import through_sums
from .writer import Writer


def backwards(walker: Any, m: Writer, op: Op, known: Known, rest: Sequence[Op], ends: set[Value]) -> None:
    """Write the loops behind `op`, whose results have the cotangents `known`; learn those of what it begins with and reads from outside.

    walker: walks the bodies. rest: the ops behind the loop. ends: what has a cotangent from elsewhere."""
    active = [n for n, r in enumerate(op.results) if r in walker.active]
    states = states_of(op, active)
    if states is not None:
        through_sums(walker, m, op, known, states, active, rest, ends)
    else:
        through_states(walker, m, op, known, active)
