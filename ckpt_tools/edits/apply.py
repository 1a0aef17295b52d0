"""Carrying plans out, and taking them back, so that whatever happens in between the files are old or new.

check the guards → write the entry → change and sync, step by step → read everything again → mark the entry as done.
What is not proven when the process or the power dies is taken back by ``recover``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ckpt_tools.core.durable import Disk, look
from ckpt_tools.core.errors import CkptError, EditError
from ckpt_tools.edits import guards, journal
from ckpt_tools.edits.back import rewind
from ckpt_tools.edits.guards import Saving
from ckpt_tools.edits.journal import Entry, Home
from ckpt_tools.edits.outcome import Outcome, compare, files_of, why
from ckpt_tools.edits.session import restore_directories, session
from ckpt_tools.edits.steps import Steps
from ckpt_tools.model.plan import AppendBytes, CutFile, MoveFile, PatchBytes, Plan, Step, TruncateTo, WriteFile, origin

Prove = Callable[[], str | None]
"""Opens the files again and says what is not exactly as the plan meant it, None when all is."""

SMALL = 1 << 22
"""Files up to this size are remembered as a whole: a later change anywhere in them is noticed by ``undo``."""


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
        EditError: the system refused something, or the proof failed; ``pending`` says whether an entry is left.
    """
    guards.check(home, plan, saving)
    now = time.time_ns() if now_ns is None else now_ns
    before = {path: look(home.at(path)) for path in files_of(plan)}
    linked = [path for path, there in before.items() if there and there.is_file and there.links > 1]
    with session(home, plan.paths, disk) as (held, directories):
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
            restore_directories(home, steps, entry, held)
            entry = journal.advance(entry, held, "done")
        except BaseException as error:
            _back_out(journal.current(entry), steps, held, error)
            if isinstance(error, CkptError):
                raise
            if isinstance(error, OSError):
                raise EditError(f"{why(home, error)}; the edit was taken back") from error
            raise
    after = {path: look(home.at(last)) for path, last in files_of(plan).items()}
    notes = tuple(f"{path} had other hard links; they keep the old bytes" for path in linked)
    return Outcome(entry.edit, compare(before, after), plan.bytes_written, notes)


def _begin(home: Home, plan: Plan, directories: dict[str, int], command: str, now_ns: int, disk: Disk) -> Entry:
    steps = Steps(home.root, plan, 0, disk)
    files: dict[str, int] = {}
    digests: dict[str, str] = {}
    about: dict[str | None, list[Step]] = {}
    for number, step in enumerate(steps.steps):
        about.setdefault(origin(steps.steps, number, step[0].path), []).append(step)
    for path, last in files_of(plan).items():
        there = look(home.at(path))
        if there is None or not there.is_file:
            continue
        files[path] = there.mtime_ns
        if there.size <= SMALL:
            own = about.get(path, [])
            kinds = {type(step[0]) for step in own}
            if kinds & {PatchBytes, AppendBytes, TruncateTo, CutFile} and WriteFile not in kinds:
                digests[last] = steps.digest(path, own)
    draft = journal.first_draft(home, plan, command, now_ns)
    entry = Entry(draft, plan, files, directories, _new_directories(home, plan), digests)
    try:
        return journal.begin(home, entry, disk)
    except OSError as error:
        clean = not journal.pending(home)
        left = f"an empty journal entry is left; `ckpt undo {home.subject}` removes it"
        tail = "nothing was changed" if clean else left
        raise EditError(f"{why(home, error)}; {tail}", pending=not clean) from error


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


def _back_out(entry: Entry, steps: Steps, disk: Disk, error: BaseException) -> None:
    """Take an edit back that failed while it was made; raise EditError when that fails too."""
    try:
        if entry.edit.state == "done":
            entry = journal.advance(entry, disk, "pending", len(steps.steps))
        rewind(entry, steps, disk)
    except Exception as second:  # noqa: BLE001 - whatever it is: the entry is on the disk, and says how to go on
        home = entry.edit.home
        if journal.current(entry).edit.state == "done":
            reason = f"{why(home, error)}; the edit was made, and whether that outlives a crash is not known"
            raise EditError(reason, hint=f"`ckpt undo {home.subject}` takes it back") from error
        raise EditError(
            f"the edit failed: {why(home, error)}; taking it back failed as well: {why(home, second)}",
            hint=f"`ckpt undo {home.subject}` takes it back once the cause is gone",
            pending=True,
        ) from error
