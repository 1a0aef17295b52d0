"""Tensors whose elements do not lie in row-major order, read in that order, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ckpt_tools.core.source import Source
from ckpt_tools.model.tensors import DTYPE_BITS, TensorRef
from ckpt_tools.numerics.digest import PieceHasher, finish, tensor_head
from ckpt_tools.numerics.statistics import Facts

Array = NDArray[Any]
Dimension = tuple[int, int]
"""``(size, stride in elements)``."""

BLOCK = 1 << 23
"""About so many bytes are handed on at a time; the bytes they are picked from may be four times as many."""

SPREAD = 4


def row_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a dense row-major tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def fills_its_extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements lie side by side without a gap or an overlap, in any order of dimensions."""
    step = 1
    for size, stride in sorted(((n, s) for n, s in zip(shape, strides, strict=True) if n != 1), key=lambda d: d[1]):
        if stride != step:
            return False
        step *= size
    return True


def row_major_index(place: int, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> int:
    """Return the row-major index of the element at ``place`` in memory, for a tensor that fills its extent."""
    if strides is None:
        return place
    index = [0] * len(shape)
    for axis in sorted(range(len(shape)), key=lambda axis: -strides[axis]):
        if shape[axis] > 1:
            index[axis], place = divmod(place, strides[axis])
    return sum(at * step for at, step in zip(index, row_strides(shape), strict=True))


def index_in_full(index: int, reduced: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Return the row-major index in ``shape`` of an element of the same tensor with some sizes reduced to 1."""
    if reduced == shape:
        return index
    at = np.unravel_index(index, reduced) if reduced else ()
    return sum(int(place) * step for place, step in zip(at, row_strides(shape), strict=True))


def blocks(source: Source, ref: TensorRef, check: Callable[[], None] = lambda: None) -> Iterator[Array]:
    """Yield the elements of ``ref``, which has one chunk, in row-major order as little-endian bytes.

    Raises:
        SourceError: the file could not be read.
    """
    (chunk,) = ref.chunks
    width = max(1, DTYPE_BITS[ref.dtype] // 8)
    swap = width if chunk.byteorder == "big" else 1
    if ref.dtype.startswith("complex"):
        swap //= 2 if swap > 1 else 1
    begin = chunk.extent.offset - source.base
    if not ref.numel:
        return
    strides = chunk.strides
    if strides is None:
        for offset in range(0, chunk.extent.length, BLOCK):
            check()
            block = np.frombuffer(source.read(begin + offset, min(BLOCK, chunk.extent.length - offset)), np.uint8)
            yield _little(block, swap)
        return
    dimensions = tuple((n, s) for n, s in zip(ref.shape, strides, strict=True) if n != 1)
    for block in _strided(source, begin, dimensions, width, check):
        yield _little(block, swap)


def _little(block: Array, swap: int) -> Array:
    return block if swap == 1 else block.reshape(-1, swap)[:, ::-1].ravel()


def _strided(
    source: Source, begin: int, dimensions: tuple[Dimension, ...], width: int, check: Callable[[], None]
) -> Iterator[Array]:
    check()
    if not dimensions:
        yield np.frombuffer(source.read(begin, width), np.uint8)
        return
    rest = dimensions[1:]
    size, stride = dimensions[0]
    below = prod(n for n, _ in rest) * width
    step = max(1, BLOCK // below)
    if step == 1 and below > BLOCK and rest:
        for index in range(size):
            yield from _strided(source, begin + index * stride * width, rest, width, check)
        return
    for first in range(0, size, step):
        check()
        part = ((min(step, size - first), stride), *rest)
        yield block_at(source, begin + first * stride * width, part, width)


def block_at(source: Source, begin: int, dimensions: tuple[Dimension, ...], width: int) -> Array:
    """Read the bytes that hold a block of elements, in as few runs as do not take in much else, and pick them."""
    order = sorted(range(len(dimensions)), key=lambda axis: -dimensions[axis][1])
    wanted = prod(n for n, _ in dimensions)
    outer = 0
    while outer < len(order):
        runs = prod(dimensions[axis][0] for axis in order[:outer])
        length = 1 + sum((dimensions[axis][0] - 1) * dimensions[axis][1] for axis in order[outer:])
        if runs * length <= SPREAD * wanted or runs * length * width <= BLOCK:
            break
        outer += 1
    else:
        runs, length = wanted, 1
    held = np.empty(runs * length * width, np.uint8)
    memory = held.data
    places = product(*(range(dimensions[axis][0]) for axis in order[:outer]))
    for number, index in enumerate(places):
        offset = sum(at * dimensions[axis][1] for at, axis in zip(index, order[:outer], strict=True))
        at = number * length * width
        source.read_into(begin + offset * width, memory[at : at + length * width])
    steps = dict(zip(order, row_strides(tuple(dimensions[axis][0] for axis in order[:outer])), strict=False))
    strides = [steps[axis] * length if axis in steps else dimensions[axis][1] for axis in range(len(dimensions))]
    items = held.view(f"V{width}")
    picked = as_strided(items, [n for n, _ in dimensions], [s * width for s in strides], writeable=False)
    return np.ascontiguousarray(picked).reshape(-1).view(np.uint8)


def look(source: Source, ref: TensorRef, negative: bool, digest: bool, check: Callable[[], None]) -> tuple[Facts, str]:
    """Return the facts of ``ref`` and, where asked for, its digest, by a pass over its elements alone.

    Raises:
        SourceError: the file could not be read.
    """
    facts = Facts(ref.dtype, "little", negative)
    hasher = PieceHasher() if digest else None
    position = 0
    for block in blocks(source, ref, check):
        if facts.form is not None or ref.dtype == "bool":
            facts.feed(block, position)
            position += len(block) // (facts.form.width if facts.form else 1)
        if hasher is not None:
            hasher.update(block.data)
    if hasher is None:
        return facts, ""
    return facts, finish(tensor_head(ref.dtype, ref.shape), hasher.finish())
