"""Seeded random damage to the bytes of one file.

``make(path, data, seed)`` gives the same damage for the same three arguments on every machine, so that a failure is
told in one line and made again with ``python -m tests.differential.replay``.  Places are drawn by meaning, not by
size: a header, a zip directory and a pickle get most of the hits, tensor bytes few.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.differential import headers, pickles, records, regions
from tests.differential.regions import Region

ALIKE = ("torch-zip", "torch-legacy", "safetensors", "json")


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged file: ``kind`` is a row of the summary, ``what`` says it with numbers.

    ``touched`` are the regions (by name) that hold a changed byte, empty where whole records or headers were
    rewritten.
    """

    kind: str
    what: str
    data: bytes
    touched: frozenset[str] = frozenset()


def container_of(data: bytes) -> str | None:
    """Return what kind of file this is, None for one that no oracle here reads."""
    if data.startswith(b"PK\x03\x04"):
        return "torch-zip"
    if data.startswith(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46"):
        return "torch-legacy"
    if len(data) > 8 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return "safetensors"
    return "json" if data.startswith(b"{") else None


def make(path: str, data: bytes, seed: int) -> Damage:
    """Damage ``data``; ``path`` only takes part in the seed."""
    draw = random.Random(f"{path}#{seed}")
    container = container_of(data)
    assert container is not None
    kinds = [*_BYTES, *_SPECIAL[container]]
    for _ in range(20):
        name, _, change = draw.choices(kinds, [weight for _, weight, _ in kinds])[0]
        made = change(draw, data)
        if made is not None and made[1] != data:
            what, damaged = made
            touched = regions.touched(data, damaged) if any(change is own for _, _, own in _BYTES) else frozenset()
            return Damage(name, what, damaged, touched)
    raise AssertionError("no damage changed a byte in twenty attempts")


Made = tuple[str, bytes] | None


def _spot(draw: random.Random, data: bytes) -> tuple[int, Region]:
    places = regions.of(data)
    region = draw.choices(places, [place.weight for place in places])[0]
    return draw.randrange(region.start, region.end), region


def _run(draw: random.Random, data: bytes) -> tuple[int, int, Region]:
    """Return a range, mostly a short one, that begins in a place drawn by meaning."""
    start, region = _spot(draw, data)
    length = draw.choice((1, 2, 4, 8, 16, 64, 512, 4096, draw.randint(1, len(data))))
    return start, min(len(data), start + length), region


def _truncate(draw: random.Random, data: bytes) -> Made:
    size = draw.choice(
        (0, 1, 7, 8, draw.randrange(len(data)), draw.randrange(len(data)), len(data) - draw.randint(1, 70))
    )
    size = max(0, min(size, len(data) - 1))
    return f"cut from {len(data)} to {size} bytes", data[:size]


def _append(draw: random.Random, data: bytes) -> Made:
    size = draw.choice((1, 2, 8, 22, 100, 1000, 65_000, 65_535, 65_536, 70_000))
    fill = draw.choice((bytes(size), b"\n" * size, draw.randbytes(size)))
    return f"{size} bytes of {fill[:4]!r}... appended", data + fill


def _flip_bit(draw: random.Random, data: bytes) -> Made:
    at, region = _spot(draw, data)
    bit = draw.randrange(8)
    return f"bit {bit} of byte {at} ({region.name}) flipped", _put(data, at, bytes([data[at] ^ 1 << bit]))


def _set_byte(draw: random.Random, data: bytes) -> Made:
    at, region = _spot(draw, data)
    value = draw.choice((0, 0xFF, 0x7F, 0x80, draw.randrange(256)))
    return f"byte {at} ({region.name}) {data[at]:#04x} -> {value:#04x}", _put(data, at, bytes([value]))


def _zero(draw: random.Random, data: bytes) -> Made:
    start, end, region = _run(draw, data)
    return f"bytes {start}..{end} (from {region.name}) zeroed", _put(data, start, bytes(end - start))


def _overwrite(draw: random.Random, data: bytes) -> Made:
    start, end, region = _run(draw, data)
    return f"bytes {start}..{end} (from {region.name}) overwritten", _put(data, start, draw.randbytes(end - start))


def _swap(draw: random.Random, data: bytes) -> Made:
    first, second = sorted((_spot(draw, data)[0], _spot(draw, data)[0]))
    length = min(draw.choice((1, 4, 8, 64, 512)), second - first, len(data) - second)
    if length < 1:
        return None
    left, right = data[first : first + length], data[second : second + length]
    return f"{length} bytes at {first} and {second} swapped", _put(_put(data, first, right), second, left)


def _insert(draw: random.Random, data: bytes) -> Made:
    at, region = _spot(draw, data)
    extra = draw.choice((b"\0", b"\n", draw.randbytes(1), draw.randbytes(8), bytes(64), draw.randbytes(512)))
    return f"{len(extra)} bytes inserted at {at} ({region.name})", data[:at] + extra + data[at:]


def _delete(draw: random.Random, data: bytes) -> Made:
    start, end, region = _run(draw, data)
    return f"bytes {start}..{end} (from {region.name}) deleted", data[:start] + data[end:]


def _duplicate(draw: random.Random, data: bytes) -> Made:
    start, end, region = _run(draw, data)
    return f"bytes {start}..{end} (from {region.name}) repeated", data[:end] + data[start:]


def _put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


Change = Callable[[random.Random, bytes], Made]
_BYTES: tuple[tuple[str, int, Change], ...] = (
    ("truncate", 8, _truncate),
    ("append", 4, _append),
    ("flip-bit", 22, _flip_bit),
    ("set-byte", 12, _set_byte),
    ("zero-range", 8, _zero),
    ("overwrite-range", 6, _overwrite),
    ("swap-ranges", 4, _swap),
    ("insert", 4, _insert),
    ("delete", 4, _delete),
    ("repeat-range", 2, _duplicate),
)
_SPECIAL: dict[str, Iterable[tuple[str, int, Change]]] = {
    "torch-zip": (("pickle", 24, pickles.in_zip), ("records", 16, records.change)),
    "torch-legacy": (("pickle", 24, pickles.in_legacy),),
    "safetensors": (("header", 40, headers.change),),
    "json": (("json", 30, headers.change_json),),
}
