"""``ckpt set-lr``: another learning rate, in every place that decides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from math import isclose
from typing import Any

from ckpt_tools._version import __version__
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.edits import lambdas, rates, schedulers, states
from ckpt_tools.edits.lambdas import Factor
from ckpt_tools.edits.proof import Changed
from ckpt_tools.edits.schedulers import OPTIMIZER, Request, Rescaled
from ckpt_tools.edits.states import States
from ckpt_tools.edits.values import Setting, plan_values
from ckpt_tools.model.values import Value, real
from ckpt_tools.ops import change, reseal
from ckpt_tools.ops.change import Opened
from ckpt_tools.reports.edit import EditReport, Rates
from ckpt_tools.reports.units import human_rate

STEPS = 5
"""Steps of which the rates are told."""

_CLOSE = 1e-6


def set_lr(
    path: str,
    rate: float | None = None,
    *,
    peak: float | None = None,
    scale: float | None = None,
    groups: Sequence[int] = (),
    keep_floor: bool = False,
    force: bool = False,
    dry_run: bool = False,
    settle: float = 60.0,
    now_ns: int | None = None,
    command: str = "",
) -> EditReport:
    """Change the learning rate that a resume of this checkpoint goes on with; just one of the first three is given.

    Args:
        path: a checkpoint: a directory, or a file that holds everything.
        rate: the rate of the next step, of the first group that is meant; the whole schedule is scaled by that.
        peak: the base rate of the schedule instead.
        scale: the factor itself.
        groups: the parameter groups that are meant; all when empty.
        keep_floor: leave lower bounds (``eta_min``, ``min_lr``, ``min_lrs``) as they are.
        force: edit the optimizer alone where the scheduler is of no known kind.
        dry_run: say what would be changed, and check that it can be.
        settle: see ``verify``; a checkpoint that is being written is refused.
        now_ns: the clock, for tests.
        command: the command line, for the journal.

    Raises:
        NothingFoundError: no such path, or no checkpoint there.
        UsageError: the arguments make no sense together, or the path is not one checkpoint.
        EditRefusedError: a file is damaged or being written, or no stored number decides the rate.
        EditError: the system refused something.
    """
    opened = change.open_checkpoint(path)
    try:
        request = Request(rate, peak, scale, tuple(groups), keep_floor, force)
        return _set(opened, request, dry_run, settle, now_ns, command)
    finally:
        opened.view.close()


def _set(
    opened: Opened, request: Request, dry_run: bool, settle: float, now_ns: int | None, command: str
) -> EditReport:
    view = opened.view
    found = states.find(view)
    optimizer, scheduler = found.optimizer, found.scheduler
    if optimizer is None:
        raise EditRefusedError(
            "there is no optimizer here, so a resume takes its rate from the command line", hint="give it there"
        )
    parts = [state.part for state in (optimizer, scheduler) if state is not None]
    change.refuse_unfit(opened, parts, settle, now_ns)
    numbers = states.numbers(view, optimizer.value)
    own = numbers.get("param_groups")
    if not isinstance(own, list) or not own or not all(isinstance(group, dict) for group in own):
        raise EditRefusedError(f"{optimizer.part.path}: has no param_groups that could be read; nothing was changed")
    state = states.numbers(view, scheduler.value) if scheduler is not None else None
    named = view.training_args.get("lr_scheduler_type") in lambdas.SCHEDULES
    made = schedulers.rescale(own, state, request, by_function=named)
    settings = []
    for file, keys, number in made.places:
        home = optimizer if file == OPTIMIZER else scheduler
        if home is not None:
            settings.append(Setting(home.part, (*home.keys, *keys), number))
    planned = plan_values(view, settings, rehearse=dry_run)
    if not planned.changed:
        same = ("every place has this rate already",)
        return EditReport(__version__, opened.path, "the learning rate stays", False, scheduler=made.kind, notes=same)
    title = _title(own, made, request)
    shown, notes = _rates(opened, own, state, found, planned.changed)
    sealing, about = reseal.follow(opened.run, view, planned.actions)
    actions = [*planned.actions, *sealing]
    done = change.carry_out(
        opened, title, actions, planned.changed, dry_run=dry_run, settle=settle, now_ns=now_ns, command=command
    )
    return EditReport(
        __version__,
        opened.path,
        title,
        not dry_run,
        change.told(planned.changed),
        shown,
        made.kind,
        done.files,
        done.bytes_written,
        (*notes, *dict.fromkeys(made.notes), *_taken(opened, made, state, request), *about, *done.notes),
    )


def _title(groups: Sequence[Mapping[str, Value]], made: Rescaled, request: Request) -> str:
    which = f" of group{'s' if len(request.groups) > 1 else ''} {', '.join(map(str, request.groups))}"
    of = which if request.groups else ""
    if request.peak is not None:
        return f"base rate{of} set to {human_rate(request.peak)}: the schedule is scaled by {made.factor:.6g}"
    if request.scale is not None:
        return f"learning rate{of} scaled by {made.factor:.6g}"
    old = real(groups[request.groups[0] if request.groups else 0].get("lr")) or 0.0
    return f"learning rate{of} set from {human_rate(old)} to {human_rate(request.rate or 0.0)}"


# The rates of the next steps -------------------------------------------------------------------------------


def _rates(
    opened: Opened,
    groups: list[dict[str, Any]],
    state: dict[str, Any] | None,
    found: States,
    changed: Sequence[Changed],
) -> tuple[tuple[Rates, ...], list[str]]:
    """Return the rates of the next steps before and after, and why there are no more."""
    view = opened.view
    step = change.step_of(opened) or 0
    total = lambdas.total_steps(view.training_args, view.state)
    left = total - step if total is not None and total > step else STEPS
    factor, why = _factor(view.training_args, total, state)
    then, reason = rates.upcoming(deepcopy(groups), deepcopy(state), factor, min(STEPS, left))
    for item in changed:
        for home, target in ((found.optimizer, {"param_groups": groups}), (found.scheduler, state)):
            if home is not None and target is not None and home.part == item.part:
                _apply(target, item, home.keys)
    now, _ = rates.upcoming(deepcopy(groups), deepcopy(state), factor, min(STEPS, left))
    rows = tuple(Rates(step + 1 + k, before, after) for k, (before, after) in enumerate(zip(then, now, strict=False)))
    notes = []
    if reason is not None:
        reason = why if factor is None and why and schedulers.kind_of(state) == "LambdaLR" else reason
        notes.append(f"rates of later steps are not told: {reason}")
    if total is not None and total <= step:
        notes.append(f"step {step:,} of {total:,}: a resume ends at once unless it is given more steps")
    if view.state is None and len(rows) > 1:
        notes.append("a step is one call of the scheduler's step(), which some loops call once per epoch")
    return rows, notes


def _apply(target: Any, item: Changed, prefix: tuple[Any, ...]) -> None:
    if item.keys[: len(prefix)] != prefix:
        return
    keys = item.keys[len(prefix) :]
    try:
        for key in keys[:-1]:
            target = target[key]
        if keys[-1] in target or isinstance(target, list):
            target[keys[-1]] = item.new
    except (KeyError, IndexError, TypeError):
        return


def _factor(
    arguments: Mapping[str, Value], total: int | None, state: Mapping[str, Any] | None
) -> tuple[Factor | None, str]:
    """Return the function of a LambdaLR, where it is known and gives the rates that were saved."""
    if state is None or schedulers.kind_of(state) != "LambdaLR":
        return None, ""
    factor, why = lambdas.factor_of(arguments, total)
    if factor is None:
        return None, why
    try:
        fits = all(
            isclose(base * factor(state["last_epoch"]), last, rel_tol=_CLOSE, abs_tol=1e-15)
            for base, last in zip(state["base_lrs"], state["_last_lr"], strict=True)
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        fits = False
    if fits:
        return factor, ""
    name = arguments.get("lr_scheduler_type")
    return None, f"the saved rate is not that of the {name} schedule which the training arguments name"


# What a trainer does besides -------------------------------------------------------------------------------


def _taken(opened: Opened, made: Rescaled, state: Mapping[str, Any] | None, request: Request) -> list[str]:
    """Return what a trainer will still take from its command line."""
    arguments = opened.view.training_args
    if opened.view.state is None:
        return []
    name = arguments.get("lr_scheduler_type")
    if made.kind == "LambdaLR":
        more = arguments.get("lr_scheduler_kwargs")
        divides = name in lambdas.FROM_ARGUMENTS or (isinstance(more, Mapping) and more.get("min_lr") is not None)
        notes = [
            "on resume the trainer takes the schedule's type, length and warm-up from its command line"
            " (--lr_scheduler_type, --max_steps or --num_train_epochs, --warmup_steps): keep them",
            f"it also divides by --learning_rate ({arguments.get('learning_rate'):g}): keep that too"
            if divides and isinstance(arguments.get("learning_rate"), float)
            else "it ignores --learning_rate: the saved rates decide",
        ]
        if request.keep_floor:
            notes.append("--keep-floor has nothing to keep: a floor of this schedule is stored nowhere, and scales")
        return notes
    if made.kind == schedulers.NONE:
        return ["there is no scheduler here: a trainer that makes one starts it afresh, from its command line"]
    return ["it ignores --learning_rate on resume: the saved rates decide"]
