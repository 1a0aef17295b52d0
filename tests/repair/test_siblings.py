"""What is the same in every checkpoint of a run and was lost in one: told, copied back, and loaded by its library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import ckpt_tools
from ckpt_tools.model.findings import Finding, Severity
from ckpt_tools.ops.repair import repair
from ckpt_tools.ops.undo import undo
from ckpt_tools.reports.repair import DONE, REFUSED, UNSAFE
from tests.conftest import Copy
from tests.repair.support import codes, mended, snapshot, states
from tests.set_lr.trainer import module

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def _told(path: Path) -> list[Finding]:
    found = ckpt_tools.verify(str(path), settle=0).all_findings()
    return [each for each in found if each.code == "CK125"]


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "training_args.bin"])
def test_a_lost_file_is_copied_from_a_sibling(copy_of: Copy, name: str) -> None:
    run = copy_of("trainer5-full")
    lost = run / "checkpoint-4" / name
    wanted = lost.read_bytes()
    lost.unlink()
    (finding,) = _told(run)
    assert finding.path == "checkpoint-4"
    assert finding.severity is (Severity.NOTE if name == "training_args.bin" else Severity.WARNING)
    mended(run, "copy-beside", "CK125")
    assert lost.read_bytes() == wanted


def test_a_checkpoint_that_is_named_alone_finds_its_siblings(copy_of: Copy) -> None:
    path = copy_of("trainer5-full") / "checkpoint-6"
    (path / "generation_config.json").unlink()
    mended(path, "copy-beside", "CK125")


def test_what_was_never_everywhere_is_no_loss(copy_of: Copy) -> None:
    """Another version wrote other files, a resume brought the tokenizer, one checkpoint was given one by hand."""
    run = copy_of("trainer5-full")
    for name in (2, 4, 6):
        (run / f"checkpoint-{name}" / "special_tokens_map.json").write_text("{}")
    (run / "checkpoint-6" / "special_tokens_map.json").unlink()
    (run / "checkpoint-6" / "tokenizer_config.json").write_text("{}")
    assert not _told(run)
    (run / "checkpoint-2" / "special_tokens_map.json").unlink()
    for name in TOKENIZER:
        (run / "checkpoint-2" / name).unlink()
    assert {each.severity for each in _told(run)} == {Severity.NOTE}
    for name in TOKENIZER:
        (run / "checkpoint-4" / name).unlink()
    assert not _told(run)


def test_a_save_that_did_not_come_so_far_is_told_once(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    for path in (run / "checkpoint-6").iterdir():
        if path.name not in ("model.safetensors", "config.json", "generation_config.json"):
            path.unlink()
    assert "CK101" in codes(run)
    assert not _told(run)


def test_siblings_that_disagree_make_it_unsafe(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    config = run / "checkpoint-6" / "generation_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "temperature": 0.5}))
    (run / "checkpoint-4" / "generation_config.json").unlink()
    assert states(repair(str(run), settle=0, write=True))["copy-beside"] == UNSAFE
    assert not (run / "checkpoint-4" / "generation_config.json").exists()
    report = repair(str(run), settle=0, write=True, unsafe=True)
    assert states(report)["copy-beside"] == DONE


def test_an_adapter_config_of_another_rank_is_not_taken(copy_of: Copy) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    run = copy_of("trainer5-lora")
    weights = run / "checkpoint-2" / "adapter_model.safetensors"
    tensors = safetensors.load_file(weights)
    safetensors.save_file({name: each[:1].copy() for name, each in tensors.items()}, weights)
    (run / "checkpoint-4" / "adapter_config.json").unlink()
    (row,) = [each for each in repair(str(run), settle=0, write=True).repairs if each.code == "CK118"]
    assert row.state == REFUSED
    assert "other names or shapes" in str(row.reason)


def test_a_file_that_is_damaged_everywhere_is_not_spread(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    for name in (2, 6):
        place = run / f"checkpoint-{name}" / "tokenizer.json"
        place.write_bytes(bytes(place.stat().st_size))
    (run / "checkpoint-4" / "tokenizer.json").unlink()
    rows = [each for each in repair(str(run), settle=0).repairs if each.found == "tokenizer.json is missing"]
    assert [each.state for each in rows] == [REFUSED]


def test_the_restored_tokenizer_is_the_one_that_was_lost(copy_of: Copy) -> None:
    transformers = pytest.importorskip("transformers")
    run = copy_of("trainer5-full")
    path = run / "checkpoint-6"
    wanted = transformers.AutoTokenizer.from_pretrained(path)
    words = " ".join(list(wanted.get_vocab())[:8])
    for name in TOKENIZER:
        (path / name).unlink()
    with pytest.raises((OSError, ValueError)):
        transformers.AutoTokenizer.from_pretrained(path)
    assert repair(str(run), settle=0, write=True).exit_code == 0
    found = transformers.AutoTokenizer.from_pretrained(path)
    assert type(found) is type(wanted)
    assert found.get_vocab() == wanted.get_vocab()
    assert found(words)["input_ids"] == wanted(words)["input_ids"]
    for _ in TOKENIZER:
        undo(str(path), settle=0)
    assert not any((path / name).exists() for name in TOKENIZER)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "zeros", "names"])
def test_peft_loads_a_repaired_adapter(copy_of: Copy, damage: str) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from safetensors.torch import load_file, save_file

    run = copy_of("trainer5-lora")
    path = run / "checkpoint-4"
    shutil.copytree(path, run.parent / "good")

    def answer(place: Path) -> Any:
        model = peft.PeftModel.from_pretrained(module("tiny").llama(), str(place)).eval()
        with torch.no_grad():
            return model(torch.arange(1, 9)[None]).logits

    wanted = answer(run.parent / "good")
    config, weights = path / "adapter_config.json", path / "adapter_model.safetensors"
    if damage == "missing":
        config.unlink()
    elif damage == "zeros":
        config.write_bytes(bytes(config.stat().st_size))
    else:
        tensors = load_file(weights)
        save_file({name.removeprefix("base_model.model."): each for name, each in tensors.items()}, weights)
    before = snapshot(run)
    report = repair(str(run), settle=0, write=True)
    assert report.exit_code == 0, report.repairs
    assert torch.equal(answer(path), wanted)
    undo(str(path), settle=0)
    assert snapshot(run) == before
