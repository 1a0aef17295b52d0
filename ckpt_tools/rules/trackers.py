"""CK13x: the files that name the checkpoint to resume from."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ckpt_tools.layouts.match import is_file
from ckpt_tools.layouts.tracking import Tracked, family, of_checkpoint, of_run
from ckpt_tools.model.checkpoint import Checkpoint, Run
from ckpt_tools.model.findings import BREAKS_RESUME, DEGRADES_RESUME, Fix, Purpose, Severity, Verdict
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_USABLE = (Verdict.READY, Verdict.DEGRADED)


def _family(run: Run, tracked: Tracked, context: Context) -> list[Checkpoint]:
    """Return the checkpoints that a tracker is for, from the newest down."""
    steps = {each.path: _step(each, context) for each in run.checkpoints}
    mine = family(tracked, run.checkpoints)
    return sorted(mine, key=lambda each: (steps[each.path] is not None, steps[each.path] or 0), reverse=True)


def _step(checkpoint: Checkpoint, context: Context) -> int | None:
    """Return the step of a name, or what is inside where the name tells none: ``model_final.pth``."""
    view = context.views.get(checkpoint.path) if checkpoint.step is None else None
    return view.step if view is not None else checkpoint.step


def _good(run: Run, tracked: Tracked, context: Context) -> Checkpoint | None:
    """Return the newest checkpoint that can be resumed; None also where nothing was judged."""
    judged = context.judged
    return next(
        (
            each
            for each in _family(run, tracked, context)
            if each.path in judged and judged[each.path][Purpose.RESUME] is Verdict.READY
        ),
        None,
    )


def _rewritten(run: Run, tracked: Tracked, context: Context, *, safe: bool = True) -> tuple[str | None, Fix | None]:
    """Return the help and the fix of a tracker that says nothing, or something wrong."""
    good = _good(run, tracked, context)
    if good is None:
        return None, None
    name = os.path.basename(good.path)
    target = good.parts[0].path if good.together else name
    text = tracked.tracker.text(name)
    if tracked.tracker.absolute:
        text = os.path.join(os.path.abspath(run.root), tracked.at(text))
    params = {"path": tracked.path, "target": target, "text": text}
    fix = Fix(f"let {tracked.tracker.name} name {name}", safe, "rewrite-tracker", params)
    return f"{name} is the newest that can be resumed", fix


def _saving(checkpoint: Checkpoint, context: Context) -> bool:
    judged = context.judged.get(checkpoint.path)
    return judged is not None and judged[Purpose.RESUME] is Verdict.IN_PROGRESS


def _silent(tracked: Tracked, listing_names: frozenset[str]) -> bool:
    """Whether a missing tracker is no loss: nobody looks for it, or another file stands in."""
    return not tracked.tracker.without or any(name in listing_names for name in tracked.tracker.others)


@rule("CK130", "tracker-missing", Severity.WARNING, Run)
def tracker_missing(run: Run, context: Context) -> Iterator[Hit]:
    """The file that names the checkpoint to resume from is missing: `latest`, `latest_checkpointed_iteration.txt`,
    `checkpoint` of TensorFlow, `last_checkpoint` of detectron2 and MMEngine.

    **Why it matters.** DeepSpeed returns nothing after a warning, Megatron warns, `tf.train.latest_checkpoint` gives
    None, detectron2 and MMEngine find nothing to resume: all then train from scratch beside checkpoints that are whole.

    **How to repair.** `ckpt repair --write RUN` writes it for the newest one that can be resumed.

    **Known exceptions.** Loops that save with `save_latest=False` and name a tag when they load. What
    `ds_to_universal` made has `latest_universal` instead. Of TensorFlow, detectron2 and MMEngine, which are passed on
    as files, a single one is no run; what `tf.train.Checkpoint.write` wrote, and what MMEngine saved into an `out_dir`,
    is named elsewhere or nowhere.
    """
    for tracked in of_run(run):
        if tracked.said is not None or _silent(tracked, frozenset(run.listing.files)):
            continue
        if all(_saving(each, context) for each in _family(run, tracked, context)):
            continue  # the first save has not come to it yet
        told, fix = _rewritten(run, tracked, context)
        yield Hit(
            f"{tracked.tracker.name}, which names the checkpoint to resume from, is missing",
            tracked.path,
            detail=(tracked.tracker.without,),
            help=told,
            fix=fix,
        )


@rule("CK131", "tracker-unreadable", Severity.ERROR, Run)
def tracker_unreadable(run: Run, context: Context) -> Iterator[Hit]:
    """The file that names the checkpoint to resume from is empty, or says something that cannot be a name.

    **Why it matters.** It is written in place and last, so a crash leaves it empty. DeepSpeed and Megatron stop with
    an error that does not speak of it.

    **How to repair.** `ckpt repair --write RUN` writes it for the newest one that can be resumed.

    **Known exceptions.** A line break at the end, also that of Windows, is no fault: loaders strip it.
    """
    for tracked in of_run(run, lost=False):
        if tracked.said is None or tracked.target is not None:
            continue
        told, fix = _rewritten(run, tracked, context)
        yield Hit(_what_it_says(tracked), tracked.path, help=told, fix=fix)


def _what_it_says(tracked: Tracked) -> str:
    if not (tracked.said or "").strip("\0 \t\r\n"):
        return "it is empty, and should name the checkpoint to resume from"
    return f'it says "{tracked.quoted}", which is no name of a checkpoint'


@rule("CK132", "tracker-dangling", Severity.ERROR, Run)
def tracker_dangling(run: Run, context: Context) -> Iterator[Hit]:
    """The file that names the checkpoint to resume from names one that is not there.

    **Why it matters.** The loader follows it and stops; it does not look for another one. TensorFlow's
    `latest_checkpoint` gives None instead, so that a training starts from scratch.

    **How to repair.** Copy the missing checkpoint again, or let `ckpt repair --write RUN` name the newest good one.
    """
    for tracked in of_run(run, lost=False):
        if tracked.target is None or tracked.there:
            continue
        told, fix = _rewritten(run, tracked, context)
        message = f"it names {tracked.target}, which is not here"
        yield Hit(message, tracked.path, detail=(tracked.tracker.dangling,), help=told, fix=fix)


@rule("CK133", "tracker-behind", Severity.NOTE, Run)
def tracker_behind(run: Run, context: Context) -> Iterator[Hit]:
    """The file that names the checkpoint to resume from does not name the newest one.

    **Why it matters.** A resume goes on from the one that is named. A save that was killed before its last act leaves
    this, and so does somebody who went back on purpose.

    **How to repair.** Nothing, if it was meant; otherwise `ckpt repair --write --unsafe RUN` names the newest good one.

    **Known exceptions.** A warning where a newer one is whole; a note where the newer ones are not.
    """
    for tracked in of_run(run, lost=False):
        named = _named(run, tracked)
        newer = [each for each in _family(run, tracked, context) if named is not None and _later(each, named, context)]
        if named is None or not newer or not tracked.tracker.followed:
            continue
        whole = [
            each
            for each in newer
            if each.path in context.judged and context.judged[each.path][Purpose.RESUME] in _USABLE
        ]
        newest = os.path.basename((whole or newer)[0].path)
        _, fix = _rewritten(run, tracked, context, safe=False) if whole else (None, None)
        yield Hit(
            f"it names {tracked.target}; {newest} is newer{' and whole' if whole else ''}",
            tracked.path,
            detail=(f"a resume goes on from {tracked.target}",),
            fix=fix,
            severity=Severity.WARNING if whole else None,
        )


def _named(run: Run, tracked: Tracked) -> Checkpoint | None:
    return next((each for each in run.checkpoints if tracked.means(each)), None)


def _later(one: Checkpoint, other: Checkpoint, context: Context) -> bool:
    first, second = _step(one, context), _step(other, context)
    return first is not None and second is not None and first > second


@rule("CK134", "tracker-names-broken", Severity.ERROR, Run)
def tracker_names_broken(run: Run, context: Context) -> Iterator[Hit]:
    """The file that names the checkpoint to resume from names one that cannot be resumed.

    **Why it matters.** DeepSpeed's rank 0 may write `latest` while other ranks still save, so that it can name a save
    that did not end. The loader takes what it names, whatever else is there.

    **How to repair.** `ckpt repair --write RUN` names the newest good one.
    """
    for tracked in of_run(run, lost=False):
        named = _named(run, tracked)
        if named is None or named.path not in context.judged or not tracked.tracker.followed:
            continue
        if context.judged[named.path][Purpose.RESUME] is not Verdict.BROKEN:
            continue
        told, fix = _rewritten(run, tracked, context)
        view = context.views.get(named.path)
        unknown = bool(named.listing.errors or (view is not None and view.errors))
        detail = () if told else ("no other checkpoint of the run can",)
        yield Hit(
            f"it names {tracked.target}, which cannot be {'read' if unknown else 'resumed'}",
            tracked.path,
            detail=("it may be whole: look at its permissions, and at the disk, first",) if unknown else detail,
            related=(named.path,),
            help=told,
            fix=None if unknown else fix,
        )


@rule("CK135", "inner-tracker-invalid", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def inner_tracker_invalid(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """`latest` inside of a checkpoint is missing, empty, or names a directory that is not there.

    **Why it matters.** The Trainer lets DeepSpeed load the tag that `latest` names, and stops with `ValueError` where
    nothing was loaded; Lightning does the same.

    **How to repair.** `ckpt repair --write` writes the name of the one tag directory that is there.

    **Known exceptions.** accelerate's `load_state` names the tag itself and does not look at the file.
    """
    if is_file(context.run) or checkpoint.layout == "accelerate":
        return
    for tracked in of_checkpoint(checkpoint):
        if tracked.there or (tracked.said is None and _silent(tracked, frozenset(checkpoint.listing.files))):
            continue
        if tracked.said is None:
            message = f"{tracked.tracker.name}, which names the part to load, is missing"
        elif tracked.target is None:
            message = _what_it_says(tracked)
        else:
            message = f"it names {tracked.target}, which is not here"
        found = sorted(_tags(checkpoint, tracked))
        if not found:  # nothing was saved that it could name: told by what the save lacks
            continue
        params = {"path": tracked.path, "target": found[-1][1], "text": tracked.tracker.text(found[-1][1])}
        title = f"let {tracked.tracker.name} name {found[-1][1]}"
        fix = Fix(title, len(found) == 1, "rewrite-tracker", params)
        yield Hit(message, tracked.path, detail=("a resume would stop: nothing was loaded",), fix=fix)


def _tags(checkpoint: Checkpoint, tracked: Tracked) -> Iterator[tuple[int, str]]:
    """Yield number and name of the directories that an inner tracker may name: those with files of its layout."""
    held = (part.path.partition("/") for part in checkpoint.parts if part.layout == tracked.layout.name)
    for name in dict.fromkeys(name for name, inside, _ in held if inside):
        yield tracked.layout.number(name) or 0, name


@rule("CK136", "inner-tracker-behind", Severity.WARNING, Checkpoint, impact=DEGRADES_RESUME)
def inner_tracker_behind(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A checkpoint holds the states of two steps, and `latest` names the older one.

    **Why it matters.** The model and the optimizer of the older step are loaded, with the trainer's counters of the
    newer one. Copying one checkpoint over another leaves this.

    **How to repair.** If the newer one is meant, write its name into `latest`.
    """
    for tracked in of_checkpoint(checkpoint):
        named = tracked.layout.number(tracked.target) if tracked.target is not None and tracked.there else None
        newer = [(number, name) for number, name in _tags(checkpoint, tracked) if named is not None and number > named]
        if newer:
            yield Hit(f"it names {tracked.target}, and {max(newer)[1]} is here too", tracked.path)


@rule("CK137", "world-size-fixed", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def world_size_fixed(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """It can be resumed by the number of ranks that wrote it alone, and another number is planned (`--world-size`).

    **Why it matters.** Every rank looks for its own file. With fewer ranks a part of the state is left out in silence;
    with more, those without a file stop.

    **How to repair.** Resume with the number that wrote it, or load it so and save it in a form that can be cut anew.

    **Known exceptions.** What torch.distributed.checkpoint saves with one `.metadata` is cut anew for any number of
    ranks. DeepSpeed's ZeRO has a rule of its own.
    """
    wanted = context.settings.world_size
    fixed = [each for each in context.view.assemblies if wanted is not None and not each.reshardable]
    for place, written in dict.fromkeys((each.place, each.world_size) for each in fixed):
        if written is not None and written != wanted:
            yield Hit(f"{written:,} ranks wrote it, and only as many can load it: not {wanted:,}", place)


RULES: tuple[Rule, ...] = (
    tracker_missing,
    tracker_unreadable,
    tracker_dangling,
    tracker_behind,
    tracker_names_broken,
    inner_tracker_invalid,
    inner_tracker_behind,
    world_size_fixed,
)
