"""Files of torch.save: what is read from good ones, and what is said of every kind of bad one."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.containers import torch_zip
from ckpt_tools.containers.base import Content
from ckpt_tools.core.source import BytesSource, FileSource
from ckpt_tools.model.findings import Problem
from ckpt_tools.model.tensors import TensorRef
from tests.containers.torch_files import (
    PAYLOADS,
    archive,
    mapping,
    pickled,
    records,
    tensor,
    torch_archive,
)


def read(data: bytes) -> Content:
    return torch_zip.read(BytesSource(data, "file.pt"))


def kinds(content: Content) -> list[str]:
    return [problem.kind for problem in content.problems]


def only(content: Content) -> Problem:
    assert len(content.problems) == 1, kinds(content)
    return content.problems[0]


def everything(problem: Problem) -> str:
    return " ".join((problem.message, *problem.detail))


GOOD = torch_archive(records())


def test_a_good_file() -> None:
    content = read(GOOD)
    assert (content.container, content.readable, content.problems, content.size) == ("torch-zip", True, (), len(GOOD))
    assert list(content.tensors) == ["a.weight", "b.bias"]
    weight, bias = content.tensors.values()
    assert (weight.dtype, weight.shape, weight.storage_id) == ("float32", (2, 3), "0")
    assert content.value["b.bias"] is bias
    for ref, key in ((weight, "data/0"), (bias, "data/1")):
        (chunk,) = ref.chunks
        assert GOOD[chunk.extent.offset : chunk.extent.end] == PAYLOADS[key]
        assert (chunk.sizes, chunk.strides, chunk.byteorder) == (ref.shape, None, "little")
    assert dict(content.globals) == {
        "torch._utils._rebuild_tensor_v2": 2, "torch.FloatStorage": 2, "collections.OrderedDict": 2,
    }  # fmt: skip
    facts = {
        "root": "file", "version": 3, "byteorder": "little", "format_version": 1, "storage_alignment": 64,
        "serialization_id": "0" * 40, "torchscript": False, "compressed": (), "extra": (), "protocol": 2,
        "crc_stored": True, "pickle_crc_ok": True,
    }  # fmt: skip
    assert dict(content.facts) == facts


def test_records_lie_where_they_say() -> None:
    for data in (GOOD, archive(records())):
        for record in read(data).records:
            payload = data[record.extent.offset : record.extent.end]
            assert payload == records()[record.name.removeprefix("file/")]
            assert record.crc32 == zlib.crc32(payload)


def test_a_window_gives_places_in_the_file_around_it() -> None:
    whole = BytesSource(b"x" * 1000 + GOOD + b"y" * 50, "big.distcp")
    content = torch_zip.read(whole.window(1000, len(GOOD)))
    assert content.problems == ()
    (chunk,) = content.tensors["b.bias"].chunks
    assert whole.read(chunk.extent.offset, chunk.extent.length) == PAYLOADS["data/1"]
    assert chunk.extent.path == "big.distcp"


# What torch.load accepts is no fault -----------------------------------------------------------------------


@pytest.mark.parametrize("root", ["archive", "model.safetensors", "x y", "é"])
def test_any_root_will_do(root: str) -> None:
    content = read(torch_archive(records(), root))
    assert (content.problems, content.facts["root"], len(content.tensors)) == ((), root, 2)


@pytest.mark.parametrize("absent", [".format_version", ".storage_alignment", "byteorder", ".data/serialization_id"])
def test_old_sets_of_records(absent: str) -> None:
    members = records()
    del members[absent]
    content = read(torch_archive(members))
    assert (content.problems, len(content.tensors)) == ((), 2)


def test_repacked_by_python() -> None:
    content = read(archive(records()))
    assert (content.problems, content.readable) == ((), True)


def test_no_checksums() -> None:
    content = read(torch_archive(records(), crc=False))
    assert content.problems == ()
    assert content.facts["crc_stored"] is False
    assert {record.crc32 for record in content.records} == {0}


def test_extra_records_are_facts() -> None:
    content = read(torch_archive({**records(), "data/99": b"abc", "notes.txt": b"hello"}))
    assert content.problems == ()
    assert content.facts["extra"] == ("file/data/99", "file/notes.txt")


def test_a_directory_entry_and_another_order() -> None:
    members = [("", b""), *reversed(list(records().items()))]
    content = read(archive(members))
    assert (content.problems, list(content.tensors)) == ((), ["a.weight", "b.bias"])


def test_empty_tensors_and_shared_storages_and_views() -> None:
    body = mapping(
        {
            "empty": tensor("0", (0, 3), count=0),
            "whole": tensor("1", (2, 2)),
            "row": tensor("1", (2,), count=4, offset=2),
            "transposed": tensor("1", (2, 2), count=4, strides=(1, 2)),
            "scalar": tensor("1", (), count=4, offset=3),
        }
    )
    data = torch_archive(records(body, {"data/0": b"", "data/1": struct.pack("<4f", 0, 1, 2, 3)}))
    content = read(data)
    assert content.problems == ()
    chunk = {name: ref.chunks[0] for name, ref in content.tensors.items()}
    base = chunk["whole"].extent.offset
    assert chunk["empty"].extent.length == 0
    assert (chunk["row"].extent.offset - base, chunk["row"].extent.length) == (8, 8)
    assert (chunk["scalar"].extent.offset - base, chunk["scalar"].extent.length) == (12, 4)
    assert chunk["transposed"].strides == (1, 2)
    assert {content.tensors[name].storage_id for name in ("whole", "row", "transposed", "scalar")} == {"1"}


def test_big_endian() -> None:
    content = read(torch_archive({**records(), "byteorder": b"big"}))
    assert content.problems == ()
    assert content.facts["byteorder"] == "big"
    assert {ref.chunks[0].byteorder for ref in content.tensors.values()} == {"big"}


def test_an_edit_that_left_old_bytes_dead() -> None:
    """A new record and a new directory behind the old ones, the old end's signature wiped."""
    end = GOOD.rindex(b"PK\x05\x06")
    place, size = struct.unpack("<I", GOOD[end + 16 : end + 20])[0], struct.unpack("<I", GOOD[end + 12 : end + 16])[0]
    old = GOOD[:end] + b"\0\0\0\0" + GOOD[end + 4 :]
    directory = GOOD[place : place + size]
    new = old + directory + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 7, 7, 0, 0, 0)
    count = struct.unpack("<H", GOOD[end + 8 : end + 10])[0]
    new = new[:-22] + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, size, len(old), 0)
    content = read(new)
    assert (content.problems, len(content.tensors)) == ((), 2)


