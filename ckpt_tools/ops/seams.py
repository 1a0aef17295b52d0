"""The signs of a good resume, judged from numbers alone: rate, loss, counters.

The Trainer of transformers 4.57 and later logs the rate that a step was made with, older ones the rate after it; so
logged rates are compared with logged rates only, and never with a stored one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isclose, isfinite
from statistics import median

from ckpt_tools.reports.history import Row, Sign, State, Stored
from ckpt_tools.reports.units import human_rate

SMOOTH_NAMES = frozenset(
    [
        "linear",
        "cosine",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "cosine_with_min_lr",
        "cosine_warmup_with_min_lr",
        "warmup_stable_decay",
    ]
)
"""Schedules of transformers without a jump; restarts, plateau and greedy move the rate as they like."""

SMOOTH_KINDS = frozenset({"CosineAnnealingLR", "ExponentialLR", "PolynomialLR", "LinearLR", "OneCycleLR"})
COUNTING_KINDS = SMOOTH_KINDS | {"LambdaLR", "StepLR", "MultiStepLR", "ConstantLR", "SequentialLR"}
"""Schedulers whose ``last_epoch`` counts optimizer steps; plateau counts evaluations."""

STEEPER = 2.5
NOISE = 4.0
RISE = 0.1
WINDOW = 10
COMPARED = 50


def smooth(named: str | None, kind: str | None) -> bool | None:
    """Return whether a schedule never jumps, None when it is not known; the saved class outranks the argument.

    The argument has a default, which says nothing where a scheduler of another class was handed to the Trainer.
    """
    if kind is not None and kind != "LambdaLR":
        return kind in SMOOTH_KINDS
    return None if named is None else named in SMOOTH_NAMES


# The rate --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Jump:
    """A change of rate between two logged steps that the steps around it do not explain."""

    before: int
    after: int
    old: float
    new: float


class Rates:
    """The logged rates, looked up by step."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.points = [(row.step, row.rate) for row in rows if row.rate is not None and isfinite(row.rate)]
        self.known = dict(self.points)
        self._steps = [step for step, _ in self.points]

    def around(self, step: int) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        """Return the last rates up to ``step`` and the first after it, a window of each."""
        place = bisect_right(self._steps, step)
        return self.points[max(0, place - WINDOW) : place], self.points[place : place + COMPARED]

    def peak(self, step: int) -> float:
        """Return the highest rate up to ``step``."""
        return max((rate for _, rate in self.points[: bisect_right(self._steps, step)]), default=0.0)


def jumps(points: Sequence[tuple[int, float]]) -> list[Jump]:
    """Return the intervals in which the rate moves much faster than in those beside it.

    The first and the last interval have only one neighbour and are not judged.
    """
    peak = max((abs(rate) for _, rate in points), default=0.0)
    slopes = [(new - old) / (after - before) for (before, old), (after, new) in pairwise(points)]
    begins = next((number for number, (_, rate) in enumerate(points) if rate != 0), 0)
    found = []
    for place in range(max(1, begins), len(slopes) - 1):
        (before, old), (after, new) = points[place], points[place + 1]
        low = STEEPER * min(slopes[place - 1], slopes[place + 1], 0.0) * (after - before) - 0.02 * peak
        high = STEEPER * max(slopes[place - 1], slopes[place + 1], 0.0) * (after - before) + 0.02 * peak
        # Warm-up that begins anew is steep itself: what falls before a rise is judged by what was before it.
        if new < old and slopes[place - 1] <= 0 < slopes[place + 1]:
            low = STEEPER * slopes[place - 1] * (after - before) - 0.02 * peak
        if new > old and slopes[place + 1] <= 0 and slopes[place - 1] <= 0:
            high = 0.02 * peak
        if not low <= new - old <= high:
            found.append(Jump(before, after, old, new))
    return found


def repeats(rates: Rates, step: int) -> list[tuple[int, int]]:
    """Return pairs of steps ``(after the seam, of the beginning)`` when the rates begin anew after ``step``.

    A schedule is a function of the number of steps: one that was built afresh gives the first rates of the run again.
    Empty unless every step that can be compared agrees, at least two of them do, and they are not all alike.
    """
    _, after = rates.around(step)
    known = rates.known
    pairs = [(at, at - step) for at, _ in after if 0 < at - step <= step and at - step in known]
    if len(pairs) < 2 or len({known[at] for at, _ in pairs}) < 2:
        return []
    same = all(isclose(known[at], known[early], rel_tol=1e-9, abs_tol=1e-15) for at, early in pairs)
    return pairs if same else []


