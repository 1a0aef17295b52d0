"""Torch files made by hand, byte for byte as torch writes them where it matters: no torch is needed."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable
from io import BytesIO

STAMP = (1980, 1, 1, 0, 0, 0)


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def numbers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def storage(key: str, count: int, kind: str = "FloatStorage", location: str = "cpu") -> bytes:
    body = text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text(location) + number(count)
    return b"(" + body + b"tQ"


def tensor(
    key: str,
    shape: tuple[int, ...],
    *,
    count: int | None = None,
    offset: int = 0,
    strides: tuple[int, ...] | None = None,
    kind: str = "FloatStorage",
) -> bytes:
    """Return the opcodes of one tensor on the storage ``key``."""
    dense: list[int] = []
    total = 1
    for size in reversed(shape):
        dense.insert(0, total)
        total *= size
    arguments = storage(key, total if count is None else count, kind) + number(offset) + numbers(shape)
    arguments += numbers(strides if strides is not None else dense) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def mapping(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


WEIGHTS = {"a.weight": tensor("0", (2, 3)), "b.bias": tensor("1", (4,))}
PAYLOADS = {"data/0": struct.pack("<6f", *range(6)), "data/1": struct.pack("<4f", *range(4))}


def records(body: bytes | None = None, payloads: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """Return the records of a small good file by name below its root."""
    return {
        "data.pkl": pickled(mapping(WEIGHTS) if body is None else body),
        ".format_version": b"1",
        ".storage_alignment": b"64",
        "byteorder": b"little",
        **(PAYLOADS if payloads is None else payloads),
        "version": b"3\n",
        ".data/serialization_id": b"0" * 40,
    }


def archive(members: dict[str, bytes] | list[tuple[str, bytes]], root: str = "file", method: int = 0) -> bytes:
    """Return a zip as Python writes it; ``root`` is put before every name."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as target:
        for name, payload in members.items() if isinstance(members, dict) else members:
            info = zipfile.ZipInfo(f"{root}/{name}" if root else name, STAMP)
            info.compress_type = method
            target.writestr(info, payload)
    return buffer.getvalue()


def torch_archive(members: dict[str, bytes], root: str = "file", *, crc: bool = True) -> bytes:
    """Return a zip as torch writes it: aligned payloads, sizes in data descriptors, a zip64 end."""
    out, central = bytearray(), bytearray()
    for name, payload in members.items():
        full = f"{root}/{name}".encode()
        header, check = len(out), zlib.crc32(payload) if crc else 0
        padding = -(header + 30 + len(full) + 4) % 64
        flags = 0x0808 if payload else 0x0800
        out += struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 0, flags, 0, 0, 0, 0, 0, 0, len(full), 4 + padding)
        out += full + b"FB" + struct.pack("<H", padding) + b"Z" * padding + payload
        if payload:
            out += b"PK\x07\x08" + struct.pack("<III", check, len(payload), len(payload))
        central += struct.pack("<4sHHHHHHIII", b"PK\x01\x02", 0, 0, flags, 0, 0, 0, check, len(payload), len(payload))
        central += struct.pack("<HHHHHII", len(full), 0, 0, 0, 0, 0, header) + full
    place, count = len(out), len(members)
    end = len(out) + len(central)
    out += central
    out += struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 0, 45, 0, 0, count, count, len(central), place)
    out += struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    out += struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(central), place, 0)
    return bytes(out)


def legacy(
    body: bytes, storages: dict[str, bytes], *, width: int = 4, listed: list[str] | None = None, little: bool = True
) -> bytes:
    """Return an old torch file: five pickles, then the storages."""
    head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19." + b"\x80\x02M\xe9\x03."
    system = mapping({"protocol_version": b"M\xe9\x03", "little_endian": b"\x88" if little else b"\x89"})
    keys = list(storages) if listed is None else listed
    names = b"](" + b"".join(text(key) for key in keys) + b"e" if keys else b"]"
    data = b"".join(struct.pack("<q", len(raw) // width) + raw for raw in storages.values())
    body = body.replace(b"tQ", b"NtQ")  # a reference to a storage has one part more than in a zip
    return head + pickled(system) + pickled(body) + pickled(names) + data
