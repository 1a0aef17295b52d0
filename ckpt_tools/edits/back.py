"""Taking edits back: the newest that is done, and those that never ended unless all of them was made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from ckpt_tools.core.durable import Disk, LocalDisk, look, names
from ckpt_tools.core.errors import CkptError, EditError, EditRefusedError
from ckpt_tools.edits import guards, journal
from ckpt_tools.edits.guards import Saving
from ckpt_tools.edits.journal import Edit, Entry, Home
from ckpt_tools.edits.outcome import Outcome, Touched, compare, files_of, why
from ckpt_tools.edits.session import restore_directories, session, set_time
from ckpt_tools.edits.steps import Steps
from ckpt_tools.model.plan import STAGED, AppendBytes, CutFile, MoveFile, PatchBytes, Plan, TruncateTo, WriteFile, final

Judge = Callable[[Edit], str | None]
"""Says what is wrong with the files of an edit that was made as a whole, None when nothing is."""


def undo(home: Home, *, saving: Saving | None = None, dry_run: bool = False, disk: Disk | None = None) -> Outcome:
    """Take the newest edit back: every byte, name and file time is as it was before it.

    An edit that did not end is finished first, which takes it back; then that was the undo.

    Raises:
        EditRefusedError: there is none, the files changed since, or the checkpoint is being written.
        EditError: the system refused something; the entry is left as pending.
    """
    reason = saving() if saving is not None else None
    if reason is not None:
        raise EditRefusedError(f"the checkpoint is being written: {reason}", hint="wait until its save has ended")
    waiting = unfinished(home)
    edit = waiting[0] if waiting else newest(home)
    if edit is None:
        raise EditRefusedError("there is no edit to take back")
    if dry_run:
        return _foretold(journal.load(edit))
    with session(edit.home, edit.paths, disk) as (held, _):
        if edit not in (*unfinished(home)[:1], newest(home)):
            raise EditRefusedError("another process edited the checkpoint just now", hint="look at it again")
        return _take_back(journal.load(edit), held)


def recover(home: Home, *, disk: Disk | None = None, prove: Judge | None = None) -> tuple[Outcome, ...]:
    """End every edit that did not, here and in the journals around that concern the same files.

    One of which all changes are made is marked as done; any other, and one that was being taken back, is taken back.

    Args:
        home: whose edits.
        disk: what changes are made through, for tests.
        prove: says what is wrong with the files that a finished edit made, None when nothing is; it is taken back then.

    Raises:
        EditRefusedError: a file was changed by something else since; nothing of that edit was touched.
        EditError: the system refused something; the entry is left as pending.
    """
    done: list[Outcome] = []
    for edit in unfinished(home):
        with session(edit.home, edit.paths, disk) as (held, _):
            for each in journal.pending(edit.home):
                if each.number == edit.number:
                    entry = journal.load(each)
                    whole = all_made(entry) and (prove is None or prove(each) is None)
                    done.append(_finish(entry, held) if whole else _take_back(entry, held))
    return tuple(done)


def all_made(entry: Entry) -> bool:
    """Return whether an edit that did not end lacks nothing but its mark: every step was made and synced, and is there.

    Bytes that are read without their step being noted do not count: after a failed sync they may be in memory alone.

    Raises:
        SourceError: a file cannot be read.
    """
    steps = Steps(entry.edit.home.root, entry.plan, 0, LocalDisk())
    if entry.edit.state != "pending" or entry.edit.progress < len(steps.steps):
        return False
    return steps.differs(entry.digests.items()) is None


def unfinished(home: Home) -> list[Edit]:
    """Return the edits that did not end and concern ``home``, the newest first."""
    found = journal.pending(home)
    for each in journal.within(home):
        found += journal.pending(each)
    for each, concerned in journal.around(home):
        found += journal.pending(each, concerned)
    return sorted(found, key=_age, reverse=True)


def history(home: Home) -> list[Edit]:
    """Return every edit that concerns ``home``, oldest first, those that were taken back included."""
    found = journal.edits(home)
    for each in journal.within(home):
        found += journal.edits(each)
    for each, concerned in journal.around(home):
        found += [edit for edit in journal.edits(each) if edit.touches(concerned)]
    return sorted(found, key=_age)


def newest(home: Home) -> Edit | None:
    """Return the edit that ``undo`` would take back, None when there is none."""
    return next((edit for edit in reversed(history(home)) if edit.state == "done"), None)


def _age(edit: Edit) -> tuple[int, int]:
    return edit.time_ns, edit.number


def _finish(entry: Entry, disk: Disk) -> Outcome:
    """Mark an edit as done of which all changes are made."""
    home = entry.edit.home
    steps = Steps(home.root, entry.plan, entry.edit.number, disk)
    _plain(entry)
    try:
        restore_directories(home, steps, entry, disk)
        made = journal.advance(entry, disk, "done")
    except OSError as error:
        hint = f"`ckpt repair --write {home.subject}` goes on with it once the cause is gone"
        left = journal.current(entry).edit.pending
        raise EditError(f"finishing the edit failed: {why(home, error)}", hint=hint, pending=left) from error
    notes = ("all of the edit was made, and only its end was not noted: it is done now",)
    return Outcome(made.edit, (), 0, notes)


def _take_back(entry: Entry, disk: Disk) -> Outcome:
    home, files = entry.edit.home, files_of(entry.plan)
    steps = Steps(home.root, entry.plan, entry.edit.number, disk)
    _unchanged(entry, steps)
    finished = entry.edit.state == "done"
    before = {path: look(home.at(last)) or look(home.at(path)) for path, last in files.items()}
    taken = replace(entry, directories=_times_now(entry, steps)) if finished else entry
    try:
        if finished:
            taken = journal.advance(taken, disk, "undoing", len(steps.steps))
        taken = rewind(taken, steps, disk)
        _sweep(entry, disk)
    except (OSError, CkptError) as error:
        hint = f"`ckpt undo {home.subject}` goes on with it once the cause is gone"
        raise EditError(f"taking the edit back failed: {why(home, error)}", hint=hint, pending=True) from error
    after = {path: look(home.at(path)) for path in files}
    notes = () if finished else ("the edit did not end, or was being taken back: it is undone now",)
    return Outcome(taken.edit, compare(before, after), _old_size(entry.plan), notes)


def _sweep(entry: Entry, disk: Disk) -> None:
    """Remove the new files that an edit had taken from where they waited: they are back there, and of no more use."""
    home = entry.edit.home
    waiting = f"{home.sidecar}/{STAGED}/"
    for action in entry.plan.actions:
        if isinstance(action, MoveFile) and action.path.startswith(waiting):
            with suppress(OSError, CkptError):  # the next repair of the file removes it as well
                if look(home.at(action.path)) is not None:
                    disk.unlink(home.at(action.path))
                parent = action.path.rpartition("/")[0]
                while parent.startswith(waiting[:-1]) and look(home.at(parent)) and not names(home.at(parent)):
                    disk.rmdir(home.at(parent))
                    parent = parent.rpartition("/")[0]


def _foretold(entry: Entry) -> Outcome:
    """Return what taking an edit back would do; it is checked as far as it can be without doing it."""
    home = entry.edit.home
    _unchanged(entry, Steps(home.root, entry.plan, entry.edit.number, LocalDisk()))
    before = {path: look(home.at(last)) or look(home.at(path)) for path, last in files_of(entry.plan).items()}
    touched = []
    for path, then in before.items():
        size = then.size if then else None
        for action in reversed(entry.plan.actions):
            if action.path == path:
                match action:
                    case AppendBytes(_, offset, _):
                        size = offset
                    case TruncateTo(_, shorter, cut):
                        size = shorter + len(cut)
                    case CutFile(_, shorter, length, _):
                        size = shorter + length
                    case WriteFile(_, _, old):
                        size = None if old is None else len(old)
        mtimes = (then.mtime_ns if then else None, entry.files.get(path))
        touched.append(Touched(path, then.size if then else None, size, *mtimes))
    return Outcome(entry.edit, tuple(touched), _old_size(entry.plan))


def _old_size(plan: Plan) -> int:
    return sum(
        len(action.old or b"") for action in plan.actions if isinstance(action, PatchBytes | TruncateTo | WriteFile)
    )


def _times_now(entry: Entry, steps: Steps) -> dict[str, int]:
    """Return the present times of the directories that an entry names, wherever the edit has moved them."""
    times = {}
    for name in entry.directories:
        there = look(steps.at(final(steps.steps, -1, name) if name else ""))
        if there is not None and there.is_directory:
            times[name] = there.mtime_ns
    return times


def _unchanged(entry: Entry, steps: Steps) -> None:
    """Require that nothing but the edit explains what is there, and that nothing is written through a link."""
    _plain(entry)
    if entry.edit.state == "done":
        reason = steps.differs(entry.digests.items())
    else:
        reason = steps.foreign_up_to(entry.edit.progress)
    if reason is not None:
        raise EditRefusedError(
            f"{reason}: taking back {entry.edit.title!r} of {entry.edit.time} would mix two states",
            hint=f"the old bytes are in {entry.edit.home.sidecar}/journal/{entry.edit.name}",
        )


def _plain(entry: Entry) -> None:
    guards.require_plain(entry.edit.home, f"{entry.edit.home.sidecar}/journal")
    for path in (*entry.plan.paths, *files_of(entry.plan).values(), *entry.made):
        guards.require_plain(entry.edit.home, path.rpartition("/")[0])


def rewind(entry: Entry, steps: Steps, disk: Disk) -> Entry:
    """Take the steps back from the last one that may be there, and mark the entry as undone."""
    edit = entry.edit
    for number in range(min(edit.progress, len(steps.steps) - 1), -1, -1):
        if entry.edit.progress != number:
            entry = journal.advance(entry, disk, edit.state, number)
        steps.back(number)
    for directory in reversed(entry.made):
        place = edit.home.at(directory)
        there = look(place)
        if there is not None and there.is_directory and not names(place):  # else something else lies in it by now
            disk.rmdir(place)
        parent = edit.home.at(directory.rpartition("/")[0])
        if look(parent) is not None:
            disk.sync_directory(parent)
    for times in (entry.files, entry.directories):
        for path, mtime_ns in times.items():
            set_time(edit.home.at(path), mtime_ns, disk)
    try:
        return journal.advance(entry, disk, "undone")
    except OSError:
        entry = journal.current(entry)
        if entry.edit.state != "undone":
            raise
        return entry  # all bytes are back; after a crash that may have to be found out once more
