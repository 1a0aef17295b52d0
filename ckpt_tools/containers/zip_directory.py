"""The directory of a zip archive, read by position: what lies where, and whether that can be true."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import NamedTuple

from ckpt_tools.containers.base import FormatError
from ckpt_tools.core.source import Source
from ckpt_tools.model.findings import Problem, Spot

LOCAL = b"PK\x03\x04"
CENTRAL = b"PK\x01\x02"
END = b"PK\x05\x06"
END64 = b"PK\x06\x06"
LOCATOR64 = b"PK\x06\x07"

STORED = 0
DEFLATED = 8

MAX_DIRECTORY = 1 << 27
MAX_TAIL = 1 << 24
"""How far before the end of a file the end record is looked for."""

REACH = 65_500
"""How many bytes behind the end record torch.load and other readers look across, about."""

MAX_NOTED = 20

_CENTRAL = Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = Struct("<4sHHHHHIIIHH")
_END = Struct("<4sHHHHIIH")
_END64 = Struct("<4sQHHIIQQQQ")
_NEAR = 4096
_RUN = 1 << 20
_FULL32 = 0xFFFFFFFF
_FULL16 = 0xFFFF
LOCKED = 0x61
"""The flags of members that are encrypted in one of two ways, or patches of others: torch reads none of them."""

_DIRECTORY = 0x10  # in the attributes of a record, as MS-DOS had them
_UNUSUAL = 0x2000 | LOCKED


class Entry(NamedTuple):
    """A member: its payload of ``packed`` bytes at ``start`` gives ``size`` bytes; ``header`` is its local header.

    ``start`` is -1 where the payload cannot be found or cannot be inside the file.
    """

    name: str
    header: int
    start: int
    packed: int
    size: int
    crc32: int
    method: int
    flags: int


@dataclass(slots=True)
class Directory:
    """The members in the directory's order; ``begin`` and ``end`` bound the archive inside the source.

    ``gap`` counts bytes between the directory and the end record, where nothing belongs.  ``plain`` says that no
    entry is compressed, encrypted or on another disk.
    """

    entries: list[Entry]
    begin: int
    central: int
    end: int
    gap: int = 0
    plain: bool = True
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Tail:
    count: int
    size: int
    offset: int
    position: int
    end: int
    gap: int = 0


def read(source: Source) -> Directory:
    """Return the directory of the zip archive in ``source``.

    Raises:
        FormatError: ``file-cut-short`` without a directory, ``zip-damaged`` or ``resource-bomb`` with a false one.
    """
    tail = _tail(source)
    central = tail.offset
    if source.read(central, 4) != CENTRAL and tail.count:
        central = tail.position - tail.size
        if central < 0 or source.read(central, 4) != CENTRAL:
            raise _damaged(
                "the zip directory is not where it should be",
                f"{tail.size:,} bytes are said to lie at byte {tail.offset:,} of {source.size:,}",
            )
    shift = central - tail.offset
    if tail.size > MAX_DIRECTORY:
        detail = (f"it claims {tail.size:,} bytes; more than {MAX_DIRECTORY:,} are not read",)
        raise FormatError(Problem("resource-bomb", "the zip directory is too large", detail))
    raw = source.read(central, min(tail.size, tail.position - central))
    problems: list[Problem] = []
    strange: list[int] = []
    listed = list(_central(raw, tail.count, problems, strange))
    if shift < 0:
        raise _damaged("the zip directory is not where it should be", f"it lies {-shift:,} bytes too early")
    entries = _locate(source, listed, shift, central, problems)
    gap = tail.position - central - tail.size + tail.gap
    return Directory(entries, shift, central, tail.end, gap, not strange, problems)


def _damaged(message: str, *detail: str) -> FormatError:
    return FormatError(Problem("zip-damaged", message, detail))


def _tail(source: Source) -> _Tail:
    """Find the end record, which is written last."""
    for position in _ends(source):
        fields = _END.unpack(source.read(position, 22))
        count, size, offset, comment = fields[4], fields[5], fields[6], fields[7]
        end = position + 22
        if end + comment <= source.size:
            end += comment
        found = _Tail(count, size, offset, position, end)
        larger = _tail64(source, position, end)
        if larger is not None:
            found = larger
        elif _FULL32 in (size, offset) or (count == _FULL16 and size > _FULL16 * 200):
            continue
        if found.offset + found.size <= found.position and (
            not found.count
            or source.read(found.offset, 4) == CENTRAL
            or source.read(found.position - found.size, 4) == CENTRAL
        ):
            return found
    raise FormatError(
        Problem(
            "file-cut-short",
            "the file is cut short",
            (f"has {source.size:,} bytes; the zip directory, which is written last, is missing",),
        )
    )


def _ends(source: Source) -> Iterator[int]:
    """Yield where the end record may begin, the last place first."""
    upper = source.size
    step = 1 << 16
    while upper >= 22 and source.size - upper < MAX_TAIL:
        lower = max(0, upper - step)
        piece = source.read(lower, upper - lower)
        at = len(piece)
        while (at := piece.rfind(END, 0, at + 3 if at < len(piece) else at)) >= 0:
            if lower + at + 22 <= source.size:
                yield lower + at
        if lower == 0:
            return
        upper = lower + 3
        step = 1 << 20


def _tail64(source: Source, position: int, end: int) -> _Tail | None:
    locator = source.read(position - 20, 20) if position >= 20 else b""
    if not locator.startswith(LOCATOR64):
        return None
    stated = int.from_bytes(locator[8:16], "little")
    for place in (stated, position - 76):
        if 0 <= place <= source.size - 56:
            raw = source.read(place, 56)
            if raw.startswith(END64):
                fields = _END64.unpack(raw)
                return _Tail(fields[7], fields[8], fields[9], place, end, position - 76 - place)
    return None


def _central(
    raw: bytes, count: int, problems: list[Problem], strange: list[int]
) -> Iterator[tuple[str, int, int, int, int, int, int]]:
    """Yield ``(name, header, packed, size, crc32, method, flags)`` of every member that the directory lists.

    ``strange`` gets the number of a member that is more than plain bytes.
    """
    unpack = _CENTRAL.unpack_from
    position, number, room = 0, 0, len(raw)
    while number < count:
        if position + 46 > room:
            problems.append(_short(number, count))
            return
        mark, _, _, flags, method, _, _, crc32, packed, size, *sizes, disk, _, outer, header = unpack(raw, position)
        name_size, extra_size, comment_size = sizes
        extra = position + 46 + name_size
        end = extra + extra_size + comment_size
        if mark != CENTRAL or end > room:
            problems.append(_short(number, count))
            return
        name = raw[position + 46 : extra].decode("utf-8", "backslashreplace")
        if _FULL32 in (packed, size, header) or disk == _FULL16:
            size, packed, header = _wide(raw[extra : extra + extra_size], size, packed, header)
        if outer & _DIRECTORY and packed:
            claim = f"{name}: it is marked as a directory: torch reads nothing and takes what was in memory before"
            _note(problems, 0, claim, name, header)
        if (packed != size or disk or flags & _UNUSUAL) and not strange:
            strange.append(number)
        yield name, header, packed, size, crc32, method, flags
        position = end
        number += 1


def _short(number: int, count: int) -> Problem:
    detail = (f"it should list {count:,} records, and entry {number + 1:,} is damaged",)
    return Problem("zip-damaged", "the zip directory is damaged", detail)


def _wide(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Return the sizes and the offset with what the zip64 field says in the place of those that are full."""
    at = 0
    while at + 4 <= len(extra):
        kind = int.from_bytes(extra[at : at + 2], "little")
        length = int.from_bytes(extra[at + 2 : at + 4], "little")
        if kind == 1:
            field_bytes = extra[at + 4 : at + 4 + length]
            numbers = iter(
                [int.from_bytes(field_bytes[i : i + 8], "little") for i in range(0, len(field_bytes) - 7, 8)]
            )
            size = next(numbers, size) if size == _FULL32 else size
            packed = next(numbers, packed) if packed == _FULL32 else packed
            header = next(numbers, header) if header == _FULL32 else header
            break
        at += 4 + length
    return size, packed, header


