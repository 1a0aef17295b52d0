"""How a comparison is told to people: the answer first, one line for what is equal, a table for what is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ckpt_tools.reports.base import Block, Fields, Table, Text
from ckpt_tools.reports.units import count, first_names

if TYPE_CHECKING:
    from ckpt_tools.numerics.distance import Distance
    from ckpt_tools.reports.diff import Change, DiffReport, Section, TensorRow, Tensors

SHOWN_ROWS = 20
SHOWN_KEYS = 24
WIDEST = 60

_NUMBERS = ("max |Δ|", "relative", "cosine", "changed")


def blocks(report: DiffReport) -> list[Block]:
    """Return the blocks of a report in reading order."""
    found: list[Block] = [Text(report.headline, "good" if report.equal and not report.trouble else "heading")]
    rows = [("left", _side(report.left, report.steps[0])), ("right", _side(report.right, report.steps[1]))]
    found.append(Fields(tuple(rows)))
    found += [Text(tuple(f"= {reason}" for reason in report.reasons))] if report.reasons else []
    lines = [*_sections(report.sections), *_sets(report)]
    found += [Fields(tuple(lines))] if lines else []
    found += [_changes(section) for section in report.sections if section.changes]
    for each in (report.tensors, report.moments):
        found += _tables(each, report) if each is not None else []
    notes = [*report.took, *report.skipped]
    found += [Text(tuple(notes), "faint")] if notes else []
    found += [Text(tuple(f"could not be read: {line}" for line in report.trouble), "bad")] if report.trouble else []
    return found


def _side(path: str, step: int | None) -> str:
    return path if step is None else f"{path} (step {step:,})"


def _sections(sections: tuple[Section, ...]) -> Iterator[tuple[str, str]]:
    for section in sections:
        if section.changes:
            number = len(section.changes) + section.left_out
            words = section.summary or count(number, "difference")
            yield section.title, words if section.counts else f"{words} (in storage only)"
        else:
            yield section.title, section.summary or "equal"


def _sets(report: DiffReport) -> Iterator[tuple[str, str]]:
    for each in (report.tensors, report.moments):
        if each is not None:
            yield each.title, summary(each)


def summary(found: Tensors) -> str:
    """Return a set of tensors in one line."""
    words = []
    if found.rows:
        words.append(f"{len(found.rows):,} of {found.total:,} tensors differ")
    elif found.same and (found.compared or not found.unread):
        words.append(f"equal ({count(found.same, 'tensor')})")
    elif not found.compared and found.unread:
        words.append(f"{count(found.same + len(found.unread), 'tensor')} of the same name, dtype and shape")
    if found.tolerated:
        words.append(f"{found.tolerated:,} within the tolerance")
    for names, side in ((found.only_left, "left"), (found.only_right, "right")):
        if names:
            words.append(f"{len(names):,} only on the {side}")
    if found.compared and found.unread:
        words.append(f"{len(found.unread):,} not compared")
    if not found.compared and found.unread:
        words.append(
            "values not compared" if len(found.unread) == found.total else f"{len(found.unread):,} not compared"
        )
    return ", ".join(words) or "none on either side"


def _changes(section: Section) -> Table:
    shown = section.changes[:SHOWN_KEYS]
    rows = [_change(change, section.unit) for change in shown]
    noted = any(row[3] for row in rows)
    more = len(section.changes) - len(shown) + section.left_out
    if more:
        rows.append((f"... and {more:,} more", "", "", ""))
    columns: tuple[str, ...] = ("", "left", "right", "") if noted else ("", "left", "right")
    return Table(columns, tuple(row[: len(columns)] for row in rows), title=section.title)


def _change(change: Change, unit: str) -> tuple[str, str, str, str]:
    left, right = (
        count(side, unit) if unit and isinstance(side, int) else value(side) for side in (change.left, change.right)
    )
    return change.key, left, right, change.note


def value(item: Any) -> str:
    """Return a value on one short line."""
    if isinstance(item, float):
        return f"{item:.10g}"
    text = item if isinstance(item, str) else repr(item)
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _tables(found: Tensors, report: DiffReport) -> Iterator[Block]:
    if found.groups and report.by:
        yield _groups(found, report)
    elif found.rows:
        yield _rows(found, report.top or SHOWN_ROWS)
    for names, side in ((found.only_left, "left"), (found.only_right, "right")):
        if names:
            yield Text((f"{found.title}, only on the {side}: {first_names(names)}",))
    if found.unread and found.compared:
        why = [f"{name} ({reason})" for name, reason in found.unread]
        yield Text((f"{found.title}, not compared: {first_names(why, 5)}",))


def _rows(found: Tensors, most: int) -> Table:
    rows: list[tuple[str, ...]] = [_row(row) for row in found.rows[:most]]
    more = len(found.rows) - len(rows)
    if more > 0:
        rows.append((f"... and {more:,} more", *[""] * (len(rows[0]) - 1)))
    columns = ("tensor", "dtype", "shape", *_NUMBERS, "")
    kept = len(columns) - (not any(row[-1] for row in rows))
    title = f"{found.title}, what moved most first"
    return Table(columns[:kept], tuple(row[:kept] for row in rows), frozenset({3, 4, 5, 6}), title)


def _row(row: TensorRow) -> tuple[str, ...]:
    dtype = row.left.dtype if not row.retyped else f"{row.left.dtype} → {row.right.dtype}"
    shape = (
        shape_of(row.left.shape) if not row.reshaped else f"{shape_of(row.left.shape)} → {shape_of(row.right.shape)}"
    )
    name = f"{row.name} ({row.weight})" if row.weight and row.weight not in row.name else row.name
    notes = [row.note] if row.note else []
    if row.distance is not None and (row.distance.nan_left or row.distance.nan_right):
        notes.append(f"NaN: {row.distance.nan_left:,} left, {row.distance.nan_right:,} right")
    return (name, dtype, shape, *numbers(row.distance), "; ".join(notes))


def shape_of(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) if shape else "scalar"


def numbers(distance: Distance | None) -> tuple[str, str, str, str]:
    """Return largest difference, relative change, cosine and share of a pair as cells."""
    if distance is None:
        return "-", "-", "-", "-"
    relative, cosine = distance.relative, distance.cosine
    return (
        f"{distance.largest:.3g}",
        "-" if relative is None else f"{relative:.3g}",
        "-" if cosine is None else f"{cosine:.6f}",
        percent(distance.share),
    )


def percent(share: float) -> str:
    """Return a share so that neither nothing nor everything is claimed by rounding."""
    if 0 < share < 0.001:
        return "<0.1 %"
    if 0.999 < share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %" if share < 1 else "100 %"


def _groups(found: Tensors, report: DiffReport) -> Table:
    groups = found.groups[: report.top]
    rows: list[tuple[str, ...]] = [
        (group.name, f"{group.changed:,} of {group.total:,}", *numbers(group.distance)) for group in groups
    ]
    if len(found.groups) > len(groups):
        rows.append((f"... and {len(found.groups) - len(groups):,} more", *[""] * 5))
    return Table(
        (report.by or "", "tensors", *_NUMBERS),
        tuple(rows),
        frozenset({1, 2, 3, 4, 5}),
        f"{found.title} by {report.by}, what moved most first",
    )
