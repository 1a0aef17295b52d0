"""Lightning's single files, resumed with the real Lightning after an edit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from ckpt_tools.core.errors import EditRefusedError  # noqa: E402
from ckpt_tools.ops.set_lr import set_lr  # noqa: E402
from ckpt_tools.ops.set_step import set_step  # noqa: E402
from ckpt_tools.ops.undo import undo  # noqa: E402
from tests.set_lr.lightning_runs import BATCHES, resumed, trained  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

schedules = torch.optim.lr_scheduler
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: schedules.StepLR(o, 3, 0.5),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 16),
    "SequentialLR": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, 1.0, 4), schedules.ExponentialLR(o, 0.9)], [4]
    ),
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda step: 1 / (1 + step)),
}
SAVED, TOTAL = 8, 16


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_rates_that_were_printed_are_used(tmp_path: Path, kind: str) -> None:
    path, reference = trained(tmp_path, SCHEDULES[kind], SAVED)
    before = path.read_bytes()
    report = set_lr(str(path), 1e-3)
    seen = resumed(path, SCHEDULES[kind], TOTAL)
    assert seen.steps == list(range(SAVED, TOTAL))
    assert seen.rates[0] == pytest.approx([1e-3, 2e-3], rel=1e-9)
    factor = 1e-3 / reference.rates[SAVED][0]
    for now, then in zip(seen.rates, reference.rates[SAVED:], strict=True):
        assert now == pytest.approx([rate * factor for rate in then], rel=1e-9)
    assert len(report.rates) == (1 if kind == "LambdaLR" else 5)
    for row, now in zip(report.rates, seen.rates, strict=False):
        assert row.after == pytest.approx(now, rel=1e-9)
    undo(str(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["StepLR", "CosineAnnealingLR", "SequentialLR"])
@pytest.mark.parametrize("target", [7, 10, 3, 14])
def test_a_resume_goes_on_from_the_new_step(tmp_path: Path, kind: str, target: int) -> None:
    path, reference = trained(tmp_path, SCHEDULES[kind], SAVED)
    before = path.read_bytes()
    report = set_step(str(path), target)
    seen = resumed(path, SCHEDULES[kind], TOTAL)
    assert seen.steps == list(range(target, TOTAL))
    for now, then in zip(seen.rates, reference.rates[target:], strict=True):
        assert now == pytest.approx(then, rel=1e-9)
    for row, now in zip(report.rates, seen.rates, strict=False):
        assert (row.step - 1, row.after) == (seen.steps[row.step - 1 - target], pytest.approx(now, rel=1e-9))
    assert set(seen.counts) == {float(target)}
    same_epoch = target // BATCHES == SAVED // BATCHES
    place = target if same_epoch else SAVED
    assert (seen.epochs[0], seen.batches[0]) == (place // BATCHES, place % BATCHES)
    assert any("epoch follows" in note for note in report.notes) is same_epoch
    assert any("epoch stays: a resume goes on in epoch 1," in note for note in report.notes) is not same_epoch
    undo(str(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize(("batches", "saved", "target"), [(2, 4, 5), (2, 4, 7), (4, 4, 3), (4, 3, 5)])
def test_several_batches_make_one_step(tmp_path: Path, batches: int, saved: int, target: int) -> None:
    """Six batches of an epoch are three steps of two, or a step of four and one of two."""
    make, options = SCHEDULES["StepLR"], {"accumulate_grad_batches": batches}
    path, reference = trained(tmp_path, make, saved, **options)
    before = resumed(path, make, 8, **options)
    report = set_step(str(path), target)
    seen = resumed(path, make, 8, **options)
    assert seen.steps[0] == target
    assert set(seen.counts) == {float(target)}
    rates = dict(zip(reference.steps, reference.rates, strict=True))
    for step, now in zip(seen.steps, seen.rates, strict=True):
        assert now == pytest.approx(rates[step], rel=1e-9)
    if (batches, target) == (2, 5):
        assert (seen.epochs[0], seen.batches[0]) == (before.epochs[0], before.batches[0] + 2)
    else:
        assert (seen.epochs[0], seen.batches[0]) == (before.epochs[0], before.batches[0])
        assert any(f"goes on in epoch {seen.epochs[0]}," in note for note in report.notes)


def test_a_scheduler_of_epochs_stays(tmp_path: Path) -> None:
    make = SCHEDULES["StepLR"]
    path, _ = trained(tmp_path, make, SAVED, interval="epoch")
    scheduler = torch.load(path, weights_only=True)["lr_schedulers"][0]
    assert scheduler["last_epoch"] == 1
    report = set_step(str(path), 10)
    assert any("epochs, most likely" in note for note in report.notes)
    assert torch.load(path, weights_only=True)["lr_schedulers"][0] == scheduler
    assert resumed(path, make, TOTAL, interval="epoch").steps == list(range(10, TOTAL))


def test_two_optimizers(tmp_path: Path) -> None:
    make = SCHEDULES["StepLR"]
    path, reference = trained(tmp_path, make, SAVED * 2, optimizers=2)
    report = set_lr(str(path), 1e-3, groups=[2])
    seen = resumed(path, make, TOTAL * 2, optimizers=2)
    factor = 1e-3 / reference.rates[SAVED][2]
    for now, then in zip(seen.rates, reference.rates[SAVED:], strict=True):
        assert now == pytest.approx([then[0], then[1], then[2] * factor], rel=1e-9)
    for row, now in zip(report.rates, seen.rates, strict=False):
        assert row.after == pytest.approx(now, rel=1e-9)
    with pytest.raises(EditRefusedError, match="optimizer_states"):
        set_lr(str(path), 1e-3)
