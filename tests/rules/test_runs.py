"""CK6xx: what shows only when the checkpoints of a run are seen together."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tools.layouts.view import View
from ckpt_tools.model.findings import Severity
from tests.rules import damage
from tests.rules.damage import NOW_S, Damage
from tests.rules.judge import codes, finding, judge

Copy = Callable[..., Path]

FULL, STATE = "trainer5-full", "trainer_state.json"
RUNS = ("CK6",)


def with_old_run(run: Path) -> None:
    """An older training's checkpoint-5000 beside the ones here: other losses, the same spacing."""
    (run / "checkpoint-6").rename(run / "checkpoint-5000")
    history = [{"step": step, "loss": 9 - step / 1000, "epoch": step / 100} for step in range(1, 5001)]
    damage.with_json(STATE, log_history=history, global_step=5000, max_steps=9000)(run / "checkpoint-5000")


def history(**steps: float) -> Damage:
    entries = [{"step": int(step[1:]), "loss": loss} for step, loss in steps.items()]
    return damage.with_json(STATE, log_history=entries)


def test_two_runs_in_one_directory_are_told_by_their_logs(copy_of: Copy) -> None:
    run = copy_of(FULL)
    with_old_run(run)
    os.utime(run / "checkpoint-5000", (NOW_S - 50 * 3600, NOW_S - 50 * 3600))
    os.utime(run / "checkpoint-4", (NOW_S, NOW_S))
    found = finding(judge(run), "CK601")
    assert found.severity is Severity.WARNING
    assert found.message == "checkpoint-4 and checkpoint-5000 are of different trainings"
    assert found.detail[0].startswith("loss at step 1: 3.45103 in the one, 8.999 in the other")
    assert found.detail[1] == "checkpoint-4 is the newer directory, by 50 hours"


@pytest.mark.parametrize(
    ("lower", "higher", "expected"),
    [
        (history(s1=3.0, s2=2.0), history(s1=3.0, s2=2.0, s3=1.5), set()),
        (history(s1=3.0, s2=2.0), history(s1=3.0, s2=2.1, s3=1.5), {"CK601"}),
        (history(s1=3.0, s2=2.0), history(s1=3.0, s3=1.5), {"CK601"}),
        (history(s1=3.0, s2=2.0), history(s3=1.5, s4=1.4), set()),
        (
            history(s1=3.0, s2=2.0),
            damage.together(history(s3=1.5), damage.with_json(STATE, logging_steps=3)),
            {"CK601"},
        ),
        (history(s1=3.0, s2=2.0), damage.with_json(STATE, log_history=[]), set()),
        (history(s1=3.0, s2=float("nan")), history(s1=3.0, s2=float("nan"), s3=1.0), set()),
        (damage.with_json(STATE, log_history="gone"), history(s1=3.0), set()),
        (damage.without(STATE), history(s1=3.0), {"CK101"}),
        (
            damage.with_json(STATE, log_history=[{"step": 2, "eval_loss": 1.0}]),
            damage.with_json(STATE, log_history=[{"step": 2, "eval_loss": 1.5}]),
            {"CK601"},
        ),
    ],
    ids=[
        "prefix",
        "other loss",
        "a step not logged",
        "beginning lost",
        "complete with other spacing",
        "history lost",
        "NaN",
        "no list",
        "no state",
        "other evaluation",
    ],
)
def test_a_history_is_of_the_same_training_while_nothing_contradicts(
    lower: Damage, higher: Damage, expected: set[str], copy_of: Copy
) -> None:
    run = copy_of("trainer5-bf16")
    lower(run / "checkpoint-2")
    higher(run / "checkpoint-4")
    assert codes(judge(run)) == expected


def test_trainings_of_a_search_are_not_mixed_up(copy_of: Copy) -> None:
    run = copy_of("trainer5-bf16", "out/run-0")
    copy_of("trainer5-plateau", "out/run-1")
    damage.inside("checkpoint-2", history(s1=7.0))(run)
    assert "CK601" in codes(judge(run))
    damage.inside("checkpoint-4", history(s1=7.0, s3=1.0))(run)
    assert codes(judge(run.parent)) == set()


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (None, None),
        ("trainer5-full/checkpoint-4", None),
        ("./trainer5-full/checkpoint-4/", None),
        ("checkpoint-4", None),
        ("trainer5-full/checkpoint-3", "the best checkpoint, checkpoint-3, is not here"),
        ("/data/old/trainer5-full/checkpoint-3", "the best checkpoint, checkpoint-3, is not here"),
        ("/data/old/out/checkpoint-4", "the best checkpoint, checkpoint-4, is named by the path of another place"),
        ("D:\\runs\\out\\checkpoint-4", "the best checkpoint, checkpoint-4, is named by the path of another place"),
        ("elsewhere/checkpoint-4", "the best checkpoint, checkpoint-4, is named by the path of another place"),
    ],
)
def test_the_best_checkpoint(best: str | None, words: str | None, copy_of: Copy) -> None:
    run = copy_of(FULL)
    damage.with_json(STATE, best_model_checkpoint=best)(run / "checkpoint-6")
    for path in (run, run / "checkpoint-6"):
        report = judge(path, families=("CK602",))
        found = list(report.all_findings())
        assert [finding.message for finding in found] == ([words] if words else [])
        assert all(finding.severity is Severity.NOTE for finding in found)


