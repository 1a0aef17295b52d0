"""``ckpt set-step``: another step, in every file that counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ckpt_tools._version import __version__
from ckpt_tools.containers.pickle_names import several
from ckpt_tools.core.errors import EditRefusedError, UsageError
from ckpt_tools.edits import counters, finding, lambdas, loops, states
from ckpt_tools.edits.counters import ENGINE, OPTIMIZER, PARTS, SCHEDULER, TRAINER, Counted, Moved
from ckpt_tools.edits.schedulers import kind_of
from ckpt_tools.edits.states import Line, States, Wanted
from ckpt_tools.edits.values import number_of, plan_values, value_at
from ckpt_tools.layouts import plain
from ckpt_tools.layouts.view import View, counts_epochs
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.values import whole
from ckpt_tools.ops import change, naming
from ckpt_tools.ops.change import Opened
from ckpt_tools.ops.naming import Renaming
from ckpt_tools.ops.outlook import factor_of, outlook
from ckpt_tools.reports.edit import Change, EditReport

_APART = 32
"""Steps that several optimizers may be apart and still count as being of one step."""


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
    with change.held(opened):
        return _set(opened, step, tuple(only) or PARTS, rename, dry_run, settle, now_ns, command)


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
    finding.refuse_steps(view)
    found = finding.find(view)
    change.refuse_unfit(opened, found.parts, settle, now_ns)
    lines = states.lines(view, found)
    counted = [_counted(view, found, line) for line in lines] or [_counted(view, found, None)]
    old = _present(lines, counted)
    made = _trainer_moved(found, old, target)
    wanted = Wanted()
    _put(wanted, made, parts, found, None)
    for line, own in zip(lines, counted, strict=False):
        moved = _line_moved(view, line, own, target)
        _put(wanted, moved, parts, found, line)
        made.notes += moved.notes
    moving = naming.renaming(opened, target) if rename else None
    best = naming.own(found.trainer, moving.rename.name, moving.rename.to) if moving is not None else None
    if best is not None and found.trainer is not None:
        wanted.put(found.trainer, (naming.BEST,), best)
    planned = plan_values(view, wanted.settings, rehearse=dry_run)
    inner, retold = naming.tag(opened, _engine_step(made, target)) if rename else ([], [])
    to = moving.rename.to if moving is not None else None
    sealing, about = change.follow_seal(opened, [*planned.actions, *inner], target, to)
    actions = [*planned.actions, *(sealing if planned.actions or inner or moving is not None else ()), *inner]
    actions = moving.placed(actions) if moving is not None else actions
    title = f"step set from {old:,} to {target:,}" + (f", {moving.rename.name} renamed to {to}" if moving else "")
    kind = ", ".join(dict.fromkeys(kind_of(line.state) or "unknown" for line in lines if line.scheduler)) or None
    if not actions:
        same = f"every counter is at step {target:,} already" + ("" if old == target else ", or stays")
        return EditReport(__version__, opened.path, same, False, scheduler=kind, notes=tuple(made.notes))
    shown, ahead = outlook(view, lines, wanted, planned.changed, old, target) if found.optimizers else ((), [])
    notes = [*made.notes, *ahead, *_notes(opened, found, counted, target, old, moving)]
    done = change.carry_out(
        opened, title, actions, planned.changed, dry_run=dry_run, settle=settle, now_ns=now_ns, command=command,
        rename=moving.rename if moving is not None else None,
    )  # fmt: skip
    changes = (*change.told(planned.changed), *retold)
    changes = moving.told(changes) if moving is not None else changes
    return EditReport(
        __version__,
        opened.path,
        title,
        not dry_run,
        tuple(row if row.key != "log_history" else _shortened(row) for row in changes),
        shown,
        kind,
        done.files,
        done.bytes_written,
        (*dict.fromkeys(notes), *about, *done.notes),
        undo=done.path,
    )


def _shortened(row: Change) -> Change:
    """Return the cut of a log as the numbers of its entries."""
    return replace(row, old=f"{len(row.old):,} entries", new=f"{len(row.new):,} entries")


def _engine_step(made: Moved, target: int) -> int:
    """Return the step that DeepSpeed's own count says afterwards."""
    return next((new for part, keys, new in made.places if part == ENGINE and keys == ("global_steps",)), target)


# What is counted now ---------------------------------------------------------------------------------------


