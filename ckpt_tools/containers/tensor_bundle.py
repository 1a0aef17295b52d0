"""The ``.index`` of a TensorFlow checkpoint: a sorted table (LevelDB's) of protocol buffers, one for each tensor.

A footer of 48 bytes points to an index block, that to data blocks; each block ends with a masked CRC-32C.  The tensors'
bytes are in ``.data-*`` files beside it, so what is found are ``facts["entries"]``, and the layout joins both.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from ckpt_tools.containers.base import Content, FormatError, no_collection
from ckpt_tools.containers.kinds import printable
from ckpt_tools.core.crc32c import crc32c, masked, unmasked
from ckpt_tools.core.source import Source
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.tensors import DTYPE_BITS

FOOTER = 48
MAGIC = bytes.fromhex("57fb808b247547db")
TRAILER = 5
LIMIT = 1 << 28
MAX_DIMENSIONS = 254
STRING = "string"

DTYPES: dict[int, str] = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: STRING, 8: "complex64", 9: "int64",
    10: "bool", 11: "qint8", 12: "quint8", 13: "qint32", 14: "bfloat16", 15: "int16", 16: "uint16", 17: "uint16",
    18: "complex128", 19: "float16", 20: "resource", 21: "variant", 22: "uint32", 23: "uint64", 24: "float8_e5m2",
    25: "float8_e4m3fn",
}  # fmt: skip
"""TensorFlow's numbers of types; the quantised 16-bit ones (15, 16) are plain integers in the file."""

OPAQUE = frozenset({STRING, "resource", "variant"})
"""Types whose size does not follow from the shape; their checksum is over more than their bytes."""


