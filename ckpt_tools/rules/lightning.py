"""CK58x: Lightning's own numbers against each other, and what its checkpoints are good for.

A file counts as Lightning's by its key ``pytorch-lightning_version``, whatever it is called.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_tools.layouts.match import is_newest
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Role, Run
from ckpt_tools.model.findings import BREAKS_RESUME, DEGRADES_RESUME, Severity, Spot
from ckpt_tools.model.values import Value, as_mapping, whole
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_VERSION = "pytorch-lightning_version"
_STEP = re.compile(r"(?:\A|[-_/])step=(\d{1,18})(?!\d|\.\d)")
_LAST = re.compile(r"last(?:-v\d+)?\.ckpt\Z")
_RESUBMITTED = re.compile(r"hpc_ckpt_\d+\.ckpt\Z")
_ABSOLUTE = re.compile(r"/|\\\\|[A-Za-z]:[\\/]")
_PATHS = ("dirpath", "best_model_path", "last_model_path")


def _dict(view: View) -> Mapping[Any, Value] | None:
    """Return what Lightning saved, None where it was something else that did."""
    held = view.mapping(Role.COMBINED)
    return held if held is not None and _VERSION in held else None


def _path(checkpoint: Checkpoint) -> str:
    part = checkpoint.first(Role.COMBINED)
    return part.path if part is not None else ""


def _inside(held: Mapping[Any, Value], *keys: str) -> Value:
    found: Value = held
    for key in keys:
        found = (as_mapping(found) or {}).get(key)
    return found


def _completed(held: Mapping[Any, Value], *keys: str) -> int | None:
    return whole(_inside(held, "loops", "fit_loop", *keys, "total", "completed"))


def _steps(held: Mapping[Any, Value]) -> int | None:
    """Return the number of optimizer steps that the loops, which a resume goes by, have counted."""
    automatic = _completed(held, "epoch_loop.automatic_optimization.optim_progress", "optimizer", "step")
    manual = _completed(held, "epoch_loop.manual_optimization.optim_step_progress")
    return max((count for count in (automatic, manual) if count is not None), default=None)


@rule("CK580", "lightning-name-step", Severity.WARNING, Checkpoint)
def name_step(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The name says `step=N`, and `global_step` inside is another.

    **Why it matters.** A resume goes by what is inside. Whoever chooses a checkpoint by its name, as `ckpt latest`
    does, gets another one than the name promises.

    **How to repair.** Give the file a name that fits, or copy the right one again.
    """
    held = _dict(context.view)
    name = os.path.basename(os.path.abspath(context.run.root) if checkpoint.path == "." else checkpoint.path)
    match = _STEP.search(name)
    stated = whole(held.get("global_step")) if held is not None else None
    if match is not None and stated is not None and int(match.group(1)) != stated:
        place = Spot(key="global_step")
        yield Hit(
            f"it is named for step {int(match.group(1)):,}, and was saved at {stated:,}", _path(checkpoint), place
        )


