"""What a comparison says of tensors that it does not read, and of those that are no weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.ops.checksum import checksum
from ckpt_tools.ops.diff import diff
from ckpt_tools.ops.info import info
from ckpt_tools.render.text import render
from ckpt_tools.reports.diff import DiffReport, Section
from tests.conftest import FIXTURES

Copy = Callable[..., Path]

UNREAD = [
    ("orbax/manager/4", "the arrays of Orbax are not read"),
    ("orbax/zarr", "the arrays of Orbax are not read"),
    ("keras/model.keras", "HDF5, which is not read"),
    ("megatron/legacy/iter_0000003", "each file holds the slices of its rank"),
    ("fsdp/fsdp1-local", "flat parameters"),
    ("deepspeed/tensor-stage1/global_step3", "tensor-parallel slices of its rank"),
]


def section(report: DiffReport, name: str) -> Section:
    (only,) = (section for section in report.sections if section.name == name)
    return only


def changed(path: Path) -> None:
    """Change one bit in the middle of a file of numbers."""
    largest = max((each for each in [path, *path.rglob("*")] if each.is_file()), key=lambda each: each.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


@pytest.mark.parametrize(("name", "why"), UNREAD, ids=[case[0] for case in UNREAD])
def test_weights_that_are_not_read_are_never_called_equal(name: str, why: str, tmp_path: Path) -> None:
    source, target = FIXTURES / name, tmp_path / Path(name).name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    same = diff(str(source), str(target))
    assert (same.headline, same.exit_code) == (("equal",), 0)
    changed(target)
    other = diff(str(source), str(target))
    assert "equal" not in other.headline
    assert other.exit_code == 3
    assert [line for line in other.trouble if line.startswith("the weights are not compared: ") and why in line]
    assert diff(str(source), str(target), tensors=False).exit_code == 3


@pytest.mark.parametrize(("name", "why"), UNREAD, ids=[case[0] for case in UNREAD])
def test_info_says_that_weights_are_not_read(name: str, why: str) -> None:
    text = " ".join(" ".join(render(info(str(FIXTURES / name)))).split())
    assert "the weights are not read: " in text
    assert " ".join(why.split()[-3:]) in text


def test_info_says_nothing_of_it_where_they_are_read() -> None:
    for name in ("flax/legacy", "tensorflow/manager", "fsdp/fsdp2-sharded", "trainer5-full", "megatron/torch-dist"):
        assert "the weights are not read" not in "\n".join(render(info(str(FIXTURES / name)))), name


@pytest.mark.parametrize("name", ["orbax/standard", "orbax/manager", "keras/model.keras"])
def test_a_checksum_of_nothing_says_so(name: str) -> None:
    report = checksum(str(FIXTURES / name))
    assert (report.rows, report.exit_code) == ((), 3)
    assert all("not read by this version; `--by file` digests the files" in error for error in report.errors)
    assert checksum(str(FIXTURES / name), by="file").exit_code == 0


def test_arrays_of_orbax_are_compared_by_name_type_and_shape(copy_of: Copy) -> None:
    left, right = FIXTURES / "orbax/zarr", copy_of("orbax/zarr")
    path = right / "head.bias/.zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": [4], "dtype": "<f8"}))
    tree = json.loads((right / "_METADATA").read_text())
    del tree["tree_metadata"]["('dense', 'bias')"]
    (right / "_METADATA").write_text(json.dumps(tree))
    found = section(diff(str(left), str(right)), "arrays")
    assert [(each.key, each.left) for each in found.changes] == [
        ("dense.bias", "float32 [7]"),
        ("head.bias", "float32 [3]"),
    ]
    assert found.changes[1].right == "float64 [4]"
    assert found.differs


def test_the_same_arrays_in_both_kinds_of_store_are_described_alike() -> None:
    found = section(diff(str(FIXTURES / "orbax/zarr"), str(FIXTURES / "orbax/standard")), "arrays")
    assert found.changes == ()


def test_pieces_of_another_size_are_a_matter_of_storage(copy_of: Copy) -> None:
    right = copy_of("orbax/standard")
    tree = json.loads((right / "_METADATA").read_text())
    tree["tree_metadata"]["('dense', 'kernel')"]["value_metadata"]["write_shape"] = [1, 7]
    (right / "_METADATA").write_text(json.dumps(tree))
    found = section(diff(str(FIXTURES / "orbax/standard"), str(right)), "arrays")
    (change,) = found.changes
    assert (change.left, change.right, found.differs) == ("in pieces of [5, 7]", "in pieces of [1, 7]", False)


def test_info_and_verify_count_the_arrays_of_orbax() -> None:
    text = "\n".join(render(info(str(FIXTURES / "orbax/manager/10"))))
    assert "arrays of state  21, with values not read here" in text
    report = ckpt_tools.verify(str(FIXTURES / "orbax/zarr"), settle=0, deep=True)
    told = [each.reason for each in report.checkpoints[0].skipped]
    assert "4 arrays of Orbax: they are compressed, and not read" in told


# Optimizers and counters ---------------------------------------------------------------------------------------


def test_tensorflow_has_weights_an_optimizer_and_counters() -> None:
    run = FIXTURES / "tensorflow/manager"
    report = diff(f"{run}@2", f"{run}@3")
    assert report.tensors is not None
    assert report.moments is not None
    assert sorted(row.name for row in report.tensors.rows) == [f"optimizer/_trainable_variables/{n}" for n in range(4)]
    moments = {row.name for row in report.moments.rows}
    assert moments == {f"optimizer/_variables/{number}" for number in range(2, 10)} | {"optimizer/_iterations"}
    assert report.moments.same == 1  # the rate
    counters = {each.key: (each.left, each.right) for each in section(report, "values").changes}
    assert counters == {"save_counter": (2, 3), "step": (4, 6)}


def test_a_state_of_flax_has_weights_and_an_optimizer() -> None:
    folder = FIXTURES / "flax/msgpack"
    same = diff(str(folder / "state.msgpack"), str(folder / "state.msgpack"))
    assert same.tensors is not None
    assert same.moments is not None
    assert (same.tensors.same, same.moments.same) == (5, 16)
    weights = diff(str(folder / "state.msgpack"), str(folder / "flax_model.msgpack"))
    assert weights.tensors is not None
    assert weights.tensors.same == 4
    assert weights.tensors.only_left == ("rows",)  # neither: whoever saved it put it beside


@pytest.mark.parametrize(
    "name",
    ["tensorflow/manager/ckpt-3.index", "tensorflow/manager/ckpt-3.data-00000-of-00001", "dcp/plain/__0_0.distcp"],
)
def test_checksum_says_so_of_one_file_of_several(name: str) -> None:
    report = checksum(str(FIXTURES / name))
    (told,) = report.errors
    assert "it is one of several files, which hold tensors only together" in told
    assert told.startswith(str(FIXTURES / name))
    assert checksum(str(FIXTURES / name), by="file").rows
