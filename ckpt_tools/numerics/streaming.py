"""The engine: every byte of every file is read once, by several workers, and shown to all who want it.

Work is dealt out in units of at most 32 MiB (``spans.units``), so that a single large file keeps every core busy.  A
worker has one buffer of 2 MiB; besides that, memory holds one small object per span, so a run takes ``workers``
times 2 MiB plus about 500 bytes per tensor, whatever the size of the checkpoint (views that are not dense add up
to 40 MiB each while they are gathered).

A read that fails costs the spans it was for; the rest of the file and all other files are still read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from ckpt_tools.core.errors import SourceChangedError, SourceError
from ckpt_tools.core.progress import Task
from ckpt_tools.core.source import Source
from ckpt_tools.numerics import castagnoli
from ckpt_tools.numerics import crc as crc32
from ckpt_tools.numerics.spans import BUFFER, PAGE, Fill, Piece, Span, fills, units
from ckpt_tools.numerics.statistics import Facts
from ckpt_tools.numerics.zeros import Run, merged, zero_runs

Buffer = NDArray[np.uint8]

MAX_ERRORS = 16
"""After so many failed reads the rest of a file is given up: a dying disk takes seconds for each."""

JOIN = 5.0
"""Seconds that a worker, which may hang in a read of a dead mount, is waited for after an interruption."""

Pass = Callable[[Source, Callable[[], None]], Any]
"""A pass over one tensor of its own: gets the open source and a function that raises when work is to end."""


@dataclass(frozen=True)
class Job:
    """One file: its name, how it is opened, what is read of it in order of position, and passes besides that.

    ``sink`` gets every run of bytes that was read, with its place in the source, from several threads.
    """

    name: str
    open: Callable[[], Source]
    spans: Sequence[Span]
    passes: Sequence[Pass] = ()
    zeros: bool = False
    sink: Callable[[int, memoryview], None] | None = None


@dataclass(slots=True)
class SpanOutcome:
    """What became of a span; ``crc`` and ``digests`` (one for each piece) only where they were asked for."""

    crc: int | None = None
    facts: Facts | None = None
    digests: list[bytes] = field(default_factory=list)
    read: bool = True


@dataclass(slots=True)
class Outcome:
    """What became of a file.  ``zeros`` are positions in the file; ``passes`` are results, or the error of each."""

    spans: list[SpanOutcome]
    passes: list[Any]
    zeros: list[Run] = field(default_factory=list)
    errors: list[SourceError] = field(default_factory=list)
    bytes_read: int = 0


def processors() -> int:
    """Return the number of processors that this process may use."""
    return max(1, os.cpu_count() or 1)


class Stopped(Exception):
    """Work is to end: the user interrupted it, or another worker failed."""


_Found = tuple[int, int, int, int | None, Facts | None, bytes | None]
"""A piece: number of the span, begin, end, and what each consumer made of it."""


@dataclass(slots=True)
class _Result:
    """What one unit found, by piece."""

    job: int
    size: int = 0
    read: int = 0
    pieces: list[_Found] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    zeros: list[Run] = field(default_factory=list)
    errors: list[SourceError] = field(default_factory=list)
    passed: tuple[int, Any] | None = None
    crash: BaseException | None = None


def stream(jobs: Sequence[Job], *, workers: int, task: Task) -> list[Outcome]:
    """Read every job's spans once and return what was found, in the order of ``jobs``.

    ``task`` is advanced by bytes, from the calling thread alone.  On an interruption the workers end at their next
    read.
    """
    return _Run(jobs, max(1, workers), task).run()


class _Open:
    """A file that several workers read; opened at its first unit, closed after its last."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._left = 0
        self._all_dealt = False
        self.errors = 0
        self.failure: SourceError | None = None

    def expect(self) -> None:
        with self._lock:
            self._left += 1

    def all_dealt(self) -> None:
        with self._lock:
            self._all_dealt = True
            self._maybe_close()

    def source(self) -> Source:
        with self._lock:
            if self.failure is not None:
                raise self.failure
            if self._source is None:
                try:
                    self._source = self._job.open()
                except SourceError as error:
                    self.failure = error
                    raise
            return self._source

    def done(self) -> None:
        with self._lock:
            self._left -= 1
            self._maybe_close()

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def _maybe_close(self) -> None:
        if self._all_dealt and not self._left:
            self.close()


