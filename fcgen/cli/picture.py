"""Layouts as text and as SVG: who holds each element of a register tile, and where each 16 bytes of a shared-memory tile lie.

Plain string building; in SVG one `<g>` per kind of mark. Colours are by lane (hue) or by bank group, and a legend says so.
"""

from __future__ import annotations

from colorsys import hls_to_rgb
from html import escape

from ..ir.layout import LANES, RegLayout, SmemLayout

FONT = "font-family='ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace'"
INK, FAINT, PAPER = "#1f2430", "#7a8194", "#ffffff"
LEFT, TOP, EDGE = 44, 58, 16


def owners(layout: RegLayout, warp: int = 0) -> dict[tuple[int, ...], tuple[int, int, int]]:
    """element -> the (warp, lane, register) that holds it: of several the first, those of `warp` before others."""
    c = layout.coords()
    out: dict[tuple[int, ...], tuple[int, int, int]] = {}
    for w in sorted(range(c.shape[0]), key=lambda w: (w != warp, w)):
        for l in range(LANES):
            for r, at in enumerate(c[w, l].tolist()):
                out.setdefault(tuple(at), (w, l, r))
    return out


def registers(layout: RegLayout, warp: int = 0, limit: int = 32) -> str:
    """For each element of a 2-d tile `warp.lane:register` (of several holders one, `warp` first), a line per row."""
    if len(layout.axes) != 2:
        raise ValueError("two-dimensional tiles are drawn")
    rows, cols = layout.shape
    home = owners(layout, warp)
    width = max(len(f"{w}.{l}:{r}") for w, l, r in home.values())
    lines = []
    for i in range(min(rows, limit)):
        cells = ["{}.{}:{}".format(*home[i, j]) if (i, j) in home else "?" for j in range(min(cols, limit))]
        lines.append(f"{i:>4} | " + " ".join(f"{c:<{width}}" for c in cells).rstrip())
    if rows > limit or cols > limit:
        lines.append(f"     ... {rows} x {cols} in all")
    return "\n".join(lines)


def chunks(layout: SmemLayout, shape: tuple[int, int], size: int, limit: int = 16) -> str:
    """The 16-byte chunk (address // 16) in which each run of 16 bytes of a row lands."""
    step = 16 // size
    rows, cols = shape
    out = []
    for i in range(min(rows, limit)):
        at = [int(layout.address(shape, size, i, j)) // 16 for j in range(0, cols, step)]
        out.append(f"{i:>4} | " + " ".join(f"{c:>4}" for c in at[:limit]))
    return "\n".join(out)


def svg(layout: RegLayout | SmemLayout, shape: tuple[int, int] | None = None, size: int = 2, title: str = "",
        limit: tuple[int, int] = (64, 64)) -> str:
    """A picture of a two-dimensional layout. shape and size (bytes of an element) are for shared memory; limit: rows and columns
    shown (of a shared-memory tile, columns count 16-byte chunks)."""
    if isinstance(layout, RegLayout):
        return _registers(layout, title or f"registers {layout}", limit)
    if shape is None:
        raise ValueError("a shared-memory layout is drawn for a tile's shape")
    return _shared(layout, shape, size, title or f"shared memory {layout}, {shape[0]} x {shape[1]} of {size} bytes", limit)


def _colour(hue: float, light: float, strong: float = 0.62) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in hls_to_rgb(hue % 1.0, light, strong))