def begins_low(rates: Rates, step: int) -> bool:
    """Return whether the rate falls to almost nothing after ``step``, from a height, and then climbs: a warm-up."""
    before, after = rates.around(step)
    if not before or len(after) < 2:
        return False
    peak = rates.peak(step)
    return before[-1][1] > 0.2 * peak and after[0][1] < 0.05 * peak and after[1][1] > after[0][1]


# Counters --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Restart:
    """A counter that was set to zero after ``step``: ``found`` at the checkpoint ``at``, ``expected`` otherwise."""

    step: int
    at: str
    found: float
    expected: float


def restarts(points: Sequence[tuple[str, int | None, float | None]], tolerance: int, aligned: bool) -> list[Restart]:
    """Return where a counter of optimizer steps began anew, from ``(checkpoint, step, counter)`` in order.

    Args:
        points: the checkpoints; those without a counter are passed over.
        tolerance: steps that may be missing, because a loss scaler skipped them.
        aligned: whether the steps are optimizer steps from the beginning of the run on, which epochs are not.
    """
    found = []
    before: tuple[int, float] | None = (0, 0.0) if aligned else None
    for path, step, counter in points:
        if step is None or counter is None or counter < 0:
            continue
        if before is not None:
            last, old = before
            missing = (step - last) - (counter - old)
            began = int(step - counter) if aligned and last <= step - counter < step else last
            lagging = aligned and missing > tolerance and (last == 0 or counter <= step - last)
            if counter < old or (lagging and old <= step):
                found.append(Restart(began, path, counter, old + step - last if aligned else old))
        before = (step, counter)
    return found


# The signs of one seam -------------------------------------------------------------------------------------


def rate_sign(
    rates: Rates,
    step: int,
    jump: Jump | None,
    counter: Restart | None,
    even: bool | None,
    schedule: str | None,
    counted: bool = False,
) -> Sign:
    """Judge the rate.

    ``counter`` is the scheduler's restart, ``even`` whether the schedule never jumps, ``counted`` whether a later
    checkpoint shows that the scheduler counted on.
    """
    before, after = rates.around(step)
    moved = f"{human_rate(before[-1][1])}, then {human_rate(after[0][1])}" if before and after else ""
    low = begins_low(rates, step)
    again = repeats(rates, step) if not counted and (even or (even is None and low)) else []
    if again or counter is not None:
        parts = [moved] if moved else []
        if again:
            last = again[min(len(again), 3) - 1]
            parts.append(f"steps {again[0][0]:,} to {last[0]:,} repeat the rates of {again[0][1]:,} to {last[1]:,}")
        elif counter is not None:
            parts.append(_counted("the scheduler", counter))
        climbs = low or (bool(again) and len(after) > 1 and after[0][1] < after[1][1])
        return Sign("rate", State.BROKEN, f"restarts{' with its warm-up' if climbs else ''}: {'; '.join(parts)}")
    if not moved:
        return Sign("rate", State.UNKNOWN, "no learning rate is logged on both sides")
    if jump is not None:
        return Sign("rate", State.BROKEN, f"jumps: {human_rate(jump.old)}, then {human_rate(jump.new)}")
    if even is False:
        return Sign("rate", State.UNKNOWN, f"{moved}; {schedule or 'this'} schedule may move it as it likes")
    return Sign("rate", State.CONTINUOUS, f"moves on: {moved}")


def loss_sign(rows: Sequence[Row], step: int, accumulation: int | None, again: tuple[float, float] | None) -> Sign:
    """Judge the loss: a rise counts when it is well above the noise of the steps around it and stays."""
    before = [row.loss for row in rows if row.step <= step and row.loss is not None][-WINDOW:]
    after = [row.loss for row in rows if row.step > step and row.loss is not None][:WINDOW]
    if not before or not after:
        return Sign("loss", State.UNKNOWN, "no loss is logged on both sides")
    text = f"{before[-1]:.4g}, then {after[0]:.4g}"
    if again is not None and all(map(isfinite, again)):
        text += f" (the first time that step had {again[0]:.4g})"
    if not all(map(isfinite, after)):
        return Sign("loss", State.BROKEN, f"no number any more: {text}") if all(map(isfinite, before)) else _dark(text)
    before = [value for value in before if isfinite(value)]
    if not before:
        return _dark(text)
    low, high = median(before[-3:]), median(after[:3])
    if (
        accumulation
        and accumulation > 1
        and low > 0
        and any(isclose(high / low, factor, rel_tol=0.2) for factor in (accumulation, 1 / accumulation))
    ):
        return Sign("loss", State.UNKNOWN, f"{text}: another scale, by the {accumulation} steps of accumulation")
    differences = [abs(new - old) for old, new in (*pairwise(before), *pairwise(after))]
    noise = median(differences) if differences else 0.0
    if len(before) < 3 or len(after) < 2:
        calm = after[0] <= max(before) + RISE * abs(low)
        return Sign("loss", State.CONTINUOUS if calm else State.UNKNOWN, f"{'joins' if calm else 'rises'}: {text}")
    if high - low > max(NOISE * noise, RISE * abs(low)) and high > max(before):
        return Sign("loss", State.BROKEN, f"jumps: {text}; about {low:.4g} before, {high:.4g} after")
    return Sign("loss", State.CONTINUOUS, f"joins: {text}")