def test_the_path_that_fits_is_offered(copy_of: Copy) -> None:
    run = copy_of(FULL)
    damage.with_json(STATE, best_model_checkpoint="/data/old/out/checkpoint-4")(run / "checkpoint-6")
    fix = finding(judge(run), "CK602").fix
    assert fix is not None
    assert fix.params == {
        "path": "checkpoint-6/trainer_state.json",
        "key": "best_model_checkpoint",
        "value": str(run / "checkpoint-4"),
    }
    damage.with_json(STATE, best_model_checkpoint=str(run / "checkpoint-4"))(run / "checkpoint-6")
    assert codes(judge(run, families=("CK602",)), Severity.NOTE) == set()


def test_a_finished_run_has_nothing_left(copy_of: Copy) -> None:
    run = copy_of(FULL)
    found = finding(judge(run), "CK603")
    assert (found.path, found.message) == ("checkpoint-6", "step 6 of 6: nothing left to train")
    assert found.severity is Severity.NOTE
    damage.with_json(STATE, max_steps=9)(run / "checkpoint-6")
    assert codes(judge(run, families=("CK603",)), Severity.NOTE) == set()
    damage.with_json(STATE, max_steps=2)(run / "checkpoint-4")
    assert codes(judge(run, families=("CK603",)), Severity.NOTE) == set()


@pytest.mark.parametrize(
    ("limit", "ages", "expected"),
    [
        (2, (1, 2, 30), {"CK604"}),
        (None, (1, 2, 30), set()),
        (2, (30, 2, 1), set()),
        (2, (1.2, 1.1, 1.5), set()),
        (2, (40, 2, 30), set()),
    ],
    ids=["newest has the oldest time", "no limit", "in order", "a fresh copy", "one older"],
)
def test_a_rotation_that_would_take_the_newest(
    limit: int | None,
    ages: tuple[float, ...],
    expected: set[str],
    copy_of: Copy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = copy_of(FULL)
    for step, hours in zip((2, 4, 6), ages, strict=True):
        damage.aged(f"checkpoint-{step}", int(hours * damage.LAST_HOUR))(run)
    monkeypatch.setattr(View, "training_args", {"save_total_limit": limit})
    assert codes(judge(run, families=("CK604",)), Severity.NOTE) == expected


def test_two_names_for_one_step(copy_of: Copy) -> None:
    run = copy_of(FULL)
    damage.with_copy("checkpoint-4", "checkpoint-0004")(run)
    report = judge(run)
    assert codes(report) == {"CK605"}
    assert finding(report, "CK605").related == ("checkpoint-0004", "checkpoint-4")


def test_files_of_one_step_may_be_parts_of_one(copy_of: Copy, tmp_path: Path) -> None:
    for name in ("model_2.pt", "optimizer_2.pt"):
        shutil.copy(copy_of(FULL, name[0]) / "checkpoint-4" / "optimizer.pt", tmp_path / name)
    assert codes(judge(tmp_path, families=("CK605",)), Severity.NOTE) == set()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("100000", "0900000"), {"CK606"}),
        (("0900", "1000"), set()),
        (("900", "1000", "10000"), set()),
    ],
)
def test_padded_and_unpadded_names(names: tuple[str, ...], expected: set[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / f"checkpoint-{name}").mkdir()
    report = judge(tmp_path, families=("CK606",))
    assert codes(report, Severity.NOTE) == expected
    assert [c.step for c in report.checkpoints] == sorted(int(name) for name in names)


def test_the_state_is_read_as_python_wrote_it(copy_of: Copy) -> None:
    run = copy_of(FULL)
    state = run / "checkpoint-6" / STATE
    state.write_text(json.dumps({"global_step": float("nan"), "max_steps": None, "log_history": [None, {"step": "1"}]}))
    assert "CK001" not in codes(judge(run))
