"""``ckpt checksum``: a digest for every tensor or every file."""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import TYPE_CHECKING

from ckpt_tools._version import __version__
from ckpt_tools.core.errors import SourceError, UsageError
from ckpt_tools.core.listing import Listing
from ckpt_tools.core.progress import SILENT, Progress, Task
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Run
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.ops import numbered
from ckpt_tools.reports.checksum import ChecksumReport, Row

if TYPE_CHECKING:
    from ckpt_tools.ops.gathered import Digested


class _Stopped(Exception):
    """The user interrupted it, or another thread failed."""


def checksum(
    path: str,
    *,
    by: str = "tensor",
    algorithm: str = "blake3",
    jobs: int | None = None,
    progress: Progress = SILENT,
) -> ChecksumReport:
    """Return the digests of all tensors, or of all files, of a run, a checkpoint or a file.

    Args:
        path: a run, a checkpoint directory, or a file.
        by: ``tensor`` (over dtype, shape and elements, the same in every container) or ``file`` (over its bytes).
        algorithm: ``blake3``, or for files also ``sha256``.
        jobs: threads that read; as many as processors when None.
        progress: where progress is announced.

    Raises:
        NothingFoundError: no such path, or no checkpoint there.
        UsageError: tensors are digested with BLAKE3 alone.
    """
    if by == "tensor" and algorithm != "blake3":
        raise UsageError(f"--algorithm {algorithm}: is for whole files alone", hint="add `--by file`")
    started = time.perf_counter()
    path = numbered.named(path)
    run = open_run(path)
    base = os.path.dirname(path) if not os.path.isdir(path) else path
    rows, errors = (_tensors if by == "tensor" else _files)(run, base, algorithm, jobs, progress)
    single = not os.path.isdir(path)
    read = run.listing.meter.bytes_read
    return ChecksumReport(
        __version__, path, by, algorithm, tuple(rows), tuple(errors), single, read, time.perf_counter() - started
    )


def _tensors(run: Run, base: str, algorithm: str, jobs: int | None, progress: Progress) -> tuple[list[Row], list[str]]:
    from ckpt_tools.ops import deep, gathered, unread

    rows: list[Row] = []
    errors: list[str] = []
    with progress.task("reading", sum(checkpoint.size for checkpoint in run.checkpoints), "B") as task:
        for checkpoint in run.checkpoints:
            view = View(checkpoint)
            before = len(rows)
            found = gathered.tensors(view)
            told, failed = gathered.digests(view, found, jobs=deep.workers(jobs), task=task)
            errors += failed
            rows += _gathered(checkpoint, told)
            together = gathered.files(view, found)
            names = [name for name in deep.files(view) if name not in together]
            for name, file in deep.digests(view, names, jobs=jobs, task=task).files.items():
                place = checkpoint.place(name)
                errors += [str(error) for error in file.errors]
                for tensor, each in file.tensors.items():
                    ref, reason = each.ref, each.reason or _kind(each.ref)
                    rows.append(Row(place, each.digest, file.size, tensor, ref.dtype, ref.shape, reason))
            errors += [f"{name}: {reason.lower()}" for name, reason in view.listing.errors.items()]
            left = unread.why(view) if len(rows) == before else None
            if left:
                place = run.root if checkpoint.path == "." else checkpoint.path
                errors.append(f"{place}: {left[0]}; `--by file` digests the files")
    return rows, errors


def _kind(ref: TensorRef) -> str:
    """Say that a tensor is an object that is not looked into, where it is one."""
    return "" if ref.chunks or not ref.kind else f"it is stored as a {ref.kind.rpartition('.')[2]}, which is not read"


def _gathered(checkpoint: Checkpoint, told: list[Digested]) -> Iterator[Row]:
    """Yield the tensors that lie in several files under the directory of these, each once."""
    sizes: dict[str, int] = {}
    for tensor, _, _ in told:
        sizes[tensor.place] = sizes.get(tensor.place, 0) + tensor.ref.nbytes
    for (place, name, ref), digest, reason in told:
        file = checkpoint.listing.files.get(place)
        size = file.size if file is not None and file.is_file else sizes[place]
        inside = checkpoint.place("" if place == "." else place)
        yield Row(inside, digest, size, name, ref.dtype, ref.shape, reason)


def _files(run: Run, base: str, algorithm: str, jobs: int | None, progress: Progress) -> tuple[list[Row], list[str]]:
    from ckpt_tools.ops import deep

    found: dict[str, tuple[Listing, str]] = {}
    for checkpoint in run.checkpoints:
        where = "" if checkpoint.path in checkpoint.listing.files else checkpoint.path
        for name in deep.files(View(checkpoint)):
            found[posixpath.normpath(posixpath.join(where, name))] = checkpoint.listing, name
    for name, entry in run.listing.files.items():
        if entry.is_file:
            found.setdefault(name, (run.listing, name))
    errors = [f"{name}: {reason.lower()}" for name, reason in run.listing.errors.items()]
    size = sum(listing.files[name].size for listing, name in found.values())
    threads = deep.workers(jobs)
    rows = []
    with progress.task("reading", size, "B") as task:
        for place, (digest, length, error) in zip(
            found, _hashed(list(found.values()), algorithm, threads, task), strict=True
        ):
            if error is None:
                rows.append(Row(place, digest, length))
            else:
                errors.append(str(error))
    return rows, errors


def _hashed(
    files: list[tuple[Listing, str]], algorithm: str, threads: int, task: Task
) -> Iterator[tuple[str, int, SourceError | None]]:
    """Yield ``(digest, size, error)`` of each file in order; several files are read at the same time."""
    from ckpt_tools.numerics.whole import whole

    stop, lock = Event(), Lock()
    inner = threads if len(files) < 2 * threads else 1

    def advance(amount: int) -> None:
        if stop.is_set():
            raise _Stopped
        with lock:
            task.advance(amount)

    def one(listing: Listing, name: str) -> tuple[str, int, SourceError | None]:
        try:
            with listing.open(name) as source:
                return whole(source, algorithm, advance, threads=inner), source.size, None
        except SourceError as error:
            return "", 0, error

    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from pool.map(lambda file: one(*file), files)
        finally:
            stop.set()
