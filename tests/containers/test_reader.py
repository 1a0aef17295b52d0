"""What a file is, by its bytes: every kind, the ties that an expectation breaks, files that are not what they seem."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.containers import kinds, reader
from ckpt_tools.containers.base import Content
from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.source import BytesSource, FileSource, Meter

WEIGHTS = ("safetensors",)
TORCH = ("torch-zip", "torch-legacy")
OID = "sha256:" + "ab" * 32
POINTER = f"version https://git-lfs.github.com/spec/v1\noid {OID}\nsize 4976698672\n".encode()
HEADER = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
SAFETENSORS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(4)
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in\n to Hub</title></head><body>x</body></html>"
S3 = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e") + bytes.fromhex("80024de9032e")


def tar() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"), io.BytesIO())
    return target.getvalue()


def kind(raw: bytes, *expected: str) -> str:
    return reader.identify(BytesSource(raw, "file"), expected)


def read(raw: bytes, *expected: str) -> Content:
    return reader.read(BytesSource(raw, "file"), expected)


@pytest.mark.parametrize(
    ("raw", "expected", "answer"),
    [
        (b"", WEIGHTS, "empty"),
        (bytes(1), (), "zeros"),
        (bytes(10_000), WEIGHTS, "zeros"),
        (bytes(10_000), ("json",), "zeros"),
        (bytes(9_999) + b"\1", TORCH, "unknown"),
        (bytes(9_999) + b"\1", WEIGHTS, "safetensors"),
        (POINTER, WEIGHTS, "git-lfs-pointer"),
        (POINTER, (), "git-lfs-pointer"),
        (POINTER.replace(b"\n", b"\r\n"), TORCH, "git-lfs-pointer"),
        (POINTER, ("json",), "git-lfs-pointer"),
        (POINTER, ("text",), "git-lfs-pointer"),
        (POINTER[:60], TORCH, "git-lfs-pointer"),
        (PAGE, WEIGHTS, "html"),
        (b"\xef\xbb\xbf\n  <html lang=en>", TORCH, "html"),
        (b"<!-- cached -->\n<HTML>", (), "html"),
        (b'<?xml version="1.0"?><!DOCTYPE html PUBLIC "x">', TORCH, "html"),
        (PAGE, ("json",), "html"),
        (PAGE, ("text",), "text"),
        (S3, WEIGHTS, "error-text"),
        (b"<Error><Code>NoSuchKey</Code></Error>", (), "error-text"),
        (b'{"error":"Repository not found"}', WEIGHTS, "error-text"),
        (b'{"error":"Repository not found"}', (), "error-text"),
        (b'{"error":"Repository not found"}', ("json",), "error-text"),
        (b'{"message": "Not Found", "documentation_url": "https://x"}', TORCH, "error-text"),
        (b'{"error": 1, "model_type": "llama"}', WEIGHTS, "json"),
        (b'{"type": "x", "path": "y"}', (), "json"),
        (b"Entry not found", WEIGHTS, "error-text"),
        (b"Entry not found", (), "error-text"),
        (b"Access denied", TORCH, "error-text"),
        (b"Access to model meta-llama/Llama is restricted.", (), "error-text"),
        (b"hello", TORCH, "error-text"),
        (b"hello", (), "text"),
        (b"hello", ("text",), "text"),
        (b"Not found", ("text",), "text"),
        (b"word " * 50_000, WEIGHTS, "text"),
        (gzip.compress(SAFETENSORS, mtime=0), WEIGHTS, "gzip"),
        (lzma.compress(SAFETENSORS), WEIGHTS, "xz"),
        (bz2.compress(SAFETENSORS), WEIGHTS, "bzip2"),
        (bz2.compress(b""), (), "bzip2"),
        (bytes.fromhex("28b52ffd") + b"rest", TORCH, "zstd"),
        (tar(), TORCH, "tar"),
        (b"7z\xbc\xaf\x27\x1c\0\4", (), "7z"),
        (b"Rar!\x1a\x07\x01\0", (), "rar"),
        (b"\x89HDF\r\n\x1a\n\0\0", TORCH, "hdf5"),
        (b"GGUF\3\0\0\0" + bytes(16), WEIGHTS, "gguf"),
        (b"\x93NUMPY\1\0v\0", (), "npy"),
        (b"PK\3\4\0\0", (), "torch-zip"),
        (b"PK\3\4\0\0", WEIGHTS, "torch-zip"),
        (b"PK", TORCH, "torch-zip"),
        (LEGACY, WEIGHTS, "torch-legacy"),
        (LEGACY[:9], (), "torch-legacy"),
        (LEGACY[:5], TORCH, "torch-legacy"),
        (b"\x80\x04\x95" + bytes(7) + b"N.", (), "pickle"),
        (b"\x80\x02}q\0.", TORCH, "pickle"),
        (b"\x80", ("pickle",), "pickle"),
        (b"\x80", WEIGHTS, "safetensors"),
        (SAFETENSORS, (), "safetensors"),
        (SAFETENSORS, TORCH, "safetensors"),
        (SAFETENSORS[:30], (), "safetensors"),
        (SAFETENSORS[:8], WEIGHTS, "safetensors"),
        (SAFETENSORS[:3], WEIGHTS, "safetensors"),
        (SAFETENSORS[:3], TORCH, "unknown"),
        (struct.pack("<Q", 9) + b" \n" + b'{"a":{}}', (), "safetensors"),
        (struct.pack("<Q", 2) + b"[]", WEIGHTS, "safetensors"),
        (struct.pack("<Q", 2) + b"[]", (), "unknown"),
        (struct.pack("<Q", 1 << 60) + HEADER, (), "safetensors"),
        (b'\n\n{\n  "a": {}\n}', WEIGHTS, "json"),
        (b"{}", WEIGHTS, "json"),
        (b"{}", (), "json"),
        (b"[1, 2]", TORCH, "json"),
        (b'\xef\xbb\xbf{"a": 1}', (), "json"),
        (b'{"a": 1}\n{"a": 2}\n', (), "jsonl"),
        (b'{"a": 1}\n{"a": 2}\n', ("json",), "json"),
        (b'{"a": 1}\n{"a": 2}\n', ("json", "jsonl"), "jsonl"),
        (b'{\n"a": 1}\n', ("json", "jsonl"), "json"),
        (b'{"a": 1}\n', ("jsonl",), "jsonl"),
        (b'{"global_step": 1', ("json",), "json"),
        (b"{%- if messages %}{{ x }}", (), "text"),
        (b"{{ bos_token }}", ("text",), "text"),
        (b"[INFO] saved", (), "text"),
        (b"[", (), "json"),
        (b"{'a': 1}", ("json",), "json"),
        (b"trainer", ("json",), "json"),
        (b"\xff\xfe\0\1", ("json",), "json"),
        (b"\xff\xfeh\0i\0", ("text",), "text"),
        (b"global_step20\r\n", ("text",), "text"),
        (b"\xde\xad\xbe\xef" * 9, WEIGHTS, "unknown"),
        (b"\xde\xad\xbe\xef" * 9, (), "unknown"),
        ("\u00e9".encode() * 5000, (), "text"),
        (b"x" + "\u00e9".encode() * 5000, (), "text"),
    ],
)
def test_kinds(raw: bytes, expected: tuple[str, ...], answer: str) -> None:
    assert kind(raw, *expected) == answer
    assert answer in reader.KINDS


@pytest.mark.parametrize(
    ("raw", "expected", "problem", "says"),
    [
        (b"", WEIGHTS, "empty-file", "0 bytes"),
        (bytes(10_000), TORCH, "zero-filled", "10,000 bytes"),
        (POINTER, TORCH, "git-lfs-pointer", "4,976,698,672 bytes"),
        (POINTER, WEIGHTS, "git-lfs-pointer", OID),
        (POINTER[:60], WEIGHTS, "git-lfs-pointer", "names no size"),
        (PAGE, WEIGHTS, "web-page", "Sign in to Hub"),
        (b"<html><style>p{}</style><p>Quota&nbsp;exceeded", WEIGHTS, "web-page", "Quota"),
        (S3, WEIGHTS, "error-text", "AccessDenied"),
        (b'{"error":"Repository not found"}', WEIGHTS, "error-text", "says: Repository not found"),
        (b"Entry not found", TORCH, "error-text", "says: Entry not found"),
        (b"Access \x1b[2Jdenied", TORCH, "error-text", "Access"),
        (gzip.compress(SAFETENSORS, mtime=0), WEIGHTS, "compressed-file", "do not unpack"),
        (tar(), TORCH, "compressed-file", "do not unpack"),
        (b"\xde\xad\xbe\xef" * 9, WEIGHTS, "unknown-bytes", "de ad be ef"),
        (bytes(5000) + b"\1", TORCH, "unknown-bytes", "4,096 zero bytes"),
        (b"GGUF\3\0\0\0" + bytes(16), WEIGHTS, "unknown-bytes", "24 bytes"),
        (SAFETENSORS[:-1], WEIGHTS, "file-cut-short", "needs 66 bytes, has 65"),
        (SAFETENSORS[:5], WEIGHTS, "file-cut-short", "has 5"),
        (SAFETENSORS + b"\0", (), "trailing-bytes", "67"),
        (b'{"global_step": 1', ("json",), "json-damaged", "looks cut after line 1"),
        (b"\xff\xfeh\0i\0", ("text",), "text-damaged", "UTF-8"),
    ],
)
def test_problems(raw: bytes, expected: tuple[str, ...], problem: str, says: str) -> None:
    (found,) = read(raw, *expected).problems
    assert found.kind == problem
    assert says in " ".join((found.message, *found.detail))
    assert found.message == found.message.strip(".")
    assert all(line.isprintable() for line in (found.message, *found.detail))


def test_content_of_what_is_no_container() -> None:
    content = read(POINTER, *WEIGHTS)
    assert (content.container, content.size, content.readable) == ("git-lfs-pointer", len(POINTER), False)
    assert content.facts == {"promised_size": 4976698672, "oid": OID}


def test_the_advice_of_torch_is_contradicted_where_torch_reads() -> None:
    assert "weights_only=False" in " ".join(read(POINTER, *TORCH).problems[0].detail)
    assert "weights_only" not in " ".join(read(POINTER, *WEIGHTS).problems[0].detail)


def test_another_readable_kind_is_read_as_what_it_is() -> None:
    content = read(SAFETENSORS, *TORCH)
    assert content.container == "safetensors"
    assert list(content.tensors) == ["a"]
    assert content.problems == ()


def test_a_known_kind_that_is_not_read_is_a_problem_only_where_another_was_expected() -> None:
    raw = b"\x93NUMPY\1\0v\0"
    assert read(raw).problems == ()
    assert not read(raw).readable
    assert read(raw, "npy").problems == ()
    assert [problem.kind for problem in read(raw, *WEIGHTS).problems] == ["unknown-bytes"]


def test_every_reader_has_a_name_in_kinds() -> None:
    assert {name for name, _ in reader.READERS} <= set(reader.KINDS)
    assert reader.describe("torch-zip") == "a PyTorch file (torch.save)"
    assert reader.describe("new") == "a new file"


def test_a_window_is_read_like_a_file() -> None:
    source = BytesSource(b"12345" + SAFETENSORS + b"rest", "file").window(5, len(SAFETENSORS))
    content = reader.open(source)
    assert content.problems == ()
    assert content.tensors["a"].chunks[0].extent.offset == 5 + len(SAFETENSORS) - 4


@contextmanager
def sparse(path: Path, size: int, *writes: tuple[int, bytes]) -> Iterator[tuple[FileSource, Meter]]:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in writes:
            file.seek(offset)
            file.write(data)
    meter = Meter()
    with FileSource(path, path.name, meter) as source:
        yield source, meter


def test_a_large_file_of_zeros_is_not_read_wholly(tmp_path: Path) -> None:
    with sparse(tmp_path / "a", 8 << 30) as (source, meter):
        content = reader.read(source, TORCH)
        assert content.container == "zeros"
        assert meter.bytes_read < 100_000
        assert content.facts["looked"] == meter.bytes_read
        assert "spread over the file" in content.problems[0].detail[0]


@pytest.mark.parametrize("place", [4 << 30, (8 << 30) - 1])
def test_a_large_file_that_only_begins_with_zeros(tmp_path: Path, place: int) -> None:
    with sparse(tmp_path / "a", 8 << 30, (place, b"\1")) as (source, _):
        assert reader.identify(source, TORCH) == "unknown"


def test_a_small_file_of_zeros_is_read_wholly(tmp_path: Path) -> None:
    with sparse(tmp_path / "a", 300_000, (123_456, b"\1")) as (source, _):
        assert reader.identify(source) == "unknown"


def test_identifying_reads_one_page(tmp_path: Path) -> None:
    with sparse(tmp_path / "a", 1 << 30, (0, b"PK\3\4")) as (source, meter):
        assert reader.identify(source) == "torch-zip"
        assert meter.bytes_read == 4096


def test_a_file_that_cannot_be_read_is_an_error_of_the_source() -> None:
    class Failing(BytesSource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            raise SourceError(self.name, "Input/output error", errno=5)

    with pytest.raises(SourceError):
        reader.read(Failing(b"{}", "file"))


def test_the_words_of_a_page_and_of_a_pointer() -> None:
    assert kinds.page_words(b"<html><script>var a</script><h1>Too\n many</h1>requests") == "Too many requests"
    assert kinds.page_words(b"<html>" + b"word " * 100).endswith("...")
    assert kinds.lfs_promise(b"version x\nsize 12\noid sha256:zz\n") == (12, None)
    assert kinds.lfs_promise(b"version x\nsize " + b"9" * 5000) == (None, None)


EXPECTED = st.sampled_from([(), WEIGHTS, TORCH, ("json",), ("jsonl",), ("text",), ("json", "jsonl"), ("pickle",)])
STARTS = [
    POINTER,
    PAGE,
    S3,
    LEGACY,
    SAFETENSORS,
    b'{"error":"x"}',
    b'{"a": 1}\n{"b": 2}',
    b"BZh9",
    b"<",
    b"\xef\xbb\xbf",
]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(STARTS) | st.binary(max_size=40), st.binary(max_size=40), EXPECTED, st.integers(0, 200))
def test_no_bytes_raise(start: bytes, rest: bytes, expected: tuple[str, ...], end: int) -> None:
    raw = (start + rest)[:end]
    content = read(raw, *expected)
    assert content.container in reader.KINDS
    assert content.size == len(raw)
    assert content.readable or content.problems or not expected


@pytest.mark.parametrize("whole", [SAFETENSORS, POINTER, json.dumps({"global_step": 5, "log_history": []}).encode()])
def test_a_cut_at_every_byte_is_told(whole: bytes) -> None:
    expected = ("json",) if whole.startswith(b"{") else WEIGHTS
    for end in range(len(whole)):
        assert read(whole[:end], *expected).problems, end
