"""Which runs of zeros look like pages that never reached the disk, and which a training leaves behind.

A page cache that is lost leaves zeros from one page boundary of the *file* to another, or from where the writer was
to the end; both lie anywhere in a tensor.  What a training leaves zero (embedding rows never seen, dead rows, masks,
fresh moments, whole tensors) begins and ends with a row or a tensor.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from math import prod

from ckpt_tools.core.source import Source
from ckpt_tools.model.summaries import ZeroRun
from ckpt_tools.model.tensors import DTYPE_BITS, TensorRef
from ckpt_tools.numerics.spans import PAGE
from ckpt_tools.numerics.statistics import FORMATS
from ckpt_tools.numerics.zeros import Run, reach

MAX_RUNS = 512
"""A file with more runs is rich in zeros by nature: only the one at its end is judged."""

_USUAL = re.compile(
    r"lora_(?:embedding_)?[ABE]\b|lora_(?:up|down)\b|bias\b|exp_avg|square_avg|momentum|norm|gate|scale"
)


def judge(source: Source, runs: list[Run], tensors: Iterable[TensorRef]) -> Iterator[ZeroRun]:
    """Yield the zero pages of a file that need an explanation.

    ``runs`` are whole zero pages in order, by position in the file, of which ``source`` is the whole.

    Raises:
        SourceError: the file could not be read.
    """
    placed = sorted(
        (ref for ref in tensors if len(ref.chunks) == 1 and ref.chunks[0].extent.length),
        key=lambda ref: (ref.chunks[0].extent.offset, -ref.chunks[0].extent.length),
    )
    starts = [ref.chunks[0].extent.offset for ref in placed]
    judged = runs if len(runs) <= MAX_RUNS else runs[-1:]
    found = [(run, reach(source, run)) for run in judged]
    natural: set[int] = set()
    interior: list[tuple[ZeroRun, set[int]]] = []
    for (first, last), (begin, end) in found:
        touched = _touched(placed, starts, begin, end)
        width = max((_width(ref) for ref in touched), default=1)
        tail = end == source.size
        exact = first - begin < width and (tail or end - last < width)
        if tail:
            run = _run(begin, end, exact, True, touched)
            if _suspicious_tail(run, touched):
                yield run
            continue
        ids = {id(ref) for ref in touched}
        if not exact:
            natural |= ids
            continue
        run = _run(begin, end, True, False, touched)
        floats = any(ref.dtype in FORMATS for ref in touched)
        if floats and _cut(touched, begin) and _cut(touched, end):
            interior.append((run, ids))
    yield from (run for run, ids in interior if not ids & natural)


def _touched(placed: list[TensorRef], starts: list[int], begin: int, end: int) -> list[TensorRef]:
    """Return the tensors with bytes in ``[begin, end)``."""
    position = bisect_right(starts, begin)
    while position and placed[position - 1].chunks[0].extent.end > begin:
        position -= 1
    return [ref for ref in placed[position : bisect_left(starts, end)] if ref.chunks[0].extent.end > begin]


def _width(ref: TensorRef) -> int:
    return max(1, DTYPE_BITS.get(ref.dtype, 8) // 8)


def _run(begin: int, end: int, exact: bool, tail: bool, touched: list[TensorRef]) -> ZeroRun:
    whole, partly, inside = [], [], None
    for ref in touched:
        extent, width = ref.chunks[0].extent, _width(ref)
        if begin < extent.offset + width and end > extent.end - width:
            whole.append(ref.fqn)
            continue
        partly.append(ref.fqn)
        if extent.offset + width <= begin:
            inside = inside or ref.fqn
    return ZeroRun(begin, end, exact, tail, inside, tuple(whole), tuple(partly))


def _suspicious_tail(run: ZeroRun, touched: list[TensorRef]) -> bool:
    """Judge zeros that reach the end of the file."""
    floats = [ref for ref in touched if ref.dtype in FORMATS]
    if run.end - run.begin < PAGE or not floats:
        return False
    if run.inside is not None and _cut(touched, run.begin):
        return True
    matrices = [ref for ref in floats if ref.fqn in run.whole and len(ref.shape) > 1 and not _USUAL.search(ref.fqn)]
    return len(run.whole) > 1 and bool(matrices)


def _cut(touched: list[TensorRef], position: int) -> bool:
    """Whether ``position`` lies inside a tensor and not at a row of it, give or take one element's bytes."""
    for ref in touched:
        (chunk,) = ref.chunks
        width, place = _width(ref), position - chunk.extent.offset
        if not width <= place <= chunk.extent.length - width:
            continue
        if len(ref.shape) < 2 or chunk.strides is not None:
            return True
        rows = {prod(ref.shape[1:]) * width, ref.shape[-1] * width}
        near = (place - place % width, place + -place % width)
        return not any(row > width and edge % row == 0 for row in rows for edge in near)
    return False
