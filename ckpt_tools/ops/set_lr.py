"""``ckpt set-lr``: another learning rate, in every place that decides it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from math import isclose

from ckpt_tools._version import __version__
from ckpt_tools.core.errors import EditRefusedError, UsageError
from ckpt_tools.edits import finding, lambdas, schedulers, states, states_zero
from ckpt_tools.edits.schedulers import OPTIMIZER, Request, Rescaled
from ckpt_tools.edits.states import Line, Wanted
from ckpt_tools.edits.values import plan_values
from ckpt_tools.model.values import real
from ckpt_tools.ops import change
from ckpt_tools.ops.change import Opened
from ckpt_tools.ops.outlook import outlook
from ckpt_tools.reports.edit import EditReport
from ckpt_tools.reports.units import human_rate

Scaled = list[tuple[Line, Rescaled]]
"""What changes, optimizer by optimizer; those of which nothing is meant are left out."""


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
        groups: the parameter groups that are meant, counted through all optimizers; all when empty.
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
    with change.held(opened):
        request = Request(rate, peak, scale, tuple(groups), keep_floor, force)
        return _set(opened, request, dry_run, settle, now_ns, command)


def _set(
    opened: Opened, request: Request, dry_run: bool, settle: float, now_ns: int | None, command: str
) -> EditReport:
    view = opened.view
    finding.refuse_rates(view)
    found = finding.find(view)
    if not found.optimizers:
        raise EditRefusedError(
            "there is no optimizer here, so a resume takes its rate from the command line", hint="give it there"
        )
    rated = replace(found, trainer=None)
    change.refuse_unfit(opened, rated.parts, settle, now_ns)
    lines = states.lines(view, rated)
    for line in lines:
        if not line.groups:
            raise EditRefusedError(f"{line.name}: has no param_groups that could be read; nothing was changed")
    named = view.training_args.get("lr_scheduler_type") in lambdas.SCHEDULES
    scaled = _rescaled(lines, request, named)
    wanted = Wanted()
    for line, made in scaled:
        for file, keys, number in made.places:
            home = line.optimizer if file == OPTIMIZER else line.scheduler
            if home is not None:
                wanted.put(home, keys, number)
    planned = plan_values(view, wanted.settings, rehearse=dry_run)
    kind = ", ".join(dict.fromkeys(schedulers.kind_of(line.state) or schedulers.UNKNOWN for line in lines))
    if not planned.changed:
        same = ("every place has this rate already",)
        return EditReport(__version__, opened.path, "the learning rate stays", False, scheduler=kind, notes=same)
    title = _title(lines, scaled[0][1].factor, request)
    shown, notes = outlook(view, lines, wanted, planned.changed, change.step_of(opened, found.optimizers) or 0)
    sealing, about = change.follow_seal(opened, planned.actions)
    actions = [*planned.actions, *sealing]
    done = change.carry_out(
        opened, title, actions, planned.changed, dry_run=dry_run, settle=settle, now_ns=now_ns, command=command
    )
    told = dict.fromkeys(note for line, made in scaled for note in (*made.notes, *_taken(opened, made, request)))
    told |= dict.fromkeys(states_zero.told(view) if found.engine is not None else ())
    return EditReport(
        __version__,
        opened.path,
        title,
        not dry_run,
        change.told(planned.changed),
        shown,
        kind,
        done.files,
        done.bytes_written,
        (*notes, *told, *about, *done.notes),
        undo=done.path,
    )


def _title(lines: Sequence[Line], factor: float, request: Request) -> str:
    which = f" of group{'s' if len(request.groups) > 1 else ''} {', '.join(map(str, request.groups))}"
    of = which if request.groups else ""
    if request.peak is not None:
        return f"base rate{of} set to {human_rate(request.peak)}: the schedule is scaled by {factor:.6g}"
    if request.scale is not None:
        return f"learning rate{of} scaled by {factor:.6g}"
    groups = [group for line in lines for group in line.groups]
    old = real(groups[request.groups[0] if request.groups else 0].get("lr")) or 0.0
    return f"learning rate{of} set from {human_rate(old)} to {human_rate(request.rate or 0.0)}"


# Several optimizers ----------------------------------------------------------------------------------------


def _rescaled(lines: Sequence[Line], request: Request, by_function: bool) -> Scaled:
    """Return what changes in every optimizer that is meant, the one that says by what factor first."""
    starts = [0, *accumulate(len(line.groups) for line in lines)]
    for number in request.groups:
        if not 0 <= number < starts[-1]:
            raise UsageError(f"there is no group {number}; there are {starts[-1]}, counted from 0")
    meant = []
    for start, line in zip(starts, lines, strict=False):
        own = tuple(number - start for number in request.groups if start <= number < start + len(line.groups))
        if own or not request.groups:
            leads = not request.groups or start <= request.groups[0] < start + len(line.groups)
            meant.append((not leads, line, replace(request, groups=own)))
    meant.sort(key=lambda each: each[0])
    scaled: Scaled = []
    for follows, line, own_request in meant:
        if follows:
            own_request = replace(own_request, rate=None, peak=None, scale=scaled[0][1].factor)
        scaled.append((line, schedulers.rescale(line.groups, line.state, own_request, by_function=by_function)))
    if not request.groups:
        _agree(lines, scaled)
    return scaled


def _agree(lines: Sequence[Line], scaled: Scaled) -> None:
    """Require that one rate for several optimizers means the same factor for all of them."""
    if all(isclose(made.factor, scaled[0][1].factor, rel_tol=1e-9) for _, made in scaled):
        return
    raise EditRefusedError(
        f"there are several optimizers, and their rates differ: {'; '.join(_counted(lines))}",
        hint="say which with `--group`, or scale all of them with `--scale`",
    )


def _counted(lines: Sequence[Line]) -> Iterator[str]:
    first = 0
    for line in lines:
        last = first + len(line.groups) - 1
        which = f"group {first}" if first == last else f"groups {first} to {last}"
        yield f"{which}, rate {human_rate(real(line.groups[0].get('lr')) or 0.0)}, in {line.name}"
        first = last + 1


# What a trainer does besides -------------------------------------------------------------------------------

_LLAMA_RECIPES = (
    "llama-recipes saves no scheduler: it makes its own at each start, which goes on from this rate where the optimizer"
    " is loaded"
)
_TORCHTUNE = (
    "torchtune saves no scheduler: it makes its own at each start, which goes on from `initial_lr` and the step"
)
_SCHEDULED_ANEW = {"llama-recipes": _LLAMA_RECIPES, "torchtune": _TORCHTUNE}


def _taken(opened: Opened, made: Rescaled, request: Request) -> list[str]:
    """Return what a trainer will still take from its command line."""
    arguments = opened.view.training_args
    if opened.view.state is None:
        layouts = opened.checkpoint.layouts if made.kind == schedulers.NONE else ()
        return [_SCHEDULED_ANEW[layout] for layout in layouts if layout in _SCHEDULED_ANEW]
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
