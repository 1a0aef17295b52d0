"""CRC-32C (Castagnoli) in plain Python, for the small blocks that a structural look reads; numerics do large ones."""

from __future__ import annotations

from collections.abc import Iterable

POLYNOMIAL = 0x82F63B78
_MASK = 0xA282EAD8


def _table() -> tuple[int, ...]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ POLYNOMIAL if value & 1 else value >> 1
        found.append(value)
    return tuple(found)


TABLE = _table()


def crc32c(data: Iterable[int], value: int = 0) -> int:
    """Return the checksum of ``data``, going on from the ``value`` of what comes before it."""
    table = TABLE
    value ^= 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def masked(value: int) -> int:
    """Return a checksum as LevelDB and TensorFlow store it, so that data with checksums in it stays well mixed."""
    return ((value >> 15 | value << 17) + _MASK) & 0xFFFFFFFF


def unmasked(value: int) -> int:
    """Return the checksum that is stored as ``value``."""
    turned = (value - _MASK) & 0xFFFFFFFF
    return (turned >> 17 | turned << 15) & 0xFFFFFFFF
