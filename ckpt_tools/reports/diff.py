"""What ``ckpt diff`` found to differ between two checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.reports import diff_text
from ckpt_tools.reports.base import Block
from ckpt_tools.reports.charts import Chart, HeatMap

if TYPE_CHECKING:
    from ckpt_tools.numerics.distance import Distance

SCHEMA = "ckpt-tools/diff/1"
SHOWN = 20
"""Tensors that a table shows when ``--top`` says nothing."""


class _Missing:
    def __repr__(self) -> str:
        return "-"


MISSING: Any = _Missing()
"""Stands for a key that one side does not have."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key that differs; either side may be ``MISSING``."""

    key: str
    left: Any
    right: Any
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One subject of the comparison.

    ``counts`` is False where a difference is one of storage only (a file's name, a shard's size) and its contents are
    compared elsewhere.  ``left_out`` counts further changes that are not listed; whole numbers are of ``unit``.
    """

    name: str
    title: str
    changes: tuple[Change, ...] = ()
    summary: str = ""
    counts: bool = True
    left_out: int = 0
    unit: str = ""

    @property
    def differs(self) -> bool:
        return bool(self.changes) and self.counts


@dataclass(frozen=True, slots=True)
class TensorRow:
    """A tensor of both sides that is not the same; ``distance`` is None where values could not be compared.

    ``weight`` is the model's tensor that a moment belongs to, where that is known.
    """

    name: str
    part: str
    left: TensorRef
    right: TensorRef
    distance: Distance | None = None
    note: str = ""
    weight: str | None = None

    @property
    def reshaped(self) -> bool:
        return self.left.shape != self.right.shape

    @property
    def retyped(self) -> bool:
        return self.left.dtype != self.right.dtype

    def weight_of_change(self) -> tuple[int, float, float, str]:
        """Return the key that sorts what moved most to the front: other shapes first, NaN before every number."""
        distance = self.distance
        if self.reshaped or distance is None:
            return 0, 0.0, 0.0, self.name
        if distance.nan_left != distance.nan_right or distance.relative is None:
            return 1, 0.0, -distance.largest, self.name
        return 2, -distance.relative, -distance.largest, self.name


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of one layer or kind, taken together; ``distance`` is that of all that could be compared."""

    name: str
    total: int
    changed: int
    distance: Distance | None


@dataclass(frozen=True, slots=True)
class Tensors:
    """Tensors of one sort (the model's, the optimizer's), compared.

    ``compared`` is False where only names, dtypes and shapes were.  ``same`` includes those within the tolerance.
    ``rows`` are those that differ, what moved most first.  ``unread`` are pairs of which nothing can be said, each with
    the reason.
    """

    title: str
    compared: bool = True
    same: int = 0
    tolerated: int = 0
    rows: tuple[TensorRow, ...] = ()
    only_left: tuple[str, ...] = ()
    only_right: tuple[str, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()
    groups: tuple[Group, ...] = ()
    map: HeatMap | None = None

    @property
    def total(self) -> int:
        """Return the number of pairs."""
        return self.same + len(self.rows) + len(self.unread)

    @property
    def differs(self) -> bool:
        return bool(self.rows or self.only_left or self.only_right)


@dataclass(frozen=True, slots=True)
class DiffReport:
    """Two checkpoints, compared.

    ``headline`` is the answer in a line or two, ``reasons`` are what the pattern suggests, ``trouble`` is what could
    not be read; ``took`` says which checkpoint was taken where a run was named.
    """

    tool: str
    left: str
    right: str
    steps: tuple[int | None, int | None]
    headline: tuple[str, ...]
    sections: tuple[Section, ...]
    tensors: Tensors | None = None
    moments: Tensors | None = None
    reasons: tuple[str, ...] = ()
    took: tuple[str, ...] = ()
    trouble: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    by: str | None = None
    top: int | None = None

    @property
    def title(self) -> str:
        return f"{self.left} and {self.right}"

    @property
    def equal(self) -> bool:
        """Return whether nothing that was compared differs."""
        sets = (self.tensors, self.moments)
        return not any(section.differs for section in self.sections) and not any(each and each.differs for each in sets)

    @property
    def exit_code(self) -> int:
        return 3 if self.trouble else 0 if self.equal else 1

    def listing(self, top: int) -> DiffReport:
        """Return the same report with tables of up to ``top`` rows."""
        return replace(self, top=top)

    def blocks(self) -> Sequence[Block]:
        return diff_text.blocks(self)

    def pictures(self) -> Sequence[HeatMap | Chart]:
        maps = [each.map for each in (self.tensors, self.moments) if each is not None and each.map is not None]
        return [*maps, *self.charts]

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "tool": self.tool,
            "equal": self.equal,
            "left": self.left,
            "right": self.right,
            "step": list(self.steps),
            "summary": list(self.headline),
            "reasons": list(self.reasons),
            "sections": {section.name: [_change(change) for change in section.changes] for section in self.sections},
            "storage_only": [section.name for section in self.sections if section.changes and not section.counts],
            "tensors": _tensors(self.tensors or Tensors("weights", compared=False), self.top),
        }
        if self.moments is not None:
            found["optimizer_tensors"] = _tensors(self.moments, self.top)
        found["notes"] = [*self.took, *self.skipped]
        found["trouble"] = list(self.trouble)
        return found


def _change(change: Change) -> dict[str, Any]:
    found = {
        "key": change.key,
        "left": None if change.left is MISSING else change.left,
        "right": None if change.right is MISSING else change.right,
    }
    if change.left is MISSING or change.right is MISSING:
        found["only"] = "right" if change.left is MISSING else "left"
    if change.note:
        found["note"] = change.note
    return found


def _tensors(found: Tensors, top: int | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "compared": found.compared,
        "same": found.same,
        "changed": len(found.rows),
        "within_tolerance": found.tolerated,
        "only_left": list(found.only_left),
        "only_right": list(found.only_right),
        "unread": [{"name": name, "reason": reason} for name, reason in found.unread],
        "rows": [_row(row) for row in found.rows[:top]],
    }
    if found.groups:
        document["groups"] = [
            {"name": group.name, "tensors": group.total, "changed": group.changed, **_numbers(group.distance)}
            for group in found.groups
        ]
    return document


def _row(row: TensorRow) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": row.name,
        "part": row.part,
        "dtype": row.left.dtype,
        "shape": list(row.left.shape),
        **_numbers(row.distance),
    }
    if row.retyped:
        found["right_dtype"] = row.right.dtype
    if row.reshaped:
        found["right_shape"] = list(row.right.shape)
    if row.weight:
        found["weight"] = row.weight
    if row.note:
        found["note"] = row.note
    return found


def _numbers(distance: Distance | None) -> dict[str, Any]:
    if distance is None:
        return {"max_abs": None, "rel_l2": None, "cosine": None, "changed_share": None, "nan": None}
    return {
        "max_abs": distance.largest,
        "rel_l2": distance.relative,
        "cosine": distance.cosine,
        "changed_share": distance.share,
        "nan": [distance.nan_left, distance.nan_right],
    }
