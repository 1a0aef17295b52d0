"""Lightning's own counters: a resume takes its step and its place in the epoch from ``loops``, from nothing else.

The step is the number of optimizer steps that were completed (``training_epoch_loop.py``, ``global_step``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_tools.containers.pickle_positions import Keys
from ckpt_tools.edits.counters import TRAINER, Moved
from ckpt_tools.edits.values import value_at
from ckpt_tools.model.values import Value, as_mapping, whole

_FIT = ("loops", "fit_loop")
_OPTIMIZER = "epoch_loop.automatic_optimization.optim_progress"
_MANUAL = "epoch_loop.manual_optimization.optim_step_progress"
_SCHEDULER = "epoch_loop.scheduler_progress"
_BATCHES = "epoch_loop.batch_progress"
_EPOCHS = "epoch_progress"
_STEPPED: tuple[Keys, ...] = (
    (_OPTIMIZER, "optimizer", "step"),
    (_OPTIMIZER, "optimizer", "zero_grad"),
    (_MANUAL,),
    (_SCHEDULER,),
)
"""Progress that counts optimizer steps, as far as it is used."""


def step_of(file: Mapping[Any, Value]) -> int | None:
    """Return the step that a resume would start from, None where the file is none of Lightning's."""
    counts = [
        _number(file, (*_FIT, *keys, "total", "completed")) for keys in ((_OPTIMIZER, "optimizer", "step"), (_MANUAL,))
    ]
    return max((count for count in counts if count is not None), default=None)


def move_loops(file: Mapping[Any, Value], target: int, made: Moved) -> None:
    """Set the counters of the loops, and the place in the epoch where the new step is in the same one."""
    old = step_of(file)
    if old is None:
        return
    shift = target - old
    batches = _batches_per_step(file, old)
    inside = batches is not None and _same_epoch(file, shift * batches)
    for scope in ("total", "current") if inside else ("total",):
        for keys in _STEPPED:
            _move(file, (*_FIT, *keys, scope), shift, made)
        if batches is not None:
            _move(file, (*_FIT, _BATCHES, scope), shift * batches, made)
    stepped = (*_FIT, "epoch_loop.state_dict", "_batches_that_stepped")
    count = _number(file, stepped)
    if count is not None:
        made.places.append((TRAINER, stepped, max(0, count + shift)))
    if shift and batches is None:
        made.notes.append("the counts of batches stay: how many of them make one step cannot be told")
    if shift:
        made.notes.append(_told(file, inside=inside))


def _told(file: Mapping[Any, Value], *, inside: bool) -> str:
    if inside:
        return "the place in the epoch follows; which data comes next does not, unless the data loader saves its state"
    epoch = _number(file, (*_FIT, _EPOCHS, "current", "processed"))
    if epoch is None:
        return "the place in the epoch stays"
    ended = _number(file, (*_FIT, _EPOCHS, "current", "ready")) != epoch and _ended(file)
    return f"the place in the epoch stays: a resume goes on in epoch {epoch + ended:,}, counted from 0"


def _number(file: Mapping[Any, Value], keys: Keys) -> int | None:
    try:
        return whole(value_at(file, keys))
    except KeyError:
        return None


def _ended(file: Mapping[Any, Value]) -> bool:
    """Return whether the last batch of the epoch was used."""
    try:
        return value_at(file, (*_FIT, _BATCHES, "is_last_batch")) is True
    except KeyError:
        return False


def _batches_per_step(file: Mapping[Any, Value], old: int) -> int | None:
    """Return how many batches make one step, None where the counts of the run and of the epoch disagree."""
    of_run = _number(file, (*_FIT, _BATCHES, "total", "ready")), old
    in_epoch = (
        _number(file, (*_FIT, _BATCHES, "current", "ready")),
        _number(file, (*_FIT, _OPTIMIZER, "optimizer", "step", "current", "completed")),
    )
    ratios = {batches / steps for batches, steps in (of_run, in_epoch) if batches and steps}
    ratio = ratios.pop() if len(ratios) == 1 else 0.0
    return int(ratio) if ratio and ratio.is_integer() else None


def _same_epoch(file: Mapping[Any, Value], batches: int) -> bool:
    """Return whether so many batches further on, or back, is in the epoch that has begun."""
    if _ended(file):
        return False
    begun, done = (_number(file, (*_FIT, _EPOCHS, "current", name)) for name in ("ready", "processed"))
    here, every = (_number(file, (*_FIT, _BATCHES, scope, "ready")) for scope in ("current", "total"))
    if None in (begun, done, here, every) or begun == done or here is None or every is None or done is None:
        return False
    if batches > 0:
        epoch = (every - here) // done if done and (every - here) % done == 0 else 0
        return here + batches <= epoch
    return here + batches > 0


def _move(file: Mapping[Any, Value], keys: Keys, shift: int, made: Moved) -> None:
    for name, count in _counts(file, keys):
        if count:
            made.places.append((TRAINER, (*keys, name), max(0, count + shift)))


def _counts(file: Mapping[Any, Value], keys: Keys) -> Iterator[tuple[str, int]]:
    try:
        found = as_mapping(value_at(file, keys)) or {}
    except KeyError:
        return
    for name, value in found.items():
        number = whole(value)
        if number is not None and isinstance(name, str):
            yield name, number
