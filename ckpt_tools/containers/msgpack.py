"""msgpack files as Flax writes them (``flax.serialization.to_bytes``): maps, texts, numbers, and arrays as extensions.

Read here and not by the ``msgpack`` package, which copies every payload into memory and gives no positions: this walk
reads headers and steps over the arrays' bytes, so that a file of any size costs a few reads for each array.
"""

from __future__ import annotations

import struct
from math import prod
from typing import Any

from ckpt_tools.containers.base import Content, FormatError, no_collection
from ckpt_tools.containers.kinds import printable
from ckpt_tools.core.source import Extent, Source
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.tensors import DTYPE_BITS, Chunk, TensorRef
from ckpt_tools.model.values import Value

ARRAY, COMPLEX, SCALAR = 1, 2, 3
"""Flax's extension types; an array's payload is msgpack again: ``[shape, type, bytes]``."""

MAX_DEPTH = 100
MAX_TEXT = 1 << 20
_BUFFER = 1 << 16

_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
_LENGTHS = {
    0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4,
}  # fmt: skip
_FIXED = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


@no_collection()
def read(source: Source) -> Content:
    """Return the tree, with arrays as tensors named by their key path (``params.dense.kernel``).

    Raises:
        SourceError: the file could not be read, or changed while it was.
    """
    walk = _Walk(source)
    try:
        value = walk.value("", 0)
    except FormatError as error:
        problems = (*walk.problems, error.problem)
        return Content("msgpack", source.size, readable=False, tensors=walk.tensors, problems=problems)
    if walk.at < source.size:
        extra = source.size - walk.at
        detail = (f"the value ends at byte {walk.at:,}, the file has {source.size:,}", 'msgpack stops with "ExtraData"')
        spot = Spot(offset=source.base + walk.at)
        walk.problems.append(Problem("msgpack-damaged", f"{extra:,} bytes follow the value", detail, spot))
    return Content("msgpack", source.size, value=value, tensors=walk.tensors, problems=tuple(walk.problems))


