"""Runs of zero bytes, by pages of the file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tools.core.source import Source
from ckpt_tools.numerics.spans import PAGE

Run = tuple[int, int]
"""Zero bytes ``[begin, end)`` by position in the file."""


def zero_runs(block: NDArray[np.uint8], position: int) -> list[Run]:
    """Return the pages of ``block`` that are all zero, and its ends where these are zero pieces of pages.

    ``position`` is where the block begins in its file.  One word of each page is looked at; only a page whose
    first word is zero is looked at whole.
    """
    size = len(block)
    head = min(-position % PAGE, size)
    pages = (size - head) // PAGE
    tail = head + pages * PAGE
    found: list[Run] = []
    if head and block[head - 1] == 0 and block[0] == 0 and not block[:head].any():
        found.append((position, position + head))
    if pages:
        words = block[head:tail].view(np.uint64)
        candidates: Any = words[:: PAGE // 8] == 0
        if candidates.any():
            if candidates.all() and not words.any():
                found.append((position + head, position + tail))
            else:
                for page in np.flatnonzero(candidates).tolist():
                    begin = page * (PAGE // 8)
                    if not words[begin : begin + PAGE // 8].any():
                        found.append((position + head + page * PAGE, position + head + (page + 1) * PAGE))
    if tail < size and block[tail] == 0 and block[size - 1] == 0 and not block[tail:].any():
        found.append((position + tail, position + size))
    return merged(found)


def merged(runs: Iterable[Run]) -> list[Run]:
    """Return runs in order, those that touch made one."""
    result: list[Run] = []
    for begin, end in sorted(runs):
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((begin, end))
    return result


def whole_pages(runs: Iterable[Run], size: int) -> list[Run]:
    """Return what of ``runs`` covers whole pages, or the rest of the file from a page boundary on."""
    found = []
    for begin, end in merged(runs):
        first = begin + -begin % PAGE
        last = end if end == size else end - end % PAGE
        if last > first and (last - first >= PAGE or last == size):
            found.append((first, last))
    return found


def reach(source: Source, run: Run) -> Run:
    """Return the bytes around whole zero pages that are zero as well: where the run really begins and ends.

    Positions are those of the source.

    Raises:
        SourceError: the file could not be read.
    """
    begin, end = run
    while begin > 0:
        before = source.read(max(0, begin - PAGE), min(PAGE, begin))
        kept = len(before.rstrip(b"\0"))
        begin -= len(before) - kept
        if kept:
            break
    while end < source.size:
        after = source.read(end, PAGE)
        kept = len(after.lstrip(b"\0"))
        end += len(after) - kept
        if kept:
            break
    return begin, end
