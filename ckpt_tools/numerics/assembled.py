"""Tensors that lie in several chunks, read as if they were one run of row-major little-endian bytes.

An ``Assembled`` tensor is a ``Source``: comparing, digesting and copying it is what it is for a run of bytes in one
file.  Chunks that split the first dimension (FSDP) or that are parts of a flat partition (ZeRO) are runs of the
tensor's own bytes and are read straight into the reader's buffer; others are read in runs as long as they have, and
put in their places.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.listing import Listing
from ckpt_tools.core.source import Source
from ckpt_tools.model.tensors import DTYPE_BITS, Chunk, TensorRef, boxes_of_range
from ckpt_tools.model.tiling import fit

if TYPE_CHECKING:
    from numpy.typing import NDArray

ABSENT = "its bytes are not in the file"
GAP = "no chunk holds its elements from {} on"
MUDDLE = "its chunks reach outside of it, or overlap too often"
CUT = "a chunk begins or ends inside of a byte"
UNKNOWN = "elements of type {} are not known"

OPEN = 256
"""Files that are kept open; those beyond are opened for every read (a checkpoint may have one for each tensor)."""


class Files(Protocol):
    """Sources by path."""

    def __getitem__(self, path: str, /) -> Source: ...


class OpenFiles:
    """The files of a checkpoint, opened on first use and shared between threads."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._opened: dict[str, Source] = {}
        self._lock = Lock()

    def __getitem__(self, path: str) -> Source:
        found = self._opened.get(path)
        if found is None:
            with self._lock:
                found = self._opened.get(path)
                if found is None:
                    keep = len(self._opened) < OPEN
                    found = self._opened[path] = self._listing.open(path) if keep else _Briefly(self._listing, path)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for source in self._opened.values():
            source.close()
        self._opened.clear()


class _Briefly(Source):
    """A file that is open only while it is read."""

    def __init__(self, listing: Listing, path: str) -> None:
        self._listing = listing
        self.name = path
        entry = listing.files.get(path)
        self.size = entry.size if entry is not None else 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._listing.open(self.name) as source:
            source.read_into(offset, buffer)


class _Run(NamedTuple):
    """Bytes ``[begin, end)`` of a tensor, and where they are stored."""

    begin: int
    end: int
    path: str
    at: int


class _Held(NamedTuple):
    """A chunk, and the row-major numbers of its first element and of the one after its last."""

    first: int
    end: int
    chunk: Chunk


def problem(ref: TensorRef) -> str:
    """Return why the elements of a tensor cannot be read, as far as its chunks tell it; ``""`` when they can."""
    try:
        Assembled(ref, {})
    except SourceError as error:
        return error.reason
    return ""


