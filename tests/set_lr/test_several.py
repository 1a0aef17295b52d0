"""Several optimizers in one checkpoint, as accelerate writes them, resumed with accelerate itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

from ckpt_tools.core.errors import EditRefusedError, UsageError  # noqa: E402
from ckpt_tools.ops.set_lr import set_lr  # noqa: E402
from ckpt_tools.ops.set_step import set_step  # noqa: E402
from ckpt_tools.ops.undo import undo  # noqa: E402

SAVED = 6


def training(second: float = 1e-2) -> tuple[Any, list[Any], list[Any]]:
    """Two models with an optimizer and a scheduler each, prepared."""
    torch.manual_seed(0)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True)
    one, two = torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)
    groups = [{"params": [one.weight], "lr": 1e-3}, {"params": [one.bias], "lr": 2e-3}]
    optimizers = [torch.optim.AdamW(groups), torch.optim.AdamW(two.parameters(), lr=second)]
    schedules = torch.optim.lr_scheduler
    schedulers = [schedules.StepLR(optimizers[0], 4, 0.5), schedules.ExponentialLR(optimizers[1], 0.9)]
    made = accelerator.prepare(one, two, *optimizers, *schedulers)
    return accelerator, list(made[2:4]), list(made[4:6])


def used(optimizers: list[Any], schedulers: list[Any], steps: int) -> list[list[float]]:
    """The rates of the next steps, those of all groups of all optimizers."""
    found = []
    for _ in range(steps):
        found.append([float(group["lr"]) for optimizer in optimizers for group in optimizer.param_groups])
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


def saved(folder: Path, **options: Any) -> Path:
    accelerator, optimizers, schedulers = training(**options)
    used(optimizers, schedulers, SAVED)
    accelerator.save_state(str(folder / "state"))
    return folder / "state"


def resumed(path: Path, steps: int, **options: Any) -> list[list[float]]:
    accelerator, optimizers, schedulers = training(**options)
    accelerator.load_state(str(path))
    return used(optimizers, schedulers, steps)


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def close(now: list[list[float]], then: list[list[float]]) -> bool:
    return all(one == pytest.approx(other, rel=1e-9) for one, other in zip(now, then, strict=True))


def test_a_factor_is_for_all_of_them(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before, files = resumed(path, 5), digest(path)
    report = set_lr(str(path), scale=0.5)
    after = resumed(path, 5)
    assert close(after, [[rate * 0.5 for rate in row] for row in before])
    assert close([list(row.after) for row in report.rates], after)
    assert close([list(row.before) for row in report.rates], before)
    assert report.scheduler == "StepLR, ExponentialLR"
    assert any("2 groups in optimizer.bin, 1 group in optimizer_1.bin" in note for note in report.notes)
    undo(str(path))
    assert digest(path) == files


def test_one_rate_for_different_ones_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    files = digest(path)
    for request in ({"rate": 1e-4}, {"peak": 1e-4}):
        with pytest.raises(
            EditRefusedError, match=r"groups 0 to 1, .*optimizer.bin; group 2, .*optimizer_1.bin"
        ) as caught:
            set_lr(str(path), **request)
        assert "--group" in str(caught.value.hint)
    assert digest(path) == files


def test_groups_are_counted_through_all_of_them(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = resumed(path, 5)
    set_lr(str(path), 1e-4, groups=[2])
    after = resumed(path, 5)
    assert [row[:2] for row in after] == [row[:2] for row in before]
    assert after[0][2] == pytest.approx(1e-4, rel=1e-12)
    assert [row[2] / other[2] for row, other in zip(after, before, strict=True)] == pytest.approx(
        [after[0][2] / before[0][2]] * 5, rel=1e-9
    )
    set_lr(str(path), 3e-4, groups=[1, 2])
    assert resumed(path, 1)[0] == pytest.approx([before[0][0], 3e-4, 1e-4 * 3e-4 / before[0][1]], rel=1e-9)
    with pytest.raises(UsageError, match="there are 3"):
        set_lr(str(path), 1e-4, groups=[3])


def test_one_rate_for_equal_ones_is_meant_for_all(tmp_path: Path) -> None:
    path = saved(tmp_path, second=1e-3 * 0.5 / 0.9**SAVED)
    set_lr(str(path), 1e-4)
    assert resumed(path, 1, second=1.0)[0] == pytest.approx([1e-4, 2e-4, 1e-4], rel=1e-9)


def test_the_step_of_all_of_them(tmp_path: Path) -> None:
    path = saved(tmp_path)
    _accelerator, optimizers, schedulers = training()
    reference = used(optimizers, schedulers, 15)
    files = digest(path)
    report = set_step(str(path), 10)
    after = resumed(path, 5)
    assert close(after, reference[10:])
    assert close([list(row.after) for row in report.rates], after)
    for name in ("optimizer.bin", "optimizer_1.bin"):
        state = torch.load(path / name, weights_only=True)["state"]
        assert {float(entry["step"]) for entry in state.values()} == {10.0}
    undo(str(path))
    assert digest(path) == files


def test_optimizers_that_were_not_stepped_together(tmp_path: Path) -> None:
    path = saved(tmp_path)
    other = torch.load(path / "optimizer_1.bin", weights_only=True)
    for entry in other["state"].values():
        entry["step"] += 500
    torch.save(other, path / "optimizer_1.bin")
    with pytest.raises(EditRefusedError, match=r"not stepped together.*6 in optimizer.bin, 506 in optimizer_1.bin"):
        set_step(str(path), 10)


def test_a_scheduler_that_fits_neither(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (path / "scheduler_1.bin").write_bytes((path / "scheduler.bin").read_bytes())
    with pytest.raises(EditRefusedError, match="which scheduler"):
        set_lr(str(path), scale=0.5)
