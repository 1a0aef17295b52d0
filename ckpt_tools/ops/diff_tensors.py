"""Pairs of tensors, streamed: equal bytes are recognised first and cost no arithmetic, the rest is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from threading import Lock, local
from typing import TYPE_CHECKING, Any

from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.listing import Listing
from ckpt_tools.core.progress import SILENT, Progress
from ckpt_tools.core.source import Source
from ckpt_tools.model.tensors import DTYPE_BITS, TensorRef
from ckpt_tools.numerics.assembled import ABSENT, Assembled, OpenFiles, problem
from ckpt_tools.ops.unpacked import unpacked

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from ckpt_tools.numerics.distance import Distance

SMALL = 1 << 26
"""Below so many bytes two threads do, and nobody asks numpy's neighbours for the number of processors."""

MOST = 16
"""Threads that are started unasked: more of them wait for the disk, and each has its buffers."""

PIECE = 1 << 24
"""Bytes of one side that one thread takes at a time; a large tensor is shared between threads."""

BATCH = 1 << 22
"""Small tensors are handed to a thread together, up to so many bytes."""

BUFFER = 1 << 17

UNDECODED = "values of this type are not decoded"


@dataclass(slots=True, eq=False)
class Pair:
    """Two tensors of one name.

    After a comparison ``distance`` is None where all bytes are equal, or ``why`` says why there is none; ``note`` goes
    with the result.  ``sealed`` says whether the digests of both are equal, None where they are not known.
    """

    name: str
    part: str
    left: TensorRef
    right: TensorRef
    differs: bool = False
    distance: Distance | None = None
    note: str = ""
    why: str = ""
    broken: bool = False
    sealed: bool | None = None
    _equal: list[_Piece] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Piece:
    """A run of elements of a dense pair, or all of a strided one (``count`` is -1)."""

    pair: Pair
    start: int = 0
    count: int = -1
    measure: bool = False

    @property
    def cost(self) -> int:
        pair = self.pair
        return max(pair.left.nbytes, pair.right.nbytes) if self.count < 0 else self.count * _width(pair)


def compare(
    pairs: Iterable[Pair], listings: tuple[Listing, Listing], *, jobs: int | None = None, progress: Progress = SILENT
) -> None:
    """Fill in what became of every pair; files that cannot be read are told in ``why``, never raised."""
    pairs = list(pairs)
    _unpack(pairs, listings)
    pieces = [piece for pair in pairs for piece in _pieces(pair)]
    with ExitStack() as stack:
        work = _Work(*(stack.enter_context(OpenFiles(listing)) for listing in listings))
        total = sum(piece.cost for piece in pieces)
        jobs = jobs or _workers(total)
        task = stack.enter_context(progress.task("comparing", total, "B"))
        _run(pieces, work, jobs, task.advance)
        # Equal runs of tensors that differ elsewhere: their lengths are part of the relative change.
        rest = [
            piece for pair in dict.fromkeys(piece.pair for piece in pieces) if pair.differs for piece in pair._equal
        ]
        for piece in rest:
            piece.measure = True
        _run(rest, work, jobs, lambda amount: None)


def _unpack(pairs: list[Pair], listings: tuple[Listing, Listing]) -> None:
    """Open the files inside of files, where chunks of a pair lie in some."""
    for side, listing in zip(("left", "right"), listings, strict=True):
        refs = {f"{number}": getattr(pair, side) for number, pair in enumerate(pairs) if not pair.sealed}
        packed = {number: ref for number, ref in refs.items() if any(chunk.inside for chunk in ref.chunks)}
        for number, ref in unpacked(listing, packed).items():
            if isinstance(ref, TensorRef):
                setattr(pairs[int(number)], side, ref)
            else:
                pairs[int(number)].why, pairs[int(number)].broken = ref, True


def _workers(total: int) -> int:
    if total < SMALL:
        return 2
    from ckpt_tools.numerics.streaming import processors

    return min(MOST, processors())


