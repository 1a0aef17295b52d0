"""GitHub workflow commands: each finding becomes an annotation at its file.

https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_tools.model.findings import Finding, Severity
from ckpt_tools.render.base import remedy, shorten, spot, typed, visible
from ckpt_tools.reports.base import Diagnostics, Report, Text

_LEVELS = {
    Severity.FATAL: "error",
    Severity.ERROR: "error",
    Severity.WARNING: "warning",
    Severity.NOTE: "notice",
}


def render(report: Report, *, base: str, closing: bool = True) -> Iterator[str]:
    """Yield one annotation per finding, then, with ``closing``, the report's own text lines.

    ``base`` is the directory looked at, as the user typed it: GitHub wants paths that start at the working directory.
    """
    for block in report.blocks():
        if isinstance(block, Diagnostics):
            shown, more = shorten(block.findings)
            yield from (_annotation(finding, base) for finding in shown)
            yield from more
        elif closing and isinstance(block, Text):
            yield from (_inert(line) for line in block.lines)


def _annotation(finding: Finding, base: str) -> str:
    place = spot(finding.at)
    lines = [f"{finding.message} ({place})" if place else finding.message, *finding.detail]
    if finding.help:
        lines.append(f"help: {finding.help}")
    fix = remedy(finding)
    if fix:
        lines.append(f"fix: {fix}")
    file = _property(visible(typed(base, finding.path)))
    title = _property(visible(f"{finding.code} {finding.name}"))
    message = "%0A".join(_data(visible(line)) for line in lines)
    return f"::{_LEVELS[finding.severity]} file={file},title={title}::{message}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _inert(line: str) -> str:
    """Return a line that the runner cannot take for a command, whatever names stand in it."""
    text = visible(line)
    return f"- {text}" if text.lstrip().startswith(("::", "##[")) else text
