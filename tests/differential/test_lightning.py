"""Lightning's own resume against the verdicts: damaged files that it refuses are broken, those it takes are not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckpt_tools
from ckpt_tools.model.findings import Purpose, Verdict
from tests.conftest import FIXTURES

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

NEWEST = "epoch=1-step=8.ckpt"
STEPS = 3

Damage = Callable[[Path], None]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def held(change: Callable[[dict[str, Any]], None]) -> Damage:
    def done(path: Path) -> None:
        import torch

        found = torch.load(path, weights_only=False)
        change(found)
        torch.save(found, path)

    return done


def stated_step(found: dict[str, Any]) -> None:
    found["global_step"] = 7


def counted_steps(found: dict[str, Any]) -> None:
    loop = found["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    loop["optimizer"]["step"]["total"]["completed"] = 6


CASES: list[tuple[str, str, Damage, bool]] = [
    ("as it was written", "lightning/run", lambda path: None, True),
    ("with another schedule", "lightning/cosine", lambda path: None, True),
    ("weights alone", "lightning/weights-only", lambda path: None, False),
    ("cut", "lightning/run", cut, False),
    ("empty", "lightning/run", emptied, False),
    ("zeros", "lightning/run", zeroed, False),
    ("another global_step", "lightning/run", held(stated_step), True),
    ("another step in the loops", "lightning/run", held(counted_steps), True),
]


def resumed(path: Path, schedule: str) -> Any:
    """Go on for a few steps, and return the trainer."""
    lightning = pytest.importorskip("lightning.pytorch")
    import torch

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
            self.begun: int | None = None

        def on_train_start(self) -> None:
            self.begun = self.trainer.global_step

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return self.net(batch).pow(2).mean()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
            if schedule == "lambda":
                made: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
                return [optimizer], [{"scheduler": made, "interval": "step"}]
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)]

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=4, max_steps=8 + STEPS, accelerator="cpu", devices=1, default_root_dir=path.parent, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    rows = torch.utils.data.DataLoader(torch.randn(16, 5), batch_size=4)
    trainer.fit(module, rows, ckpt_path=str(path), weights_only=False)
    return module


@pytest.mark.parametrize(("fixture", "done", "goes_on"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.filterwarnings("ignore")
def test_what_lightning_refuses_is_broken(
    fixture: str, done: Damage, goes_on: bool, copy_of: Callable[..., Path]
) -> None:
    pytest.importorskip("lightning.pytorch")
    path = copy_of(fixture) / NEWEST
    done(path)
    report = ckpt_tools.verify(str(path), settle=0)
    verdict = report.checkpoints[0].verdicts[Purpose.RESUME]
    try:
        module = resumed(path, "cosine" if "cosine" in fixture else "lambda")
    except Exception:  # noqa: BLE001 - whatever it says, it refused
        module = None
    assert (module is not None) == goes_on
    assert (verdict is not Verdict.BROKEN) == goes_on


@pytest.mark.filterwarnings("ignore")
def test_a_resume_goes_by_the_loops(copy_of: Callable[..., Path]) -> None:
    """What CK581 says."""
    pytest.importorskip("lightning.pytorch")
    run = copy_of("lightning/run")
    held(stated_step)(run / NEWEST)
    assert resumed(run / NEWEST, "lambda").begun == 8
    held(counted_steps)(run / NEWEST)
    assert resumed(run / NEWEST, "lambda").begun == 6


def test_the_sharded_one_is_what_lightning_takes_for_one(copy_of: Callable[..., Path]) -> None:
    fabric = pytest.importorskip("lightning.fabric.strategies.fsdp")
    path = copy_of("lightning/sharded-fsdp") / "epoch=0-step=4.ckpt"
    assert fabric._is_sharded_checkpoint(path)
    (path / "meta.pt").unlink()
    assert not fabric._is_sharded_checkpoint(path)
    report = ckpt_tools.verify(str(path), settle=0)
    assert report.checkpoints[0].verdicts[Purpose.RESUME] is Verdict.BROKEN


def test_the_names_are_lightnings_own(tmp_path: Path) -> None:
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    made = callbacks.ModelCheckpoint(dirpath=tmp_path, filename="{epoch}-{step}-{val_loss:.2f}")
    name = os.path.basename(made.format_checkpoint_name({"epoch": 3, "step": 900, "val_loss": 0.125}))
    (tmp_path / name).write_bytes((FIXTURES / "lightning/run" / NEWEST).read_bytes())
    report = ckpt_tools.verify(str(tmp_path), settle=0, select=("CK580",))
    assert report.checkpoints[0].layouts == ("lightning",)
    assert [found.code for found in report.all_findings()] == ["CK580"]
