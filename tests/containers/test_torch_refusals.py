"""What torch's own loader stops at, though the bytes can be followed: each found by loading damaged files."""

from __future__ import annotations

import struct

import pytest

from ckpt_tools.containers import kinds as file_kinds
from ckpt_tools.containers import torch_legacy, torch_zip
from ckpt_tools.containers.base import Content
from ckpt_tools.core.source import BytesSource
from tests.containers.torch_files import (
    WEIGHTS,
    archive,
    legacy,
    mapping,
    number,
    records,
    storage,
    tensor,
    text,
    torch_archive,
)

GOOD = torch_archive(records())
V2, V3 = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_tensor_v3\n"
HOOKS = b"ccollections\nOrderedDict\n)R"
SIZES = b"K\x04\x85K\x01\x85"


def read(data: bytes) -> Content:
    return torch_zip.read(BytesSource(data, "file.pt"))


def of(value: bytes) -> Content:
    """Return a file that holds two good tensors and one more value."""
    return read(torch_archive(records(mapping({**WEIGHTS, "odd": value}))))


def kinds(content: Content) -> list[str]:
    return [problem.kind for problem in content.problems]


def v2(
    data: bytes = storage("1", 4), offset: bytes = b"K\x00", sizes: bytes = SIZES, end: bytes = b"\x89" + HOOKS
) -> bytes:
    return V2 + b"(" + data + offset + sizes + end + b"tR"


