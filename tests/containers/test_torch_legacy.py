"""Files of torch.save before 1.6."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.containers import torch_legacy
from ckpt_tools.containers.base import Content
from ckpt_tools.core.source import BytesSource
from tests.containers.torch_files import WEIGHTS, legacy, mapping, tensor

STORAGES = {"0": struct.pack("<6f", *range(6)), "1": struct.pack("<4f", *range(4))}
GOOD = legacy(mapping(WEIGHTS), STORAGES)


def read(data: bytes) -> Content:
    return torch_legacy.read(BytesSource(data, "file.pt"))


def kinds(content: Content) -> list[str]:
    return [problem.kind for problem in content.problems]


def test_a_good_file() -> None:
    content = read(GOOD)
    assert (content.container, content.problems, content.readable) == ("torch-legacy", (), True)
    assert list(content.tensors) == ["a.weight", "b.bias"]
    for key, ref in zip(("0", "1"), content.tensors.values(), strict=True):
        (chunk,) = ref.chunks
        assert GOOD[chunk.extent.offset : chunk.extent.end] == STORAGES[key]
        assert ref.storage_id == key
    assert [(record.name, record.crc32) for record in content.records] == [("0", None), ("1", None)]
    assert content.facts["version"] == 1001
    assert content.facts["byteorder"] == "little"
    assert dict(content.globals)["torch._utils._rebuild_tensor_v2"] == 2


def test_cut_at_any_byte() -> None:
    for end in range(1, len(GOOD)):
        content = read(GOOD[:end])
        assert "file-cut-short" in kinds(content), end
        if content.readable:
            assert list(content.tensors) == ["a.weight", "b.bias"]


def test_a_cut_counts_what_is_missing_and_names_whose_it_is() -> None:
    content = read(GOOD[:-10])
    (problem,) = content.problems
    assert any("10 more bytes" in line for line in problem.detail)
    assert any("b.bias" in line for line in problem.detail)
    assert content.tensors["a.weight"].chunks
    assert content.tensors["b.bias"].chunks == ()
    assert content.facts["expected_size"] == len(GOOD)


def test_trailing_bytes_are_a_fact() -> None:
    content = read(GOOD + b"abc")
    assert (content.problems, content.facts["trailing_bytes"]) == ((), 3)


def test_big_endian() -> None:
    content = read(legacy(mapping(WEIGHTS), STORAGES, little=False))
    assert content.tensors["b.bias"].chunks[0].byteorder == "big"


def test_storages_that_do_not_fit() -> None:
    short = read(legacy(mapping(WEIGHTS), {**STORAGES, "1": bytes(8)}))
    assert kinds(short) == ["record-size-mismatch"]
    assert any("b.bias" in line for line in short.problems[0].detail)
    unlisted = read(legacy(mapping(WEIGHTS), {"0": STORAGES["0"]}))
    assert kinds(unlisted) == ["record-missing"]
    beyond = read(legacy(mapping({"w": tensor("0", (3,), count=2)}), {"0": bytes(8)}))
    assert kinds(beyond) == ["tensor-view-out-of-range"]


def test_the_form_before_that_one_is_recognised() -> None:
    content = read(b"sys_info" + bytes(249) + b"ustar" + bytes(500))
    assert (content.readable, content.facts["form"]) == (False, "tar")


def test_another_pickle() -> None:
    content = read(b"\x80\x02K\x05.")
    assert (content.readable, kinds(content)) == (False, ["pickle-damaged"])


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_random_damage_never_raises(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for place, byte in changes:
        data[place] = byte
    for ref in read(bytes(data)).tensors.values():
        for chunk in ref.chunks:
            assert 0 <= chunk.extent.offset <= chunk.extent.end <= len(data)


def test_a_file_of_torch() -> None:
    torch: Any = pytest.importorskip("torch")
    value = {"a": torch.arange(6.0).reshape(2, 3), "b": [torch.ones(4, dtype=torch.int64)], "n": 3}
    value["view"] = value["a"][1]
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()
    content = read(data)
    assert content.problems == ()
    assert content.value["n"] == 3
    for name, tensor_ in (("a", value["a"]), ("b.0", value["b"][0]), ("view", value["view"])):
        (chunk,) = content.tensors[name].chunks
        assert data[chunk.extent.offset : chunk.extent.end] == tensor_.numpy().tobytes()
    assert content.tensors["a"].storage_id == content.tensors["view"].storage_id
    for end in range(1, len(data)):
        assert read(data[:end]).problems, end
