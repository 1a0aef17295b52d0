"""Reads every byte of a checkpoint once and says what was found: the ground of ``verify --deep``, digests and seals."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from ckpt_tools.containers import kinds, reader
from ckpt_tools.containers.base import Content
from ckpt_tools.core.errors import SourceChangedError, SourceError
from ckpt_tools.core.listing import SIDECAR, Listing, scan
from ckpt_tools.core.progress import Task
from ckpt_tools.core.source import Meter, Source
from ckpt_tools.layouts.view import View
from ckpt_tools.model.summaries import (
    DataSummary,
    FileSummary,
    RecordSummary,
    Segment,
    TensorSummary,
    ZeroRun,
    never_negative,
)
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.numerics import digest as digests_of
from ckpt_tools.numerics import gather, lost_pages
from ckpt_tools.numerics.spans import PAGE, Span
from ckpt_tools.numerics.statistics import Facts
from ckpt_tools.numerics.streaming import Job, Outcome, Pass, processors, stream
from ckpt_tools.numerics.zeros import whole_pages
from ckpt_tools.ops import deep_plan
from ckpt_tools.ops.deep_plan import DEFAULT, UNREAD, Plan, Region, Sample, Wants

__all__ = ["Sample", "Wants", "digests", "files", "read", "workers"]

MAX_RECORDS = 32
"""Damaged records of one file that are read again, to say how they are damaged."""


class _Silent:
    def advance(self, amount: int) -> None:
        pass


def workers(jobs: int | None) -> int:
    """Return how many threads read: ``jobs``, or one for each processor."""
    return max(1, jobs or processors())


def files(view: View) -> list[str]:
    """Return the regular files of a checkpoint that a deep look reads: all but the tool's own."""
    return [
        path
        for path, entry in view.listing.files.items()
        if entry.is_file and not path.startswith(f"{SIDECAR}/") and f"/{SIDECAR}/" not in path
    ]


def digests(
    view: View, paths: Iterable[str] | None = None, *, jobs: int | None = None, task: Task | None = None
) -> DataSummary:
    """Return a look that digests alone: ``FileSummary.digest`` and ``segments``, ``TensorSummary.digest``."""
    wants = Wants(checksums=False, statistics=False, digests=True)
    return read(view, wants, paths=paths, jobs=jobs, task=task)


def read(
    view: View,
    wants: Wants = DEFAULT,
    *,
    paths: Iterable[str] | None = None,
    sample: Sample | None = None,
    jobs: int | None = None,
    task: Task | None = None,
) -> DataSummary:
    """Read the files of a checkpoint, each byte once for all that is wanted.

    What cannot be read is in the summaries' ``errors`` and never raised.  The checkpoint's meter counts what was read.

    Args:
        view: the checkpoint; its contents are decoded first, where they are not yet.
        wants: which consumers the bytes are shown to.
        paths: the files, relative to the checkpoint; all of them when None.
        sample: the share of the bytes that is read; digests are then not of whole files.
        jobs: threads; as many as processors when None.
        task: advanced by bytes as they are dealt with.
    """
    task = task or _Silent()
    view.look_at_everything()
    listing = view.listing
    names = list(paths) if paths is not None else files(view)
    total = sum(listing.files[name].size for name in names)
    plans: list[Plan] = []
    failed: dict[str, SourceError] = {}
    start = 0
    for name in names:
        size = listing.files[name].size
        try:
            made = deep_plan.plan(name, size, _content(view, name), wants)
        except SourceError as error:
            failed[name] = error
            made = deep_plan.plan(name, 0, None, wants)
            made.size = size
        if sample is not None:
            deep_plan.apply_sample(made, sample, start, total)
        if left := size - made.bytes:
            task.advance(left)
        start += size
        plans.append(made)
    quiet = replace(listing, meter=Meter())
    run = _Reading(quiet, wants, workers(jobs))
    outcomes = run.first(plans, task)
    found = {
        made.path: run.summary(made, outcome, failed.get(made.path))
        for made, outcome in zip(plans, outcomes, strict=True)
    }
    listing.meter.bytes_read += run.bytes_read
    return DataSummary(found, sample.text if sample is not None else "")


def _content(view: View, path: str) -> Content | None:
    """Return what a file holds, also one without a role when its bytes have checksums or tensors."""
    part = next((part for part in view.checkpoint.parts if part.path == path), None)
    if part is not None:
        content = view.content(part)
        if content is None and part.path in view.errors:
            raise view.errors[part.path]
        return content
    with view.listing.open(path) as source:
        if kinds.look(source).kind not in ("safetensors", "torch-zip", "torch-legacy"):
            return None
        return reader.read(source)