class Entry(NamedTuple):
    """A tensor: ``size`` bytes at ``offset`` of shard ``shard``; ``crc32c`` as it is computed, not as it is stored.

    ``slices`` counts the pieces that a partitioned variable is stored in under keys of their own; it has no bytes then.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: int = 0


class _Damaged(ValueError):
    """A block, or a message in it, that makes no sense."""


@no_collection()
def read(source: Source) -> Content:
    """Return the header (``shards``, ``byteorder``) and ``entries`` as facts, and what is wrong with the table.

    Raises:
        SourceError: the file could not be read, or changed while it was.
    """
    try:
        return _Table(source).content()
    except FormatError as error:
        return Content("tensor-bundle", source.size, readable=False, problems=(error.problem,))


def is_footer(tail: bytes) -> bool:
    """Return whether the last bytes of a file are those of such a table."""
    return tail.endswith(MAGIC)


class _Table:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []

    def content(self) -> Content:
        size = self.source.size
        if size < FOOTER or not is_footer(self.source.read(size - 8, 8)):
            raise FormatError(
                Problem(
                    "file-cut-short",
                    "the index has no footer",
                    (f"has {size:,} bytes, and does not end as such a table does; the footer is written last",),
                    Spot(offset=size),
                )
            )
        if size > LIMIT:
            raise FormatError(Problem("bundle-index-damaged", f"the index has {size:,} bytes, and is not looked at"))
        footer = self.source.read(size - FOOTER, FOOTER)
        try:
            at = 0
            for _ in range(2):  # the block of metadata, which is empty
                _, at = varint(footer, at)
            begin, at = varint(footer, at)
            length, _ = varint(footer, at)
            handles = list(_pairs(self.block(begin, length)))
        except _Damaged as error:
            raise self.damaged(str(error)) from None
        entries: list[Entry] = []
        header: dict[int, list[int | bytes]] | None = None
        for _, handle in handles:
            try:
                begin, after = varint(handle, 0)
                length, _ = varint(handle, after)
                for key, value in _pairs(self.block(begin, length)):
                    if not key:
                        header = _fields(value)
                    else:
                        entries.append(_entry(key, value))
            except _Damaged as error:
                self.problems.append(self.damaged(str(error)).problem)
        if header is None and not self.problems:
            self.problems.append(self.damaged("it has no header entry").problem)
        shards = _number(header, 1) if header else 0
        facts = {
            "shards": shards,
            "byteorder": "big" if header and _number(header, 2) else "little",
            "entries": tuple(entries),
            "complete": not self.problems,
        }
        self.problems += _invalid(entries, shards)
        return Content("tensor-bundle", size, value=_value(entries, shards), facts=facts, problems=tuple(self.problems))

    def damaged(self, why: str) -> FormatError:
        return FormatError(
            Problem("bundle-index-damaged", "the index is damaged", (why, 'TensorFlow stops with "DataLossError"'))
        )

    def block(self, begin: int, length: int) -> bytes:
        """Return a block whose checksum fits."""
        if begin + length + TRAILER > self.source.size - FOOTER:
            raise _Damaged(f"a block of {length:,} bytes at byte {begin:,} lies outside of the file")
        raw = self.source.read(begin, length + TRAILER)
        stored = int.from_bytes(raw[-4:], "little")
        found = masked(crc32c(raw[:-4]))
        if stored != found:
            raise _Damaged(f"the checksum of the block at byte {begin:,} does not fit: {stored:08x}, found {found:08x}")
        if raw[-5]:
            raise _Damaged(f"the block at byte {begin:,} is compressed, which TensorFlow never writes")
        return raw[:-TRAILER]


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place after it.

    Raises:
        ValueError: it does not end.
    """
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Damaged("a number in it does not end")


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values; a key shares its beginning with the one before it."""
    if len(block) < 4:
        raise _Damaged("a block is too short")
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise _Damaged("a block names more restarts than it has room for")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        fresh, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or at + fresh + length > end:
            raise _Damaged("an entry of a block leads out of it")
        key = key[:shared] + block[at : at + fresh]
        at += fresh
        yield key, block[at : at + length]
        at += length


def _fields(data: bytes) -> dict[int, list[int | bytes]]:
    """Return the fields of a protocol buffer by number, repeated ones in order."""
    found: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        value: int | bytes
        match tag & 7:
            case 0:
                value, at = varint(data, at)
            case 2:
                length, at = varint(data, at)
                value, at = data[at : at + length], at + length
            case 5:
                value, at = int.from_bytes(data[at : at + 4], "little"), at + 4
            case 1:
                value, at = int.from_bytes(data[at : at + 8], "little"), at + 8
            case _:
                raise _Damaged("an entry is no protocol buffer")
        if at > len(data):
            raise _Damaged("an entry ends early")
        found.setdefault(tag >> 3, []).append(value)
    return found


def _number(fields: dict[int, list[int | bytes]], number: int) -> int:
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise _Damaged("a number in it is none")
    return value


def _entry(key: bytes, value: bytes) -> Entry:
    fields = _fields(value)
    kind = _number(fields, 1)
    shape: list[int] = []
    for message in fields.get(2, []):
        if not isinstance(message, bytes):
            raise _Damaged("a shape is none")
        for dimension in _fields(message).get(2, []):
            if not isinstance(dimension, bytes):
                raise _Damaged("a dimension is none")
            shape.append(_number(_fields(dimension), 1))
    if len(shape) > MAX_DIMENSIONS:
        raise _Damaged(f"a tensor has {len(shape):,} dimensions")
    return Entry(
        key.decode("utf-8", "backslashreplace"),
        DTYPES.get(kind, f"type {kind}"),
        tuple(shape),
        _number(fields, 3),
        _number(fields, 4),
        _number(fields, 5),
        unmasked(_number(fields, 6)),
        len(fields.get(7, [])),
    )


def _invalid(entries: list[Entry], shards: int) -> Iterator[Problem]:
    """Yield a problem for entries that contradict themselves, all as one."""
    wrong: list[str] = []
    first = ""
    for entry in entries:
        bits = DTYPE_BITS.get(entry.dtype)
        why = ""
        if entry.shard >= shards:
            why = f"is in shard {entry.shard} of {shards}"
        elif bits is not None and not entry.slices and prod(entry.shape) * bits // 8 != entry.size:
            why = f"has {entry.size:,} bytes for {entry.dtype} {list(entry.shape)}"
        if why:
            first = first or entry.name
            wrong.append(f"`{printable(entry.name)}` {why}")
    if wrong:
        rest = [f"... and {len(wrong) - 10:,} more"] if len(wrong) > 10 else []
        message = "an entry contradicts itself" if len(wrong) == 1 else f"{len(wrong):,} entries contradict themselves"
        yield Problem("bundle-index-damaged", message, (*wrong[:10], *rest), Spot(tensor=first))


def _value(entries: list[Entry], shards: int) -> dict[str, object]:
    """Return what a reader of the index would be shown: the names with types and shapes."""
    return {
        "num_shards": shards,
        "entries": {entry.name: f"{entry.dtype} {list(entry.shape)}" for entry in entries},
    }
