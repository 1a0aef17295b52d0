"""CK50x: the step and the learning rates, stored in several files, against each other."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose
from typing import Any

from ckpt_tools.layouts.assembly_zero import reads_schedule, skipped, tag_of
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role
from ckpt_tools.model.findings import BREAKS_RESUME, DEGRADES_RESUME, HARMLESS, Severity, Spot
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping, real
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_EXACT, _SINGLE = 1e-9, 1e-6
# What every schedule has; one with nothing more was a LambdaLR.
_BARE = frozenset(
    ("base_lrs", "last_epoch", "verbose", "_step_count", "_is_initial", "_get_lr_called_within_step", "_last_lr")
)


def _integer(value: Value) -> int | None:
    if type(value) is int:
        return value if abs(value) < 1 << 63 else None
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _groups(view: View) -> list[Mapping[Any, Value]]:
    groups = (view.optimizer or {}).get("param_groups")
    found = [as_mapping(group) for group in groups] if isinstance(groups, list | tuple) else []
    return [group for group in found if group is not None]


def _is_lambda(view: View) -> bool:
    """Whether the schedule is a LambdaLR, as all of the Trainer's are but plateau and greedy: one count per update."""
    scheduler = view.scheduler or {}
    return isinstance(scheduler.get("lr_lambdas"), list) and "_schedulers" not in scheduler


def _paired(view: View) -> bool:
    """Whether there is one optimizer and one schedule, which then belong together: stages of a pipeline have more."""
    tag = tag_of(view)
    if tag is not None and (
        len(tag.parallel) > 1 or (view.checkpoint.has(Role.SCHEDULER) and not reads_schedule(view))
    ):
        return False
    return all(len(list(view.checkpoint.of(role))) <= 1 for role in (Role.OPTIMIZER, Role.SCHEDULER, Role.COMBINED))


@dataclass(frozen=True, slots=True)
class _Steps:
    """The trainer's, the schedule's and the optimizer's step.

    ``rates`` is whether the last two agree on the rates, ``mixed`` whether the log tells that both are of another
    step, ``skipped`` how many steps both may lag behind.
    """

    trainer: int
    schedule: int | None
    optimizer: int | None
    rates: bool | None
    mixed: bool
    skipped: int

    def lags(self, step: int) -> bool:
        """Whether a step is behind the trainer's by no more than was skipped."""
        return 0 <= self.trainer - step <= self.skipped

    @property
    def multiple(self) -> bool:
        """Whether the schedule may have been stepped once per process."""
        s, k = self.trainer, self.schedule or 0
        return self.optimizer in (None, s) and 0 < s < k and k % s == 0

    @property
    def apart(self) -> tuple[str, int] | None:
        """The part that is proven to be of another step, and that step."""
        s, k, o = self.trainer, self.schedule, self.optimizer
        if k is not None and k == o and (k > s or (k < s and self.mixed)):
            return "schedule and optimizer are", k
        if k is not None and k != s and o in (None, s) and self.rates is False and not self.multiple:
            return "the schedule is", k
        if o is not None and k == s != o and self.rates is False:
            return "the optimizer is", o
        return None


def _steps(view: View) -> _Steps | None:
    """Return the steps of a Trainer checkpoint, None where another framework counts or nothing is stated."""
    trainer = _integer((view.state or {}).get("global_step"))
    if trainer is None or not reads_schedule(view) or not _paired(view):
        return None
    schedule = _integer((view.scheduler or {}).get("last_epoch")) if _is_lambda(view) else None
    counted = [number for value in view.numbers("optimizer-step") if (number := _integer(value)) is not None]
    mixed = schedule is not None and _mixed(view, schedule, trainer)
    return _Steps(trainer, schedule, max(counted, default=None), _rates_agree(view), mixed, skipped(view))


def _mixed(view: View, schedule: int, trainer: int) -> bool:
    """Whether the rate logged at the trainer's step is not that of a schedule which is at ``schedule`` then.

    A schedule that was started afresh on the way gives the rate of its own step again; one from another checkpoint
    has a rate that was logged when the trainer was there, and the rate logged last is another.
    """
    history, last = (view.state or {}).get("log_history"), view.number("last-lr")
    if not isinstance(history, list) or last is None or trainer - schedule < 2 or skipped(view):
        return False
    rates = {
        entry["step"]: entry["learning_rate"]
        for entry in history
        if isinstance(entry, dict) and type(entry.get("step")) is int and isinstance(entry.get("learning_rate"), float)
    }
    if trainer not in rates or schedule not in rates or isclose(rates[trainer], rates[schedule], rel_tol=_SINGLE):
        return False
    return any(isclose(last, rates[step], rel_tol=_SINGLE) for step in (schedule, schedule + 1) if step in rates)


