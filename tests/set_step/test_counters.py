"""Which counters move, and by how much."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ckpt_tools.core.errors import EditRefusedError, UsageError  # noqa: E402
from ckpt_tools.ops.set_lr import set_lr  # noqa: E402
from ckpt_tools.ops.set_step import set_step  # noqa: E402
from ckpt_tools.ops.undo import undo  # noqa: E402
from tests.set_lr.real import plain_torch, upcoming  # noqa: E402
from tests.set_lr.test_files import digests, loaded, saved, state  # noqa: E402

Copy = Callable[..., Path]
BY_METRIC = ("ReduceLROnPlateau",)
NO_FORMULA = ("LambdaLR", "MultiplicativeLR")


def steps(value: dict[str, Any]) -> list[Any]:
    return [entry["step"] for entry in value["optimizer"]["state"].values()]


def test_what_lagged_behind_still_does(tmp_path: Path) -> None:
    made = state([1e-3, 1e-3, 1e-3])
    made["step"] = 100
    for number, count in enumerate((100.0, 97.0, 4.0)):
        made["optimizer"]["state"][number]["step"] = torch.tensor(count)
    path = saved(tmp_path, made)
    set_step(str(path), 150)
    assert [float(step) for step in steps(loaded(path))] == [150.0, 147.0, 54.0]
    set_step(str(path), 10)
    assert [float(step) for step in steps(loaded(path))] == [10.0, 7.0, 0.0]
    assert loaded(path)["step"] == 10


def test_integers_of_any_length(tmp_path: Path) -> None:
    made = state([1e-3])
    made["optimizer"]["state"][0]["step"] = 5
    path = saved(tmp_path, made)
    before = path.read_bytes()
    targets = (200, 300, 70_000, 1 << 40, 7, 0)
    for target in targets:
        set_step(str(path), target)
        found = loaded(path)
        assert (steps(found), found["step"]) == ([target], target)
    for _ in targets:
        undo(str(path))
    assert path.read_bytes() == before


def counted(scheduler: dict[str, Any]) -> Any:
    """How often a scheduler was stepped; a chain counts in its parts alone."""
    return scheduler["last_epoch"] if "last_epoch" in scheduler else scheduler["_schedulers"][0]["last_epoch"]


@pytest.mark.parametrize("kind", sorted(plain_torch().SCHEDULES))
def test_a_real_resume_goes_on_as_from_the_new_step(copy_of: Copy, kind: str) -> None:
    path = copy_of(f"plain/schedules/{kind}.pt")
    reference = upcoming(path, kind)
    report = set_step(str(path), 9)
    found = loaded(path)
    assert {float(step) for step in steps(found)} == {9.0}
    seen = upcoming(path, kind, steps=8)
    if kind in BY_METRIC:
        assert any("evaluations" in note for note in report.notes)
    elif kind in NO_FORMULA:
        assert any("rates stay" in note for note in report.notes)
        assert seen[0] == reference[0]
        if kind == "LambdaLR":  # its function decides again after one step
            assert seen[1:6] == reference[4:9]
    else:
        assert counted(found["scheduler"]) == 9
        for then, now in zip(reference[3:], seen, strict=False):
            assert now == pytest.approx(then, rel=1e-9, abs=1e-15)
        assert [row.step for row in report.rates] == [10, 11, 12, 13, 14]
        for row, then, now in zip(report.rates, reference, seen, strict=False):
            assert row.before == pytest.approx(then, rel=1e-9, abs=1e-15)
            assert row.after == pytest.approx(now, rel=1e-9, abs=1e-15)
    assert all(math.isfinite(rate) for row in seen for rate in row)


def test_the_articles_case(copy_of: Copy) -> None:
    """The files of a later step's state in an earlier checkpoint: only what is of another step moves."""
    run = copy_of("trainer5-full")
    path = run / "checkpoint-4"
    (path / "trainer_state.json").write_bytes((run / "checkpoint-6" / "trainer_state.json").read_bytes())
    own = {name: value for name, value in digests(path).items() if name != "trainer_state.json"}
    report = set_step(str(path), 4)
    told = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    assert told["global_step"] == 4
    assert told["epoch"] == pytest.approx(1.0)
    assert max(entry["step"] for entry in told["log_history"]) == 4
    assert {name: value for name, value in digests(path).items() if name != "trainer_state.json"} == own
    assert any("log_history" in note for note in report.notes)
    assert not any("weights and moments" in note for note in report.notes)


