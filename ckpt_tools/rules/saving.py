"""CK1xx: saves that did not end, or have not ended yet, and what they leave behind."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from ckpt_tools.core.errors import NothingFoundError
from ckpt_tools.core.listing import Listing, scan
from ckpt_tools.layouts import by_name
from ckpt_tools.layouts.match import (
    is_export,
    is_file,
    is_newest,
    is_oldest,
    open_stray,
    others_have,
    run_directory,
    weights_only,
)
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Role, Run, Stray
from ckpt_tools.model.findings import (
    BREAKS_ALL,
    BREAKS_RESUME,
    DEGRADES_RESUME,
    Fix,
    Impact,
    Severity,
    Verdict,
)
from ckpt_tools.rules.base import Context, Hit, Rule, rule, unless_dead

_TEMPORARY = re.compile(r"\.tmp[0-9A-Za-z]{6}\Z")
_STEP = re.compile(r"tmp-checkpoint-(\d+)\Z")
_SAVING = Impact(Verdict.IN_PROGRESS, Verdict.IN_PROGRESS)


@rule("CK101", "save-interrupted", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def save_interrupted(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The part that a save writes last is missing, so the save did not end.

    **Why it matters.** The Trainer writes `trainer_state.json` last and picks the checkpoint with the highest number
    without looking inside: the resume dies with `FileNotFoundError`. accelerate writes `random_states_0.pkl` last;
    without it alone a resume works and randomness differs, without the optimizer before it `load_state` stops.

    **How to repair.** Resume from an older checkpoint (`ckpt latest RUN`) and set this one aside.

    **Known exceptions.** The export at the root of a finished run. Directories of loops that save weights alone: told
    by no checkpoint of the run having anything that only a resume reads (CK116).
    """
    layout = by_name(checkpoint.layout)
    if layout.commit is None or layout.commit not in context.view.unwritten or context.view.empty:
        return
    if is_file(context.run) or is_export(context.run, checkpoint):
        return
    missing = layout.usual(layout.commit)
    if layout.unfinished:
        yield Hit(
            f"the save did not end: {missing}, which is written last, is missing",
            detail=(
                layout.unfinished,
                *_progress(checkpoint, context),
                *_unnamed(checkpoint, context),
                *_oldest(checkpoint, context),
            ),
            help=_fall_back(context),
            impact=layout.need(layout.commit).missing,
        )
        return
    if weights_only(context.run, checkpoint):
        return
    if not context.view.elsewhere and not checkpoint.has(*layout.order):
        return
    detail = [*_progress(checkpoint, context), *_oldest(checkpoint, context)]
    if layout.name == "hf-trainer":
        detail.insert(0, f"a resume would stop: no such file {missing}")
        yield Hit(
            f"the save did not end: {missing}, which is written last, is missing",
            "",
            detail=tuple(detail),
            help=_fall_back(context),
        )
        return
    lost = [role for role in _STOPPING if role in context.view.unwritten]
    needed = next((role for role in lost if others_have(context.run, checkpoint, role)), None)
    if needed is not None and not context.view.elsewhere:
        yield Hit(
            f"the save did not end: {missing}, which is written last, is missing",
            detail=(f"load_state would stop: no such file {layout.usual(needed)}", *detail),
            help=_fall_back(context),
        )
        return
    yield Hit(
        f"the save may not have ended: {missing}, which is written last, is missing",
        detail=("a resume works, and randomness differs", *detail),
        severity=Severity.WARNING,
        impact=DEGRADES_RESUME,
    )


_STOPPING = (Role.OPTIMIZER, Role.SCHEDULER)
"""What accelerate's ``load_state`` asks for without looking: as many of them as the loop has prepared."""


def _progress(checkpoint: Checkpoint, context: Context) -> Iterator[str]:
    layout = by_name(checkpoint.layout)
    written = [role.value for role in layout.order if checkpoint.has(role)]
    wanted = [role for role in layout.order if role in context.view.unwritten]
    rest = [role.value for role in wanted if not layout.need(role).missing.harmless and role is not Role.SCALER]
    yield f"written: {', '.join(written) or context.view.elsewhere}; not there: {', '.join(rest)}"


def _unnamed(checkpoint: Checkpoint, context: Context) -> Iterator[str]:
    """Tell of metadata that was written, and not yet given its name."""
    if any(path.endswith(".metadata.tmp") for path in checkpoint.listing.files):
        yield f".metadata.tmp is there: `ckpt repair {shlex.quote(context.run.root)}` tells whether it is whole"


