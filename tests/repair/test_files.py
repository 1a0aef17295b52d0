"""Repairs that write an index, cut, move or copy files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import ckpt_tools
from ckpt_tools.cli.app import ckpt
from ckpt_tools.core.errors import EditRefusedError, NothingFoundError
from ckpt_tools.edits import repair_files
from ckpt_tools.ops import repair_make
from ckpt_tools.ops.repair import repair
from ckpt_tools.ops.undo import undo
from ckpt_tools.reports.repair import DONE, REFUSED, UNSAFE, WAITING
from tests.conftest import Copy
from tests.repair.support import codes, mended, snapshot, states

safetensors = pytest.importorskip("safetensors")


def _json(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.read_text())
    return found


def _save(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("fixture", "name"),
    [
        ("trainer5-sharded/checkpoint-2", "model.safetensors.index.json"),
        ("trainer4-bin-sharded/checkpoint-2", "pytorch_model.bin.index.json"),
        ("hf-model/sharded", "model.safetensors.index.json"),
    ],
)
def test_a_missing_index_is_written_as_the_trainer_would(copy_of: Copy, fixture: str, name: str) -> None:
    path = copy_of(fixture)
    wanted = (path / name).read_bytes()
    (path / name).unlink()
    mended(path, "rebuild-index", "CK107")
    assert (path / name).read_bytes() == wanted


@pytest.mark.parametrize("code", ["CK301", "CK302", "CK304", "CK305", "CK202", "CK201"])
def test_a_wrong_index_is_corrected(copy_of: Copy, code: str) -> None:
    path = copy_of("trainer5-sharded/checkpoint-2")
    index = path / "model.safetensors.index.json"
    wanted = index.read_bytes()
    value = json.loads(wanted)
    first, last = "model.embed_tokens.weight", "lm_head.weight"
    if code == "CK301":
        value["weight_map"][first], value["weight_map"][last] = value["weight_map"][last], value["weight_map"][first]
    elif code == "CK302":
        del value["weight_map"][first]
    elif code == "CK304":
        value["metadata"]["total_size"] = 123
    else:
        del value["metadata"]
    if code == "CK202":
        index.write_bytes(bytes(len(wanted)))
    elif code == "CK201":
        index.write_bytes(b"")
    else:
        _save(index, value)
    mended(path, "rebuild-index", code)
    assert json.loads(index.read_bytes()) == json.loads(wanted)


def test_an_index_is_not_written_where_that_would_hide_a_loss(copy_of: Copy) -> None:
    path = copy_of("trainer5-sharded/checkpoint-2")
    index = path / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"]["model.lost.weight"] = next(iter(value["weight_map"].values()))
    value["metadata"] = None
    _save(index, value)
    report = repair(str(path), settle=0, write=True)
    assert states(report) == {"rebuild-index": REFUSED}
    assert "model.lost.weight" in str(report.repairs[0].reason)
    assert "CK303" in codes(path)
    assert report.exit_code == 1


def test_a_stale_index_is_set_aside_and_the_model_loads(copy_of: Copy) -> None:
    transformers = pytest.importorskip("transformers")
    path = copy_of("trainer5-full/checkpoint-2")
    stale = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    _save(path / "model.safetensors.index.json", stale)
    mended(path, "set-aside", "CK108")
    assert (path / ".ckpt-tools" / "quarantine" / "model.safetensors.index.json").is_file()
    transformers.AutoModelForCausalLM.from_pretrained(path)


@pytest.mark.parametrize("extra", [b"\0", b"\n", b"x" * 70_000])
def test_trailing_bytes_are_cut(copy_of: Copy, extra: bytes) -> None:
    from safetensors.numpy import load_file

    path = copy_of("trainer5-full/checkpoint-2")
    weights = path / "model.safetensors"
    wanted = weights.read_bytes()
    weights.write_bytes(wanted + extra)
    with pytest.raises(safetensors.SafetensorError):
        load_file(weights)
    mended(path, "cut-trailing", "CK212")
    assert weights.read_bytes() == wanted
    load_file(weights)


def test_many_trailing_bytes_are_kept_as_a_file(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import load_file

    monkeypatch.setattr(repair_files, "MAX_WHOLE", 1000)
    monkeypatch.setattr(repair_files, "_PIECE", 4096)
    path = copy_of("trainer5-full/checkpoint-2")
    weights = path / "model.safetensors"
    wanted = weights.read_bytes()
    extra = bytes(2000) + bytes(range(256)) * 100
    weights.write_bytes(wanted + extra)
    report = mended(path, "cut-trailing", "CK212")
    assert weights.read_bytes() == wanted
    load_file(weights)
    assert (path / ".ckpt-tools" / "quarantine" / "model.safetensors.tail").read_bytes() == extra
    assert not list((path / ".ckpt-tools").glob("staged/*"))
    assert max(entry.stat().st_size for entry in (path / ".ckpt-tools" / "journal").iterdir()) < 4000
    assert sum(each.bytes_written for each in report.repairs if each.state == DONE) == len(extra)


def test_many_trailing_bytes_need_room_and_undo_needs_them(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_files, "MAX_WHOLE", 1000)
    path = copy_of("trainer5-full/checkpoint-2")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + bytes(5000))
    before = snapshot(path)
    with monkeypatch.context() as patch:
        patch.setattr(repair_make, "free_bytes", lambda _: 10_000)
        report = repair(str(path), settle=0, write=True)
        assert states(report)["cut-trailing"] == REFUSED
        assert "too little space" in str(report.repairs[0].reason)
    assert snapshot(path) == before
    assert not list(path.rglob(".ckpt-tools/staged/*"))
    repair(str(path), settle=0, write=True)
    tail = path / ".ckpt-tools" / "quarantine" / "model.safetensors.tail"
    tail.rename(path.parent / "elsewhere")
    with pytest.raises(EditRefusedError, match="is gone"):
        undo(str(path), settle=0)
    (path.parent / "elsewhere").rename(tail)
    undo(str(path), settle=0)
    assert snapshot(path) == before


def test_a_directory_is_named_for_the_step_of_its_files(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    (run / "checkpoint-6").rename(run / "checkpoint-7")
    before = snapshot(run)
    assert states(repair(str(run), settle=0, write=True))["name-for-step"] == UNSAFE
    report = repair(str(run / "checkpoint-7"), settle=0, write=True, unsafe=True)
    (row,) = [each for each in report.repairs if each.kind == "name-for-step"]
    assert row.state == REFUSED
    assert f"ckpt set-step {run / 'checkpoint-7'} 6 --rename" in str(row.reason)
    assert snapshot(run) == before
    report = repair(str(run), settle=0, write=True, unsafe=True)
    assert states(report)["name-for-step"] == DONE
    assert not (run / "checkpoint-7").exists()
    assert "CK501" not in codes(run)
    undo(str(run), settle=0)
    assert snapshot(run) == before


def test_the_command_that_names_a_directory_for_its_step_is_told(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    (run / "checkpoint-6").rename(run / "checkpoint-7")
    found = ckpt_tools.verify(str(run), settle=0).all_findings()
    (help_text,) = [each.help for each in found if each.code == "CK501"]
    command = str(help_text).split("`")[1].split()
    assert command[:2] == ["ckpt", "set-step"]
    CliRunner().invoke(ckpt, [*command[1:], "--settle", "0"], standalone_mode=False)
    assert "CK501" not in codes(run)
    assert (run / "checkpoint-6").is_dir()


def test_a_name_that_is_taken_is_not_given(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    shutil.copytree(run / "checkpoint-6", run / "checkpoint-7")
    report = repair(str(run), settle=0, write=True, unsafe=True)
    assert states(report)["name-for-step"] == REFUSED
    assert (run / "checkpoint-7").is_dir()


def test_a_single_file_is_repaired_too(copy_of: Copy) -> None:
    path = copy_of("hf-model/tiny-llama/model.safetensors")
    wanted = path.read_bytes()
    path.write_bytes(wanted + b"!")
    assert repair(str(path)).exit_code == 1
    assert repair(str(path), write=True).exit_code == 0
    assert path.read_bytes() == wanted
    undo(str(path))
    assert path.read_bytes() == wanted + b"!"


@pytest.mark.parametrize("damage", ["missing", "empty", "zeros", "cut"])
def test_a_config_comes_from_a_sibling(copy_of: Copy, damage: str) -> None:
    transformers = pytest.importorskip("transformers")
    run = copy_of("trainer5-full")
    config = run / "checkpoint-4" / "config.json"
    wanted = config.read_bytes()
    code = {"missing": "CK117", "empty": "CK201", "zeros": "CK202"}.get(damage)
    if damage == "missing":
        config.unlink()
    else:
        config.write_bytes({"empty": b"", "zeros": bytes(len(wanted)), "cut": wanted[:50]}[damage])
    if code is None:
        (code,) = codes(run) - codes(copy_of("trainer5-full", "good"))
    mended(run, "copy-beside", code)
    assert config.read_bytes() == wanted
    transformers.AutoModelForCausalLM.from_pretrained(run / "checkpoint-4")


def test_a_config_of_other_shapes_is_not_taken(copy_of: Copy) -> None:
    from safetensors.numpy import load_file, save_file

    run = copy_of("trainer5-full")
    for name in ("checkpoint-2", "checkpoint-6"):
        weights = load_file(run / name / "model.safetensors")
        save_file({key: value[:1].copy() for key, value in weights.items()}, run / name / "model.safetensors")
    (run / "checkpoint-4" / "config.json").unlink()
    report = repair(str(run), settle=0)
    assert states(report)["copy-beside"] == REFUSED


def test_an_adapter_config_comes_from_a_sibling(copy_of: Copy) -> None:
    run = copy_of("trainer5-lora")
    config = run / "checkpoint-2" / "adapter_config.json"
    wanted = config.read_bytes()
    config.unlink()
    mended(run, "copy-beside", "CK118")
    assert config.read_bytes() == wanted


def test_damaged_training_arguments_come_from_a_sibling(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    arguments = run / "checkpoint-2" / "training_args.bin"
    arguments.write_bytes(b"")
    mended(run, "copy-beside", "CK201")
    assert arguments.read_bytes() == (run / "checkpoint-4" / "training_args.bin").read_bytes()


def test_a_complete_staging_directory_gets_its_name(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    (run / "checkpoint-6").rename(run / "tmp-checkpoint-6")
    before = snapshot(run)
    assert states(repair(str(run), settle=0))["restore-name"] == WAITING
    repair(str(run), settle=0, write=True)
    assert (run / "checkpoint-6" / "trainer_state.json").is_file()
    undo(str(run), settle=0)
    assert snapshot(run) == before


def test_the_trainers_own_latest_takes_the_good_one_after_quarantine(copy_of: Copy) -> None:
    trainer_utils = pytest.importorskip("transformers.trainer_utils")
    run = copy_of("trainer5-full")
    (run / "checkpoint-6" / "trainer_state.json").unlink()
    (run / "checkpoint-9999").mkdir()
    before = snapshot(run)
    assert trainer_utils.get_last_checkpoint(str(run)).endswith("checkpoint-9999")
    preview = repair(str(run), settle=0, quarantine=True)
    assert [each.path for each in preview.repairs if each.kind == "quarantine"] == ["checkpoint-6", "checkpoint-9999"]
    assert snapshot(run) == before
    report = repair(str(run), settle=0, quarantine=True, write=True)
    assert report.exit_code == 0
    assert trainer_utils.get_last_checkpoint(str(run)).endswith("checkpoint-4")
    assert (run / ".ckpt-tools" / "quarantine" / "checkpoint-6").is_dir()
    undo(str(run), settle=0)
    undo(str(run), settle=0)
    assert snapshot(run) == before


def test_nothing_is_set_aside_where_nothing_is_good(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    for name in (2, 4, 6):
        (run / f"checkpoint-{name}" / "trainer_state.json").unlink()
    report = repair(str(run), settle=0, quarantine=True, write=True)
    assert all(each.kind != "quarantine" for each in report.repairs)
    assert any("no checkpoint of the run can be resumed" in note for note in report.notes)


def test_a_checkpoint_that_is_being_saved_is_left_alone(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    newest = run / "checkpoint-6"
    (newest / "trainer_state.json").unlink()
    with open(newest / "model.safetensors", "ab") as file:
        file.write(b"x")
    before = snapshot(run)
    now = os.stat(newest / "model.safetensors").st_ctime_ns
    report = repair(str(run), write=True, unsafe=True, quarantine=True, now_ns=now)
    assert snapshot(run)["checkpoint-6/model.safetensors"] == before["checkpoint-6/model.safetensors"]
    assert newest.is_dir()
    assert any("is being written" in note for note in report.notes)


def test_unsafe_fixes_wait_for_the_word(copy_of: Copy) -> None:
    path = copy_of("trainer5-full/checkpoint-4")
    (path / ".tmpAb12Cd").write_bytes(b"left")
    assert states(repair(str(path), settle=0, write=True))["set-aside"] == UNSAFE
    assert (path / ".tmpAb12Cd").exists()
    assert states(repair(str(path), settle=0, write=True, unsafe=True))["set-aside"] == DONE
    assert not (path / ".tmpAb12Cd").exists()


def test_what_cannot_be_repaired_is_told_with_the_way_out(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    (run / "checkpoint-6" / "optimizer.pt").unlink()
    report = repair(str(run), settle=0)
    (left,) = report.left
    assert left.code == "CK103"
    assert "fall back to checkpoint-4" in left.way_out
    assert "inference" in left.way_out


def test_several_faults_of_one_checkpoint_are_repaired_one_after_the_other(copy_of: Copy) -> None:
    run = copy_of("trainer5-sharded")
    path = run / "checkpoint-2"
    before = snapshot(path)
    with open(path / "model-00002-of-00004.safetensors", "ab") as file:
        file.write(b"xx")
    (path / "model.safetensors.index.json").unlink()
    (path / "config.json").write_bytes(b"")
    report = repair(str(run), settle=0, write=True)
    assert report.exit_code == 0
    assert [name for name, (digest, _) in snapshot(path).items() if digest != before[name][0]] == []


def test_links_are_not_written_through(copy_of: Copy, tmp_path: Path) -> None:
    path = copy_of("trainer5-full/checkpoint-2")
    blob = tmp_path / "blob"
    shutil.move(path / "model.safetensors", blob)
    with open(blob, "ab") as file:
        file.write(b"x")
    (path / "model.safetensors").symlink_to(blob)
    size = blob.stat().st_size
    assert states(repair(str(path), settle=0, write=True))["cut-trailing"] == REFUSED
    assert blob.stat().st_size == size


def test_the_command(copy_of: Copy) -> None:
    run = copy_of("trainer5-sharded")
    clean = CliRunner().invoke(ckpt, ["repair", str(run)], standalone_mode=False)
    assert clean.return_value == 0
    assert "nothing that can be repaired" in clean.output
    (run / "checkpoint-4" / "model.safetensors.index.json").unlink()
    shown = CliRunner().invoke(ckpt, ["repair", str(run), "--settle", "0"], standalone_mode=False)
    assert shown.return_value == 1
    assert "nothing was changed" in shown.output
    dry = CliRunner().invoke(ckpt, ["repair", str(run), "--write", "-n", "--settle", "0"], standalone_mode=False)
    assert dry.return_value == 1
    made = CliRunner().invoke(
        ckpt, ["repair", str(run), "--write", "--settle", "0", "--format", "json"], standalone_mode=False
    )
    assert made.return_value == 0
    document = json.loads(made.output)
    assert document["schema"] == "ckpt-tools/edit/1"
    assert document["applied"] is True
    assert [fix["state"] for fix in document["fixes"]] == ["done"]
    assert document["verify"]["schema"] == "ckpt-tools/verify/1"
    with pytest.raises(NothingFoundError):
        repair(str(run / "nowhere"))


def test_the_manifest_of_a_sealed_checkpoint_follows(copy_of: Copy) -> None:
    from ckpt_tools.ops.seal import seal

    run = copy_of("trainer5-full", "moved")
    seal(str(run), settle=0)
    path = run / "checkpoint-6"
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    (path / "config.json").unlink()
    report = repair(str(run), settle=0, write=True, unsafe=True)
    assert {"cut-trailing", "copy-beside", "set-best"} == {each.kind for each in report.repairs if each.state == DONE}
    assert not {code for code in codes(run) if code.startswith("CK41")}
    assert not report.notes