TAKEN = {
    "tensor": v2(),
    "lists for sizes": v2(sizes=b"](K\x04e](K\x01e"),
    "no strides": v2(sizes=b"K\x04\x85N"),
    "empty strides": v2(sizes=b"K\x04\x85)"),
    "hooks of any kind": v2(end=b"\x89N"),
    "metadata": v2(end=b"\x89" + HOOKS + b"}"),
    "requires grad": v2(end=b"\x88" + HOOKS),
    "v3": V3 + b"(" + storage("1", 4) + b"K\x00" + SIZES + b"\x89" + HOOKS + b"ctorch\nfloat32\ntR",
    "second mention of a storage": v2(storage("1", 9)),
    "key as a number": v2(b"(" + text("storage") + b"ctorch\nFloatStorage\nK\x01" + text("cpu") + b"K\x04tQ"),
    "arguments in a set": b"ccollections\nOrderedDict\n\x8fR",
    "protocol 255": b"\x80\xffN",
    "state of an OrderedDict": HOOKS + b"}" + b"b",
    "device": b"ctorch\ndevice\n" + text("cpu") + b"\x85R",
    "set": b"c__builtin__\nset\n](K\x01K\x02e\x85R",
}
REFUSED = {
    "too few values": V2 + b"(" + storage("1", 4) + b"K\x00" + SIZES + b"tR",
    "too many values": v2(end=b"\x89" + HOOKS + b"}NN"),
    "v3 without a type": V3 + b"(" + storage("1", 4) + b"K\x00" + SIZES + b"\x89" + HOOKS + b"tR",
    "no storage": v2(b"}"),
    "a tensor for a storage": v2(tensor("1", (4,))),
    "offset true": v2(offset=b"\x88"),
    "offset negative": v2(offset=number(-1)),
    "size true": v2(sizes=b"\x88\x85K\x01\x85"),
    "size none": v2(sizes=b"NK\x01\x85"),
    "one stride for two sizes": v2(sizes=b"K\x02K\x02\x86K\x01\x85"),
    "number of 64 bits": v2(sizes=b"\x8a\x09" + bytes(8) + b"\x01\x85K\x01\x85"),
    "requires grad 0": v2(end=b"K\x00" + HOOKS),
    "requires grad none": v2(end=b"N" + HOOKS),
    "integers that require grad": v2(storage("9", 4, "LongStorage"), end=b"\x88" + HOOKS),
    "metadata text": v2(end=b"\x89" + HOOKS + text("x")),
    "short reference": v2(b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("1") + text("cpu") + b"tQ"),
    "long reference": v2(b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("1") + text("cpu") + b"K\x04NtQ"),
    "reference to a function": v2(b"(" + text("storage") + b"cbuiltins\nset\n" + text("5") + text("cpu") + b"K\x04tQ"),
    "reference without size": v2(b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("5") + text("cpu") + b"NtQ"),
    "storage called": b"ctorch\nFloatStorage\n)R",
    "type called": b"ctorch\nbfloat16\n)R",
    "Size of six": b"ctorch\nSize\n(K\x01K\x01K\x01K\x01K\x01K\x01tR",
    "set of six": b"cbuiltins\nset\n(K\x01K\x01K\x01K\x01K\x01K\x01tR",
    "Parameter of six": b"ctorch.nn.parameter\nParameter\n(NNNNNNtR",
    "device of nothing": b"ctorch\ndevice\n)R",
    "layout": b"ctorch.serialization\n_get_layout\n" + text("torch.sparse_c/o") + b"\x85R",
    "state of a dictionary": b"}}b",
    "state of a class": b"ctorch\nSize\n}b",
    "elements for a class": b"ctorch\nSize\nK\x01a",
    "keys for a tensor": b"ctorch\nTensor\n)RK\x01K\x02s",
    "keys for a set": b"\x8fK\x01K\x02s",
    "key that is a list": b"}]K\x01s",
    "text that is none": b"U\x01\xff",
    "new object of a function": V2 + b")\x81",
    "OrderedDict of a number": b"ccollections\nOrderedDict\nK\x01\x85R",
    "encode of bytes": b"c_codecs\nencode\nK\x01" + text("latin1") + b"\x86R",
    "Tensor called like the function that rebuilds one": b"ctorch\nTensor\n" + v2()[len(V2) :],
    "keys for a Parameter": b"ctorch.nn.parameter\nParameter\n)RK\x01K\x02s",
    "wrapper of no class": b"ctorch._utils\n_rebuild_wrapper_subclass\n(Nctorch\nfloat32\nK\x04\x85tR",
    "tensor of no class": b"ctorch._tensor\n_rebuild_from_type_v2\n(" + V2 + b")" + v2()[len(V2) : -1] + b"NtR",
    "numpy type in half of another": b"cnumpy\ndtype\n"
    + text("u4")
    + b"\x89\x88\x87R(K\x03"
    + text("<")
    + b"K\x01NNK\x04K\x04K\x00tb",
    "numpy type": b"cnumpy\ndtype\n" + text("") + b"\x88\x89\x87R(K\x03" + text("<") + b"NNNK\x00K\x00K\x00tb",
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_torch_takes(name: str) -> None:
    content = of(TAKEN[name])
    assert (content.readable, kinds(content)) == (True, [])
    assert content.facts.get("foreign_opcodes") is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses(name: str) -> None:
    content = of(REFUSED[name])
    assert "pickle-damaged" in kinds(content)
    assert all(problem.detail for problem in content.problems)
    assert {"a.weight", "b.bias"} <= set(content.tensors)


CODES = [b"I5\n", b"F1.5\n", b"\x8c\x01a", b"C\x01a", b"N\x94", b"N0N", b"(l", b"Vx\n", b"N2\x86"]


@pytest.mark.parametrize("code", CODES)
def test_opcodes_that_a_safe_load_does_not_know_are_a_fact(code: bytes) -> None:
    content = of(code)
    assert (kinds(content), len(content.facts["foreign_opcodes"])) == ([], 1)
    assert content.facts["foreign_opcodes"][0] in code


# Small records ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [b"3", b" 3", b"3\n\n", b"3 4", b"3.0", b"03", b"3x", b"3\x80", b"+3", b"10"])
def test_versions_that_torch_reads(version: bytes) -> None:
    assert kinds(read(archive({**records(), "version": version}))) == []


@pytest.mark.parametrize("version", [b"", b"x", b"-1", b"0", b"11", b"\xff", b"9" * 40])
def test_versions_that_torch_refuses(version: bytes) -> None:
    assert kinds(read(archive({**records(), "version": version}))) == ["record-invalid"]


def test_a_version_in_the_hidden_directory_counts_first() -> None:
    assert kinds(read(archive({**records(), ".data/version": b"99"}))) == ["record-invalid"]


@pytest.mark.parametrize(
    ("value", "good"), [(b"64", True), (b"-5", True), (b"x", False), (b"", False), (b"6\0", False)]
)
def test_storage_alignment_is_a_number(value: bytes, good: bool) -> None:
    assert kinds(read(archive({**records(), ".storage_alignment": value}))) == ([] if good else ["record-invalid"])


def test_the_serialization_id_is_text() -> None:
    assert kinds(read(archive({**records(), ".data/serialization_id": b"\xfe\xff"}))) == ["record-invalid"]


# The zip directory, as miniz reads it ----------------------------------------------------------------------


def patched(name: str, field: int, value: bytes) -> bytes:
    at = GOOD.rindex(b"file/" + name.encode()) - 46
    assert GOOD[at : at + 4] == b"PK\x01\x02"
    return GOOD[: at + field] + value + GOOD[at + field + len(value) :]


def test_a_record_that_is_marked_as_a_directory_is_not_read() -> None:
    content = read(patched("data/1", 38, b"\x10"))
    assert "zip-damaged" in kinds(content)
    assert "marked as a directory" in content.problems[0].detail[0]


def test_where_a_record_of_no_bytes_lies_does_not_matter() -> None:
    good = torch_archive({**records(), "data/7": b""})
    at = good.rindex(b"file/data/7") - 46
    (header,) = struct.unpack_from("<I", good, at + 42)
    assert good[header : header + 4] == b"PK\x03\x04"
    for bad in (
        good[:header] + bytes(4) + good[header + 4 :],
        good[: header + 26] + b"\xff\xff" + good[header + 28 :],
    ):
        assert kinds(read(bad)) == kinds(read(good)) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (20, struct.pack("<I", 15)),  # packed size of a stored record
        (24, struct.pack("<I", 17)),  # its size
        (34, struct.pack("<H", 7)),  # disk
        (9, b"\x20"),  # a masked directory
        (8, b"\x01"),  # encrypted
        (8, b"\x20"),  # a patch
        (10, b"\x0c"),  # bzip2
    ],
)
def test_entries_that_torch_refuses(field: int, value: bytes) -> None:
    assert "zip-damaged" in kinds(read(patched("data/1", field, value)))


