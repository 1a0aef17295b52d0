"""The files of a training set: their digests when a checkpoint is sealed, and whether they are still the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial

from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.listing import Listing, scan
from ckpt_tools.core.progress import SILENT, Progress
from ckpt_tools.model.manifest import SealedData
from ckpt_tools.numerics.digest import BYTES, file_digest, finish
from ckpt_tools.numerics.spans import Span
from ckpt_tools.numerics.streaming import Job, stream
from ckpt_tools.ops.deep import workers

_DEPTH = 64


def sealed(path: str, *, jobs: int | None = None, progress: Progress = SILENT) -> SealedData:
    """Return what a file or directory of data holds.

    Raises:
        NothingFoundError: it does not exist.
        SourceError: a file or directory cannot be read.
    """
    listing = scan(path, depth=_DEPTH)
    names = _names(listing)
    work = [Job(name, partial(listing.open, name), _spans(listing.files[name].size)) for name in names]
    with progress.task(f"reading {os.path.basename(os.path.abspath(path))}", listing.size, "B") as task:
        outcomes = stream(work, workers=workers(jobs), task=task)
    found = {}
    for name, outcome in zip(names, outcomes, strict=True):
        if outcome.errors:
            raise outcome.errors[0]
        size = listing.files[name].size
        digest = file_digest((size, finish(BYTES, span.digests)) for span in outcome.spans)
        found[name if os.path.isdir(path) else ""] = (size, digest)
    return SealedData(os.path.basename(os.path.abspath(path)), found)


def _spans(size: int) -> list[Span]:
    return [Span(0, size, digest=True)] if size else []


def _names(listing: Listing) -> list[str]:
    for path, reason in listing.errors.items():
        raise SourceError(path, f"cannot be listed: {reason.lower()}")
    return [name for name, entry in listing.files.items() if entry.is_file]


def drift_of(then: Sequence[SealedData], paths: Sequence[str], *, deep: bool) -> Iterator[str]:
    """Yield in words how the data at ``paths`` differs from what was sealed; bytes are compared when ``deep``.

    Each path is held against the sealed data of its own name, or else of its place in the order.

    Raises:
        CkptError: see ``sealed``.
    """
    left = list(then)
    pairs: list[tuple[str, SealedData | None]] = []
    for path in paths:
        name = os.path.basename(os.path.abspath(path))
        pairs.append((path, next((each for each in left if each.name == name), None)))
        if pairs[-1][1] is not None:
            left.remove(pairs[-1][1])
    for path, old in pairs:
        old = old or (left.pop(0) if left else None)
        if old is None:
            yield f"{path}: was not sealed"
        else:
            yield from _differences(path, old, deep)
    yield from (f"{old.name}: was sealed, and not given" for old in left)


def _differences(path: str, old: SealedData, deep: bool) -> Iterator[str]:
    if deep:
        now: dict[str, tuple[int, str | None]] = dict(sealed(path).files)
    else:
        listing = scan(path, depth=_DEPTH)
        now = {name if os.path.isdir(path) else "": (listing.files[name].size, None) for name in _names(listing)}
    for name, (size, digest) in old.files.items():
        place = f"{path}/{name}" if name else path
        if name not in now:
            yield f"{place}: is missing"
        elif now[name][0] != size:
            yield f"{place}: had {size:,} bytes, has {now[name][0]:,}"
        elif now[name][1] not in (None, digest):
            yield f"{place}: its bytes changed"
    yield from (f"{path}/{name}: was not there" for name in now if name not in old.files)
