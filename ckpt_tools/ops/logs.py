"""The logs of a run, read entry by entry and joined to one row per step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import isclose, isnan
from statistics import median

from ckpt_tools.model.values import Value, real, whole
from ckpt_tools.reports.history import Row

LONGEST_KEY = 100
MOST_KEYS = 200
_ELAPSED = re.compile(r"(?:(\d+) days?, )?(\d{1,3}):(\d\d):(\d\d)\Z")
_SAME = {"rel_tol": 1e-6, "abs_tol": 1e-12}
_MEASURES = ("loss", "learning_rate", "eval_loss")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a log; ``ends`` marks the summary that a training writes when it is over."""

    step: int
    epoch: float | None
    loss: float | None
    rate: float | None
    values: Mapping[str, float]
    ends: bool = False
    elapsed: float | None = None

    @property
    def trains(self) -> bool:
        return self.loss is not None or self.rate is not None


@dataclass(frozen=True, slots=True)
class Log:
    """What one file logged, in its order; ``step`` is how far its writer was, ``path`` its place in the run.

    ``appended`` logs go on over several trainings (``trainer_log.jsonl``); the others are one training's memory.
    """

    path: str
    step: int
    entries: tuple[Entry, ...]
    appended: bool = False
    odd: int = 0


@dataclass(frozen=True, slots=True)
class Back:
    """A log that goes back: after step ``last`` it tells step ``to`` again; ``was`` and ``now`` are the two losses."""

    log: Log
    last: int
    to: int
    was: float | None = None
    now: float | None = None


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two logs that tell different values for one step, ``winner`` being the newer one."""

    step: int
    measure: str
    winner: str
    value: float
    loser: str
    other: float


@dataclass(slots=True)
class Joined:
    """All logs as one: ``rows`` in ascending order, and what did not fit."""

    rows: list[Row] = field(default_factory=list)
    backs: list[Back] = field(default_factory=list)
    contradictions: list[Contradiction] = field(default_factory=list)
    ends: list[tuple[int, str]] = field(default_factory=list)
    restarts: list[tuple[int, str]] = field(default_factory=list)
    repeated: dict[str, int] = field(default_factory=dict)
    odd: dict[str, int] = field(default_factory=dict)


def from_state(path: str, step: int, history: Value) -> Log:
    """Read ``log_history`` of a trainer's state; what is no entry is counted as odd."""
    items = history if isinstance(history, list) else []
    entries = [entry for item in items if (entry := _entry(item)) is not None]
    return Log(path, step, tuple(entries), odd=len(items) - len(entries))


def from_lines(path: str, lines: Value) -> Log:
    """Read the lines of ``trainer_log.jsonl``, which has its own names for step and rate."""
    items = lines if isinstance(lines, list) else []
    entries = [entry for item in items if (entry := _line(item)) is not None]
    last = max((entry.step for entry in entries), default=0)
    return Log(path, last, tuple(entries), appended=True, odd=len(items) - len(entries))


def _entry(item: Value) -> Entry | None:
    if not isinstance(item, dict):
        return None
    step = whole(item.get("step"))
    if step is None or step < 0:
        return None
    values = _values(item, {"step", "epoch", "loss", "learning_rate", "total_flos"})
    loss, rate = real(item.get("loss")), real(item.get("learning_rate"))
    return Entry(step, real(item.get("epoch")), loss, rate, values, "train_runtime" in item)


def _line(item: Value) -> Entry | None:
    if not isinstance(item, dict):
        return None
    step = whole(item.get("current_steps"))
    if step is None or step < 0:
        return None
    values = _values(item, {"current_steps", "total_steps", "loss", "lr", "epoch", "percentage"})
    elapsed = item.get("elapsed_time")
    match = _ELAPSED.match(elapsed) if isinstance(elapsed, str) and len(elapsed) < 40 else None
    seconds = None
    if match:
        days, hours, minutes, rest = (int(group or 0) for group in match.groups())
        seconds = float(((days * 24 + hours) * 60 + minutes) * 60 + rest)
    loss, rate = real(item.get("loss")), real(item.get("lr"))
    return Entry(step, real(item.get("epoch")), loss, rate, values, elapsed=seconds)


