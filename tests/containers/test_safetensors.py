"""safetensors: every rule of the format, each fault told once, and the safetensors package as the judge."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.containers import safetensors, safetensors_header
from ckpt_tools.containers.base import Content
from ckpt_tools.core.source import BytesSource, Extent, FileSource, Meter
from ckpt_tools.model.tensors import DTYPE_BITS, Chunk, TensorRef

A = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
B = {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]}
FIELDS = '"dtype":"F32","shape":[4],"data_offsets":[0,16]'


def entry(dtype: str, shape: Any, begin: int, end: int, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def make(header: Any, data: bytes | int = b"") -> bytes:
    """Put a file together from a header (object, text or bytes) and its data (or a number of zero bytes).

    In a text ``@`` stands for the fields of a tensor of 16 bytes.
    """
    if not isinstance(header, str | bytes):
        header = json.dumps(header).encode()
    raw = header.replace("@", FIELDS).encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + (bytes(data) if isinstance(data, int) else data)


def compact(header: Any, data: bytes | int = b"") -> bytes:
    return make(json.dumps(header, separators=(",", ":")).encode(), data)


def read(raw: bytes) -> Content:
    return safetensors.read(BytesSource(raw, "model.safetensors"))


def kinds(raw: bytes) -> list[str]:
    return [problem.kind for problem in read(raw).problems]


GOOD: dict[str, bytes] = {
    "no tensors": make("{}"),
    "only metadata": make({"__metadata__": {"format": "pt"}}),
    "two tensors": make({"a": A, "b": B}, 24),
    "compact": compact({"__metadata__": {"format": "pt"}, "a": A, "b": B}, 24),
    "entries not in order of position": make({"b": B, "a": A}, 24),
    "empty tensors on boundaries": compact(
        {
            "z": entry("F32", [0], 0, 0),
            "a": A,
            "y": entry("F16", [0, 3], 16, 16),
            "x": entry("F16", [3, 0], 16, 16),
            "b": B,
            "w": entry("U8", [0], 24, 24),
        },
        24,
    ),
    "empty with huge other dimensions": make({"a": entry("F32", [0, 1 << 40, 1 << 40], 0, 0)}),
    "scalar": make({"a": entry("F32", [], 0, 4)}, 4),
    "seventy dimensions": compact({"a": entry("U8", [1] * 70, 0, 1)}, 1),
    "header length no multiple of 8": make({"a": A} | {"x": entry("U8", [0], 0, 0)}, 16),
    "unaligned tensor": compact({"a": entry("U8", [1], 0, 1), "b": entry("F32", [1], 1, 5)}, 5),
    "leading spaces": make("   {}"),
    "trailing white space": make("{} \n\t\r"),
    "compact with padding": make('{"a":{@}}      ', 16),
    "further field": make({"a": entry("F32", [4], 0, 16, note=[[1.5, {"x": None}]])}, 16),
    "further field twice": make('{"a":{@,"x":1,"x":2}}', 16),
    "metadata null": make('{"__metadata__":null,"a":{@}}', 16),
    "metadata empty": make('{"__metadata__":{},"a":{@}}', 16),
    "metadata last": make('{"a":{@},"__metadata__":{"a":"b"}}', 16),
    "metadata key twice": make('{"__metadata__":{"k":"1","k":"2"},"a":{@}}', 16),
    "metadata with escapes": make('{"__metadata__":{"k":"\\ud83d\\ude00"},"a":{@}}', 16),
    "empty name": make('{"":{@}}', 16),
    "escaped name": make('{"a\\"\\u0000\\ud83d\\ude00":{@}}', 16),
    "name of other letters": make('{"\u5c42.\u00e9":{@}}', 16),
    "bool byte 7": make({"a": entry("BOOL", [1], 0, 1)}, b"\x07"),
    "F4 in whole bytes": make({"a": entry("F4", [2], 0, 1)}, 1),
    "F6 in whole bytes": make({"a": entry("F6_E2M3", [4], 0, 3)}, 3),
}

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "file-cut-short"),
    "seven bytes": (b"\1\0\0\0\0\0\0", "file-cut-short"),
    "only the length": (make({"a": A}, 16)[:8], "file-cut-short"),
    "inside the header": (make({"a": A}, 16)[:40], "file-cut-short"),
    "one byte short": (make({"a": A, "b": B}, 23), "file-cut-short"),
    "second half missing": (compact({"a": A, "b": B}, 8), "file-cut-short"),
    "one byte more": (make({"a": A, "b": B}, 25), "trailing-bytes"),
    "bytes after no tensors": (make("{}", 3), "trailing-bytes"),
    "length zero": (bytes(8), "header-unreadable"),
    "all zeros": (bytes(999), "header-unreadable"),
    "length above the limit": (struct.pack("<Q", 100_000_001) + b"{}", "header-too-large"),
    "length 2**60": (struct.pack("<Q", 1 << 60) + b"{}", "header-too-large"),
    "length 2**64-1": (b"\xff" * 8, "header-too-large"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "header-too-large"),
    "NUL padding": (make('{"a":{@}}\0\0\0', 16), "header-unreadable"),
    "second value": (make("{}{}"), "header-unreadable"),
    "byte order mark": (make(b"\xef\xbb\xbf{}"), "header-unreadable"),
    "NaN": (make('{"a":{@,"x":NaN}}', 16), "header-unreadable"),
    "Infinity": (make('{"a":{@,"x":-Infinity}}', 16), "header-unreadable"),
    "not UTF-8": (make(b'{"\xff":{}}'), "header-unreadable"),
    "surrogate in UTF-8": (make(b'{"\xed\xa0\x80":{}}'), "header-unreadable"),
    "half a surrogate pair": (make('{"\\ud800":{@}}', 16), "header-unreadable"),
    "half a surrogate pair in metadata": (make('{"__metadata__":{"a":"\\udc00"}}'), "header-unreadable"),
    "control character": (make('{"a\tb":{@}}', 16), "header-unreadable"),
    "a list": (make("[]"), "header-unreadable"),
    "null": (make("null"), "header-unreadable"),
    "a number": (make("12"), "header-unreadable"),
    "a text": (make('"x"'), "header-unreadable"),
    "true": (make("true"), "header-unreadable"),
    "white space": (make("    "), "header-unreadable"),
    "unfinished": (make('{"a":{@}', 16), "header-unreadable"),
    "trailing comma": (make('{"a":{@},}', 16), "header-unreadable"),
    "Python quotes": (make("{'a':1}"), "header-unreadable"),
    "deep": (make("[" * 100_000), "header-unreadable"),
    "deep and closed": (make('{"a":' + "[" * 5000 + "]" * 5000 + "}"), "header-unreadable"),
    "thousands of digits": (make('{"a":' + "7" * 5000 + "}"), "header-unreadable"),
    "first tensor not at 0": (make({"a": entry("F32", [1], 4, 8)}, 8), "tensor-gap"),
    "hole": (compact({"a": A, "b": entry("F32", [2], 20, 28)}, 28), "tensor-gap"),
    "overlap": (compact({"a": A, "b": entry("F32", [2], 12, 20)}, 20), "tensor-overlap"),
    "two names on one range": (compact({"a": A, "b": A}, 16), "tensor-overlap"),
    "empty tensor inside another": (make({"a": A, "z": entry("F32", [0], 8, 8)}, 16), "tensor-overlap"),
    "begin after end": (make({"a": entry("F32", [4], 16, 0), "b": B}, 24), "tensor-entry-invalid"),
    "shape too large": (compact({"a": entry("F32", [5], 0, 16), "b": B}, 24), "tensor-size-mismatch"),
    "range too large": (compact({"a": entry("F32", [4], 0, 20), "b": B}, 24), "tensor-size-mismatch"),
    "empty shape with bytes": (make({"a": entry("F32", [0], 0, 16)}, 16), "tensor-size-mismatch"),
    "F4 in half bytes": (make({"a": entry("F4", [3], 0, 2)}, 2), "tensor-size-mismatch"),
    "F6 in half bytes": (make({"a": entry("F6_E3M2", [2], 0, 1)}, 1), "tensor-size-mismatch"),
    "past the end": (compact({"a": A, "b": entry("F32", [2], 1600, 1608)}, 24), "tensor-out-of-range"),
    "first moved past the end": (make({"a": entry("F32", [4], 100, 116), "b": B}, 24), "tensor-out-of-range"),
    "end far past the end": (make({"a": A, "b": entry("F32", [2], 16, 2400)}, 24), "tensor-out-of-range"),
    "unknown type": (make({"a": entry("F99", [4], 0, 16)}, 16), "unknown-dtype"),
    "lower case type": (make({"a": entry("f32", [4], 0, 16)}, 16), "unknown-dtype"),
    "C128": (make({"a": entry("C128", [1], 0, 16)}, 16), "unknown-dtype"),
    "size overflows": (make({"a": entry("F32", [1 << 63, 4], 0, 0)}), "tensor-entry-invalid"),
    "bits overflow": (make({"a": entry("F32", [1 << 60], 0, 0)}), "tensor-entry-invalid"),
    "overflow before a zero": (make({"a": entry("F32", [1 << 40, 1 << 40, 0], 0, 0)}), "tensor-entry-invalid"),
    "dimension past 64 bits": (make({"a": entry("F32", [1 << 70], 0, 0)}), "tensor-entry-invalid"),
    "negative dimension": (make({"a": entry("F32", [-1], 0, 0)}), "tensor-entry-invalid"),
    "float dimension": (make({"a": entry("F32", [2.0], 0, 8)}, 8), "tensor-entry-invalid"),
    "true as dimension": (make({"a": entry("F32", [True], 0, 4)}, 4), "tensor-entry-invalid"),
    "text as dimension": (make({"a": entry("F32", ["1"], 0, 4)}, 4), "tensor-entry-invalid"),
    "shape null": (make({"a": entry("F32", None, 0, 4)}, 4), "tensor-entry-invalid"),
    "shape a text": (make({"a": entry("F32", "ab", 0, 4)}, 4), "tensor-entry-invalid"),
    "shape an object": (make({"a": entry("F32", {}, 0, 4)}, 4), "tensor-entry-invalid"),
    "minus zero": (make('{"a":{"dtype":"U8","shape":[1],"data_offsets":[-0,1]}}', 1), "tensor-entry-invalid"),
    "dtype null": (make({"a": {**A, "dtype": None}}, 16), "tensor-entry-invalid"),
    "dtype a list": (make({"a": {**A, "dtype": []}}, 16), "tensor-entry-invalid"),
    "no dtype": (make('{"a":{"shape":[4],"data_offsets":[0,16]}}', 16), "tensor-entry-invalid"),
    "no shape": (make('{"a":{"dtype":"F32","data_offsets":[0,16]}}', 16), "tensor-entry-invalid"),
    "no offsets": (make('{"a":{"dtype":"F32","shape":[4]}}', 16), "tensor-entry-invalid"),
    "float offset": (make({"a": {**A, "data_offsets": [0.0, 16]}}, 16), "tensor-entry-invalid"),
    "negative offset": (make({"a": {**A, "data_offsets": [-16, 0]}}, 16), "tensor-entry-invalid"),
    "offset past 64 bits": (make({"a": {**A, "data_offsets": [0, 1 << 64]}}, 16), "tensor-entry-invalid"),
    "one offset": (make({"a": {**A, "data_offsets": [0]}}, 16), "tensor-entry-invalid"),
    "three offsets": (make({"a": {**A, "data_offsets": [0, 16, 16]}}, 16), "tensor-entry-invalid"),
    "offsets a text": (make({"a": {**A, "data_offsets": "ab"}}, 16), "tensor-entry-invalid"),
    "offsets an object": (make({"a": {**A, "data_offsets": {"0": 0, "1": 16}}}, 16), "tensor-entry-invalid"),
    "dtype twice": (make('{"a":{@,"dtype":"F32"}}', 16), "tensor-entry-invalid"),
    "entry null": (make('{"a":null}'), "tensor-entry-invalid"),
    "entry a number": (make('{"a":1}'), "tensor-entry-invalid"),
    "further field too deep": (make('{"a":{@,"x":$}}'.replace("$", "[" * 126 + "]" * 126), 16), "tensor-entry-invalid"),
    "further field out of range": (make('{"a":{@,"x":1e999}}', 16), "tensor-entry-invalid"),
    "further field half a pair": (make('{"a":{@,"x":"\\ud800"}}', 16), "tensor-entry-invalid"),
    "metadata twice": (make('{"__metadata__":{},"a":{@},"__metadata__":{}}', 16), "metadata-invalid"),
    "metadata with a number": (make({"__metadata__": {"a": 1}, "b": A}, 16), "metadata-invalid"),
    "metadata with null": (make({"__metadata__": {"a": None}, "b": A}, 16), "metadata-invalid"),
    "metadata a list": (make({"__metadata__": [], "b": A}, 16), "metadata-invalid"),
    "metadata a text": (make({"__metadata__": "pt", "b": A}, 16), "metadata-invalid"),
}

STRICTER: dict[str, tuple[bytes, str, str]] = {
    "tensor twice": (
        make('{"a":{@},"a":{@}}', 16),
        "duplicate-tensor",
        "the reference reader keeps the last entry and says nothing",
    ),
    "tensor twice, the first bogus": (
        make('{"a":{"dtype":"U8","shape":[9],"data_offsets":[99,2]},"a":{@}}', 16),
        "duplicate-tensor",
        "the reference reader keeps the last entry and says nothing",
    ),
    "entry as a list": (
        make({"a": ["F32", [4], [0, 16]]}, 16),
        "tensor-entry-invalid",
        "an accident of the reference reader's decoder; no other reader takes it",
    ),
    "dtype as an object": (
        make({"a": {**A, "dtype": {"F32": None}}}, 16),
        "tensor-entry-invalid",
        "an accident of the reference reader's decoder; no other reader takes it",
    ),
}
"""Accepted by the reference reader and a problem here: file, kind, reason."""


def accepted(raw: bytes) -> bool:
    """Ask the safetensors package."""
    library = pytest.importorskip("safetensors")
    try:
        library.deserialize(raw)
    except library.SafetensorError:
        return False
    except KeyError:
        return True  # decoded, and the in-memory loader has no name for the sub-byte types
    return True


@pytest.mark.parametrize("case", GOOD)
def test_good_files_have_no_problem(case: str) -> None:
    content = read(GOOD[case])
    assert content.problems == ()
    assert content.readable
    assert all(len(tensor.chunks) == 1 for tensor in content.tensors.values())


@pytest.mark.parametrize("case", BAD)
def test_one_fault_gives_one_problem(case: str) -> None:
    raw, kind = BAD[case]
    assert kinds(raw) == [kind]


@pytest.mark.parametrize("case", STRICTER)
def test_what_is_told_though_loaders_accept_it(case: str) -> None:
    raw, kind, _ = STRICTER[case]
    assert kinds(raw) == [kind]
    assert accepted(raw)


@pytest.mark.parametrize("case", [*GOOD, *BAD])
def test_the_safetensors_package_agrees(case: str) -> None:
    raw = GOOD[case] if case in GOOD else BAD[case][0]
    assert accepted(raw) is (case in GOOD)


def test_tensors_metadata_and_facts() -> None:
    raw = compact({"__metadata__": {"format": "pt"}, "b": B, "a": A, "c": entry("F8_E4M3", [3], 24, 27)}, 27)
    source = BytesSource(b"#" * 5 + raw, "dir/model.safetensors").window(5, len(raw))
    content = safetensors.read(source)
    length = struct.unpack("<Q", raw[:8])[0]
    start = 8 + length
    extent = Extent("dir/model.safetensors", 5 + start, 16)
    assert list(content.tensors) == ["a", "b", "c"]
    assert content.tensors["a"] == TensorRef("a", "float32", (4,), (Chunk((0,), (4,), extent),))
    assert content.tensors["c"].dtype == "float8_e4m3fn"
    assert content.facts == {
        "metadata": {"format": "pt"},
        "header_length": length,
        "data_start": start,
        "covered": len(raw),
        "min_version": "0.4.3",
        "absent": (),
    }


def test_every_type_has_the_bits_of_the_format() -> None:
    for name, (dtype, _) in safetensors_header.DTYPES.items():
        size = 12 * DTYPE_BITS[dtype] // 8
        raw = compact({"a": entry(name, [3, 4], 0, size)}, size)
        assert kinds(raw) == []
        assert read(raw).tensors["a"].nbytes == size
        assert accepted(raw)


def test_both_ways_of_reading_agree() -> None:
    header = {"__metadata__": {"format": "pt"}} | {f"layer.{i}": entry("BF16", [2, i], i * i, i * i) for i in (0,)}
    header |= {"a": entry("F16", [], 0, 2), "b": entry("I64", [1, 2, 1], 2, 18), "c": entry("U8", [0, 3], 18, 18)}
    quick, slow = compact(header, 18), make(header, 18)
    assert read(quick).tensors.keys() == read(slow).tensors.keys()
    for name, tensor in read(quick).tensors.items():
        other = read(slow).tensors[name]
        assert (tensor.dtype, tensor.shape, tensor.chunks[0].sizes) == (other.dtype, other.shape, other.chunks[0].sizes)
    assert read(quick).facts["metadata"] == read(slow).facts["metadata"]


def test_a_cut_file_names_the_first_tensor_and_both_numbers() -> None:
    raw = compact({"a": A, "b": B}, 24)
    content = read(raw[:-10])
    (problem,) = content.problems
    assert problem.kind == "file-cut-short"
    assert problem.at.tensor == "a"
    assert f"needs {len(raw)} bytes, has {len(raw) - 10}" in problem.detail
    assert content.facts["absent"] == ("a", "b")
    assert [tensor.chunks for tensor in content.tensors.values()] == [(), ()]
    assert read(raw[:-1]).problems[0].at.tensor == "b"
    assert len(read(raw[:-1]).tensors["a"].chunks) == 1


def test_trailing_bytes_say_where_to_cut() -> None:
    raw = compact({"a": A, "b": B}, 24)
    content = read(raw + b"xyz")
    assert content.facts["covered"] == len(raw)
    assert content.problems[0].message == "3 bytes follow the data"
    assert content.problems[0].help is not None
    assert content.readable
    assert read(compact({"a": entry("F99", [4], 0, 16)}, 17)).problems[-1].help is None


@pytest.mark.parametrize("cut", [True, False])
def test_hundreds_of_faults_are_one_problem_with_ten_names(cut: bool) -> None:
    count = 500
    header = {f"t{i:03}": entry("F32", [1 if cut else 2], 4 * i, 4 * i + 4) for i in range(count)}
    (problem,) = read(compact(header, 4 if cut else 4 * count)).problems
    assert len(problem.detail) <= 12
    assert ("499 of 500" in problem.detail[1]) if cut else ("... and 490 more" in problem.detail)


@pytest.mark.parametrize(
    ("header", "size", "kind", "tensor"),
    [
        # A tensor between two others is moved; the hole it leaves and the one after it are not told again.
        ({"a": A, "b": entry("F32", [2], 12, 20), "c": entry("U8", [3], 24, 27)}, 27, "tensor-overlap", "b"),
        ({"a": A, "b": entry("F32", [2], 20, 28), "c": entry("U8", [9], 24, 33)}, 33, "tensor-gap", "b"),
        ({"a": A, "b": entry("F32", [2], 0, 8), "c": entry("U8", [3], 24, 27)}, 27, "tensor-overlap", "a"),
        ({"a": A, "b": entry("F32", [2], 900, 908), "c": entry("U8", [3], 24, 27)}, 27, "tensor-out-of-range", "b"),
        ({"a": entry("F32", [4], 0, 900), "b": B, "c": entry("U8", [3], 24, 27)}, 27, "tensor-out-of-range", "a"),
        # An entry without a range accounts for the hole where its bytes are, at the end too.
        ({"a": A, "b": None, "c": entry("U8", [3], 24, 27)}, 27, "tensor-entry-invalid", "b"),
        ({"a": A, "b": B, "c": None}, 27, "tensor-entry-invalid", "c"),
        ({"a": entry("F32", [4], 16, 0), "b": B, "c": entry("U8", [3], 24, 27)}, 27, "tensor-entry-invalid", "a"),
        ({"a": entry("X", [4], 0, 16), "b": B}, 24, "unknown-dtype", "a"),
    ],
)
def test_one_cause_is_told_once(header: dict[str, Any], size: int, kind: str, tensor: str) -> None:
    for raw in (make(header, size), compact(header, size)):
        (problem,) = read(raw).problems
        assert (problem.kind, problem.at.tensor) == (kind, tensor)


def test_independent_faults_are_all_told() -> None:
    header = {"a": entry("F32", [5], 0, 16), "b": entry("F77", [1], 16, 20), "c": entry("U8", [4], 22, 26)}
    assert kinds(compact(header | {"__metadata__": {"x": 1}}, 30)) == [
        "metadata-invalid",
        "unknown-dtype",
        "tensor-size-mismatch",
        "tensor-gap",
        "trailing-bytes",
    ]


def test_a_tensor_that_does_not_fit_has_no_bytes() -> None:
    content = read(compact({"a": entry("F32", [5], 0, 16), "b": B}, 24))
    assert content.tensors["a"].chunks == ()
    assert len(content.tensors["b"].chunks) == 1


def test_hostile_names_are_shown_on_one_printable_line() -> None:
    name = "\x1b[2J\n" + "x" * 5000
    (problem,) = read(make({name: entry("F32", [5], 0, 16)}, 16)).problems
    text = problem.message + "".join(problem.detail)
    assert text.isprintable()
    assert len(text) < 1000
    assert problem.at.tensor == name


def test_only_the_header_is_read(tmp_path: Path) -> None:
    raw = compact({"a": entry("U8", [1 << 30], 0, 1 << 30)})
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + (1 << 30))
    meter = Meter()
    with FileSource(path, "model.safetensors", meter) as source:
        assert safetensors.read(source).problems == ()
    assert meter.bytes_read == len(raw)


def test_a_length_beyond_the_file_is_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 90_000_000) + b"{")
    meter = Meter()
    with FileSource(path, "model.safetensors", meter) as source:
        assert [problem.kind for problem in safetensors.read(source).problems] == ["file-cut-short"]
    assert meter.bytes_read == 8


def test_a_large_header_of_brackets_is_not_decoded() -> None:
    many = safetensors_header.DENSE_FROM
    assert kinds(make('{"a":[' + "[]," * (many // 3) + "1]}")) == ["header-unreadable"]
    assert kinds(make('{"__metadata__":{"a":"' + "[]," * (many // 3) + '"}}')) == []
    assert kinds(make('{"__metadata__":{"a":"' + '{\\"' * (many // 3) + '"}}')) == []


def test_a_cut_at_every_byte_is_a_problem() -> None:
    for raw in (GOOD["compact"], GOOD["entries not in order of position"], GOOD["only metadata"]):
        for end in range(len(raw)):
            assert kinds(raw[:end]) in (["file-cut-short"], ["header-unreadable"]), end
            assert not accepted(raw[:end])


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_never_raise(raw: bytes, framed: bool) -> None:
    file = make(raw) if framed else raw
    assert bool(read(file).problems) is not accepted(file)


@settings(deadline=None, max_examples=1000)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_changed_bytes_never_raise_and_the_package_agrees(case: str, data: st.DataObject) -> None:
    raw = bytearray(GOOD[case])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b'0129-.,:{}[]" e\\')))
    file = bytes(raw)
    problems = read(file).problems
    others = [problem for problem in problems if problem.kind != "duplicate-tensor"]
    if others or len(others) == len(problems):
        assert bool(others) is not accepted(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.sampled_from(["F32", "U8", "x", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "U8", "F4", "F6_E2M3", "BOOL", "f32"]) | JSON,
            "shape": st.lists(st.integers(0, 5), max_size=3) | JSON,
            "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | JSON,
        }
    ),
)


@settings(deadline=None, max_examples=500)
@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), ENTRIES, max_size=4), st.integers(0, 40), st.booleans())
def test_any_header_is_judged_as_the_package_judges_it(header: dict[str, Any], size: int, tight: bool) -> None:
    raw = compact(header, size) if tight else make(header, size)
    by_accident = any(
        isinstance(found, list) or (isinstance(found, dict) and isinstance(found.get("dtype"), dict))
        for found in header.values()
    )
    if not by_accident:
        assert bool(read(raw).problems) is not accepted(raw)


def test_the_packages_own_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    tensors = {
        "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
        "scalar": torch.tensor(3.0),
        "none": torch.empty(0, 4),
        "long": torch.arange(5),
        "float8": torch.zeros(7, dtype=torch.float8_e4m3fn),
    }
    library.save_file(tensors, path, metadata={"format": "pt"})
    raw = path.read_bytes()
    with FileSource(path, path.name) as source:
        content = safetensors.read(source)
    assert content.problems == ()
    assert content.facts["metadata"] == {"format": "pt"}
    assert content.facts["covered"] == len(raw)
    for name, tensor in tensors.items():
        found = content.tensors[name]
        extent = found.chunks[0].extent
        assert found.dtype == str(tensor.dtype).removeprefix("torch.")
        assert found.shape == tuple(tensor.shape)
        assert raw[extent.offset : extent.end] == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