def _rates(view: View, left: str, right: str) -> list[tuple[int, float, float]] | None:
    """Return ``(group, left, right)`` where two quantities disagree, None where they cannot be compared."""
    groups, ours, theirs = _groups(view), view.numbers(left), view.numbers(right)
    if tag_of(view) is not None:  # every rank has a copy of each rate, and CK575 compares them
        key = left.replace("-", "_")
        ours = [rate for group in groups if (rate := real(group.get(key))) is not None]
    if not groups or not len(ours) == len(theirs) == len(groups) or not _paired(view) or not _is_lambda(view):
        return None
    if any("scheduled_lr" in group for group in groups):  # schedule-free optimizers keep a rate of their own
        return None
    single = any(isinstance(group.get(key), TensorRef) for group in groups for key in ("lr", "initial_lr"))
    tolerance = _SINGLE if single else _EXACT
    return [
        (place, a, b)
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True))
        if not isclose(a, b, rel_tol=tolerance, abs_tol=1e-30) and a == a and b == b
    ]


def _rates_agree(view: View) -> bool | None:
    wrong = _rates(view, "lr", "last-lr")
    return None if wrong is None else not wrong


def _path(view: View, role: Role) -> str:
    part = view.checkpoint.first(role, Role.COMBINED)
    return part.path if part is not None else ""


def _said(steps: _Steps) -> str:
    said = [f"the trainer's state says step {steps.trainer:,}"]
    said += [f"the schedule {steps.schedule:,}"] if steps.schedule is not None else []
    said += [f"the optimizer {steps.optimizer:,}"] if steps.optimizer is not None else []
    return ", ".join(said)


