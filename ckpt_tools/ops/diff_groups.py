"""From compared pairs to what is told of them: rows, groups by layer or kind, and the map of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.ops import diff_names
from ckpt_tools.ops.diff_tensors import Pair, aliases, merged
from ckpt_tools.reports.charts import HeatMap
from ckpt_tools.reports.diff import Group, TensorRow, Tensors
from ckpt_tools.reports.diff_text import percent

if TYPE_CHECKING:
    from ckpt_tools.numerics.distance import Distance

MOST_ROWS = 400
MOST_COLUMNS = 60

Owners = Mapping[str, tuple[str, str]]
"""The weight and the moment's own name, for every moment of which the weight is known."""


def match(left: Mapping[str, TensorRef], right: Mapping[str, TensorRef], parts: Mapping[str, str]) -> list[Pair]:
    """Return the pairs of one name, in the order of the left side."""
    return [Pair(name, parts.get(name, "weights"), ref, right[name]) for name, ref in left.items() if name in right]


def alone(tensors: Mapping[str, TensorRef], other: Mapping[str, TensorRef]) -> list[str]:
    """Return the names that only one side has, but for those that tie to a name which both have."""
    tied = aliases(tensors)
    return [name for name in tensors if name not in other and not any(twin in other for twin in tied.get(name, ()))]


def tensors(
    title: str,
    pairs: list[Pair],
    only: tuple[list[str], list[str]],
    *,
    compared: bool,
    tolerance: float = 0.0,
    by: str | None = None,
    owners: Owners | None = None,
) -> Tensors:
    """Return what became of a set of pairs; ``by`` also groups them, by layer or role."""
    owners = owners or {}
    rows: list[TensorRow] = []
    unread: list[tuple[str, str]] = []
    same = tolerated = 0
    for pair in pairs:
        if pair.why:
            unread.append((pair.name, pair.why))
        elif not compared and pair.sealed is None and not _described_otherwise(pair):
            unread.append((pair.name, "values not compared"))
        elif not pair.differs and pair.sealed is not False and not _described_otherwise(pair):
            same += 1
        elif compared and _tolerable(pair, tolerance):
            same, tolerated = same + 1, tolerated + 1
        else:
            rows.append(_row(pair, owners.get(pair.name, (None,))[0]))
    rows.sort(key=TensorRow.weight_of_change)
    places = {pair.name: _place(pair.name, owners) for pair in pairs}
    return Tensors(
        title,
        compared,
        same,
        tolerated,
        tuple(rows),
        tuple(only[0]),
        tuple(only[1]),
        tuple(unread),
        tuple(_groups(pairs, rows, {name: place[by == "role"] for name, place in places.items()})) if by else (),
        _map(title, pairs, rows, places) if compared and pairs else None,
    )


def _place(name: str, owners: Owners) -> tuple[str, str]:
    """Return the layer of a tensor and its kind within it."""
    weight, moment = owners.get(name, (name, ""))
    return diff_names.layer(weight), f"{diff_names.kind(weight)} {moment}".rstrip()


def _described_otherwise(pair: Pair) -> bool:
    return pair.left.shape != pair.right.shape or pair.left.dtype != pair.right.dtype


def _tolerable(pair: Pair, tolerance: float) -> bool:
    found = pair.distance
    if not tolerance or found is None or pair.left.shape != pair.right.shape:
        return False
    return found.largest <= tolerance and found.nan_left == found.nan_right


def _row(pair: Pair, weight: str | None) -> TensorRow:
    found, note = pair.distance, pair.note
    if pair.sealed is False and found is None:
        note = note or "another digest in the manifest"
    if found is not None and pair.left.dtype != pair.right.dtype and not note:
        if not found.changed:
            note = "same values"
        elif found.unrounded == 0:
            note = "same values but for rounding"
    return TensorRow(pair.name, pair.part, pair.left, pair.right, found, note, weight)


def _groups(pairs: Iterable[Pair], rows: Iterable[TensorRow], groups: Mapping[str, str]) -> list[Group]:
    changed: dict[str, list[TensorRow]] = {}
    for row in rows:
        changed.setdefault(groups[row.name], []).append(row)
    totals: dict[str, int] = {}
    for pair in pairs:
        group = groups[pair.name]
        totals[group] = totals.get(group, 0) + 1
    found = [
        Group(name, total, len(changed.get(name, ())), _together(changed.get(name, ())))
        for name, total in totals.items()
    ]
    return sorted(found, key=_moved)


def _together(rows: Iterable[TensorRow]) -> Distance | None:
    return merged(row.distance for row in rows if row.distance is not None)


def _moved(group: Group) -> tuple[float, float, list[tuple[int, int | str]]]:
    relative = group.distance.relative if group.distance is not None else None
    return (-(relative or 0.0), -group.changed, diff_names.natural(group.name))


def _map(title: str, pairs: list[Pair], rows: Iterable[TensorRow], places: Mapping[str, tuple[str, str]]) -> HeatMap:
    """Return relative change by layer and kind; the largest of several tensors in one place."""
    changed = {row.name: row for row in rows}
    cells: dict[tuple[str, str], tuple[float | None, str]] = {}
    lines: dict[str, None] = {}
    columns: dict[str, None] = {}
    for pair in pairs:
        place = places[pair.name]
        lines[place[0]] = columns[place[1]] = None
        cell = _cell(pair, changed.get(pair.name))
        if place not in cells or (cell[0] or 0.0) > (cells[place][0] or 0.0):
            cells[place] = cell
    ordered = sorted(lines, key=diff_names.natural)
    note = ""
    if len(ordered) > MOST_ROWS or len(columns) > MOST_COLUMNS:
        note = f"the first {MOST_ROWS} layers and {MOST_COLUMNS} kinds of {len(ordered):,} and {len(columns):,}"
    heading = f"{title}: relative change by layer and kind"
    return HeatMap(heading, tuple(ordered[:MOST_ROWS]), tuple(list(columns)[:MOST_COLUMNS]), cells, note)


def _cell(pair: Pair, row: TensorRow | None) -> tuple[float | None, str]:
    if pair.why:
        return None, f"{pair.name}: not compared, {pair.why}"
    if row is None:
        return 0.0, f"{pair.name}: equal"
    found = row.distance
    if found is None:
        return None, f"{pair.name}: differs, {row.note or 'another shape'}"
    relative = found.relative
    number = "-" if relative is None else f"{relative:.3g}"
    words = (
        f"{pair.name}: relative change {number}, at most {found.largest:.3g}, {percent(found.share)} of the elements"
    )
    return relative, words
