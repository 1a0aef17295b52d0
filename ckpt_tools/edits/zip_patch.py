"""Surgery on torch zips that costs what the directory costs, never what the tensors cost.

Bytes of one length are patched in place, with the checksums of their record.  A record of another length is
appended, followed by a new directory; the old bytes stay, dead.  The mark of the old end record is zeroed last:
otherwise a copy that was cut inside the new tail would load the *old* values without a word.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct

from ckpt_tools.containers import zip_directory
from ckpt_tools.containers.base import FormatError
from ckpt_tools.containers.zip_directory import CENTRAL, END, END64, LOCAL, LOCATOR64, STORED, Directory, Entry
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.core.source import Source
from ckpt_tools.model.plan import Action, AppendBytes, PatchBytes
from ckpt_tools.numerics.crc import combine, crc32

ALIGNMENT = 64
MAX_TAIL = 1 << 28
"""Bytes that one edit may append; the directory of a million records is a quarter of it."""

_LOCAL = Struct("<4sHHHHHIIIHH")
_CENTRAL = Struct("<4sHHHHHHIIIHHHHHII")
DESCRIPTOR = b"PK\x07\x08"
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_FOLLOWED, _UTF8 = 1 << 3, 1 << 11


@dataclass(slots=True)
class Member:
    """A record with the place of its line in the directory; ``crc32`` is what it will be."""

    entry: Entry
    line: int
    raw: bytes
    crc32: int


def edit_zip(
    source: Source, path: str, patches: Sequence[tuple[int, bytes]] = (), records: Mapping[str, bytes] | None = None
) -> tuple[Action, ...]:
    """Return the actions that change a torch zip.

    Args:
        source: the file, as it is now.
        path: its name in the plan.
        patches: new bytes by their offset in the file; each run lies inside one record and keeps its length.
        records: whole new payloads by full record name (``archive/data.pkl``), of any length.

    Raises:
        EditRefusedError: the zip is damaged, a record is compressed, or there is no such record.
        SourceError: the file could not be read.
    """
    zipped = Zip(source, path)
    actions: list[Action] = list(zipped.patch(patches))
    if records:
        actions += zipped.replace(records)
    else:
        actions += zipped.checksums()
    return tuple(actions)


@dataclass(frozen=True, slots=True)
class Checked:
    """A record and the places ``(where, offset, checksum)`` of its checksum; ``where`` is ``header``, ``descriptor`` or
    ``directory``."""

    name: str
    start: int
    size: int
    method: int
    places: tuple[tuple[str, int, int], ...]


def checked_records(source: Source, path: str) -> Iterator[Checked]:
    """Yield the records of a zip with everything that is said of their checksums.

    Raises:
        EditRefusedError: the zip is damaged.
        SourceError: the file could not be read.
    """
    for member in Zip(source, path).members:
        entry = member.entry
        behind = entry.start + entry.packed
        places = [("header", entry.header + 14)]
        if entry.flags & _FOLLOWED and source.read(behind, 4) == DESCRIPTOR:
            places.append(("descriptor", behind + 4))
        stored = [(where, at, int.from_bytes(source.read(at, 4), "little")) for where, at in places]
        stored.append(("directory", member.line + 16, entry.crc32))
        yield Checked(entry.name, entry.start, entry.packed, entry.method, tuple(stored))


class Zip:
    """A torch zip that is about to be edited: its records, and what becomes of their checksums."""

    def __init__(self, source: Source, path: str) -> None:
        self.source = source
        self.path = path
        try:
            self.directory: Directory = zip_directory.read(source)
        except FormatError as error:
            raise self._refused(error.problem.message) from None
        if self.directory.problems:
            raise self._refused(self.directory.problems[0].message)
        if self.directory.begin:
            raise self._refused("bytes precede the archive")
        self.members = list(self._members())
        self.unprotected = not any(member.entry.crc32 for member in self.members if member.entry.size)
        self.changed: dict[int, Member] = {}

    def _members(self) -> Iterator[Member]:
        """Walk the directory once more, for the places of its lines."""
        at, entries = self.directory.central, self.directory.entries
        raw = self.source.read(at, self.directory.end - at)
        position = 0
        for entry in entries:
            fields = _CENTRAL.unpack_from(raw, position) if position + 46 <= len(raw) else (b"",) * 17
            length = 46 + sum(fields[10:13]) if fields[0] == CENTRAL else 0
            if not length or position + length > len(raw):
                raise self._refused("the zip directory is damaged")
            yield Member(entry, at + position, raw[position : position + length], entry.crc32)
            position += length

    # The same length ----------------------------------------------------------------------------------------

    def patch(self, patches: Sequence[tuple[int, bytes]]) -> Iterator[PatchBytes]:
        """Yield the patches of payloads, and note what becomes of the checksums."""
        ordered = sorted(self.members, key=lambda member: member.entry.start)
        starts = [member.entry.start for member in ordered]
        for offset, new in sorted(patches):
            rank = bisect_right(starts, offset) - 1
            while rank >= 0 and not ordered[rank].entry.packed:  # an empty record may share its place
                rank -= 1
            member = ordered[rank] if rank >= 0 else None
            if member is None or offset + len(new) > member.entry.start + member.entry.packed or member.entry.start < 0:
                raise self._refused(f"bytes {offset:,} to {offset + len(new):,} are not those of one record")
            self.require_plain(member.entry)
            old = self.source.read(offset, len(new))
            if old == new:
                continue
            behind = member.entry.start + member.entry.packed - offset - len(new)
            member.crc32 ^= combine(crc32(old) ^ crc32(new), 0, behind)
            self.changed[member.line] = member
            yield PatchBytes(self.path, offset, old, new)

    def checksums(self) -> Iterator[PatchBytes]:
        """Yield the patches of the checksums in the directory, and in the descriptors and headers that have them."""
        if self.unprotected:  # written without checksums; a single right one would only confuse
            return
        for member in self.changed.values():
            yield from self._descriptor(member)
        for member in self.changed.values():
            yield self._number(member.line + 16, member.entry.crc32, member.crc32)

    def _descriptor(self, member: Member) -> Iterator[PatchBytes]:
        entry = member.entry
        place = entry.header + 14
        if self.source.read(place, 4) == entry.crc32.to_bytes(4, "little"):
            yield self._number(place, entry.crc32, member.crc32)
        if entry.flags & _FOLLOWED:
            behind = entry.start + entry.packed
            place = behind + 4 if self.source.read(behind, 4) == DESCRIPTOR else behind
            if self.source.read(place, 4) == entry.crc32.to_bytes(4, "little"):
                yield self._number(place, entry.crc32, member.crc32)

    def _number(self, offset: int, old: int, new: int) -> PatchBytes:
        return PatchBytes(self.path, offset, old.to_bytes(4, "little"), new.to_bytes(4, "little"))

    # Another length -----------------------------------------------------------------------------------------

    def replace(self, records: Mapping[str, bytes]) -> Iterator[Action]:
        """Yield the descriptors' checksums, the new tail, and last the old end record's undoing."""
        last = {member.entry.name: number for number, member in enumerate(self.members)}
        missing = [name for name in records if name not in last]
        if missing:
            raise self._refused(f"there is no record {missing[0]}")
        if not self.unprotected:
            for member in self.changed.values():
                if member.entry.name not in records:
                    yield from self._descriptor(member)
        tail = bytearray()
        base = self.source.size
        lines = [self._line(member) for member in self.members]
        for name, payload in records.items():
            member = self.members[last[name]]
            self.require_plain(member.entry)
            header = base + len(tail)
            checksum = 0 if self.unprotected else crc32(payload)
            tail += self._record(member, payload, checksum, header)
            lines[last[name]] = _central(member.raw, len(payload), checksum, header)
        tail += self._end(lines, base + len(tail))
        if len(tail) > MAX_TAIL:
            raise self._refused(f"the edit would append {len(tail):,} bytes; {MAX_TAIL:,} are the most")
        if END in tail[:-22]:
            raise self._refused("the new bytes hold the mark of a zip's end, which readers would stumble over")
        yield AppendBytes(self.path, base, bytes(tail))
        yield from self._blind()

    def _line(self, member: Member) -> bytes:
        if member.line not in self.changed or self.unprotected:
            return member.raw
        return member.raw[:16] + member.crc32.to_bytes(4, "little") + member.raw[20:]

    def _record(self, member: Member, payload: bytes, checksum: int, header: int) -> bytes:
        """Return a record as torch writes it: sizes behind it, payload on a multiple of 64 bytes."""
        name = member.raw[46 : 46 + int.from_bytes(member.raw[28:30], "little")]
        padding = -(header + 30 + len(name) + 4) % ALIGNMENT
        _, _, needed, flags, _, time, date, *_ = _CENTRAL.unpack_from(member.raw)
        flags = _flags(flags, payload)
        begin = _LOCAL.pack(LOCAL, needed, flags, STORED, time, date, 0, 0, 0, len(name), 4 + padding)
        extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
        size = len(payload).to_bytes(4, "little")
        behind = DESCRIPTOR + checksum.to_bytes(4, "little") + size + size if payload else b""
        return begin + name + extra + payload + behind

    def _end(self, lines: Sequence[bytes], offset: int) -> bytes:
        central = b"".join(lines)
        count, size = len(lines), len(central)
        long = END64 + (44).to_bytes(8, "little") + (0x031E).to_bytes(2, "little") + (45).to_bytes(2, "little")
        long += bytes(8) + count.to_bytes(8, "little") * 2 + size.to_bytes(8, "little") + offset.to_bytes(8, "little")
        locator = LOCATOR64 + bytes(4) + (offset + size).to_bytes(8, "little") + (1).to_bytes(4, "little")
        short = END + bytes(4) + min(count, _FULL16).to_bytes(2, "little") * 2
        short += min(size, _FULL32).to_bytes(4, "little") + min(offset, _FULL32).to_bytes(4, "little") + bytes(2)
        return central + long + locator + short

    def _blind(self) -> Iterator[PatchBytes]:
        """Yield the patches after which no reader finds the old directory any more.

        The end record's mark is what every reader looks for; that of the zip64 record and its locator go too.
        """
        end = self._end_record()
        places = [end]
        if self.source.read(end - 20, 4) == LOCATOR64:
            places.insert(0, end - 20)
            place = int.from_bytes(self.source.read(end - 12, 8), "little")
            if self.directory.central <= place <= end - 76 and self.source.read(place, 4) == END64:
                places.insert(0, place)
        for place in places:
            yield PatchBytes(self.path, place, self.source.read(place, 4), bytes(4))

    def _end_record(self) -> int:
        """Return where the end record of the directory lies, which may have a comment."""
        window = self.source.read(self.directory.central, self.directory.end - self.directory.central)
        at = window.rfind(END)
        if at < 0:
            raise self._refused("the end of the zip directory is not where it should be")
        return self.directory.central + at

    def require_plain(self, entry: Entry) -> None:
        """Refuse a record that is not stored as it is."""
        if entry.method != STORED or entry.flags & 1 or entry.packed != entry.size:
            raise self._refused(f"the record {entry.name} is compressed")

    def _refused(self, reason: str) -> EditRefusedError:
        return EditRefusedError(f"{self.path}: cannot be edited: {reason}")


def _flags(flags: int, payload: bytes) -> int:
    return (flags | _FOLLOWED if payload else flags & ~_FOLLOWED) | _UTF8


def _central(raw: bytes, size: int, checksum: int, header: int) -> bytes:
    """Return a line of the directory for the same name, with its new place and size."""
    _, made, needed, flags, _, time, date, _, _, _, name_size, _, _, _, inner, outer, _ = _CENTRAL.unpack_from(raw)
    wide = header >= _FULL32
    extra = b"\x01\x00\x08\x00" + header.to_bytes(8, "little") if wide else b""
    data = b"x" if size else b""
    fixed = (CENTRAL, made, max(needed, 45) if wide else needed, _flags(flags, data), STORED, time, date, checksum)
    place = _FULL32 if wide else header
    return (
        _CENTRAL.pack(*fixed, size, size, name_size, len(extra), 0, 0, inner, outer, place)
        + raw[46 : 46 + name_size]
        + extra
    )
