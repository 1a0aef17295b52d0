"""Names and sizes of a directory tree, read once and then looked at as often as one likes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

from ckpt_tools.core.errors import NothingFoundError, SourceError
from ckpt_tools.core.source import FileSource, Meter, Source

SIDECAR = ".ckpt-tools"
"""The directory in which this tool keeps its own files beside a checkpoint's."""

MAX_ENTRIES = 200_000


class Kind(StrEnum):
    """What a directory entry is, after symbolic links were followed."""

    FILE = "file"
    DIRECTORY = "directory"
    DANGLING = "dangling link"
    LOOP = "link loop"
    FIFO = "named pipe"
    SOCKET = "socket"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class FileStat:
    """Size in bytes, times in nanoseconds since the epoch; ``link`` is a symbolic link's own text."""

    kind: Kind
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    blocks: int = 0
    link: str | None = None

    @property
    def is_file(self) -> bool:
        return self.kind is Kind.FILE


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries below ``root`` by POSIX path relative to it; a plain file is listed under its own name.

    ``errors`` holds the directories that could not be listed, with the reason.
    """

    root: str
    files: Mapping[str, FileStat]
    errors: Mapping[str, str] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter, compare=False)

    def open(self, path: str) -> Source:
        """Open a listed file for positional reads.

        Raises:
            SourceError: not listed, not a regular file, or refused by the system.
        """
        entry = self.files.get(path)
        if entry is None:
            raise SourceError(path, "no such file")
        if not entry.is_file:
            raise SourceError(path, f"is a {entry.kind}, not a regular file")
        return FileSource(os.path.join(self.root, path), path, self.meter)

    def names(self, directory: str = "") -> Iterator[str]:
        """Yield the paths that lie directly in ``directory`` (``""`` is the root)."""
        prefix = f"{directory}/" if directory else ""
        for path in self.files:
            if path.startswith(prefix) and "/" not in path[len(prefix) :]:
                yield path

    def match(self, pattern: str) -> list[str]:
        """Return the listed paths that fit a glob, ``*`` standing for anything but ``/``."""
        depth = pattern.count("/")
        return [path for path in self.files if path.count("/") == depth and fnmatchcase(path, pattern)]

    def under(self, directory: str) -> Listing:
        """Return the part of this listing below ``directory``, with paths relative to it."""
        prefix = f"{directory}/"
        return Listing(
            os.path.join(self.root, directory),
            {path[len(prefix) :]: entry for path, entry in self.files.items() if path.startswith(prefix)},
            {path[len(prefix) :]: reason for path, reason in self.errors.items() if path.startswith(prefix)},
            self.meter,
        )

    @property
    def size(self) -> int:
        """Bytes of all regular files."""
        return sum(entry.size for entry in self.files.values() if entry.is_file)


def scan(root: str | os.PathLike[str], *, depth: int = 8, meter: Meter | None = None) -> Listing:
    """List ``root``, at most ``depth`` directories deep; the tool's own sidecar is not entered.

    Links to directories are listed and not entered, so that a link can neither loop nor lead away.

    Raises:
        NothingFoundError: there is no such path.
    """
    location = os.fspath(root)
    meter = meter or Meter()
    try:
        status = os.stat(location)
    except OSError as error:
        raise NothingFoundError(f"{location}: {(error.strerror or 'cannot be looked at').lower()}") from None
    if not stat.S_ISDIR(status.st_mode):
        head, name = os.path.split(os.path.abspath(location))
        return Listing(head, {name: _entry(location)}, {}, meter)
    files: dict[str, FileStat] = {}
    errors: dict[str, str] = {}
    _walk(location, "", depth, files, errors)
    return Listing(location, files, errors, meter)


def _walk(root: str, below: str, depth: int, files: dict[str, FileStat], errors: dict[str, str]) -> None:
    try:
        names = sorted(os.listdir(os.path.join(root, below)))
    except OSError as error:
        errors[below or "."] = error.strerror or "cannot be listed"
        return
    for name in names:
        path = f"{below}/{name}" if below else name
        if len(files) >= MAX_ENTRIES:
            errors[below or "."] = f"more than {MAX_ENTRIES:,} entries; the rest was not listed"
            return
        entry = _entry(os.path.join(root, path))
        files[path] = entry
        if entry.kind is Kind.DIRECTORY and entry.link is None and depth > 1 and name != SIDECAR:
            _walk(root, path, depth - 1, files, errors)


def _entry(location: str) -> FileStat:
    try:
        status = os.lstat(location)
    except OSError:
        return FileStat(Kind.DANGLING)
    link: str | None = None
    if stat.S_ISLNK(status.st_mode):
        try:
            link = os.readlink(location)
            status = os.stat(location)
        except OSError as error:
            kind = Kind.LOOP if error.errno == errno.ELOOP else Kind.DANGLING
            return FileStat(kind, link=link)
    mode = status.st_mode
    if stat.S_ISREG(mode):
        kind = Kind.FILE
    elif stat.S_ISDIR(mode):
        kind = Kind.DIRECTORY
    elif stat.S_ISFIFO(mode):
        kind = Kind.FIFO
    elif stat.S_ISSOCK(mode):
        kind = Kind.SOCKET
    else:
        kind = Kind.DEVICE
    return FileStat(
        kind,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_blocks,
        link,
    )