def _values(item: Mapping[object, Value], known: set[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in item.items():
        number = real(value)
        if isinstance(key, str) and key not in known and number is not None and len(key) <= LONGEST_KEY:
            found[key] = number
            if len(found) >= MOST_KEYS:
                break
    return found


# Joining ---------------------------------------------------------------------------------------------------


def join(logs: Iterable[Log]) -> Joined:
    """Join logs, the newest first; where two tell the same step the newer one wins.

    A newer log carries the older ones word for word.  So an older one fills what the newer has lost, and what it
    tells otherwise belongs to an attempt that was given up.
    """
    joined = Joined()
    rows: dict[int, Row] = {}
    for log in logs:
        own = _unroll(log, joined)
        if log.odd:
            joined.odd[log.path] = log.odd
        if not rows:
            rows.update(own)
            continue
        against = _contradictions(rows, own, log)
        joined.contradictions += against
        given_up = min((each.step for each in against), default=None)
        if given_up is not None and not log.appended:
            joined.backs.append(Back(log, log.step, given_up))
        for step, row in own.items():
            if step in rows:
                rows[step] = _filled(rows[step], row)
            elif given_up is None or step < given_up or step > max(rows):
                rows[step] = row
    joined.rows = [rows[step] for step in sorted(rows)]
    return joined


def _unroll(log: Log, joined: Joined) -> dict[int, Row]:
    """Return one row per step of one log, the last attempt's where it goes back."""
    rows: dict[int, Row] = {}
    trained: list[int] = []  # steps of training entries, ascending
    last_elapsed: float | None = None
    ended: int | None = None
    for entry in log.entries:
        if entry.elapsed is not None and entry.trains:
            if last_elapsed is not None and entry.elapsed < last_elapsed:
                joined.restarts.append((entry.step, log.path))
            last_elapsed = entry.elapsed
        old = rows.get(entry.step)
        if entry.ends:
            ended = entry.step
        if not entry.trains:
            new = Row(entry.step, entry.epoch, None, None, dict(entry.values), log.path)
            # After the end a best model may be evaluated: the step's own evaluation came before.
            rows[entry.step] = new if old is None else _filled(old, new) if ended is not None else _filled(new, old)
            continue
        if ended is not None and entry.step > ended:
            joined.ends.append((ended, log.path))
        ended = None
        if trained and entry.step <= trained[-1]:
            if old is not None and _equal(old.loss, entry.loss) and _equal(old.rate, entry.rate):
                joined.repeated[log.path] = joined.repeated.get(log.path, 0) + 1
                continue
            joined.backs.append(Back(log, trained[-1], entry.step, old.loss if old else None, entry.loss))
            rows = {step: row for step, row in rows.items() if step < entry.step}
            trained = [step for step in trained if step < entry.step]
            old = None
        trained.append(entry.step)
        new = Row(entry.step, entry.epoch, entry.loss, entry.rate, dict(entry.values), log.path)
        rows[entry.step] = new if old is None else _filled(new, old)
    return rows


def _filled(row: Row, other: Row) -> Row:
    """Return ``row`` with what it lacks taken from ``other``."""
    return Row(
        row.step,
        other.epoch if row.epoch is None else row.epoch,
        other.loss if row.loss is None else row.loss,
        other.rate if row.rate is None else row.rate,
        {**other.values, **row.values},
        row.source if row.trains or not other.trains else other.source,
    )


def _contradictions(rows: Mapping[int, Row], own: Mapping[int, Row], log: Log) -> list[Contradiction]:
    found = []
    for step in sorted(own):
        newer = rows.get(step)
        if newer is None:
            continue
        for measure in _MEASURES:
            value, other = newer.measure(measure), own[step].measure(measure)
            if value is not None and other is not None and not _equal(value, other):
                found.append(Contradiction(step, measure, newer.source, value, log.path, other))
    return found


def _equal(left: float | None, right: float | None) -> bool:
    if left is None or right is None:
        return left is right
    return isclose(left, right, **_SAME) or (isnan(left) and isnan(right))


# Spacing ---------------------------------------------------------------------------------------------------


def spacing(rows: list[Row], stated: Value) -> int:
    """Return how many steps lie between two entries: by what the trainer states, else by what is there."""
    differences = [second.step - first.step for first, second in pairwise(rows)]
    number = whole(stated)
    if number is not None and number > 0 and (not differences or number in differences):
        return number
    return max(1, round(median(differences))) if differences else 1


@dataclass(frozen=True, slots=True)
class Gap:
    """Steps without an entry, between two that have one; ``lost`` when the two come from different files."""

    before: int
    after: int
    lost: bool


def gaps(rows: list[Row], stated: Value) -> list[Gap]:
    """Return where entries are missing: a distance well above those on both sides; a new spacing that stays is none."""
    differences = [second.step - first.step for first, second in pairwise(rows)]
    if len(differences) < 2:
        return []
    asked = whole(stated)
    found = []
    for place, distance in enumerate(differences):
        near = [differences[max(0, place - 5) : place], differences[place + 1 : place + 6]]
        usual = max(median(side) for side in near if side)
        if distance <= 1.5 * usual or (place == len(differences) - 1 and distance == asked) or place == 0:
            continue
        first, second = rows[place], rows[place + 1]
        found.append(Gap(first.step, second.step, first.source != second.source))
    return found
