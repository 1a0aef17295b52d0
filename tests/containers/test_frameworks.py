"""Files of TensorFlow, Orbax, Flax and Keras: what is read from real ones, and that no bytes raise."""

from __future__ import annotations

import random
import struct

import pytest

from ckpt_tools.containers import reader
from ckpt_tools.containers.base import Content
from ckpt_tools.containers.tensor_bundle import OPAQUE
from ckpt_tools.core.crc32c import crc32c, masked
from ckpt_tools.core.source import BytesSource, Extent
from ckpt_tools.model.tensors import TensorRef
from tests.conftest import FIXTURES

BUNDLE, ODD = FIXTURES / "tensorflow/manager/ckpt-3.index", FIXTURES / "tensorflow/odd"
MANIFEST = FIXTURES / "orbax/standard/manifest.ocdbt"
STATE = FIXTURES / "flax/msgpack/state.msgpack"
KERAS = FIXTURES / "keras"

FILES = {
    "tensor-bundle": BUNDLE,
    "ocdbt": MANIFEST,
    "msgpack": STATE,
    "hdf5": KERAS / "model.weights.h5",
    "keras-zip": KERAS / "model.keras",
}


def read(data: bytes, *expected: str) -> Content:
    return reader.read(BytesSource(data, "file"), expected)


@pytest.mark.parametrize("kind", FILES)
def test_a_real_file_is_read_without_a_problem(kind: str) -> None:
    content = read(FILES[kind].read_bytes(), kind)
    assert (content.container, content.readable, content.problems) == (kind, True, ())


@pytest.mark.parametrize("kind", ["tensor-bundle", "ocdbt", "msgpack", "hdf5"])
def test_a_kind_is_told_without_its_name(kind: str) -> None:
    assert read(FILES[kind].read_bytes()).container == kind