# Faults ----------------------------------------------------------------------------------------------------


def test_cut_at_any_byte() -> None:
    for end in range(len(GOOD)):
        content = read(GOOD[:end])
        assert "file-cut-short" in kinds(content), end
        assert f"{end:,} bytes" in everything(content.problems[0])


def test_a_cut_names_what_is_lost() -> None:
    content = read(GOOD[: GOOD.rindex(PAYLOADS["data/1"]) + 3])
    problem = only(content)
    assert content.facts["expected_size"] == len(GOOD)
    assert problem.at.record == "file/data/1"
    assert "b.bias" in everything(problem)
    assert content.readable
    assert content.tensors["a.weight"].chunks == ()
    assert "ends inside the pickle" in everything(only(read(GOOD[:80])))
    assert "overwritten" in everything(only(read(GOOD[:-60] + bytes(60))))


@pytest.mark.parametrize("count", [1, 1000, 65_000])
def test_bytes_behind(count: int) -> None:
    content = read(GOOD + b"\0" * count)
    problem = only(content)
    assert (problem.kind, content.facts["trailing_bytes"]) == ("bytes-around-archive", count)
    assert "looks across" in everything(problem)
    assert problem.at.offset == len(GOOD)


def test_many_bytes_behind() -> None:
    around, refused = read(GOOD + b"\0" * 200_000).problems
    assert "does not find" in everything(around)
    assert (refused.kind, "failed finding central directory" in everything(refused)) == ("zip-damaged", True)


def test_bytes_before_and_several_archives() -> None:
    before = read(b"junk" + GOOD)
    assert kinds(before) == ["bytes-around-archive", "zip-damaged"]
    assert len(before.tensors) == 2
    for pack in (torch_archive, archive):
        other = {**records(), "data/1": b"z" * 16}
        data = pack(records()) + pack(other)
        twice = read(data)
        assert "several" in everything(only(twice))
        (chunk,) = twice.tensors["b.bias"].chunks
        assert data[chunk.extent.offset : chunk.extent.end] == PAYLOADS["data/1"]


