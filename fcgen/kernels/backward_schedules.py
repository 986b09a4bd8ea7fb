"""Which schedules the backward programs run with: data, the best first. The first one whose values have registers is taken: score functions
need some of their own."""

from __future__ import annotations

from dataclasses import replace

from ..ir.schedule import Schedule


def _hopper(m: int, n: int, groups: int, stages: object = 2, **more: object) -> Schedule:
    """Tiles of m rows and n keys over warpgroups."""
    return Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=4 * groups, math="wgmma", copy="tma", stages=stages,
                    **{"epilogue": "tma", "split": "branch", **more})  # type: ignore[arg-type]


def _mma(m: int, n: int, warps: int, stages: int = 1, **more: object) -> Schedule:
    return Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=warps, stages=stages, **more)  # type: ignore[arg-type]


_TWO = {"q": 2, "do": 2}
#: for head sizes that eight warps do not divide into, and for functions with many values
_SMALL = _mma(32, 32, 4), _mma(32, 32, 4, hold_a=False), _mma(16, 16, 2)
#: head size up to which -> schedules of `backward`, on Hopper and elsewhere
_BOTH: dict[str, dict[int, tuple[Schedule, ...]]] = {
    "wgmma": {64: (_hopper(128, 128, 2, _TWO), _hopper(64, 128, 2, _TWO), _hopper(64, 64, 1, 2)),
              128: (_hopper(64, 128, 2, _TWO), _hopper(64, 64, 2, 1), _hopper(64, 64, 1, 1)), 256: (_hopper(64, 64, 2, 1),)},
    "mma": {64: (_mma(64, 64, 8), _mma(32, 64, 8), _mma(32, 32, 8), *_SMALL), 128: (_mma(32, 32, 8), *_SMALL),
            256: (_mma(32, 32, 8), *_SMALL),
            512: (_mma(32, 32, 8, 2, hold_a=False, split="branch"), _mma(32, 32, 8, hold_a=False, split="branch"))}}
#: and of `backward_rows`
_ROWS: dict[str, dict[int, tuple[Schedule, ...]]] = {
    "wgmma": {64: (_hopper(128, 64, 2, 4), _hopper(64, 64, 1, 2)), 128: (_hopper(128, 64, 2), _hopper(64, 64, 1, 1)),
              256: (_hopper(64, 64, 2, 1),), 512: (_hopper(64, 32, 2, 1, epilogue="quad"),)},
    "mma": {64: (_mma(64, 32, 4, 2), _mma(32, 32, 4)), 128: (_mma(64, 32, 8), _mma(32, 32, 4)), 256: (_mma(32, 32, 8), _mma(16, 32, 4)),
            512: (_mma(32, 32, 8, 2, hold_a=False), _mma(32, 32, 8, hold_a=False), _mma(16, 32, 4, hold_a=False))}}


def candidates(spec: str, arch: str, head: int, adds: bool = True) -> tuple[Schedule, ...]:
    """For a spec of `kernels.backward` or `kernels.ragged_backward`, and a head size (the larger of the key's and the value's). adds: it
    adds up the gradient of q too; else its loop stores nothing, and is not split: all warps then walk the same tiles."""
    if "tangent" in spec:
        return ()  # a model of the machine finds them
    if spec.endswith("before"):
        return (Schedule(tiles={"BLOCK_M": 32 if head <= 128 else 16}),)
    table = (_ROWS if spec.endswith("rows") else _BOTH)["wgmma" if arch.endswith("a") else "mma"]
    found = next((found for most, found in table.items() if head <= most), ())
    return found if adds else tuple(replace(s, split="none") for s in found)
