"""Tensors of whole files: matched by name across formats and shardings, equal bytes recognised, the rest measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.core.errors import UsageError
from ckpt_tools.core.listing import scan
from ckpt_tools.ops import diff_tensors
from ckpt_tools.ops.diff import diff
from ckpt_tools.ops.diff_tensors import BUFFER, PIECE
from ckpt_tools.reports.diff import TensorRow, Tensors
from tests.diff.pairs import safetensors, weights


def compared(left: Path, right: Path, **options: object) -> Tensors:
    found = diff(str(left), str(right), **options).tensors  # type: ignore[arg-type]
    assert found is not None
    return found


def row(found: Tensors, name: str) -> TensorRow:
    (only,) = (row for row in found.rows if row.name == name)
    return only


def test_equal_files_are_equal_and_numpy_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ckpt_tools.numerics.distance", None)
    left = safetensors(tmp_path / "a" / "model.safetensors", weights())
    right = safetensors(tmp_path / "b" / "model.safetensors", weights())
    report = diff(str(left), str(right))
    assert report.equal
    assert report.exit_code == 0
    assert report.tensors is not None
    assert report.tensors.same == 7


@pytest.mark.parametrize("place", [0, BUFFER // 4 + 3, PIECE // 4, PIECE // 4 + 1, PIECE // 2 + 999])
def test_one_element_of_a_large_tensor(tmp_path: Path, place: int) -> None:
    values = np.ones(PIECE // 2 + 1000, np.float32)
    left = safetensors(tmp_path / "a.safetensors", {"t": values})
    values[place] = 3
    right = safetensors(tmp_path / "b.safetensors", {"t": values})
    for jobs in (1, 2, 5):
        distance = compared(left, right, jobs=jobs).rows[0].distance
        assert distance is not None
        assert (distance.count, distance.changed, distance.largest) == (values.size, 1, 2.0)
        assert distance.relative == pytest.approx(2 / np.sqrt(values.size), rel=1e-6)


def test_memory_and_reads_are_bounded(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    left = safetensors(tmp_path / "a.safetensors", {"t": values})
    right = safetensors(tmp_path / "b.safetensors", {"t": values})
    listings = scan(left), scan(right)
    from ckpt_tools.layouts.match import open_run
    from ckpt_tools.layouts.view import View

    refs = [View(open_run(path).checkpoints[0]).weights["t"] for path in (left, right)]
    pair = diff_tensors.Pair("t", "weights", refs[0], refs[1])
    diff_tensors.compare([pair], listings, jobs=1)
    assert not pair.differs
    assert [listing.meter.bytes_read for listing in listings] == [4 << 20, 4 << 20]


def test_names_shapes_and_dtypes_of_one_side(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    left = safetensors(
        tmp_path / "a.safetensors",
        {"only.left": random.random(3), "shape": random.random((4, 5)), "dtype": np.arange(6, dtype=np.float32)},
    )
    right = safetensors(
        tmp_path / "b.safetensors",
        {"only.right": random.random(3), "shape": random.random((5, 4)), "dtype": np.arange(6, dtype=np.float64)},
    )
    found = compared(left, right)
    assert (found.only_left, found.only_right) == (("only.left",), ("only.right",))
    assert row(found, "shape").reshaped
    assert row(found, "shape").distance is None
    assert row(found, "dtype").note == "same values"


def test_bfloat16_against_float32_is_rounding_alone(tmp_path: Path) -> None:
    values = weights()
    rounded = {
        name: (array.view(np.uint32) + 0x7FFF + ((array.view(np.uint32) >> 16) & 1)) >> 16
        for name, array in values.items()
    }
    left = safetensors(tmp_path / "a.safetensors", values)
    forms = {name.replace(".", "_"): "BF16" for name in values}
    right = safetensors(tmp_path / "b.safetensors", {k: v.astype(np.uint16) for k, v in rounded.items()}, **forms)
    report = diff(str(left), str(right))
    assert report.tensors is not None
    assert len(report.tensors.rows) == 7
    assert any("no difference but the rounding" in reason for reason in report.reasons)
    assert diff(str(left), str(right), tolerance=0.1).equal


def test_tolerance_counts_what_is_near_as_the_same(tmp_path: Path) -> None:
    values = {"a": np.zeros(10, np.float32), "b": np.zeros(10, np.float32), "c": np.zeros(3, np.float32)}
    left = safetensors(tmp_path / "a.safetensors", values)
    right = safetensors(
        tmp_path / "b.safetensors",
        {"a": values["a"] + np.float32(1e-3), "b": values["b"] + 1, "c": np.array([np.nan, 0, 0], np.float32)},
    )
    found = compared(left, right, tolerance=1e-2)
    assert (found.same, found.tolerated, [row.name for row in found.rows]) == (1, 1, ["c", "b"])
    with pytest.raises(UsageError):
        diff(str(left), str(right), tolerance=float("nan"))


def test_a_table_that_grew_is_compared_over_the_rows_of_both(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((10, 4))
    left = safetensors(tmp_path / "a.safetensors", {"model.embed_tokens.weight": values})
    grown = np.concatenate([values, np.ones((3, 4))])
    right = safetensors(tmp_path / "b.safetensors", {"model.embed_tokens.weight": grown})
    report = diff(str(left), str(right))
    assert any("resized from 10 to 13 rows; the rows of both are the same" in reason for reason in report.reasons)
    assert report.exit_code == 1


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."])
def test_known_prefixes_are_proposed_and_work(tmp_path: Path, prefix: str) -> None:
    values = weights()
    left = safetensors(tmp_path / "a.safetensors", values)
    right = safetensors(tmp_path / "b.safetensors", {prefix + name: array for name, array in values.items()})
    report = diff(str(left), str(right))
    assert report.exit_code == 1
    assert f"try --strip-prefix {prefix} (then 7 names meet)" in report.reasons
    assert diff(str(left), str(right), strip_prefixes=(prefix,)).equal


def test_names_are_mapped(tmp_path: Path) -> None:
    values = weights()
    renamed = {name.replace("model.", "model.language_model.", 1): array for name, array in values.items()}
    left, right = safetensors(tmp_path / "a.safetensors", values), safetensors(tmp_path / "b.safetensors", renamed)
    report = diff(str(left), str(right))
    assert report.reasons[0] == r"try --map '^model\.language_model\.=model.' (then 7 names meet)"
    assert diff(str(left), str(right), maps=(r"^model\.language_model\.=model.",)).equal
    with pytest.raises(UsageError, match="would both be called"):
        diff(str(left), str(right), maps=(r".*=x",))
    with pytest.raises(UsageError, match="has no '='"):
        diff(str(left), str(right), maps=("abc",))
    with pytest.raises(UsageError, match="--map"):
        diff(str(left), str(right), maps=("(=x",))
    with pytest.raises(UsageError, match="--map"):
        diff(str(left), str(right), maps=(r"a=\3",))


def test_groups_by_layer_and_role(tmp_path: Path) -> None:
    one, other = weights(layers=12), weights(layers=12)
    other["model.layers.10.mlp.up_proj.weight"] = other["model.layers.10.mlp.up_proj.weight"] + 1
    left, right = safetensors(tmp_path / "a.safetensors", one), safetensors(tmp_path / "b.safetensors", other)
    found = compared(left, right, by="layer")
    assert [(group.name, group.total, group.changed) for group in found.groups[:3]] == [
        ("model.layers.10", 3, 1),
        ("model.embed_tokens", 1, 0),
        ("model.layers.0", 3, 0),
    ]
    found = compared(left, right, by="role")
    assert [(group.name, group.total, group.changed) for group in found.groups[:2]] == [
        ("mlp.up_proj.weight", 12, 1),
        ("input_layernorm.weight", 12, 0),
    ]
    assert found.map is not None
    assert found.map.rows[-2:] == ("model.layers.10", "model.layers.11")
    assert found.map.cells["model.layers.10", "mlp.up_proj.weight"][0] == pytest.approx(
        found.rows[0].distance.relative if found.rows[0].distance else None
    )


def test_frozen_layers_are_named(tmp_path: Path) -> None:
    one, other = weights(layers=4), weights(layers=4)
    for name in other:
        if "layers.3" in name:
            other[name] = other[name] + 1
    left, right = safetensors(tmp_path / "a.safetensors", one), safetensors(tmp_path / "b.safetensors", other)
    (reason,) = diff(str(left), str(right)).reasons
    assert reason.endswith(": model.embed_tokens, model.layers.0-2")
    assert reason.startswith("10 tensors did not move")


def test_nan_on_one_side_comes_first(tmp_path: Path) -> None:
    one = {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}
    other = {"a": one["a"] + 5, "b": np.array([np.nan, 1, 1, 1], np.float32)}
    left, right = safetensors(tmp_path / "a.safetensors", one), safetensors(tmp_path / "b.safetensors", other)
    report = diff(str(left), str(right))
    assert report.tensors is not None
    assert [row.name for row in report.tensors.rows] == ["b", "a"]
    assert "NaN appeared on the right in b" in report.reasons


def test_what_is_cut_off_is_trouble_and_no_answer(tmp_path: Path) -> None:
    left = safetensors(tmp_path / "a.safetensors", weights())
    right = safetensors(tmp_path / "b.safetensors", weights())
    right.write_bytes(right.read_bytes()[:-40])
    report = diff(str(left), str(right))
    assert report.exit_code == 3
    assert any("its bytes are not in the file" in line for line in report.trouble)
    right.write_bytes(b"<html>no</html>")
    assert diff(str(left), str(right)).exit_code == 3


def test_types_below_a_byte_are_compared_by_their_bytes(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.uint8)
    raw = safetensors(tmp_path / "x.safetensors", {"t": values}, t="F4").read_bytes()
    made = raw.replace(b'"shape": [8]', b'"shape":[16]')
    (tmp_path / "a.safetensors").write_bytes(made)
    (tmp_path / "b.safetensors").write_bytes(made)
    assert diff(str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")).equal
    (tmp_path / "b.safetensors").write_bytes(made[:-1] + b"\xff")
    (only,) = compared(tmp_path / "a.safetensors", tmp_path / "b.safetensors").rows
    assert (only.distance, only.note) == (None, "values of this type are not decoded")


# Files of the real libraries ---------------------------------------------------------------------------------


def test_torch_files_of_all_forms_hold_the_same(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    state = {
        "a": torch.randn(40, 30),
        "strided": torch.randn(60, 50)[:, ::2],
        "transposed": torch.randn(70, 20).t(),
        "half": torch.randn(1000).half(),
        "bf16": torch.randn(1000).bfloat16(),
        "empty": torch.zeros(0, 5),
        "scalar": torch.tensor(3.5),
        "bool": torch.rand(100) > 0.5,
        "int": torch.arange(10),
        "complex": torch.randn(10, dtype=torch.complex64),
        "nan": torch.tensor([float("nan"), 1.0]),
        "expanded": torch.randn(1, 8).expand(5, 8),
    }
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "x.safetensors")
    forms = ["zip.pt", "legacy.pt", "x.safetensors"]
    fp8 = {"fp8": torch.randn(100).to(torch.float8_e4m3fn)}  # which torch cannot read back from the old format
    torch.save(fp8, tmp_path / "fp8.pt")
    save_file(fp8, tmp_path / "fp8.safetensors")
    assert diff(str(tmp_path / "fp8.pt"), str(tmp_path / "fp8.safetensors")).equal
    for left in forms:
        for right in forms:
            report = diff(str(tmp_path / left), str(tmp_path / right))
            assert report.equal, (left, right, report.tensors and report.tensors.rows)
            assert not report.trouble
            assert report.tensors is not None
            assert report.tensors.same == len(state)


def test_strided_and_dense_differences_are_those_of_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(1)
    for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int32)):
        base = torch.randn(500, 300, generator=generator) * 100
        one = {"t": base.to(dtype).t()[::3], "u": base.to(dtype)[:, 7]}
        other = {name: (tensor.double() * 1.01).to(dtype).contiguous() for name, tensor in one.items()}
        paths = tmp_path / f"{number}a.pt", tmp_path / f"{number}b.pt"
        torch.save(one, paths[0])
        torch.save(other, paths[1])
        for row in compared(*paths).rows:
            a, b = one[row.name].double(), other[row.name].double()
            assert row.distance is not None
            assert row.distance.largest == pytest.approx((a - b).abs().max().item(), rel=1e-6)
            assert row.distance.relative == pytest.approx(((a - b).norm() / a.norm()).item(), rel=1e-5)


def test_shared_storages_and_tied_names(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    table = torch.randn(20, 4)
    torch.save({"model.embed_tokens.weight": table, "lm_head.weight": table}, tmp_path / "a.pt")
    save_file({"model.embed_tokens.weight": table}, tmp_path / "b.safetensors")
    report = diff(str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors"))
    assert report.equal


def test_sharded_and_single_hold_the_same(tmp_path: Path) -> None:
    values = weights(layers=3)
    safetensors(tmp_path / "one" / "model.safetensors", values)
    names = list(values)
    pieces = [names[:3], names[3:4], names[4:]]
    index = {}
    for number, piece in enumerate(pieces, 1):
        file = f"model-{number:05}-of-{len(pieces):05}.safetensors"
        safetensors(tmp_path / "many" / file, {name: values[name] for name in piece})
        index.update(dict.fromkeys(piece, file))
    (tmp_path / "many" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    report = diff(str(tmp_path / "one"), str(tmp_path / "many"))
    assert report.equal
    assert [section.name for section in report.sections if section.changes] == ["files"]


def test_real_bin_and_safetensors_of_one_model_are_equal(tmp_path: Path, fixtures_dir: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    shutil.copytree(fixtures_dir / "trainer5-full" / "checkpoint-2", tmp_path / "checkpoint-2")
    held = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    (tmp_path / "checkpoint-2" / "model.safetensors").unlink()
    torch.save(held, tmp_path / "checkpoint-2" / "pytorch_model.bin")
    report = diff(str(fixtures_dir / "trainer5-full" / "checkpoint-2"), str(tmp_path / "checkpoint-2"))
    assert report.exit_code == 0
    assert report.headline == ("equal",)
