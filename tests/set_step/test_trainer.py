"""The real Trainer, resumed after its step was set: rates, counters and data are those of the new step."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers", minversion="5.0")

from ckpt_tools.ops.set_step import set_step
from tests.set_lr.trainer import SAVED, SCHEDULES, TOTAL, resumed, state_of, trained

CLOSE = {"rel": 1e-9, "abs": 1e-15}
FORMULAS = [name for name in SCHEDULES if name not in ("reduce_lr_on_plateau", "greedy")]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("schedule", FORMULAS)
def test_forward(tmp_path: Path, schedule: str) -> None:
    """As if the steps between had been done: their rates are passed over, and their batches skipped."""
    checkpoint = trained(tmp_path, schedule)
    reference = resumed(checkpoint, schedule)
    report = set_step(str(checkpoint), 7)
    seen = resumed(checkpoint, schedule)
    assert sorted(seen.used) == list(range(8, TOTAL + 1))
    assert [row.step for row in report.rates] == list(range(8, TOTAL + 1))
    for row in report.rates:
        assert seen.used[row.step] == pytest.approx(list(row.after), **CLOSE)
        assert reference.used[row.step_before] == pytest.approx(list(row.before), **CLOSE)
    for step, rates in seen.used.items():
        assert rates == pytest.approx(reference.used[step], **CLOSE)
        assert seen.log[step] == pytest.approx(reference.log[step], **CLOSE)
    assert seen.first["counts"] == [7.0]
    assert seen.first["epoch"] == 7
    assert seen.batches == reference.batches[7 - SAVED :]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_back(tmp_path: Path, schedule: str) -> None:
    checkpoint = trained(tmp_path, schedule)
    logged = {entry["step"]: entry["learning_rate"] for entry in state_of(checkpoint)["log_history"]}
    reference = resumed(checkpoint, schedule)
    set_step(str(checkpoint), 2)
    seen = resumed(checkpoint, schedule)
    assert sorted(seen.used) == list(range(3, TOTAL + 1))
    for step, rates in seen.used.items():
        assert rates[0] == pytest.approx({**logged, **reference.log}[step], **CLOSE)
    assert seen.first["counts"] == [2.0]
    assert [entry["step"] for entry in seen.first["log"]] == [1, 2]
    assert seen.batches[2:] == reference.batches


def test_by_metric_only_the_counters_move(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, "reduce_lr_on_plateau")
    reference = resumed(checkpoint, "reduce_lr_on_plateau")
    report = set_step(str(checkpoint), 6)
    assert any("counts evaluations" in note for note in report.notes)
    seen = resumed(checkpoint, "reduce_lr_on_plateau")
    assert seen.used == {step: rates for step, rates in reference.used.items() if step > 6}
    assert seen.batches == reference.batches[2:]
