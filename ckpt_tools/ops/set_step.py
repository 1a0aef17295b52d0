"""``ckpt set-step``: another step, in every file that counts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ckpt_tools._version import __version__
from ckpt_tools.core.errors import EditRefusedError, UsageError
from ckpt_tools.core.listing import FileStat
from ckpt_tools.edits import counters, lambdas, states
from ckpt_tools.edits.counters import OPTIMIZER, PARTS, SCHEDULER, TRAINER, Counted, Moved
from ckpt_tools.edits.journal import home_of
from ckpt_tools.edits.schedulers import kind_of
from ckpt_tools.edits.states import State, States
from ckpt_tools.edits.values import Setting, ValuePlan, number_of, plan_values, value_at
from ckpt_tools.layouts import plain
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.plan import Action, MoveFile
from ckpt_tools.model.values import as_mapping, whole
from ckpt_tools.ops import change, reseal
from ckpt_tools.ops.change import Opened, Rename
from ckpt_tools.reports.edit import Change, EditReport

_NUMBER = re.compile(r"\d+(?!.*\d)")
_POINTER = "best_model_checkpoint"


def set_step(
    path: str,
    step: int,
    *,
    only: Sequence[str] = (),
    rename: bool = False,
    dry_run: bool = False,
    settle: float = 60.0,
    now_ns: int | None = None,
    command: str = "",
) -> EditReport:
    """Make a checkpoint say that it is of another step.  Weights and moments stay those of the old one.

    Args:
        path: a checkpoint: a directory, or a file that holds everything.
        step: the step that it shall be of.
        only: of ``trainer-state``, ``scheduler`` and ``optimizer`` those that are changed; all when empty.
        rename: also rename the directory, and what names it.
        dry_run: say what would be changed, and check that it can be.
        settle: see ``verify``; a checkpoint that is being written is refused.
        now_ns: the clock, for tests.
        command: the command line, for the journal.

    Raises:
        NothingFoundError: no such path, or no checkpoint there.
        UsageError: the arguments make no sense, or the path is not one checkpoint.
        EditRefusedError: a file is damaged or being written, or nothing counts steps here.
        EditError: the system refused something.
    """
    if step < 0 or not set(only) <= set(PARTS):
        raise UsageError(f"a step is 0 or more, and --only is one of {', '.join(PARTS)}")
    opened = change.open_checkpoint(path)
    try:
        return _set(opened, step, tuple(only) or PARTS, rename, dry_run, settle, now_ns, command)
    finally:
        opened.view.close()


def _set(
    opened: Opened,
    target: int,
    parts: tuple[str, ...],
    rename: bool,
    dry_run: bool,
    settle: float,
    now_ns: int | None,
    command: str,
) -> EditReport:
    view = opened.view
    found = states.find(view)
    here = {OPTIMIZER: found.optimizer, SCHEDULER: found.scheduler, TRAINER: found.trainer}
    change.refuse_unfit(opened, [state.part for state in here.values() if state is not None], settle, now_ns)
    counted = _counted(view, found)
    old = counted.present if counted.present is not None else opened.checkpoint.step
    if counted.present is None:
        raise EditRefusedError("nothing in this checkpoint counts steps")
    made = _moved(opened, found, counted, target)
    settings = []
    for part, keys, new in made.places:
        state = here[part]
        if state is not None and part in parts:
            settings.append(Setting(state.part, (*state.keys, *keys), new))
    moving = _renamed(opened, target) if rename else None
    pointers = _pointers(moving) if moving is not None else []
    if moving is not None and found.trainer is not None:
        settings += _own_pointer(found.trainer, moving)
    planned = plan_values(view, settings, rehearse=dry_run)
    sealing, about = reseal.follow(opened.run, view, planned.actions, target, moving.to if moving is not None else None)
    actions = _placed([*planned.actions, *(sealing if planned.actions or moving else ())], moving)
    for place, other in pointers:
        actions += [replace(action, path=f"{place}/{action.path}") for action in other.actions]
    if moving is not None:
        actions.append(MoveFile(moving.name, moving.to))
    notes = [*made.notes, *_notes(opened, found, counted, target, old, moving)]
    title = f"step set from {old:,} to {target:,}" + (f", {moving.name} renamed to {moving.to}" if moving else "")
    kind = kind_of(found.scheduler.value) if found.scheduler is not None else None
    if not actions:
        return EditReport(
            __version__, opened.path, f"every counter is at step {target:,} already", False, scheduler=kind
        )
    done = change.carry_out(
        opened, title, actions, planned.changed,
        dry_run=dry_run, settle=settle, now_ns=now_ns, command=command, rename=moving,
    )  # fmt: skip
    changed = list(change.told(planned.changed))
    for place, other in pointers:
        changed += [replace(row, path=f"{place}/{row.path}") for row in change.told(other.changed)]
    return EditReport(
        __version__,
        opened.path,
        title,
        not dry_run,
        tuple(row if row.key != "log_history" else _shortened(row) for row in changed),
        (),
        kind,
        done.files,
        done.bytes_written,
        (*notes, *about, *done.notes),
    )


def _shortened(row: Change) -> Change:
    """Return the cut of a log as the numbers of its entries."""
    return replace(row, old=f"{len(row.old):,} entries", new=f"{len(row.new):,} entries")


def _counted(view: View, found: States) -> Counted:
    trainer = scheduler = None
    if found.trainer is not None:
        names = ("global_step",) if found.trainer.part.role is Role.TRAINER_STATE else plain.STEP_KEYS
        values = (whole(number_of(view, found.trainer.value.get(name))) for name in names)
        trainer = next((value for value in values if value is not None), None)
    if found.scheduler is not None and kind_of(found.scheduler.value) not in counters.EVALUATIONS:
        scheduler = whole(found.scheduler.value.get("last_epoch"))
    numbers = {}
    if found.optimizer is not None:
        for keys in counters.counter_keys(found.optimizer.value):
            number = number_of(view, value_at(found.optimizer.value, keys))
            if number is not None and float(number).is_integer():
                numbers[keys] = number
    return Counted(trainer, scheduler, numbers)


def _moved(opened: Opened, found: States, counted: Counted, target: int) -> Moved:
    view, made = opened.view, Moved()
    if found.trainer is not None and found.trainer.part.role is Role.TRAINER_STATE:
        counters.move_trainer(found.trainer.value, target, made)
    elif found.trainer is not None:
        stated = [name for name in plain.STEP_KEYS if whole(found.trainer.value.get(name)) is not None]
        made.places += [(TRAINER, (name,), target) for name in stated]
        if "epoch" in found.trainer.value:
            made.notes.append("epoch stays: how many steps one has is stored nowhere")
    if found.optimizer is not None:
        counters.move_optimizer(counted, target, made)
    if found.scheduler is not None:
        state = states.numbers(view, found.scheduler.value)
        own = states.numbers(view, found.optimizer.value).get("param_groups") if found.optimizer is not None else []
        groups = [group for group in own if isinstance(group, dict)] if isinstance(own, list) else []
        total = lambdas.total_steps(view.training_args, view.state)
        factor, _ = lambdas.factor_of(view.training_args, total)
        counters.move_scheduler(state, groups, counted, target, factor, made)
    return made


def _notes(
    opened: Opened, found: States, counted: Counted, target: int, old: int | None, moving: Rename | None
) -> Iterator[str]:
    if found.trainer is not None and found.trainer.part.role is Role.TRAINER_STATE:
        yield from counters.data_position(found.trainer.value, opened.view.training_args, target)
    of = counted.furthest if counted.furthest is not None else old
    if of != target:
        yield f"weights and moments remain those of step {of:,}"
    named = opened.checkpoint.step
    if named is not None and named != target and moving is None and not opened.checkpoint.is_file:
        yield f"the directory still says {named:,}, and trainers find the latest by name: --rename renames it"


# Another name ----------------------------------------------------------------------------------------------


def _renamed(opened: Opened, target: int) -> Rename | None:
    if opened.checkpoint.is_file or opened.checkpoint.step is None:
        raise UsageError("--rename is for directories that are named by their step")
    root = opened.home.root
    parent, name = os.path.split(root)
    to = _NUMBER.sub(str(target), name)
    if to == name:
        return None
    files: dict[str, FileStat] = {f"{name}/{path}": entry for path, entry in opened.checkpoint.listing.files.items()}
    return Rename(home_of(parent), files, name, to)


def _placed(actions: Sequence[Action], moving: Rename | None) -> list[Action]:
    if moving is None:
        return list(actions)
    return [replace(action, path=f"{moving.name}/{action.path}") for action in actions]


def _own_pointer(trainer: State, moving: Rename) -> Iterator[Setting]:
    old = trainer.value.get(_POINTER)
    if isinstance(old, str) and os.path.basename(os.path.normpath(old)) == moving.name:
        yield Setting(trainer.part, (_POINTER,), os.path.join(os.path.dirname(os.path.normpath(old)), moving.to))


def _pointers(moving: Rename) -> list[tuple[str, ValuePlan]]:
    """Return the changes of what names the directory in the other checkpoints of the run."""
    found = []
    run = open_run(moving.home.root)
    for checkpoint in run.checkpoints:
        if checkpoint.path in (".", moving.name):
            continue
        view = View(checkpoint)
        settings = [
            setting
            for part in checkpoint.of(Role.TRAINER_STATE)
            for content in (view.content(part),)
            if content is not None and (value := as_mapping(content.value)) is not None
            for setting in _own_pointer(State(part, (), value), moving)
        ]
        if settings:
            planned = plan_values(view, settings)
            sealing, _ = reseal.follow(run, view, planned.actions)
            found.append((checkpoint.path, replace(planned, actions=(*planned.actions, *sealing))))
        view.close()
    return found
