"""What torch's own zip library (miniz) makes of an archive, where it is stricter than other readers, or differs."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from ckpt_tools.containers.zip_directory import CENTRAL, END, END64, LOCAL, LOCATOR64, Directory, Entry
from ckpt_tools.core.source import Source

_BUFFER = 4096
_FAR = 0xFFFF + 22
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_MASKED = 0x2000
MAX_SORTED = 1_000_000
_CENTRAL = Struct("<4sHHHIHIIIHHHHHII")
_END = Struct("<4sHHHHIIH")
_END64 = Struct("<4sQHHIIQQQQ")


def refusal(source: Source, directory: Directory) -> str | None:
    """Return why torch refuses the archive as a whole, None where it does not."""
    if source.read(0, 4) != LOCAL:
        return "torch.load takes a file that does not begin with a zip record for something else"
    position = _end(source)
    if position is None:
        return 'torch.load stops with "failed finding central directory": it is not looked for so far from the end'
    fields = _END.unpack(source.read(position, 22))
    disk, first_disk, here, total, size, offset = fields[1:7]
    locator = source.read(position - 20, 20) if position >= 76 else b""
    if locator[:4] == LOCATOR64:
        place = int.from_bytes(locator[8:16], "little")
        if place > source.size - 56:
            return 'torch.load stops with "not a ZIP archive": the end record of large archives is not in the file'
        raw = source.read(place, 56)
        if raw[:4] == END64:
            _, length, _, _, disk, first_disk, here, total, size, offset = _END64.unpack(raw)
            if length < 44 or max(here, total, size) > _FULL32:
                return 'torch.load stops with "invalid header or archive is corrupted"'
            if int.from_bytes(locator[16:20], "little") != 1:
                return 'torch.load stops with "unsupported multidisk archive"'
    if total != here or ((disk or first_disk) and (disk, first_disk) != (1, 1)):
        return 'torch.load stops with "unsupported multidisk archive"'
    if size < 46 * total or offset + size > source.size:
        return 'torch.load stops with "invalid header or archive is corrupted": the directory does not fit'
    if directory.plain and (offset, total) == (directory.central, len(directory.entries)) and not disk:
        return None
    return _entries(source.read(offset, size), total, disk, source.size)


def _end(source: Source) -> int | None:
    """Return where miniz finds the end record: the last one, in steps back from the end that it can make."""
    lowest = max(source.size - _BUFFER, 0)
    for near in (True, False):
        if not near:
            while lowest >= _BUFFER - 3 and source.size - lowest < _FAR:
                lowest -= _BUFFER - 3
        tail = source.read(lowest, source.size - lowest)
        found = tail.rfind(END, 0, max(len(tail) - 18, 0))
        if found >= 0:
            return lowest + found
    return None


def _entries(raw: bytes, total: int, disk: int, whole: int) -> str | None:
    at, room = 0, len(raw)
    for number in range(1, total + 1):
        where = f"record {number:,} of the zip directory"
        broken = f'torch.load stops with "invalid header or archive is corrupted" at {where}'
        if at + 46 > room or raw[at : at + 4] != CENTRAL:
            return broken
        fields = _CENTRAL.unpack_from(raw, at)
        flags, method, packed, size, name, extra, comment, own_disk = *fields[3:5], *fields[7:13]
        header = fields[15]
        if own_disk == _FULL16 or own_disk not in (disk, 1):
            return f'torch.load stops with "unsupported multidisk archive" at {where}'
        if _FULL32 not in (packed, size) and ((not method and packed != size) or (size and not packed)):
            return broken
        if packed != _FULL32 and header + 30 + packed > whole:
            return broken
        if flags & _MASKED:
            return f'torch.load stops with "unsupported encryption" at {where}'
        at += 46 + name + extra + comment
        if at > room:
            return broken
    return None


def winners(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Return the entry that torch takes for every name, in small letters: it does not tell large from small ones.

    Of several with one name it takes what its way of sorting and searching comes upon, so both are done its way.
    """
    keys = [entry.name.lower().encode() for entry in entries]
    if len(set(keys)) == len(keys) or len(keys) > MAX_SORTED:
        return {entry.name.lower(): entry for entry in entries}
    order = _sorted(keys)
    return {key.decode(): entries[_found(keys, order, key)] for key in set(keys)}


def _sorted(keys: list[bytes]) -> list[int]:
    order = list(range(len(keys)))

    def sift(root: int, end: int) -> None:
        while (child := 2 * root + 1) < end:
            child += child + 1 < end and keys[order[child]] < keys[order[child + 1]]
            if not keys[order[root]] < keys[order[child]]:
                return
            order[root], order[child] = order[child], order[root]
            root = child

    for start in range((len(keys) - 2) // 2, -1, -1):
        sift(start, len(keys))
    for end in range(len(keys) - 1, 0, -1):
        order[0], order[end] = order[end], order[0]
        sift(0, end)
    return order


def _found(keys: list[bytes], order: list[int], key: bytes) -> int:
    low, high = 0, len(order) - 1
    while low <= high:
        middle = (low + high) // 2
        if keys[order[middle]] == key:
            return order[middle]
        if keys[order[middle]] < key:
            low = middle + 1
        else:
            high = middle - 1
    raise AssertionError("a name that is in the list is not found in it")
