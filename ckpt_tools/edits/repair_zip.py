"""The lost directory of a torch zip, made again from the records themselves.

Every record says its own name; its size follows from the pickle, or from the descriptor behind it, which counts only
when it fits the distance and the checksum: tensor bytes may hold the same mark.  Nothing is made up: a record that is
not whole is named, and a file that needs it is not repaired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct

from ckpt_tools.containers import pickle_stream, reader
from ckpt_tools.containers.base import FormatError
from ckpt_tools.containers.torch_values import TorchValues
from ckpt_tools.containers.zip_directory import CENTRAL, END, END64, LOCAL, LOCATOR64, STORED
from ckpt_tools.core.durable import Disk
from ckpt_tools.core.source import FileSource, Source
from ckpt_tools.edits.repair_base import CannotRepairError, Draft, Staged, Subject, stage_name
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import Fix
from ckpt_tools.model.plan import MoveFile
from ckpt_tools.numerics.crc import crc32

_LOCAL = Struct("<4sHHHHHIIIHH")
_CENTRAL = Struct("<4sHHHHHHIIIHHHHHII")
_DESCRIPTOR = b"PK\x07\x08"
_FULL = 0xFFFFFFFF
_FOLLOWED, _UTF8 = 1 << 3, 1 << 11
_PIECE = 1 << 22
_KNOWN = {"version": b"3\n", "byteorder": b"little"}
_AWAY = "fall back to an older checkpoint"


@dataclass(frozen=True, slots=True)
class _Record:
    """A whole record: its payload of ``size`` bytes is at ``start``; ``end`` is where the next one begins.

    ``bare`` says that its descriptor is lost.
    """

    name: str
    header: int
    flags: int
    start: int
    size: int
    crc32: int
    end: int
    bare: bool = False


def rebuild_directory(fix: Fix, subject: Subject) -> Draft:
    """Plan a new file: the whole records of the old one, and a directory of them."""
    part = subject.part(str(fix.params["path"]))
    place = stage_name(subject.home, part.path)
    origin = subject.home.at(part.path)
    with subject.opened().listing.open(part.path) as source:
        found = _Walk(source)
        found.require()
        kept, tail = found.end, found.tail()
    notes = (*found.notes, f"{len(found.records):,} records are whole; {source.size - kept:,} bytes behind them go")

    def write(disk: Disk, target: str) -> None:
        disk.copy(origin, target)
        disk.truncate(target, kept)
        disk.write(target, kept, tail)

    def check(target: str) -> str | None:
        with FileSource(target, part.path) as made:
            after = reader.read(made, part.containers)
        if not after.readable or after.problems:
            return after.problems[0].message if after.problems else "it cannot be read"
        return None

    kind = "" if part.role in (Role.TRAINING_ARGS, Role.CUSTOM) else "torch-zip"
    staged = Staged(place, kept + len(tail), write, check, kind, part.role is Role.RNG)
    return Draft((subject.aside(part.path), MoveFile(place, part.path)), notes=notes, staged=(staged,))


class _Walk:
    """The records of a torch zip from its first byte on, with their checksums compared."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.records: list[_Record] = []
        self.broken: list[str] = []
        self.notes: list[str] = []
        self.root = ""
        self.sizes: dict[str, int] = {}
        self.end = 0
        position = 0
        while True:
            if source.read(position, 4) == CENTRAL:
                position = self._over_directory(position)
            if source.read(position, 4) != LOCAL:
                break
            record = self._record(position)
            if record is None:
                break
            self.records.append(record)
            self.end = record.start + record.size if record.bare else record.end
            position = record.end

    @property
    def last(self) -> Mapping[str, _Record]:
        """The records by name; the last of two counts, as for every reader."""
        return {record.name: record for record in self.records}

    def require(self) -> None:
        """Require that what the pickle needs is there and whole."""
        if not self.records:
            raise CannotRepairError("its first record is not whole", _AWAY)
        pickle = self.last.get(f"{self.root}/data.pkl")
        if pickle is None:
            raise CannotRepairError("its pickle is not whole", _AWAY)
        stale = [name for name in self.broken if name in self.last]
        if stale:
            reason = f"it was edited, and the newer {stale[0]} is not whole: what is left would load the older values"
            raise CannotRepairError(reason, "`ckpt undo`, or copy the edited file again")
        self._sizes(pickle.start)
        lost = [name for name in self.sizes if name not in self.last]
        if lost:
            more = f" and {len(lost) - 3:,} more" if len(lost) > 3 else ""
            raise CannotRepairError(f"{len(lost):,} records are not whole: {', '.join(lost[:3])}{more}", _AWAY)

    def tail(self) -> bytes:
        """Return the end of the new file: lost small records, and the directory."""
        made = bytearray()
        records = dict(self.last)
        if self.records[-1].bare:
            last = self.records[-1]
            width = 8 if last.size >= _FULL else 4
            made += _DESCRIPTOR + last.crc32.to_bytes(4, "little") + last.size.to_bytes(width, "little") * 2
            self.notes.append(f"{last.name}: the checksum behind it was lost, and is made from what is there")
        for short, payload in _KNOWN.items():
            full = f"{self.root}/{short}"
            if full in records:
                continue
            header = self.end + len(made)
            padding = -(header + 30 + len(full.encode()) + 4) % 64
            lengths = (len(payload), len(payload), len(full.encode()), 4 + padding)
            begin = _LOCAL.pack(LOCAL, 0, _UTF8, STORED, 0, 0, crc32(payload), *lengths)
            made += begin + full.encode() + b"FB" + padding.to_bytes(2, "little") + b"Z" * padding + payload
            start = self.end + len(made) - len(payload)
            records[full] = _Record(full, header, _UTF8, start, len(payload), crc32(payload), start + len(payload))
            self.notes.append(f"the record {short} was lost and is written as {payload.decode().strip()!r}")
        offset = self.end + len(made)
        central = b"".join(map(_line, records.values()))
        count, size = len(records), len(central)
        made += central
        made += END64 + (44).to_bytes(8, "little") + b"\x1e\x03\x2d\0" + bytes(8)
        made += count.to_bytes(8, "little") * 2 + size.to_bytes(8, "little") + offset.to_bytes(8, "little")
        made += LOCATOR64 + bytes(4) + (offset + size).to_bytes(8, "little") + (1).to_bytes(4, "little")
        made += END + bytes(4) + min(count, 0xFFFF).to_bytes(2, "little") * 2
        made += min(size, _FULL).to_bytes(4, "little") + min(offset, _FULL).to_bytes(4, "little") + bytes(2)
        return bytes(made)

    # One record ---------------------------------------------------------------------------------------------

    def _record(self, header: int) -> _Record | None:
        raw = self.source.read(header, 30)
        if len(raw) < 30:
            return None
        _, _, flags, method, _, _, checksum, packed, size, name_size, extra_size = _LOCAL.unpack(raw)
        name = self.source.read(header + 30, name_size).decode("utf-8", "surrogateescape")
        start = header + 30 + name_size + extra_size
        if method != STORED or flags & 1 or start > self.source.size:
            self.broken.append(name)
            return None
        if not self.root:
            self.root = name.partition("/")[0]
        if name == f"{self.root}/data.pkl":
            self._sizes(start)
        if not flags & _FOLLOWED:
            if _FULL in (packed, size) or start + size > self.source.size or self._crc(start, size) != checksum:
                self.broken.append(name)
                return None
            return _Record(name, header, flags, start, size, checksum, start + size)
        found = self._known(name, start) or self._scanned(start)
        if found is None:
            self.broken.append(name)
            return None
        size, checksum, end, bare = found
        return _Record(name, header, flags, start, size, checksum, end, bare)

    def _known(self, name: str, start: int) -> tuple[int, int, int, bool] | None:
        """Return size, checksum and end of a record whose size the pickle tells; damaged bytes are no record."""
        size = self.sizes.get(name)
        if size is None or start + size > self.source.size:
            return None
        wide = 8 if size >= _FULL else 4
        behind = self.source.read(start + size, 8 + 2 * wide)
        crc = self._crc(start, size)
        if behind[:4] == _DESCRIPTOR and behind[8:] == size.to_bytes(wide, "little") * 2:
            stored = int.from_bytes(behind[4:8], "little")
            if stored not in (crc, 0):
                raise CannotRepairError(f"the bytes of {name} are damaged too: they do not give its checksum", _AWAY)
            return size, stored, start + size + len(behind), False
        if start + size + len(behind) > self.source.size or not behind.strip(b"\0"):
            return size, crc, start + size, True
        return None

    def _scanned(self, start: int) -> tuple[int, int, int, bool] | None:
        """Look for the descriptor that fits its own distance and checksum."""
        at, crc = start, 0
        while at < self.source.size:
            piece = self.source.read(at, _PIECE + 24)
            place = -1
            while 0 <= (place := piece.find(_DESCRIPTOR, place + 1)) < _PIECE:
                size = at + place - start
                for wide in (4, 8):
                    rest = piece[place + 8 : place + 8 + 2 * wide]
                    fits = size < 1 << 8 * wide and rest == size.to_bytes(wide, "little") * 2
                    stored = int.from_bytes(piece[place + 4 : place + 8], "little")
                    if fits and stored in (crc32(piece[:place], crc), 0):
                        return size, stored, at + place + 8 + 2 * wide, False
            crc = crc32(piece[:_PIECE], crc)
            at += _PIECE
        return None

    def _sizes(self, start: int) -> None:
        """Read the pickle at ``start``: how long it is, and how long the storages are."""
        values = TorchValues()
        try:
            length, _ = pickle_stream.read_growing(self.source, start, values.persistent, values.rebuild, values.view)
        except FormatError as error:
            raise CannotRepairError(f"its pickle is damaged: {error.problem.message}", _AWAY) from None
        self.sizes = {f"{self.root}/data.pkl": length}
        self.sizes |= {f"{self.root}/data/{storage.key}": storage.nbytes for storage in values.storages.values()}

    def _crc(self, start: int, size: int) -> int:
        crc = 0
        for at in range(start, start + size, _PIECE):
            crc = crc32(self.source.read(at, min(_PIECE, start + size - at)), crc)
        return crc

    def _over_directory(self, position: int) -> int:
        """Return what follows an old directory, which an edit left behind."""
        while self.source.read(position, 4) == CENTRAL:
            raw = self.source.read(position, 46)
            if len(raw) < 46:
                return self.source.size
            position += 46 + sum(_CENTRAL.unpack(raw)[10:13])
        return position + 98


def _line(record: _Record) -> bytes:
    name = record.name.encode("utf-8", "surrogateescape")
    extra = b""
    if record.size >= _FULL:
        extra += record.size.to_bytes(8, "little") * 2
    if record.header >= _FULL:
        extra += record.header.to_bytes(8, "little")
    if extra:
        extra = b"\x01\x00" + len(extra).to_bytes(2, "little") + extra
    size, place = min(record.size, _FULL), min(record.header, _FULL)
    fixed = (CENTRAL, 0, 45 if extra else 0, record.flags, STORED, 0, 0, record.crc32, size, size)
    return _CENTRAL.pack(*fixed, len(name), len(extra), 0, 0, 0, 0, place) + name + extra
