"""The checksum of two runs of bytes follows from theirs."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.numerics import crc


@given(st.binary(max_size=5000), st.binary(max_size=5000))
def test_combined_is_the_whole(first: bytes, second: bytes) -> None:
    whole = crc.combine(crc.crc32(first), crc.crc32(second), len(second))
    assert whole == zlib.crc32(first + second)


@pytest.mark.parametrize("length", [0, 1, 2**20 + 3, 2**25])
def test_long_second_runs(length: int) -> None:
    first, second = b"some bytes", b"\x5a" * length
    assert crc.combine(zlib.crc32(first), zlib.crc32(second), length) == zlib.crc32(second, zlib.crc32(first))


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=12))
def test_many_pieces_fold(pieces: list[bytes]) -> None:
    value = 0
    for piece in pieces:
        value = crc.combine(value, crc.crc32(piece), len(piece))
    assert value == zlib.crc32(b"".join(pieces))


def test_lengths_beyond_memory_need_no_bytes() -> None:
    """Zeros after a value multiply it by a power: the powers of two lengths add up."""
    value = zlib.crc32(b"x")
    far = crc.combine(value, 0, 3 << 40)
    assert far == crc.combine(crc.combine(value, 0, 1 << 40), 0, 2 << 40)