def lane_colour(lane: int) -> str:
    """Neighbouring quads differ in hue, the four lanes of a quad in lightness."""
    return _colour((lane // 4) / 8 + 0.02, 0.87 - 0.075 * (lane % 4))


def bank_colour(group: int) -> str:
    """One of the eight 16-byte bank groups."""
    return _colour(group / 8 + 0.02, 0.76)


def _page(width: float, height: float, title: str, note: str, parts: list[str]) -> str:
    width = max(width, LEFT + 7.3 * max(len(title), 0.85 * len(note)) + EDGE)
    return "\n".join([
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' width='{width:.0f}'>",
        f"<title>{escape(title)}</title>",
        f"<rect width='100%' height='100%' fill='{PAPER}'/>",
        f"<text x='{LEFT}' y='20' font-size='12.5' font-weight='600' fill='{INK}' {FONT}>{escape(title)}</text>",
        f"<text x='{LEFT}' y='37' font-size='10.5' fill='{FAINT}' {FONT}>{escape(note)}</text>", *parts, "</svg>"]) + "\n"


def _cell(x: float, y: float, w: float, h: float, fill: str, tip: str, round: int = 0) -> str:
    box = f"<rect x='{x:.0f}' y='{y:.0f}' width='{w:.0f}' height='{h:.0f}' rx='{round}' fill='{fill}'>"
    return f"{box}<title>{escape(tip)}</title></rect>"


def _axes(rows: int, columns: list[float], h: float, step: int = 1) -> list[str]:
    """Row numbers, and column numbers at the given places; step: what one of them counts for."""
    out = [f"<g font-size='9.5' fill='{FAINT}' {FONT}>"]
    out += [f"<text x='{x:.1f}' y='{TOP - 5}' text-anchor='middle'>{j * step}</text>" for j, x in enumerate(columns)]
    out += [f"<text x='{LEFT - 7}' y='{TOP + (i + 0.5) * h + 3.2:.1f}' text-anchor='end'>{i}</text>" for i in range(rows)]
    return [*out, "</g>"]


def _registers(layout: RegLayout, title: str, limit: tuple[int, int]) -> str:
    if len(layout.axes) != 2:
        raise ValueError("two-dimensional tiles are drawn")
    home = owners(layout)
    rows, cols = (min(n, m) for n, m in zip(layout.shape, limit))
    w, h = 34.0, 22.0
    cells, text = ["<g stroke='#ffffff' stroke-width='0.7'>"], [f"<g font-size='10' text-anchor='end' fill='{INK}' {FONT}>"]
    small = [f"<g font-size='7.5' fill='#4b5264' {FONT}>"]
    lines = [f"<g stroke='{INK}' stroke-width='1.8' stroke-linecap='round' fill='none'>"]
    names = [f"<g font-size='10.5' font-weight='600' fill='{INK}' {FONT}>"]
    band: list[int] = []
    for i in range(rows):
        for j in range(cols):
            x, y = LEFT + j * w, TOP + i * h
            warp, lane, reg = home[i, j]
            cells.append(_cell(x, y, w, h, lane_colour(lane), f"({i}, {j}): warp {warp}, lane {lane}, register {reg}"))
            text.append(f"<text x='{x + 16:.0f}' y='{y + 14.5:.1f}'>{lane}</text>")
            small.append(f"<text x='{x + 18:.0f}' y='{y + 16.5:.1f}'>r{reg}</text>")
            # an outline wherever the neighbour belongs to another warp
            if i == 0 or home[i - 1, j][0] != warp:
                lines.append(f"<path d='M{x:.0f} {y:.0f}h{w:.0f}'/>")
            if j == 0 or home[i, j - 1][0] != warp:
                lines.append(f"<path d='M{x:.0f} {y:.0f}v{h:.0f}'/>")
        here = sorted({home[i, j][0] for j in range(cols)})
        if here != band and layout.warps > 1:
            band, word = here, "warp" if len(here) == 1 else "warps"
            names.append(f"<text x='{LEFT + cols * w + 8:.0f}' y='{y + 14.5:.1f}'>{word} {', '.join(map(str, here))}</text>")
    lines.append(f"<path d='M{LEFT} {TOP + rows * h:.0f}h{cols * w:.0f}v{-rows * h:.0f}'/>")
    shown = "" if (rows, cols) == layout.shape else f"; {rows} x {cols} of {layout.shape[0]} x {layout.shape[1]} shown"
    copies = layout.warps * LANES * layout.regs // (layout.shape[0] * layout.shape[1])
    note = f"each cell: lane and its register{', thick lines around warps' if layout.warps > 1 else ''}" \
           + (f"; every element is held by {copies} threads, the first is shown" if copies > 1 else "") + shown
    parts = [*_axes(rows, [LEFT + (j + 0.5) * w for j in range(cols)], h), *cells, "</g>", *text, "</g>", *small, "</g>",
             *lines, "</g>", *names, "</g>"]
    return _page(LEFT + cols * w + (100 if layout.warps > 1 else EDGE), TOP + rows * h + EDGE, title, note, parts)


def _shared(layout: SmemLayout, shape: tuple[int, int], size: int, title: str, limit: tuple[int, int]) -> str:
    rows, per = min(shape[0], limit[0]), 16 // size
    chunks = min(-(-shape[1] // per), limit[1])
    w, h = 46.0, 22.0
    gap = 10.0  # between panels
    cells, text = ["<g stroke='#ffffff' stroke-width='0.8'>"], [f"<g font-size='9.5' text-anchor='middle' fill='{INK}' {FONT}>"]

    def left(k: int) -> float:
        return LEFT + k * w + k * per // layout.panel * gap

    for i in range(rows):
        for k in range(chunks):
            address = int(layout.address(shape, size, i, k * per))
            x, y = left(k), TOP + i * h
            bank = address // 4 % 32
            cells.append(_cell(x, y, w, h, bank_colour(bank // 4), f"row {i}, columns {k * per} to {k * per + per - 1}: "
                               f"byte {address}, banks {bank} to {bank + 3}", 2))
            text.append(f"<text x='{x + w / 2:.0f}' y='{y + 14.5:.1f}'>{address}</text>")
    bottom = TOP + rows * h + 14
    legend = [f"<g font-size='9.5' fill='{INK}' {FONT}>"]
    for g in range(8):
        x = LEFT + g * 62
        legend.append(f"<rect x='{x}' y='{bottom:.0f}' width='12' height='12' rx='2' fill='{bank_colour(g)}'/>"
                      f"<text x='{x + 16}' y='{bottom + 9.8:.1f}'>{4 * g}-{4 * g + 3}</text>")
    legend.append(f"<text x='{LEFT + 8 * 62}' y='{bottom + 9.8:.1f}' fill='{FAINT}'>banks</text></g>")
    shown = "" if (rows, chunks * per) == tuple(shape) else f"; {rows} x {chunks * per} shown"
    note = "each cell: the byte address of 16 bytes of a row; eight different colours down a column are free of conflicts" + shown
    return _page(max(left(chunks - 1) + w + EDGE, LEFT + 9 * 62), bottom + 12 + EDGE, title, note,
                 [*cells, "</g>", *text, "</g>", *_axes(rows, [left(k) + w / 2 for k in range(chunks)], h, per), *legend])
