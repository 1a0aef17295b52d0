"""Schedulers made of others: a step in another part's turn, and chains, resumed with torch itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ckpt_tools.ops.set_step import set_step  # noqa: E402
from ckpt_tools.ops.undo import undo  # noqa: E402

schedules = torch.optim.lr_scheduler
END = 22

Make = Callable[[Any], Any]

TURNS: dict[str, Make] = {
    "linear, cosine, step": lambda o: schedules.SequentialLR(
        o,
        [schedules.LinearLR(o, 0.1, 1.0, 4), schedules.CosineAnnealingLR(o, 6, 1e-4), schedules.StepLR(o, 2, 0.5)],
        [4, 10],
    ),
    "constant, restarts": lambda o: schedules.SequentialLR(
        o, [schedules.ConstantLR(o, 0.5, 3), schedules.CosineAnnealingWarmRestarts(o, 3, 2)], [5]
    ),
    "exponential, polynomial, cyclic": lambda o: schedules.SequentialLR(
        o,
        [
            schedules.ExponentialLR(o, 0.9),
            schedules.PolynomialLR(o, 5, 2.0),
            schedules.CyclicLR(o, 1e-3, 1e-2, 2, cycle_momentum=False),
        ],
        [3, 8],
    ),
}
CHAINS: dict[str, Make] = {
    "constant, exponential": lambda o: schedules.ChainedScheduler(
        [schedules.ConstantLR(o, 0.5, 3), schedules.ExponentialLR(o, 0.9)], o
    ),
    "linear, steps": lambda o: schedules.ChainedScheduler(
        [schedules.LinearLR(o, 0.1, 1.0, 4), schedules.MultiStepLR(o, [6, 11], 0.1)], o
    ),
}
ADDING: dict[str, Make] = {
    "constant, cosine": lambda o: schedules.ChainedScheduler(
        [schedules.ConstantLR(o, 0.5, 3), schedules.CosineAnnealingLR(o, 9)], o
    ),
}
FUNCTIONS: dict[str, Make] = {
    "linear, function": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, 1.0, 4), schedules.LambdaLR(o, lambda step: 1 / (1 + step))], [4]
    ),
}
ALL = TURNS | CHAINS | ADDING | FUNCTIONS


def started(make: Make) -> tuple[Any, Any]:
    weight, bias = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(1))
    weight.grad, bias.grad = torch.zeros(3), torch.zeros(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = torch.optim.AdamW([{"params": [weight], "lr": 0.01}, {"params": [bias], "lr": 0.03}])
        return optimizer, make(optimizer)


def rates_of(optimizer: Any, scheduler: Any, steps: int) -> list[list[float]]:
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            found.append([float(group["lr"]) for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
    return found


def saved(folder: Path, make: Make, step: int) -> Path:
    optimizer, scheduler = started(make)
    rates_of(optimizer, scheduler, step)
    state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "global_step": step}
    torch.save(state, folder / f"{step}.pt")
    return folder / f"{step}.pt"


def resumed(path: Path, make: Make, steps: int) -> list[list[float]]:
    optimizer, scheduler = started(make)
    state = torch.load(path, weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return rates_of(optimizer, scheduler, steps)


def counts(state: Any) -> Any:
    """The counters of a scheduler and of those inside it."""
    own = {key: state[key] for key in ("last_epoch", "_step_count", "T_cur", "T_i") if key in state}
    return own, [counts(inner) for inner in state.get("_schedulers", ())]


@pytest.mark.parametrize("name", TURNS | CHAINS)
@pytest.mark.parametrize("old", [1, 6, 12])
def test_every_step_from_every_part(tmp_path: Path, name: str, old: int) -> None:
    make = ALL[name]
    reference = rates_of(*started(make), END)
    path = saved(tmp_path, make, old)
    before = path.read_bytes()
    for target in (0, 2, 3, 4, 5, 7, 8, 9, 10, 11, 14):
        if target == old:
            continue
        report = set_step(str(path), target)
        seen = resumed(path, make, END - target)
        for now, then in zip(seen, reference[target:], strict=True):
            assert now == pytest.approx(then, rel=1e-9, abs=1e-15)
        for row, now in zip(report.rates, seen, strict=False):
            assert row.after == pytest.approx(now, rel=1e-9, abs=1e-15)
        real = torch.load(saved(tmp_path, make, target), weights_only=True)["scheduler"]
        assert counts(torch.load(path, weights_only=True)["scheduler"]) == counts(real)
        undo(str(path))
        assert path.read_bytes() == before


@pytest.mark.parametrize("name", ADDING)
def test_a_chain_that_adds_has_no_formula(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, ALL[name], 6)
    before = resumed(path, ALL[name], 1)
    report = set_step(str(path), 9)
    assert any("rates stay" in note and "ChainedScheduler" in note for note in report.notes)
    assert resumed(path, ALL[name], 1) == before
    assert report.rates[0].after == pytest.approx(before[0])


def test_a_function_whose_turn_it_would_be(tmp_path: Path) -> None:
    """Its rates are stored nowhere: the scheduler stays as a whole, and that is said."""
    make = ALL["linear, function"]
    path = saved(tmp_path, make, 2)
    scheduler = torch.load(path, weights_only=True)["scheduler"]
    report = set_step(str(path), 7)
    assert any("another part" in note for note in report.notes)
    assert torch.load(path, weights_only=True)["scheduler"] == scheduler
    report = set_step(str(path), 3)
    assert any("another part" in note for note in report.notes) is False
