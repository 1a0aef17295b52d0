"""torchtune and fairseq: what their resumes read, by their sources, is edited as a whole or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ckpt_tools.core.errors import EditRefusedError, UsageError  # noqa: E402
from ckpt_tools.ops.set_lr import set_lr  # noqa: E402
from ckpt_tools.ops.set_step import set_step  # noqa: E402
from ckpt_tools.ops.undo import undo  # noqa: E402


def optimizer(steps: int) -> dict[str, Any]:
    entries = {0: {"step": torch.tensor(float(steps)), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}}
    return {"state": entries, "param_groups": [{"lr": 1e-4, "initial_lr": 2e-4, "params": [0]}]}


def recipe(folder: Path, name: str = "epoch_2", **more: Any) -> Path:
    """What ``full_finetune_distributed.py`` leaves after 25 steps of 10 each epoch."""
    made = {
        "optimizer": optimizer(25), "seed": 1, "epochs_run": 2, "total_epochs": 4, "max_steps_per_epoch": None,
        "steps_run": 25, "total_training_steps": 40, "dataloader": {"_num_yielded": 5}, **more,
    }  # fmt: skip
    (folder / name).mkdir()
    torch.save({"w": torch.ones(3)}, folder / name / "model-00001-of-00001.bin")
    torch.save(made, folder / name / "recipe_state.pt")
    return folder / name


def read(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(checkpoint / "recipe_state.pt", weights_only=True)
    return found


@pytest.mark.parametrize(("target", "epochs"), [(38, 3), (30, 3), (29, 2), (7, 0), (0, 0)])
def test_the_counts_of_torchtune_move_together(tmp_path: Path, target: int, epochs: int) -> None:
    path = recipe(tmp_path)
    before = (path / "recipe_state.pt").read_bytes()
    report = set_step(str(path), target, settle=0)
    found = read(path)
    assert (found["steps_run"], found["epochs_run"]) == (target, epochs)
    assert float(found["optimizer"]["state"][0]["step"]) == target
    assert (found["seed"], found["total_epochs"], found["total_training_steps"]) == (1, 4, 40)
    assert any("data loader's own state" in note for note in report.notes)
    assert any("start of that epoch" in note for note in report.notes) == bool(target % 10)
    assert not any("--rename" in note for note in report.notes)
    undo(str(path), settle=0)
    assert (path / "recipe_state.pt").read_bytes() == before


@pytest.mark.parametrize("more", [{"total_training_steps": None}, {"epochs_run": 1}, {"total_training_steps": 41}])
def test_epochs_stay_where_their_length_cannot_be_told(tmp_path: Path, more: dict[str, Any]) -> None:
    path = recipe(tmp_path, **more)
    report = set_step(str(path), 38, settle=0)
    assert (read(path)["steps_run"], read(path)["epochs_run"]) == (38, more.get("epochs_run", 2))
    assert any(note.startswith("epochs_run stays") for note in report.notes)


def test_a_recipe_that_counts_epochs_alone_is_refused(tmp_path: Path) -> None:
    path = recipe(tmp_path, steps_run=None)
    with pytest.raises(EditRefusedError, match="counts epochs alone"):
        set_step(str(path), 38, settle=0)
    assert read(path)["epochs_run"] == 2


def test_a_directory_that_is_named_for_its_epoch_is_not_named_for_a_step(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    with pytest.raises(UsageError, match="named by their step"):
        set_step(str(path), 38, rename=True, settle=0)
    assert path.is_dir()
    path = recipe(tmp_path, "step_25")
    set_step(str(path), 38, rename=True, settle=0)
    assert read(tmp_path / "step_38")["steps_run"] == 38


def test_the_rate_of_torchtune_is_that_its_own_schedule_begins_with(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    report = set_lr(str(path), 1e-5, settle=0)
    (group,) = read(path)["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(1e-5)
    assert group["initial_lr"] == pytest.approx(2e-5)
    assert any("makes its own at each start" in note for note in report.notes)


@pytest.mark.parametrize("name", ["checkpoint_last.pt", "checkpoint_2_25.pt", "renamed.pt"])
def test_fairseq_is_refused_with_what_decides(tmp_path: Path, name: str) -> None:
    history = {"criterion_name": "C", "optimizer_name": "O", "lr_scheduler_state": {"best": 1.0}, "num_updates": 25}
    made = {
        "args": None, "cfg": {}, "model": {"w": torch.ones(3)}, "criterion": None, "optimizer_history": [history],
        "task_state": {}, "extra_state": {"train_iterator": {"epoch": 2, "iterations_in_epoch": 5}},
        "last_optimizer_state": optimizer(25),
    }  # fmt: skip
    torch.save(made, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(EditRefusedError, match="no stored rate lasts") as caught:
        set_lr(str(tmp_path / name), 1e-5, settle=0)
    assert "--lr" in (caught.value.hint or "")
    with pytest.raises(EditRefusedError, match="optimizer_history"):
        set_step(str(tmp_path / name), 30, settle=0)
    assert (tmp_path / name).read_bytes() == before
