"""Two log histories: what they share, what one has more, where they contradict each other, and the curves in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_tools.model.values import Value
from ckpt_tools.ops.diff_values import same
from ckpt_tools.reports.charts import Chart, Series
from ckpt_tools.reports.diff import MISSING, Change

_TIMES = ("_runtime", "_per_second", "_time")
_CURVES = (("learning_rate", "learning rate"), ("loss", "loss"), ("eval_loss", "evaluation loss"))
MOST_POINTS = 2000


def compare(left: Value, right: Value) -> list[Change]:
    """Return at most two changes: the lengths with what is new, and the first contradiction."""
    one, other = _entries(left), _entries(right)
    shared = 0
    for mine, theirs in zip(one, other, strict=False):
        if not same(mine, theirs):
            break
        shared += 1
    if shared == len(one) == len(other):
        return []
    rest = one[shared:], other[shared:]
    found: list[Change] = []
    known: dict[tuple[Any, ...], Mapping[str, Value]] = {_place(entry): entry for entry in rest[0]}
    against = [(known[_place(entry)], entry) for entry in rest[1] if _place(entry) in known]
    contradicting = [pair for pair in against if _keys_that_differ(*pair)]
    note = f"the first {shared:,} are the same" if shared else "not even the first is the same"
    if contradicting:
        note += f", {len(contradicting):,} of one step contradict each other"
    found.append(Change("log_history", _said(one), _said(other), note))
    for mine, theirs in contradicting[:1]:
        key = _keys_that_differ(mine, theirs)[0]
        at = f"log_history, step {mine.get('step')}: {key}"
        found.append(Change(at, mine.get(key, MISSING), theirs.get(key, MISSING), "the first contradiction"))
    return found


def _entries(history: Value) -> list[Mapping[str, Value]]:
    return [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []


def _place(entry: Mapping[str, Value]) -> tuple[Any, ...]:
    step = entry.get("step")
    return (step if isinstance(step, int | float) else None, *sorted(map(str, entry)))


def _keys_that_differ(left: Mapping[str, Value], right: Mapping[str, Value]) -> list[str]:
    return [key for key in left if not key.endswith(_TIMES) and not same(left[key], right.get(key))]


def _said(entries: list[Mapping[str, Value]]) -> str:
    steps = [entry["step"] for entry in entries if isinstance(entry.get("step"), int)]
    return f"{len(entries):,} entries" + (f", to step {max(steps):,}" if steps else "")


def charts(left: Mapping[Any, Value] | None, right: Mapping[Any, Value] | None, names: tuple[str, str]) -> list[Chart]:
    """Return learning rate and losses over the steps, a curve for each side."""
    found = []
    for key, title in _CURVES:
        series = []
        for name, state in zip(names, (left, right), strict=True):
            points = [
                (float(entry["step"]), float(entry[key]))
                for entry in _entries((state or {}).get("log_history"))
                if _real(entry.get("step")) and _real(entry.get(key))
            ]
            if points:
                series.append(Series(name, tuple(points[:: -(-len(points) // MOST_POINTS)])))
        if series:
            found.append(Chart(title, "step", tuple(series)))
    return found


def _real(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