def test_missing_records() -> None:
    members = records()
    del members["data/1"]
    content = read(torch_archive(members))
    problem = only(content)
    assert problem.kind == "record-missing"
    assert "file/data/1" in everything(problem)
    assert "b.bias" in everything(problem)
    assert content.tensors["b.bias"].chunks == ()
    members = records()
    del members["data.pkl"]
    content = read(torch_archive(members))
    assert (kinds(content), content.readable, content.container) == (["record-missing"], False, "torch-zip")


@pytest.mark.parametrize("payload", [b"", b"x" * 15, b"x" * 17])
def test_records_of_the_wrong_size(payload: bytes) -> None:
    problem = only(read(torch_archive({**records(), "data/1": payload})))
    assert problem.kind == "record-size-mismatch"
    assert f"should have 16 bytes, and has {len(payload)}" in everything(problem)
    assert problem.at.tensor == "b.bias"


def test_many_faults_are_summed_up() -> None:
    body = mapping({f"t{n}": tensor(str(n), (1,)) for n in range(200)})
    content = read(torch_archive(records(body, {})))
    assert len(content.problems) == 51
    assert "150 more" in everything(content.problems[-1])


@pytest.mark.parametrize(
    ("version", "words"), [(None, "missing"), (b"0", "it is 0"), (b"11", "it is 11"), (b"x", "'x'"), (b"", "''")]
)
def test_versions(version: bytes | None, words: str) -> None:
    members = records()
    del members["version"]
    if version is not None:
        members["version"] = version
    problem = only(read(torch_archive(members)))
    assert problem.kind == "record-invalid"
    assert words in everything(problem)


@pytest.mark.parametrize("version", [b"1", b"10\n"])
def test_versions_that_torch_reads(version: bytes) -> None:
    assert read(torch_archive({**records(), "version": version})).problems == ()


def test_byteorder_of_another_text() -> None:
    assert only(read(torch_archive({**records(), "byteorder": b"middle"}))).kind == "record-invalid"


def test_a_damaged_pickle() -> None:
    data = records()["data.pkl"]
    content = read(torch_archive({**records(), "data.pkl": data[:20] + b"\xff" + data[21:]}))
    problem = only(content)
    assert (problem.kind, problem.at.record, content.readable) == ("pickle-damaged", "file/data.pkl", False)
    flipped = bytearray(GOOD)
    flipped[GOOD.index(b"torch._utils") - 1] = 0xFF
    assert "checksum" in everything(only(read(bytes(flipped))))


def test_a_view_out_of_range() -> None:
    body = mapping({"w": tensor("0", (4,), count=6, offset=3), "ok": tensor("0", (6,))})
    content = read(torch_archive(records(body, {"data/0": bytes(24)})))
    problem = only(content)
    assert (problem.kind, problem.at.tensor) == ("tensor-view-out-of-range", "w")
    assert "needs 28 bytes" in everything(problem)
    assert "has 24" in everything(problem)
    assert content.tensors["w"].chunks == ()


def test_compressed() -> None:
    content = read(archive(records(), method=8))
    problem = only(content)
    assert problem.kind == "zip-compressed"
    assert list(content.tensors) == ["a.weight", "b.bias"]
    assert all(ref.chunks == () for ref in content.tensors.values())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates() -> None:
    content = read(archive([*records().items(), ("data/1", b"y" * 16)]))
    assert kinds(content) == ["record-duplicate"]
    (chunk,) = content.tensors["b.bias"].chunks
    data = archive([*records().items(), ("data/1", b"y" * 16)])
    assert data[chunk.extent.offset : chunk.extent.end] == PAYLOADS["data/1"]  # what torch comes upon in this one


def test_names_outside_and_unsafe() -> None:
    members = [(f"file/{name}", payload) for name, payload in records().items()]
    assert kinds(read(archive([*members, ("other/x", b"1")], ""))) == ["record-outside-root"]
    assert kinds(read(archive([*members, ("x", b"1")], ""))) == ["record-outside-root"]
    assert kinds(read(archive([*members, ("file/../../x", b"1")], ""))) == ["unsafe-record-name"]
    for name in ("/etc/x", "../x", "C:/x"):
        assert kinds(read(archive([*members, (name, b"1")], ""))) == ["record-outside-root", "unsafe-record-name"]