def _dark(text: str) -> Sign:
    return Sign("loss", State.UNKNOWN, f"no number on one side: {text}")


def step_sign(rows: Sequence[Row], step: int, lost: tuple[int, int] | None, doubled: bool, usual: int) -> Sign:
    """Judge the steps: total = resumed + new, nothing left out, nothing twice in one memory."""
    before = [row for row in rows if row.step <= step]
    after = [row for row in rows if row.step > step]
    if doubled:
        return Sign("step", State.BROKEN, "counted again: one log tells steps twice, with different values")
    if lost is not None:
        return Sign("step", State.BROKEN, f"jumps: {lost[0]:,}, then {lost[1]:,}; {usual:,} is usual")
    if not after:
        return Sign("step", State.UNKNOWN, "nothing is logged after it")
    text = f"moves on: {step:,} + {after[-1].step - step:,} = {after[-1].step:,}"
    pace = [_pace(side) for side in (before, after)]
    fell = before and before[-1].epoch is not None and after[0].epoch is not None and after[0].epoch < before[-1].epoch
    if fell:
        text += f"; the epoch falls from {before[-1].epoch:.4g} to {after[0].epoch:.4g} (ignore_data_skip does that)"
    elif pace[0] and pace[1] and not isclose(pace[0], pace[1], rel_tol=0.05):
        text += (
            f"; an epoch took {1 / pace[0]:,.4g} steps before and {1 / pace[1]:,.4g} after: other data or batch size"
        )
    return Sign("step", State.CONTINUOUS, text)


def _pace(rows: Sequence[Row]) -> float | None:
    """Return epochs per step, from the first to the last row that has one."""
    known = [(row.step, row.epoch) for row in rows if row.epoch is not None and isfinite(row.epoch)]
    if len(known) < 2 or known[-1][0] == known[0][0]:
        return None
    pace = (known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0])
    return pace if pace > 0 else None


def optimizer_sign(stored: Sequence[Stored], step: int, counter: Restart | None) -> Sign:
    """Judge the optimizer by the steps that it counted itself."""
    if counter is not None:
        return Sign("optimizer", State.BROKEN, f"restarts: {_counted('the optimizer', counter)}")
    known = [(point.path, point.step, point.optimizer_step) for point in stored if point.optimizer_step is not None]
    after = next((each for each in known if each[1] is not None and each[1] > step), None)
    if after is None:
        return Sign("optimizer", State.UNKNOWN, "no later checkpoint holds its step count")
    before = [each for each in known if each[1] is not None and each[1] <= step]
    start = f"{before[-1][2]:,g} steps in {place(before[-1][0])}, then " if before else ""
    return Sign("optimizer", State.CONTINUOUS, f"moves on: {start}{after[2]:,g} in {place(after[0])}")


def _counted(who: str, counter: Restart) -> str:
    return f"{who} of {place(counter.at)} has counted {counter.found:,g} steps, {counter.expected:,g} are expected"


def place(path: str) -> str:
    """Return how a checkpoint is called in a sentence."""
    return "this checkpoint" if path == "." else path


# Arguments -------------------------------------------------------------------------------------------------

_COMPARED = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "max_steps",
    "num_train_epochs",
    "optim",
    "weight_decay",
    "seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "logging_dir",
    "output_dir",
)


def changes(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Return the arguments of which two checkpoints of one run were given different values: another start."""
    if not old or not new:
        return []
    found = []
    for key in _COMPARED:
        before, after = old.get(key), new.get(key)
        plain = isinstance(before, str | int | float) and isinstance(after, str | int | float)
        if plain and before != after:
            found.append(key if key.endswith("_dir") else f"{key} {before}, then {after}"[:80])
    return found