@rule("CK581", "lightning-loop-step", Severity.WARNING, Checkpoint, impact=DEGRADES_RESUME)
def loop_step(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """`global_step` is not the number of optimizer steps that `loops` has counted.

    **Why it matters.** `global_step` at the top is for information: a resume goes by `loops`. Whoever edited the first
    alone changed nothing.

    **How to repair.** `ckpt set-step` sets both.

    **Known exceptions.** That `batch_progress` has `ready` 4 and `completed` 3 is no fault: the file was written inside
    of a batch. Versions before 2.0, which named the loops otherwise, are not judged.
    """
    held = _dict(context.view) or {}
    stated, counted = whole(held.get("global_step")), _steps(held)
    if stated is not None and counted is not None and stated != counted:
        yield Hit(
            f"it states step {stated:,}, and its loops have counted {counted:,}",
            _path(checkpoint),
            Spot(key="global_step"),
            (f"a resume goes on from {counted:,}",),
        )


@rule("CK582", "lightning-schedule-step", Severity.WARNING, Checkpoint, impact=DEGRADES_RESUME)
def schedule_step(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """`last_epoch` of the schedule is not the number of times that the loops have stepped it.

    **Why it matters.** The learning rate follows the schedule's own count: it lags behind, or runs ahead, for ever.

    **How to repair.** `ckpt set-step` sets both; or take the file from a copy that was not edited.

    **Known exceptions.** Several schedules, those without `last_epoch`, those that wait for a metric, those that the
    module steps itself, and the one of stochastic weight averaging, which begins in the middle, are not judged.
    """
    held = _dict(context.view) or {}
    schedules = held.get("lr_schedulers")
    if not isinstance(schedules, list) or len(schedules) != 1:
        return
    schedule = as_mapping(schedules[0]) or {}
    last, stepped = whole(schedule.get("last_epoch")), _completed(held, "epoch_loop.scheduler_progress")
    other = "num_bad_epochs" in schedule or "anneal_epochs" in schedule
    if last is not None and stepped and not other and last != stepped:
        yield Hit(
            f"the schedule is at {last:,}, and the loops have stepped it {stepped:,} times",
            _path(checkpoint),
            Spot(key="lr_schedulers[0].last_epoch"),
        )


@rule("CK583", "lightning-weights-only", Severity.NOTE, Checkpoint, impact=BREAKS_RESUME)
def weights_only(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The checkpoint was saved with `save_weights_only=True`: it has no optimizer, no schedule and no callbacks.

    **Why it matters.** `fit(ckpt_path=...)` stops with `KeyError: ... checkpoint contains only the model`. It was meant
    so: `load_from_checkpoint` works.

    **How to repair.** Nothing is wrong. To resume, take one that was saved with everything.
    """
    held = _dict(context.view)
    if held is not None and "optimizer_states" not in held and not context.view.assemblies:
        message = "saved with save_weights_only: it can be loaded, and training cannot be resumed from it"
        yield Hit(message, _path(checkpoint))


@rule("CK584", "lightning-paths-of-another-place", Severity.NOTE, Checkpoint)
def other_place(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The `ModelCheckpoint` state in the newest checkpoint names paths of another place.

    **Why it matters.** Lightning warns that `The dirpath has changed` and forgets the best score and the best models:
    old ones are not deleted any more, and `best_model_path` leads nowhere.

    **How to repair.** Nothing, unless the best model matters; then resume in a directory with the old path.

    **Known exceptions.** Every copy to another machine has this, so that only the newest checkpoint is told. Files
    under names that `ModelCheckpoint` does not give are saved elsewhere on purpose.
    """
    held = _dict(context.view)
    callbacks = as_mapping(held.get("callbacks")) if held is not None else None
    if not callbacks or checkpoint.layout != "lightning" or not is_newest(context.run, checkpoint):
        return
    if _RESUBMITTED.match(_path(checkpoint)):
        return
    root = os.path.abspath(context.run.root)
    homes = {root, os.path.dirname(root)} if context.run.single else {root, os.path.join(root, checkpoint.path)}
    for state in callbacks.values():
        paths = [path for key in _PATHS if isinstance(path := (as_mapping(state) or {}).get(key), str)]
        strange = [path for path in paths if _ABSOLUTE.match(path) and not _is_in(path, homes)]
        if strange:
            detail = f"the state names {strange[0]}"
            yield Hit("its ModelCheckpoint state names paths of another place", _path(checkpoint), detail=(detail,))
            return


def _is_in(path: str, homes: set[str]) -> bool:
    return os.path.normpath(path) in homes or os.path.dirname(os.path.normpath(path)) in homes


@rule("CK585", "lightning-last-behind", Severity.NOTE, Run)
def last_behind(run: Run, context: Context) -> Iterator[Hit]:
    """`last.ckpt` is of an older step than the newest numbered checkpoint.

    **Why it matters.** Both are written by each save, `last.ckpt` second: a kill in between leaves it one save behind.
    `fit(ckpt_path="last")` takes the newer of those called last, and starts that much earlier.

    **How to repair.** Nothing; name the numbered file when resuming to lose nothing.
    """
    named = [each for each in run.checkpoints if each.step is not None and each.layout == "lightning"]
    newest = max(named, key=lambda each: each.step or 0, default=None)
    for checkpoint in run.checkpoints if newest is not None else ():
        step = context.views[checkpoint.path].step
        if not _LAST.match(os.path.basename(checkpoint.path)) or step is None or newest is None or newest.step is None:
            continue
        if step < newest.step:
            message = f"it is of step {step:,}, and {os.path.basename(newest.path)} is newer"
            yield Hit(message, checkpoint.path, related=(newest.path,))


RULES: tuple[Rule, ...] = (
    name_step,
    loop_step,
    schedule_step,
    weights_only,
    other_place,
    last_behind,
)
