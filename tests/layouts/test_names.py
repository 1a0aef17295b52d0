"""Directories whose names belong to one framework and whose contents to another, and names that hold several models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.core.errors import NothingFoundError
from ckpt_tools.layouts.match import open_run
from ckpt_tools.model.findings import Purpose, Severity, Verdict
from tests.conftest import FIXTURES

SHARDED = FIXTURES / "llama-recipes/sharded-with-optimizer/fine-tuned-meta-llama/tiny-llama"


def a_run(home: Path, fixture: str, *names: str) -> Path:
    for name in names:
        shutil.copytree(FIXTURES / fixture, home / name)
    return home


def loud(path: Path) -> list[str]:
    report = ckpt_tools.verify(str(path), settle=0)
    return [finding.code for finding in report.all_findings() if finding.severity > Severity.NOTE]


@pytest.mark.parametrize("name", ["checkpoint-{}", "checkpoint_{}", "step_{}"])
@pytest.mark.parametrize("settle", [0, 3600])
def test_dcp_is_known_by_what_is_in_it(name: str, settle: int, tmp_path: Path) -> None:
    """The names are those of the Trainer and of accelerate too; a save of DCP has no trainer_state.json to wait for."""
    run = a_run(tmp_path / "run", "dcp/plain", name.format(2), name.format(4))
    found = open_run(run)
    assert found.layout == "dcp"
    assert [(each.layout, each.step) for each in found.checkpoints] == [("dcp", 2), ("dcp", 4)]
    for path in (run, run / name.format(4)):
        report = ckpt_tools.verify(str(path), settle=settle)
        assert {each.verdicts[Purpose.RESUME] for each in report.checkpoints} == {Verdict.READY}
    assert ckpt_tools.latest(str(run), settle=settle).path == str(run / name.format(4))


@pytest.mark.parametrize("fixture", ["accelerate/bin", "accelerate/scaler", "fsdp/fsdp2-sharded", "fsdp/fsdp2-full"])
def test_what_save_state_wrote_under_the_name_of_the_trainer_is_whole(fixture: str, tmp_path: Path) -> None:
    """`accelerator.save_state("checkpoint-500")` is what many scripts call."""
    run = a_run(tmp_path / "run", fixture, "checkpoint-2", "checkpoint-4")
    assert [(each.layout, each.step) for each in open_run(run).checkpoints] == [("accelerate", 2), ("accelerate", 4)]
    assert open_run(run / "checkpoint-4").layout == "accelerate"
    assert loud(run) == loud(run / "checkpoint-4") == []
    assert ckpt_tools.latest(str(run), settle=0).path == str(run / "checkpoint-4")


def test_a_trainer_that_was_interrupted_is_still_the_trainers(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", "fsdp/trainer-full", ".")
    (checkpoint,) = run.glob("checkpoint-*")
    for name in ("trainer_state.json", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"):
        (checkpoint / name).unlink()
    assert open_run(run).checkpoints[0].layout == "hf-trainer"
    assert "CK101" in loud(run)


def test_two_models_of_one_organisation_are_two_checkpoints(tmp_path: Path) -> None:
    home = tmp_path / "fsdp"
    for name in ("Llama-2-7b", "Llama-2-13b"):
        shutil.copytree(SHARDED, home / "fine-tuned-meta-llama" / name)
    (home / "fine-tuned-meta-llama/Llama-2-13b/train_params.yaml").unlink()
    shutil.copytree(FIXTURES / "llama-recipes/full/fine-tuned-tiny-llama", home / "fine-tuned-tiny-llama")
    both = ["fine-tuned-meta-llama/Llama-2-13b", "fine-tuned-meta-llama/Llama-2-7b"]
    assert [each.path for each in open_run(home).checkpoints] == ["fine-tuned-tiny-llama", *both]
    assert [each.path for each in open_run(home / "fine-tuned-meta-llama").checkpoints] == ["Llama-2-13b", "Llama-2-7b"]
    assert loud(home) == loud(home / "fine-tuned-meta-llama") == []
    (home / both[0] / "__0_0.distcp").unlink()
    report = ckpt_tools.verify(str(home), settle=0)
    states = {each.path: each.verdicts[Purpose.INFERENCE] for each in report.checkpoints}
    assert states == {"fine-tuned-tiny-llama": Verdict.READY, both[0]: Verdict.BROKEN, both[1]: Verdict.READY}


def test_one_model_of_an_organisation_is_its_folder(tmp_path: Path) -> None:
    shutil.copytree(SHARDED, tmp_path / "fine-tuned-meta-llama" / "Llama-2-7b")
    (checkpoint,) = open_run(tmp_path).checkpoints
    assert (checkpoint.path, len(checkpoint.parts)) == ("fine-tuned-meta-llama", 4)


def test_the_directory_that_one_is_in_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FIXTURES / "torchtitan/checkpoint/step-4", tmp_path / "step-4")
    monkeypatch.chdir(tmp_path / "step-4")
    assert open_run(".").layout == "torchtitan"
    shutil.copytree(SHARDED, tmp_path / "fine-tuned-x")
    (tmp_path / "fine-tuned-x" / "train_params.yaml").unlink()
    monkeypatch.chdir(tmp_path / "fine-tuned-x")
    assert open_run(".").layout == "llama-recipes"


@pytest.mark.parametrize(
    ("fixture", "layout", "names", "steps"),
    [
        ("accelerate/bin", "accelerate", ("step_100", "step_200"), [100, 200]),
        ("accelerate/bin", "accelerate", ("epoch_0", "epoch_1"), [None, None]),
        ("dcp/plain", "dcp", ("5", "10"), [3, 3]),
        ("deepspeed/stage1-fp32/global_step4", "deepspeed", ("step_2", "step_4"), [4, 4]),
        ("hf-model/tiny-llama", "hf-model", ("epoch-1", "epoch-2"), [None, None]),
    ],
)
def test_checkpoints_with_names_of_the_users_own_are_a_run(
    fixture: str, layout: str, names: tuple[str, str], steps: list[int | None], tmp_path: Path
) -> None:
    run = a_run(tmp_path / "run", fixture, *names)
    found = open_run(run)
    assert [(each.path, each.layout) for each in found.checkpoints] == [(name, layout) for name in names]
    report = ckpt_tools.verify(str(run), settle=0)
    assert [each.step for each in report.checkpoints] == steps
    assert ckpt_tools.latest(str(run), settle=0, purpose=Purpose.INFERENCE).path == str(run / names[1])


def test_tags_of_any_name_are_seen_beside_the_one_that_latest_names(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", "deepspeed/stage1-fp32/global_step4", "step_2", "step_4")
    (run / "latest").write_text("step_4", encoding="utf-8")
    (run / "step_2/mp_rank_00_model_states.pt").unlink()
    verdicts = {each.path: each.verdicts[Purpose.RESUME] for each in ckpt_tools.verify(str(run), settle=0).checkpoints}
    assert verdicts == {"step_2": Verdict.BROKEN, "step_4": Verdict.READY}


@pytest.mark.parametrize("kept", [(), ("model.safetensors",)])
@pytest.mark.parametrize("name", ["step_{}", "checkpoint_{}"])
def test_a_save_that_died_early_counts_as_one_of_the_run(name: str, kept: tuple[str, ...], tmp_path: Path) -> None:
    """accelerate's ``load_state`` opens optimizer.bin without looking whether it is there."""
    fixture = FIXTURES / "accelerate/auto/checkpoints/checkpoint_1"
    run = a_run(tmp_path / "run", "accelerate/auto/checkpoints/checkpoint_1", name.format(1), name.format(2))
    died = run / name.format(3)
    died.mkdir()
    for each in kept:
        shutil.copy(fixture / each, died)
    report = ckpt_tools.verify(str(run), settle=0)
    verdicts = {each.path: each.verdicts[Purpose.RESUME] for each in report.checkpoints}
    assert verdicts == {name.format(1): Verdict.READY, name.format(2): Verdict.READY, died.name: Verdict.BROKEN}
    assert ckpt_tools.latest(str(run), settle=0).path == str(run / name.format(2))


