"""CRC-32 as zip files have it, and how the value of two runs gives that of both together."""

from __future__ import annotations

from functools import lru_cache

try:
    from isal.isal_zlib import crc32
except ImportError:  # a platform without wheels: same values, a quarter of the speed
    from zlib import crc32

__all__ = ["combine", "crc32"]

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31


def _times(left: int, right: int) -> int:
    """Return the product of two polynomials over GF(2) modulo the CRC's own; the highest bit is the constant term."""
    product = 0
    bit = _ONE
    while left:
        if left & bit:
            product ^= right
            left ^= bit
        bit >>= 1
        right = right >> 1 ^ _POLYNOMIAL if right & 1 else right >> 1
    return product


def _powers() -> tuple[int, ...]:
    power, table = _ONE >> 1, []
    for _ in range(67):
        table.append(power)
        power = _times(power, power)
    return tuple(table)


_POWERS = _powers()
"""``x`` to the power of ``2**n``."""


@lru_cache(maxsize=256)
def _shift(length: int) -> int:
    """Return what a value is multiplied with when ``length`` bytes follow it."""
    power, number, bits = _ONE, 3, length
    while bits:
        if bits & 1:
            power = _times(_POWERS[number], power)
        bits >>= 1
        number += 1
    return power


def combine(first: int, second: int, length: int) -> int:
    """Return the CRC-32 of two runs of bytes from theirs; ``length`` is that of the second run."""
    return _times(_shift(length), first) ^ second
