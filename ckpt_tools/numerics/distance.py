"""How far apart two tensors are: one streamed pass, across dtypes, strides and shardings, in bounded memory.

Blocks of ``BLOCK`` elements go through float32 and the dot products of BLAS, four times as fast as float64.  A block
whose sums leave the range in which float32 is exact enough (NaN, infinities, huge or tiny numbers) is done again in
float64, from the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, prod, sqrt
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ckpt_tools.core.source import Source
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.numerics.assembled import Assembled, Files

BLOCK = 1 << 17
"""Elements of one block: few enough for a core's caches, enough to hide what it costs Python to start an operation."""

_TINY = 1e-28
"""Below this a sum of a block's float32 squares may have lost terms to underflow."""

_ROW = 1 << 13

Array = NDArray[Any]
Sources = Mapping[str, Source] | Files

DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in ("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64")},
    **{name: np.dtype(name) for name in ("uint64", "float16", "float32", "float64", "complex64", "complex128")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "qint8": np.dtype("int8"),
    "quint8": np.dtype("uint8"),
    "qint32": np.dtype("int32"),
    "complex32": np.dtype([("re", "<f2"), ("im", "<f2")]),
}
"""How the elements of a tensor are read; what is packed below one byte has no entry here."""

_FLOATS = ("float64", "float32", "bfloat16", "float16")
_COMPLEX = frozenset({"complex32", "complex64", "complex128"})
_DOUBLE = frozenset({"float64", "int32", "uint32", "qint32", "int64", "uint64"})
_WHOLE = frozenset({"int64", "uint64"})


@dataclass(slots=True)
class Distance:
    """Sums over the elements of a pair of tensors; pieces of a pair add up.

    ``changed`` counts the elements whose values differ (NaN equals NaN, ``-0.0`` equals ``0.0``).  ``largest`` is over
    the pairs without NaN, infinite where only one side is.  The sums of squares are over the pairs that are finite on
    both sides.  ``unrounded`` counts, for two float types, the elements in which the narrower side is not the wider
    one rounded; None for any other pair of types.
    """

    count: int = 0
    changed: int = 0
    largest: float = 0.0
    delta2: float = 0.0
    left2: float = 0.0
    right2: float = 0.0
    nan_left: int = 0
    nan_right: int = 0
    unrounded: int | None = None

    def add(self, other: Distance) -> None:
        self.count += other.count
        self.changed += other.changed
        self.largest = max(self.largest, other.largest)
        self.delta2 += other.delta2
        self.left2 += other.left2
        self.right2 += other.right2
        self.nan_left += other.nan_left
        self.nan_right += other.nan_right
        if other.unrounded is not None:
            self.unrounded = (self.unrounded or 0) + other.unrounded

    @property
    def relative(self) -> float | None:
        """Return ``|left - right| / |left|``; infinite where the left side is all zero, None beyond float64."""
        if self.delta2 == 0:
            return 0.0
        if self.left2 == 0:
            return inf
        ratio = sqrt(self.delta2) / sqrt(self.left2)
        return None if isnan(ratio) else ratio

    @property
    def cosine(self) -> float | None:
        """Return the cosine of the angle between the two sides, None where one of them is all zero."""
        if not (0 < self.left2 < inf and 0 < self.right2 < inf and self.delta2 < inf):
            return None
        left, right = sqrt(self.left2), sqrt(self.right2)
        # From the difference, not from a dot product: exact where the two are nearly parallel.
        return max(-1.0, min(1.0, 1 - (self.delta2 - (left - right) ** 2) / (2 * left * right)))

    @property
    def share(self) -> float:
        """Return the share of elements that changed."""
        return self.changed / self.count if self.count else 0.0


class Workspace:
    """The buffers of one thread, reused for every block."""

    def __init__(self) -> None:
        self._raw = (bytearray(BLOCK * 4), bytearray(BLOCK * 4))
        self._views = (memoryview(self._raw[0]), memoryview(self._raw[1]))
        self._single = (np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32))
        self._mask = np.empty(BLOCK, np.bool_)

    def raw(self, side: int, size: int) -> memoryview:
        return self._views[side][:size]

    def array(self, side: int, dtype: np.dtype[Any], count: int) -> Array:
        return np.frombuffer(self._raw[side], dtype, count)

    def single(self, side: int, count: int) -> NDArray[np.float32]:
        return self._single[side][:count]

    def mask(self, count: int) -> NDArray[np.bool_]:
        return self._mask[:count]


