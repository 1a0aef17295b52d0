"""Text for people, in the manner of a compiler: what, where, why, and the next command to type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckpt_tools.model.findings import Finding, Severity, Verdict
from ckpt_tools.render.base import remedy, shorten, spot, typed, visible
from ckpt_tools.reports.base import Diagnostics, Fields, Report, Table, Text
from ckpt_tools.reports.units import first_names

_SEVERITIES = {
    Severity.FATAL: "1;35",
    Severity.ERROR: "1;31",
    Severity.WARNING: "1;33",
    Severity.NOTE: "1;36",
}
_STYLES = {"plain": "", "heading": "1", "good": "32", "bad": "31", "faint": "2"}
_WORDS: dict[str, str] = {
    Verdict.READY: "32",
    Verdict.DEGRADED: "33",
    Verdict.IN_PROGRESS: "33",
    Verdict.BROKEN: "31",
}
_ARROW = "1;34"
_NARROWEST = 16


class _Paint:
    def __init__(self, color: bool) -> None:
        self._color = color

    def __call__(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self._color and style and text else text


def render(report: Report, *, root: str = "", color: bool = False, width: int | None = None) -> Iterator[str]:
    """Yield the report's blocks as lines, one empty line between blocks.

    ``root`` stands for a finding that concerns the whole run.  ``width`` is that of the terminal; with None
    cells stay whole.
    """
    paint = _Paint(color)
    for number, block in enumerate(report.blocks()):
        if number:
            yield ""
        if isinstance(block, Text):
            yield from (paint(visible(line), _STYLES[block.style]) for line in block.lines)
        elif isinstance(block, Table):
            yield from _table(block, paint, width)
        elif isinstance(block, Fields):
            yield from _fields(block, paint)
        else:
            yield from _diagnostics(block, root, paint)


def brief(finding: Finding, base: str) -> str:
    """Return a finding as one line: ``out/a.pt: byte 7: error[CK203]: message``; see ``typed`` for ``base``."""
    words = [typed(base, finding.path), spot(finding.at), f"{finding.severity.label}[{finding.code}]", finding.message]
    return visible(": ".join(word for word in words if word))


def _diagnostics(block: Diagnostics, root: str, paint: _Paint) -> Iterator[str]:
    shown, more = shorten(block.findings)
    for number, finding in enumerate(shown):
        if number:
            yield ""
        yield from _finding(finding, root, paint)
    if more:
        yield ""
        yield from more


def _finding(finding: Finding, root: str, paint: _Paint) -> Iterator[str]:
    head = paint(f"{finding.severity.label}[{finding.code}]", _SEVERITIES[finding.severity])
    yield head + paint(f": {visible(finding.message)}", "1")
    yield f"  {paint('-->', _ARROW)} {visible(_place(finding, root))}"
    notes = list(finding.detail)
    if finding.related:
        notes.append(f"see also: {first_names(finding.related)}")
    if finding.help:
        notes.append(f"help: {finding.help}")
    fix = remedy(finding)
    if fix:
        notes.append(f"fix: {fix}")
    for note in notes:
        yield f"   {paint('=', _ARROW)} {visible(note)}"


def _place(finding: Finding, root: str) -> str:
    path = finding.path if finding.path not in ("", ".") else root or "."
    inside = spot(finding.at)
    return f"{path}: {inside}" if inside else path


def _fields(block: Fields, paint: _Paint) -> Iterator[str]:
    if block.title:
        yield paint(visible(block.title), "1")
    labels = [visible(label) for label, _ in block.rows]
    longest = max(map(len, labels), default=0)
    for label, (_, value) in zip(labels, block.rows, strict=True):
        yield f"{paint(label.ljust(longest), '2')}  {visible(value)}".rstrip()


def _table(block: Table, paint: _Paint, width: int | None) -> Iterator[str]:
    if block.title:
        yield paint(visible(block.title), "1")
    columns = [visible(name) for name in block.columns]
    rows = [[visible(cell) for cell in row] for row in block.rows]
    if width is not None:
        rows = _fitted(columns, rows, block.right, width)
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for number, row in enumerate([columns, *rows]):
        cells = [
            " " * (widths[place] - len(cell)) + paint(cell, "1" if number == 0 else _WORDS.get(cell, ""))
            if place in block.right
            else paint(cell, "1" if number == 0 else _WORDS.get(cell, "")) + " " * (widths[place] - len(cell))
            for place, cell in enumerate(row)
        ]
        yield "  ".join(cells).rstrip()


def _fitted(columns: Sequence[str], rows: list[list[str]], right: frozenset[int], width: int) -> list[list[str]]:
    """Cut the widest left-aligned column until the table fits: names at their beginning, since ends tell them apart."""
    widths = [max(len(name), *(len(row[number]) for row in rows), 0) for number, name in enumerate(columns)]
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    words = [number for number in range(len(columns)) if number not in right]
    if excess <= 0 or not words:
        return rows
    widest = max(words, key=widths.__getitem__)
    room = max(widths[widest] - excess, len(columns[widest]), _NARROWEST)
    sentences = 2 * sum(" " in row[widest] for row in rows) > len(rows)
    for row in rows:
        if len(row[widest]) > room:
            row[widest] = f"{row[widest][: room - 1]}…" if sentences else f"…{row[widest][1 - room :]}"
    return rows