@pytest.mark.parametrize("field", [-22 + 4, -22 + 6, -22 - 20 + 16, -22 - 20 - 56 + 16, -22 - 20 - 56 + 24])
def test_ends_that_torch_refuses(field: int) -> None:
    data = bytearray(GOOD)
    data[field] ^= 8
    assert ("zip-damaged" in kinds(read(bytes(data)))) == (field not in (-18, -16))  # in favour of the larger record


@pytest.mark.parametrize("count", [65_000, 70_000])
def test_how_far_torch_looks_back(count: int) -> None:
    assert ("zip-damaged" in kinds(read(GOOD + b"\n" * count))) == (count > 66_000)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_several_records_the_one_that_torch_comes_upon() -> None:
    """Checked against torch with 400 random archives; here the cases that it taught."""
    found = set()
    for name in ("data/1", "DATA/1"):
        for others in range(6):
            fill = [(f"x{number}", b"1") for number in range(others)]
            data = archive([*records().items(), *fill, (name, b"y" * 16)])
            (chunk,) = read(data).tensors["b.bias"].chunks
            found.add(data[chunk.extent.offset : chunk.extent.end])
    assert found == {b"y" * 16, records()["data/1"]}


def test_large_and_small_letters_are_one_name() -> None:
    members = records()
    members["DATA/1"] = members.pop("data/1")
    content = read(archive(members))
    assert (kinds(content), len(content.tensors["b.bias"].chunks)) == ([], 1)


def test_a_root_without_a_name() -> None:
    content = read(archive([(f"/{name}", payload) for name, payload in records().items()], ""))
    assert kinds(content) == ["unsafe-record-name"]


# Old files -------------------------------------------------------------------------------------------------


def old(data: bytes) -> Content:
    return torch_legacy.read(BytesSource(data, "file.pt"))


def test_an_untyped_storage_in_an_old_file() -> None:
    body = mapping({"a": tensor("0", (4,), kind="UntypedStorage")})
    assert "pickle-damaged" in kinds(old(legacy(body, {"0": bytes(4)}, width=1)))


def test_an_unlisted_storage_of_no_elements_is_not_missed() -> None:
    body = mapping({"a": tensor("0", (2,)), "none": tensor("1", (0,))})
    assert kinds(old(legacy(body, {"0": bytes(8)}))) == []


def test_a_key_that_no_tensor_uses() -> None:
    body = mapping({"a": tensor("0", (2,))})
    assert kinds(old(legacy(body, {"0": bytes(8), "7": b""}))) == ["pickle-damaged"]


@pytest.mark.parametrize("at", [4, 6, 7, 13])
def test_a_damaged_magic_number_is_still_an_old_torch_file(at: int) -> None:
    data = bytearray(legacy(mapping({"a": tensor("0", (2,))}), {"0": bytes(8)}))
    data[at] ^= 4
    assert file_kinds.identify(BytesSource(bytes(data), "file.pt")) == "torch-legacy"
    assert kinds(old(bytes(data))) == ["pickle-damaged"]


@pytest.mark.parametrize("root", [b"K\x05", text("x"), b"N", b"G" + bytes(8)])
def test_a_root_that_is_no_container(root: bytes) -> None:
    assert (old(legacy(root, {})).tensors, read(torch_archive(records(root))).tensors) == ({}, {})
