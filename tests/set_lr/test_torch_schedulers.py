"""Every scheduler of torch: what a real resume does after an edit is what was printed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ckpt_tools.ops.set_lr import set_lr  # noqa: E402
from tests.set_lr.real import plain_torch, upcoming  # noqa: E402

KINDS = sorted(plain_torch().SCHEDULES)
FUNCTIONS = ("LambdaLR", "MultiplicativeLR")
BY_METRIC = ("ReduceLROnPlateau",)
CLOSE = {"rel": 1e-9, "abs": 1e-15}

Copy = Callable[..., Path]


def edited(copy_of: Copy, kind: str, **request: Any) -> tuple[Any, list[list[float]], list[list[float]]]:
    """Edit a copy of a scheduler's fixture; return the report and the real rates before and after."""
    path = copy_of(f"plain/schedules/{kind}.pt")
    before = upcoming(path, kind)
    report = set_lr(str(path), **request)
    return report, before, upcoming(path, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_rate_is_the_one_asked_for_and_the_rest_follows(copy_of: Copy, kind: str) -> None:
    _report, before, after = edited(copy_of, kind, rate=3e-4)
    assert after[0] == pytest.approx([3e-4], **CLOSE)
    factor = 3e-4 / before[0][0]
    for then, now in zip(before, after, strict=True):
        if kind not in BY_METRIC or min(then + now) > 1e-6:  # it ignores changes below its eps
            assert now == pytest.approx([rate * factor for rate in then], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_scales_the_whole_curve(copy_of: Copy, kind: str) -> None:
    _, before, after = edited(copy_of, kind, scale=0.25)
    for then, now in zip(before, after, strict=True):
        if kind not in BY_METRIC or min(then + now) > 1e-6:
            assert now == pytest.approx([rate * 0.25 for rate in then], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_printed_is_what_happens(copy_of: Copy, kind: str) -> None:
    report, before, after = edited(copy_of, kind, scale=3.0)
    told = 1 if kind in FUNCTIONS + BY_METRIC else 5
    assert len(report.rates) == told
    assert any("later steps" in note for note in report.notes) is (told == 1)
    for row, then, now in zip(report.rates, before, after, strict=False):
        assert row.before == pytest.approx(then, **CLOSE)
        assert row.after == pytest.approx(now, **CLOSE)
    assert [row.step for row in report.rates] == list(range(7, 7 + told))


@pytest.mark.parametrize("kind", ["CosineAnnealingLR", "OneCycleLR"])
def test_a_floor_may_be_kept(copy_of: Copy, kind: str) -> None:
    report, _before, after = edited(copy_of, kind, scale=0.5, keep_floor=True)
    assert not any("min_lr" in change.key or "eta_min" in change.key for change in report.changes)
    for row, now in zip(report.rates, after, strict=False):
        assert row.after == pytest.approx(now, **CLOSE)


@pytest.mark.parametrize(("kind", "peak"), [("OneCycleLR", 0.1), ("CyclicLR", 0.1), ("CosineAnnealingLR", 0.01)])
def test_a_peak_is_the_base_rate(copy_of: Copy, kind: str, peak: float) -> None:
    _report, before, after = edited(copy_of, kind, peak=peak / 4)
    for then, now in zip(before, after, strict=True):
        assert now == pytest.approx([rate / 4 for rate in then], **CLOSE)
    assert all(math.isfinite(rate) for row in after for rate in row)
