"""CK6xx: what only shows when the checkpoints of a run are seen together."""

from __future__ import annotations

import ntpath
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise

from ckpt_tools.layouts import by_name
from ckpt_tools.layouts.match import beside, is_export, is_file, is_newest
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Run
from ckpt_tools.model.findings import Fix, Severity
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_MEASURES = ("loss", "eval_loss")
_HOUR = 3600 * 10**9
_ABSOLUTE = re.compile(r"/|\\\\|[A-Za-z]:[\\/]")


def _groups(run: Run) -> list[list[Checkpoint]]:
    """Return the checkpoints by the training that wrote them, each in ascending order of step."""
    made: dict[str, list[Checkpoint]] = {}
    for checkpoint in run.checkpoints:
        if not is_export(run, checkpoint) and checkpoint.step is not None:
            made.setdefault(os.path.dirname(checkpoint.path), []).append(checkpoint)
    return list(made.values())


def _name(checkpoint: Checkpoint, run: Run) -> str:
    return os.path.basename(os.path.abspath(run.root) if checkpoint.path == "." else checkpoint.path)


@rule("CK601", "mixed-runs", Severity.WARNING, Run)
def mixed_runs(run: Run, context: Context) -> Iterator[Hit]:
    """Two checkpoints of one directory come from different trainings: the log of one contradicts the log of the other.

    **Why it matters.** An output directory was used again. A resume takes the highest number, which may be of the old
    training; a rotation (`save_total_limit`) may delete the new checkpoints first.

    **How to repair.** Move the checkpoints of one training elsewhere.

    **Known exceptions.** Told by `log_history` alone, never by times: a checkpoint carries the history of all before it
    word for word. A history whose beginning was lost is compared from where it begins. After going back to an earlier
    checkpoint the later ones of the first attempt are reported until they are written again.
    """
    for checkpoints in _groups(run):
        for lower, higher in pairwise(checkpoints):
            contradiction = _contradiction(context.views[lower.path], context.views[higher.path])
            if contradiction:
                yield Hit(
                    f"{lower.path} and {higher.path} are of different trainings",
                    detail=(contradiction, *_younger(run, lower, higher)),
                    related=(lower.path, higher.path),
                )


def _contradiction(lower: View, higher: View) -> str | None:
    """Return what the log of the higher checkpoint says otherwise about the steps up to the lower one."""
    if lower.state is None or higher.state is None or lower.step is None:
        return None
    early, late = _logged(lower.state), _logged(higher.state)
    if not early or not late:
        return None
    spacing = higher.state.get("logging_steps")
    begins = min(step for step, _ in late)
    if isinstance(spacing, int) and begins <= spacing:
        begins = 0
    for (step, measure), value in sorted(early.items()):
        if step > lower.step or step < begins:
            continue
        other = late.get((step, measure))
        if other is not None and other != value:
            return f"{measure} at step {step:,}: {value:.6g} in the one, {other:.6g} in the other"
        if other is None and measure == "loss":
            return f"the one logged step {step:,}, and the other, which is further, did not"
    return None


def _logged(state: Mapping[object, object]) -> dict[tuple[int, str], float]:
    """Return the measures of a log by step and name, NaN left out."""
    history = state.get("log_history")
    found: dict[tuple[int, str], float] = {}
    for entry in history if isinstance(history, list) else ():
        step = entry.get("step") if isinstance(entry, dict) else None
        if not isinstance(step, int):
            continue
        for measure in _MEASURES:
            value = entry.get(measure)
            if isinstance(value, int | float) and value == value:
                found[step, measure] = value
    return found


def _younger(run: Run, lower: Checkpoint, higher: Checkpoint) -> Iterator[str]:
    times = [run.listing.files.get(checkpoint.path) for checkpoint in (lower, higher)]
    if times[0] and times[1] and times[0].mtime_ns > times[1].mtime_ns + _HOUR:
        hours = (times[0].mtime_ns - times[1].mtime_ns) / _HOUR
        yield f"{lower.path} is the newer directory, by {hours:,.0f} hours"


@rule("CK602", "best-model-missing", Severity.NOTE, Run)
def best_model_missing(run: Run, context: Context) -> Iterator[Hit]:
    """The newest checkpoint names a best checkpoint that is not where it says.

    **Why it matters.** transformers 5.23 sets the value to null when resuming. Older versions warn when they are to
    load the best model at the end; some stop there with `FileNotFoundError`, after all the training.

    **How to repair.** Put the checkpoint back, or set `best_model_checkpoint` to null. Where only the directory was
    moved, the path can be made to fit.

    **Known exceptions.** null is no fault. Rotation, or copying one checkpoint alone, leaves such a name behind.
    """
    for checkpoints in [list(run.checkpoints)] if run.single else _groups(run):
        newest = next((c for c in reversed(checkpoints) if context.views[c.path].state is not None), None)
        best = (context.views[newest.path].state or {}).get("best_model_checkpoint") if newest else None
        if newest is None or not isinstance(best, str) or not best or is_file(run):
            continue
        name = ntpath.basename(best.rstrip("/\\"))
        names = {_name(newest, run), *(other for other, _ in beside(run, newest))}
        place = posixpath.join("" if newest.path == "." else newest.path, "trainer_state.json")
        if name not in names:
            yield Hit(f"the best checkpoint, {name}, is not here", place, detail=(f"the state names {best}",))
        elif not _leads_to(best, name, run):
            there = os.path.join(run.root if not run.single else os.path.dirname(run.root.rstrip("/")), name)
            params = {"path": place, "key": "best_model_checkpoint", "value": there}
            fix = Fix(f"set best_model_checkpoint to {there}", False, "set-best", params)
            yield Hit(
                f"the best checkpoint, {name}, is named by the path of another place",
                place,
                detail=(f"the state names {best}",),
                fix=fix,
            )