def dense(
    left: tuple[Source, int, str], right: tuple[Source, int, str], count: int, work: Workspace | None = None
) -> Distance:
    """Return the distance of two runs of ``count`` elements, each given as source, byte offset and dtype.

    Raises:
        SourceError: a file could not be read, or changed while it was.
    """
    work = work or Workspace()
    kinds = DTYPES[left[2]], DTYPES[right[2]]
    kernel = _Kernel(left[2], right[2], work)
    step = min(BLOCK, (BLOCK * 4) // max(kinds[0].itemsize, kinds[1].itemsize))
    with np.errstate(all="ignore"):
        for begin in range(0, count, step):
            size = min(step, count - begin)
            for side, (source, offset, _) in enumerate((left, right)):
                width = kinds[side].itemsize
                source.read_into(offset + begin * width, work.raw(side, size * width))
            kernel.block(work.array(0, kinds[0], size), work.array(1, kinds[1], size))
    return kernel.total


def strided(
    left: TensorRef, right: TensorRef, sources: tuple[Sources, Sources], work: Workspace | None = None
) -> Distance:
    """Return the distance of two tensors of one shape, whatever their strides, byte order and chunks are.

    Raises:
        SourceError: a file could not be read, or changed while it was.
    """
    work = work or Workspace()
    kernel = _Kernel(left.dtype, right.dtype, work)
    sides = [(Assembled(ref, files), DTYPES[ref.dtype]) for ref, files in zip((left, right), sources, strict=True)]
    with np.errstate(all="ignore"):
        for origin, sizes in boxes(left.shape, BLOCK // 4):
            pieces = [whole.box(origin, sizes, dtype).reshape(-1) for whole, dtype in sides]
            kernel.block(pieces[0], pieces[1])
    return kernel.total


def boxes(shape: Sequence[int], limit: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut a tensor into boxes of at most ``limit`` elements, as cubic as halving makes them: ``(origin, sizes)``."""
    if 0 in shape:
        return
    work = [((0,) * len(shape), tuple(shape))]
    while work:
        origin, sizes = work.pop()
        if prod(sizes) <= limit:
            yield origin, sizes
            continue
        axis = max(range(len(sizes)), key=sizes.__getitem__)
        half = sizes[axis] // 2
        further = (*origin[:axis], origin[axis] + half, *origin[axis + 1 :])
        work.append((further, (*sizes[:axis], sizes[axis] - half, *sizes[axis + 1 :])))
        work.append((origin, (*sizes[:axis], half, *sizes[axis + 1 :])))


class _Kernel:
    """Adds up the distance of a pair of dtypes block by block; its callers silence numpy's warnings."""

    def __init__(self, left: str, right: str, work: Workspace) -> None:
        self.total = Distance()
        self._work = work
        self._single = not {left, right} & (_DOUBLE | _COMPLEX)
        self._whole = left == right and left in _WHOLE
        self._complex = bool({left, right} & _COMPLEX)
        self._tables = _table(left), _table(right)
        self._rounds = left != right and left in _FLOATS and right in _FLOATS
        self._narrower = int(_FLOATS.index(right) > _FLOATS.index(left)) if self._rounds else 0
        if self._rounds:
            self.total.unrounded = 0

    def block(self, left: Array, right: Array) -> None:
        """Add the elements of two arrays of one length, at most ``BLOCK``."""
        self.total.count += len(left)
        if self._whole:
            self._integers(left, right)
        elif not (self._single and len(left) >= _ROW and self._float32(left, right)):
            self._float64(left, right)
        if self._rounds:
            self._rounding(left, right)

    def _rounding(self, left: Array, right: Array) -> None:
        wide, narrow = (left, right) if self._narrower else (right, left)
        rounded = wide.astype(narrow.dtype)
        differ = rounded != narrow
        if differ.any():
            differ &= ~(_isnan(rounded) & _isnan(narrow))
        self.total.unrounded = (self.total.unrounded or 0) + int(np.count_nonzero(differ))

    def _float32(self, left: Array, right: Array) -> bool:
        """Add a block in float32; False, with nothing added, where that would not be exact enough."""
        work, count = self._work, len(left)
        a, b = work.single(0, count), work.single(1, count)
        _widen(left, a, self._tables[0])
        _widen(right, b, self._tables[1])
        left2, right2 = _squares(a), _squares(b)
        if not (_safe(left2, a) and _safe(right2, b)):
            return False
        np.subtract(a, b, out=a)
        changed = int(np.count_nonzero(np.not_equal(a, 0, out=work.mask(count))))
        delta2 = _squares(a) if changed else 0.0
        if changed and not _TINY <= delta2 < inf:
            return False
        total = self.total
        total.left2 += left2
        total.right2 += right2
        if changed:
            total.changed += changed
            total.delta2 += delta2
            total.largest = max(total.largest, float(np.abs(a, out=a).max()))
        return True

    def _float64(self, left: Array, right: Array) -> None:
        wide = np.complex128 if self._complex else np.float64
        a, b = _wide(left, wide), _wide(right, wide)
        total = self.total
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            nan_a, nan_b = np.isnan(a), np.isnan(b)
            total.nan_left += int(np.count_nonzero(nan_a))
            total.nan_right += int(np.count_nonzero(nan_b))
            odd = ~finite
            same = (a == b) | (nan_a & nan_b)
            total.changed += int(np.count_nonzero(odd & ~same))
            if (odd & ~same & ~nan_a & ~nan_b).any():
                total.largest = inf
            a, b = a[finite], b[finite]
        delta = np.abs(a - b)
        total.changed += int(np.count_nonzero(a != b))
        total.largest = max(total.largest, float(delta.max(initial=0.0)))
        total.delta2 += float(np.dot(delta, delta))
        total.left2 += _square(a)
        total.right2 += _square(b)

    def _integers(self, left: Array, right: Array) -> None:
        """Add 64-bit integers, whose differences float64 would round."""
        total = self.total
        a, b = left.view(np.uint64), right.view(np.uint64)
        delta = np.where(left > right, a - b, b - a)
        total.changed += int(np.count_nonzero(delta))
        total.largest = max(total.largest, float(delta.max(initial=0)))
        wide = delta.astype(np.float64)
        total.delta2 += float(np.dot(wide, wide))
        total.left2 += _square(left.astype(np.float64))
        total.right2 += _square(right.astype(np.float64))


def _squares(values: NDArray[np.float32]) -> float:
    """Return the sum of squares in rows so short that BLAS starts no threads of its own for them."""
    whole = len(values) - len(values) % _ROW
    tail = float(np.dot(values[whole:], values[whole:])) if whole < len(values) else 0.0
    if not whole:
        return tail
    rows = values[:whole].reshape(-1, _ROW)
    if hasattr(np, "vecdot"):  # numpy 2
        return float(np.vecdot(rows, rows).sum(dtype=np.float64)) + tail
    return float(np.matmul(rows[:, None, :], rows[:, :, None]).sum(dtype=np.float64)) + tail


def _safe(square: float, values: NDArray[np.float32]) -> bool:
    """Return whether a float32 sum of squares lost nothing: neither NaN nor overflow, nor all but nothing."""
    return _TINY <= square < 1e38 or (square == 0 and not values.any())


def _square(values: Array) -> float:
    return float(np.vdot(values, values).real)


def _table(dtype: str) -> NDArray[np.float32] | None:
    """Return the values of an 8-bit float by its byte, None for every other type."""
    if not dtype.startswith("float8"):
        return None
    return np.arange(256, dtype=np.uint8).view(DTYPES[dtype]).astype(np.float32)


def _widen(values: Array, out: NDArray[np.float32], table: NDArray[np.float32] | None) -> None:
    if table is not None:
        np.take(table, values.view(np.uint8), out=out, mode="clip")
    elif values.dtype == np.float16:
        _widen_half(values, out)
    else:
        np.copyto(out, values, casting="unsafe")


def _widen_half(values: Array, out: NDArray[np.float32]) -> None:
    """Widen float16 by its bits, eight times as fast as a cast; a block with NaN or infinity takes the cast."""
    bits = out.view(np.int32)
    np.copyto(bits, values.view(np.int16))
    if (values.view(np.uint16) & 0x7FFF).max(initial=0) >= 0x7C00:
        np.copyto(out, values)
        return
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(~0x70000000), out=bits)  # the sign was spread over the exponent's first bits
    np.multiply(out, np.float32(2.0**112), out=out)


def _wide(values: Array, wide: type[np.generic]) -> Array:
    if values.dtype.fields:
        wider: Array = values.view(np.float16).astype(np.float32).view(np.complex64)
        return wider.astype(wide)
    return values.astype(wide)


def _isnan(values: Array) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = values != values
    return found
