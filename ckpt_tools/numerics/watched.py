"""Files that are read once, with the stored checksums of their records compared on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import NamedTuple

from ckpt_tools.core.source import Source
from ckpt_tools.numerics import crc
from ckpt_tools.numerics.assembled import Files


class Stored(NamedTuple):
    """A record: its name, its bytes ``[begin, end)``, and the checksum that was stored for them."""

    name: str
    begin: int
    end: int
    crc32: int


class Wrong(NamedTuple):
    """A record whose bytes, all of which were read, do not give its checksum."""

    path: str
    name: str
    stored: int
    found: int


class WatchedFiles:
    """Files of which every read is noted, with its checksum; only those with records are."""

    def __init__(self, files: Files, records: Mapping[str, Sequence[Stored]]) -> None:
        self._files = files
        self._records = records
        self._watched: dict[str, _Watched] = {}
        self._lock = Lock()

    def __getitem__(self, path: str) -> Source:
        if not self._records.get(path):
            return self._files[path]
        found = self._watched.get(path)
        if found is None:
            source = self._files[path]
            with self._lock:
                found = self._watched.setdefault(path, _Watched(source))
        return found

    def wrong(self) -> Iterator[Wrong]:
        """Yield the records that were read whole and do not fit; one that was read in part is not judged."""
        for path, source in self._watched.items():
            pieces = {begin: (end, value) for begin, end, value in source.read_pieces}
            for record in self._records[path]:
                value = _joined(pieces, record)
                if value is not None and value != record.crc32:
                    yield Wrong(path, record.name, record.crc32, value)


class _Watched(Source):
    def __init__(self, source: Source) -> None:
        self._source = source
        self.name = source.name
        self.size = source.size
        self.read_pieces: list[tuple[int, int, int]] = []

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._source.read_into(offset, buffer)
        self.read_pieces.append((offset, offset + len(buffer), crc.crc32(buffer)))


def _joined(pieces: Mapping[int, tuple[int, int]], record: Stored) -> int | None:
    whole: int | None = None
    at = record.begin
    while at < record.end:
        if at not in pieces:
            return None
        end, value = pieces[at]
        whole = value if whole is None else crc.combine(whole, value, end - at)
        at = end
    return whole if at == record.end else None
