"""Writes merged weights beside their place, and gives them their name when all of it was read back as it should be.

Every block is read back while it is still in the cache and compared with the source's bytes, so one digest, taken
while reading, is that of the source and of what was written.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock, local
from typing import Self

from ckpt_tools.containers import reader
from ckpt_tools.core.durable import Disk, look
from ckpt_tools.core.errors import CkptError, EditRefusedError, SourceChangedError
from ckpt_tools.core.listing import scan
from ckpt_tools.core.progress import Progress, Task
from ckpt_tools.core.source import FileSource, Source
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.numerics.assembled import Assembled, Files, OpenFiles
from ckpt_tools.numerics.crc import crc32
from ckpt_tools.numerics.digest import finish, tensor_head
from ckpt_tools.numerics.spans import BUFFER, Span
from ckpt_tools.numerics.streaming import Job, Outcome, stream
from ckpt_tools.numerics.watched import Stored, WatchedFiles

INDEX = "model.safetensors.index.json"

_CONSTANT = ("/version", "/byteorder")
"""Records that every torch file has: where even these do not fit, checksums were never stored."""

MOST_CONSTANT = 64

BEHIND = 1 << 27
"""So many bytes may wait for the disk before it is made to write: at the end little is left to wait for."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A file to be written: its header, and its tensors in order."""

    name: str
    header: bytes
    tensors: tuple[TensorRef, ...]

    @property
    def size(self) -> int:
        return len(self.header) + sum(ref.nbytes for ref in self.tensors)


@dataclass(frozen=True, slots=True)
class Output:
    """A directory to be made."""

    path: str
    shards: tuple[Shard, ...]
    copied: tuple[Part, ...]
    index: bytes | None

    @property
    def size(self) -> int:
        return sum(shard.size for shard in self.shards) + sum(part.stat.size for part in self.copied)


def write(view: View, output: Output, disk: Disk, jobs: int, progress: Progress) -> dict[str, str]:
    """Make the directory, all of it or nothing, and return the digest of every tensor.

    Raises:
        EditRefusedError: the weights are damaged, or somebody else made the directory.
        CkptError: the system refused something, or the new files do not hold what was read.
    """
    beside = f"{output.path}.tmp-{secrets.token_hex(4)}"
    total = sum(shard.size for shard in output.shards)
    try:
        disk.mkdir(beside)
        with progress.task("merging", total, "B") as task:
            digests = _tensors(view, output, beside, disk, jobs, task)
        _others(view, output, beside, disk)
        _still(view, output)
        _sync(output, beside, disk)
        _compare(output, beside)
        if look(output.path) is not None:
            raise EditRefusedError(f"{output.path}: exists already")
        disk.rename(beside, output.path)
        disk.sync_directory(os.path.dirname(os.path.abspath(output.path)))
        return digests
    except BaseException as error:
        _remove(output, beside, disk)
        if isinstance(error, OSError):
            raise CkptError(f"{output.path}: cannot be written: {(error.strerror or str(error)).lower()}") from None
        raise


def _tensors(view: View, output: Output, beside: str, disk: Disk, jobs: int, task: Task) -> dict[str, str]:
    """Write the files and return the digests of what was read for each tensor."""
    places: list[TensorRef] = []
    work: list[Job] = []
    with OpenFiles(view.listing) as opened, _Writer(disk) as writer:
        files = WatchedFiles(opened, _records(view, output))
        for shard in output.shards:
            path = os.path.join(beside, shard.name)
            back = writer.file(path, shard.header)
            at = len(shard.header)
            for ref in shard.tensors:
                places.append(ref)
                work.append(_job(ref, files, partial(writer.put, back, at)))
                at += ref.nbytes
        outcomes = stream(work, workers=jobs, task=task)
        writer.settle()
        damaged = [wrong for wrong in files.wrong() if _stores_checksums(view, wrong.path)]
    for outcome in outcomes:
        for error in outcome.errors:
            raise error
    if damaged:
        first, more = damaged[0], f" and {len(damaged) - 1:,} more" if len(damaged) > 1 else ""
        raise EditRefusedError(
            f"{first.path}: the checksum of record {first.name} does not fit its bytes [CK401]{more}",
            hint="copy the file again, or fall back to an older checkpoint",
        )
    return {ref.fqn: _digest(ref, outcome) for ref, outcome in zip(places, outcomes, strict=True)}


def _job(ref: TensorRef, files: Files, sink: Callable[[int, memoryview], None]) -> Job:
    spans = [Span(0, ref.nbytes, digest=True)] if ref.nbytes else []
    return Job(ref.fqn, partial(Assembled, ref, files), spans, sink=sink)