class Assembled(Source):
    """A tensor as its row-major little-endian bytes.

    Nothing is opened before the first read.

    Raises:
        SourceError: its chunks leave some of it out, or are of a kind that cannot be read.
    """

    def __init__(self, ref: TensorRef, files: Files | Mapping[str, Source]) -> None:
        self.name = ref.fqn
        self.size = ref.nbytes
        self._shape = ref.shape
        self._files = files
        self._bits = DTYPE_BITS.get(ref.dtype, 0)
        self._width = self._bits // 8
        self._swap = self._width // (2 if ref.dtype.startswith("complex") else 1)
        self._runs: list[_Run] = []
        self._ends: list[int] = []
        self._held: list[_Held] = []
        self._firsts: list[int] = []
        self._reach: list[int] = []
        if ref.numel:
            self._place(ref)

    def _place(self, ref: TensorRef) -> None:
        if not self._bits:
            raise SourceError(ref.fqn, UNKNOWN.format(ref.dtype or "?"))
        if not ref.chunks or any(chunk.inside for chunk in ref.chunks):
            raise SourceError(ref.fqn, ABSENT)
        held = sorted((_held(chunk, ref.shape) for chunk in ref.chunks if 0 not in chunk.sizes), key=_order)
        if all(self._straight(each) for each in held):
            self._line_up(ref, held)
            return
        if self._bits % 8:
            raise SourceError(ref.fqn, CUT)
        found = fit(ref.shape, [(each.chunk.offsets, each.chunk.sizes) for each in held])
        if found.hole is not None:
            raise SourceError(ref.fqn, GAP.format(list(found.hole[0])))
        if found.outside is not None or found.given_up:
            raise SourceError(ref.fqn, MUDDLE)
        self._held = held
        self._firsts = [each.first for each in held]
        self._reach = list(accumulate((each.end for each in held), max))

    def _straight(self, held: _Held) -> bool:
        """Whether a chunk is a run of the tensor's bytes just as it is stored."""
        chunk = held.chunk
        plain = chunk.strides is None or tuple(chunk.strides) == row_major(chunk.sizes)
        return plain and held.end - held.first == prod(chunk.sizes) and not self._swapped(chunk)

    def _swapped(self, chunk: Chunk) -> bool:
        return chunk.byteorder == "big" and self._swap > 1

    def _line_up(self, ref: TensorRef, held: Sequence[_Held]) -> None:
        reached = 0
        for each in held:
            if each.end <= reached:
                continue
            if each.first > reached:
                break
            skipped = (reached - each.first) * self._bits
            begin, end = reached * self._bits, each.end * self._bits
            if skipped % 8 or begin % 8 or (end % 8 and each.end != ref.numel):
                raise SourceError(ref.fqn, CUT)
            at = each.chunk.extent.offset + skipped // 8
            self._runs.append(_Run(begin // 8, -(-end // 8), each.chunk.extent.path, at))
            reached = each.end
        if reached < ref.numel:
            raise SourceError(ref.fqn, GAP.format(list(index_of(reached, ref.shape))))
        self._ends = [run.end for run in self._runs]

    # Reading -----------------------------------------------------------------------------------------------

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self.size:
            raise SourceError(self.name, f"has {self.size:,} bytes; more were asked for")
        if not self._held:
            self._read_runs(offset, buffer)
            return
        width = self._width
        first, into = divmod(offset, width)
        end = -(-(offset + len(buffer)) // width)
        if into or (offset + len(buffer)) % width:
            whole = memoryview(bytearray((end - first) * width))
            self._read_boxes(first, end, whole)
            buffer[:] = whole[into : into + len(buffer)]
        else:
            self._read_boxes(first, end, buffer)

    def _read_runs(self, offset: int, buffer: memoryview) -> None:
        number = bisect_right(self._ends, offset)
        done = 0
        while done < len(buffer):
            begin, end, path, at = self._runs[number]
            size = min(end - offset, len(buffer) - done)
            self._files[path].read_into(at + offset - begin, buffer[done : done + size])
            done += size
            offset += size
            number += 1

    def _read_boxes(self, first: int, end: int, buffer: memoryview) -> None:
        import numpy as np

        items = np.frombuffer(buffer, _form(self._width))
        at = 0
        for origin, sizes in boxes_of_range(self._shape, first, end):
            count = prod(sizes)
            self._fill(origin, sizes, items[at : at + count].reshape(sizes))
            at += count

    def box(self, origin: tuple[int, ...], sizes: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return a block of a tensor as a dense array of ``dtype``, whose elements have the tensor's width.

        Raises:
            SourceError: a file could not be read, or changed while it was.
        """
        import numpy as np

        out = np.empty(sizes, _form(self._width))
        if self._held:
            self._fill(origin, sizes, out)
        else:
            self._fill_from_runs(origin, sizes, out)
        found: NDArray[Any] = out.reshape(-1).view(dtype).reshape(sizes)
        return found

    def _fill_from_runs(self, origin: tuple[int, ...], sizes: tuple[int, ...], out: NDArray[Any]) -> None:
        """Read a block of a tensor that lies in runs, one row of the block at a time."""
        inner = len(sizes)
        while inner and sizes[inner - 1 :] == self._shape[inner - 1 :]:
            inner -= 1
        inner = max(inner - 1, 0)
        steps = row_major(self._shape)
        size = prod(sizes[inner:]) * self._width
        memory = out.reshape(-1).view("u1").data
        for number in range(prod(sizes[:inner])):
            at = (a + b for a, b in zip(origin, (*index_of(number, sizes[:inner]), *[0] * len(sizes)), strict=False))
            begin = sum(place * step for place, step in zip(at, steps, strict=True)) * self._width
            self._read_runs(begin, memory[number * size : (number + 1) * size])

    def _fill(self, origin: tuple[int, ...], sizes: tuple[int, ...], out: NDArray[Any]) -> None:
        steps = row_major(self._shape)
        begin = sum(a * step for a, step in zip(origin, steps, strict=True))
        end = begin + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True)) + 1
        for held in self._held[bisect_right(self._reach, begin) : bisect_left(self._firsts, end)]:
            chunk = held.chunk
            low = tuple(max(a, b) for a, b in zip(origin, chunk.offsets, strict=True))
            edges = zip(origin, sizes, chunk.offsets, chunk.sizes, low, strict=True)
            shape = tuple(min(a + m, b + n) - at for a, m, b, n, at in edges)
            if all(size > 0 for size in shape):
                place: tuple[Any, ...] = tuple(
                    slice(a - b, a - b + n) for a, b, n in zip(low, origin, shape, strict=True)
                )
                self._copy(chunk, low, shape, out[(*place, ...)])

    def _copy(self, chunk: Chunk, low: tuple[int, ...], shape: tuple[int, ...], out: NDArray[Any]) -> None:
        """Read the part of a chunk that begins at ``low`` of the tensor into its place."""
        import numpy as np

        from ckpt_tools.numerics.gather import block_at

        width = self._width
        strides = chunk.strides or row_major(chunk.sizes)
        skipped = sum((at - a) * stride for at, a, stride in zip(low, chunk.offsets, strides, strict=True))
        source, at = self._files[chunk.extent.path], chunk.extent.offset + skipped * width
        span = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        swapped = self._swapped(chunk)
        if span == prod(shape) and _in_order(shape, strides):
            if out.flags.c_contiguous and not swapped:
                source.read_into(at, out.reshape(-1).view("u1").data)
                return
            piece = np.empty(span * width, np.uint8)
            source.read_into(at, piece.data)
        else:
            dimensions = tuple((n, stride) for n, stride in zip(shape, strides, strict=True) if n != 1)
            piece = block_at(source, at, dimensions, width)
        if swapped:
            piece = np.ascontiguousarray(piece.reshape(-1, self._swap)[:, ::-1]).reshape(-1)
        out[...] = piece.view(_form(width)).reshape(shape)


def row_major(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a dense tensor, in elements."""
    return tuple(prod(sizes[axis + 1 :]) for axis in range(len(sizes)))


def index_of(number: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the index of an element by its row-major number."""
    index = []
    for size in reversed(shape):
        number, at = divmod(number, size)
        index.append(at)
    return tuple(reversed(index))


def _held(chunk: Chunk, shape: tuple[int, ...]) -> _Held:
    steps = row_major(shape)
    first = sum(at * step for at, step in zip(chunk.offsets, steps, strict=True))
    last = first + sum((n - 1) * step for n, step in zip(chunk.sizes, steps, strict=True))
    return _Held(first, last + 1, chunk)


def _order(held: _Held) -> tuple[int, int]:
    return held.first, -held.end


def _in_order(shape: tuple[int, ...], strides: Sequence[int]) -> bool:
    """Whether a block whose elements lie without a gap is row-major: its strides fall."""
    kept = [stride for n, stride in zip(shape, strides, strict=True) if n != 1]
    return kept == sorted(kept, reverse=True)


def _form(width: int) -> str:
    return f"u{width}" if width in (1, 2, 4, 8) else f"V{width}"
