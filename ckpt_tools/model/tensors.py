"""Tensors as references to bytes: an unsharded tensor has one chunk, a sharded one several."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from ckpt_tools.core.source import Extent

DTYPE_BITS: dict[str, int] = {
    "bool": 8,
    "float4_e2m1fn": 4,
    "float6_e2m3fn": 6,
    "float6_e3m2fn": 6,
    "uint8": 8,
    "int8": 8,
    "float8_e5m2": 8,
    "float8_e4m3fn": 8,
    "float8_e8m0fnu": 8,
    "float8_e4m3fnuz": 8,
    "float8_e5m2fnuz": 8,
    "int16": 16,
    "uint16": 16,
    "float16": 16,
    "bfloat16": 16,
    "int32": 32,
    "uint32": 32,
    "float32": 32,
    "complex32": 32,
    "complex64": 64,
    "float64": 64,
    "int64": 64,
    "uint64": 64,
    "complex128": 128,
    "qint8": 8,
    "quint8": 8,
    "qint32": 32,
    "quint4x2": 8,
    "quint2x4": 8,
    "float4_e2m1fn_x2": 8,
}
"""Bits of one element by the name torch gives the type (``torch.float32`` is ``float32``)."""


class Chunk(NamedTuple):
    """A stored block of one tensor.

    ``offsets`` and ``sizes`` place it in the tensor (elements per dimension).  ``extent`` covers the bytes from
    its first to its last element; ``strides`` are in elements, None when row-major and dense.  Where ``inside`` names
    a container, the extent is that of a whole file of this format within a file, which has to be opened first
    (``layouts.assembly.unpack``) to know where the elements lie.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    extent: Extent
    strides: tuple[int, ...] | None = None
    byteorder: str = "little"
    inside: str = ""


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor that was described and not read.

    ``shape`` counts logical elements; ``storage_id`` names the bytes it lives in, equal for tensors that share
    memory; ``kind`` is the class that wraps it where it is no plain tensor (``torch.nn.parameter.Parameter``,
    a quantised type), else empty.  ``chunks`` is empty where the bytes are not in the checkpoint (meta tensors).
    """

    fqn: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    storage_id: str | None = None
    kind: str = ""

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a dense copy, rounded up to whole bytes."""
        return (self.numel * DTYPE_BITS.get(self.dtype, 8) + 7) // 8


Box = tuple[tuple[int, ...], tuple[int, ...]]
"""``(offsets, sizes)`` of a block of a tensor, in elements per dimension."""


def boxes_of_range(shape: tuple[int, ...], start: int, stop: int) -> list[Box]:
    """Return the fewest boxes, in order, that are the elements ``[start, stop)`` of a row-major tensor of ``shape``.

    A flat partition (ZeRO's) cuts a tensor anywhere: into part of a row, whole rows, and part of another.
    """
    if start >= stop:
        return []
    if not shape:
        return [((), ())]
    row = prod(shape[1:])
    first, last = start // row, (stop - 1) // row
    if start % row == 0 and stop % row == 0:
        return [((first, *(0,) * (len(shape) - 1)), (last - first + 1, *shape[1:]))]
    if first == last:
        below = boxes_of_range(shape[1:], start - first * row, stop - first * row)
        return [((first, *offsets), (1, *sizes)) for offsets, sizes in below]
    middle = (start + row - 1) // row * row
    end = stop // row * row
    found = boxes_of_range(shape, start, min(middle, stop)) if start < middle else []
    if middle < end:
        found += boxes_of_range(shape, middle, end)
    if end < stop:
        found += boxes_of_range(shape, max(end, middle), stop)
    return found
