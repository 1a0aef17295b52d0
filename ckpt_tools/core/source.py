"""Positional reads from files and from windows of files.

No memory maps: a file that is truncated underneath a mapping kills the process.  Every read passes a
``Meter``, so that "lazy" is a number that a test can look at.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

from ckpt_tools.core.errors import SourceChangedError, SourceError


class Extent(NamedTuple):
    """A run of ``length`` bytes at ``offset`` of the file ``path`` (POSIX, relative to the checkpoint)."""

    path: str
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(slots=True)
class Meter:
    """Counts the bytes that were read and the files that were opened."""

    bytes_read: int = 0
    opened: list[str] = field(default_factory=list)


class Source(ABC):
    """Bytes with a known size that are read by position; safe to share between threads.

    ``name`` is the path that messages show; ``base`` is where byte 0 of this source lies in that file.
    """

    name: str
    size: int
    base: int = 0

    @abstractmethod
    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``; the range must lie inside the source.

        Raises:
            SourceChangedError: the file has become shorter since it was opened.
            SourceError: the operating system refused the read.
        """

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes of ``[offset, offset + length)``, clamped to the source's size."""
        length = max(0, min(length, self.size - offset))
        if length == 0:
            return b""
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def chunks(self, size: int = 1 << 18) -> Iterator[memoryview]:
        """Yield the whole source in order, in pieces of ``size`` bytes that reuse one buffer."""
        buffer = memoryview(bytearray(min(size, self.size) or 1))
        for offset in range(0, self.size, size):
            piece = buffer[: min(size, self.size - offset)]
            self.read_into(offset, piece)
            yield piece

    def window(self, offset: int, length: int) -> Source:
        """Return a source over ``length`` bytes at ``offset`` of this one."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"window {offset}+{length} outside of {self.size} bytes")
        return WindowSource(self, offset, length)

    def close(self) -> None:
        """Release what the source holds open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FileSource(Source):
    """A regular file, opened without blocking and never followed into a pipe or a device."""

    def __init__(self, location: str | os.PathLike[str], name: str, meter: Meter | None = None) -> None:
        self.name = name
        self._meter = meter or Meter()
        try:
            self._fd = os.open(location, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(name, error.strerror or "cannot be opened", errno=error.errno) from None
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise SourceError(name, "not a regular file")
        self.size = status.st_size
        self._meter.opened.append(name)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                reason = f"{error.strerror} at byte {offset + done:,}"
                raise SourceError(self.name, reason, errno=error.errno) from None
            if count == 0:
                raise SourceChangedError(self.name, f"became shorter while it was read, at byte {offset + done:,}")
            done += count
        self._meter.bytes_read += done

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class WindowSource(Source):
    """A run of bytes of another source, which stays the owner of the open file."""

    def __init__(self, parent: Source, offset: int, length: int) -> None:
        self._parent = parent
        self._offset = offset
        self.name = parent.name
        self.size = length
        self.base = parent.base + offset

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self.size:
            raise SourceChangedError(self.name, f"read past the end of a window of {self.size:,} bytes")
        self._parent.read_into(self._offset + offset, buffer)


class BytesSource(Source):
    """Bytes in memory, for parts of files that were already read; ``base`` is where they lie in their file."""

    def __init__(self, data: bytes, name: str, base: int = 0) -> None:
        self._data = memoryview(data)
        self.name = name
        self.size = len(data)
        self.base = base

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self.size:
            raise SourceChangedError(self.name, f"read past the end of {self.size:,} bytes")
        buffer[:] = self._data[offset : offset + len(buffer)]
