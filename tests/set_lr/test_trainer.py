"""The real Trainer, resumed after an edit: the rates in its own log are those that were printed."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers", minversion="5.0")

from ckpt_tools.ops.set_lr import set_lr
from tests.set_lr.trainer import BY_METRIC, SAVED, SCHEDULES, resumed, trained

CLOSE = {"rel": 1e-9, "abs": 1e-15}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_trainers_log_has_the_rates_that_were_printed(tmp_path: Path, schedule: str) -> None:
    checkpoint = trained(tmp_path, schedule)
    report = set_lr(str(checkpoint), 5e-4)
    seen = resumed(checkpoint, schedule)
    steps = sorted(seen.used)
    assert steps[0] == SAVED + 1
    assert len(steps) >= 3
    assert seen.used[steps[0]] == pytest.approx([5e-4, 5e-4], **CLOSE)
    if schedule in BY_METRIC:
        assert len(report.rates) == 1
        told = dict.fromkeys(steps, report.rates[0].after)
    else:
        told = {row.step: row.after for row in report.rates}
        assert len(told) == 5
    for step, rates in told.items():
        assert seen.used[step] == pytest.approx(list(rates), **CLOSE)
        assert seen.log[step] == pytest.approx(rates[0], **CLOSE)