def _leads_to(best: str, name: str, run: Run) -> bool:
    """Return whether a path can mean the checkpoint called ``name`` of this run, by its text alone."""
    home = os.path.abspath(os.path.dirname(os.path.abspath(run.root)) if run.single else run.root)
    if _ABSOLUTE.match(best):
        return posixpath.normpath(best) == os.path.join(home, name)
    above = posixpath.basename(posixpath.dirname(posixpath.normpath(best)))
    return above in ("", ".", "..", os.path.basename(home)) or posixpath.normpath(best) == name


@rule("CK603", "nothing-left", Severity.NOTE, Checkpoint)
def nothing_left(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The newest checkpoint is at the last step that was planned.

    **Why it matters.** A resume with the same arguments ends at once. That is how a finished run looks.

    **How to repair.** To train on, raise `num_train_epochs` or `max_steps`.
    """
    state = context.view.state or {}
    step, last = state.get("global_step"), state.get("max_steps")
    if is_file(context.run) or is_export(context.run, checkpoint) or not isinstance(step, int):
        return
    if isinstance(last, int) and 0 < last <= step and is_newest(context.run, checkpoint):
        yield Hit(f"step {step:,} of {last:,}: nothing left to train")


@rule("CK604", "rotation-risk", Severity.NOTE, Run)
def rotation_risk(run: Run, context: Context) -> Iterator[Hit]:
    """By the times of the directories the newest checkpoint is the oldest, and old checkpoints are to be deleted.

    **Why it matters.** With `save_total_limit` most versions of the Trainer delete the directory with the oldest
    time, whatever its number is. Copying or an edit may have changed the times.

    **How to repair.** Set the times in the order of steps, the oldest first: `touch checkpoint-500`, then the next.

    **Known exceptions.** Times mean little after a copy or a clone: only told when the newest is behind every other one
    by more than an hour, and the arguments have a limit.
    """
    for checkpoints in _groups(run):
        if len(checkpoints) < 2 or checkpoints[0].layout != "hf-trainer":
            continue
        entries = [run.listing.files.get(checkpoint.path) for checkpoint in checkpoints]
        times = [entry.mtime_ns for entry in entries if entry is not None]
        limit = context.views[checkpoints[-1].path].training_args.get("save_total_limit")
        if len(times) == len(checkpoints) and isinstance(limit, int) and times[-1] < min(times[:-1]) - _HOUR:
            behind = (min(times[:-1]) - times[-1]) / _HOUR
            yield Hit(
                "the next rotation would delete this one first, the newest",
                checkpoints[-1].path,
                detail=(f"its directory is older than all others by {behind:,.0f} hours", f"save_total_limit {limit}"),
            )


@rule("CK605", "duplicate-step", Severity.WARNING, Run)
def duplicate_step(run: Run, context: Context) -> Iterator[Hit]:
    """Two directories stand for one step: `checkpoint-900` and `checkpoint-0900`.

    **Why it matters.** Which of the two a trainer takes depends on the order in which the system lists them.

    **How to repair.** Rename the one that is not meant, to a name that does not begin with `checkpoint-`.

    **Known exceptions.** Checkpoints that are files are named by whoever resumes: Lightning's `step=6-v1.ckpt` beside
    `step=6.ckpt`, or a loop's `model_6.pt` and `optimizer_6.pt`, mean no harm. So does
    `global_step4_universal` beside the `global_step4` that DeepSpeed made it from.
    """
    for checkpoints in _groups(run):
        for first, second in pairwise(checkpoints):
            single = by_name(first.layout).single and by_name(second.layout).single
            converted = f"{first.path}_universal" == second.path
            if first.step == second.step and not single and not converted:
                yield Hit(f"{first.path} and {second.path} are the same step", related=(first.path, second.path))


@rule("CK606", "padded-names", Severity.NOTE, Run)
def padded_names(run: Run, context: Context) -> Iterator[Hit]:
    """Some checkpoints are numbered with leading zeros and others without.

    **Why it matters.** The Trainer and this tool go by the number. Scripts that sort names as text take another one for
    the newest.

    **How to repair.** Rename them to the form without zeros, which is the Trainer's.
    """
    for checkpoints in _groups(run):
        names = [_name(checkpoint, run) for checkpoint in checkpoints]
        if names != sorted(names) and any(re.search(r"[-_]0\d", name) for name in names):
            yield Hit(f"as text the newest would be {max(names)}; by number it is {names[-1]}")


RULES: tuple[Rule, ...] = (
    mixed_runs,
    best_model_missing,
    nothing_left,
    rotation_risk,
    duplicate_step,
    padded_names,
)