@pytest.mark.parametrize("part", ["trainer-state", "scheduler", "optimizer"])
def test_only_one_part(copy_of: Copy, part: str) -> None:
    path = copy_of("trainer5-full") / "checkpoint-4"
    before = digests(path)
    set_step(str(path), 3, only=[part])
    name = {"trainer-state": "trainer_state.json", "scheduler": "scheduler.pt", "optimizer": "optimizer.pt"}[part]
    assert {key for key, value in digests(path).items() if value != before[key]} == {name}


def test_the_directory_that_says_another_step_is_told(copy_of: Copy) -> None:
    report = set_step(str(copy_of("trainer5-full") / "checkpoint-4"), 3, dry_run=True)
    assert any("--rename" in note for note in report.notes)
    assert any("weights and moments remain those of step 4" in note for note in report.notes)
    assert any("epoch 1 after 3 of its batches" in note for note in report.notes)


def test_nothing_that_counts(copy_of: Copy) -> None:
    with pytest.raises((EditRefusedError, UsageError)):
        set_step(str(copy_of("hf-model/tiny-llama")), 3)
    with pytest.raises(UsageError):
        set_step(str(copy_of("trainer5-full") / "checkpoint-4"), -1)


def test_an_integer_step_and_factored_moments(copy_of: Copy) -> None:
    path = copy_of("trainer5-adafactor-cosine") / "checkpoint-3"
    set_step(str(path), 300)
    found = torch.load(path / "optimizer.pt", weights_only=True)
    assert {entry["step"] for entry in found["state"].values()} == {300}


@pytest.mark.parametrize("name", ["trainer5-scaler", "trainer5-scaler-unfused"])
def test_skipped_steps_stay_skipped(copy_of: Copy, name: str) -> None:
    path = copy_of(name) / "checkpoint-4"
    set_step(str(path), 10)
    found = torch.load(path / "optimizer.pt", weights_only=True)
    assert {float(entry["step"]) for entry in found["state"].values()} == {9.0}
    epoch = torch.load(path / "scheduler.pt", weights_only=True)["last_epoch"]
    assert epoch == (9 if name == "trainer5-scaler-unfused" else 10)


def test_a_loop_that_accumulates_counts_its_steps_apart(tmp_path: Path) -> None:
    """100 iterations of which every fourth is a step of the optimizer."""
    made = state([1e-3, 1e-3])
    made["step"] = 100
    for number, count in enumerate((25.0, 20.0)):
        made["optimizer"]["state"][number]["step"] = torch.tensor(count)
    path = saved(tmp_path, made)
    report = set_step(str(path), 200)
    assert [float(step) for step in steps(loaded(path))] == [50.0, 45.0]
    assert any("one in 4 steps" in note for note in report.notes)


def test_a_count_that_is_no_step_stays(tmp_path: Path) -> None:
    made = state([1e-3])
    made["step"] = 1000
    made["optimizer"]["state"][0]["step"] = torch.tensor(77.0)
    path = saved(tmp_path, made)
    report = set_step(str(path), 2000)
    assert [float(step) for step in steps(loaded(path))] == [77.0]
    assert any("counts to 77" in note for note in report.notes)


@pytest.mark.parametrize("epoch", [3, 2])
def test_a_scheduler_of_epochs_stays(tmp_path: Path, epoch: int) -> None:
    """Loops save before or after they count the epoch."""
    scheduler = {
        "step_size": 2, "gamma": 0.5, "base_lrs": [1e-3], "last_epoch": 3, "_step_count": 4, "_last_lr": [5e-4],
    }  # fmt: skip
    made = state([5e-4], scheduler, initial_lr=1e-3)
    made |= {"step": 30, "epoch": epoch}
    made["optimizer"]["state"][0]["step"] = torch.tensor(30.0)
    path = saved(tmp_path, made)
    report = set_step(str(path), 40)
    found = loaded(path)
    assert (found["step"], found["scheduler"], found["epoch"]) == (40, scheduler, epoch)
    assert [group["lr"] for group in found["optimizer"]["param_groups"]] == [5e-4]
    assert any("epochs, most likely" in note for note in report.notes)


