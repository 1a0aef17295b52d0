"""Carrying plans out, and taking them back, so that whatever happens in between the files are old or new.

check the guards → write the entry → change and sync, step by step → read everything again → mark the entry as done.
What is not proven when the process or the power dies is taken back by ``recover``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from ckpt_tools.core.durable import Disk, LocalDisk, LockedError, look
from ckpt_tools.core.errors import CkptError, EditError, EditRefusedError
from ckpt_tools.core.listing import SIDECAR
from ckpt_tools.edits import guards, journal
from ckpt_tools.edits.guards import Saving
from ckpt_tools.edits.journal import Edit, Entry, Home, NotOnDiskError
from ckpt_tools.edits.steps import Steps
from ckpt_tools.model.plan import AppendBytes, MoveFile, Plan, TruncateTo, WriteFile, final, origin

Prove = Callable[[], str | None]
"""Opens the files again and says what is not exactly as the plan meant it, None when all is."""

SMALL = 1 << 22
"""Files up to this size are remembered as a whole: a later change anywhere in them is noticed by ``undo``."""


@dataclass(frozen=True, slots=True)
class Touched:
    """A file before and after; None stands for a file that is not there."""

    path: str
    size_before: int | None
    size_after: int | None
    mtime_before_ns: int | None
    mtime_after_ns: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done: the edit as the journal has it now, the files, and what a person should know besides."""

    edit: Edit
    files: tuple[Touched, ...]
    bytes_written: int
    notes: tuple[str, ...] = ()


def apply(
    home: Home,
    plan: Plan,
    *,
    prove: Prove | None = None,
    saving: Saving | None = None,
    command: str = "",
    now_ns: int | None = None,
    disk: Disk | None = None,
) -> Outcome:
    """Carry out a plan as a whole, or leave everything as it was.

    Args:
        home: where the plan's paths lead from, and where the journal is (``journal.home_of``).
        plan: what to do.
        prove: reads the files again, after the changes and before the edit counts; a complaint takes it back.
        saving: says why the checkpoint counts as being written, None when it does not.
        command: the command line, for the journal.
        now_ns: the clock, for tests.
        disk: what changes are made through, for tests.

    Raises:
        EditRefusedError: a guard does not hold; nothing was changed.
        EditError: the system refused something, or the proof failed; ``taken_back`` says whether all is as before.
    """
    guards.check(home, plan, saving)
    now = time.time_ns() if now_ns is None else now_ns
    before = {path: look(home.at(path)) for path in _files(plan)}
    linked = [path for path, there in before.items() if there and there.is_file and there.links > 1]
    with _session(home, plan.paths, disk) as (held, directories):
        guards.check(home, plan, saving)
        entry = _begin(home, plan, directories, command, now, held)
        steps = Steps(home.root, plan, entry.edit.number, held)
        try:
            for number in range(len(steps.steps)):
                steps.forward(number)
                entry = journal.advance(entry, held, "pending", number + 1)
            reason = steps.differs(entry.digests.items()) or (prove() if prove is not None else None)
            if reason is not None:
                raise EditError(f"the edit did not have the effect that was planned: {reason}")
            _restore_directories(home, steps, entry, held)
            entry = journal.advance(entry, held, "done")
        except BaseException as error:
            if isinstance(error, NotOnDiskError):
                entry = error.entry
            _back_out(entry, steps, held, error)
            if isinstance(error, CkptError):
                raise
            if isinstance(error, OSError | NotOnDiskError):
                raise EditError(f"{_why(home, error)}; the edit was taken back") from error
            raise
    steps_done = steps.steps
    touched = []
    for number, step in enumerate(steps_done):
        path = step[0].path
        first = origin(steps_done, number, path)
        if not any(each.path == path for each in touched) and not isinstance(step[0], MoveFile):
            last = final(steps_done, number, path)
            touched.append(_touched(home, path, before.get(first) if first else None, last))
    notes = tuple(f"{path} had other hard links; they keep the old bytes" for path in linked)
    return Outcome(entry.edit, tuple(touched), plan.bytes_written, notes)


def undo(
    home: Home, *, saving: Saving | None = None, dry_run: bool = False, disk: Disk | None = None
) -> Outcome:
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
        entry = journal.load(edit)
        _unchanged(entry, Steps(edit.home.root, entry.plan, edit.number, LocalDisk()))
        return _outcome(entry, {path: look(edit.home.at(path)) for path in _files(entry.plan)}, dry=True)
    with _session(edit.home, edit.paths, disk) as (held, _):
        fresh = next((each for each in journal.edits(edit.home) if each.number == edit.number), edit)
        if fresh.state == "undone" or (not waiting and fresh.pending):
            raise EditRefusedError("another process was editing the checkpoint", hint="look at it again")
        return _take_back(journal.load(fresh), held)


