"""Short runs of the real Trainer, to edit and resume: every schedule that it offers."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[2] / "fixtures" / "scripts"

SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {},
    "constant": {"warmup_steps": 0},
    "constant_with_warmup": {"warmup_steps": 6},
    "cosine_with_restarts": {"lr_scheduler_kwargs": {"num_cycles": 3}},
    "polynomial": {"lr_scheduler_kwargs": {"lr_end": 1e-3, "power": 2.0}},
    "inverse_sqrt": {},
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 2e-3}},
    "cosine_warmup_with_min_lr": {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
    "warmup_stable_decay": {"lr_scheduler_kwargs": {"num_decay_steps": 5, "min_lr_ratio": 0.1}},
    "reduce_lr_on_plateau": {
        "warmup_steps": 0, "eval_strategy": "steps", "eval_steps": 20, "metric_for_best_model": "loss",
    },
    "greedy": {"warmup_steps": 0, "eval_strategy": "steps", "eval_steps": 20, "metric_for_best_model": "loss"},
}  # fmt: skip
BY_METRIC = ("reduce_lr_on_plateau", "greedy")
SAVED, TOTAL = 4, 12


@contextlib.contextmanager
def quiet(directory: Path) -> Iterator[None]:
    home = Path.cwd()
    os.chdir(directory)
    silence = io.StringIO()
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            yield
    finally:
        os.chdir(home)


def module(name: str) -> Any:
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))


def changes(schedule: str, steps: int, **more: Any) -> dict[str, Any]:
    values = {"max_steps": steps, "save_steps": SAVED, "warmup_steps": 2, "lr_scheduler_type": schedule}
    return values | SCHEDULES[schedule] | more


Optimizer = Callable[[Any], Any]
"""Makes the optimizer of a model; without one the Trainer makes its own, with two groups of one rate."""


def _parts(optimizer: Optimizer | None) -> tuple[Any, dict[str, Any]]:
    model = module("tiny").llama()
    return model, {"optimizers": (optimizer(model), None)} if optimizer is not None else {}


def trained(directory: Path, schedule: str, optimizer: Optimizer | None = None, **more: Any) -> Path:
    """Train the first steps of a run and return its checkpoint; the run's length is that of the whole."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            control.should_training_stop = state.global_step >= SAVED

    directory.mkdir(parents=True, exist_ok=True)
    with quiet(directory):
        model, own = _parts(optimizer)
        run = module("trainer5").trainer("run", model, changes(schedule, TOTAL, **more), callbacks=[Stop()], **own)
        run.train()
    return directory / "run" / f"checkpoint-{SAVED}"


def resumed(checkpoint: Path, schedule: str, optimizer: Optimizer | None = None, **more: Any) -> Seen:
    """Resume and return what was used and logged."""
    from transformers import TrainerCallback

    used: dict[int, list[float]] = {}
    first: dict[str, Any] = {}

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            used[state.global_step + 1] = [float(group["lr"]) for group in rest["optimizer"].param_groups]
            if not first:
                first["counts"] = sorted(
                    {float(entry["step"]) for entry in rest["optimizer"].state.values() if "step" in entry}
                )
                first["epoch"] = rest["lr_scheduler"].last_epoch
                first["log"] = list(state.log_history)

    with quiet(checkpoint.parent.parent):
        model, own = _parts(optimizer)
        run = module("trainer5").trainer(
            "resumed", model, changes(schedule, TOTAL, save_strategy="no", **more), callbacks=[Watch()], **own
        )
        batches: list[Any] = []
        inner = run.training_step

        def training_step(model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            batches.append(inputs["input_ids"].tolist())
            return inner(model, inputs, *rest, **named)

        run.training_step = training_step
        run.train(resume_from_checkpoint=str(checkpoint))
    log = {entry["step"]: entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry}
    return Seen(used, log, batches, first)


class Seen:
    """What a resume used and logged: rates per step, batches in order, counters at the first step."""

    def __init__(
        self, used: dict[int, list[float]], log: dict[int, float], batches: list[Any], first: dict[str, Any]
    ) -> None:
        self.used, self.log, self.batches, self.first = used, log, batches, first


def state_of(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return found
