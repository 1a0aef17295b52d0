"""``ckpt latest``: which one can I resume from?"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

from ckpt_tools._version import __version__
from ckpt_tools.core.errors import NothingFoundError
from ckpt_tools.core.progress import SILENT, Progress
from ckpt_tools.layouts import tracking
from ckpt_tools.layouts.match import is_piece, open_run
from ckpt_tools.layouts.view import View, counts_epochs
from ckpt_tools.model.checkpoint import Checkpoint, Run
from ckpt_tools.model.findings import Finding, Purpose, Severity, Verdict
from ckpt_tools.ops import engine
from ckpt_tools.ops import load as loading
from ckpt_tools.reports.latest import LatestReport, Passed, TrackerSaid
from ckpt_tools.rules.base import Settings

MANY = 16
"""Of more files than these whose names tell no step, none is asked for it."""

_AGAIN = re.compile(r"(?:-v|hpc_ckpt_)(\d{1,18})\.ckpt\Z")
"""Names that count the saves at one step: the higher is the later."""


def latest(
    path: str,
    *,
    purpose: Purpose = Purpose.RESUME,
    load: bool = False,
    allow_degraded: bool = False,
    world_size: int | None = None,
    settle: float = 60.0,
    now_ns: int | None = None,
    progress: Progress = SILENT,
) -> LatestReport:
    """Return the newest checkpoint of a run that is good for ``purpose``, by number and never by time.

    Checkpoints are opened from the highest step down, and none older than the one returned is opened.

    Args:
        path: a run, or a single checkpoint.
        purpose: what it is wanted for.
        load: also load every file with its own library.
        allow_degraded: take one that loads although optimizer, scheduler or weights would start afresh.
        world_size: the number of ranks that a resume is planned for.
        settle: see ``verify``.
        now_ns: the clock, for tests.
        progress: where progress is announced.

    Raises:
        NothingFoundError: no such path, or no checkpoint there, or one file of many.
    """
    run = open_run(path)
    now = time.time_ns() if now_ns is None else now_ns
    settings = Settings(now, int(settle * 1e9), world_size=world_size)
    passed: list[Passed] = []
    unreadable: list[str] = []
    found: Checkpoint | None = None
    candidates = _candidates(run, purpose)
    trackers = tuple(tracking.of_run(run)) if purpose is Purpose.RESUME else ()
    if not candidates:
        raise NothingFoundError(f"{run.root}: no checkpoint found")
    if run.single and is_piece(candidates[0]):
        raise NothingFoundError(f"{run.root}: is one file of a checkpoint", hint="give the checkpoint, or the run")
    with ExitStack() as stack:
        loader = stack.enter_context(loading.Loader()) if load else None
        task = stack.enter_context(progress.task("checking", len(candidates), "checkpoint"))
        for checkpoint in candidates:
            view = View(checkpoint)
            engine.find_pending(view)
            if engine.may_be_sealed(checkpoint):
                from ckpt_tools.ops import sealed

                sealed.attach(run, view)
                sealed.hold(view)
            findings = engine.check(run, checkpoint, view, settings)
            if loader is not None:
                findings, _ = loading.proven(findings, checkpoint, view, engine.Selection(), loader)
            unreadable += [f"{checkpoint.path}/{name}" for name in view.errors]
            task.advance(1)
            verdict, reasons = judge(findings, purpose)
            if not reasons or (allow_degraded and verdict is Verdict.DEGRADED):
                found = checkpoint
                break
            passed.append(Passed(_typed(run, checkpoint), verdict, tuple(reasons)))
    return LatestReport(
        __version__,
        run.root,
        purpose,
        _typed(run, found) if found else None,
        found.step if found and not counts_epochs(found) else None,
        tuple(passed),
        (*_notes(run), *_tracker_notes(run, found, trackers), *_mended(run, found, trackers, passed)),
        tuple(unreadable),
        tuple(TrackerSaid(each.path, each.target) for each in trackers if each.said is not None),
    )


def _candidates(run: Run, purpose: Purpose) -> list[Checkpoint]:
    """Return the checkpoints from the newest down; the export of a finished run counts for inference alone."""
    exports = [checkpoint for checkpoint in run.checkpoints if checkpoint.path == "." and not run.single]
    numbered = [checkpoint for checkpoint in run.checkpoints if checkpoint not in exports]
    newest_first = ordered(numbered, _stated)
    return [*exports, *newest_first] if purpose is Purpose.INFERENCE else newest_first


def _stated(checkpoint: Checkpoint) -> int | None:
    return View(checkpoint).step


def ordered(checkpoints: list[Checkpoint], stated_by: Callable[[Checkpoint], int | None]) -> list[Checkpoint]:
    """Return checkpoints from the newest down, by the step.

    Files such as ``last.ckpt``, whose names tell no step, are asked for the step that they state, where names and
    contents of the others count the same.  Of several at one step the one that is named for it comes first, since the
    others will be written over, and of two such names the later one.
    """
    newest = max((each for each in checkpoints if each.step is not None), key=lambda each: each.step or 0, default=None)
    bare = [each for each in checkpoints if each.step is None and each.is_file]
    alike = newest is None or (bool(bare) and stated_by(newest) == newest.step)
    stated = {each.path: stated_by(each) for each in bare} if alike and len(bare) <= MANY else {}

    def place(checkpoint: Checkpoint) -> tuple[int, bool, int, str]:
        step = checkpoint.step if checkpoint.step is not None else stated.get(checkpoint.path)
        again = _AGAIN.search(checkpoint.path)
        later = int(again.group(1)) if again else 0
        return (1 if step is None else -step, checkpoint.step is None, -later, checkpoint.path)

    return sorted(checkpoints, key=place)


def judge(findings: Iterable[Finding], purpose: Purpose) -> tuple[Verdict, list[Finding]]:
    """Return the verdict, and the findings that forbid it; a loss of reproducibility alone forbids nothing."""
    found = list(findings)
    decided, _ = engine.verdicts(found)
    verdict = decided[purpose]
    hurting = [finding for finding in found if finding.impact.on(purpose) is not Verdict.READY]
    forbidding = [
        finding
        for finding in hurting
        if finding.impact.on(purpose) is not Verdict.DEGRADED or finding.severity >= Severity.ERROR
    ]
    forbidding.sort(key=lambda finding: (-finding.impact.on(purpose).rank, -finding.severity, finding.code))
    return verdict, forbidding


def _typed(run: Run, checkpoint: Checkpoint) -> str:
    """Return the path of a checkpoint as the user would type it."""
    return run.root if checkpoint.path == "." else os.path.join(run.root, checkpoint.path)


def _notes(run: Run) -> list[str]:
    return [f"ignored {stray.path}: {_WHY[stray.why]}" for stray in run.strays]


def _tracker_notes(run: Run, found: Checkpoint | None, trackers: Iterable[tracking.Tracked]) -> Iterator[str]:
    """Tell what the trainer itself would take, where that is not the checkpoint that was found."""
    for tracked in trackers:
        tracker = tracked.tracker
        if not tracker.followed or (found is not None and tracked.means(found)):
            continue
        if found is not None and os.path.dirname(found.path) != tracked.home:
            continue
        if tracked.said is None:
            if tracker.without and not any(tracked.at(name) in run.listing.files for name in tracker.others):
                yield f"{tracked.path} is missing: {tracker.without}"
        elif tracked.target is None:
            yield f"{tracked.path} names no checkpoint: the trainer itself would stop"
        elif not tracked.there:
            yield f"{tracked.path} names {tracked.target}, which is not here: {tracker.dangling}"
        else:
            yield f"{tracked.path} names {tracked.target}, which is what the trainer itself would take"


def _mended(
    run: Run, found: Checkpoint | None, trackers: Iterable[tracking.Tracked], passed: Iterable[Passed]
) -> Iterator[str]:
    """Name the command that lets a tracker name what was found, where it leads to nothing good."""
    unread = ("CK002", "CK003")  # it may be whole
    bad = {each.path for each in passed if each.verdict is Verdict.BROKEN and each.reasons[0].code not in unread}
    for tracked in trackers:
        if found is None or not tracked.tracker.followed or os.path.dirname(found.path) != tracked.home:
            continue
        named = next((each for each in run.checkpoints if tracked.means(each)), None)
        if named is None or _typed(run, named) in bad:
            name = os.path.basename(found.path)
            yield f"`ckpt repair --write {shlex.quote(run.root)}` lets {tracked.path} name {name}"


_WHY = {
    "staging": "a staging directory of a save that did not end",
    "not-a-directory": "a file, not a directory",
    "name": "its name is not checkpoint-N, so that no trainer finds it",
}