def _patched(data: bytes, name: str, field: int, value: bytes) -> bytes:
    """Change a field of the central directory's entry of ``name``."""
    mutable = bytearray(data)
    at = data.rindex(name.encode()) - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    mutable[at + field : at + field + len(value)] = value
    return bytes(mutable)


def test_a_record_that_claims_a_terabyte() -> None:
    extra = struct.pack("<HHQQ", 1, 16, 1 << 40, 1 << 40)
    data = GOOD
    at = data.rindex(b"file/data/1") - 46
    entry = bytearray(data[at : at + 46 + 11])
    entry[20:28] = b"\xff" * 8
    entry[30:32] = struct.pack("<H", len(extra))
    grown = data[:at] + bytes(entry) + extra + data[at + 57 :]
    grown = grown.replace(b"PK\x06\x06", b"PKxx")
    end = grown.rindex(b"PK\x05\x06")
    size = struct.unpack("<I", grown[end + 12 : end + 16])[0] + len(extra)
    grown = grown[: end + 12] + struct.pack("<I", size) + grown[end + 16 :]
    at64 = grown.index(b"PKxx")
    fixed = grown[:at64] + b"\0" * (end - at64) + grown[end:]
    del fixed
    place = struct.unpack("<I", grown[end + 16 : end + 20])[0]
    direct = grown[: place + size] + grown[end:]
    content = read(direct)
    assert kinds(content)[0] == "zip-damaged"
    assert "1,099,511,627,776" in everything(content.problems[0])


def test_damage_in_the_directory() -> None:
    for field, value in (
        (42, struct.pack("<I", 1 << 30)),
        (42, struct.pack("<I", 3)),
        (20, struct.pack("<I", 1 << 30)),
    ):
        content = read(_patched(GOOD, "file/data/1", field, value))
        assert kinds(content)[0] == "zip-damaged"
        assert "file/data/1" in everything(content.problems[0])
    place = read(GOOD).records[4].extent.offset
    overlapping = _patched(GOOD, "file/data/0", 20, struct.pack("<II", 80, 80))
    assert "zip-damaged" in kinds(read(overlapping))
    assert place
    broken = bytearray(GOOD)
    broken[GOOD.rindex(b"file/data/1") - 46] = 0
    assert kinds(read(bytes(broken)))[0] == "zip-damaged"


def test_a_name_that_differs_in_the_local_header_is_accepted_as_by_torch() -> None:
    data = bytearray(GOOD)
    data[GOOD.index(b"file/data/1") + 8] = ord("x")
    assert read(bytes(data)).problems == ()


def test_kinds_of_archives() -> None:
    assert read(archive({"a.npy": b"x", "b.npy": b"y"}, "")).container == "npz"
    assert read(archive({"a.txt": b"x"}, "")).container == "zip"
    script = read(torch_archive({**records(), "constants.pkl": pickled(b")")}))
    assert (script.container, script.facts["torchscript"], len(script.tensors)) == ("torchscript", True, 2)


