"""Which schedules the backward programs run with: data, the best first. The first one whose values have registers is taken: score functions
need some of their own."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from ..ir.schedule import Schedule


def _hopper(m: int, n: int, groups: int, stages: object = 2, **more: object) -> Schedule:
    """Tiles of m rows and n keys over warpgroups."""
    return Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=4 * groups, math="wgmma", copy="tma", stages=stages,
                    **{"epilogue": "tma", "split": "branch", **more})  # type: ignore[arg-type]


def _mma(m: int, n: int, warps: int, stages: int = 1, **more: object) -> Schedule:
    return Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=warps, stages=stages, **more)  # type: ignore[arg-type]


#: of a thread's values in memory cost less than smaller tiles do; where blocks claim tiles, the role that claims them has most of these,
#: and reads them once a tile
FEW_BYTES, CLAIMING = 80, 160
#: larger heads have dQ in a pass of its own, in order, where there is wgmma: two products more are faster than adding up as many numbers in
#: L2 (H200, D=256, 4k: 665 and 530 TFLOP/s for 3 and 4 products, 400 for 5 with the additions)
ADDS_UP_TO = 128
#: so have heads of any size where tiles of keys differ in work and rows are few: clearing and rounding sums takes as long whatever the mask
#: leaves of the products (H200, causal, 1k, 16k tokens: 620 us for 640 at D=64; H100: 548 for 643 at D=128)
FEW_ROWS = 1536
_TWO, _QUEUED = {"q": 2, "do": 2}, {"q": 3, "do": 2}
#: keys are read by a tile's first product and its last one, values between them alone (H200, D=256, 4k: 727 TFLOP/s of three products
#: for 676 with two places each, and tiles of 48 keys)
_LAST = {"k": 2, "v": 1}
#: warpgroups that meet at no barrier, scores an iteration ahead, dV begun with its first weights (H200, D=128, causal, 16k: 578 TFLOP/s
#: where S ahead alone has 545)
_APART = {"early": "s", "behind": "dq", "rolling": "dv"}
#: the same, and dQ is added up by a thread of its own (H200, bf16: D=64, causal, 16k: 548 TFLOP/s for 503)
_SENT = {**_APART, "sender": True}
#: the same without a branch around masks, which takes registers that loops then read back (H200, bf16, D=128, full, 16k: 615 for 580, as
#: _APART has; D=64: as fast)
_WHOLE = {**_SENT, "split": "none"}
#: the products of an iteration before the next one's, but for S; dQ is added up by a thread of its own (H200, D=128, kernel alone: causal,
#: bf16, 16k 611 TFLOP/s where _APART has 572; 8 heads to one of keys, fp16, causal, 4k 498 for 470; a window of 1024 526 for 492. Full 595
#: for 616. Sums that the loop scales, of _APART 603 for 572, are slower here: 567 for 618)
_STEP = {"early": "s", "rolling": "dv", "sender": True}
#: the next tile of keys is on its way while the last products of this one run (H200, D=64, 1k, 4k and 16k: full 466, 531 and 546 TFLOP/s
#: for 443, 521 and 509 of 96 rows with K and V in registers; causal 352, 482 and 522 for 328, 460 and 499 of _SENT)
_CLAIMS = {"behind": "dq", "rolling": "dv", "sender": True, "persistent": "dynamic"}
#: MiB of L2 for what loops read of the heads that run side by side, and add to
SIDE_BY_SIDE = 40
#: for head sizes that eight warps do not divide into, and for functions with many values
_SMALL = _mma(32, 32, 4), _mma(32, 32, 4, hold_a=False), _mma(16, 16, 2)
#: head size up to which -> schedules of `backward`, on Hopper and elsewhere
_BOTH: dict[str, dict[int, tuple[Schedule, ...]]] = {
    "wgmma": {64: (_hopper(128, 128, 2, _TWO, **_WHOLE), _hopper(128, 128, 2, _TWO, behind="dq", rolling="dv"),
                   _hopper(128, 128, 2, _TWO, behind="dq", early="s"), _hopper(128, 128, 2, _TWO), _hopper(96, 128, 2, _TWO, **_APART),
                   _hopper(96, 128, 2, _TWO, early="s"), _hopper(64, 128, 2, _TWO, **_APART), _hopper(64, 128, 2, _TWO, early="s"),
                   _hopper(64, 128, 2, _TWO), _hopper(64, 64, 1, 2)),
              128: (_hopper(64, 128, 2, _TWO, **_WHOLE), _hopper(64, 128, 2, _TWO, **_APART),
                    _hopper(64, 128, 2, _TWO, **_STEP), _hopper(80, 128, 2, _TWO, early="s"),
                    _hopper(64, 128, 2, _QUEUED, early="s"), _hopper(80, 128, 2, _TWO), _hopper(64, 128, 2, _TWO),
                    _hopper(48, 128, 2, _TWO), _hopper(64, 64, 2, _TWO), _hopper(64, 64, 2, 1), _hopper(64, 64, 1, 1)),
              256: (_hopper(64, 64, 2, 1),)},
    "mma": {64: (_mma(64, 64, 8), _mma(32, 64, 8), _mma(32, 32, 8), *_SMALL), 128: (_mma(32, 32, 8), *_SMALL),
            256: (_mma(32, 32, 8), *_SMALL),
            512: (_mma(32, 32, 8, 2, hold_a=False, split="branch"), _mma(32, 32, 8, hold_a=False, split="branch"))}}
#: the same where all tiles of keys are alike. K and V are left operands from registers: shared memory was what two warpgroups had least of
#: (D=64, 128 rows: 2,824 of 4,400 cycles of a tile; H200, fp16, 1k and 16k: 444 and 522 TFLOP/s for 441 and 502)
#: (D=128: 513, 570 and 587 TFLOP/s at 1k, 4k and 16k for 496, 569 and 591 of _WHOLE)
_ALIKE = {64: (_hopper(128, 128, 2, _TWO, **_CLAIMS), _hopper(96, 128, 2, _TWO, **_WHOLE, regs_a="dp+s")),
          128: (_hopper(64, 128, 2, _TWO, **_STEP),)}
#: and where they differ in work
_UNEVEN = {64: (_hopper(128, 128, 2, _TWO, **_CLAIMS), _hopper(128, 128, 2, _TWO, **_SENT), _hopper(96, 128, 2, _TWO, **_APART),
                _hopper(128, 128, 2, _TWO, behind="dq", rolling="dv")),
           128: (_hopper(64, 128, 2, _TWO, **_STEP, hints=True), _hopper(64, 128, 2, _TWO, **_APART),
                 _hopper(64, 128, 2, _QUEUED, early="s"))}
#: where they do not, but a function says which scores count: most tiles of rows need no mask
_MASKED: dict[int, tuple[Schedule, ...]] = {64: (), 128: (_hopper(64, 128, 2, _TWO, **_STEP),)}
#: scores and the gradients of weights by a warpgroup of its own: 64 keys are too few rows for two, whose products of 32 rows read shared
#: memory 1.5 times as fast as it can be (H200, bf16, D=256: full, 4k and 16k: 674 and 689 TFLOP/s for 606 and 626; causal, 4k: 620 for 561)
_MADE: dict[str, object] = {"makers": 4, "made": "s+dp"}
#: and where dQ has a pass of its own (H200, 4k, two passes: 3.5 ms for 3.9 at D=64; at 192 and values of 128 3.8 for 5.1)
#: (keys alone, bf16: 584 TFLOP/s for 510 at D=64, 646 for 622 at 128; rows: 624 for 605, 710 for 639)
_KEYS = {64: (_hopper(96, 128, 2, _TWO, rolling="dv"), _hopper(96, 128, 2, _TWO, early="s", rolling="dv"),
              _hopper(128, 128, 2, _TWO, persistent="dynamic"), _hopper(128, 128, 2, _TWO), _hopper(64, 128, 2, _TWO)),
         128: (_hopper(64, 128, 2, _TWO, early="s", rolling="dv+dk"), _hopper(64, 128, 2, _TWO, early="s"), _hopper(64, 128, 2, _TWO),
               _hopper(64, 64, 2, 1), _hopper(64, 64, 1, 1)),
         192: (_hopper(32, 128, 2, _TWO), _hopper(64, 64, 2, _TWO), _hopper(64, 64, 2, 1)),
         256: (_hopper(64, 64, 2, _TWO, **_MADE), _hopper(64, 64, 2, _TWO), _hopper(64, 64, 2, 1))}
#: (D=64, fp16, causal, 1k and 4k: 388 and 519 TFLOP/s for 349 and 494 with a block for each tile)
_KEYS_UNEVEN = {64: (_hopper(96, 128, 2, _TWO, rolling="dv", persistent="dynamic"),),
                128: (_hopper(64, 128, 2, _TWO, persistent="dynamic"), _hopper(64, 128, 2, _TWO))}
#: where adds have turns, for which the sender waits: what is added to, and what is read beside it, in a third of L2 (H200, 4k, full, D=64,
#: of the usual kernel's time: 1.05 with 18 MiB, 1.12 with 40). Where dV waits for all weights: 1.03 for 1.05, D=128 1.14 for 1.18
_TURNS: dict[str, object] = {"early": "s", "behind": "dq", "sender": True, "split": "none", "l2": 18}
_IN_TURN = {64: (_hopper(128, 128, 2, _TWO, **_TURNS),), 128: (_hopper(64, 128, 2, _TWO, **_TURNS),)}
#: and of `backward_scores`
_SCORES = {128: (_hopper(64, 128, 2, _TWO, early="s", rolling="dv"), _hopper(64, 128, 2, _TWO, early="s"), _hopper(64, 128, 2, _TWO),
                 _hopper(64, 64, 2, 1)),
           192: (_hopper(32, 128, 2, _TWO), _hopper(64, 64, 2, _TWO), _hopper(64, 64, 2, 1)),
           256: (_hopper(64, 64, 2, _TWO, **_MADE, sender=True), _hopper(64, 64, 2, _TWO), _hopper(64, 64, 2, 1))}
#: where tiles of keys differ in work (D=128, causal, 1k: 0.300 ms for 0.312)
_SCORES_UNEVEN = {128: (_hopper(64, 128, 2, _TWO, persistent="dynamic"),)}
#: of `backward_queries`
_QUERIES = {128: (_hopper(128, 64, 2, 4, persistent="dynamic"), _hopper(128, 64, 2, 4), _hopper(128, 64, 2, 3)),
            256: (_hopper(128, 64, 2, 3, persistent="dynamic"), _hopper(128, 64, 2, 3), _hopper(128, 64, 2, 3, epilogue="quad"))}
#: and of `backward_rows`
_ROWS: dict[str, dict[int, tuple[Schedule, ...]]] = {
    "wgmma": {64: (_hopper(192, 96, 3, 2, persistent="dynamic", rolling="dq"), _hopper(192, 96, 3, 2, persistent="dynamic"),
                   _hopper(128, 128, 2, 2), _hopper(128, 64, 2, 4), _hopper(64, 64, 1, 2)),
              128: (_hopper(128, 96, 2, rolling="dq"), _hopper(128, 80, 2), _hopper(128, 64, 2), _hopper(64, 64, 1, 1)),
              192: (_hopper(128, 64, 2), _hopper(128, 64, 2, epilogue="quad"), _hopper(128, 48, 2), _hopper(128, 32, 2, 2, epilogue="quad"),
                    _hopper(64, 64, 2, 1)),
              256: (_hopper(128, 64, 2, _LAST, epilogue="quad", early="s", rolling="dq"), _hopper(128, 48, 2, 2, epilogue="quad"),
                    _hopper(128, 32, 2, 2, epilogue="quad"), _hopper(64, 64, 2, 2), _hopper(64, 64, 2, 1)),
              512: (_hopper(64, 32, 2, 1, epilogue="quad"),)},
    "mma": {64: (_mma(64, 32, 4, 2), _mma(32, 32, 4)), 128: (_mma(64, 32, 8), _mma(32, 32, 4)), 256: (_mma(32, 32, 8), _mma(16, 32, 4)),
            512: (_mma(32, 32, 8, 2, hold_a=False), _mma(32, 32, 8, hold_a=False), _mma(16, 32, 4, hold_a=False))}}


def candidates(spec: str, arch: str, head: int, adds: bool = True, uneven: bool = False, grouped: bool = False,
               masked: bool = False) -> tuple[Schedule, ...]:
    """For a spec of `kernels.backward` or `kernels.ragged_backward`, and a head size (the larger of the key's and the value's). adds: it
    adds up the gradient of q too. uneven: tiles of keys differ in work: the longest run first, of as many heads as lie in L2 together
    (B=1, 8 heads of keys, 4k: 0.63 of the multiprocessors worked where one head's ran after the other's). grouped: heads share keys:
    the sender finds the places of their rows, which takes the other warps registers at small heads. masked: a function says which scores
    count."""
    if "tangent" in spec:
        return ()  # a model of the machine finds them
    if spec == "ragged_rows_before":
        return (Schedule(tiles={"BLOCK_M": 32 if head <= 128 else 16}),)
    if spec in ("rows_before", "rows_after"):
        # (H200: 3.9 and 4.0 TB/s; a copy has 4.1. D=64, 8 rows of two warps, without sums to clear: 3.2)
        return (Schedule(tiles={"BLOCK_M": 32 if head <= 64 else 16 if head <= 256 else 8}, warps=4, epilogue="direct"),)
    rows, wgmma = spec.endswith("rows"), arch.endswith("a")
    pick = lambda table: next((found for most, found in table.items() if head <= most), ())
    found: tuple[Schedule, ...] = pick((_ROWS if rows else _BOTH)["wgmma" if wgmma else "mma"])
    if not wgmma:
        return found if adds or rows else tuple(replace(s, split="none") for s in found)
    if spec == "backward_queries":
        return tuple(s if uneven or masked else replace(s, split="loops") for s in pick(_QUERIES))
    if spec == "backward_scores":
        found = (*(pick(_SCORES_UNEVEN) if uneven else ()), *pick(_SCORES))
        return tuple(replace(s, l2=SIDE_BY_SIDE) for s in found) if uneven else found
    if spec == "backward_in_turn":
        return tuple(replace(s, l2=SIDE_BY_SIDE) if uneven else s for s in pick(_IN_TURN))
    if rows:
        claims = uneven and found and not found[0].early
        found = (replace(found[0], persistent="dynamic"), *found) if claims else found
    elif not adds:
        own = (*(pick(_KEYS_UNEVEN) if uneven else ()), *pick(_KEYS))
        found = (*own, *(replace(s, split="none") for s in found if not (s.early or s.behind)))
    elif uneven and not (grouped and head <= 64):
        found = (*pick(_UNEVEN), *found)
    elif masked and pick(_MASKED):
        found = (*pick(_MASKED), *found)
    elif not (uneven or grouped or masked):  # (a window, D=64, 4k: 362 TFLOP/s for 395 with 128 rows)
        found = (*pick(_ALIKE), *found)
    beside = uneven and (head > ADDS_UP_TO or not rows)  # (few rows lie in L2 as they are: `ways`)
    return (*(replace(s, l2=SIDE_BY_SIDE) for s in found), *found) if beside else found


def few_bytes(schedule: Schedule, functions: bool = False) -> int:
    """What a program may spill. functions: it has some, whose values the warps that compute may have to spill."""
    return CLAIMING if schedule.persistent == "dynamic" and schedule.sender and not functions else FEW_BYTES


class Way(Enum):
    """How dQ comes about: by adds of the pass over keys, in any order or by turns; by a pass of its own that makes scores again; as a
    product of gradients of scores that the pass over keys has left in memory."""

    ADDS, TURNS, ROWS, SCORES = "adds", "turns", "rows", "scores"

    @property
    def adds(self) -> bool:
        """Whether there are sums to clear before, and to round behind."""
        return self in (Way.ADDS, Way.TURNS)


def ways(head: int, uneven: bool, grouped: bool, rows: int, in_order: bool, turns: bool, room: bool) -> Way:
    """Where there is wgmma. in_order: the same bits each time. turns: adds can have them. room: there is memory for gradients of scores,
    which saves two products of seven (H200, D=256, 4k: 2.3 ms for 2.9) or adds; they are 4 bytes of traffic a score (D=128, full, 4k: 1.05
    of the usual pass, 1.17 by turns; causal, 1k: 0.93; D=64: 1.29)."""
    few = rows <= FEW_ROWS
    if room and 64 < head <= max(_SCORES) and (head > ADDS_UP_TO or in_order or few):
        return Way.SCORES
    if head > ADDS_UP_TO or (uneven and few):
        return Way.ROWS
    if not in_order:
        return Way.ADDS
    # (H200, 4k, times of the usual pass: D=64 full 1.08 for 1.16, causal 1.12 for 1.24; D=128 full 1.15 for 1.20, causal 1.14 for 1.09. Of
    # heads that share keys the sender takes the other warps too many registers)
    return Way.TURNS if turns and head in _IN_TURN and not grouped and not (uneven and head > 64) else Way.ROWS


def turned(schedule: Schedule) -> dict[str, bool]:
    """What `backward` is compiled with for a schedule: a tile of rows that no warpgroups divide is the columns of every product."""
    return {"turned": True} if schedule.math == "wgmma" and (schedule.tile("BLOCK_M") or 0) % 64 else {}