def test_a_number_beside_checkpoints_may_be_anything(tmp_path: Path) -> None:
    run = a_run(tmp_path, "dcp/plain", "500", "1000")
    (run / "2026").mkdir()
    (run / "2026/notes.txt").write_text("nothing", encoding="utf-8")
    assert [each.path for each in open_run(run).checkpoints] == ["500", "1000"]


def test_numbers_alone_make_no_run(tmp_path: Path) -> None:
    for name in ("1", "2", "epoch_3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("nothing", encoding="utf-8")
    with pytest.raises(NothingFoundError):
        open_run(tmp_path)


def test_a_checkpoint_among_many_numbered_directories_is_found(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"step_{number:03}").mkdir()
    run = a_run(tmp_path, "accelerate/bin", "step_100")
    assert ckpt_tools.latest(str(run), settle=0).path == str(run / "step_100")
    assert len(open_run(run).checkpoints) == 101


def test_checkpoints_further_down_are_pointed_to(tmp_path: Path) -> None:
    run = a_run(tmp_path / "logs/version_0/checkpoints", "accelerate/bin", "step_1")
    with pytest.raises(NothingFoundError) as raised:
        open_run(tmp_path / "logs")
    assert str(run) in (raised.value.hint or "")


def test_a_file_of_words_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("# Notes\n\nnothing\n", encoding="utf-8")
    with pytest.raises(NothingFoundError):
        ckpt_tools.verify(str(tmp_path / "notes"))


def test_one_file_of_a_checkpoint_is_not_called_ready_nor_the_latest() -> None:
    piece = str(FIXTURES / "trainer5-full/checkpoint-2/config.json")
    report = ckpt_tools.verify(piece)
    assert any("rest of the checkpoint" in skip.reason for skip in report.checkpoints[0].skipped)
    assert not {"ready", "broken"} & {cell for table in report.blocks()[:1] for cell in table.rows[0]}
    with pytest.raises(NothingFoundError):
        ckpt_tools.latest(piece)
