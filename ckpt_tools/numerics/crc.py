"""CRC-32 as zip files have it, and how the value of two runs gives that of both together."""

from __future__ import annotations

from functools import lru_cache

try:
    from isal.isal_zlib import crc32
except ImportError:  # a platform without wheels: same values, a quarter of the speed
    from zlib import crc32

__all__ = ["combine", "crc32"]

POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31


def _times(left: int, right: int, polynomial: int) -> int:
    """Return the product of two polynomials over GF(2) modulo the CRC's own; the highest bit is the constant term."""
    product = 0
    bit = _ONE
    while left:
        if left & bit:
            product ^= right
            left ^= bit
        bit >>= 1
        right = right >> 1 ^ polynomial if right & 1 else right >> 1
    return product


@lru_cache(maxsize=2)
def _powers(polynomial: int) -> tuple[int, ...]:
    """Return ``x`` to the power of ``2**n``."""
    power, table = _ONE >> 1, []
    for _ in range(67):
        table.append(power)
        power = _times(power, power, polynomial)
    return tuple(table)


@lru_cache(maxsize=256)
def _shift(length: int, polynomial: int) -> int:
    """Return what a value is multiplied with when ``length`` bytes follow it."""
    power, number, bits = _ONE, 3, length
    powers = _powers(polynomial)
    while bits:
        if bits & 1:
            power = _times(powers[number], power, polynomial)
        bits >>= 1
        number += 1
    return power


def combine(first: int, second: int, length: int, polynomial: int = POLYNOMIAL) -> int:
    """Return the checksum of two runs of bytes from theirs; ``length`` is that of the second run.

    ``polynomial`` tells CRCs of 32 bits apart: this one's, or that of CRC-32C.
    """
    return _times(_shift(length, polynomial), first, polynomial) ^ second
