"""Chunks of zarr arrays: compressed numbers, of which the frame alone is walked and nothing is decompressed.

A chunk is stored as long as its array's ``chunks`` say, those at the edge too, so that its length is known before.
"""

from __future__ import annotations

from ckpt_tools.core.source import Source
from ckpt_tools.model.findings import Problem, Spot

MAGIC = b"\x28\xb5\x2f\xfd"
MOST_BLOCKS = 1024
"""Blocks of Zstandard, of up to 128 KiB each, that are stepped over where not everything is looked at."""

_CUT = "file-cut-short"
_STOPS = "tensorstore refuses to read the array"


class _Wrong(Exception):
    """What is wrong with a chunk; ``kind`` is the name of the rule that tells it."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def problem(
    source: Source, compressor: str | None, expected: int | None, *, everything: bool = False
) -> Problem | None:
    """Return what is wrong with a chunk that should give ``expected`` bytes, None where that is not known or nothing.

    Raises:
        SourceError: the file could not be read.
    """
    try:
        if compressor == "zstd":
            held = _zstandard(source, None if everything else MOST_BLOCKS)
        elif compressor == "blosc":
            held = _blosc(source)
        elif compressor == "gzip":
            held = _gzip(source, expected or 0)
        else:
            held = source.size if compressor is None else None
        if held is not None and expected is not None and held != expected:
            short = compressor is None and held < expected
            raise _Wrong(
                _CUT if short else "array-chunk-damaged", f"it holds {held:,} bytes, the array needs {expected:,}"
            )
    except _Wrong as wrong:
        message = "the chunk is cut short" if wrong.kind == _CUT else "the chunk is damaged"
        return Problem(
            wrong.kind, message, (str(wrong), _STOPS), Spot(offset=source.size) if wrong.kind == _CUT else Spot()
        )
    return None


def _zstandard(source: Source, most: int | None) -> int | None:
    """Return how many bytes the frames hold, None where they do not say so or are more than ``most`` blocks."""
    at = held = blocks = 0
    known = True
    while not at or at < source.size:
        head = source.read(at, min(14, source.size - at))
        if head[:4] != MAGIC[: len(head)] or (at and len(head) < 4):
            raise _Wrong("array-chunk-damaged", f"no frame of Zstandard begins at byte {at:,}")
        length, size, tail = _header(head)
        known, held, at = known and size is not None, held + (size or 0), at + length
        last = False
        while not last:
            if blocks == most:
                return None
            _room(source, at + 3)
            mark = int.from_bytes(source.read(at, 3), "little")
            last, kind, stored = bool(mark & 1), mark >> 1 & 3, mark >> 3
            if kind == 3:
                raise _Wrong("array-chunk-damaged", f"the block at byte {at:,} is of a kind that there is not")
            at, blocks = at + 3 + (1 if kind == 1 else stored), blocks + 1
        at += tail
        _room(source, at)
    return held if known else None


def _header(head: bytes) -> tuple[int, int | None, int]:
    """Return the length of a frame's header, the bytes that the frame holds, and the length of its checksum."""
    mark = head[4] if len(head) > 4 else 0
    single, flag = bool(mark & 0x20), mark >> 6
    begin = 5 + (not single) + (0, 1, 2, 4)[mark & 3]
    width = (int(single), 2, 4, 8)[flag]
    if len(head) < begin + width or len(head) < 5:
        raise _Wrong(_CUT, f"has {len(head):,} bytes, and its first frame's header is not complete")
    stated = int.from_bytes(head[begin : begin + width], "little") + (256 if flag == 1 else 0)
    return begin + width, stated if width else None, 4 if mark & 4 else 0


def _room(source: Source, end: int) -> None:
    if end > source.size:
        raise _Wrong(_CUT, f"needs {end:,} bytes at least, has {source.size:,}")


def _blosc(source: Source) -> int:
    """Return how many bytes a chunk of Blosc holds; its header of 16 bytes also says how long it is."""
    _room(source, 16)
    head = source.read(0, 16)
    stored = int.from_bytes(head[12:16], "little")
    _room(source, stored)
    if stored != source.size:
        raise _Wrong("array-chunk-damaged", f"it says {stored:,} bytes, the file has {source.size:,}")
    return int.from_bytes(head[4:8], "little")


def _gzip(source: Source, expected: int) -> int:
    """Return how many bytes a chunk of gzip holds, by the last four of the file: the lower half of that number."""
    _room(source, 18)
    if source.read(0, 2) != b"\x1f\x8b":
        raise _Wrong("array-chunk-damaged", "it does not begin as gzip does")
    stated = int.from_bytes(source.read(source.size - 4, 4), "little")
    return expected if stated == expected & 0xFFFFFFFF else stated
