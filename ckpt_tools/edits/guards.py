"""What must hold before an edit is begun.  Nothing is changed here."""

from __future__ import annotations

from collections.abc import Callable

from ckpt_tools.core.durable import Look, look, writable
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.core.source import FileSource
from ckpt_tools.core.space import free_bytes
from ckpt_tools.edits.journal import Edit, Home, around, pending, within
from ckpt_tools.model.plan import (
    Absent,
    AppendBytes,
    CutFile,
    MoveFile,
    PatchBytes,
    Plan,
    Room,
    Seen,
    Step,
    TruncateTo,
    WriteFile,
    origin,
)

Saving = Callable[[], str | None]
"""Says why the checkpoint counts as being written by its trainer, None when it does not."""

SPARE = 1 << 16
"""Bytes of a disk that are left free besides what an edit needs: directories and entries take blocks too."""


def check(home: Home, plan: Plan, saving: Saving | None) -> None:
    """Require that the plan can be carried out on what is there now.

    Raises:
        EditRefusedError: it cannot; nothing was changed.
        SourceError: a file could not be read.
    """
    reason = saving() if saving is not None else None
    if reason is not None:
        raise EditRefusedError(f"the checkpoint is being written: {reason}", hint="wait until its save has ended")
    refuse_pending(home, plan.paths)
    _may_write(home, home.root, home.root)
    sidecar = home.at(home.sidecar)
    if look(sidecar) is not None:
        require_plain(home, f"{home.sidecar}/journal")
        _may_write(home, sidecar, home.sidecar)
    steps = plan.steps
    copies = 0
    sized: set[str] = set()
    for number in range(len(steps)):
        copies += _step(home, steps, number, sized)
    for guard in plan.guards:
        _guard(home, guard)
    needed = copies + _needed(plan)
    free = free_bytes(home.root)
    if free is not None and free < needed + SPARE:
        raise EditRefusedError(f"too little space: the edit needs {needed + SPARE:,} bytes, and {free:,} are free")


def refuse_pending(home: Home, paths: tuple[str, ...]) -> None:
    """Require that no edit of the same files waits to be finished."""
    waiting: list[Edit] = pending(home)
    for each in within(home, paths):
        waiting += pending(each)
    for each, concerned in around(home):
        waiting += pending(each, concerned)
    if waiting:
        edit = waiting[0]
        raise EditRefusedError(
            f"an earlier edit did not end: {edit.title!r} of {edit.time}",
            hint=f"`ckpt undo {edit.home.subject}` takes it back as a whole",
        )


def _step(home: Home, steps: tuple[Step, ...], number: int, sized: set[str]) -> int:
    """Check one step against what is there before the first; return the bytes that copying its file will take."""
    action = steps[number][0]
    if isinstance(action, MoveFile):
        require_plain(home, _parent(action.to))
        _parent_writable(home, steps, number, action.to)
    path = origin(steps, number, action.path)
    if path is None:  # freed or made by the plan itself
        return 0
    require_plain(home, _parent(path))
    there = look(home.at(path))
    if isinstance(action, WriteFile) and action.old is None:
        _parent_writable(home, steps, number, path)
        if there is not None:
            raise EditRefusedError(f"{path}: exists already")
        return 0
    if there is None:
        raise EditRefusedError(f"{path}: no such file")
    if isinstance(action, MoveFile):
        if not there.is_file and not there.is_directory:
            raise EditRefusedError(f"{path}: is a {there.kind}, not a regular file")
        _parent_writable(home, steps, number, path)
        return 0
    if not there.is_file:
        raise EditRefusedError(f"{path}: is a {there.kind}, not a regular file; it is not written through")
    _may_write(home, home.at(path), path)
    _old_bytes(home, path, there, steps[number], first=path not in sized)
    if isinstance(action, AppendBytes | TruncateTo | CutFile):
        sized.add(path)
    if isinstance(action, WriteFile) or there.links > 1:
        _parent_writable(home, steps, number, path)
    return there.used if there.links > 1 and not isinstance(action, WriteFile) else 0


def _old_bytes(home: Home, path: str, there: Look, step: Step, *, first: bool) -> None:
    with FileSource(home.at(path), path) as source:
        for action in step:
            match action:
                case PatchBytes(_, offset, old, _):
                    fits = source.read(offset, len(old)) == old
                case AppendBytes(_, offset, _):
                    fits = there.size == offset or not first
                case TruncateTo(_, size, old):
                    fits = (there.size == size + len(old) and source.read(size, len(old)) == old) or not first
                case CutFile(_, size, length, _):
                    fits = there.size == size + length or not first
                case WriteFile(_, _, previous):
                    fits = (
                        previous is not None and there.size == len(previous) and source.read(0, there.size) == previous
                    )
                case _:
                    fits = True
            if not fits:
                raise _changed(path)


def _guard(home: Home, guard: Seen | Absent | Room) -> None:
    match guard:
        case Seen(path, size, mtime_ns):
            there = look(home.at(path))
            if there is None or not there.is_file or (there.size, there.mtime_ns) != (size, mtime_ns):
                raise _changed(path)
        case Absent(path):
            if look(home.at(path)) is not None:
                raise EditRefusedError(f"{path}: exists already")


def _changed(path: str) -> EditRefusedError:
    return EditRefusedError(f"{path}: changed since the edit was planned", hint="run the command again")


def require_plain(home: Home, path: str) -> None:
    """Require that no directory on the way to ``path``, nor itself, is a link or something else.

    Raises:
        EditRefusedError: one is.
    """
    parts = path.split("/") if path else []
    for depth in range(1, len(parts) + 1):
        name = "/".join(parts[:depth])
        there = look(home.at(name))
        if there is not None and not there.is_directory:
            raise EditRefusedError(f"{name}: is a {there.kind}, not a directory; it is not written through")


def _parent_writable(home: Home, steps: tuple[Step, ...], number: int, path: str) -> None:
    parent = origin(steps, number, _parent(path)) if _parent(path) else ""
    while parent and look(home.at(parent)) is None:
        parent = _parent(parent)
    if parent is not None:
        _may_write(home, home.at(parent), parent or home.root)


def _may_write(home: Home, place: str, shown: str) -> None:
    if not writable(place):
        raise EditRefusedError(f"{shown}: is read-only", hint="`chmod u+w` it, or edit a copy")


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _needed(plan: Plan) -> int:
    """Return the bytes that the journal, growth and new files take; the way back may need old files once more."""
    journalled = growth = 0
    for action in plan.actions:
        match action:
            case PatchBytes(_, _, old, new):
                journalled += len(old) + len(new)
            case AppendBytes(_, _, data):
                journalled += len(data)
                growth += len(data)
            case TruncateTo(_, _, old):
                journalled += len(old)
            case WriteFile(_, new, previous):
                journalled += len(new) + len(previous or b"")
                growth += max(len(new), len(previous or b""))
    return journalled * 3 // 2 + max([growth, *(guard.size for guard in plan.guards if isinstance(guard, Room))])
