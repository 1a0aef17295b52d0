"""Repairs of counters: one part says another step than the two others, and is set to theirs."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from typing import Any

from ckpt_tools.core.durable import look
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.edits.repair_base import CannotRepairError, Draft, Subject
from ckpt_tools.edits.values import Setting, number_of, plan_values
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.findings import Fix
from ckpt_tools.model.plan import MoveFile
from ckpt_tools.model.values import as_mapping

_WAY_OUT = "`ckpt set-step CKPT N` sets every counter to a step of your choice, with --rename the name as well"
_NUMBER = re.compile(r"\d+(?!.*\d)")


def fix_of(subject: Subject) -> Fix:
    """Return what the counters speak for: another name for the directory, or another number in one file."""
    if subject.checkpoint is not None and (step := _misnamed(subject.opened())) is not None:
        params = {"path": subject.checkpoint.path, "step": step}
        return Fix(f"name the directory for step {step:,}, which its files agree on", False, "name-for-step", params)
    return Fix("set the counter that disagrees to the step of the others", False, "align-step")


def _misnamed(view: View) -> int | None:
    """Return the step that all files agree on, two or more of them, where the directory is named for another."""
    found, named = _counts(view), view.checkpoint.step
    if view.checkpoint.is_file or named is None or len(found) < 2 or len(set(found.values())) > 1:
        return None
    (step,) = set(found.values())
    return step if step != named and Role.TRAINER_STATE in found else None


def rename(fix: Fix, subject: Subject) -> Draft:
    """Plan to name a directory of a run for the step of its files."""
    path, step = str(fix.params["path"]), int(fix.params["step"])
    if path == ".":
        place = shlex.quote(subject.run.root)
        raise CannotRepairError(
            "a directory is renamed as a part of its run", f"`ckpt set-step {place} {step} --rename`, or repair the run"
        )
    folder, _, name = path.rpartition("/")
    new = "/".join(filter(None, (folder, _NUMBER.sub(str(step), name))))
    if new in subject.run.listing.files or look(os.path.join(subject.run.root, new)) is not None:
        raise CannotRepairError(f"{new} exists", "two directories say that they are of one step: look at both")
    return Draft((MoveFile(path, new),), notes=("the counters in its files stay as they are",))


def align(fix: Fix, subject: Subject) -> Draft:
    """Plan to set the one part that disagrees to the step that the others, and the directory's name, agree on."""
    view = subject.opened()
    found = _counts(view)
    named = view.checkpoint.step
    votes = [*found.values(), *([named] if named is not None else [])]
    agreed = [step for step in dict.fromkeys(votes) if 2 * votes.count(step) > len(votes)]
    wrong = [role for role, step in found.items() if agreed and step != agreed[0]]
    if len(agreed) != 1 or len(wrong) != 1 or len(found) < 2:
        said = ", ".join(f"{role.value} {step:,}" for role, step in found.items())
        name = f"the name {named:,}, " if named is not None else ""
        raise CannotRepairError(f"no step has a majority: {name}{said}", _WAY_OUT)
    step, role = agreed[0], wrong[0]
    part = view.checkpoint.first(role)
    if part is None:
        raise CannotRepairError(f"{role.value} is inside another file", _WAY_OUT)
    settings, notes = _settings(view, part, step, found[role])
    try:
        planned = plan_values(view, settings)
    except EditRefusedError as error:
        raise CannotRepairError(str(error), _WAY_OUT) from None
    if not planned.actions:
        raise CannotRepairError("nothing would change", _WAY_OUT)
    changes = [(each.part.path, each.key, _short(each.old), _short(each.new)) for each in planned.changed]
    return Draft(planned.actions, tuple(changes[:8]), tuple(notes))


def _short(value: Any) -> Any:
    return f"{len(value):,} entries" if isinstance(value, list) else value


def _counts(view: View) -> dict[Role, int]:
    """Return the step that every part counts."""
    found: dict[Role, int] = {}
    trainer = (view.state or {}).get("global_step")
    if type(trainer) is int:
        found[Role.TRAINER_STATE] = trainer
    schedule = (view.scheduler or {}).get("last_epoch")
    if type(schedule) is int and "lr_lambdas" in (view.scheduler or {}):
        found[Role.SCHEDULER] = schedule
    counted = [int(value) for value in view.numbers("optimizer-step")]
    if counted:
        found[Role.OPTIMIZER] = max(counted)
    return found


def _settings(view: View, part: Part, step: int, old: int) -> tuple[list[Setting], list[str]]:
    if part.role is Role.TRAINER_STATE:
        return _trainer(view, part, step, old)
    if part.role is Role.SCHEDULER:
        made = [Setting(part, ("last_epoch",), step)]
        if type((view.scheduler or {}).get("_step_count")) is int:
            made.append(Setting(part, ("_step_count",), step + 1))
        rates = list(_rates(view))
        if rates and len(rates) == len((view.scheduler or {}).get("_last_lr") or ()):
            made += [Setting(part, ("_last_lr", place), rate) for place, rate in enumerate(rates)]
            return made, ["its present rates are those of the optimizer, which is at this step"]
        return made, []
    state = as_mapping((view.optimizer or {}).get("state")) or {}
    made = []
    for key, entry in state.items():
        counted = (as_mapping(entry) or {}).get("step")
        number = number_of(view, counted)
        if number is not None:
            new = max(0, number + step - old)
            made.append(Setting(part, ("state", key, "step"), new if isinstance(counted, int) else float(new)))
    return made, ["the moments stay those of the other step"]


def _rates(view: View) -> Iterator[float]:
    groups = (view.optimizer or {}).get("param_groups")
    for group in groups if isinstance(groups, list) else ():
        rate = number_of(view, (as_mapping(group) or {}).get("lr"))
        if rate is None:
            return
        yield float(rate)


def _trainer(view: View, part: Part, step: int, old: int) -> tuple[list[Setting], list[str]]:
    state = view.state or {}
    made = [Setting(part, ("global_step",), step)]
    notes = []
    history = state.get("log_history")
    logged = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    kept = [entry for entry in logged if not isinstance(entry.get("step"), int) or entry["step"] <= step]
    if len(kept) < len(logged):
        made.append(Setting(part, ("log_history",), kept))
    elif step > old:
        notes.append(f"its history ends before step {step:,}")
    epoch = next((entry["epoch"] for entry in kept if entry.get("step") == step and "epoch" in entry), None)
    if epoch is None and isinstance(state.get("epoch"), int | float) and old:
        epoch = float(state["epoch"]) * step / old
    if isinstance(epoch, float) and "epoch" in state:
        made.append(Setting(part, ("epoch",), epoch))
    return made, notes
