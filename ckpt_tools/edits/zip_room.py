"""Records of a zip that get another length while the zip keeps its own: torch's padding behind them makes room.

Every payload that torch writes begins on a multiple of 64 bytes, and the header before it is filled up for that.  What
a record grows by is taken from the filling behind it, so that no other payload moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ckpt_tools.containers.zip_directory import LOCAL
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.core.source import Source
from ckpt_tools.edits.zip_patch import DESCRIPTOR, Member, Zip
from ckpt_tools.model.plan import PatchBytes
from ckpt_tools.numerics.crc import crc32

_HEADER, _FIELD = 30, 4
_FILLING = b"FB"


def refit_zip(
    source: Source, path: str, patches: Sequence[tuple[int, bytes]], records: Mapping[str, bytes]
) -> tuple[PatchBytes, ...]:
    """Return the patches that change a torch zip and keep its length; see ``zip_patch.edit_zip`` for the arguments.

    Raises:
        EditRefusedError: the zip is damaged, or there is no room.
        SourceError: the file could not be read.
    """
    zipped = Zip(source, path)
    actions = list(zipped.patch(patches))
    members = sorted(zipped.members, key=lambda member: member.entry.header)
    for name, payload in records.items():
        rank = max((n for n, member in enumerate(members) if member.entry.name == name), default=-1)
        behind = members[rank + 1] if 0 <= rank < len(members) - 1 else None
        if behind is None or behind.line in zipped.changed or members[rank].line in zipped.changed:
            raise _no_room(path, len(payload))
        actions += _refitted(zipped, members[rank], behind, payload)
    actions += zipped.checksums()
    return tuple(actions)


def _refitted(zipped: Zip, member: Member, behind: Member, payload: bytes) -> Iterator[PatchBytes]:
    """Yield what becomes of a record, of its descriptor, of the header behind it and of both lines of the directory."""
    entry, source, path = member.entry, zipped.source, zipped.path
    zipped.require_plain(entry)
    end = entry.start + entry.packed
    sized = entry.crc32.to_bytes(4, "little") + entry.size.to_bytes(4, "little") * 2
    header = source.read(behind.entry.header, behind.entry.start - behind.entry.header)
    room = _room(header)
    growth = len(payload) - entry.size
    if (
        source.read(end, behind.entry.header - end) != DESCRIPTOR + sized
        or source.read(entry.header + 14, 12) != bytes(12)
        or member.raw[16:28] != sized
        or member.raw[42:46] != entry.header.to_bytes(4, "little")
        or behind.raw[42:46] != behind.entry.header.to_bytes(4, "little")
        or not 0 <= room - growth <= 0xFFFF - _FIELD
    ):
        raise _no_room(path, growth)
    checksum = 0 if zipped.unprotected else crc32(payload)
    numbers = checksum.to_bytes(4, "little") + len(payload).to_bytes(4, "little") * 2
    left = room - growth
    moved = header[:28] + (left + _FIELD).to_bytes(2, "little") + header[_HEADER : len(header) - room - _FIELD]
    new = payload + DESCRIPTOR + numbers + moved + _FILLING + left.to_bytes(2, "little") + b"Z" * left
    yield PatchBytes(path, entry.start, source.read(entry.start, len(new)), new)
    yield PatchBytes(path, member.line + 16, sized, numbers)
    place = behind.entry.header
    if growth:
        yield PatchBytes(path, behind.line + 42, place.to_bytes(4, "little"), (place + growth).to_bytes(4, "little"))


def _room(header: bytes) -> int:
    """Return how many bytes of filling a local header ends with, -1 where it is not as torch writes it."""
    names = int.from_bytes(header[26:28], "little")
    extra = header[_HEADER + names :]
    filled = len(extra) - _FIELD
    plain = header[:4] == LOCAL and header[28:30] == len(extra).to_bytes(2, "little") and filled >= 0
    return filled if plain and extra[:_FIELD] == _FILLING + filled.to_bytes(2, "little") else -1


def _no_room(path: str, growth: int) -> EditRefusedError:
    return EditRefusedError(
        f"{path}: a number would take {growth:,} bytes more than it has, and what lies behind it cannot move; nothing"
        " was changed",
        hint="load and save it once with torch, with that number as a float",
    )