def _counted(view: View, found: States, line: Line | None) -> Counted:
    trainer = scheduler = epoch = None
    together = False
    if found.trainer is not None:
        names = ("global_step",) if found.trainer.part.role is Role.TRAINER_STATE else plain.STEP_KEYS
        values = (whole(number_of(view, found.trainer.value.get(name))) for name in names)
        trainer = next((value for value in values if value is not None), None)
        together = found.trainer.part.role in (Role.COMBINED, Role.CHUNKS)
        epoch = whole(number_of(view, found.trainer.value.get("epoch")))
    elif found.engine is not None:
        trainer = whole(found.engine.value.get("global_steps"))
    if line is not None and line.state is not None and kind_of(line.state) not in counters.EVALUATIONS:
        scheduler = counters.epoch_of(line.state)
    numbers = {}
    if line is not None and line.optimizer is not None:
        for keys in counters.counter_keys(line.optimizer.value):
            number = number_of(view, value_at(line.optimizer.value, keys))
            if number is not None and float(number).is_integer():
                numbers[keys] = number
    return Counted(trainer, scheduler, numbers, together, epoch)


def _present(lines: Sequence[Line], counted: Sequence[Counted]) -> int:
    """Return the step that the checkpoint is of.

    Raises:
        EditRefusedError: nothing counts, or several optimizers were not stepped together.
    """
    steps = [own.present for own in counted if own.present is not None]
    if not steps:
        raise EditRefusedError("nothing in this checkpoint counts steps")
    own = [each.furthest for each in counted if each.furthest is not None]
    if len(own) > 1 and max(*own, *steps) - min(own) > _APART:
        listed = ", ".join(
            f"{each.furthest:,} in {line.name}"
            for line, each in zip(lines, counted, strict=True)
            if each.furthest is not None
        )
        raise EditRefusedError(
            f"the optimizers were not stepped together ({listed}; the step is {max(steps):,}): how their counters"
            " would move cannot be told",
        )
    return max(steps)


# What it moves to ------------------------------------------------------------------------------------------


def _trainer_moved(found: States, old: int, target: int) -> Moved:
    made = Moved()
    if found.engine is not None:
        counters.move_engine(found.engine.value, plain.STEP_KEYS, old, target, made)
    trainer = found.trainer
    if trainer is not None and trainer.part.role is Role.TRAINER_STATE:
        counters.move_trainer(trainer.value, target, made)
    elif trainer is not None:
        stated = [name for name in plain.STEP_KEYS if whole(trainer.value.get(name)) is not None]
        made.places += [(TRAINER, (name,), target) for name in stated]
        loops.move_loops(trainer.value, target, made)
        counters.move_recipe(trainer.value, target, made)
        if "epoch" in trainer.value and loops.step_of(trainer.value) is None:
            made.notes.append("epoch stays: how many steps one has is stored nowhere")
    return made


def _line_moved(view: View, line: Line, counted: Counted, target: int) -> Moved:
    made = Moved()
    if line.optimizer is not None:
        counters.move_optimizer(counted, target, made)
    if line.state is not None:
        total = lambdas.total_steps(view.training_args, view.state)
        function = factor_of(view.training_args, total, line.state)
        counters.move_scheduler(line.state, line.groups, counted, target, function, made)
    return made


def _put(wanted: Wanted, made: Moved, parts: Sequence[str], found: States, line: Line | None) -> None:
    homes = {TRAINER: found.trainer, ENGINE: found.engine}
    if line is not None:
        homes = {OPTIMIZER: line.optimizer, SCHEDULER: line.scheduler}
    for part, keys, new in made.places:
        home = homes.get(part)
        if home is not None and (part if part != ENGINE else TRAINER) in parts:
            wanted.put(home, keys, new)


def _notes(
    opened: Opened, found: States, counted: Sequence[Counted], target: int, old: int, moving: Renaming | None
) -> Iterator[str]:
    if found.trainer is not None and found.trainer.part.role is Role.TRAINER_STATE:
        yield from counters.data_position(found.trainer.value, opened.view.training_args, target)
    if found.staying:
        yield f"what else is stored of the training stays as it is: {several(found.staying)}"
    of = max((own.furthest for own in counted if own.furthest is not None), default=old)
    if of != target:
        yield f"weights and moments remain those of step {of:,}"
    named = None if counts_epochs(opened.checkpoint) else opened.checkpoint.step
    if moving is not None:
        yield from moving.notes
    elif named is not None and named != target and not opened.checkpoint.is_file:
        yield f"the directory still says {named:,}, and trainers find the latest by name: --rename renames it"
    elif named is not None and named != target:
        yield f"the name of the file still says {named:,}, and is not changed: --rename is for directories"