class _Writer:
    """Writes blocks of several threads and reads each back; one more thread keeps the disk from falling behind."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._writing = Lock()
        self._lock = Lock()
        self._waiting = 0
        self._behind: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1)
        self._stack = ExitStack()
        self._own = local()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._stack.close()

    def file(self, path: str, begin: bytes) -> Source:
        """Make a file and return it as it can be read."""
        self._disk.create(path, begin)
        return self._stack.enter_context(FileSource(path, path))

    def put(self, back: Source, at: int, offset: int, data: memoryview) -> None:
        with self._writing:  # the system lets one thread write to a file, and the others wait busily
            self._disk.write(back.name, at + offset, data)
        if not hasattr(self._own, "buffer"):
            self._own.buffer = bytearray(BUFFER)
        found: bytearray = self._own.buffer if len(data) == BUFFER else bytearray(len(data))
        back.read_into(at + offset, memoryview(found))
        if found != data:
            raise CkptError(f"{back.name}: was not read back as it was written, at byte {at + offset:,}")
        with self._lock:
            self._waiting += len(data)
            if self._waiting >= BEHIND and (self._behind is None or self._behind.done()):
                self.settle()
                self._waiting = 0
                self._behind = self._pool.submit(self._disk.flush, back.name)

    def settle(self) -> None:
        """Wait for the disk, and raise what it said: the system tells of an error once."""
        if self._behind is not None:
            self._behind.result()


def _digest(ref: TensorRef, outcome: Outcome) -> str:
    pieces = [digest for span in outcome.spans for digest in span.digests]
    return finish(tensor_head(ref.dtype, ref.shape), pieces)


def _records(view: View, output: Output) -> dict[str, list[Stored]]:
    """Return the records with checksums in the files that the weights lie in."""
    used = {chunk.extent.path for shard in output.shards for ref in shard.tensors for chunk in ref.chunks}
    found: dict[str, list[Stored]] = {}
    for part in view.checkpoint.parts:
        content = view.content(part) if part.path in used else None
        if content is not None and content.facts.get("crc_stored"):
            skipped = frozenset(content.facts.get("compressed", ()))
            found[part.path] = [
                Stored(record.name, record.extent.offset, record.extent.end, record.crc32)
                for record in content.records
                if record.crc32 is not None and record.extent.length and record.name not in skipped
            ]
    return found


def _stores_checksums(view: View, path: str) -> bool:
    """Whether the checksums of a file are any: those of what stands in every such file fit."""
    part = next(part for part in view.checkpoint.parts if part.path == path)
    content = view.content(part)
    with view.listing.open(path) as source:
        return all(
            crc32(source.read(record.extent.offset, record.extent.length)) == record.crc32
            for record in (content.records if content is not None else ())
            if record.name.endswith(_CONSTANT) and record.extent.length < MOST_CONSTANT
        )


def _others(view: View, output: Output, beside: str, disk: Disk) -> None:
    for part in output.copied:
        with view.listing.open(part.path) as source:
            disk.create(os.path.join(beside, part.path), source.read(0, source.size))
    if output.index is not None:
        disk.create(os.path.join(beside, INDEX), output.index)


def _still(view: View, output: Output) -> None:
    """Refuse when a file was changed while it was read."""
    used = {chunk.extent.path for shard in output.shards for ref in shard.tensors for chunk in ref.chunks}
    for path in sorted(used):
        before = view.listing.files[path]
        now = next(iter(scan(os.path.join(view.listing.root, path)).files.values()))
        if (now.size, now.mtime_ns) != (before.size, before.mtime_ns):
            raise SourceChangedError(path, "changed while it was read")


def _compare(output: Output, beside: str) -> None:
    """Open the new files as anybody would, and require that every tensor is where it was written."""
    listing = scan(beside)
    for shard in output.shards:
        with listing.open(shard.name) as source:
            content = reader.read(source)
        at = len(shard.header)
        for ref in shard.tensors:
            now = content.tensors.get(ref.fqn)
            place = now.chunks[0].extent[1:] if now is not None and now.chunks else (at, 0)
            if now is None or (now.dtype, now.shape, place) != (ref.dtype, ref.shape, (at, ref.nbytes)):
                raise CkptError(f"{output.path}: {shard.name}: {ref.fqn} is not where it was written")
            at += ref.nbytes
        if content.problems or len(content.tensors) != len(shard.tensors):
            raise CkptError(f"{output.path}: {shard.name}: is not the file that was meant")


def _names(output: Output) -> Iterator[str]:
    yield from (shard.name for shard in output.shards)
    yield from (part.path for part in output.copied)
    if output.index is not None:
        yield INDEX


def _sync(output: Output, beside: str, disk: Disk) -> None:
    for name in _names(output):
        disk.sync(os.path.join(beside, name))
    disk.sync_directory(beside)


def _remove(output: Output, beside: str, disk: Disk) -> None:
    for name in _names(output):
        with suppress(OSError):
            disk.unlink(os.path.join(beside, name))
    with suppress(OSError):
        disk.rmdir(beside)