@dataclass
class _Reading:
    """One call of ``read``."""

    listing: Listing
    wants: Wants
    jobs: int
    bytes_read: int = 0

    def first(self, plans: list[Plan], task: Task) -> list[Outcome]:
        jobs = [
            Job(
                made.path,
                partial(self.listing.open, made.path),
                made.spans,
                [self._pass(made, name) for name in made.alone],
                self.wants.statistics and made.protection in ("none", "off"),
            )
            for made in plans
        ]
        outcomes = stream(jobs, workers=self.jobs, task=task)
        self.bytes_read += sum(outcome.bytes_read for outcome in outcomes)
        return outcomes

    def _pass(self, made: Plan, name: str) -> Pass:
        ref = made.tensors[name]
        wanted, negative = self.wants, never_negative(name, ref)

        def run(source: Source, check: Callable[[], None]) -> tuple[Facts, str]:
            plain = ref if wanted.digests else once(ref)
            return gather.look(source, plain, negative, wanted.digests, check)

        return run

    def summary(self, made: Plan, outcome: Outcome, failure: SourceError | None) -> FileSummary:
        unread = sum(span.length for span, found in zip(made.spans, outcome.spans, strict=True) if not found.read)
        errors = ([failure] if failure is not None else []) + _distinct(outcome.errors)
        changed = self._changed(made.path)
        if changed is not None and not any(isinstance(error, SourceChangedError) for error in errors):
            errors.append(changed)
        segments, file_digest = self._digests(made, outcome) if self.wants.digests else ((), None)
        entry = self.listing.files[made.path]
        return FileSummary(
            made.path,
            made.size,
            made.container,
            made.protection,
            self._tensors(made, outcome),
            tuple(self._records(made, outcome)),
            tuple(self._zeros(made, outcome)),
            tuple(made.unchecked),
            tuple(errors),
            made.left_out,
            unread if failure is None else made.size,
            entry.blocks * 512 < made.size - PAGE and entry.blocks > 0,
            file_digest if not errors and not made.left_out else None,
            segments,
        )

    def _changed(self, path: str) -> SourceChangedError | None:
        """Compare the file's size and time with those from before."""
        before = self.listing.files[path]
        try:
            now = next(iter(scan(os.path.join(self.listing.root, path)).files.values()))
        except Exception as error:  # noqa: BLE001 - whatever the reason, it is not the file that was listed
            return SourceChangedError(path, f"went away while it was read ({type(error).__name__})")
        if (now.size, now.mtime_ns) == (before.size, before.mtime_ns):
            return None
        grew = f"from {before.size:,} to {now.size:,} bytes" if now.size != before.size else "by its time"
        return SourceChangedError(path, f"changed while it was read, {grew}")

    # Records -----------------------------------------------------------------------------------------------

    def _records(self, made: Plan, outcome: Outcome) -> Iterator[RecordSummary]:
        wrong = 0
        for region in made.regions:
            record = region.record
            computed = _joined(made, outcome, region)
            names = deep_plan.names_in(made, range(region.first, region.last))
            stored = record.crc32 or 0
            pages = 0
            if computed is not None and computed != stored and wrong < MAX_RECORDS:
                wrong += 1
                pages = self._zero_pages(made.path, record.extent.offset, record.extent.length)
            yield RecordSummary(record.name, record.extent.offset, record.extent.length, stored, computed, names, pages)

    def _zero_pages(self, path: str, offset: int, length: int) -> int:
        job = Job(path, partial(self.listing.open, path), [Span(offset, length)], (), True)
        (again,) = stream([job], workers=self.jobs, task=_Silent())
        self.bytes_read += again.bytes_read
        return sum(end - begin for begin, end in whole_pages(again.zeros, offset + length)) // PAGE

    def _zeros(self, made: Plan, outcome: Outcome) -> Iterator[ZeroRun]:
        runs = whole_pages(outcome.zeros, made.size)
        if not runs or not made.tensors:
            return
        try:
            with self.listing.open(made.path) as source:
                yield from lost_pages.judge(source, runs, made.tensors.values())
        except SourceError:
            return  # it was readable a moment ago; the errors of this file say the rest

    # Tensors -----------------------------------------------------------------------------------------------

    def _tensors(self, made: Plan, outcome: Outcome) -> dict[str, TensorSummary]:
        alone = dict(zip(made.alone, outcome.passes, strict=True))
        found: dict[str, TensorSummary] = {}
        unclear: list[str] = []
        for name, ref in made.tensors.items():
            reason = made.reasons.get(name)
            if reason is not None:
                found[name] = TensorSummary(ref, checked=False, reason=reason)
            elif name in alone:
                found[name] = _passed(ref, alone[name])
            elif name in made.of:
                result = outcome.spans[made.of[name]]
                head = digests_of.tensor_head(ref.dtype, ref.shape)
                digest = digests_of.finish(head, result.digests) if self.wants.digests and result.read else None
                found[name] = _plain(ref, result.facts, digest) if result.read else _unread(ref)
            elif name in made.inside:
                result = outcome.spans[made.inside[name]]
                facts = result.facts
                if facts is None or not result.read:
                    found[name] = _unread(ref)
                elif facts.nan or facts.inf or facts.negative or facts.odd:
                    unclear.append(name)
                else:
                    found[name] = TensorSummary(ref, zero=True if facts.zero else None)
            else:
                digest = digests_of.finish(digests_of.tensor_head(ref.dtype, ref.shape), ())
                found[name] = TensorSummary(ref, digest=digest if self.wants.digests and not ref.numel else None)
        if unclear:
            job = Job(made.path, partial(self.listing.open, made.path), (), [self._pass(made, n) for n in unclear])
            (again,) = stream([job], workers=self.jobs, task=_Silent())
            found.update((n, _passed(made.tensors[n], r)) for n, r in zip(unclear, again.passes, strict=True))
        return {name: found[name] for name in made.tensors}

    def _digests(self, made: Plan, outcome: Outcome) -> tuple[tuple[Segment, ...], str | None]:
        segments = []
        for span, owners, found in zip(made.spans, made.owners, outcome.spans, strict=True):
            if not found.read:
                continue
            name = next((name for name in owners if deep_plan.row_major(made.tensors[name])), None)
            ref = made.tensors[name] if name is not None else None
            head = digests_of.tensor_head(ref.dtype, ref.shape) if ref is not None else digests_of.BYTES
            segments.append(Segment(span.offset, span.length, name, digests_of.finish(head, found.digests)))
        return tuple(segments), digests_of.file_digest((each.length, each.digest) for each in segments)