@rule("CK501", "step-mismatch", Severity.ERROR, Checkpoint, impact=DEGRADES_RESUME)
def step_mismatch(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The number in the directory's name is not `global_step` of `trainer_state.json`.

    **Why it matters.** Training goes on from `global_step`: if the state is of another checkpoint, steps are done
    twice or left out. If only the directory was renamed a resume works, but the newest checkpoint and those to be
    deleted are chosen by name.

    **How to repair.** If the other files agree with `global_step`, `ckpt set-step CKPT N --rename` names the directory
    for it, as does `ckpt repair --write --unsafe RUN`; if they agree with the name, copy `trainer_state.json` again.

    **Known exceptions.** A renamed directory, of which optimizer or schedule agree with the state, is a warning.
    """
    steps = _steps(context.view)
    stated = _integer((context.view.state or {}).get("global_step"))
    if checkpoint.layout != "hf-trainer" or checkpoint.step is None or stated is None or stated == checkpoint.step:
        return
    others = {steps.schedule, steps.optimizer} if steps is not None else set()
    renamed = stated in others and checkpoint.step not in others
    yield Hit(
        f"the directory is named for step {checkpoint.step:,}, its state says {stated:,}",
        _path(context.view, Role.TRAINER_STATE),
        Spot(key="global_step"),
        (_said(steps),) if steps is not None else (),
        help=_renaming(checkpoint, context, stated) if renamed else None,
        severity=Severity.WARNING if renamed else None,
        impact=HARMLESS if renamed else None,
    )


def _renaming(checkpoint: Checkpoint, context: Context, step: int) -> str:
    place = context.run.root if checkpoint.path == "." else os.path.join(context.run.root, checkpoint.path)
    return f"`ckpt set-step {shlex.quote(place)} {step} --rename` names it for its step"


@rule("CK502", "scheduler-step-mismatch", Severity.WARNING, Checkpoint, impact=DEGRADES_RESUME)
def scheduler_step_mismatch(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """`last_epoch` of a LambdaLR schedule is not `global_step`.

    **Why it matters.** The learning rate follows the schedule's own count: it lags behind, or runs ahead, for ever.

    **How to repair.** Set `last_epoch` and the rates to the step (`ckpt set-step`), or take the scheduler's file of
    the same step.

    **Known exceptions.** With a gradient scaler skipped steps are not counted. A multiple of the step: accelerate
    steps once per process. Plateau and greedy count evaluations, and sequential ones per phase. Where the optimizer
    lags by the same amount both were started afresh, or skipped steps together: a note. Where it agrees with the
    trainer, the schedule alone is wrong: an error.
    """
    steps = _steps(context.view)
    if steps is None or steps.schedule in (None, steps.trainer, checkpoint.step) or steps.apart or steps.multiple:
        return  # CK501 tells it where the directory's name agrees with the schedule
    if steps.lags(steps.schedule):
        return
    together = steps.schedule == steps.optimizer
    alone = steps.schedule > steps.trainer or steps.optimizer == steps.trainer
    yield Hit(
        f"the schedule is at step {steps.schedule:,}, the trainer at {steps.trainer:,}",
        _path(context.view, Role.SCHEDULER),
        Spot(key="last_epoch"),
        (_said(steps),),
        severity=Severity.NOTE if together else Severity.ERROR if alone else None,
        impact=HARMLESS if together else None,
    )


@rule("CK503", "optimizer-step-mismatch", Severity.WARNING, Checkpoint)
def optimizer_step_mismatch(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The optimizer's own `step` is above `global_step`, or far below it.

    **Why it matters.** It only corrects the bias of young moments, but it tells that the optimizer is of another step
    than the rest (certain where it is above), or was started afresh on the way.

    **How to repair.** Take the optimizer's file of the same step, if there is one.

    **Known exceptions.** Steps that a gradient scaler skipped. Parameters that got no gradient have a lower step:
    only the highest counts. Optimizers without a count (SGD, schedule-free). Where the schedule lags as much, see
    CK502. DeepSpeed's have CK572: with stage 3 some count more than one for a step.
    """
    steps = _steps(context.view) if tag_of(context.view) is None else None
    if steps is None or steps.optimizer is None or steps.apart or steps.optimizer in (steps.trainer, steps.schedule):
        return
    above = steps.optimizer > steps.trainer
    few = not above and 10 * steps.optimizer >= 9 * steps.trainer
    if few or checkpoint.step == steps.optimizer or steps.lags(steps.optimizer):
        return
    yield Hit(
        f"the optimizer is at step {steps.optimizer:,}, the trainer at {steps.trainer:,}",
        _path(context.view, Role.OPTIMIZER),
        Spot(key="state"),
        (_said(steps),),
        severity=Severity.ERROR if above else None,
        impact=DEGRADES_RESUME if above else None,
    )


@rule("CK504", "parts-of-different-steps", Severity.ERROR, Checkpoint, impact=DEGRADES_RESUME)
def parts_of_different_steps(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The files of the checkpoint are of different steps, and two of them prove it.

    **Why it matters.** A copy put files of two checkpoints together, or a save over an older one was cut. The resume
    works, and goes on with moments or rates of another time.

    **How to repair.** Copy the checkpoint again from its source, or fall back (`ckpt latest RUN`).

    **Known exceptions.** Proof is needed: schedule and optimizer agree on a step beyond the trainer's, or on one
    whose rate is not the one logged last; or one of them is of another step and its rates are too. Lower steps alone
    may be skipped steps or a fresh start (CK502).
    """
    steps = _steps(context.view)
    if steps is None or steps.apart is None or steps.apart[1] == checkpoint.step:
        return
    which, step = steps.apart
    yield Hit(
        f"{which} of step {step:,}, the trainer's state of step {steps.trainer:,}",
        detail=(_said(steps), *(() if steps.rates is not False else ("the rates of optimizer and schedule differ",))),
    )


@rule("CK505", "rates-disagree", Severity.ERROR, Checkpoint, impact=DEGRADES_RESUME)
def rates_disagree(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The learning rates in the optimizer's groups are not the schedule's `_last_lr`.

    **Why it matters.** With a LambdaLR both are set in one go. The optimizer's rate is used for the first step after
    a resume and the schedule's from then on: an edit of one alone does not do what was meant.

    **How to repair.** Set the rate in both files (`ckpt set-lr` does).

    **Known exceptions.** Other schedules than LambdaLR, schedule-free optimizers, and several optimizers side by
    side. In the file of a plain loop, which may set rates itself, it is a warning.
    """
    steps = _steps(context.view)
    wrong = _rates(context.view, "lr", "last-lr")
    if not wrong or (steps is not None and steps.apart):
        return
    own = checkpoint.layout != "hf-trainer"
    yield Hit(
        "optimizer and schedule have different learning rates",
        _path(context.view, Role.OPTIMIZER),
        Spot(key=f"param_groups[{wrong[0][0]}].lr"),
        tuple(f"group {place}: lr {lr!r} in the optimizer, {last!r} in the schedule" for place, lr, last in wrong[:10]),
        severity=Severity.WARNING if own else None,
        impact=HARMLESS if own else None,
    )


@rule("CK506", "initial-rates-disagree", Severity.WARNING, Checkpoint)
def initial_rates_disagree(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """`initial_lr` of the optimizer's groups is not the schedule's `base_lrs`.

    **Why it matters.** A resume uses `base_lrs`; `initial_lr` has no effect then. It tells that one of the two was
    edited.

    **How to repair.** Set the rate in all places (`ckpt set-lr` does).

    **Known exceptions.** Other schedules than LambdaLR.
    """
    steps = _steps(context.view)
    wrong = _rates(context.view, "initial-lr", "base-lr")
    if wrong and not (steps is not None and steps.apart):
        yield Hit(
            "the optimizer's initial rates are not those of the schedule",
            _path(context.view, Role.OPTIMIZER),
            Spot(key=f"param_groups[{wrong[0][0]}].initial_lr"),
            tuple(f"group {place}: initial_lr {a!r}, base_lrs {b!r}" for place, a, b in wrong[:10]),
        )


@rule("CK507", "scheduler-lengths", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def scheduler_lengths(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The schedule has another number of rates than the optimizer has groups.

    **Why it matters.** `base_lrs` has one rate per group; torch stops with a `ValueError` at the first step of the
    schedule. A wrong `_last_lr` or `lr_lambdas` alone is not noticed: a warning.

    **How to repair.** Scheduler and optimizer are of different runs: take both from one checkpoint.

    **Known exceptions.** Schedules without these lists, such as sequential ones and plateau's `base_lrs`.
    """
    scheduler, groups = context.view.scheduler or {}, _groups(context.view)
    if not groups or not _paired(context.view):
        return
    lists = ("base_lrs", "_last_lr", "lr_lambdas")
    lengths = {key: len(scheduler[key]) for key in lists if isinstance(scheduler.get(key), list | tuple)}
    wrong = [key for key, length in lengths.items() if length != len(groups)]
    if wrong:
        noticed = "base_lrs" in wrong
        yield Hit(
            "schedule and optimizer differ in the number of groups",
            _path(context.view, Role.SCHEDULER),
            Spot(key=wrong[0]),
            (f"the optimizer has {len(groups)} groups; " + ", ".join(f"{key} has {lengths[key]}" for key in wrong),),
            severity=None if noticed else Severity.WARNING,
            impact=None if noticed else HARMLESS,
        )


@rule("CK508", "scheduler-unusable", Severity.ERROR, Part, impact=BREAKS_RESUME)
def scheduler_unusable(part: Part, context: Context) -> Iterator[Hit]:
    """The Trainer's scheduler file is no state dict, or lacks what every schedule of its kind has.

    **Why it matters.** Without `lr_lambdas` a LambdaLR stops with a `KeyError`; without `last_epoch` the schedule
    starts again at 0, and the warm-up with it.

    **How to repair.** Take the scheduler's file from another checkpoint of the run and set its step.

    **Known exceptions.** Chained schedules have no count of their own. Only files of the Trainer are looked at: a
    loop of one's own may keep its schedule as it likes.
    """
    content = context.content(part) if part.role is Role.SCHEDULER and part.layout == "hf-trainer" else None
    if (
        content is None
        or not content.readable
        or content.container not in part.containers
        or not reads_schedule(context.view)
    ):
        return
    value = as_mapping(content.value)
    if value is None:
        yield Hit("this is no state dict of a schedule", part.path, detail=(f"holds a {type(content.value).__name__}",))
    elif value.keys() <= _BARE:
        yield Hit("lr_lambdas is missing", part.path, Spot(key="lr_lambdas"), (f"has {len(value)} keys of a schedule",))
    elif "last_epoch" not in value and "_schedulers" not in value:
        yield Hit("last_epoch is missing", part.path, Spot(key="last_epoch"), impact=DEGRADES_RESUME)
    elif "last_epoch" in value and type(value["last_epoch"]) not in (int, float):
        yield Hit("last_epoch is no number", part.path, Spot(key="last_epoch"))


RULES: tuple[Rule, ...] = (
    step_mismatch,
    scheduler_step_mismatch,
    optimizer_step_mismatch,
    parts_of_different_steps,
    rates_disagree,
    initial_rates_disagree,
    scheduler_lengths,
    scheduler_unusable,
)