def _locate(
    source: Source,
    listed: list[tuple[str, int, int, int, int, int, int]],
    shift: int,
    central: int,
    problems: list[Problem],
) -> list[Entry]:
    """Return the entries with the places of their payloads, which only the local headers know."""
    order = sorted(range(len(listed)), key=lambda number: listed[number][1])
    starts = [-1] * len(listed)
    noted = len(problems)
    unpack = _LOCAL.unpack_from
    raw, first, last = b"", 0, 0
    reached, before = shift, -1
    for rank, number in enumerate(order):
        name, header, packed = listed[number][:3]
        header += shift
        if not packed:  # torch does not look where it lies
            starts[number] = min(header + 30 + len(name), central)
            continue
        if header + 30 > central:
            _note(problems, noted, f"{name}: its place, byte {header:,}, is not inside the file", name, header)
            continue
        if header + 30 > last:
            first, last = header, _run(listed, order, rank, shift, central)
            raw = source.read(first, last - first)
        mark, _, _, _, _, _, _, _, _, name_size, extra_size = unpack(raw, header - first)
        if mark != LOCAL:
            _note(
                problems, noted, f"{name}: no record begins at byte {header:,}, where the directory says", name, header
            )
            continue
        start = header + 30 + name_size + extra_size
        if central < start + packed <= source.size:
            _note(problems, noted, f"{name} and the zip directory lie on the same bytes", name, header)
            continue
        if start + packed > central:
            claim = f"{name}: claims {packed:,} bytes at byte {start:,}, and {max(0, central - start):,} are there"
            _note(problems, noted, claim, name, header)
            continue
        if header < reached:
            other = listed[order[before]][0]
            text = f"{name} and {other} lie on the same bytes, at byte {header:,}"
            if number != order[before]:
                _note(problems, noted, text, name, header)
        if start + packed > reached:
            reached, before = start + packed, rank
        starts[number] = start
    hidden = len(problems) - noted - MAX_NOTED
    if hidden > 0:
        del problems[noted + MAX_NOTED :]
        problems.append(Problem("zip-damaged", f"{hidden:,} more records are damaged"))
    return [
        Entry(name, header + shift, starts[number], packed, size, crc32, method, flags)
        for number, (name, header, packed, size, crc32, method, flags) in enumerate(listed)
    ]


def _run(
    listed: list[tuple[str, int, int, int, int, int, int]], order: list[int], rank: int, shift: int, end: int
) -> int:
    """Return the end of the read that takes in this local header and those that follow it closely."""
    first = last = listed[order[rank]][1]
    for following in range(rank + 1, len(order)):
        header = listed[order[following]][1]
        if header - last > _NEAR or header - first > _RUN:
            break
        last = header
    return min(last + shift + 30, end)


def _note(problems: list[Problem], noted: int, text: str, name: str, offset: int) -> None:
    problems.append(
        Problem(
            "zip-damaged", "a record of the zip is damaged", (text,) if text else (), Spot(record=name, offset=offset)
        )
    )
