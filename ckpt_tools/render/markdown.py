"""Markdown for issues and pull requests: blocks as headings, lists and GitHub tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ckpt_tools.model.findings import Finding
from ckpt_tools.render.base import remedy, shorten, spot, visible
from ckpt_tools.reports.base import Diagnostics, Fields, Report, Table, Text

_MARKS = re.compile(r"([\\`*\[\]<>|#~!&]|(?<![^\W_])_|_(?![^\W_]))")
_START = re.compile(r"^(\s*)([-+=]|\d+[.)])(?=\s|$)")


def render(report: Report) -> Iterator[str]:
    """Yield the report's blocks as lines of Markdown; nothing in a value can become markup."""
    for number, block in enumerate(report.blocks()):
        if number:
            yield ""
        if isinstance(block, Text):
            yield from _text(block)
        elif isinstance(block, Table):
            yield from _table(block)
        elif isinstance(block, Fields):
            yield from _fields(block)
        else:
            yield from _diagnostics(block)


def escape(text: str) -> str:
    """Return ``text`` such that Markdown shows it as it is."""
    return _MARKS.sub(r"\\\1", visible(text))


def _line(text: str) -> str:
    """Return a line of its own, which must not begin a list either."""
    return _START.sub(r"\1\\\2", escape(text))


def _text(block: Text) -> Iterator[str]:
    if block.style in ("heading", "good", "bad") and block.lines:
        first, *rest = block.lines
        yield f"**{escape(first)}**" + ("  " if rest else "")
        lines = rest
    else:
        lines = list(block.lines)
    for number, line in enumerate(lines):
        yield _line(line) + ("  " if number + 1 < len(lines) else "")


def _fields(block: Fields) -> Iterator[str]:
    if block.title:
        yield f"### {escape(block.title)}"
        yield ""
    yield from (f"- {escape(label)}: {escape(value)}" for label, value in block.rows)


def _table(block: Table) -> Iterator[str]:
    if block.title:
        yield f"### {escape(block.title)}"
        yield ""
    from tabulate import tabulate

    align = ["right" if number in block.right else "left" for number in range(len(block.columns))]
    rows = [[escape(cell) for cell in row] for row in block.rows]
    headers = [escape(name) for name in block.columns]
    yield from tabulate(rows, headers, tablefmt="pipe", colalign=align, disable_numparse=True).splitlines()


def _diagnostics(block: Diagnostics) -> Iterator[str]:
    shown, more = shorten(block.findings)
    for finding in shown:
        yield from _finding(finding)
    yield from (f"- {escape(line)}" for line in more)


def _finding(finding: Finding) -> Iterator[str]:
    place = spot(finding.at)
    where = f"{finding.path}: {place}" if place else finding.path
    yield f"- **{finding.severity.label}\\[{finding.code}\\]** {escape(where)}: {escape(finding.message)}"
    lines = [*finding.detail, *([f"help: {finding.help}"] if finding.help else [])]
    fix = remedy(finding)
    yield from (f"  - {escape(line)}" for line in [*lines, *([f"fix: {fix}"] if fix else [])])
