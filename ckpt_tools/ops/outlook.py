"""The rates that the next steps will use, without an edit and with it, and why there are no more of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import zip_longest
from math import isclose
from typing import Any

from ckpt_tools.edits import lambdas, rates, schedulers
from ckpt_tools.edits.lambdas import Factor
from ckpt_tools.edits.proof import Changed
from ckpt_tools.edits.states import Line, Wanted
from ckpt_tools.layouts.view import View
from ckpt_tools.model.values import Value
from ckpt_tools.reports.edit import Rates
from ckpt_tools.reports.units import count

STEPS = 5
"""Steps of which the rates are told."""

_CLOSE = 1e-6

Told = tuple[list[tuple[float, ...]], str | None]
"""The rates of the next steps, one per group, and why there are no more."""


def outlook(
    view: View, lines: Sequence[Line], wanted: Wanted, changed: Sequence[Changed], step: int, target: int | None = None
) -> tuple[tuple[Rates, ...], list[str]]:
    """Return the rates of the next steps before and after, and what to tell about them.

    Args:
        view: the checkpoint as it is now.
        lines: its optimizers and schedulers.
        wanted: what is to be set in them.
        changed: what that changes in the files.
        step: the step that the checkpoint is of.
        target: the step that it is of afterwards, None where that stays.
    """
    total = lambdas.total_steps(view.training_args, view.state)
    new = step if target is None else target
    then, _ = _joined([_upcoming(view, line, total, _left(total, step)) for line in lines])
    now, reason = _joined([_upcoming(view, _after(line, wanted, changed), total, _left(total, new)) for line in lines])
    rows = tuple(
        Rates(new + 1 + number, before, after, None if target is None else step + 1 + number)
        for number, (before, after) in enumerate(zip_longest(then, now, fillvalue=()))
    )
    notes = []
    if reason is not None:
        notes.append(f"rates of later steps are not told: {reason}")
    if total is not None and total <= new:
        notes.append(f"step {new:,} of {total:,}: a resume ends at once unless it is given more steps")
    if view.state is None and len(rows) > 1:
        notes.append("a step is one call of the scheduler's step(), which some loops call once per epoch")
    if len(lines) > 1:
        groups = ", ".join(f"{count(len(line.groups), 'group')} in {line.name}" for line in lines)
        notes.append(f"groups are counted through all optimizers: {groups}")
    return rows, notes


def _left(total: int | None, step: int) -> int:
    return min(STEPS, total - step) if total is not None and total > step else STEPS


def _after(line: Line, wanted: Wanted, changed: Sequence[Changed]) -> Line:
    groups, state = deepcopy(line.groups), deepcopy(line.state)
    wanted.apply(changed, line.optimizer, {"param_groups": groups})
    wanted.apply(changed, line.scheduler, state)
    return Line(line.optimizer, line.scheduler, groups, state)


def _upcoming(view: View, line: Line, total: int | None, steps: int) -> Told:
    factor, why = factor_of(view.training_args, total, line.state)
    found, reason = rates.upcoming(deepcopy(line.groups), deepcopy(line.state), factor, steps)
    if reason is not None and why and schedulers.kind_of(line.state) == "LambdaLR":
        return found, why
    return found, reason


def _joined(told: Sequence[Told]) -> Told:
    """Return the rates of several optimizers as those of one with all their groups."""
    rows = [tuple(rate for row in step for rate in row) for step in zip(*(found for found, _ in told), strict=False)]
    return rows, next((reason for _, reason in told if reason is not None), None)


def factor_of(
    arguments: Mapping[str, Value], total: int | None, state: Mapping[str, Any] | None
) -> tuple[Factor | None, str]:
    """Return the function of a LambdaLR where it is known and gives the rates that were saved, or why there is none."""
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
