"""Repairs inside torch files: names, numpy values, rng files, lost zip directories."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.ops.repair import repair
from ckpt_tools.ops.undo import undo
from ckpt_tools.reports.repair import REFUSED
from tests.conftest import Copy
from tests.repair.support import codes, mended, snapshot, states

torch = pytest.importorskip("torch")


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return bool(torch.equal(left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(_same(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_leave_the_header_of_safetensors(copy_of: Copy, prefix: str) -> None:
    from safetensors.torch import load_file, save_file

    path = copy_of("trainer5-full/checkpoint-2")
    weights = path / "model.safetensors"
    wanted = load_file(weights)
    save_file({prefix + name: value for name, value in wanted.items()}, weights, metadata={"format": "pt"})
    size = weights.stat().st_size
    report = mended(path, "strip-prefixes", "CK315")
    assert weights.stat().st_size == size
    assert sum(each.bytes_written for each in report.repairs) < 10_000
    assert _same(dict(sorted(load_file(weights).items())), dict(sorted(wanted.items())))


def test_prefixes_leave_shards_and_index_together(copy_of: Copy) -> None:
    import json

    from safetensors.torch import load_file, save_file

    path = copy_of("trainer5-sharded/checkpoint-2")
    index = path / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    for shard in sorted(path.glob("model-*.safetensors")):
        tensors = load_file(shard)
        save_file({f"_orig_mod.{name}": each for name, each in tensors.items()}, shard, metadata={"format": "pt"})
    wrapped = {f"_orig_mod.{name}": file for name, file in value["weight_map"].items()}
    index.write_text(json.dumps({**value, "weight_map": wrapped}))
    mended(path, "strip-prefixes", "CK315")
    assert json.loads(index.read_text()) == value
    transformers = pytest.importorskip("transformers")
    _, told = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]


def test_prefixes_leave_the_pickle_of_a_zip(copy_of: Copy) -> None:
    path = copy_of("trainer4-bin/checkpoint-2")
    weights = path / "pytorch_model.bin"
    wanted = torch.load(weights, weights_only=True)
    modules = [name.removesuffix(".weight") for name in wanted]
    wanted = OrderedDict(wanted)
    wanted._metadata = OrderedDict({"": {"version": 1}, **{name: {"version": 2} for name in modules}})
    wrapped = OrderedDict((f"module.{name}", value) for name, value in wanted.items())
    renamed = {f"module.{name}" if name else "": value for name, value in wanted._metadata.items()}
    wrapped._metadata = OrderedDict(renamed)  # type: ignore[attr-defined]
    torch.save(wrapped, weights)
    mended(path, "strip-prefixes", "CK315")
    for options in ({}, {"mmap": True}):
        found = torch.load(weights, weights_only=True, **options)
        assert _same(found, wanted)
        assert found._metadata == wanted._metadata
    assert zipfile.ZipFile(weights).testzip() is None


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_prefixes_leave_files_of_other_protocols_and_of_the_old_format(
    copy_of: Copy, zipped: bool, protocol: int
) -> None:
    path = copy_of("trainer4-bin/checkpoint-2")
    weights = path / "pytorch_model.bin"
    wanted = torch.load(weights, weights_only=True)
    wrapped = {f"module.{name}": value for name, value in wanted.items()}
    torch.save(wrapped, weights, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    report = repair(str(path), settle=0, write=True)
    if not zipped and protocol == 4:
        assert states(report)["strip-prefixes"] == REFUSED
        assert "does not load" in str([each.reason for each in report.repairs])
        return
    assert states(report)["strip-prefixes"] == "done", report.repairs
    assert "CK315" not in codes(path)
    assert _same(torch.load(weights, weights_only=False), wanted)
    if not zipped:
        assert not list(path.rglob(".ckpt-tools/staged/*"))
    undo(str(path), settle=0)
    assert _same(torch.load(weights, weights_only=False), wrapped)
    assert not list(path.rglob(".ckpt-tools/staged/*"))


def test_names_that_belong_to_a_wrapped_model_are_left(copy_of: Copy) -> None:
    from safetensors.torch import load_file, save_file

    path = copy_of("accelerate/auto/checkpoints/checkpoint_1")
    weights = path / "model.safetensors"
    save_file({f"_orig_mod.{name}": value for name, value in load_file(weights).items()}, weights)
    before = snapshot(path)
    report = repair(str(path), settle=0, write=True)
    assert states(report) == {"strip-prefixes": "needs --unsafe"}
    assert snapshot(path) == before
    assert report.exit_code == 0


@pytest.mark.parametrize("fixture", ["trainer5-lora", "trainer4-lora-bin"])
def test_adapter_tensors_get_the_names_of_peft(copy_of: Copy, fixture: str) -> None:
    from safetensors.torch import load_file, save_file

    path = copy_of(f"{fixture}/checkpoint-2")
    weights = next(path.glob("adapter_model.*"))
    if weights.suffix == ".bin":
        wanted = torch.load(weights, weights_only=True)
        torch.save({name.removeprefix("base_model.model."): value for name, value in wanted.items()}, weights)
    else:
        wanted = load_file(weights)
        short = {name.removeprefix("base_model.model."): value for name, value in wanted.items()}
        save_file(short, weights, metadata={"format": "pt"})
    mended(path, "rename-adapter-tensors", "CK322")
    found = torch.load(weights, weights_only=True) if weights.suffix == ".bin" else load_file(weights)
    assert _same(dict(sorted(found.items())), dict(sorted(wanted.items())))
    assert not list(path.rglob(".ckpt-tools/staged/*"))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt"])
def test_numpy_scalars_become_plain_numbers(copy_of: Copy, name: str) -> None:
    numpy = pytest.importorskip("numpy")
    path = copy_of("trainer5-full/checkpoint-2")
    wanted = torch.load(path / name, weights_only=True)
    value = torch.load(path / name, weights_only=True)
    if name == "optimizer.pt":
        for group in value["param_groups"]:
            group["lr"] = numpy.float64(group["lr"])
    else:
        value["base_lrs"] = [numpy.float64(rate) for rate in value["base_lrs"]]
    torch.save(value, path / name)
    with pytest.raises(Exception, match="numpy"):
        torch.load(path / name, weights_only=True)
    mended(path, "replace-numpy-scalar", "CK521")
    assert _same(torch.load(path / name, weights_only=True), wanted)


def test_an_rng_file_of_numpy_1_loads_everywhere(copy_of: Copy) -> None:
    numpy = pytest.importorskip("numpy")
    path = copy_of("trainer431-bin/checkpoint-2")
    old = torch.load(path / "rng_state.pth", weights_only=False)
    mended(path, "portable-rng", "CK703")
    new = torch.load(path / "rng_state.pth", weights_only=True)
    assert new["python"] == old["python"]
    assert torch.equal(new["cpu"], old["cpu"])
    drawn = []
    for state in (old, new):
        numpy.random.set_state(state["numpy"])
        drawn.append(numpy.random.random(1000).tolist())
    assert drawn[0] == drawn[1]


def _last_record(path: Path) -> int:
    """Return where the zip directory begins."""
    with zipfile.ZipFile(path) as opened:
        return int(opened.start_dir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("optimizer.pt", "end"),
        ("optimizer.pt", "directory"),
        ("optimizer.pt", "overwritten"),
        ("rng_state.pth", "version"),
    ],
)
def test_a_lost_zip_directory_is_made_again(copy_of: Copy, name: str, lost: str) -> None:
    path = copy_of("trainer5-full/checkpoint-2")
    file = path / name
    allowed = file.name == "optimizer.pt"
    wanted = torch.load(file, weights_only=allowed)
    start, size = _last_record(file), file.stat().st_size
    with zipfile.ZipFile(file) as opened:
        version = next(each.header_offset for each in opened.infolist() if each.filename.endswith("/version"))
    if lost == "overwritten":
        with open(file, "r+b") as opened_file:
            opened_file.seek(start)
            opened_file.write(bytes(size - start))
    else:
        cuts = {"end": size - 1, "directory": start, "version": version}
        os.truncate(file, cuts[lost])
    with pytest.raises((RuntimeError, OSError)):
        torch.load(file, weights_only=allowed)
    (code,) = codes(path) & {"CK203", "CK225"}
    report = mended(path, "rebuild-zip-directory", code)
    found = torch.load(file, weights_only=allowed)
    if allowed:
        assert _same(found, wanted)
    else:
        assert torch.equal(found["cpu"], wanted["cpu"])
        assert found["python"] == wanted["python"]
    assert zipfile.ZipFile(file).testzip() is None
    assert not list(path.rglob(".ckpt-tools/staged/*"))
    if lost == "version":
        assert any("version" in note for each in report.repairs for note in each.notes)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_file_that_lost_records_is_refused_with_their_names(copy_of: Copy, keep: float) -> None:
    path = copy_of("trainer5-full/checkpoint-2")
    file = path / "optimizer.pt"
    os.truncate(file, int(_last_record(file) * keep))
    before = snapshot(path)
    report = repair(str(path), settle=0, write=True)
    assert states(report)["rebuild-zip-directory"] == REFUSED
    assert snapshot(path) == before
    (row,) = [each for each in report.repairs if each.kind == "rebuild-zip-directory"]
    assert "whole" in str(row.reason) or "pickle" in str(row.reason)


def test_damaged_bytes_are_not_blessed_by_a_new_directory(copy_of: Copy) -> None:
    path = copy_of("trainer5-full/checkpoint-2")
    file = path / "optimizer.pt"
    with zipfile.ZipFile(file) as opened:
        record = max(opened.infolist(), key=lambda each: each.file_size)
    os.truncate(file, _last_record(file))
    with open(file, "r+b") as opened_file:
        opened_file.seek(record.header_offset + 200)
        opened_file.write(b"\xff")
    report = repair(str(path), settle=0, write=True)
    assert states(report)["rebuild-zip-directory"] == REFUSED


def test_tensor_bytes_that_look_like_descriptors_are_not_taken_for_them(tmp_path: Path) -> None:
    mark = b"PK\x07\x08" + bytes(4) + (64).to_bytes(4, "little") * 2
    payload = (bytes(64) + mark + b"PK\x03\x04" + b"PK\x01\x02" + b"PK\x05\x06") * 50
    value = {"model": {"w": torch.frombuffer(bytearray(payload), dtype=torch.uint8), "v": torch.arange(9.0)}}
    file = tmp_path / "some.pt"
    torch.save(value, file)
    os.truncate(file, _last_record(file))
    cut = file.read_bytes()
    assert repair(str(file), write=True).exit_code == 0
    assert _same(torch.load(file, weights_only=True), value)
    undo(str(file))
    assert file.read_bytes() == cut
    assert not list(tmp_path.rglob("staged"))


def test_an_edited_file_that_lost_its_new_record_is_not_rolled_back_in_silence(copy_of: Copy) -> None:
    numpy = pytest.importorskip("numpy")
    path = copy_of("trainer5-full/checkpoint-2")
    file = path / "optimizer.pt"
    value = torch.load(file, weights_only=True)
    for group in value["param_groups"]:
        group["lr"] = numpy.float64(7.0)
    torch.save(value, file)
    size = file.stat().st_size
    repair(str(path), settle=0, write=True)
    os.truncate(file, size + 700)
    (code,) = codes(path) & {"CK203", "CK225"}
    report = repair(str(path), settle=0, write=True)
    assert states(report)["rebuild-zip-directory"] == REFUSED
    assert code in codes(path)
