"""The real Trainer, resumed after an edit: the rates in its own log are those that were printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def three_groups(model: Any) -> Any:
    """AdamW with rates of their own for embeddings, matrices and the rest, as fine-tuning scripts have them."""
    import torch

    groups: dict[float, list[Any]] = {0.02: [], 0.005: [], 0.08: []}
    for name, parameter in model.named_parameters():
        groups[0.02 if "embed" in name else 0.005 if parameter.ndim > 1 else 0.08].append(parameter)
    return torch.optim.AdamW([{"params": members, "lr": rate} for rate, members in groups.items()])


@pytest.mark.parametrize("schedule", ["linear", "cosine_with_restarts"])
@pytest.mark.parametrize("groups", [(), (1,), (2, 0)])
def test_several_groups(tmp_path: Path, schedule: str, groups: tuple[int, ...]) -> None:
    checkpoint = trained(tmp_path, schedule, three_groups)
    reference = resumed(checkpoint, schedule, three_groups)
    report = set_lr(str(checkpoint), 5e-4, groups=groups)
    seen = resumed(checkpoint, schedule, three_groups)
    lead = groups[0] if groups else 0
    factor = 5e-4 / reference.used[SAVED + 1][lead]
    for step, rates in seen.used.items():
        scaled = [
            rate * factor if not groups or number in groups else rate
            for number, rate in enumerate(reference.used[step])
        ]
        assert rates == pytest.approx(scaled, **CLOSE)
    assert len(report.rates) == 5
    for row in report.rates:
        assert seen.used[row.step] == pytest.approx(list(row.after), **CLOSE)
        assert seen.log[row.step] == pytest.approx(row.after[0], **CLOSE)
