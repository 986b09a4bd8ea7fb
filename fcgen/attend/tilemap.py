"""Pictures of masks: which tiles they leave empty, partial or full, as text or as a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import FcError
from ..ir.schedule import Schedule
from ..kernels.readback import shown

EMPTY, PARTIAL, FULL = "·", "▒", "█"


class TileMap:
    """seen: bool [rows, keys]. tile: rows and keys of a tile. classes: 0 empty, 1 partial, 2 full, for each."""

    def __init__(self, seen: np.ndarray, tile: tuple[int, int], called: str):
        self.seen, self.tile, self.called = seen, tile, called
        m, n = (-(-size // t) for size, t in zip(seen.shape, tile))
        self.classes = np.zeros((m, n), int)
        for i in range(m):
            for j in range(n):
                part = seen[i * tile[0]:(i + 1) * tile[0], j * tile[1]:(j + 1) * tile[1]]
                self.classes[i, j] = int(part.any()) + int(part.all())

    @property
    def share(self) -> float:
        """Of the positions, those that are seen."""
        return float(self.seen.mean()) if self.seen.size else 0.0

    def __str__(self) -> str:
        count = {c: int((self.classes == c).sum()) for c in (0, 1, 2)}
        rows, keys = self.seen.shape
        head = [f"{self.called}: {rows} rows x {keys} keys in tiles of {self.tile[0]} x {self.tile[1]}, {self.share:.1%} seen",
                f"{EMPTY} {count[0]} empty   {PARTIAL} {count[1]} partial   {FULL} {count[2]} full"]
        return "\n".join([*head, *self.lines()])

    def lines(self) -> Iterator[str]:
        for row in self.classes:
            yield "".join((EMPTY, PARTIAL, FULL)[c] for c in row)

    def plot(self, file: Any) -> None:
        """Save a picture: each position that is seen, and the tiles behind."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise FcError("call/argument", "a picture of a mask needs matplotlib", expected="pip install 'fcgen[plot]'",
                          got="no matplotlib", hint="str(mask) draws it as text") from None
        rows, keys = self.seen.shape
        figure = Figure(figsize=(6, max(1.5, min(12, 6 * rows / max(1, keys)))), layout="constrained")
        axes = figure.add_subplot()
        tiles = np.kron(self.classes, np.ones(self.tile, int))[:rows, :keys]
        axes.imshow(tiles * 2 + self.seen, cmap="Blues", vmin=0, vmax=5, interpolation="nearest", extent=(0, keys, rows, 0))
        axes.set(xlabel="keys", ylabel="rows", title=f"{self.called}: {self.share:.1%} seen")
        figure.savefig(file, dpi=120)


def tile_map(mask: Any, rows: int, keys: int, *, b: int = 0, h: int = 0, tile: tuple[int, int] | None = None) -> TileMap:
    """The tiles of a mask for one batch and head, by the tile interpreter: no GPU is needed."""
    for name, n in (("rows", rows), ("keys", keys)):
        if isinstance(n, bool) or not hasattr(n, "__index__") or not 1 <= int(n) <= 1 << 14:
            raise FcError("call/argument", f"argument `{name}` is no length that can be drawn", expected="1 to 16384", got=repr(n)[:80])
    if tile is None:
        each = next(t for t in (16, 32, 64, 128, 256) if max(rows, keys) <= 64 * t)
        tile = (each, each)
    if not (isinstance(tile, tuple) and len(tile) == 2 and all(isinstance(t, int) and t > 0 for t in tile)):
        raise FcError("call/argument", "argument `tile` is not (rows, keys)", got=repr(tile)[:80])
    schedule = Schedule(tiles={"ROWS": 128, "KEYS": 128}, warps=4)
    program = shown.compile(target="sm_80", schedule=schedule, check=False, keep=mask)
    seen = program.interpret(Seen=np.zeros((rows, keys), np.int8), b=b, h=h)["Seen"]
    return TileMap(seen != 0, tile, getattr(mask, "called", getattr(mask, "__name__", "mask")))