def test_a_scheduler_that_every_process_steps(tmp_path: Path) -> None:
    """accelerate calls step() once per process; the step itself is stored nowhere but in the optimizer."""
    folder = tmp_path / "state"
    folder.mkdir()
    made = state([1e-3], initial_lr=1e-3)
    scheduler = {
        "step_size": 50, "gamma": 0.5, "base_lrs": [1e-3], "last_epoch": 20, "_step_count": 21, "_last_lr": [1e-3],
    }  # fmt: skip
    for entry in made["optimizer"]["state"].values():
        entry["step"] = torch.tensor(10.0)
    torch.save(made["optimizer"], folder / "optimizer.bin")
    torch.save(scheduler, folder / "scheduler.bin")
    torch.save(made["model"], folder / "pytorch_model.bin")
    torch.save({"step": 0}, folder / "random_states_0.pkl")
    set_step(str(folder), 30)
    assert torch.load(folder / "scheduler.bin", weights_only=True)["last_epoch"] == 60
    found = torch.load(folder / "optimizer.bin", weights_only=True)
    assert (float(found["state"][0]["step"]), found["param_groups"][0]["lr"]) == (30.0, 5e-4)


@pytest.mark.parametrize(
    "edit", [lambda path, **more: set_step(path, 5, **more), lambda path, **more: set_lr(path, peak=1e-3, **more)]
)
def test_a_save_in_progress_is_refused(copy_of: Copy, edit: Callable[..., Any]) -> None:
    run = copy_of("trainer5-full")
    path = run / "checkpoint-6"
    (path / "trainer_state.json").unlink()
    before = digests(run)
    newest = max(each.stat().st_ctime_ns for each in path.iterdir())
    for dry_run in (True, False):
        with pytest.raises(EditRefusedError, match="being written") as caught:
            edit(str(path), settle=60.0, now_ns=newest + 10**10, dry_run=dry_run)
        assert caught.value.exit_code == 5
    assert digests(run) == before
    assert not (path / ".ckpt-tools").exists()
    assert edit(str(path), settle=60.0, now_ns=newest + 10**12).applied
    assert edit(str(run / "checkpoint-4"), settle=60.0, now_ns=newest + 10**10).applied


def test_undo_gives_the_times_back_and_tells_them(copy_of: Copy) -> None:
    path = copy_of("trainer5-full") / "checkpoint-4"
    day = 86_400 * 10**9
    for number, each in enumerate([*sorted(path.iterdir()), path]):
        os.utime(each, ns=(day, (number + 10) * day + 123_456_789))
    times = {each.name: each.stat().st_mtime_ns for each in (path, *path.iterdir())}
    done = set_step(str(path), 3)
    for file in done.files:
        assert file.mtime_before_ns == times[file.path]
        assert file.mtime_after_ns == (path / file.path).stat().st_mtime_ns != times[file.path]
    assert path.stat().st_mtime_ns == times[path.name]
    back = undo(str(path))
    assert {file.path: file.mtime_after_ns for file in back.files} == {
        file.path: times[file.path] for file in done.files
    }
    assert {
        name: (path.parent / name if name == path.name else path / name).stat().st_mtime_ns for name in times
    } == times


def test_nothing_that_is_meant_moves(copy_of: Copy) -> None:
    path = copy_of("trainer5-plateau") / "checkpoint-4"
    before = digests(path)
    report = set_step(str(path), 9, only=["scheduler"])
    assert (report.applied, report.title) == (False, "every counter is at step 9 already, or stays")
    assert any("counts evaluations" in note for note in report.notes)
    assert digests(path) == before