def _oldest(checkpoint: Checkpoint, context: Context) -> Iterator[str]:
    if is_oldest(context.run, checkpoint):
        yield "it is the oldest of its run: a deletion that was cut short leaves the same"


def _fall_back(context: Context) -> str | None:
    """Return where else to look; for a whole run the checkpoint itself is named when all are checked."""
    if not context.run.single:
        return None
    return f"`ckpt latest {shlex.quote(run_directory(context.run))}` finds the newest one that can be resumed"


@rule("CK109", "save-in-progress", Severity.ERROR, Checkpoint, impact=_SAVING)
def save_in_progress(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The newest checkpoint is unfinished, and a file in it changed a moment ago: it is being written.

    **Why it matters.** What is missing now may be there in a minute; nothing can be said of such a directory yet.
    `ckpt latest` passes it over, `ckpt repair` refuses it.

    **How to repair.** Wait, and look again. `--settle 0` looks at it as it is, `--allow-in-progress` makes this a note.

    **Known exceptions.** A fresh copy has fresh times too, so a half copied checkpoint looks like one being written.
    """
    settings = context.settings
    if not settings.settle_ns or not _unfinished(checkpoint, context) or not is_newest(context.run, checkpoint):
        return
    age = _age(checkpoint, context)
    if age is not None and age < settings.settle_ns:
        detail = f"a file in it changed {age / 1e9:.0f} s ago; it counts as interrupted after "
        detail += f"{settings.settle_ns / 1e9:.0f} s of quiet"
    elif _grows(checkpoint.listing):
        detail = "it grew while it was looked at"
    else:
        return
    missing = by_name(checkpoint.layout).usual(by_name(checkpoint.layout).commit or Role.MARKER)
    yield Hit(
        "the checkpoint is being written",
        detail=(f"{missing}, which is written last, is not there yet", detail, unless_dead(context)),
        help=_fall_back(context),
        severity=Severity.NOTE if settings.allow_in_progress else None,
    )


def _unfinished(checkpoint: Checkpoint, context: Context) -> bool:
    layout = by_name(checkpoint.layout)
    if layout.commit is None or is_file(context.run) or is_export(context.run, checkpoint):
        return False
    return layout.commit in context.view.unwritten or checkpoint.has(Role.MARKER)


def _age(checkpoint: Checkpoint, context: Context) -> int | None:
    """Return for how long nothing in the directory has changed, in nanoseconds; clocks may disagree either way."""
    times = [entry.ctime_ns for entry in checkpoint.listing.files.values()]
    own = None if context.run.single else context.run.listing.files.get(checkpoint.path)
    if own is not None:
        times.append(own.ctime_ns)
    return min((abs(context.settings.now_ns - time) for time in times), default=None)


def _grows(listing: Listing) -> bool:
    try:
        again = scan(listing.root, depth=4).files
    except NothingFoundError:
        return False
    return {path: entry.size for path, entry in again.items() if entry.is_file} != {
        path: entry.size for path, entry in listing.files.items() if entry.is_file
    }


@rule("CK111", "empty-checkpoint", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def empty_checkpoint(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The checkpoint's directory has no file in it.

    **Why it matters.** The Trainer takes the highest number without looking inside, so an empty `checkpoint-9999` wins
    and the resume fails. A save that was killed at once leaves it, and so does a deletion that did not end.

    **How to repair.** Remove the directory (`rmdir`).
    """
    if context.view.empty and not is_file(context.run) and not checkpoint.listing.errors:
        yield Hit("the directory is empty", detail=tuple(_oldest(checkpoint, context)), help=_fall_back(context))


@rule("CK112", "staging-left-over", Severity.WARNING, Run)
def staging_left_over(run: Run, context: Context) -> Iterator[Hit]:
    """A staging directory (`tmp-checkpoint-*`) was not renamed to what it was meant to be.

    **Why it matters.** transformers 4.36 and 4.37 saved under this name and renamed at the end. A left-over holds a
    good checkpoint or half of one, and no trainer finds it.

    **How to repair.** If it is complete it can be renamed (`ckpt repair RUN`); otherwise set it aside.
    """
    for stray in run.strays:
        if stray.why != "staging":
            continue
        held = open_stray(run, stray)
        if held is not None and _recent(held, context):
            yield Hit("a save seems to be in progress here", stray.path, severity=Severity.NOTE)
            continue
        step = _complete(held) if held is not None else None
        target = f"checkpoint-{_number(stray) or step}"
        if step is None:
            yield Hit("left over by a save that did not end, and not complete", stray.path)
        elif target in run.listing.files:
            yield Hit(f"left over by a save; it looks complete, and {target} exists too", stray.path)
        else:
            renamed = {"from": stray.path, "to": target}
            fix = Fix(f"rename it to {target}", True, "restore-name", renamed)
            yield Hit(f"left over by a save; it looks complete, to step {step:,}", stray.path, fix=fix)


def _number(stray: Stray) -> int | None:
    match = _STEP.match(stray.path)
    return int(match.group(1)) if match else None


def _recent(held: Checkpoint, context: Context) -> bool:
    age = _age(held, context)
    return age is not None and age < context.settings.settle_ns


def _complete(held: Checkpoint) -> int | None:
    """Return the step of a staged checkpoint that has everything and whose files are readable, else None."""
    view = View(held)
    stated = (view.state or {}).get("global_step")
    if not isinstance(stated, int) or not (view.elsewhere or held.has(Role.WEIGHTS, Role.ADAPTER)):
        return None
    contents = [view.content(part) for part in held.parts if part.containers]
    readable = all(content is not None and content.readable for content in contents)
    shards = [part.shard for part in held.of(Role.WEIGHTS) if part.shard]
    whole = all(len([n for n, total in shards if total == of]) >= of for _, of in shards)
    return stated if readable and whole else None


@rule("CK113", "temporary-file", Severity.WARNING, Checkpoint)
def temporary_file(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A temporary file of safetensors (`.tmp` and six characters) was left behind.

    **Why it matters.** safetensors 0.8 writes beside the target and renames. A kill in between leaves a file of full
    length with a valid header and a tail of zeros: it takes space and must not be renamed by hand.

    **How to repair.** Remove it when no save is running.
    """
    for part in checkpoint.of(Role.TEMPORARY):
        if _TEMPORARY.search(part.path) and part.stat.is_file:
            size = f"{part.stat.size:,} bytes; loaders ignore it"
            fix = Fix("set it aside", False, "set-aside", {"path": part.path})
            yield Hit("a temporary file that a killed save left", part.path, detail=(size,), fix=fix)


@rule("CK114", "name-ignored", Severity.NOTE, Run)
def name_ignored(run: Run, context: Context) -> Iterator[Hit]:
    """An entry looks like a checkpoint, and no trainer takes it for one.

    **Why it matters.** Only directories called `checkpoint-` and digits are found when resuming. The Trainer's
    rotation (`save_total_limit`) uses the looser `checkpoint-*` and may delete a copy such as `checkpoint-100-bak`.

    **How to repair.** Give the directory a name that does not begin with `checkpoint-`, or a number.
    """
    for stray in run.strays:
        if stray.why == "not-a-directory":
            yield Hit(f"ignored: a {stray.stat.kind}, not a directory", stray.path)
        elif stray.why == "name":
            risk = ("a rotation by save_total_limit may delete it",) if stray.path.startswith("checkpoint-") else ()
            yield Hit("ignored: its name is not checkpoint-N", stray.path, detail=risk)


@rule("CK115", "incomplete-sentinel", Severity.ERROR, Checkpoint, impact=BREAKS_RESUME)
def incomplete_sentinel(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The Trainer's own mark of an unfinished save (`checkpoint-is-incomplete.txt`) is there.

    **Why it matters.** A save upon SIGTERM (`enable_jit_checkpoint`) makes this file first and removes it at the end.
    The resume code does not look at it and takes whatever is there.

    **How to repair.** Resume from an older checkpoint (`ckpt latest RUN`).
    """
    if is_file(context.run):
        return
    for part in checkpoint.of(Role.MARKER):
        weights = checkpoint.has(Role.WEIGHTS, Role.ADAPTER)
        after = checkpoint.has(Role.TRAINING_ARGS, Role.OPTIMIZER, Role.SCHEDULER, Role.RNG, Role.TRAINER_STATE)
        yield Hit(
            "the save was marked as incomplete, and the mark was never removed",
            part.path,
            detail=tuple(_progress(checkpoint, context)) if context.view.unwritten else (),
            help=_fall_back(context),
            impact=None if weights and after else BREAKS_ALL,
        )


RULES: tuple[Rule, ...] = (
    save_interrupted,
    save_in_progress,
    empty_checkpoint,
    staging_left_over,
    temporary_file,
    name_ignored,
    incomplete_sentinel,
)
