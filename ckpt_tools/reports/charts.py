"""Pictures that a report offers beside its blocks, for the formats that can draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ckpt_tools.reports.base import Report


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Values by row and column; ``cells`` holds the value that gives the colour, None where there is none to compare,
    and what is written about it.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], tuple[float | None, str]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """One named curve."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over a common axis."""

    title: str
    axis: str
    series: tuple[Series, ...]


class Pictured(Report, Protocol):
    """A report with pictures."""

    @property
    def title(self) -> str:
        """Return what the report is about."""

    def pictures(self) -> Sequence[HeatMap | Chart]:
        """Return what is drawn, in reading order."""