@pytest.mark.parametrize("kind", FILES)
def test_a_cut_file_has_a_problem_wherever_it_is_cut(kind: str) -> None:
    data = FILES[kind].read_bytes()
    for size in {*range(1, min(len(data), 64)), *range(0, len(data), max(1, len(data) // 50)), len(data) - 1}:
        content = read(data[:size], kind)
        assert content.problems, size


@pytest.mark.parametrize("kind", FILES)
def test_no_flipped_byte_raises(kind: str) -> None:
    data = FILES[kind].read_bytes()
    generator = random.Random(kind)
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(generator.choice((1, 1, 4))):
            changed[generator.randrange(min(len(changed), 4096))] ^= 1 << generator.randrange(8)
        read(bytes(changed), kind)


def test_the_entries_of_a_bundle_are_its_tensors_and_their_checksums_fit() -> None:
    entries = {entry.name: entry for entry in read((ODD / "odd.index").read_bytes()).facts["entries"]}
    data = (ODD / "odd.data-00000-of-00001").read_bytes()
    plain = [entry for entry in entries.values() if entry.dtype not in OPAQUE]
    assert {crc32c(data[entry.offset : entry.offset + entry.size]) == entry.crc32c for entry in plain} == {True}
    assert len(plain) == 18
    assert sum(entry.size for entry in entries.values()) == len(data)
    found = entries["bfloat16/.ATTRIBUTES/VARIABLE_VALUE"]
    assert (found.dtype, found.shape, found.size) == ("bfloat16", (2, 3), 12)


def test_every_bit_of_the_blocks_of_a_bundle_is_protected() -> None:
    data = BUNDLE.read_bytes()
    blocks = range(935)  # the block of data; behind it an empty one of metadata, which nobody reads
    for place in random.Random(3).sample(blocks, 100):
        changed = bytearray(data)
        changed[place] ^= 4
        assert [problem.kind for problem in read(bytes(changed)).problems] == ["bundle-index-damaged"], place


def _rewritten(entry: bytes) -> bytes:
    """Return a whole table with one entry, checksums and all, as somebody with bad intentions makes it."""
    header = b"\0\0\x02\x08\x01"

    def block(body: bytes) -> bytes:
        body += struct.pack("<II", 0, 1)
        return body + b"\0" + struct.pack("<I", masked(crc32c(body + b"\0")))

    first = block(header + b"\0\x01" + bytes([len(entry)]) + b"a" + entry)
    second = block(b"\0\x01\x02a\0" + bytes([len(first) - 5]))
    footer = bytes([0, 0, len(first), len(second) - 5])
    return first + second + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def test_a_table_made_by_hand_is_read() -> None:
    content = read(_rewritten(bytes.fromhex("0801120412020803280c")))
    assert content.problems == ()
    assert [(entry.name, entry.dtype, entry.shape, entry.size) for entry in content.facts["entries"]] == [
        ("a", "float32", (3,), 12)
    ]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("08011204120208032810", "has 16 bytes for float32 [3]"),
        ("0801180112041202080328 0c", "is in shard 1 of 1"),
        ("0801120412020803280cff", "a number in it does not end"),
        ("0801120912", "an entry ends early"),
        ("0b", "an entry is no protocol buffer"),
    ],
)
def test_an_entry_that_contradicts_itself(entry: str, words: str) -> None:
    (problem,) = read(_rewritten(bytes.fromhex(entry))).problems
    assert problem.kind == "bundle-index-damaged"
    assert words in " ".join(problem.detail)


def test_the_arrays_of_flax_are_where_their_bytes_are() -> None:
    data = STATE.read_bytes()
    content = read(data)
    kernel = content.tensors["params.dense.kernel"]
    assert (kernel.dtype, kernel.shape) == ("float32", (5, 7))
    count = content.tensors["count"].chunks[0].extent
    assert struct.unpack("<q", data[count.offset : count.end]) == (-3,)
    assert isinstance(content.value, dict)
    assert isinstance(content.value["step"], TensorRef)
    assert {name: content.value[name] for name in ("epoch", "rate", "name", "none", "done", "z")} == {
        "epoch": 5,
        "rate": 0.25,
        "name": "täst",
        "none": None,
        "done": True,
        "z": 1 + 2j,
    }
    assert content.tensors["rows"].dtype == "uint16"


def test_arrays_are_stepped_over_not_read() -> None:
    """A large array costs a few reads of headers."""

    class Counting(BytesSource):
        read_bytes = 0

        def read_into(self, offset: int, buffer: memoryview) -> None:
            Counting.read_bytes += len(buffer)
            super().read_into(offset, buffer)

    size = 1 << 24
    raw = b"\x93\x91\xce" + struct.pack(">I", size) + b"\xa5uint8\xc6" + struct.pack(">I", size) + bytes(size)
    data = b"\x82\xa4rows\xc9" + struct.pack(">I", len(raw)) + b"\x01" + raw + b"\xa4last\x07"
    content = reader.read(Counting(data, "file"))
    assert content.problems == ()
    assert content.tensors["rows"].chunks[0].extent == Extent("file", len(data) - 6 - size, size)
    assert Counting.read_bytes < 1 << 18


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\xa4name" + b"\x91" * 2000 + b"\x01",
        b"\xdf\xff\xff\xff\xff\xa4name\x01",
        b"\x81\xa4name\xdd\xff\xff\xff\xff",
        b"\x81\xa4name\xc1",
        b"\x81\xa4name\xc7\x04\x01\x93\x90\xa1",
        b"\x81\x90\x01",
    ],
)
def test_msgpack_with_bad_intentions_is_a_problem(data: bytes) -> None:
    content = read(data, "msgpack")
    assert not content.readable
    assert content.problems[0].kind in ("msgpack-damaged", "file-cut-short")


def test_every_bit_of_a_manifest_is_protected() -> None:
    data = MANIFEST.read_bytes()
    for place in range(4, len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        assert read(bytes(changed), "ocdbt").problems, place


def test_bytes_of_tensors_may_look_like_anything() -> None:
    for data in (bytes(4096), b"PK\x03\x04" + bytes(60), b"\x80\x02.", b"<htm", b"{}"):
        assert read(data, "raw").container == "raw"
        assert read(data, "raw").problems == ()
