"""CRC-32C: the published value, the fast way against the plain one, and runs put together."""

from __future__ import annotations

import random

import pytest

from ckpt_tools.core.crc32c import crc32c, masked, unmasked
from ckpt_tools.numerics import castagnoli

LENGTHS = (0, 1, 3, 511, 512, 513, 4096, 65_537, 2 * 1024 * 1024 + 77)


def test_the_published_value() -> None:
    assert crc32c(b"123456789") == castagnoli.crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize("length", LENGTHS)
def test_the_fast_way_gives_what_the_plain_one_does(length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert castagnoli.crc32c(data) == crc32c(data)


@pytest.mark.parametrize("length", LENGTHS[3:8])
def test_runs_put_together(length: int) -> None:
    data = random.Random(length).randbytes(length)
    whole = castagnoli.crc32c(data)
    for cut in (0, 1, length // 3, length):
        first, second = castagnoli.crc32c(data[:cut]), castagnoli.crc32c(data[cut:])
        assert castagnoli.combine(first, second, length - cut) == whole
        assert castagnoli.crc32c(data[cut:], first) == whole


def test_masking_goes_both_ways() -> None:
    for value in (0, 1, 0xE3069283, 0xFFFFFFFF):
        assert unmasked(masked(value)) == value
