"""Curves over steps as data: what the terminal's chart, the SVG and the PNG are drawn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points in ascending order of step; values that are no finite number are left out by ``series``."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """Series that share one scale of values."""

    title: str
    series: tuple[Series, ...]

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(point for each in self.series for point in each.points)


@dataclass(frozen=True, slots=True)
class Mark:
    """A place on the axis of steps, between the step ``after`` and the next one."""

    after: int
    label: str
    bad: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels over one axis of steps."""

    title: str
    panels: tuple[Panel, ...]
    marks: tuple[Mark, ...] = ()

    @property
    def steps(self) -> tuple[float, float] | None:
        """The first and the last step of all panels, None when there is no point."""
        every = [step for panel in self.panels for step, _ in panel.points]
        return (min(every), max(every)) if every else None


def series(name: str, pairs: Iterable[tuple[int, float | None]]) -> Series:
    """Return a series of the pairs whose value is a finite number."""
    return Series(name, tuple((float(step), value) for step, value in pairs if value is not None and isfinite(value)))


def thinned(points: tuple[Point, ...], most: int) -> tuple[Point, ...]:
    """Return at most about ``most`` points: of every stretch the first, the lowest, the highest and the last."""
    if len(points) <= most:
        return points
    stretch = -(-4 * len(points) // most)
    kept: list[Point] = []
    for start in range(0, len(points), stretch):
        piece = points[start : start + stretch]
        extremes = {piece[0], piece[-1], min(piece, key=lambda p: p[1]), max(piece, key=lambda p: p[1])}
        kept += sorted(extremes)
    return tuple(kept)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers between ``low`` and ``high``."""
    span = high - low
    if not isfinite(span) or span <= 0:
        return [low] if isfinite(low) else []
    unit = 1.0
    while unit * about < span:
        unit *= 10
    while unit * about > span * 10 and unit > 1e-300:
        unit /= 10
    step = next((unit * factor for factor in (0.1, 0.2, 0.5, 1, 2, 5) if span / (unit * factor) <= about), unit)
    if step <= 0 or low + step == low:
        return [low, high]
    first = -int(-low // step) if low >= 0 else -(int(-low / step))
    found = [round(number * step, 12) if step > 1e-6 else number * step for number in range(first, first + about + 3)]
    return [value for value in found if low <= value <= high]


def share(value: float, low: float, high: float) -> float:
    """Return where ``value`` lies between two bounds, from 0 to 1; 0.5 where there is nothing between them."""
    span = high - low
    if not isfinite(span):
        value, low, span = value / 4, low / 4, high / 4 - low / 4
    return min(1.0, max(0.0, (value - low) / span)) if span > 0 else 0.5