def once(ref: TensorRef) -> TensorRef:
    """Return ``ref`` with every dimension that repeats the same elements (stride 0) of size 1."""
    (chunk,) = ref.chunks
    if chunk.strides is None or all(stride or size == 1 for size, stride in zip(ref.shape, chunk.strides, strict=True)):
        return ref
    shape = tuple(size if stride else 1 for size, stride in zip(ref.shape, chunk.strides, strict=True))
    return replace(ref, shape=shape, chunks=(chunk._replace(sizes=shape),))


def _joined(made: Plan, outcome: Outcome, region: Region) -> int | None:
    """Return the checksum of a record's bytes, None where some of them could not be read."""
    from ckpt_tools.numerics import castagnoli, crc

    combine = castagnoli.combine if made.protection == "crc32c" else crc.combine
    whole: int | None = None
    for number in range(region.first, region.last):
        found = outcome.spans[number]
        if not found.read or found.crc is None:
            return None
        whole = found.crc if whole is None else combine(whole, found.crc, made.spans[number].length)
    return whole


def _plain(ref: TensorRef, facts: Facts | None, digest: str | None) -> TensorSummary:
    if facts is None:
        return TensorSummary(ref, digest=digest)
    first = facts.first_bad
    if first is not None:
        first = gather.row_major_index(first, ref.shape, ref.chunks[0].strides)
    return _facts(ref, facts, first, digest)


def _facts(ref: TensorRef, facts: Facts, first: int | None, digest: str | None) -> TensorSummary:
    negative = facts.negative if never_negative(ref.fqn, ref) else 0
    return TensorSummary(
        ref, facts.nan, facts.inf, first, facts.magnitude, facts.zero, negative, facts.odd, digest
    )  # fmt: skip


def _passed(ref: TensorRef, result: tuple[Facts, str] | SourceError | None) -> TensorSummary:
    if not isinstance(result, tuple):
        return _unread(ref)
    facts, digest = result
    first = facts.first_bad
    if first is not None and not digest:
        first = gather.index_in_full(first, once(ref).shape, ref.shape)
    return _facts(ref, facts, first, digest or None)


def _unread(ref: TensorRef) -> TensorSummary:
    return TensorSummary(ref, checked=False, reason=UNREAD)


def _distinct(errors: Iterable[SourceError]) -> list[SourceError]:
    """Return errors once each, the ones about a changed file as one."""
    found: dict[str, SourceError] = {}
    for error in errors:
        found.setdefault("changed" if isinstance(error, SourceChangedError) else error.reason, error)
    return list(found.values())
