"""Curves as an SVG picture, alone or in an HTML page: self-contained, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from ckpt_tools.render.base import visible
from ckpt_tools.reports.curves import Figure, Panel, Series, share, thinned, ticks

WIDTH = 860
PANEL = 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 18, 34, 34
_HEAD = 34
MOST_POINTS = 2000
COLOURS = ("#1f77b4", "#d9730d", "#2a9d4a", "#8250df")

_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.t{font-weight:600;font-size:13px}.g{stroke:#e6e6e6}"
    ".a{stroke:#999}.l{fill:none;stroke-width:1.6}.m{stroke:#777;stroke-dasharray:4 3}"
    ".b{stroke:#c62828;stroke-dasharray:4 3;stroke-width:1.5}text.b{fill:#c62828;stroke:none}"
)


def render(figure: Figure) -> str:
    """Return the figure as one SVG document."""
    height = _HEAD + max(1, len(figure.panels)) * PANEL
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{_text(figure.title)}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text class="t" x="{_LEFT}" y="22">{_text(figure.title)}</text>',
    ]
    span = figure.steps
    if span is None:
        lines.append(f'<text x="{_LEFT}" y="60">nothing is logged</text>')
    else:
        for number, panel in enumerate(figure.panels):
            lines += _panel(figure, panel, span, _HEAD + number * PANEL)
    return "\n".join((*lines, "</svg>")) + "\n"


def page(figure: Figure) -> str:
    """Return the figure in an HTML page."""
    title = _text(figure.title)
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
    style = "<style>body{margin:1.5rem;background:#fff}svg{max-width:100%;height:auto}</style></head>\n"
    return f"{head}{style}<body>\n{render(figure)}</body></html>\n"


def _panel(figure: Figure, panel: Panel, span: tuple[float, float], top: int) -> Iterator[str]:
    values = [value for _, value in panel.points]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) * 0.05 or 1.0), high + (abs(high) * 0.05 or 1.0)
    upper, lower = top + _TOP, top + PANEL - _BOTTOM

    def x(step: float) -> float:
        return _LEFT + share(step, *span) * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return lower - share(value, low, high) * (lower - upper)

    for value in ticks(low, high):
        place = f"{y(value):.1f}"
        yield f'<line class="g" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{place}" y2="{place}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>'
    for step in ticks(*span, 8):
        yield f'<text x="{x(step):.1f}" y="{lower + 18}" text-anchor="middle">{step:,.6g}</text>'
    yield f'<path class="a" fill="none" d="M{_LEFT} {upper}V{lower}H{WIDTH - _RIGHT}"/>'
    yield from _legend(panel, top + 22)
    for mark in figure.marks:
        kind = "b" if mark.bad else "m"
        place = f"{x(min(max(mark.after + 0.5, span[0]), span[1])):.1f}"
        yield f'<line class="{kind}" x1="{place}" x2="{place}" y1="{upper}" y2="{lower}">'
        yield f"<title>{_text(mark.label)}</title></line>"
        side = "end" if float(place) > WIDTH - 160 else "start"
        words = f'class="{"b" if mark.bad else "n"}" text-anchor="{side}"'
        yield f'<text {words} x="{place}" y="{upper - 3}">{_text(mark.label)}</text>'
    for number, each in enumerate(panel.series):
        colour = COLOURS[number % len(COLOURS)]
        points = thinned(each.points, MOST_POINTS)
        path = "".join(f"{'L' if place else 'M'}{x(s):.1f} {y(v):.1f}" for place, (s, v) in enumerate(points))
        if len(points) == 1:
            yield f'<circle cx="{x(points[0][0]):.1f}" cy="{y(points[0][1]):.1f}" r="3" fill="{colour}"/>'
        else:
            yield f'<path class="l" stroke="{colour}" d="{path}"/>'


def _legend(panel: Panel, y: int) -> Iterator[str]:
    if len(panel.series) == 1:
        yield f'<text class="t" x="{_LEFT}" y="{y}">{_text(_name(panel, panel.series[0]))}</text>'
        return
    place = _LEFT
    for number, each in enumerate(panel.series):
        name = _name(panel, each)
        yield f'<rect x="{place}" y="{y - 9}" width="10" height="10" fill="{COLOURS[number % len(COLOURS)]}"/>'
        yield f'<text class="t" x="{place + 15}" y="{y}">{_text(name)}</text>'
        place += 15 + 8 * len(name) + 20


def _name(panel: Panel, each: Series) -> str:
    return each.name or panel.title


def _text(text: str) -> str:
    return escape(visible(text), quote=True)