class _Walk:
    """One pass over a file; ``at`` is how far it came."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.at = 0
        self.tensors: dict[str, TensorRef] = {}
        self.problems: list[Problem] = []
        self._start = 0
        self._buffer = b""

    def take(self, length: int) -> bytes:
        """Return the next bytes."""
        begin = self.at - self._start
        if not 0 <= begin <= len(self._buffer) - length:
            self.room(length)
            self._start = self.at
            self._buffer = self.source.read(self.at, max(length, _BUFFER))
            begin = 0
        self.at += length
        return self._buffer[begin : begin + length]

    def room(self, length: int) -> None:
        """Make sure that so many bytes follow."""
        if self.at + length > self.source.size:
            size = self.source.size
            detail = (f"needs {self.at + length:,} bytes at least, has {size:,}", "msgpack stops: incomplete input")
            raise FormatError(Problem("file-cut-short", "the file is cut short", detail, Spot(offset=size)))

    def damaged(self, why: str) -> FormatError:
        place = Spot(offset=self.source.base + self.at)
        return FormatError(Problem("msgpack-damaged", "the file is no valid msgpack", (why,), place))

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def value(self, path: str, depth: int) -> Value:
        """Return the next value, which lies at a key path of the tree."""
        if depth > MAX_DEPTH:
            raise self.damaged(f"it is nested more than {MAX_DEPTH} levels deep")
        mark = self.take(1)[0]
        if mark < 0x80 or mark >= 0xE0:
            return mark if mark < 0x80 else mark - 0x100
        if mark in _NUMBERS:
            form = _NUMBERS[mark]
            number: int | float = struct.unpack(form, self.take(struct.calcsize(form)))[0]
            return number
        if mark in (0xC0, 0xC2, 0xC3):
            return None if mark == 0xC0 else mark == 0xC3
        if mark == 0xC1:
            raise self.damaged("the byte c1 is never used")
        return self.long(mark, path, depth)

    def long(self, mark: int, path: str, depth: int) -> Value:
        """Return a value whose length is stated: text, bytes, a list, a map, an extension."""
        if mark in _FIXED:
            return self.extension(_FIXED[mark], path)
        if mark < 0x90:
            return self.mapping(mark & 0x0F, path, depth)
        if mark < 0xA0:
            return self.items(mark & 0x0F, path, depth)
        length = mark & 0x1F if mark < 0xC0 else self.number(_LENGTHS[mark])
        if mark < 0xC0 or 0xD9 <= mark <= 0xDB:
            return self.text(length)
        if mark >= 0xDE:
            return self.mapping(length, path, depth)
        if mark >= 0xDC:
            return self.items(length, path, depth)
        return self.extension(length, path) if mark >= 0xC7 else self.skipped(length)

    def text(self, length: int) -> str:
        self.room(length)
        if length > MAX_TEXT:
            self.at += length
            return f"... {length:,} bytes of text"
        return self.take(length).decode("utf-8", "backslashreplace")

    def skipped(self, length: int) -> str:
        """Step over bytes that are of no meaning here."""
        self.room(length)
        self.at += length
        return f"{length:,} bytes"

    def items(self, count: int, path: str, depth: int) -> Value:
        self.room(count)
        return [self.value(f"{path}.{number}" if path else str(number), depth + 1) for number in range(count)]

    def mapping(self, count: int, path: str, depth: int) -> Value:
        self.room(2 * count)
        found: dict[Any, Value] = {}
        for _ in range(count):
            key = self.value("", depth + 1)
            if not isinstance(key, str | int | float | bool | None):
                raise self.damaged("a key of a map is no text or number")
            found[key] = self.value(f"{path}.{key}" if path else str(key), depth + 1)
        return found

    def extension(self, length: int, path: str) -> Value:
        kind = self.number(1)
        self.room(length)
        end = self.at + length
        if kind not in (ARRAY, COMPLEX, SCALAR):
            self.at = end
            return f"{length:,} bytes of extension {kind}"
        start = self.at
        if kind == COMPLEX:
            found: Value = self._complex()
        else:
            found = self._array(path)
        if self.at != end:
            self.at = start
            raise self.damaged(f"an array at `{printable(path)}` is not of its length")
        return found

    def _complex(self) -> Value:
        parts = self.value("", MAX_DEPTH - 2)
        if isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, int | float) for part in parts):
            return complex(parts[0], parts[1])
        raise self.damaged("a complex number is not two numbers")

    def _array(self, path: str) -> TensorRef:
        """Return the tensor of ``[shape, type, bytes]``, stepping over the bytes."""
        if self.take(1)[0] != 0x93:
            raise self.damaged(f"the array at `{printable(path)}` is no list of shape, type and bytes")
        shape, dtype = self.value("", MAX_DEPTH - 2), self.value("", MAX_DEPTH - 2)
        mark = self.take(1)[0]
        sizes = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
        if not isinstance(shape, list) or not sizes or not isinstance(dtype, str) or mark not in (0xC4, 0xC5, 0xC6):
            raise self.damaged(f"the array at `{printable(path)}` is no list of shape, type and bytes")
        length = self.number(_LENGTHS[mark])
        self.room(length)
        bits = DTYPE_BITS.get(dtype)
        if bits is not None and prod(shape) * bits // 8 != length:
            detail = (f"{length:,} bytes for {dtype} {shape}", "flax stops: cannot reshape")
            message = f"the array `{printable(path)}` does not fit its bytes"
            self.problems.append(Problem("msgpack-damaged", message, detail, Spot(tensor=path)))
        dims = tuple(int(size) for size in shape)
        extent = Extent(self.source.name, self.source.base + self.at, length)
        found = TensorRef(path, dtype, dims, (Chunk((0,) * len(dims), dims, extent),))
        self.tensors[path] = found
        self.at += length
        return found
