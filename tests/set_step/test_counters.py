"""Which counters move, and by how much."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ckpt_tools.core.errors import EditRefusedError, UsageError  # noqa: E402
from ckpt_tools.ops.set_step import set_step  # noqa: E402
from ckpt_tools.ops.undo import undo  # noqa: E402
from tests.set_lr.real import plain_torch, upcoming  # noqa: E402
from tests.set_lr.test_files import digests, loaded, saved, state  # noqa: E402

Copy = Callable[..., Path]
BY_METRIC = ("ReduceLROnPlateau",)
NO_FORMULA = ("ChainedScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR")


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
    else:
        assert found["scheduler"]["last_epoch"] == 9
        for then, now in zip(reference[3:], seen, strict=False):
            assert now == pytest.approx(then, rel=1e-9, abs=1e-15)
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


def test_a_new_name_and_all_that_names_it(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    before = digests(run)
    report = set_step(str(run / "checkpoint-4"), 5, rename=True)
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-5", "checkpoint-6"]
    for name in ("checkpoint-5", "checkpoint-6"):
        told = json.loads((run / name / "trainer_state.json").read_text(encoding="utf-8"))
        assert told["best_model_checkpoint"] == "trainer5-full/checkpoint-5"
    assert "renamed" in report.title
    undo(str(run))
    assert digests(run) == before


def test_a_name_that_is_taken(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    before = digests(run)
    with pytest.raises(EditRefusedError, match="exists"):
        set_step(str(run / "checkpoint-4"), 6, rename=True)
    assert digests(run) == before


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
