"""Who may write: the locks of a journal and of those around it, and the times of directories."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from ckpt_tools.core.durable import Disk, LocalDisk, LockedError, look
from ckpt_tools.core.errors import EditError, EditRefusedError, SourceError
from ckpt_tools.core.listing import SIDECAR
from ckpt_tools.edits import journal
from ckpt_tools.edits.journal import Entry, Home
from ckpt_tools.edits.outcome import why
from ckpt_tools.edits.steps import Steps
from ckpt_tools.model.plan import final


@contextmanager
def session(home: Home, paths: tuple[str, ...], disk: Disk | None) -> Iterator[tuple[Disk, dict[str, int]]]:
    """Hold the locks of a journal and of those that speak of the same files; yield the disk and directory times."""
    local = LocalDisk() if disk is None else None
    held: Disk = local or disk or LocalDisk()
    directories = _directory_times(home, paths)
    try:
        with ExitStack() as stack:
            try:
                try:
                    _make_sidecar(home, held)
                finally:
                    set_time(home.root, directories[""], held)
                stack.enter_context(held.lock(home.lock))
                for other in journal.within(home, paths):
                    stack.enter_context(held.lock(other.lock))
                for other, _ in journal.around(home):
                    with suppress(PermissionError):  # nobody could be editing from there either
                        stack.enter_context(held.lock(other.lock, shared=True))
            except LockedError as error:
                raise EditRefusedError("another ckpt process is editing the same files", hint=str(error)) from None
            except OSError as error:
                raise EditError(f"{why(home, error)}; nothing was changed") from error
            yield held, directories
    finally:
        if local is not None:
            local.close()


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


def restore_directories(home: Home, steps: Steps, entry: Entry, disk: Disk) -> None:
    """Give directories their times back: the rotation of a trainer sorts checkpoints by them."""
    for directory, mtime_ns in entry.directories.items():
        name = final(steps.steps, -1, directory) if directory else ""
        set_time(home.at(name), mtime_ns, disk)


def set_time(place: str, mtime_ns: int, disk: Disk) -> None:
    with suppress(OSError, SourceError):  # a time is not worth an edit
        there = look(place)
        if there is not None and there.mtime_ns != mtime_ns:
            disk.times(place, mtime_ns)
