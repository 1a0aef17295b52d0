"""safetensors: eight bytes of length, a JSON header, then the tensors' bytes.

Only the length and the header are read.  The rules are those of the reference reader (``tensor.rs``); where it
stops at the first fault, this one goes on and tells each cause once.  A header has at most ``HEADER_LIMIT`` bytes,
and is not read when the file is shorter than it says.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_tools.containers.base import Content, FormatError, no_collection
from ckpt_tools.containers.kinds import printable
from ckpt_tools.containers.safetensors_header import DTYPES, Faults, Header, Row, decode
from ckpt_tools.containers.safetensors_ranges import Ranges
from ckpt_tools.core.source import Extent, Source
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.tensors import Chunk, TensorRef

HEADER_LIMIT = 100_000_000
_LISTED = 10

_UNCOVERED = 'safetensors refuses it: "incomplete metadata, file not fully covered"'


@no_collection()
def read(source: Source) -> Content:
    """Return the tensors that the header describes and everything that is wrong with it.

    A tensor has a chunk only where its bytes are all there and as many as its shape needs; ``facts["absent"]``
    names those that reach past the end of the file.  Other facts: ``metadata``, ``header_length``, ``data_start``,
    ``covered`` (the length of the file that the header accounts for: what a repair of trailing bytes cuts to), and
    ``min_version`` of the library for the types used (``""`` for any).

    Raises:
        SourceError: the file could not be read, or changed while it was.
    """
    try:
        length = _header_length(source)
        header = decode(source, length)
    except FormatError as error:
        return Content("safetensors", source.size, readable=False, problems=(error.problem,))
    return _content(source, length, header)


def _header_length(source: Source) -> int:
    size = source.size
    if size < 8:
        raise _fault(
            "file-cut-short",
            "the file is cut short, inside the length of its header",
            f"needs 8 bytes for the length alone, has {size:,}",
            'safetensors refuses it: "header too small"',
        )
    length = int.from_bytes(source.read(0, 8), "little")
    if length > HEADER_LIMIT:
        raise _fault(
            "header-too-large",
            "the length of the header is impossible",
            f"the first 8 bytes say {length:,} bytes of header; at most {HEADER_LIMIT:,} are allowed"
            f", and the file has {size:,}",
            'safetensors refuses it: "header too large"',
            at=Spot(offset=source.base),
        )
    if length == 0:
        rest = source.read(8, 4096)
        zeros = f"; zeros follow, at least {len(rest):,} bytes" if rest and not rest.strip(b"\0") else ""
        raise _fault(
            "header-unreadable",
            "the header has length zero",
            f"the first 8 bytes are zero{zeros}",
            'safetensors refuses it: "invalid JSON in header: EOF while parsing a value"',
            at=Spot(offset=source.base),
        )
    if 8 + length > size:
        where = "right after the length of its header" if size == 8 else "inside its header"
        raise _fault(
            "file-cut-short",
            f"the file is cut short, {where}",
            f"needs {8 + length:,} bytes for the header alone, has {size:,}",
            'safetensors refuses it: "invalid header length"',
            at=Spot(offset=source.base + size),
        )
    return length


def _content(source: Source, length: int, header: Header) -> Content:
    data_start = 8 + length
    room = source.size - data_start
    base = source.base + data_start
    path = source.name
    rows = header.rows
    rows.sort(key=_position)
    ranges = Ranges(rows, room, header.loose, header.faults)
    needed = ranges.run()
    problems = [
        *header.problems,
        *_summaries(header.faults, base),
        *_ending(ranges, source, data_start, not header.faults),
    ]
    wrong = ranges.unreadable
    tensors: dict[str, TensorRef] = {}
    for begin, end, name, dtype, shape, need in rows:
        whole = end <= room and end - begin == need and name not in wrong
        chunks = (Chunk((0,) * len(shape), shape, Extent(path, base + begin, end - begin)),) if whole else ()
        if dtype:
            tensors[name] = TensorRef(name, dtype, shape, chunks)
    facts = {
        "metadata": header.metadata,
        "header_length": length,
        "data_start": data_start,
        "covered": data_start + needed,
        "min_version": max((DTYPES[dtype][1] for dtype in header.dtypes), default=""),
        "absent": tuple(row[2] for row in rows if row[1] > room),
    }
    return Content("safetensors", source.size, tensors=tensors, facts=facts, problems=tuple(problems))


def _position(row: Row) -> tuple[int, int]:
    return row[0], row[1]


def _ending(ranges: Ranges, source: Source, data_start: int, alone: bool) -> Iterator[Problem]:
    """Compare where the data should end with where the file ends; ``alone`` says that nothing else is wrong."""
    base, size = source.base, source.size
    if ranges.clean_end > ranges.room:
        row = ranges.first_absent
        assert row is not None
        part = "only partly there" if row[0] < ranges.room else "not there"
        whole = len(ranges.rows)
        are = "is" if ranges.absent == 1 else "are"
        yield Problem(
            "file-cut-short",
            "the file is cut short",
            (
                f"needs {data_start + ranges.clean_end:,} bytes, has {size:,}",
                f"{ranges.absent:,} of {whole:,} tensors {are} incomplete; the first, `{printable(row[2])}`, is {part}",
                _UNCOVERED,
            ),
            Spot(tensor=row[2], offset=base + size),
        )
        return
    extra = ranges.room - ranges.end
    if extra <= 0 or ranges.accounted or ranges.spare:
        return
    covered = data_start + ranges.end
    noun = "1 byte follows" if extra == 1 else f"{extra:,} bytes follow"
    yield Problem(
        "trailing-bytes",
        f"{noun} the data",
        (f"the header accounts for {covered:,} bytes, the file has {size:,}", _UNCOVERED),
        Spot(offset=base + covered),
        help="`ckpt repair` can cut them off" if alone else None,
    )


_MESSAGES: tuple[tuple[str, str, str], ...] = (
    ("duplicate-tensor", "is named more than once", "tensors are named more than once"),
    ("tensor-entry-invalid", "has no valid entry in the header", "tensors have no valid entry in the header"),
    ("unknown-dtype", "has an unknown type", "tensors have an unknown type"),
    ("tensor-size-mismatch", "does not fit its bytes", "tensors do not fit their bytes"),
    ("tensor-overlap", "overlaps another", "tensors overlap others"),
    ("tensor-gap", "has a gap before it", "tensors have a gap before them"),
    ("tensor-out-of-range", "lies past the end of the file", "tensors lie past the end of the file"),
)


def _summaries(faults: Faults, data_start: int) -> Iterator[Problem]:
    """Yield one problem per kind of fault, naming the first ten tensors."""
    for kind, one, many in _MESSAGES:
        found = faults.get(kind)
        if not found:
            continue
        first, _, place = found[0]
        spot = Spot(tensor=first, offset=None if place is None else data_start + place)
        detail = [f"`{printable(name)}` {why}" for name, why, _ in found[:_LISTED]]
        if len(found) > _LISTED:
            detail.append(f"... and {len(found) - _LISTED:,} more")
        message = f"tensor `{printable(first)}` {one}" if len(found) == 1 else f"{len(found):,} {many}"
        if kind != "duplicate-tensor":
            detail.append("safetensors refuses the whole file")
        yield Problem(kind, message, tuple(detail), spot)


def _fault(kind: str, message: str, *detail: str, at: Spot = Spot()) -> FormatError:
    return FormatError(Problem(kind, message, detail, at))