def test_an_empty_archive() -> None:
    content = read(struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0))
    assert not content.readable


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_random_damage_never_raises(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for place, byte in changes:
        data[place] = byte
    content = read(bytes(data))
    for ref in content.tensors.values():
        for chunk in ref.chunks:
            assert 0 <= chunk.extent.offset <= chunk.extent.end <= len(data)


@given(st.binary(max_size=300))
def test_random_bytes_never_raise(data: bytes) -> None:
    for content in (read(data), read(b"PK\x03\x04" + data), read(data + GOOD[-98:])):
        assert content.problems or not content.readable


# Files of the real library ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def _saved(torch: Any, value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _bytes_of(data: bytes, ref: TensorRef) -> bytes:
    (chunk,) = ref.chunks
    return data[chunk.extent.offset : chunk.extent.end]


def test_tensors_of_torch(torch: Any) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    value = {
        "plain": base,
        "view": base[1, 1:],
        "strided": base.permute(2, 0, 1),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "scalar": torch.tensor(7.0),
        "empty": torch.empty(0, 5),
        "images": torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "meta": torch.empty(3, 3, device="meta"),
        "sparse": torch.eye(3).to_sparse(),
        "float8": torch.ones(5).to(torch.float8_e4m3fn),
        "nested": [{"x": torch.ones(1, dtype=torch.bfloat16)}],
    }
    data = _saved(torch, value)
    content = read(data)
    assert content.problems == ()
    assert content.facts["extra"] == ()
    tensors = content.tensors
    for name in ("plain", "view", "scalar", "empty", "float8"):
        raw = (
            value[name].contiguous().view(torch.uint8).numpy().tobytes() if value[name].dim() else struct.pack("<f", 7)
        )
        assert _bytes_of(data, tensors[name]) == raw
        assert tensors[name].shape == tuple(value[name].shape)
        assert f"torch.{tensors[name].dtype}" == str(value[name].dtype)
    assert tensors["strided"].chunks[0].strides == value["strided"].stride()
    assert tensors["images"].chunks[0].strides == value["images"].stride()
    assert tensors["view"].storage_id == tensors["plain"].storage_id
    assert tensors["parameter"].kind == "torch.nn.parameter.Parameter"
    assert (tensors["meta"].kind, tensors["meta"].chunks) == ("meta", ())
    assert tensors["sparse"].kind == "torch.sparse_coo"
    assert {"sparse.indices", "sparse.values", "nested.0.x"} <= set(tensors)


def test_an_optimizer_of_torch(torch: Any) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(4, 2)) for _ in range(50)]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for parameter in parameters:
        parameter.grad = torch.ones(4, 2)
    optimizer.step()
    data = _saved(torch, optimizer.state_dict())
    content = read(data)
    assert content.problems == ()
    assert len(content.tensors) == 150
    assert content.value["param_groups"][0]["lr"] == 1e-3
    assert content.value["param_groups"][0]["betas"] == (0.9, 0.999)
    for number, state in optimizer.state_dict()["state"].items():
        for key, tensor_ in state.items():
            ref = content.tensors[f"state.{number}.{key}"]
            assert ref.shape == tuple(tensor_.shape)
            assert _bytes_of(data, ref) == tensor_.numpy().tobytes()


def test_a_real_file_cut_at_any_byte(torch: Any) -> None:
    data = _saved(torch, {"w": torch.ones(3)})
    for end in range(len(data)):
        assert read(data[:end]).problems, end


def test_tolerance_is_that_of_torch(torch: Any, tmp_path: Path) -> None:
    """What torch.load accepts has none of the problems that are fatal, and the other way round."""
    good = records()
    files: dict[str, tuple[bytes, bool]] = {
        "as torch": (torch_archive(good), True),
        "as python": (archive(good), True),
        "deflated": (archive(good, method=8), True),
        "trailing": (GOOD + b"\0" * 100, True),
        "before": (b"x" + GOOD, False),
        "cut": (GOOD[:-1], False),
        "version 0": (torch_archive({**good, "version": b"0"}), False),
        "version 11": (torch_archive({**good, "version": b"11"}), False),
        "byteorder": (torch_archive({**good, "byteorder": b"middle"}), False),
        "short": (torch_archive({**good, "data/1": b"x" * 8}), False),
        "missing": (torch_archive({k: v for k, v in good.items() if k != "data/0"}), False),
        "twice": (torch_archive(good) + torch_archive(good), True),
        "before, another": (torch_archive(good, "longer") + GOOD, False),
        "unused": (torch_archive({**good, "data/7": b"x"}), True),
    }
    tolerated = {"zip-compressed", "bytes-around-archive", "record-duplicate"}
    for name, (data, accepted) in files.items():
        path = tmp_path / "file.pt"
        path.write_bytes(data)
        assert _loads(torch, path) is accepted, name
        with FileSource(path, "file.pt") as source:
            found = set(kinds(torch_zip.read(source)))
        assert (not found - tolerated or name == "before") if accepted else found, name


def _loads(torch: Any, path: Path) -> bool:
    load: Callable[..., Any] = torch.load
    try:
        load(path, weights_only=True)
    except Exception:  # noqa: BLE001 - torch raises whatever it likes
        return False
    return True
