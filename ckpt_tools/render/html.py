"""One HTML file with everything in it: no script, style, font or picture comes from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape as html_escape

from ckpt_tools.render.base import remedy, shorten, spot, visible
from ckpt_tools.reports.base import Diagnostics, Fields, Table, Text
from ckpt_tools.reports.charts import Chart, HeatMap, Pictured, Series

_WIDTH, _HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 34
_COLOURS = ("#3267b8", "#c2571a", "#3c8a4e", "#8a4ea3")

STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #888; --accent: #3267b8; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
.answer { font-size: 1.15rem; font-weight: 600; border-left: .3rem solid var(--accent); padding-left: .8rem; }
.answer.good { border-color: #3c8a4e; } .bad { color: #c0392b; } .faint { color: var(--faint); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .87rem; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
}
td { overflow-wrap: anywhere; }
td.right, th.right { text-align: right; font-variant-numeric: tabular-nums; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; }
dd { margin: 0; overflow-wrap: anywhere; }
dt { color: var(--faint); } pre { white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; margin: .5rem 0; }
.map td { padding: 0; border: 1px solid #fff2; min-width: 2.4rem; height: 1.5rem; text-align: center; }
.map td { font-size: .75rem; }
.map thead th { vertical-align: bottom; font-weight: 400; font-size: .75rem; }
.map thead th { writing-mode: sideways-lr; }
.map tbody th { font-weight: 400; white-space: nowrap; } .map .none { background: repeating-linear-gradient(45deg,
transparent 0 4px, #8883 4px 6px); } svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; font-size: 11px; }
.key { display: inline-block; width: 1.6rem; height: .25rem; vertical-align: middle; margin: 0 .4rem 0 1rem; }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].dataset.value;
  const number = (row, column) => value(row, column) === undefined ? -Infinity : Number(value(row, column));
  const text = (row, column) => row.cells[column].textContent;
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const rows = [...body.rows].filter(row => row.dataset.last === undefined);
    const last = [...body.rows].filter(row => row.dataset.last !== undefined);
    const numeric = rows.some(row => value(row, column) !== undefined);
    const was = head.getAttribute("aria-sort");
    const down = was === null ? numeric : was === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (a, b) => numeric
      ? (number(a, column) < number(b, column) ? -1 : number(a, column) > number(b, column) ? 1 : 0)
      : text(a, column).localeCompare(text(b, column), "en", {numeric: true});
    rows.sort((a, b) => down ? order(b, a) : order(a, b));
    body.append(...rows, ...last);
  }));
}
"""


def escape(text: str) -> str:
    """Return ``text`` as HTML that shows it as it is, control and direction characters spelled out."""
    return html_escape(visible(text), quote=True)


def render(report: Pictured) -> Iterator[str]:
    """Yield the lines of one self-contained page: the report's blocks, its pictures after the first table."""
    yield "<!DOCTYPE html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(report.title)}</title>"
    yield f"<style>{STYLE}</style></head><body>"
    yield f"<h1>{escape(report.title)}</h1>"
    pictures = list(report.pictures())
    for block in report.blocks():
        if isinstance(block, Table) and pictures:
            yield from _pictures(pictures)
            pictures = []
        if isinstance(block, Text):
            yield from _text(block)
        elif isinstance(block, Table):
            yield from _table(block)
        elif isinstance(block, Fields):
            yield from _fields(block)
        else:
            yield from _diagnostics(block)
    yield from _pictures(pictures)
    yield f"<script>{SCRIPT}</script></body></html>"


# Blocks ------------------------------------------------------------------------------------------------------


def _text(block: Text) -> Iterator[str]:
    lines = "\n".join(escape(line) for line in block.lines)
    shown = {"heading": "answer", "good": "answer good", "bad": "bad", "faint": "faint"}.get(block.style, "plain")
    yield f'<pre class="{shown}">{lines}</pre>'


def _fields(block: Fields) -> Iterator[str]:
    if block.title:
        yield f"<h2>{escape(block.title)}</h2>"
    yield "<dl>"
    yield from (f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in block.rows)
    yield "</dl>"


def _table(block: Table) -> Iterator[str]:
    if block.title:
        yield f"<h2>{escape(block.title)}</h2>"
    yield '<div class="scroll"><table class="sortable"><thead><tr>'
    for number, name in enumerate(block.columns):
        shown = ' class="right"' if number in block.right else ""
        yield f'<th scope="col"{shown}><button type="button">{escape(name) or "&nbsp;"}</button></th>'
    yield "</tr></thead><tbody>"
    for row in block.rows:
        closing = " data-last" if row and row[0].startswith("... and ") else ""
        cells = "".join(_cell(cell, number in block.right) for number, cell in enumerate(row))
        yield f"<tr{closing}>{cells}</tr>"
    yield "</tbody></table></div>"


def _cell(cell: str, right: bool) -> str:
    if not right:
        return f"<td>{escape(cell)}</td>"
    number = _number(cell)
    mark = "" if number is None else f' data-value="{number!r}"'
    return f'<td class="right"{mark}>{escape(cell)}</td>'


