"""What torch's own optimizers and schedulers do with a file."""

from __future__ import annotations

import importlib
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[2] / "fixtures" / "scripts"
STEPS = 12


@cache
def plain_torch() -> ModuleType:
    """Return the script that made the fixtures, with its table of schedulers."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("plain_torch")
    finally:
        sys.path.remove(str(SCRIPTS))


def resumed(path: Path, kind: str) -> tuple[Any, Any]:
    """Return the optimizer and scheduler of a new process that loads a file, as a training loop would."""
    import torch

    model = plain_torch().network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = plain_torch().SCHEDULES[kind](optimizer)
    state = torch.load(path, weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    return optimizer, scheduler


def upcoming(path: Path, kind: str, steps: int = STEPS) -> list[list[float]]:
    """Return the rates that the next steps really use after a resume, per step and group."""
    import torch

    optimizer, scheduler = resumed(path, kind)
    found = []
    for _ in range(steps):
        found.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0)
        else:
            scheduler.step()
    return found