class _Run:
    def __init__(self, jobs: Sequence[Job], workers: int, task: Task) -> None:
        self.jobs = jobs
        self.task = task
        self.workers = workers
        self.files = [_Open(job) for job in jobs]
        self.results: SimpleQueue[_Result | None] = SimpleQueue()
        self.stop = threading.Event()
        self._work = self._deal()
        self._dealing = threading.Lock()

    def run(self) -> list[Outcome]:
        threads = [threading.Thread(target=self._worker, daemon=True) for _ in range(self.workers)]
        outcomes = [Outcome([SpanOutcome() for _ in job.spans], [None] * len(job.passes)) for job in self.jobs]
        held: list[dict[int, list[_Found]]] = [{} for _ in self.jobs]
        running = len(threads)
        try:
            for thread in threads:
                thread.start()
            while running:
                result = self.results.get()
                if result is None:
                    running -= 1
                    continue
                if result.crash is not None:
                    raise result.crash
                self._take(result, outcomes[result.job], held[result.job])
                self.task.advance(result.size)
        finally:
            self.stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join(JOIN)
            if not any(thread.is_alive() for thread in threads):
                for file in self.files:
                    file.close()
        for outcome in outcomes:
            outcome.zeros = merged(outcome.zeros)
        return outcomes

    def _take(self, result: _Result, outcome: Outcome, held: dict[int, list[_Found]]) -> None:
        outcome.errors += result.errors
        outcome.zeros += result.zeros
        outcome.bytes_read += result.read
        if result.passed is not None:
            outcome.passes[result.passed[0]] = result.passed[1]
        spans = self.jobs[result.job].spans
        for number in result.lost:
            outcome.spans[number].read = False
        for found in result.pieces:
            number = found[0]
            if found[2] - found[1] == spans[number].length:
                self._settle(outcome.spans[number], [found], spans[number].crc)
            else:
                parts = held.setdefault(number, [])
                parts.append(found)
                if sum(part[2] - part[1] for part in parts) == spans[number].length:
                    parts.sort(key=lambda part: part[1])
                    self._settle(outcome.spans[number], held.pop(number), spans[number].crc)

    @staticmethod
    def _settle(outcome: SpanOutcome, parts: list[_Found], checksum: str) -> None:
        """Put the pieces of a span, which are in order, together."""
        combine = castagnoli.combine if checksum == "crc32c" else crc32.combine
        crc: int | None = None
        for _, begin, end, piece_crc, facts, digest in parts:
            if piece_crc is not None:
                crc = piece_crc if crc is None else combine(crc, piece_crc, end - begin)
            if facts is not None:
                if outcome.facts is None:
                    outcome.facts = facts
                else:
                    outcome.facts.merge(facts)
            if digest is not None:
                outcome.digests.append(digest)
        outcome.crc = crc

    # Workers -----------------------------------------------------------------------------------------------

    def _deal(self) -> Iterator[tuple[int, list[Piece] | int]]:
        for number, job in enumerate(self.jobs):
            for unit in units(job.spans):
                self.files[number].expect()
                yield number, unit
            for position in range(len(job.passes)):
                self.files[number].expect()
                yield number, position
            self.files[number].all_dealt()

    def _next(self) -> tuple[int, list[Piece] | int] | None:
        with self._dealing:
            return next(self._work, None)

    def _worker(self) -> None:
        raw = np.empty(BUFFER + PAGE, np.uint8)
        skip = -raw.ctypes.data % PAGE
        buffer = raw[skip : skip + BUFFER]
        try:
            while not self.stop.is_set():
                work = self._next()
                if work is None:
                    break
                number, what = work
                result = _Result(number)
                try:
                    if isinstance(what, int):
                        self._pass(number, what, result)
                    else:
                        self._unit(number, what, result, buffer)
                except Stopped:
                    break
                finally:
                    self.files[number].done()
                self.results.put(result)
        except BaseException as error:  # noqa: BLE001 - the calling thread raises it
            self.results.put(_Result(0, crash=error))
        finally:
            self.results.put(None)

    def _check(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def _pass(self, number: int, position: int, result: _Result) -> None:
        try:
            found = self.jobs[number].passes[position](self.files[number].source(), self._check)
        except SourceError as error:
            found = error
        result.passed = position, found

    def _unit(self, number: int, unit: list[Piece], result: _Result, buffer: Buffer) -> None:
        job, file = self.jobs[number], self.files[number]
        result.size = sum(end - begin for _, begin, end in unit)
        try:
            source = file.source()
        except SourceError as error:
            result.lost.update(piece[0] for piece in unit)
            if not file.errors:
                file.errors = MAX_ERRORS
                result.errors.append(error)
            return
        reader = _Reader(job, source, result, buffer)
        for fill in fills(job.spans, unit, source.base):
            self._check()
            if file.errors >= MAX_ERRORS:
                result.lost.update(piece[0] for piece in fill[2])
                continue
            failed = len(result.errors)
            reader.fill(fill)
            file.errors += len(result.errors) - failed
            if result.errors and isinstance(result.errors[-1], SourceChangedError):
                file.errors = MAX_ERRORS
        reader.end()


class _Reader:
    """Reads the fills of one unit and shows them to the consumers."""

    def __init__(self, job: Job, source: Source, result: _Result, buffer: Buffer) -> None:
        self.spans = job.spans
        self.zeros = job.zeros
        self.sink = job.sink
        self.source = source
        self.result = result
        self.buffer = buffer
        self.memory = buffer.data
        self._number = -1
        self._begin = self._reached = 0
        self._crc: int | None = None
        self._facts: Facts | None = None
        self._hash: Any = None

    def fill(self, fill: Fill) -> None:
        offset, length, pieces = fill
        if not self._read(offset, length, pieces):
            return
        self.result.read += length
        if self.sink is not None:
            self.sink(offset, self.memory[:length])
        if self.zeros:
            self.result.zeros += zero_runs(self.buffer[:length], self.source.base + offset)
        for number, begin, end in pieces:
            span = self.spans[number]
            at = span.offset + begin - offset
            if self._number == number and self._reached == begin:
                self._reached = end
            else:
                self.end()
                self._number, self._begin, self._reached = number, begin, end
                self._crc = 0 if span.crc else None
                self._facts = Facts(span.dtype, span.byteorder, span.negative) if span.dtype else None
                self._hash = blake3() if span.digest else None
            if self._crc is not None:
                feed = castagnoli.crc32c if span.crc == "crc32c" else crc32.crc32
                self._crc = feed(self.memory[at : at + end - begin], self._crc)
            if self._facts is not None:
                self._facts.feed(self.buffer[at : at + end - begin], begin // span.width)
            if self._hash is not None:
                self._hash.update(self.memory[at : at + end - begin])

    def end(self) -> None:
        """Note what was found of the piece at hand."""
        if self._number < 0:
            return
        digest = self._hash.digest() if self._hash is not None else None
        self.result.pieces.append((self._number, self._begin, self._reached, self._crc, self._facts, digest))
        self._number = -1

    def _read(self, offset: int, length: int, pieces: list[Piece]) -> bool:
        try:
            self.source.read_into(offset, self.memory[:length])
        except SourceError as error:
            if len(pieces) > 1 and not isinstance(error, SourceChangedError):
                for piece in pieces:  # which of them cannot be read?
                    if len(self.result.errors) >= MAX_ERRORS:
                        self.result.lost.add(piece[0])
                        continue
                    begin = self.spans[piece[0]].offset + piece[1]
                    self.fill((begin, piece[2] - piece[1], [piece]))
                return False
            self.end()
            self.result.errors.append(error)
            self.result.lost.update(piece[0] for piece in pieces)
            return False
        return True
