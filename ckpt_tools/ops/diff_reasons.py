"""The answer in a line, and what a known pattern of changes suggests."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_tools.layouts.view import View
from ckpt_tools.model import schedules
from ckpt_tools.ops import diff_names
from ckpt_tools.ops.diff_tensors import Pair
from ckpt_tools.reports.diff import DiffReport, TensorRow, Tensors
from ckpt_tools.reports.units import count, first_names

_EMBEDDINGS = ("embed", "wte", "lm_head", "word_embeddings", "output.weight")
_ADAPTERS = ("lora_", "ia3_", "prompt_embeddings", "modules_to_save", "adapter")


def headline(report: DiffReport) -> Iterator[str]:
    """Yield the answer: first what became of the weights."""
    found = report.tensors
    if report.equal:
        if found is not None and not found.compared and found.unread:
            yield "no difference found; the values of tensors were not compared (--no-tensors)"
        else:
            yield "equal" if not report.trouble else "no difference found in what could be read"
    if not report.equal and (found is None or not found.total or not found.compared):
        yield from _elsewhere(report)
    if found is not None and (found.total or found.differs) and (found.compared or found.differs):
        yield from _weights(found, report.equal)


def _elsewhere(report: DiffReport) -> Iterator[str]:
    titles = [section.title for section in report.sections if section.differs]
    if report.moments is not None and report.moments.differs:
        titles.append("optimizer state")
    open_ = report.tensors is not None and not report.tensors.compared and report.tensors.unread
    tail = "; the values of tensors were not compared (--no-tensors)" if open_ else ""
    if titles:
        yield f"they differ: {first_names(titles, 6)}{tail}"


def _weights(found: Tensors, equal: bool) -> Iterator[str]:
    if not found.compared:
        proven = sum(not (row.retyped or row.reshaped) for row in found.rows)
        if proven:
            yield f"{proven:,} of {found.total:,} weights changed, by the digests or checksums stored with them"
        if len(found.rows) > proven:
            yield f"{count(len(found.rows) - proven, 'tensor')} of another dtype or shape"
        return
    if found.total and found.unread and len(found.unread) == found.total:
        yield "no weight could be compared"
    elif not found.differs:
        if not equal:
            more = f" ({found.tolerated:,} within the tolerance)" if found.tolerated else ""
            rest = f"; {count(len(found.unread), 'tensor')} could not be compared" if found.unread else ""
            yield f"no weight changed: {count(found.same, 'tensor')} with the same values{more}{rest}"
    elif not found.total:
        sides = f"{len(found.only_left):,} on the left, {len(found.only_right):,} on the right"
        yield f"no tensor of one side has the name of one of the other: {sides}"
    else:
        yield from _changed(found)


def _changed(found: Tensors) -> Iterator[str]:
    rows, total = found.rows, found.total
    alone = [f"{len(n):,} only on the {s}" for n, s in ((found.only_left, "left"), (found.only_right, "right")) if n]
    tail = f"; {' and '.join(alone)}" if alone else ""
    if not rows:
        yield f"the weights of both have the same values{tail}"
    elif all(_adapter(row) for row in rows):
        yield f"only the adapter changed: {len(rows):,} of {total:,} tensors differ{tail}"
    else:
        yield f"{len(rows):,} of {total:,} weights changed{tail}"
    moved = next((row for row in rows if row.distance is not None and row.distance.changed), None)
    if moved is not None and moved.distance is not None and moved.distance.relative is not None:
        far = f"relative change {moved.distance.relative:.3g}, at most {moved.distance.largest:.3g}"
        yield f"most of all {moved.name}: {far}"


def _adapter(row: TensorRow) -> bool:
    return row.part == "adapter" or any(mark in row.name for mark in _ADAPTERS)


def reasons(
    found: Tensors,
    pairs: list[Pair],
    views: tuple[View, View],
    names: tuple[list[str], list[str]],
    moments: Tensors | None,
) -> Iterator[str]:
    """Yield what the pattern suggests; nothing where it is no known one."""
    if (found.only_left and found.only_right) and not found.total:
        for option in diff_names.proposals(*names):
            yield f"try {option}"
    elif found.only_left and found.only_right:
        yield from (f"names differ on both sides: try {option}" for option in diff_names.proposals(*names))
    if not found.compared:
        return
    if found.total and not found.differs and not found.unread:
        yield from _unchanged(views, moments)
    else:
        yield from _frozen(pairs, views)
    yield from _retyped(found)
    yield from _resized(found)
    lost = [row.name for row in found.rows if row.distance and row.distance.nan_right > row.distance.nan_left]
    if lost:
        yield f"NaN appeared on the right in {first_names(lost, 3)}"


def _unchanged(views: tuple[View, View], moments: Tensors | None) -> Iterator[str]:
    left, right = views[0].step, views[1].step
    if left is None or right is None or left == right:
        return
    steps = f"{abs(right - left):,} steps lie between them"
    rates = [*views[0].numbers("last-lr"), *views[1].numbers("last-lr")]
    if rates and not any(rates):
        yield f"{steps}, at a learning rate of 0"
    elif moments is not None and moments.rows:
        why = "the saver kept one stale copy of the weights, or the steps are too small for their dtype"
        yield f"{steps} and the optimizer's moments moved: {why}"
    else:
        yield f"{steps}: nothing was training (all frozen, every step skipped), or the saver kept one stale copy"


def _frozen(pairs: list[Pair], views: tuple[View, View]) -> Iterator[str]:
    """Say which part of the model did not move while the rest did."""
    compared = [pair for pair in pairs if not pair.why]
    moved = [pair for pair in compared if pair.distance is not None and pair.distance.changed]
    still = [pair.name for pair in compared if not pair.differs]
    if not moved or not still or len(moved) + len(still) != len(compared):
        return
    busy = {diff_names.layer(pair.name) for pair in moved}
    names = sorted({diff_names.layer(name) for name in still} - busy, key=diff_names.natural)
    if not names:
        used = {diff_names.kind(pair.name) for pair in moved}
        names = sorted({diff_names.kind(name) for name in still} - used)
    trained = schedules.trained(views[1].optimizer) if views[1].optimizer is not None else None
    if trained is not None and trained <= len(moved):
        why = "frozen: the optimizer trains no more than what moved"
    elif any(pair.left.dtype in ("bfloat16", "float16") for pair in compared):
        why = "frozen, or the steps are too small to move a number of 16 bits"
    else:
        why = "frozen, or without a gradient"
    what = f": {first_names(diff_names.ranges(names), 6)}" if names else ""
    yield f"{count(len(still), 'tensor')} did not move ({why}){what}"


def _retyped(found: Tensors) -> Iterator[str]:
    rows = [row for row in found.rows if row.retyped and not row.reshaped]
    if not rows or len(rows) * 2 < len(found.rows):
        return
    kinds = {(row.left.dtype, row.right.dtype) for row in rows}
    if len(kinds) != 1:
        return
    left, right = kinds.pop()
    if all(row.distance is not None and not row.distance.changed for row in rows):
        yield f"another dtype, the same values: {left} on the left, {right} on the right"
    elif all(row.distance is not None and row.distance.unrounded == 0 for row in rows):
        yield f"another dtype: {left} on the left, {right} on the right, and no difference but the rounding"
    else:
        yield f"another dtype, and other values: {left} on the left, {right} on the right"


def _resized(found: Tensors) -> Iterator[str]:
    for row in found.rows:
        if row.reshaped and any(mark in row.name for mark in _EMBEDDINGS) and row.left.shape[1:] == row.right.shape[1:]:
            rows = row.left.shape[0], row.right.shape[0]
            same = row.distance is not None and not row.distance.changed
            tail = "; the rows of both are the same" if same else ""
            yield f"{row.name} was resized from {rows[0]:,} to {rows[1]:,} rows{tail}"
