"""Facts about floats from their bits: no conversion, no temporary array.

Seen as integers of the same width, the largest signed one is the positive float of largest magnitude, and the
largest unsigned one, where it has the sign bit, the negative float of largest magnitude.  Two reductions, each at
the speed of the cache, thus tell magnitude, zeros, negatives and whether any NaN or Inf is there at all; only a
block in which one is gets a second, slower look that counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Format:
    """How a float type uses its bits.

    ``limit`` is the lowest magnitude (bits without the sign) that is no finite number, ``inf`` the one that is
    infinite, None where the type has none.  ``number`` is the type that gives bits their value,
    ``parts`` how many of it are one element.
    """

    width: int
    limit: int
    inf: int | None
    number: str
    parts: int = 1
    signed: bool = True
    lone_nan: bool = False

    @property
    def sign(self) -> int:
        return 1 << 8 * self.width - 1 if self.signed else 0


FORMATS: dict[str, Format] = {
    "float64": Format(8, 0x7FF0 << 48, 0x7FF0 << 48, "float64"),
    "float32": Format(4, 0x7F80_0000, 0x7F80_0000, "float32"),
    "float16": Format(2, 0x7C00, 0x7C00, "float16"),
    "bfloat16": Format(2, 0x7F80, 0x7F80, "bfloat16"),
    "float8_e5m2": Format(1, 0x7C, 0x7C, "float8_e5m2"),
    "float8_e4m3fn": Format(1, 0x7F, None, "float8_e4m3fn"),
    "float8_e4m3fnuz": Format(1, 0x80, None, "float8_e4m3fnuz", lone_nan=True),
    "float8_e5m2fnuz": Format(1, 0x80, None, "float8_e5m2fnuz", lone_nan=True),
    "float8_e8m0fnu": Format(1, 0xFF, None, "float8_e8m0fnu", signed=False),
    "complex32": Format(2, 0x7C00, 0x7C00, "float16", parts=2),
    "complex64": Format(4, 0x7F80_0000, 0x7F80_0000, "float32", parts=2),
    "complex128": Format(8, 0x7FF0 << 48, 0x7FF0 << 48, "float64", parts=2),
}
"""The types that have NaN or Inf; 4- and 6-bit floats have neither."""

WIDTHS = {name: form.width for name, form in FORMATS.items()}


def number_type(name: str) -> Any:
    """Return the type of numpy or ml_dtypes that is called ``name``, None where an old version has none."""
    if hasattr(np, name):
        return getattr(np, name)
    import ml_dtypes

    return getattr(ml_dtypes, name, None)


class Facts:
    """What is known of the elements seen so far; blocks of one tensor may come in any order and are merged."""

    __slots__ = ("_dtype", "_signed", "_unsigned", "first_bad", "form", "inf", "largest", "nan", "negative",
                 "odd", "seen", "want_negative")  # fmt: skip

    def __init__(self, dtype: str, byteorder: str = "little", want_negative: bool = False) -> None:
        self.form = FORMATS.get(dtype)
        order = "<" if byteorder == "little" else ">"
        width = self.form.width if self.form else 1
        self._signed = np.dtype(f"{order}i{width}")
        self._unsigned = np.dtype(f"{order}u{width}")
        self._dtype = dtype
        self.want_negative = want_negative
        self.largest = -1
        self.nan = self.inf = self.negative = self.odd = self.seen = 0
        self.first_bad: int | None = None

    def feed(self, block: Array, position: int) -> None:
        """Look at whole elements; ``block`` is bytes, ``position`` the number of elements before it."""
        form = self.form
        if form is None:
            self._plain(block, position)
            return
        raw = block.view(self._unsigned)
        top = int(raw.max())
        self.seen += len(raw)
        if not form.signed:
            self._unsigned_only(raw, top, position)
            return
        ints = block.view(self._signed)
        high = int(ints.max())
        sign = form.sign
        low = top ^ sign if top & sign else -1
        reach = max(high, low)
        suspicious = int(ints.min()) == -sign if form.lone_nan else reach >= form.limit
        if suspicious:
            self._count(raw, position)
        elif reach > self.largest:
            self.largest = reach
        if low > 0 and self.want_negative:
            self.negative += self._negatives(raw)

    def merge(self, other: Facts) -> None:
        """Take in what another one saw of the same tensor; positions count from the tensor's beginning in both."""
        self.largest = max(self.largest, other.largest)
        self.nan += other.nan
        self.inf += other.inf
        self.negative += other.negative
        self.odd += other.odd
        self.seen += other.seen
        if other.first_bad is not None:
            self.first_bad = other.first_bad if self.first_bad is None else min(self.first_bad, other.first_bad)

    @property
    def magnitude(self) -> float | None:
        """The largest finite magnitude as a number, None where no finite element was seen."""
        form = self.form
        if form is None or self.largest < 0:
            return None
        if form.number == "bfloat16":
            return float(np.array([self.largest << 16], np.uint32).view(np.float32)[0])
        kind = number_type(form.number)
        return None if kind is None else float(np.array([self.largest], f"u{form.width}").view(kind)[0])

    @property
    def zero(self) -> bool | None:
        """Whether every element is a zero, of either sign; None where that was not looked at."""
        if self.form is None or not self.seen:
            return None
        if not self.form.signed:
            return False
        return self.largest == 0 and not self.nan and not self.inf

    def _plain(self, block: Array, position: int) -> None:
        if self._dtype != "bool":
            return
        self.seen += len(block)
        if int(block.max()) > 1:
            odd = block > 1
            self.odd += int(np.count_nonzero(odd))
            if self.first_bad is None:
                self.first_bad = position + int(odd.argmax())

    def _unsigned_only(self, raw: Array, top: int, position: int) -> None:
        if top == 0xFF:
            self._count(raw, position)
        else:
            self.largest = max(self.largest, top)

    def _count(self, raw: Array, position: int) -> None:
        form = self.form
        assert form is not None
        if form.lone_nan:
            bad = raw == form.sign
            magnitude = raw & (form.sign - 1)
        else:
            magnitude = raw & (form.sign - 1) if form.signed else raw
            bad = magnitude >= form.limit
        count = int(np.count_nonzero(bad))
        inf = int(np.count_nonzero(magnitude == form.inf)) if form.inf is not None else 0
        self.inf += inf
        self.nan += count - inf
        if self.first_bad is None:
            self.first_bad = (position + int(bad.argmax())) // form.parts
        if count < len(raw):
            self.largest = max(self.largest, int(magnitude[~bad].max()))

    def _negatives(self, raw: Array) -> int:
        form = self.form
        assert form is not None
        if form.lone_nan:
            return int(np.count_nonzero(raw > form.sign))
        finite = raw > form.sign
        finite &= raw <= form.sign | form.limit if form.inf is not None else raw < form.sign | form.limit
        return int(np.count_nonzero(finite))
