"""Linear forms of scalars and a loop's index, and ranges of it: what `affine` and `gaps` know about integers, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...ir.core import Value

BIG = 2**30  # past any tile number, and far enough from overflow


@dataclass(frozen=True)
class Form:
    """step * i + sum(terms) + const. terms: pairs of a scalar value (or whatever stands for one) and its coefficient, none of them 0."""

    step: int
    terms: frozenset[tuple[Any, int]]
    const: int

    def __add__(self, other: Form) -> Form:
        terms = dict(self.terms)
        for v, n in other.terms:
            terms[v] = terms.get(v, 0) + n
        return Form(self.step + other.step, frozenset((v, n) for v, n in terms.items() if n), self.const + other.const)

    def __mul__(self, k: int) -> Form:
        return Form(self.step * k, frozenset((v, n * k) for v, n in self.terms), self.const * k) if k else number(0)

    def __sub__(self, other: Form) -> Form:
        return self + other * -1

    def shift(self, n: int) -> Form:
        return Form(self.step, self.terms, self.const + n)

    @property
    def known(self) -> int | None:
        """The number that it is, if it is one."""
        return None if self.step or self.terms else self.const


NO_TERMS: frozenset[tuple[Any, int]] = frozenset()


def number(n: int) -> Form:
    return Form(0, NO_TERMS, n)


def symbol(v: Any) -> Form:
    return Form(0, frozenset(((v, 1),)), 0)


@dataclass(frozen=True)
class Span:
    """lo <= every element <= hi."""

    lo: Form
    hi: Form

    @property
    def moves(self) -> bool:
        """Whether it changes with the loop's index."""
        return bool(self.lo.step or self.hi.step)


@dataclass(frozen=True)
class Range:
    """Loop indices [lo, hi); None is unbounded. gap: a part of it, if it ends behind where it begins, that is left out."""

    lo: Form | None = None
    hi: Form | None = None
    gap: Range | None = field(default=None, compare=False)

    @property
    def ends(self) -> tuple[Form, Form]:
        """Of a range that has both."""
        assert self.lo is not None and self.hi is not None
        return self.lo, self.hi

    @property
    def is_empty(self) -> bool:
        """Empty whatever the run-time sizes are."""
        if self.lo is None or self.hi is None:
            return self.hi is not None and self.hi.known is not None and self.hi.known <= -BIG
        gap = (self.hi - self.lo).known
        return gap is not None and gap <= 0

    @property
    def is_all(self) -> bool:
        return self.lo is None and self.hi is None


ALL = Range()
EMPTY = Range(None, number(-BIG))


@dataclass(frozen=True)
class Rows:
    """One of the equal parts that the rows of the program's tiles are cut into. count: rows in all; each: rows of a part; part: which."""

    count: int
    each: int
    part: Value
