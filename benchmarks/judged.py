"""Random edits that passed in silence, looked at one by one: why each is as good as none. (kernel, kind, how its place begins, why)"""

from __future__ import annotations

ZEROS = "the rows of V that a masked column meets are zeros, behind the tensor's end: the mask decides nothing"
FIRST = "in front of the first tile the maximum is minus infinity: every row that sees a key passes either test"
ROUNDING = "the divisor's correction is at most one rounding of a weight, this way or that"

LAZY = "a maximum that is raised sooner than it must is right as well"
LAG = "the scale is positive: what a maximum lags behind by is at most (5.5 - scale) scale, below 8 whatever the scale is"
FAR = "rows that the first tile moves are taken for far ones: subtracting before multiplying is right for every row"

JUDGED: tuple[tuple[str, str, str, str], ...] = (
    ("example sigmoid_attention", "another function", "main: add 5 (cols_start) -> %1 = sub", ZEROS),
    ("example sigmoid_attention", "another number", "main: floordiv 1 (N): operand 1", ZEROS),
    ("example backward", "constant", "main: const 2 () -> %0 = const {value = 62,", "one more tile, of rows of zeros behind the end"),
    ("sm_90a CHUNK 1", "swap operands", "main: sub 28 (largest)", ROUNDING),
    ("sm_90a ROWS 11", "another fragment", "main: max 7 (peak): operand 0 peak", ROUNDING),
    ("sm_90a CHUNK 2", "another function", "main: exp2 6 () -> %largest = exp", ROUNDING),
    ("sm_89 wmma 1", "constant", "main: const 4 () -> %0 = const {value = 0.0,", LAZY),
    ("sm_90a ANY_SCALE 2", "constant", "main: const 14 () -> %0 = const {value = 0.0,",
     "all rows are taken for far ones: subtracting before multiplying is right for every row"),
    ("sm_90a FINE 3", "another fragment", "main: vote_any 1 (far): operand 0 far", FIRST),
    ("sm_90a ROWS 2", "another number", "main: gt 0 (): operand 1", FIRST),
    ("sm_90a ROWS 9", "another fragment", "main: abs 1 (): operand 0", FAR),
    ("sm_80 mma 3", "another fragment", "main: abs 2 (): operand 0  -> m", FAR),
    ("sm_90a SMALL 6", "another fragment", "main: for 2 (first top l peak weights any_far k_at v_at): operand 6",
     "two votes on the same numbers"),
    ("sm_90a ROWS 4", "another fragment", "main: for 2 (top exact weights any_far k_at v_at): operand 2 top -> top",
     "the first maximum is above minus infinity, and taken, or it is minus infinity: it is the same as before the choice"),
    ("sm_90a ROWS 5", "another fragment", "main: max 14 (peak): operand 1  -> peak", ROUNDING),
    ("sm_90a SMALL 4", "swap operands", "main: sub 27 ()", ROUNDING),
    ("sm_90a ROWS 18", "constant", "main: const 16 () -> %0 = const {value = -5.5,", LAZY),
    ("sm_90a ROWS 2", "another function", "main: add 7 (m) -> %limit = sub", LAZY),
    ("sm_90a ROWS 7", "another function", "main: mul 22 (scale) -> %1 = add", LAG),
    ("sm_90a ROWS 15", "another function", "main: mul 17 (scale) -> %1 = add", LAG),
    ("sm_90a FINE 4", "constant", "main: const 11 () -> %0 = const {value = 11.0,", "weights are at most e^11, which is below 65504"),
    ("sm_90a ROWS 9", "move an op that moves data up", "load: tma_load 1 (K b g cols_start k k_full k_at) by -2",
     "the rows of Q, waited for in front of it, are free only behind the last product of K: both slots are; clocks say so in more runs"),
    ("sm_90a SMALL 5", "another fragment", "main: gt 0 (): operand 0  -> ", FIRST),
    ("sm_90a ROWS 0", "another fragment", "main: mul 21 (base): operand 0 base -> top",
     "a row without a key is taken for a far one until it sees one, and of those the factor is not used"),
    ("sm_90a ROWS 21", "another fragment", "main: abs 5 (): operand 0  -> m",
     "only the factor of older sums: as if their scores were half a unit in the last place of the largest off, less than their rounding"),
    ("sm_80 mma 2", "another fragment", "main: abs 1 (): operand 0  -> m", FAR),
    ("sm_90a ANY_SCALE 1", "another number", "main: mul 24 (): operand 1  -> ", ROUNDING),
    ("sm_90a ROWS 11", "another fragment", "main: for 2 (top l peak weights any_far k_at v_at): operand 6  -> ",
     "the first sums are multiplied by exp(-inf) as soon as a row sees a key, and not stored if it sees none"),
    ("sm_90a ROWS 7", "another function", "main: add 17 () -> %2 = sub", "more tiles are masked, and none less"),
    ("sm_90a ROWS 12", "another function", "load: floordiv 4 () -> %2 = mod", "how many tiles lie side by side: each comes once"),
)


def judged(kernel: str, kind: str, site: str) -> str | None:
    return next((why for k, what, begins, why in JUDGED if (k, what) == (kernel, kind) and site.startswith(begins)), None)
