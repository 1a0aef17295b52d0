"""Chunks of zarr arrays: real ones are silent, and what is cut, longer or of another array is told without decoding."""

from __future__ import annotations

import gzip
import random
import struct

import pytest

from ckpt_tools.containers import array_chunk
from ckpt_tools.core.source import BytesSource
from ckpt_tools.model.findings import Problem
from tests.conftest import FIXTURES

ZARR = FIXTURES / "orbax/zarr"
SIZES = {"dense.kernel/0.0": 140, "dense.bias/0": 28, "head.kernel/0.0": 42, "head.bias/0": 12}


def look(data: bytes, compressor: str | None, expected: int | None, *, everything: bool = False) -> Problem | None:
    return array_chunk.problem(BytesSource(data, "chunk"), compressor, expected, everything=everything)


def frame(*blocks: bytes, size: int | None = None, checksum: bool = False) -> bytes:
    """Return a frame of Zstandard with stored blocks."""
    mark = (0xC0 if size is not None else 0x00) | (4 if checksum else 0)
    head = array_chunk.MAGIC + bytes([mark, 0x58]) + (struct.pack("<Q", size) if size is not None else b"")
    body = b""
    for number, block in enumerate(blocks, 1):
        body += (len(block) << 3 | (number == len(blocks))).to_bytes(3, "little") + block
    return head + body + (bytes(4) if checksum else b"")


def blosc(payload: bytes, size: int) -> bytes:
    return struct.pack("<BBBBIII", 2, 1, 0x21, 4, size, size, 16 + len(payload)) + payload


WHOLE: list[tuple[str, bytes, str | None, int]] = [
    *((name, (ZARR / name).read_bytes(), "zstd", size) for name, size in SIZES.items()),
    ("stored blocks", frame(bytes(10), bytes(6), size=16), "zstd", 16),
    ("with a checksum", frame(bytes(16), size=16, checksum=True), "zstd", 16),
    ("two frames", frame(bytes(8), size=8) + frame(bytes(8), size=8), "zstd", 16),
    ("of no stated size", frame(bytes(16)), "zstd", 16),
    ("blosc", blosc(bytes(20), 64), "blosc", 64),
    ("gzip", gzip.compress(bytes(64)), "gzip", 64),
    ("as it is", bytes(64), None, 64),
]


@pytest.mark.parametrize(("data", "compressor", "size"), [case[1:] for case in WHOLE], ids=[case[0] for case in WHOLE])
def test_a_whole_chunk_is_silent_and_a_cut_one_is_told_wherever_it_is_cut(
    data: bytes, compressor: str | None, size: int
) -> None:
    assert look(data, compressor, size) is None
    assert look(data, compressor, None) is None
    for end in range(len(data)):
        assert look(data[:end], compressor, size) is not None, end


@pytest.mark.parametrize(("data", "compressor", "size"), [case[1:] for case in WHOLE], ids=[case[0] for case in WHOLE])
def test_a_chunk_that_goes_on_is_told(data: bytes, compressor: str | None, size: int) -> None:
    found = look(data + b"more", compressor, size)
    assert found is not None
    assert found.kind == "array-chunk-damaged"


def test_a_chunk_of_another_length_is_told() -> None:
    found = look(frame(bytes(16), size=16), "zstd", 20)
    assert found is not None
    assert (found.kind, found.detail[0]) == ("array-chunk-damaged", "it holds 16 bytes, the array needs 20")


def test_other_compressions_are_not_judged() -> None:
    assert look(b"anything", "bz2", 64) is None


def test_a_block_of_no_kind_is_told() -> None:
    data = bytearray(frame(bytes(16), size=16))
    data[14] |= 6
    found = look(bytes(data), "zstd", 16)
    assert found is not None
    assert "of a kind that there is not" in found.detail[0]


def test_only_so_many_blocks_are_stepped_over_unless_everything_is_looked_at() -> None:
    data = frame(*[b"a"] * (array_chunk.MOST_BLOCKS + 5), size=array_chunk.MOST_BLOCKS + 5)[:-1]
    assert look(data, "zstd", array_chunk.MOST_BLOCKS + 5) is None
    assert look(data, "zstd", array_chunk.MOST_BLOCKS + 5, everything=True) is not None


def test_no_flipped_byte_raises() -> None:
    generator = random.Random(5)
    for _, data, compressor, size in WHOLE:
        for _ in range(200):
            changed = bytearray(data)
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
            look(bytes(changed), compressor, size)
