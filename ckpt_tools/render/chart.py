"""Curves as a chart of characters: blocks where the terminal can show them, plain ASCII elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckpt_tools.render.base import visible
from ckpt_tools.reports.curves import Figure, Panel, Point, share

BLOCKS = " ▁▂▃▄▅▆▇█"
PLAIN = " .:#"
HEIGHT = 6
_GUTTER = 10
_NARROWEST = 20
_WIDEST = 120


def render(figure: Figure, *, width: int | None = None, blocks: bool = True) -> Iterator[str]:
    """Yield the lines of all panels, one empty line between them; nothing without a point.

    Each column stands for a stretch of steps and shows the mean of its values.  Only the first series of a panel is
    drawn: two would hide each other.  ``^`` marks seams, ``!`` broken ones.
    """
    span = figure.steps
    if span is None:
        return
    columns = max(_NARROWEST, min(width or 80, _WIDEST) - _GUTTER - 1)
    for number, panel in enumerate(figure.panels):
        if number:
            yield ""
        yield from _panel(panel, span, columns, BLOCKS if blocks else PLAIN)
        marks = _marks(figure, span, columns)
        if marks.strip():
            yield f"{'':{_GUTTER}}{marks}".rstrip()
        left, right = f"{span[0]:,.0f}", f"{span[1]:,.0f}"
        yield f"{'step':>{_GUTTER - 1}} {left}{right:>{columns - len(left)}}"


def _panel(panel: Panel, span: tuple[float, float], columns: int, shades: str) -> Iterator[str]:
    points = panel.series[0].points
    values = _columns(points, span, columns)
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    top = (len(shades) - 1) * HEIGHT
    # The lowest value still shows a line, so that it differs from no value at all.
    heights = [0 if value is None else 1 + round(share(value, low, high) * (top - 1)) for value in values]
    yield visible(panel.title)
    for line in range(HEIGHT - 1, -1, -1):
        floor = line * (len(shades) - 1)
        cells = "".join(shades[max(0, min(len(shades) - 1, height - floor))] for height in heights)
        label = f"{high:.4g}" if line == HEIGHT - 1 else f"{low:.4g}" if line == 0 else ""
        yield f"{label:>{_GUTTER - 1}} {cells}".rstrip()


def _columns(points: Sequence[Point], span: tuple[float, float], columns: int) -> list[float | None]:
    """Return one value per column; a column without a point repeats the one before it, up to the last point."""
    sums: list[list[float]] = [[] for _ in range(columns)]
    for step, value in points:
        sums[_column(step, span, columns)].append(value)
    found: list[float | None] = []
    end = _column(points[-1][0], span, columns)
    for number, inside in enumerate(sums):
        held = found[-1] if found and number <= end else None
        found.append(sum(value / len(inside) for value in inside) if inside else held)
    return found


def _column(step: float, span: tuple[float, float], columns: int) -> int:
    first, last = span
    if last <= first:
        return 0
    return max(0, min(columns - 1, int((step - first) / (last - first) * (columns - 1) + 0.5)))


def _marks(figure: Figure, span: tuple[float, float], columns: int) -> str:
    line = [" "] * columns
    for mark in figure.marks:
        place = _column(min(mark.after + 0.5, span[1]), span, columns)
        line[place] = "!" if mark.bad or line[place] == "!" else "^"
    return "".join(line)