def _number(cell: str) -> float | None:
    """Return the number that a cell begins with, None for none; ``<0.1 %`` is less than any that is written out."""
    word = cell.replace(",", "").split(" ", 1)[0]
    if word[:1] in "<>":
        word = {"<": "1e-9", ">": "99.99"}.get(word[:1], word)
    try:
        number = float(word)
    except ValueError:
        return None
    return 1e308 if number == math.inf else number if math.isfinite(number) else None


def _diagnostics(block: Diagnostics) -> Iterator[str]:
    shown, more = shorten(block.findings)
    yield "<ul>"
    for finding in shown:
        place = spot(finding.at)
        where = f"{finding.path}: {place}" if place else finding.path
        lines = [*finding.detail, *([f"help: {finding.help}"] if finding.help else [])]
        fix = remedy(finding)
        inside = "".join(f"<br>{escape(line)}" for line in [*lines, *([f"fix: {fix}"] if fix else [])])
        head = f"{finding.severity.label}[{finding.code}] {where}: {finding.message}"
        yield f"<li><b>{escape(head)}</b>{inside}</li>"
    yield from (f"<li>{escape(line)}</li>" for line in more)
    yield "</ul>"


# Pictures ----------------------------------------------------------------------------------------------------


def _pictures(pictures: Sequence[HeatMap | Chart]) -> Iterator[str]:
    for picture in pictures:
        yield f"<h2>{escape(picture.title)}</h2>"
        yield from _map(picture) if isinstance(picture, HeatMap) else _chart(picture)


def _map(picture: HeatMap) -> Iterator[str]:
    values = [value for value, _ in picture.cells.values() if value and math.isfinite(value)]
    low, high = min(values, default=1.0), max(values, default=1.0)
    yield '<div class="scroll"><table class="map"><thead><tr><td></td>'
    yield "".join(f'<th scope="col">{escape(name)}</th>' for name in picture.columns)
    yield "</tr></thead><tbody>"
    for row in picture.rows:
        cells = "".join(_map_cell(picture.cells.get((row, column)), low, high) for column in picture.columns)
        yield f'<tr><th scope="row">{escape(row)}</th>{cells}</tr>'
    yield "</tbody></table></div>"
    if picture.note:
        yield f'<p class="faint">{escape(picture.note)}</p>'


def _map_cell(cell: tuple[float | None, str] | None, low: float, high: float) -> str:
    if cell is None:
        return "<td></td>"
    value, words = cell
    if value is None:
        return f'<td class="none" title="{escape(words)}"></td>'
    if value == 0:
        return f'<td title="{escape(words)}">=</td>'
    share = math.log(value / low) / math.log(high / low) if high > low and math.isfinite(value) else 1.0
    colour = f"hsl({50 - 45 * share:.0f} 85% {88 - 48 * share:.0f}%)"
    text = "#fff" if share > 0.6 else "#111"
    return f'<td style="background:{colour};color:{text}" title="{escape(words)}">{value:.1g}</td>'


def _chart(picture: Chart) -> Iterator[str]:
    finite = [Series(each.name, tuple(p for p in each.points if all(map(math.isfinite, p)))) for each in picture.series]
    points = [point for each in finite for point in each.points]
    if not points:
        yield '<p class="faint">no finite value</p>'
        return
    across, up = _axis([x for x, _ in points]), _axis([y for _, y in points])
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = _LEFT + wide * (point[0] - across[0]) / (across[1] - across[0])
        return x, _TOP + high * (1 - (point[1] - up[0]) / (up[1] - up[0]))

    yield f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" aria-label="{escape(picture.title)}">'
    yield f'<path d="M{_LEFT} {_TOP}V{_TOP + high}H{_LEFT + wide}" fill="none" stroke="currentColor" opacity=".5"/>'
    for share in (0.0, 0.5, 1.0):
        x, y = across[0] + share * (across[1] - across[0]), up[0] + share * (up[1] - up[0])
        at_x, at_y = place((x, y))
        yield f'<text x="{at_x:.1f}" y="{_TOP + high + 16}" text-anchor="middle">{x:.6g}</text>'
        yield f'<text x="{_LEFT - 6}" y="{at_y + 4:.1f}" text-anchor="end">{y:.4g}</text>'
    yield f'<text x="{_LEFT + wide / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(picture.axis)}</text>'
    for number, each in enumerate(finite):
        colour, dash = _COLOURS[number % len(_COLOURS)], ' stroke-dasharray="6 4"' if number else ""
        spots = [place(point) for point in each.points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        if len(spots) <= 60:
            yield "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in spots)
    yield "</svg>"
    keys = (
        f'<span class="key" style="background:{_COLOURS[number % len(_COLOURS)]}"></span>{escape(each.name)}'
        for number, each in enumerate(picture.series)
    )
    yield f"<p>{''.join(keys)}</p>"


def _axis(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) / 2 or 1.0
        return low - margin, high + margin
    return low, high
