"""What another step means: every counter that moves with it, and the rates that belong to it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from ckpt_tools.containers.pickle_positions import Keys
from ckpt_tools.edits.lambdas import Factor
from ckpt_tools.edits.rates import UnknownRatesError, closed_form
from ckpt_tools.edits.schedulers import NONE, OF_DEEPSPEED, kind_of
from ckpt_tools.model.values import Value, as_mapping, real, whole

TRAINER, SCHEDULER, OPTIMIZER, ENGINE = "trainer-state", "scheduler", "optimizer", "engine"
PARTS = (TRAINER, SCHEDULER, OPTIMIZER)
EVALUATIONS = frozenset(("ReduceLROnPlateau", "GreedyLR"))

_LAG = 32
"""Steps that a counter may lag behind the trainer's because steps were skipped or it was begun late."""
_CLOSE = 1e-6


@dataclass(slots=True)
class Moved:
    """Every place that changes, ``(part, keys, new value)``, and what a person should know."""

    places: list[tuple[str, Keys, Value]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Shift:
    """By how much the counters of a part move, the step that they are of, and how many steps they count as one."""

    by: int
    own: int
    every: int = 1


@dataclass(frozen=True, slots=True)
class Counted:
    """The present counters: the trainer's, a scheduler's, and those of an optimizer's parameters by key path.

    ``together`` says that all of them are in one file, so that they are of one step; ``epoch`` is what that file says.
    """

    trainer: int | None
    scheduler: int | None
    optimizer: Mapping[Keys, float | int]
    together: bool = False
    epoch: int | None = None

    @property
    def furthest(self) -> int | None:
        return max((int(value) for value in self.optimizer.values()), default=None)

    @property
    def present(self) -> int | None:
        """The step that the checkpoint is of."""
        own = (self.trainer, self.furthest if self._times() > 1 else None, self.scheduler, self.furthest)
        return next((value for value in own if value is not None), None)

    def _times(self) -> int:
        """Return how often the scheduler was stepped in one step: once per process, with accelerate."""
        steps = self.furthest if self.trainer is None or self.furthest is None else self.trainer
        if not steps or not self.scheduler or self.together or self.furthest not in (None, self.trainer, steps):
            return 1
        return self.scheduler // steps if self.scheduler > steps and self.scheduler % steps == 0 else 1

    def shift(self, part: str, target: int) -> Shift | None:
        """Return how the counters of a part move, None where they count something else and stay."""
        value, present = self.scheduler if part == SCHEDULER else self.furthest, self.present or 0
        if value is None or value == present:
            return Shift(target - present, present)
        if part == SCHEDULER and self._times() > 1:
            return Shift((target - present) * self._times(), present)
        if value == target:
            return Shift(0, value)
        if self.together and (part == OPTIMIZER or self.epoch not in (value, value - 1)):
            if 0 < value < present and present % value == 0:
                return Shift(target * value // present - value, present, present // value)
        elif self.together:
            return None
        if 0 <= present - value <= max(_LAG, present // 50):
            return Shift(target - present, present)
        return None if self.together else Shift(target - value, value)


def counter_keys(optimizer: Mapping[Any, Value]) -> Iterator[Keys]:
    """Yield where an optimizer counts: ``step`` of every parameter, and of groups in some (``k`` if schedule-free)."""
    for key, entry in (as_mapping(optimizer.get("state")) or {}).items():
        if "step" in (as_mapping(entry) or {}):
            yield "state", key, "step"
    groups = optimizer.get("param_groups")
    for number, group in enumerate(groups if isinstance(groups, list) else []):
        found = as_mapping(group) or {}
        for name in ("step", "k"):
            if name in found and (name == "step" or "weight_sum" in found):
                yield "param_groups", number, name


def epoch_of(state: Mapping[Any, Value]) -> int | None:
    """Return how often a scheduler was stepped; a chain counts in its parts alone."""
    inner = state.get("_schedulers")
    if kind_of(state) == OF_DEEPSPEED:
        batch = whole(state.get("last_batch_iteration"))  # counted from 0
        return None if batch is None else batch + 1
    if "last_epoch" in state or not isinstance(inner, list):
        return whole(state.get("last_epoch"))
    counts = {whole((as_mapping(each) or {}).get("last_epoch")) for each in inner}
    return counts.pop() if len(counts) == 1 else None


def is_recipe(file: Mapping[Any, Value]) -> bool:
    """Return whether this is the state of one of torchtune's recipes."""
    return {"epochs_run", "total_epochs", "max_steps_per_epoch"} <= set(file)


def move_recipe(file: Mapping[Any, Value], target: int, made: Moved) -> None:
    """Set the epochs that are over by torchtune's count, which a resume begins with; ``steps_run`` is set as any step.

    How many steps an epoch has is stored as the steps of all (``full_finetune_distributed.py``, ``_steps_per_epoch``).
    """
    if not is_recipe(file):
        return
    now, over, epochs, steps = (
        whole(file.get(name)) for name in ("steps_run", "epochs_run", "total_epochs", "total_training_steps")
    )
    every = steps // epochs if epochs and steps and steps % epochs == 0 else 0
    if now is not None and every and now // every == over:
        made.places.append((TRAINER, ("epochs_run",), target // every))
        if target % every:
            made.notes.append("recipes that read `epochs_run` alone begin at the start of that epoch")
    elif now != target:
        made.notes.append("epochs_run stays: how many steps an epoch has cannot be told")
    if now != target and file.get("dataloader"):
        made.notes.append("which data comes next is what the data loader's own state says, which stays")


def move_optimizer(counted: Counted, target: int, made: Moved) -> None:
    """Shift every counter of the optimizer by as much as the step moves."""
    if not counted.optimizer:
        made.notes.append("the optimizer counts no steps")
        return
    shift = _told(counted, OPTIMIZER, target, made)
    if shift is None:
        made.notes.append(f"the optimizer counts to {counted.furthest:,}, which are no such steps: its counters stay")
        return
    for keys, value in counted.optimizer.items():
        moved = max(0, int(value) + shift.by)
        made.places.append((OPTIMIZER, keys, float(moved) if isinstance(value, float) else moved))


def _told(counted: Counted, part: str, target: int, made: Moved) -> Shift | None:
    shift = counted.shift(part, target)
    if shift is not None and shift.every > 1:
        made.notes.append(f"the {part} counts one in {shift.every:,} steps, and goes on so")
    elif shift is not None and shift.own != counted.present:
        made.notes.append(
            f"the {part}'s counters are of step {shift.own:,}, not {counted.present:,}: they move from there"
        )
    return shift


def move_scheduler(
    state: dict[str, Any],
    groups: list[dict[str, Any]],
    counted: Counted,
    target: int,
    function: tuple[Factor | None, str],
    made: Moved,
) -> None:
    """Shift the scheduler's counters, and set the rates that belong to the new step where a formula gives them.

    ``function`` is that of a LambdaLR, or why it is not known.
    """
    kind = kind_of(state)
    if kind is None or kind == NONE:
        made.notes.append("the scheduler is of no known kind; its counters and rates stay")
        return
    if kind in EVALUATIONS:
        made.notes.append(f"{kind} counts evaluations, not steps: it stays, and so do the rates")
        return
    shift = _told(counted, SCHEDULER, target, made)
    if shift is None:
        made.notes.append(
            f"the scheduler counts to {counted.scheduler:,}, which are no such steps (epochs, most likely): it stays,"
            " and so do the rates"
        )
        return
    if kind == OF_DEEPSPEED:
        made.places.append((SCHEDULER, ("last_batch_iteration",), max(-1, (epoch_of(state) or 0) - 1 + shift.by)))
        made.notes.append("the rate of the first step stays; DeepSpeed computes the later ones from its own settings")
        return
    rates, why = _rates_then(kind, state, groups, function, shift.by)
    if not _shift(kind, state, (), shift.by, rates, made):
        made.notes.append(f"the parts of {kind} take turns, and the new step is in another part: the scheduler stays")
        return
    if rates is None:
        made.notes.append(f"the rates stay: {why} (`ckpt set-lr` sets them)")
        return
    listed = state.get("_last_lr")
    for number, rate in enumerate(rates):
        made.places.append((OPTIMIZER, ("param_groups", number, "lr"), float(rate)))
        if isinstance(listed, list) and number < len(listed):
            made.places.append((SCHEDULER, ("_last_lr", number), float(rate)))


def _shift(
    kind: str, state: dict[str, Any], keys: Keys, shift: int, rates: Sequence[float] | None, made: Moved
) -> bool:
    """Add ``shift`` to the counters of a scheduler and of those inside it; False where that makes no sense."""
    inner = state.get("_schedulers")
    epoch = whole(state.get("last_epoch"))
    chosen = list(range(len(inner))) if isinstance(inner, list) else []
    if kind == "SequentialLR" and epoch is not None and isinstance(inner, list):
        marks = state.get("_milestones") or []
        now, then = (bisect_right(marks, at) for at in (epoch, epoch + shift))
        if now != then and rates is None:
            return False
        if now != then:
            _count(state, keys, max(0, epoch + shift), made)
            _take_turns(inner, keys, marks, max(0, epoch + shift), rates or (), made)
            if isinstance(inner[now], dict) and inner[now].get("_last_lr") == state.get("_last_lr"):
                _put_rates(inner[now], (*keys, "_schedulers", now), rates or (), made)  # torch keeps one list for both
            return True
        chosen = [now]
    if epoch is not None:
        _count(state, keys, max(0, epoch + shift), made)
    if kind == "CosineAnnealingWarmRestarts" and epoch is not None:
        _restart(state, keys, max(0, epoch + shift), made)
    for number in chosen:
        part = inner[number] if isinstance(inner, list) else None
        part_kind = kind_of(part) if isinstance(part, dict) else None
        if isinstance(part, dict) and part_kind is not None and part_kind not in EVALUATIONS:
            _shift(part_kind, part, (*keys, "_schedulers", number), shift, None, made)
            if rates is not None and kind == "SequentialLR":
                _put_rates(part, (*keys, "_schedulers", number), rates, made)
    return True


def _count(state: Mapping[str, Any], keys: Keys, epoch: int, made: Moved) -> None:
    """Set a scheduler's counters; ``_step_count`` keeps its distance."""
    before, count = whole(state.get("last_epoch")), whole(state.get("_step_count"))
    made.places.append((SCHEDULER, (*keys, "last_epoch"), epoch))
    if count and before is not None:  # one that was loaded from an old version is 0, and stays
        made.places.append((SCHEDULER, (*keys, "_step_count"), max(0, count + max(0, epoch) - max(0, before))))


def _restart(state: dict[str, Any], keys: Keys, epoch: int, made: Moved) -> None:
    then = deepcopy(state)
    closed_form("CosineAnnealingWarmRestarts", then, [], None, epoch)
    made.places += [(SCHEDULER, (*keys, name), then[name]) for name in ("T_cur", "T_i")]


def _put_rates(part: Mapping[str, Any], keys: Keys, rates: Sequence[float], made: Moved) -> None:
    listed = part.get("_last_lr")
    if isinstance(listed, list) and len(listed) == len(rates):
        made.places += [(SCHEDULER, (*keys, "_last_lr", number), float(rate)) for number, rate in enumerate(rates)]


def _take_turns(
    parts: list[Any], keys: Keys, marks: Sequence[int], epoch: int, rates: Sequence[float], made: Moved
) -> None:
    """Set the parts of a SequentialLR to ``epoch``: those before it are at their end, those after it not begun."""
    now = bisect_right(marks, epoch)
    for number, part in enumerate(parts):
        own = (*keys, "_schedulers", number)
        begin = marks[number - 1] if number else 0
        at = epoch - begin if number == now else marks[number] - 1 - begin if number < now else -1
        if isinstance(part, dict) and at != whole(part.get("last_epoch")):
            _count(part, own, at, made)
            if kind_of(part) == "CosineAnnealingWarmRestarts":
                _restart(part, own, max(0, at), made)
        if number == now:
            _put_rates(part, own, rates, made)


def _rates_then(
    kind: str,
    state: dict[str, Any],
    groups: list[dict[str, Any]],
    function: tuple[Factor | None, str],
    shift: int,
) -> tuple[list[float] | None, str]:
    """Return the rates that belong to the step then, or None and why they cannot be told from what is stored."""
    epoch, factor = epoch_of(state), function[0]
    reason = function[1] or f"no formula gives those that {kind} has at the new step"
    if epoch is None:
        return None, reason
    try:
        now = closed_form(kind, deepcopy(state), groups, factor, epoch)
        then = closed_form(kind, deepcopy(state), groups, factor, max(0, epoch + shift))
    except UnknownRatesError as error:
        return None, str(error)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError, AttributeError, IndexError):
        return None, reason
    present = [real(group.get("lr")) for group in groups]
    if now is None or then is None or len(now) != len(present):
        return None, reason
    fits = all(
        rate is not None and isclose(rate, computed, rel_tol=_CLOSE, abs_tol=1e-15)
        for rate, computed in zip(present, now, strict=True)
    )
    return (then, "") if fits else (None, f"the present ones are not those that {kind} has at the present step")


def move_trainer(state: Mapping[Any, Value], target: int, made: Moved) -> None:
    """Set the trainer's step, its epoch in proportion, and cut what was logged later."""
    old = whole(state.get("global_step"))
    made.places.append((TRAINER, ("global_step",), target))
    epoch = real(state.get("epoch"))
    if epoch and old:
        made.places.append((TRAINER, ("epoch",), epoch * target / old))
        made.notes.append("epoch is recomputed; it is cosmetic, since a resume computes it from the step")
    history = state.get("log_history")
    if isinstance(history, list):
        kept = [entry for entry in history if not _later(entry, target)]
        if len(kept) < len(history):
            made.places.append((TRAINER, ("log_history",), kept))
            gone = len(history) - len(kept)
            made.notes.append(f"{gone:,} entries of log_history are of later steps: they move into the journal")
    best = whole(state.get("best_global_step"))
    if best is not None and best > target:
        made.notes.append(f"the best model so far is of step {best:,}, which is later: it stays named")
    total = whole(state.get("max_steps"))
    if total is not None and 0 < total <= target:
        made.notes.append(f"step {target:,} of {total:,}: a resume ends at once unless it is given more steps")


def move_engine(state: Mapping[Any, Value], names: Sequence[str], present: int, target: int, made: Moved) -> None:
    """Move DeepSpeed's own count of steps as the training's moves, and the samples in proportion.

    ``names`` are those under which a loop may have stored the same count once more.
    """
    own = whole(state.get("global_steps"))
    if own is None:
        return
    near = abs(present - own) <= max(_LAG, present // 50)
    then = max(0, own + target - present) if near else target
    if not near:
        made.notes.append(f"global_steps is {own:,}, not {present:,}: it moves from there")
    made.places.append((ENGINE, ("global_steps",), then))
    made.places += [(ENGINE, (name,), then) for name in names if whole(state.get(name)) == own]
    samples = whole(state.get("global_samples"))
    if own and samples:
        made.places.append((ENGINE, ("global_samples",), round(samples * then / own)))
    skipped = whole(state.get("skipped_steps"))
    if skipped and own != then:
        made.notes.append(f"skipped_steps stays {skipped:,}")


def _later(entry: Value, target: int) -> bool:
    step = whole(entry.get("step")) if isinstance(entry, dict) else None
    return step is not None and step > target


def data_position(state: Mapping[Any, Value], arguments: Mapping[str, Value], target: int) -> Sequence[str]:
    """Return what the new step does to the place in the data from which a resume goes on."""
    old, epoch = whole(state.get("global_step")), real(state.get("epoch"))
    if arguments.get("ignore_data_skip") is True:
        return ("with ignore_data_skip a resume starts the epoch of that step with its first batch",)
    if not old or not epoch:
        return ("the place in the data follows the step",)
    per_epoch = max(1, round(old / epoch))
    batches = (target % per_epoch) * (whole(arguments.get("gradient_accumulation_steps")) or 1)
    return (
        f"the place in the data follows the step: a resume goes on in epoch {target // per_epoch + 1}"
        f" after {batches:,} of its batches (with the same batch size)",
    )
