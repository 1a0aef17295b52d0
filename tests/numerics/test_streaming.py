"""The engine: all bytes once, any cut, any number of workers, faults that stay where they are."""

from __future__ import annotations

import errno
import random
import threading
import zlib
from collections import Counter

import numpy as np
import pytest
from blake3 import blake3

from ckpt_tools.core.errors import SourceChangedError, SourceError
from ckpt_tools.core.source import BytesSource, Source
from ckpt_tools.numerics import spans as cuts
from ckpt_tools.numerics import streaming
from ckpt_tools.numerics.spans import Span, fills, units
from ckpt_tools.numerics.streaming import Job, stream
from ckpt_tools.numerics.zeros import merged, whole_pages, zero_runs


class Counting:
    """A task that notes who advanced it and by how much."""

    def __init__(self) -> None:
        self.done = 0
        self.threads: set[int] = set()

    def advance(self, amount: int) -> None:
        self.done += amount
        self.threads.add(threading.get_ident())


class Watched(BytesSource):
    """Bytes that count how often each was read, and fail where they are told to."""

    def __init__(self, data: bytes, name: str = "f", bad: range = range(0), ends: int | None = None) -> None:
        super().__init__(data, name)
        self.reads = np.zeros(len(data), np.uint8)
        self.sizes: list[int] = []
        self.bad = bad
        self.ends = ends
        self.closed = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        if self.ends is not None and end > self.ends:
            raise SourceChangedError(self.name, f"became shorter while it was read, at byte {self.ends:,}")
        if self.bad and offset < self.bad.stop and end > self.bad.start:
            raise SourceError(self.name, f"Input/output error at byte {max(offset, self.bad.start):,}", errno=errno.EIO)
        self.reads[offset:end] += 1
        self.sizes.append(len(buffer))
        super().read_into(offset, buffer)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(params=[(1 << 21, 1 << 25), (4096, 1 << 14)], ids=["as-is", "small"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    buffer, piece = request.param
    monkeypatch.setattr(cuts, "BUFFER", buffer)
    monkeypatch.setattr(streaming, "BUFFER", buffer)
    monkeypatch.setattr(cuts, "PIECE", piece)
    return buffer, piece


def random_spans(generator: random.Random, total: int) -> list[Span]:
    spans, at = [], 0
    while at < total:
        length = min(generator.choice([1, 3, 16, 64, 700, 4096, 5000, 20_000, 70_000]), total - at)
        dtype = generator.choice(["", "float32", "bfloat16"])
        width = {"": 1, "float32": 4, "bfloat16": 2}[dtype]
        length = max(width, length // width * width)
        if at + length > total:
            dtype, length = "", total - at
        spans.append(Span(at, length, dtype, crc=generator.random() < 0.7, digest=generator.random() < 0.5))
        at += length
    return spans


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("seed", range(6))
def test_every_byte_once_and_every_consumer_right(seed: int, workers: int, sizes: tuple[int, int]) -> None:
    generator = random.Random(seed)
    jobs, sources = [], []
    for number in range(3):
        data = bytearray(generator.randbytes(generator.randrange(1, 300_000)))
        for _ in range(3):
            begin = generator.randrange(len(data))
            data[begin : begin + 9000] = bytes(len(data[begin : begin + 9000]))
        source = Watched(bytes(data), str(number))
        sources.append(source)
        jobs.append(Job(str(number), lambda source=source: source, random_spans(generator, len(data)), (), True))
    task = Counting()
    outcomes = stream(jobs, workers=workers, task=task)
    assert task.done == sum(source.size for source in sources)
    assert task.threads == {threading.get_ident()}
    for job, source, outcome in zip(jobs, sources, outcomes, strict=True):
        data = bytes(source._data)
        assert set(source.reads.tolist()) == {1}
        assert max(source.sizes) <= sizes[0]
        assert source.closed == 1
        assert outcome.bytes_read == len(data)
        for span, found in zip(job.spans, outcome.spans, strict=True):
            piece = data[span.offset : span.offset + span.length]
            assert found.read
            assert found.crc == (zlib.crc32(piece) if span.crc else None)
            hashes = [blake3(piece[at : at + sizes[1]]).digest() for at in range(0, len(piece), sizes[1])]
            assert found.digests == (hashes if span.digest else [])
            if span.dtype == "float32":
                values = np.frombuffer(piece, np.float32)
                assert found.facts is not None
                assert (found.facts.nan, found.facts.inf) == (np.isnan(values).sum(), np.isinf(values).sum())
                bad = np.flatnonzero(~np.isfinite(values))
                assert found.facts.first_bad == (int(bad[0]) if len(bad) else None)
        pages = [
            (at, min(at + 4096, len(data)))
            for at in range(0, len(data), 4096)
            if not any(data[at : at + 4096])
        ]  # fmt: skip
        assert whole_pages(outcome.zeros, len(data)) == merged(pages)


def test_an_error_costs_what_it_hits_alone(sizes: tuple[int, int]) -> None:
    data = random.Random(1).randbytes(200_000)
    spans = [Span(at, 10_000, crc=True) for at in range(0, 200_000, 10_000)]
    source = Watched(data, "bad.pt", bad=range(55_000, 55_512))
    other = Watched(data, "good.pt")
    (hurt, fine) = stream(
        [Job("bad.pt", lambda: source, spans), Job("good.pt", lambda: other, spans)], workers=2, task=Counting()
    )
    assert [number for number, found in enumerate(hurt.spans) if not found.read] == [5]
    assert {number for number, found in enumerate(hurt.spans) if found.crc is None} == {5}
    assert [(error.path, error.errno) for error in hurt.errors] == [("bad.pt", errno.EIO)]
    assert "55,000" in str(hurt.errors[0])
    assert all(
        found.crc == zlib.crc32(data[s.offset : s.offset + s.length])
        for s, found in zip(spans, fine.spans, strict=True)
    )


def test_a_file_that_shrinks_is_told_once_and_given_up(sizes: tuple[int, int]) -> None:
    data = random.Random(2).randbytes(400_000)
    source = Watched(data, "short.pt", ends=120_000)
    spans = [Span(at, 10_000, crc=True) for at in range(0, 400_000, 10_000)]
    (outcome,) = stream([Job("short.pt", lambda: source, spans)], workers=1, task=Counting())
    assert outcome.errors
    assert all(isinstance(error, SourceChangedError) for error in outcome.errors)
    assert len(outcome.errors) == 1
    assert not outcome.spans[-1].read


def test_a_dying_disk_is_not_asked_for_ever() -> None:
    data = bytes(1_000_000)
    source = Watched(data, "dead", bad=range(1_000_000))
    spans = [Span(at, 1000, crc=True) for at in range(0, 1_000_000, 1000)]
    (outcome,) = stream([Job("dead", lambda: source, spans)], workers=1, task=Counting())
    assert len(outcome.errors) == streaming.MAX_ERRORS
    assert not any(found.read for found in outcome.spans)


def test_a_file_that_cannot_be_opened_is_one_error() -> None:
    def refuse() -> Source:
        raise SourceError("locked", "Permission denied", errno=errno.EACCES)

    data = b"abc" * 100
    jobs = [
        Job("locked", refuse, [Span(0, 10), Span(10, 10)]),
        Job("fine", lambda: BytesSource(data, "fine"), [Span(0, 300, crc=True)]),
    ]
    locked, fine = stream(jobs, workers=2, task=Counting())
    assert [error.errno for error in locked.errors] == [errno.EACCES]
    assert fine.spans[0].crc == zlib.crc32(data)


def test_a_crash_of_a_worker_reaches_the_caller() -> None:
    class Broken(BytesSource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stream([Job("f", lambda: Broken(b"12345", "f"), [Span(0, 5)])], workers=3, task=Counting())


def test_an_interruption_ends_the_workers_at_their_next_read() -> None:
    """Ctrl-C arrives in the calling thread; the readers are held until then, so that work is surely left."""
    interrupted = threading.Event()

    class Slow(Watched):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            if offset >= 1 << 25:
                interrupted.wait(30)
            super().read_into(offset, buffer)

    class Interrupting(Counting):
        def advance(self, amount: int) -> None:
            interrupted.set()
            raise KeyboardInterrupt

    source = Slow(bytes(5 << 25))
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        stream([Job("f", lambda: source, [Span(0, 5 << 25)])], workers=2, task=Interrupting())
    assert threading.active_count() == before
    assert source.closed == 1


def test_memory_is_one_buffer_for_each_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[int] = Counter()
    empty = np.empty

    def counted(shape: int, dtype: object = float) -> object:
        asked[shape] += 1
        return empty(shape, dtype)

    monkeypatch.setattr(streaming.np, "empty", counted)
    data = bytes(10_000_000)
    source = Watched(data)
    stream([Job("f", lambda: source, [Span(0, len(data), crc=True)])], workers=3, task=Counting())
    assert asked == {cuts.BUFFER + cuts.PAGE: 3}
    assert max(source.sizes) <= cuts.BUFFER


def test_fills_never_split_an_element_and_end_at_pages() -> None:
    spans = [Span(8, 40, "float64"), Span(48, 10_000_000, "float64"), Span(10_000_048, 12, "float32")]
    (unit,) = units(spans)
    seen = list(fills(spans, unit, 0))
    assert seen[0][2][0][0] == 0
    inner = [(offset, length) for offset, length, pieces in seen if pieces[0][0] == 1]
    assert all(offset % 4096 == 0 for offset, _ in inner[1:])
    assert all(begin % 8 == 0 for _, _, pieces in seen for _, begin, _ in pieces)


def test_zero_pages_are_told_by_their_place_in_the_file() -> None:
    block = np.ones(5 * 4096, np.uint8)
    block[4096 : 3 * 4096] = 0
    assert zero_runs(block, 0) == [(4096, 3 * 4096)]
    assert whole_pages(zero_runs(block, 100), 1 << 30) == [(8192, 12288)]
    assert whole_pages([*zero_runs(block[:6000], 0), *zero_runs(block[6000:], 6000)], 1 << 30) == [(4096, 3 * 4096)]
