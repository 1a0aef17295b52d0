"""Which bytes of a file belong together: its tensors and records cut into spans that the engine reads once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from ckpt_tools.containers.base import Content, Record
from ckpt_tools.core.errors import UsageError
from ckpt_tools.model.summaries import never_negative
from ckpt_tools.model.tensors import DTYPE_BITS, TensorRef
from ckpt_tools.numerics.gather import fills_its_extent
from ckpt_tools.numerics.spans import Span
from ckpt_tools.numerics.statistics import FORMATS

if TYPE_CHECKING:
    from fractions import Fraction

EXTRA_READS = 4
SPARE = 1 << 26
"""Views that need a pass of their own may take ``EXTRA_READS`` times the file's size and this many bytes; beyond that
they are listed as not checked (a small file can claim any number of overlapping views)."""

NOT_HERE = "its bytes are not stored as they are in this file"
TOO_MANY = "too many views overlap in its storage"
LEFT_OUT = "left out by the sample"
UNREAD = "could not be read"

CHECKSUMS = ("crc32", "crc32c")
ZIPS = ("torch-zip", "torchscript", "npz", "zip", "keras-zip", "distcp")
BARE = ("safetensors", "torch-legacy", "pickle", "msgpack")


@dataclass(frozen=True, slots=True)
class Wants:
    """What a pass is for."""

    checksums: bool = True
    statistics: bool = True
    digests: bool = False


DEFAULT = Wants()


@dataclass(frozen=True, slots=True)
class Sample:
    """A share of the bytes: those whose place in the checkpoint, from 0 to 1, is in ``[start, start + share)``,
    around the end."""

    share: Fraction
    start: Fraction
    text: str

    def takes(self, begin: int, end: int, total: int) -> bool:
        """Return whether ``[begin, end)`` of ``total`` bytes is in; each run is in one of ``1/n`` ... ``n/n``."""
        from fractions import Fraction

        middle = Fraction(begin + end, 2 * total) if total else Fraction(0)
        return (middle - self.start) % 1 < self.share


def parse_sample(text: str, day: int) -> Sample:
    """Return what ``5%`` or ``1/7`` asks for; a percentage moves on every ``day``, so that all is read in turn.

    Raises:
        UsageError: it is neither.
    """
    from fractions import Fraction

    try:
        if text.endswith("%"):
            share = Fraction(text[:-1].strip()) / 100
            if 0 < share <= 1:
                start = day * share % 1
                return Sample(share, start, f"{text}, from {float(start):.1%} of the bytes on")
        else:
            part, _, parts = text.partition("/")
            if 1 <= int(part) <= int(parts) <= 1_000_000:
                return Sample(Fraction(1, int(parts)), Fraction(int(part) - 1, int(parts)), text)
    except (ValueError, ZeroDivisionError):
        pass
    raise UsageError(f"--sample {text}: a percentage (5%) or a part (1/7) is meant")


@dataclass(frozen=True, slots=True)
class Region:
    """A record whose checksum is compared: the spans ``[first, last)`` are its bytes."""

    record: Record
    first: int
    last: int


@dataclass(slots=True)
class Plan:
    """What is read of one file.

    ``owners`` are the names of the tensors that a span is, the first of them naming the segment; ``of`` gives the
    span of a tensor, ``inside`` the span that a view lies in, ``alone`` the tensors with a pass of their own.
    """

    path: str
    size: int
    container: str
    protection: str
    tensors: dict[str, TensorRef]
    spans: list[Span] = field(default_factory=list)
    owners: list[tuple[str, ...]] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    of: dict[str, int] = field(default_factory=dict)
    inside: dict[str, int] = field(default_factory=dict)
    alone: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    unchecked: list[tuple[str, str]] = field(default_factory=list)
    left_out: int = 0

    @property
    def bytes(self) -> int:
        return sum(span.length for span in self.spans)


def plan(path: str, size: int, content: Content | None, wants: Wants) -> Plan:
    """Return how a file of ``size`` bytes is read; ``content`` None means: as bytes of no meaning."""
    if content is None or content.container == "dcp":  # it speaks of the bytes of other files
        return _bare(path, size, wants)
    made = Plan(path, size, content.container, _protection(content), dict(content.tensors))
    records = _comparable(content, made) if wants.checksums and made.protection in CHECKSUMS else []
    groups = _groups(made, records)
    points = {0, size}
    for record in records:
        points.update((record.extent.offset, record.extent.end))
    for (begin, length, _, _), _ in groups:
        points.update((begin, begin + length))
    number = 0
    current: Region | None = None
    ready = 0
    for begin, end in pairwise(sorted(points)):
        while number < len(records) and records[number].extent.end <= begin:
            number += 1
        held = number < len(records) and records[number].extent.offset <= begin
        dtype, order = "", "little"
        names: tuple[str, ...] = ()
        if ready < len(groups) and groups[ready][0][0] == begin:
            (_, _, dtype, order), listed = groups[ready]
            names = tuple(listed)
            ready += 1
        position = len(made.spans)
        for name in names:
            made.of[name] = position
        negative = any(never_negative(name, made.tensors[name]) for name in names)
        kind = dtype if wants.statistics and judged(dtype) else ""
        checksum = made.protection if held else ""
        made.spans.append(Span(begin, end - begin, kind, order, checksum, wants.digests, negative))
        made.owners.append(names)
        if held:
            current = made.regions[-1] if made.regions else None
            if current is not None and current.record is records[number]:
                made.regions[-1] = Region(current.record, current.first, position + 1)
            else:
                made.regions.append(Region(records[number], position, position + 1))
    _views(made, wants)
    return made


def _bare(path: str, size: int, wants: Wants) -> Plan:
    made = Plan(path, size, "", "", {})
    if size:
        made.spans.append(Span(0, size, digest=wants.digests))
        made.owners.append(())
    return made


def _protection(content: Content) -> str:
    if content.facts.get("checksum") in CHECKSUMS:
        return str(content.facts["checksum"])
    if content.container in ZIPS and content.records:
        return "crc32" if content.facts.get("crc_stored") else "off"
    return "none" if content.container in BARE else ""


def _comparable(content: Content, made: Plan) -> list[Record]:
    """Return the records that can be compared, in order of position and without overlap."""
    compressed = frozenset(content.facts.get("compressed", ()))
    made.unchecked += content.facts.get("unchecked", ())
    found: list[Record] = []
    reached = 0
    for record in sorted(content.records, key=lambda record: (record.extent.offset, record.extent.length)):
        if not record.extent.length or record.crc32 is None:
            continue
        if record.name in compressed:
            made.unchecked.append((record.name, "it is compressed"))
        elif record.extent.offset < reached:
            made.unchecked.append((record.name, "it lies on the bytes of another record"))
        else:
            found.append(record)
            reached = record.extent.end
    return found


_Key = tuple[int, int, str, str]


def _groups(made: Plan, records: list[Record]) -> list[tuple[_Key, list[str]]]:
    """Return the tensors that the file is cut at, by position; those on the same bytes together.

    A tensor whose elements do not fill the bytes from its first to its last one, and one that overlaps another, is
    left for a pass of its own.
    """
    groups: dict[_Key, list[str]] = {}
    for name, ref in made.tensors.items():
        if len(ref.chunks) != 1:
            if ref.numel and _expected(made, ref):
                made.reasons[name] = NOT_HERE
            continue
        (chunk,) = ref.chunks
        if not ref.numel or not chunk.extent.length:
            continue
        if chunk.strides is not None and not fills_its_extent(ref.shape, chunk.strides):
            made.alone.append(name)
            continue
        groups.setdefault((chunk.extent.offset, chunk.extent.length, ref.dtype, chunk.byteorder), []).append(name)
    kept: list[tuple[_Key, list[str]]] = []
    edges = sorted({edge for record in records for edge in (record.extent.offset, record.extent.end)})
    reached = 0
    for key in sorted(groups, key=lambda key: (key[0], -key[1])):
        begin, length = key[:2]
        crossing = bisect_right(edges, begin) != bisect_right(edges, begin + length - 1)
        if begin < reached or crossing or begin + length > made.size:
            made.alone += groups[key]
        else:
            kept.append((key, groups[key]))
            reached = begin + length
    return kept


def _expected(made: Plan, ref: TensorRef) -> bool:
    """Whether a tensor without bytes should have some: meta tensors have none, sparse ones are made of others."""
    return made.container == "safetensors" or (ref.storage_id is not None and not ref.kind.startswith("torch.sparse"))


def _views(made: Plan, wants: Wants) -> None:
    """Decide which views need a pass of their own, and refuse those that would take too many reads."""
    starts = [span.offset for span in made.spans]
    budget = EXTRA_READS * made.size + SPARE
    needed: list[str] = []
    candidates: list[str] = list(made.alone)
    if wants.digests:
        candidates += [name for name in made.of if not row_major(made.tensors[name])]
    for name in candidates:
        ref = made.tensors[name]
        if not wants.digests and not (wants.statistics and judged(ref.dtype)):
            continue
        if name not in made.of and not wants.digests:
            around = _around(made, ref, starts)
            if around is not None:
                made.inside[name] = around
                if never_negative(name, ref):
                    made.spans[around] = replace(made.spans[around], negative=True)
                continue
        cost = max(_logical(ref, wants), ref.chunks[0].extent.length)
        if cost > budget:
            made.reasons[name] = TOO_MANY
            continue
        budget -= cost
        needed.append(name)
    made.alone = needed


def judged(dtype: str) -> bool:
    """Whether elements of a type can be wrong by themselves: floats that have NaN or Inf, and bool."""
    return dtype in FORMATS or dtype == "bool"


def row_major(ref: TensorRef) -> bool:
    """Whether the stored bytes of ``ref`` are the ones that its digest is over."""
    (chunk,) = ref.chunks
    return chunk.strides is None and (chunk.byteorder == "little" or DTYPE_BITS.get(ref.dtype, 8) <= 8)


def _logical(ref: TensorRef, wants: Wants) -> int:
    strides = ref.chunks[0].strides
    if wants.digests or strides is None:
        return ref.nbytes
    width = max(1, DTYPE_BITS.get(ref.dtype, 8) // 8)
    count = 1
    for size, stride in zip(ref.shape, strides, strict=True):
        count *= size if stride else 1
    return count * width


def _around(made: Plan, ref: TensorRef, starts: list[int]) -> int | None:
    """Return the span of a tensor of the same type in which a view lies."""
    (chunk,) = ref.chunks
    number = bisect_right(starts, chunk.extent.offset) - 1
    if number < 0:
        return None
    span = made.spans[number]
    fits = span.offset + span.length >= chunk.extent.end and span.dtype == ref.dtype != ""
    aligned = (chunk.extent.offset - span.offset) % max(1, DTYPE_BITS.get(ref.dtype, 8) // 8) == 0
    return number if fits and aligned and span.byteorder == chunk.byteorder and made.owners[number] else None


def apply_sample(made: Plan, sample: Sample, start: int, total: int) -> None:
    """Take spans out of a plan that the sample leaves out; ``start`` is the file's place among ``total`` bytes.

    A record is in as a whole or not at all, for its checksum is over all of it.
    """
    taken = [False] * len(made.spans)
    grouped = [False] * len(made.spans)
    for region in made.regions:
        extent = region.record.extent
        inside = sample.takes(start + extent.offset, start + extent.end, total)
        for number in range(region.first, region.last):
            grouped[number] = True
            taken[number] = inside
    for number, span in enumerate(made.spans):
        if not grouped[number]:
            taken[number] = sample.takes(start + span.offset, start + span.offset + span.length, total)
    left = [number for number in range(len(taken)) if not taken[number]]
    made.left_out = sum(made.spans[number].length for number in left)
    kept = {number: position for position, number in enumerate(n for n in range(len(taken)) if taken[n])}
    for name, number in [*made.of.items(), *made.inside.items()]:
        if number not in kept:
            made.reasons[name] = LEFT_OUT
    middle_of = {
        name: (chunk.extent.offset, chunk.extent.end) for name in made.alone for chunk in made.tensors[name].chunks
    }
    for name, (begin, end) in middle_of.items():
        if not sample.takes(start + begin, start + end, total):
            made.reasons[name] = LEFT_OUT
    made.alone = [name for name in made.alone if name not in made.reasons]
    made.of = {name: kept[number] for name, number in made.of.items() if number in kept}
    made.inside = {name: kept[number] for name, number in made.inside.items() if number in kept}
    made.regions = [
        Region(region.record, kept[region.first], kept[region.last - 1] + 1)
        for region in made.regions
        if region.first in kept
    ]
    made.spans = [made.spans[number] for number in kept]
    made.owners = [made.owners[number] for number in kept]


def names_in(made: Plan, numbers: Iterable[int]) -> tuple[str, ...]:
    """Return the tensors that spans are, in order."""
    return tuple(name for number in numbers for name in made.owners[number])
