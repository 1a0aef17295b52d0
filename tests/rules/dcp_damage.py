"""Named damages to directories of torch.distributed.checkpoint."""

from __future__ import annotations

import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

from ckpt_tools.containers import reader
from ckpt_tools.core.listing import scan
from tests.rules import dcp_metadata as meta
from tests.rules.damage import Damage
from tests.rules.dcp_metadata import edited

WEIGHT, MOMENT, RATE = "model.first.weight", "optimizer.state.first.weight.exp_avg", "optimizer.param_groups.0.lr"


def grown(name: str, data: bytes = b"more") -> Damage:
    def done(directory: Path) -> None:
        with (directory / name).open("ab") as file:
            file.write(data)

    return done


def cut_by(name: str, count: int) -> Damage:
    def done(directory: Path) -> None:
        os.truncate(directory / name, (directory / name).stat().st_size - count)

    return done


def zeroed(name: str) -> Damage:
    def done(directory: Path) -> None:
        (directory / name).write_bytes(bytes((directory / name).stat().st_size))

    return done


def flipped(name: str) -> Damage:
    """Flip a bit in the middle of a file."""

    def done(directory: Path) -> None:
        raw = bytearray((directory / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (directory / name).write_bytes(bytes(raw))

    return done


def newer(name: str, seconds: int = 3600) -> Damage:
    """Let a file have been written later than the others."""

    def done(directory: Path) -> None:
        later = max(path.stat().st_mtime for path in directory.iterdir()) + seconds
        os.utime(directory / name, (later, later))

    return done


def long_ago(directory: Path) -> None:
    """Let everything be an hour old, as it was written."""
    then = time.time() - 3600
    for path in directory.rglob("*"):
        os.utime(path, (then, then))


def exchanged(one: str, other: str) -> Damage:
    """Give two files each other's names."""

    def done(directory: Path) -> None:
        first, second = (directory / one).read_bytes(), (directory / other).read_bytes()
        (directory / one).write_bytes(second)
        (directory / other).write_bytes(first)

    return done


def with_number(name: str, tensor: str, number: float) -> Damage:
    """Write another number into a 0-dim tensor of a torch file, with the checksum that goes with it."""

    def done(directory: Path) -> None:
        with scan(str(directory)).open(name) as source:
            (chunk,) = reader.read(source).tensors[tensor].chunks
        data = bytearray((directory / name).read_bytes())
        at = slice(chunk.extent.offset, chunk.extent.end)
        old, data[at] = bytes(data[at]), struct.pack("<f", number)
        crc, new = (zlib.crc32(each).to_bytes(4, "little") for each in (old, data[at]))
        (directory / name).write_bytes(bytes(data).replace(crc, new))

    return done


def _blob(directory: Path, fqn: str, *offsets: int) -> tuple[Path, Any]:
    found = meta.stored(meta.load((directory / ".metadata").read_bytes()), fqn, *offsets)
    return directory / found.relative_path, found


def overwritten_blob(fqn: str, *offsets: int, data: bytes = b"\xff" * 64, at: int = 0) -> Damage:
    """Write over the beginning of one blob."""

    def done(directory: Path) -> None:
        path, found = _blob(directory, fqn, *offsets)
        with path.open("r+b") as file:
            file.seek(found.offset + at)
            file.write(data)

    return done


def flipped_bit(fqn: str, *offsets: int) -> Damage:
    """Flip a bit of a tensor's elements, which nothing but its checksum tells."""

    def done(directory: Path) -> None:
        path, found = _blob(directory, fqn, *offsets)
        raw = bytearray(path.read_bytes())
        begin = raw.index(b"archive/data/0", found.offset)
        at = begin + len(b"archive/data/0") + int.from_bytes(raw[begin - 2 : begin], "little")
        raw[at] ^= 4
        path.write_bytes(bytes(raw))

    return done


# Changes of the metadata -----------------------------------------------------------------------------------


def lost_entry(fqn: str, *offsets: int) -> Damage:
    return edited(lambda m: m.storage_data.pop(meta.key_of(m, fqn, *offsets)))


def lost_description(fqn: str) -> Damage:
    return edited(lambda m: m.state_dict_metadata.pop(fqn))


def moved(fqn: str, *offsets: int, by: int) -> Damage:
    def change(m: Any) -> None:
        meta.stored(m, fqn, *offsets).offset += by

    return edited(change)


def named(fqn: str, path: str) -> Damage:
    def change(m: Any) -> None:
        meta.stored(m, fqn).relative_path = path

    return edited(change)


def shaped(fqn: str, *shape: int) -> Damage:
    """Let the metadata say another shape of a whole tensor."""

    def change(m: Any) -> None:
        m.state_dict_metadata[fqn].size = meta.size(*shape)

    return edited(change)


def dropped_chunk(fqn: str, number: int) -> Damage:
    """Take a chunk out of both maps."""

    def change(m: Any) -> None:
        gone = m.state_dict_metadata[fqn].chunks.pop(number)
        m.storage_data.pop(meta.key_of(m, fqn, *gone.offsets))

    return edited(change)


def resized_chunk(fqn: str, number: int, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Damage:
    """Give a chunk another place and size, in both maps."""

    def change(m: Any) -> None:
        chunks = m.state_dict_metadata[fqn].chunks
        key = meta.key_of(m, fqn, *chunks[number].offsets)
        info = m.storage_data.pop(key)
        chunks[number] = meta.chunk(offsets, sizes)
        m.storage_data[meta.index(fqn, *offsets)] = info

    return edited(change)


def retyped(fqn: str, dtype: str) -> Damage:
    def change(m: Any) -> None:
        properties = m.state_dict_metadata[fqn].properties
        properties._state = (meta.stand_in("torch", dtype), *properties._state[1:])

    return edited(change)


def with_attribute(name: str, value: Any) -> Damage:
    return edited(lambda m: setattr(m, name, value))


def without_attribute(name: str) -> Damage:
    return edited(lambda m: delattr(m, name))


def with_hostile_global(directory: Path) -> None:
    """Let the metadata call ``os.system`` when torch loads it."""
    path = directory / ".metadata"
    call = meta.stand_in("posix", "system")("echo pwned")
    value = meta.load(path.read_bytes())
    value.extra = call
    path.write_bytes(meta.dump(value))


def of_python_3_13(directory: Path) -> None:
    """Name the path class as Python 3.13 does."""

    def change(m: Any) -> None:
        m.storage_meta.checkpoint_id = meta.stand_in("pathlib._local", "PosixPath")("/", "scratch", "run")

    edited(change)(directory)
