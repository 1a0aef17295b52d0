"""The one seam for writes: every byte, name and time that this tool changes passes a ``Disk``.

A test puts its own disk in the place of ``LocalDisk``: one that records the sequence, fails, or dies at a step.  The
methods raise ``OSError``; what that means for an edit is decided by who makes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from ckpt_tools.core.errors import SourceError

_PIECE = 1 << 22
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS})
"""What systems answer that cannot sync a directory; there is nothing more to be done on them."""


_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})
"""What file systems answer that have no locks (Lustre without ``flock``): a file that must not exist stands for one."""


class LockedError(Exception):
    """Another process holds the lock; the text says what to do."""


class Disk(Protocol):
    """The primitive changes, in the order in which they are made; nothing else changes a checkpoint.

    A change is safe from a crash once its file (bytes, size) or its directory (names) was synced.
    """

    def write(self, path: str, offset: int, data: bytes | memoryview) -> None:
        """Put ``data`` at ``offset`` of an existing file; a file that ends there grows."""

    def flush(self, path: str) -> None:
        """Wait until what was written to a file so far is on the disk, and go on writing to it."""

    def truncate(self, path: str, size: int) -> None:
        """Cut an existing file."""

    def create(self, path: str, data: bytes, like: str | None = None) -> None:
        """Make a file that did not exist, with the mode and the owner of ``like`` where it is given."""

    def copy(self, path: str, to: str) -> None:
        """Make ``to``, which did not exist, a copy of a file: bytes, holes, mode, owner and times."""

    def mkdir(self, path: str) -> None:
        """Make a directory."""

    def rename(self, path: str, to: str) -> None:
        """Give a file or directory another name; a file of that name is replaced."""

    def unlink(self, path: str) -> None:
        """Remove a file that this tool made."""

    def rmdir(self, path: str) -> None:
        """Remove an empty directory that this tool made."""

    def times(self, path: str, mtime_ns: int) -> None:
        """Set a modification time."""

    def sync(self, path: str) -> None:
        """Wait until the bytes and the size of a file are on the disk."""

    def sync_directory(self, path: str) -> None:
        """Wait until the names in a directory are on the disk."""

    def lock(self, path: str, *, shared: bool = False) -> AbstractContextManager[None]:
        """Hold a lock on a file, which is made where it is missing.

        Raises:
            LockedError: another process holds it.
        """


class LocalDisk:
    """The real one.  A file stays open from its first change until it is synced, so that no error gets lost."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def write(self, path: str, offset: int, data: bytes | memoryview) -> None:
        _write(self._writer(path), offset, memoryview(data))

    def flush(self, path: str) -> None:
        os.fsync(self._writer(path))

    def truncate(self, path: str, size: int) -> None:
        os.ftruncate(self._writer(path), size)

    def create(self, path: str, data: bytes, like: str | None = None) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = self._open[path] = os.open(path, flags, 0o666)
        if like is not None:
            _resemble(descriptor, os.lstat(like))
        _write(descriptor, 0, memoryview(data))

    def copy(self, path: str, to: str) -> None:
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self.create(to, b"", path)
            status = os.fstat(source)
            _copy(source, self._open[to], status.st_size)
            os.utime(self._open[to], ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(source)

    def mkdir(self, path: str) -> None:
        os.mkdir(path)

    def rename(self, path: str, to: str) -> None:
        self._close(path)
        self._close(to)
        os.rename(path, to)

    def unlink(self, path: str) -> None:
        self._close(path)
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def times(self, path: str, mtime_ns: int) -> None:
        status = os.lstat(path)
        os.utime(path, ns=(status.st_atime_ns, mtime_ns), follow_symlinks=False)

    def sync(self, path: str) -> None:
        descriptor = self._open.pop(path, -1)
        if descriptor < 0:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise
        finally:
            os.close(descriptor)

    @contextmanager
    def lock(self, path: str, *, shared: bool = False) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
        try:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError("wait until it has ended") from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                with _held(f"{path}.held", shared=shared):
                    yield
            else:
                yield
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of files that were changed and never synced: an edit of them failed."""
        for path in list(self._open):
            self._close(path)

    def _writer(self, path: str) -> int:
        descriptor = self._open.get(path)
        if descriptor is None:
            descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            self._open[path] = descriptor
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                self._close(path)
                raise OSError(errno.EINVAL, "not a regular file", path)
        return descriptor

    def _close(self, path: str) -> None:
        descriptor = self._open.pop(path, -1)
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def _held(path: str, *, shared: bool) -> Iterator[None]:
    """Hold a lock where the file system has none; a process that is killed leaves it."""
    if shared:
        if os.path.lexists(path):
            raise LockedError(f"wait until it has ended; if none is running, delete {path}")
        yield
        return
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except FileExistsError:
        raise LockedError(f"wait until it has ended; if none is running, delete {path}") from None
    try:
        yield
    finally:
        os.unlink(path)


def _write(descriptor: int, offset: int, data: memoryview) -> None:
    while data:
        count = os.pwrite(descriptor, data[:_PIECE], offset)
        if count <= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        data, offset = data[count:], offset + count


def _resemble(descriptor: int, status: os.stat_result) -> None:
    with suppress(OSError):  # another owner's file, and not root: it becomes ours, as with any editor
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))


def _copy(source: int, target: int, size: int) -> None:
    """Copy the bytes that are there; holes stay holes, and a file system that shares blocks shares them."""
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            start = os.lseek(source, at, os.SEEK_DATA)
            end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            start, end = at, size
        _copy_range(source, target, start, end)
        at = end


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    together = hasattr(os, "copy_file_range")
    while start < end:
        if together:
            try:
                count = os.copy_file_range(source, target, min(end - start, 1 << 30), start, start)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                    raise
                together = False
                continue
            if count:
                start += count
                continue
            together = False
        piece = os.pread(source, min(end - start, _PIECE), start)
        if not piece:
            raise OSError(errno.EIO, "the file became shorter while it was copied")
        _write(target, start, memoryview(piece))
        start += len(piece)


@dataclass(frozen=True, slots=True)
class Look:
    """What a name stands for; nothing was followed.  ``used`` are the bytes that the file takes on the disk."""

    kind: str
    size: int
    mtime_ns: int
    mode: int
    links: int
    used: int

    @property
    def is_file(self) -> bool:
        return self.kind == "file"

    @property
    def is_directory(self) -> bool:
        return self.kind == "directory"


_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symbolic link"}


def look(path: str) -> Look | None:
    """Return what a name stands for, None where there is nothing.

    Raises:
        SourceError: the system does not say.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unseen(path, error) from None
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "special file")
    mode = stat.S_IMODE(status.st_mode)
    return Look(kind, status.st_size, status.st_mtime_ns, mode, status.st_nlink, status.st_blocks * 512)


def writable(path: str) -> bool:
    """Return whether a file or directory may be written; one that is write-protected is not, not even for root.

    Raises:
        SourceError: the system does not say.
    """
    there = look(path)
    return there is not None and bool(there.mode & 0o222) and os.access(path, os.W_OK)


def names(path: str) -> list[str]:
    """Return the sorted names in a directory, empty where there is none.

    Raises:
        SourceError: the system does not say.
    """
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unseen(path, error) from None


def _unseen(path: str, error: OSError) -> SourceError:
    return SourceError(path, (error.strerror or "cannot be looked at").lower(), errno=error.errno)
