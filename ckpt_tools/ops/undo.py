"""``ckpt undo``: takes the newest edit back, or lists them."""

from __future__ import annotations

import os
import shlex
import time
from contextlib import suppress

from ckpt_tools._version import __version__
from ckpt_tools.core.errors import CkptError, EditRefusedError, NothingFoundError
from ckpt_tools.edits import back
from ckpt_tools.edits.journal import Edit, Home, home_of
from ckpt_tools.edits.outcome import Touched
from ckpt_tools.layouts.match import is_export, is_prefix, open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Run
from ckpt_tools.ops import numbered
from ckpt_tools.reports.edit import EditReport, FileChange, PastEdit
from ckpt_tools.rules import by_code
from ckpt_tools.rules.base import Context, Settings

IN_PROGRESS = "CK109"


def undo(
    path: str,
    *,
    list_only: bool = False,
    dry_run: bool = False,
    settle: float = 60.0,
    now_ns: int | None = None,
) -> EditReport:
    """Take the newest edit of a checkpoint back; called again, the one before it.

    Args:
        path: a checkpoint, or a run: for the edits that concern several of its checkpoints, and those of its only one.
        list_only: list the edits and change nothing.
        dry_run: say what would be taken back, and check that it can be.
        settle: see ``verify``; a checkpoint that is being written is refused.
        now_ns: the clock, for tests.

    Raises:
        NothingFoundError: no such path, or neither a checkpoint nor a journal is there.
        EditRefusedError: there is no edit, or the files changed since.
        EditError: the system refused something.
    """
    path = numbered.named(path)
    home = _home(path)
    edits = back.history(home)
    if not edits:
        _refuse_others(path, list_only)
    if list_only:
        listed = tuple(past(edit) for edit in edits)
        return EditReport(__version__, path, "the edits of this checkpoint", False, edits=listed)
    outcome = back.undo(home, saving=lambda: being_saved(path, settle, now_ns), dry_run=dry_run)
    title = f"{'would take back' if dry_run else 'took back'} edit {outcome.edit.number}: {outcome.edit.title}"
    more = sum(edit.state == "done" for edit in back.history(home)) - dry_run
    notes = [f"made by version {outcome.edit.tool} at {outcome.edit.time}: {outcome.edit.command or 'as a library'}"]
    notes += outcome.notes
    if more > 0:
        notes.append(f"{more} earlier edit{'s' if more > 1 else ''} can be taken back: run it again")
    return EditReport(
        __version__,
        path,
        title,
        not dry_run,
        files=tuple(file_change(touched) for touched in outcome.files),
        bytes_written=outcome.bytes_written,
        notes=tuple(notes),
    )


def _home(path: str) -> Home:
    """Return where the journal is of which the newest edit is meant: that of a run, or of its only checkpoint.

    A path that only begins the names of files has one when it was edited.
    """
    try:
        home = home_of(path)
    except NothingFoundError:
        if is_prefix(path):
            raise EditRefusedError(f"{path}: there is no edit to take back") from None
        raise
    homes = [home]
    with suppress(CkptError):
        alone = only_of(open_run(path))
        homes += [home_of(alone)] if alone is not None else []
    return max(homes, key=_urgency)


def _urgency(home: Home) -> tuple[bool, int, int]:
    """Return what orders journals by which of them has the edit to take back: one that did not end goes first."""
    waiting = back.unfinished(home)
    edit = waiting[0] if waiting else back.newest(home)
    return bool(waiting), edit.time_ns if edit else -1, edit.number if edit else 0


def only_of(run: Run) -> str | None:
    """Return where the only checkpoint of a run lies, None where there are several, or the path is no run."""
    own = [each.path for each in run.checkpoints if not is_export(run, each)]
    return os.path.join(run.root, own[0]) if len(own) == 1 and not run.single else None


def _refuse_others(path: str, list_only: bool) -> None:
    """Tell a path that holds no checkpoint from one without edits, and which checkpoint of a run was edited last.

    Raises:
        NothingFoundError: there is no checkpoint.
        EditRefusedError: there are edits in checkpoints of the run.
    """
    run = open_run(path)
    edits = []
    for checkpoint in () if run.single else run.checkpoints:
        place = os.path.join(run.root, checkpoint.path)
        if not is_export(run, checkpoint) and not os.path.islink(place) and os.path.exists(place):
            edits += [(edit.time_ns, edit, place) for edit in [back.newest(home_of(place))] if edit is not None]
    if edits:
        _, edit, place = max(edits, key=lambda row: row[0])
        listing = " --list" if list_only else ""
        raise EditRefusedError(
            f"{path}: there is no edit of the run as a whole; the newest of its checkpoints is {edit.title!r}",
            hint=f"`ckpt undo{listing} {shlex.quote(place)}`",
        )


def being_saved(path: str, settle: float = 60.0, now_ns: int | None = None) -> str | None:
    """Return why a checkpoint counts as being written by its trainer, None when it does not.

    This is the ``saving`` that ``edits.apply.apply`` asks.
    """
    now = time.time_ns() if now_ns is None else now_ns
    try:
        run = open_run(path)
    except NothingFoundError:
        return None
    rule = by_code(IN_PROGRESS)
    for checkpoint in run.checkpoints if rule is not None else ():
        context = Context(run, Settings(now, int(settle * 1e9)), View(checkpoint))
        for hit in rule.check(checkpoint, context) if rule is not None else ():
            name = "" if checkpoint.path == "." else f"{checkpoint.path}: "
            return name + (hit.detail[0] if hit.detail else hit.message)
    return None


def past(edit: Edit) -> PastEdit:
    """Return an edit of the journal as reports show it."""
    place = os.path.basename(edit.home.root)
    paths = tuple(edit.paths) if edit.paths else (place,)
    return PastEdit(edit.number, edit.state, edit.time, edit.tool, edit.title, edit.command, paths)


def file_change(touched: Touched) -> FileChange:
    """Return what an edit did to a file as reports show it."""
    return FileChange(
        touched.path, touched.size_before, touched.size_after, touched.mtime_before_ns, touched.mtime_after_ns
    )
