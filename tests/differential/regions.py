"""What the bytes of a file mean, place by place: where damage is aimed, and what a changed byte belonged to."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes ``[start, end)`` of one meaning; ``weight`` is how often damage is aimed there."""

    name: str
    start: int
    end: int
    weight: float


@lru_cache(maxsize=64)
def of(data: bytes) -> tuple[Region, ...]:
    """Return the regions of an undamaged file, in order and without gaps."""
    if data.startswith(b"PK\x03\x04"):
        found = list(_zip(data))
    elif data.startswith(b"\x80\x02\x8a"):
        found = list(_legacy(data))
    elif data.startswith(b"{"):
        found = [Region("json", 0, len(data), 1)]
    else:
        size = int.from_bytes(data[:8], "little")
        found = [
            Region("length", 0, 8, 2),
            Region("header", 8, 8 + size, 8),
            Region("tensor-bytes", 8 + size, len(data), 1),
        ]
    return tuple(region for region in found if region.start < region.end)


def touched(before: bytes, after: bytes) -> frozenset[str]:
    """Return the regions of the bytes that changed; ``"length-of-file"`` stands for a change of size."""
    if len(before) != len(after):
        return frozenset({"length-of-file"})
    return frozenset(
        region.name for region in of(before) if before[region.start : region.end] != after[region.start : region.end]
    )


_CENTRAL = (  # field, bytes
    ("signature", 4),
    ("versions", 4),
    ("flags", 2),
    ("method", 2),
    ("times", 4),
    ("crc", 4),
    ("sizes", 8),
    ("name-length", 2),
    ("extra-length", 2),
    ("comment-length", 2),
    ("disk", 2),
    ("attributes", 6),
    ("offset", 4),
)
_LOCAL = (
    ("signature", 4),
    ("versions", 2),
    ("flags", 2),
    ("method", 2),
    ("times", 4),
    ("crc", 4),
    ("sizes", 8),
    ("name-length", 2),
    ("extra-length", 2),
)


def _fields(prefix: str, start: int, fields: tuple[tuple[str, int], ...], weight: float) -> Iterator[Region]:
    for name, length in fields:
        yield Region(f"{prefix}-{name}", start, start + length, weight * length / 30)
        start += length


def _zip(data: bytes) -> Iterator[Region]:
    end = data.rindex(b"PK\x05\x06")
    entries, size, start = struct.unpack_from("<HII", data, end + 10)
    rows = []
    position = start
    while position < start + size:
        stored, _, name, extra, comment = struct.unpack_from("<IIHHH", data, position + 20)
        (offset,) = struct.unpack_from("<I", data, position + 42)
        title = data[position + 46 : position + 46 + name].decode()
        rows.append((offset, stored, title, position, name, extra + comment))
        position += 46 + name + extra + comment
    assert len(rows) == entries
    for index, (offset, stored, title, *_) in enumerate(rows):
        name, extra = struct.unpack_from("<HH", data, offset + 26)
        yield from _fields("local", offset, _LOCAL, 0.5)
        yield Region("local-name", offset + 30, offset + 30 + name, 0.2)
        payload = offset + 30 + name + extra
        yield Region("padding", offset + 30 + name, payload, 0.1)
        short = title.split("/", 1)[1]
        if short == "data.pkl":
            yield Region("pickle", payload, payload + stored, 12)
        elif short.startswith("data/"):
            yield Region("tensor-bytes", payload, payload + stored, 2 / len(rows))
        else:
            yield Region(f"record-{short.rpartition('/')[2].lstrip('.')}", payload, payload + stored, 0.5)
        following = rows[index + 1][0] if index + 1 < len(rows) else start
        yield Region("descriptor", payload + stored, following, 0.3)
    for _, _, _, position, name, more in rows:
        share = 6 / len(rows)
        yield from _fields("central", position, _CENTRAL, share)
        yield Region("central-name", position + 46, position + 46 + name, share / 4)
        yield Region("central-extra", position + 46 + name, position + 46 + name + more, share / 4)
    yield Region("zip64-end", start + size, end, 1.5)
    yield Region("end", end, end + 22, 1.5)
    yield Region("comment", end + 22, len(data), 0.5)


def _legacy(data: bytes) -> Iterator[Region]:
    """A legacy file is a few pickles and then the storages; where those begin is told by the last pickle's end."""
    import io
    import pickletools

    stream = io.BytesIO(data)
    ends = []
    for _ in range(5):
        for _, _, _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    yield Region("magic", 0, ends[1], 1)
    yield Region("system-info", ends[1], ends[2], 1)
    yield Region("pickle", ends[2], ends[3], 8)
    yield Region("storage-keys", ends[3], ends[4], 2)
    yield Region("tensor-bytes", ends[4], len(data), 1)
