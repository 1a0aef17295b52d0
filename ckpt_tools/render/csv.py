"""CSV for spreadsheets and data frames: the table of a report, a header line first."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ckpt_tools.render.base import visible

_FORMULA = ("=", "+", "-", "@")


def render(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield one line per row; None is an empty cell, and numbers are written as Python reads them back."""
    writer = csv.writer(_Line(), lineterminator="")
    for row in (columns, *rows):
        line: str = writer.writerow([_cell(value) for value in row])
        yield line


class _Line:
    """A file whose ``write`` gives the text back, so that ``writerow`` returns the line."""

    def write(self, text: str) -> str:
        return text


def _cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: names come from files."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