def recover(home: Home, *, disk: Disk | None = None) -> tuple[Outcome, ...]:
    """Take back every edit that did not end, here and in the journals around that concern the same files.

    Raises:
        EditRefusedError: a file was changed by something else since; nothing of that edit was touched.
        EditError: the system refused something; the entry is left as pending.
    """
    done = []
    for edit in unfinished(home):
        with _session(edit.home, edit.paths, disk) as (held, _):
            for fresh in journal.pending(edit.home):
                if fresh.number == edit.number:
                    done.append(_take_back(journal.load(fresh), held))
    return tuple(done)


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


# Sessions: who may write, and what is tidied up behind ---------------------------------------------------------


@contextmanager
def _session(home: Home, paths: tuple[str, ...], disk: Disk | None) -> Iterator[tuple[Disk, dict[str, int]]]:
    """Hold the locks of a journal and of those that speak of the same files; yield the disk and directory times."""
    local = LocalDisk() if disk is None else None
    held: Disk = local or disk or LocalDisk()
    root = look(home.root)
    directories = _directory_times(home, paths)
    try:
        with ExitStack() as stack:
            try:
                _make_sidecar(home, held)
                stack.enter_context(held.lock(home.lock))
                for other in journal.within(home, paths):
                    stack.enter_context(held.lock(other.lock))
                for other, _ in journal.around(home):
                    with suppress(PermissionError):  # nobody could be editing from there either
                        stack.enter_context(held.lock(other.lock, shared=True))
            except LockedError:
                raise EditRefusedError(
                    "another ckpt process is editing the same files", hint="wait until it has ended"
                ) from None
            except OSError as error:
                raise EditError(f"{_why(home, error)}; nothing was changed") from error
            yield held, directories
    finally:
        if local is not None:
            local.close()
        if root is not None:
            _set_time(home.root, root.mtime_ns, held)


def _make_sidecar(home: Home, disk: Disk) -> None:
    parent = ""
    for name in (*home.sidecar.split("/"), "journal"):
        path = f"{parent}/{name}" if parent else name
        if look(home.at(path)) is None:
            with suppress(FileExistsError):
                disk.mkdir(home.at(path))
            disk.sync_directory(home.at(parent))
        parent = path


def _directory_times(home: Home, paths: tuple[str, ...]) -> dict[str, int]:
    """Return when the directories that names change in were last changed, the root as ``""``."""
    found = {"": ""}
    for path in paths:
        parts = path.split("/")
        found.update({"/".join(parts[:depth]): "" for depth in range(1, len(parts))})
    times = {}
    for directory in found:
        there = look(home.at(directory))
        if there is not None and there.is_directory and SIDECAR not in directory.split("/"):
            times[directory] = there.mtime_ns
    return times


def _restore_directories(home: Home, steps: Steps, entry: Entry, disk: Disk) -> None:
    """Give directories their times back: the rotation of a trainer sorts checkpoints by them."""
    for directory, mtime_ns in entry.directories.items():
        name = final(steps.steps, -1, directory) if directory else ""
        _set_time(home.at(name), mtime_ns, disk)


def _set_time(place: str, mtime_ns: int, disk: Disk) -> None:
    with suppress(OSError):  # a time is not worth an edit
        there = look(place)
        if there is not None and there.mtime_ns != mtime_ns:
            disk.times(place, mtime_ns)


# The parts of an edit ------------------------------------------------------------------------------------------


def _begin(
    home: Home, plan: Plan, directories: dict[str, int], command: str, now_ns: int, disk: Disk
) -> Entry:
    steps = Steps(home.root, plan, 0, disk)
    files: dict[str, int] = {}
    digests: dict[str, str] = {}
    for path in _files(plan):
        there = look(home.at(path))
        if there is None or not there.is_file:
            continue
        files[path] = there.mtime_ns
        own = [step for step in steps.steps if step[0].path == path]
        growth = sum(len(step[0].data) for step in own if isinstance(step[0], AppendBytes))
        moved = any(isinstance(step[0], MoveFile) for step in steps.steps)
        if not isinstance(own[0][0], WriteFile) and not moved and there.size + growth <= SMALL:
            digests[path] = steps.digest(path, own)
    draft = journal.first_draft(home, plan, command, now_ns)
    entry = Entry(draft, plan, files, directories, _new_directories(home, plan), digests)
    try:
        return journal.begin(home, entry, disk)
    except OSError as error:
        clean = not journal.pending(home)
        tail = "nothing was changed" if clean else "an empty journal entry is left; `ckpt undo` removes it"
        raise EditError(f"{_why(home, error)}; {tail}", taken_back=clean) from error


