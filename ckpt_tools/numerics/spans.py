"""What is read of a file, cut into work: spans into pieces, pieces into units for the workers, units into fills of a
buffer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ckpt_tools.numerics.digest import PIECE
from ckpt_tools.numerics.statistics import WIDTHS

BUFFER = 1 << 21
"""Bytes of one worker's buffer.

Measured: with one thread 256 KiB to 4 MiB are alike.  Two threads hand the interpreter's lock over at every read,
checksum and reduction, and with 256 KiB these hand-overs, not the memory, bind: 2 MiB made two threads twice as fast
and still fits the cache.
"""

PAGE = 4096
GAP = 4096
"""Spans that lie closer together than this are read in one go."""

MANY = 4096
"""At most so many pieces in one unit of work."""


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive bytes of a source that are judged together: a tensor, or what lies between tensors.

    ``dtype`` names the float (or bool) type to look at, ``""`` for bytes without one.  ``crc`` is the checksum that is
    wanted (``crc32`` or ``crc32c``); ``digest`` and ``zeros`` ask for their consumers, ``negative`` for a count of
    elements below zero.
    """

    offset: int
    length: int
    dtype: str = ""
    byteorder: str = "little"
    crc: str = ""
    digest: bool = False
    negative: bool = False

    @property
    def width(self) -> int:
        return WIDTHS.get(self.dtype, 1)


Piece = tuple[int, int, int]
"""``(number of the span, begin, end)`` in bytes of the span; begins at a multiple of ``PIECE``."""

Fill = tuple[int, int, list[Piece]]
"""One read: ``(offset in the source, length, pieces in it)``; a piece larger than a buffer has fills of its own."""


def units(spans: Sequence[Span]) -> Iterator[list[Piece]]:
    """Cut spans, which are in order of position, into units of about 32 MiB that any worker can take."""
    unit: list[Piece] = []
    size = 0
    for number, span in enumerate(spans):
        for begin in range(0, span.length, PIECE):
            end = min(begin + PIECE, span.length)
            unit.append((number, begin, end))
            size += end - begin
            if size >= PIECE or len(unit) >= MANY:
                yield unit
                unit, size = [], 0
    if unit:
        yield unit


def fills(spans: Sequence[Span], unit: Iterable[Piece], base: int) -> Iterator[Fill]:
    """Cut a unit into reads of at most ``BUFFER`` bytes that never split an element.

    ``base`` is where the source begins in its file: reads of large pieces end at pages of the file.
    """
    batch: list[Piece] = []
    start = stop = 0
    for piece in unit:
        number, begin, end = piece
        span = spans[number]
        first, last = span.offset + begin, span.offset + end
        if last - first > BUFFER:
            if batch:
                yield start, stop - start, batch
                batch = []
            into_page = (base + first) % PAGE
            short = into_page if into_page % span.width == 0 else 0
            while begin < end:
                length = min(BUFFER - short, end - begin)
                yield span.offset + begin, length, [(number, begin, begin + length)]
                begin += length
                short = 0
            continue
        if batch and (last - start > BUFFER or first - stop > GAP):
            yield start, stop - start, batch
            batch = []
        if not batch:
            start = first
        batch.append(piece)
        stop = last
    if batch:
        yield start, stop - start, batch