def _pieces(pair: Pair) -> Iterator[_Piece]:
    left, right = pair.left, pair.right
    if pair.sealed or pair.why:
        return
    if left.shape != right.shape:
        yield from _resized(pair)
        return
    if left.numel == 0:
        pair.differs = left.dtype != right.dtype
        return
    if not (left.chunks and right.chunks):
        pair.why, pair.broken = ABSENT, True
        return
    if left.dtype != right.dtype and not (decoded(left) and decoded(right)):
        pair.differs, pair.note = True, UNDECODED
        return
    if is_dense(left) and is_dense(right):
        yield from _runs(pair, left.numel)
    elif len(left.chunks) > 1 or len(right.chunks) > 1:
        pair.why = problem(left) or problem(right)
        pair.broken = bool(pair.why)
        yield from () if pair.why else _runs(pair, left.numel)
    elif decoded(left) and decoded(right):
        yield _Piece(pair)
    else:
        pair.why = f"{left.dtype} with strides is not read"


def _resized(pair: Pair) -> Iterator[_Piece]:
    """Compare the rows that both have of a table that grew or shrank."""
    left, right = pair.left, pair.right
    pair.differs = True
    if len(left.shape) != len(right.shape) or left.shape[1:] != right.shape[1:] or not left.shape:
        return
    rows = min(left.shape[0], right.shape[0])
    if _in_order(left) and _in_order(right) and rows and decoded(left) and decoded(right) and prod(left.shape[1:]):
        pair.note = f"over the first {rows:,} rows"
        for piece in _runs(pair, rows * prod(left.shape[1:])):
            piece.measure = True
            yield piece