def _new_directories(home: Home, plan: Plan) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for action in plan.actions:
        target = action.to if isinstance(action, MoveFile) else action.path
        parts = target.split("/")
        for depth in range(1, len(parts)):
            directory = "/".join(parts[:depth])
            moved_there = any(isinstance(other, MoveFile) and other.to == directory for other in plan.actions)
            if look(home.at(directory)) is None and not moved_there:
                found[directory] = None
    return tuple(found)


def _files(plan: Plan) -> tuple[str, ...]:
    """Return the files whose bytes the plan changes, by the names that they have before it."""
    steps = plan.steps
    found: dict[str, None] = {}
    for number, step in enumerate(steps):
        path = origin(steps, number, step[0].path)
        if path is not None and not isinstance(step[0], MoveFile):
            found[path] = None
    return tuple(found)


def _back_out(entry: Entry, steps: Steps, disk: Disk, error: BaseException) -> None:
    """Take an edit back that failed while it was made; raise EditError when that fails too."""
    try:
        if entry.edit.state == "done":
            entry = journal.advance(entry, disk, "pending", len(steps.steps))
        _rewind(entry, steps, disk)
    except Exception as second:  # whatever it is: the entry is on the disk, and says how to go on
        first = error.error if isinstance(error, NotOnDiskError) else error
        reason = f"{first or type(first).__name__}; taking it back failed as well: {second}"
        raise EditError(
            f"the edit failed: {reason}", hint="`ckpt undo` takes it back once the cause is gone", taken_back=False
        ) from error


def _take_back(entry: Entry, disk: Disk) -> Outcome:
    home, plan = entry.edit.home, entry.plan
    steps = Steps(home.root, plan, entry.edit.number, disk)
    before = {path: look(home.at(path)) for path in _files(plan)}
    now = _directory_times(home, tuple(final(steps.steps, -1, path) for path in plan.paths))
    _unchanged(entry, steps)
    taken = entry
    try:
        if entry.edit.state == "done":
            taken = journal.advance(entry, disk, "undoing", len(steps.steps))
            backwards = {final(steps.steps, -1, name) if name else "": name for name in entry.directories}
            times = {backwards.get(name, name): mtime for name, mtime in now.items()}
            taken = Entry(taken.edit, plan, entry.files, times, entry.made, entry.digests)
        taken = _rewind(taken, steps, disk)
    except (OSError, NotOnDiskError, EditRefusedError) as error:
        hint = "`ckpt undo` goes on with it once the cause is gone"
        raise EditError(f"taking the edit back failed: {_why(home, error)}", hint=hint, taken_back=False) from error
    return _outcome(taken, before)


def _unchanged(entry: Entry, steps: Steps) -> None:
    """Require that nothing but the edit explains what is there."""
    if entry.edit.state == "done":
        reason = steps.differs(entry.digests.items())
    else:
        reason = steps.foreign_up_to(entry.edit.progress)
    if reason is not None:
        raise EditRefusedError(
            f"{reason}: taking back {entry.edit.title!r} of {entry.edit.time} would mix two states",
            hint=f"the old bytes are in {entry.edit.home.sidecar}/journal/{entry.edit.name}",
        )


def _rewind(entry: Entry, steps: Steps, disk: Disk) -> Entry:
    """Take the steps back from the last one that may be there; NotOnDiskError carries no news here."""
    edit = entry.edit
    for number in range(min(edit.progress, len(steps.steps) - 1), -1, -1):
        if entry.edit.progress != number:
            entry = journal.advance(entry, disk, edit.state, number)
        steps.back(number)
    for directory in reversed(entry.made):
        with suppress(OSError):  # not empty: something else lies in it by now
            if look(edit.home.at(directory)) is not None:
                disk.rmdir(edit.home.at(directory))
    for times in (entry.files, entry.directories):
        for path, mtime_ns in times.items():
            _set_time(edit.home.at(path), mtime_ns, disk)
    return journal.advance(entry, disk, "undone")


def _outcome(entry: Entry, before: dict[str, object], *, dry: bool = False) -> Outcome:
    raise NotImplementedError
