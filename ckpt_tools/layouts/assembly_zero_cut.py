"""Flat vectors, cut over ranks, and the tensors that are put together from them without reading a byte."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from math import prod
from typing import NamedTuple

from ckpt_tools.core.source import Extent
from ckpt_tools.model.tensors import DTYPE_BITS, Chunk, TensorRef, boxes_of_range


class Piece(NamedTuple):
    """Elements ``[start, start + length)`` of a tensor, which are those from ``at`` of the stored vector ``ref``."""

    start: int
    length: int
    ref: TensorRef
    at: int


class Vector:
    """A flat vector that lies in pieces; None in place of one that is missing, with its length."""

    def __init__(self, parts: Iterable[tuple[int, TensorRef | None]]) -> None:
        self.parts: list[tuple[int, int, TensorRef | None]] = []
        start = 0
        for length, ref in parts:
            self.parts.append((start, length, ref))
            start += length
        self.numel = start

    def pieces(self, start: int, stop: int, to: int = 0) -> Iterator[Piece]:
        """Yield what is stored of ``[start, stop)``; ``to`` is where ``start`` lies in the tensor."""
        first = bisect_right(self.parts, start, key=lambda part: part[0]) - 1
        for begin, length, ref in islice(self.parts, max(first, 0), None):
            if begin >= stop:
                return
            low, high = max(start, begin), min(stop, begin + length)
            if low < high and ref is not None:
                yield Piece(to + low - start, high - low, ref, low - begin)


def named(ref: TensorRef, name: str) -> TensorRef:
    return ref if ref.fqn == name else replace(ref, fqn=name)


def over_ranks(refs: Sequence[TensorRef | None]) -> Vector:
    """Return the vector of which each rank has a part: all alike but for the end, where padding is not stored."""
    size = max((ref.numel for ref in refs if ref is not None), default=0)
    return Vector((size if ref is None else ref.numel, ref) for ref in refs)


def tensor(name: str, shape: tuple[int, ...], pieces: Iterable[Piece], dtype: str | None = None) -> TensorRef | None:
    """Return the tensor that pieces make; without bytes where some are missing, None where there are none at all."""
    found = [piece for piece in pieces if piece.length]
    if not found:
        return TensorRef(name, dtype, shape, ()) if dtype and prod(shape) == 0 else None
    kind = found[0].ref.dtype
    whole = sum(piece.length for piece in found) == prod(shape)
    usable = all(piece.ref.dtype == kind and _is_flat(piece.ref) for piece in found)
    chunks = [chunk for piece in found for chunk in _chunks(shape, piece)] if whole and usable else []
    return TensorRef(name, kind, shape, tuple(chunks), storage_id=name)


def _is_flat(ref: TensorRef) -> bool:
    """Whether the elements lie one after another in whole bytes."""
    if len(ref.chunks) != 1 or DTYPE_BITS.get(ref.dtype, 0) % 8 or ref.dtype not in DTYPE_BITS:
        return False
    chunk = ref.chunks[0]
    return not chunk.inside and (chunk.strides is None or ref.numel == 1 or chunk.strides == (1,))


def _chunks(shape: tuple[int, ...], piece: Piece) -> Iterator[Chunk]:
    (stored,) = piece.ref.chunks
    width = DTYPE_BITS[piece.ref.dtype] // 8
    offset = stored.extent.offset + piece.at * width
    for offsets, sizes in boxes_of_range(shape, piece.start, piece.start + piece.length):
        length = prod(sizes) * width
        yield Chunk(offsets, sizes, Extent(stored.extent.path, offset, length), None, stored.byteorder)
        offset += length