def _runs(pair: Pair, count: int) -> Iterator[_Piece]:
    step = max(1, PIECE // _width(pair))
    if not decoded(pair.left):
        step = count
    for start in range(0, count, step):
        yield _Piece(pair, start, min(step, count - start))


def _width(pair: Pair) -> int:
    return max(1, DTYPE_BITS.get(pair.left.dtype, 8) // 8, DTYPE_BITS.get(pair.right.dtype, 8) // 8)


def is_dense(ref: TensorRef) -> bool:
    """Return whether all of a tensor lies in one run of little-endian, row-major elements."""
    if len(ref.chunks) != 1:
        return False
    chunk = ref.chunks[0]
    return chunk.strides is None and chunk.byteorder == "little" and chunk.sizes == ref.shape


def _in_order(ref: TensorRef) -> bool:
    """Return whether the rows of a tensor are read one after another: from one run, or from several chunks."""
    return is_dense(ref) or (len(ref.chunks) > 1 and not problem(ref))


def decoded(ref: TensorRef) -> bool:
    """Return whether the elements are whole bytes that numpy or ml_dtypes has a type for."""
    return DTYPE_BITS.get(ref.dtype, 0) >= 8 and ref.dtype not in ("quint4x2", "quint2x4", "float4_e2m1fn_x2")


def _run(pieces: list[_Piece], work: _Work, jobs: int, advance: Callable[[int], None]) -> None:
    batches = list(_batches(pieces))
    if jobs < 2 or len(batches) < 2:
        for batch in batches:
            advance(work(batch))
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(jobs) as pool:
        _drain(pool, batches, work, jobs, advance)


def _drain(
    pool: ThreadPoolExecutor, batches: list[list[_Piece]], work: _Work, jobs: int, advance: Callable[[int], None]
) -> None:
    waiting: list[Future[int]] = []
    try:
        for batch in batches:
            waiting.append(pool.submit(work, batch))
            if len(waiting) > 4 * jobs:
                advance(waiting.pop(0).result())
        for future in waiting:
            advance(future.result())
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += piece.cost
        if size >= BATCH or len(batch) >= 1000:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Work:
    """What a thread does with a batch; every thread keeps its own buffers."""

    def __init__(self, left: OpenFiles, right: OpenFiles) -> None:
        self._files = left, right
        self._whole: dict[tuple[int, int], Assembled] = {}
        self._own = local()
        self._lock = Lock()

    def __call__(self, batch: list[_Piece]) -> int:
        done = 0
        for piece in batch:
            pair = piece.pair
            done += piece.cost
            if pair.why:
                continue
            try:
                found = self._look(piece)
            except SourceError as error:
                pair.why, pair.broken = str(error), True
                continue
            with self._lock:
                if found is None and not piece.measure:
                    pair._equal.append(piece)
                elif found is not None:
                    _merge(pair, found)
        return done

    def _look(self, piece: _Piece) -> Distance | None:
        """Return the distance of a piece, None where its bytes are equal or its values cannot be told."""
        pair = piece.pair
        if piece.count < 0:
            return self._strided(pair)
        same_type = pair.left.dtype == pair.right.dtype
        if same_type and not piece.measure and self._same_bytes(piece):
            return None
        if not decoded(pair.left):
            pair.differs, pair.note = True, UNDECODED
            return None
        from ckpt_tools.numerics import distance

        left, right = (
            (*place, ref.dtype) for place, ref in zip(self._places(piece), (pair.left, pair.right), strict=True)
        )
        return distance.dense(left, right, piece.count, self._space(distance.Workspace))

    def _places(self, piece: _Piece) -> Iterator[tuple[Source, int]]:
        """Yield for each side where the elements of a piece are read from."""
        for files, ref in zip(self._files, (piece.pair.left, piece.pair.right), strict=True):
            if is_dense(ref):
                yield files[ref.chunks[0].extent.path], _offset(ref, piece.start)
            else:
                mark = id(files), id(ref)
                if mark not in self._whole:
                    self._whole[mark] = Assembled(ref, files)
                yield self._whole[mark], piece.start * (DTYPE_BITS.get(ref.dtype, 8) // 8)

    def _strided(self, pair: Pair) -> Distance:
        from ckpt_tools.numerics import distance

        return distance.strided(pair.left, pair.right, self._files, self._space(distance.Workspace))

    def _space(self, make: Callable[[], Any]) -> Any:
        if not hasattr(self._own, "space"):
            self._own.space = make()
        return self._own.space

    def _same_bytes(self, piece: _Piece) -> bool:
        pair = piece.pair
        size = (piece.count * DTYPE_BITS.get(pair.left.dtype, 8) + 7) // 8
        left, right = self._places(piece)
        if not hasattr(self._own, "buffers"):
            self._own.buffers = bytearray(BUFFER), bytearray(BUFFER)
        return same_bytes(left, right, size, self._own.buffers)


def _offset(ref: TensorRef, start: int) -> int:
    return ref.chunks[0].extent.offset + start * (DTYPE_BITS.get(ref.dtype, 8) // 8)


def same_bytes(
    left: tuple[Source, int], right: tuple[Source, int], size: int, buffers: tuple[bytearray, bytearray] | None = None
) -> bool:
    """Return whether ``size`` bytes at two places are equal, at the speed of ``memcmp`` and without numpy."""
    one, other = buffers or (bytearray(BUFFER), bytearray(BUFFER))
    views = memoryview(one), memoryview(other)
    for begin in range(0, size, BUFFER):
        length = min(BUFFER, size - begin)
        left[0].read_into(left[1] + begin, views[0][:length])
        right[0].read_into(right[1] + begin, views[1][:length])
        if length < BUFFER:
            if bytes(views[0][:length]) != bytes(views[1][:length]):
                return False
        elif one != other:
            return False
    return True


def _merge(pair: Pair, found: Distance) -> None:
    if found.changed or found.nan_left != found.nan_right or pair.left.dtype != pair.right.dtype:
        pair.differs = True
    if pair.distance is None:
        pair.distance = found
    else:
        pair.distance.add(found)


def merged(distances: Iterable[Distance]) -> Distance | None:
    """Return the distance of several pairs taken together, None for none."""
    total: Distance | None = None
    for each in distances:
        if total is None:
            total = type(each)()
        total.add(each)
    return total


def aliases(tensors: Mapping[str, TensorRef]) -> dict[str, list[str]]:
    """Return for every name the other names of the same bytes in the same shape (tied weights)."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, ref in tensors.items():
        if (ref.storage_id is not None or len(ref.chunks) > 1) and ref.chunks and ref.numel:
            mark = (ref.storage_id, ref.chunks, ref.dtype, ref.shape)
            groups.setdefault(mark, []).append(name)
    return {name: [other for other in names if other != name] for names in groups.values() for name in names}
