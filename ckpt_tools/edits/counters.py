"""What another step means: every counter that moves with it, and the rates that belong to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from ckpt_tools.containers.pickle_positions import Keys
from ckpt_tools.edits.lambdas import Factor
from ckpt_tools.edits.rates import UnknownRatesError, closed_form
from ckpt_tools.edits.schedulers import NONE, kind_of
from ckpt_tools.model.values import Value, as_mapping, real, whole

TRAINER, SCHEDULER, OPTIMIZER = "trainer-state", "scheduler", "optimizer"
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
class Counted:
    """The present counters: the trainer's, the scheduler's, and those of the optimizer's parameters by key path."""

    trainer: int | None
    scheduler: int | None
    optimizer: Mapping[Keys, float | int]

    @property
    def furthest(self) -> int | None:
        return max((int(value) for value in self.optimizer.values()), default=None)

    @property
    def present(self) -> int | None:
        """The step that the checkpoint is of."""
        own = (self.trainer, self.scheduler, self.furthest)
        return next((value for value in own if value is not None), None)

    def own(self, part: str, target: int) -> tuple[int, int]:
        """Return the step that a part's counters are of, and how often they count in one step."""
        value = self.scheduler if part == SCHEDULER else self.furthest
        trainer = self.trainer
        if value is None or trainer is None or value == target:
            return (trainer or 0) if value is None else value, 1
        if part == SCHEDULER and self.furthest in (None, trainer) and 0 < trainer < value and value % trainer == 0:
            return trainer, value // trainer  # stepped once per process
        if 0 <= trainer - value <= max(_LAG, trainer // 50):
            return trainer, 1
        return value, 1


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


def move_optimizer(counted: Counted, target: int, made: Moved) -> None:
    """Shift every counter of the optimizer by as much as the step moves."""
    if not counted.optimizer:
        made.notes.append("the optimizer counts no steps")
        return
    own, _ = counted.own(OPTIMIZER, target)
    if own != counted.present:
        made.notes.append(
            f"the optimizer's counters are of step {own:,}, not {counted.present:,}: they move from there"
        )
    for keys, value in counted.optimizer.items():
        moved = max(0, int(value) + target - own)
        made.places.append((OPTIMIZER, keys, float(moved) if isinstance(value, float) else moved))


def move_scheduler(
    state: dict[str, Any],
    groups: list[dict[str, Any]],
    counted: Counted,
    target: int,
    factor: Factor | None,
    made: Moved,
) -> None:
    """Shift the scheduler's counters, and set the rates that belong to the new step where a formula gives them."""
    kind = kind_of(state)
    if kind is None or kind == NONE:
        made.notes.append("the scheduler is of no known kind; its counters and rates stay")
        return
    if kind in EVALUATIONS:
        made.notes.append(f"{kind} counts evaluations, not steps: it stays, and so do the rates")
        return
    own, times = counted.own(SCHEDULER, target)
    if own != counted.present:
        made.notes.append(
            f"the scheduler's counters are of step {own:,}, not {counted.present:,}: they move from there"
        )
    shift = (target - own) * times
    rates = _rates_then(kind, state, groups, factor, shift)
    if not _shift(kind, state, (), shift, made):
        made.notes.append(f"the parts of {kind} take turns, and the new step is in another part: the scheduler stays")
        return
    if rates is None:
        made.notes.append("the rates stay: no formula gives those of the new step (`ckpt set-lr` sets them)")
        return
    listed = state.get("_last_lr")
    for number, rate in enumerate(rates):
        made.places.append((OPTIMIZER, ("param_groups", number, "lr"), float(rate)))
        if isinstance(listed, list) and number < len(listed):
            made.places.append((SCHEDULER, ("_last_lr", number), float(rate)))


def _shift(kind: str, state: dict[str, Any], keys: Keys, shift: int, made: Moved) -> bool:
    """Add ``shift`` to the counters of a scheduler and of those inside it; False where that makes no sense."""
    inner = state.get("_schedulers")
    epoch = whole(state.get("last_epoch"))
    chosen = list(range(len(inner))) if isinstance(inner, list) else []
    if kind == "SequentialLR" and epoch is not None and isinstance(inner, list):
        milestones = state.get("_milestones") or []
        now, then = (sum(mark <= at for mark in milestones) for at in (epoch, epoch + shift))
        if now != then:
            return False
        chosen = [now]
    for name in ("last_epoch", "_step_count"):
        count = whole(state.get(name))
        if count is not None and not (name == "_step_count" and count == 0):
            made.places.append((SCHEDULER, (*keys, name), max(0, count + shift)))
    if kind == "CosineAnnealingWarmRestarts" and epoch is not None:
        then_state = deepcopy(state)
        closed_form(kind, then_state, [], None, max(0, epoch + shift))
        made.places += [(SCHEDULER, (*keys, name), then_state[name]) for name in ("T_cur", "T_i")]
    for number in chosen:
        part = inner[number] if isinstance(inner, list) else None
        part_kind = kind_of(part) if isinstance(part, dict) else None
        if isinstance(part, dict) and part_kind is not None and part_kind not in EVALUATIONS:
            _shift(part_kind, part, (*keys, "_schedulers", number), shift, made)
    return True


def _rates_then(
    kind: str, state: dict[str, Any], groups: list[dict[str, Any]], factor: Factor | None, shift: int
) -> list[float] | None:
    """Return the rates that belong to the step then, None where they cannot be told from what is stored."""
    epoch = whole(state.get("last_epoch"))
    if epoch is None:
        return None
    try:
        now = closed_form(kind, deepcopy(state), groups, factor, epoch)
        then = closed_form(kind, deepcopy(state), groups, factor, max(0, epoch + shift))
    except (UnknownRatesError, KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError, AttributeError):
        return None
    present = [real(group.get("lr")) for group in groups]
    if now is None or then is None or len(now) != len(present):
        return None
    fits = all(
        rate is not None and isclose(rate, computed, rel_tol=_CLOSE, abs_tol=1e-15)
        for rate, computed in zip(present, now, strict=True)
    )
    return then if fits else None


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
