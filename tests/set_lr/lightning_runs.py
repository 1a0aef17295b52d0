"""Short runs of the real Lightning trainer, to edit and resume."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BATCHES = 6
"""Batches of an epoch."""


@dataclass
class Seen:
    """What a run used: the step that it called it, the batch of the epoch and the rates, step by step."""

    steps: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    counts: list[float] = field(default_factory=list)


def _module(make: Callable[[Any], Any], interval: str, optimizers: int) -> Any:
    import lightning
    import torch

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)
            self.other = torch.nn.Linear(4, 1)
            self.seen = Seen()
            self.automatic_optimization = optimizers == 1

        def training_step(self, batch: Any, number: int) -> Any:
            trainer, seen = self.trainer, self.seen
            seen.steps.append(trainer.global_step)
            seen.epochs.append(trainer.current_epoch)
            seen.batches.append(number)
            seen.rates.append([group["lr"] for each in trainer.optimizers for group in each.param_groups])
            if not seen.counts:
                seen.counts += [float(entry["step"]) for each in trainer.optimizers for entry in each.state.values()]
            loss = self.layer(batch[0]).pow(2).mean() + self.other(batch[0]).pow(2).mean()
            if optimizers == 1:
                return loss
            self.manual_backward(loss)
            for each in self.optimizers():
                each.step()
            for each in self.lr_schedulers():
                each.step()
            return None

        def configure_optimizers(self) -> Any:
            groups = [
                {"params": [self.layer.weight, *(self.other.parameters() if optimizers == 1 else ())], "lr": 0.01},
                {"params": [self.layer.bias], "lr": 0.02},
            ]
            made = [torch.optim.AdamW(groups)]
            if optimizers > 1:
                made.append(torch.optim.AdamW(self.other.parameters(), lr=0.1))
            return made, [{"scheduler": make(each), "interval": interval} for each in made]

    return Module()


def _trainer(folder: Path, steps: int, **options: Any) -> Any:
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return lightning.Trainer(
        max_steps=steps, max_epochs=-1, default_root_dir=folder, logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def _data() -> Any:
    import torch

    rows = torch.arange(BATCHES * 8.0).reshape(-1, 4) / 100
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), batch_size=2)


def trained(
    folder: Path, make: Callable[[Any], Any], step: int, interval: str = "step", optimizers: int = 1, **options: Any
) -> tuple[Path, Seen]:
    """Train, save after every step, and return the checkpoint of one step and what was used."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    saving = ModelCheckpoint(folder / "saved", every_n_train_steps=optimizers, save_top_k=-1)
    module = _module(make, interval, optimizers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _trainer(folder, 16 * optimizers, callbacks=[saving], **options).fit(module, _data())
    (path,) = (folder / "saved").glob(f"*step={step}.ckpt")
    return path, module.seen


def resumed(
    path: Path, make: Callable[[Any], Any], steps: int, interval: str = "step", optimizers: int = 1, **options: Any
) -> Seen:
    module = _module(make, interval, optimizers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _trainer(path.parent, steps, enable_checkpointing=False, **options).fit(module, _data(), ckpt_path=str(path))
    found: Seen = module.seen
    return found
