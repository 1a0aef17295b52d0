"""Histories made by hand: schedules as transformers computes them, logs as its Trainer writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ckpt_tools.ops import logs
from ckpt_tools.ops.history import judged
from ckpt_tools.ops.history_files import Facts, Start
from ckpt_tools.reports.history import HistoryReport, Seam, Sign, Stored

Schedule = Callable[[int], float]


def linear(total: int, warmup: int = 0, peak: float = 1e-3) -> Schedule:
    return lambda n: peak * (n / max(1, warmup) if n < warmup else max(0.0, (total - n) / max(1, total - warmup)))


def cosine(total: int, warmup: int = 0, peak: float = 1e-3, cycles: float = 0.5) -> Schedule:
    def rate(n: int) -> float:
        if n < warmup:
            return peak * n / max(1, warmup)
        share = (n - warmup) / max(1, total - warmup)
        return peak * max(0.0, 0.5 * (1 + math.cos(math.pi * cycles * 2 * share)))

    return rate


def restarts(total: int, cycles: int, peak: float = 1e-3) -> Schedule:
    return lambda n: 0.0 if n >= total else peak * 0.5 * (1 + math.cos(math.pi * ((cycles * n / total) % 1.0)))


def constant(peak: float = 1e-3, warmup: int = 0) -> Schedule:
    return lambda n: peak * min(1.0, n / warmup) if warmup else peak


def inverse_sqrt(warmup: int, peak: float = 1e-3) -> Schedule:
    return lambda n: peak * (n / warmup if n < warmup else math.sqrt(warmup / n))


def stable_decay(total: int, warmup: int, decay: int, peak: float = 1e-3) -> Schedule:
    def rate(n: int) -> float:
        if n < warmup:
            return peak * n / warmup
        return peak if n < total - decay else peak * max(0.0, (total - n) / decay)

    return rate


def noise(step: int) -> float:
    """A number between -0.5 and 0.5 that looks like noise and is the same every time."""
    return math.modf(math.sin(step * 12.9898) * 43758.5453)[0] % 1.0 - 0.5


def falling(step: int) -> float:
    return 1.0 + 2.0 * math.exp(-step / 100) + 0.1 * noise(step)


def entries(
    steps: Iterable[int],
    rate: Schedule,
    *,
    old: bool = False,
    began: int = 0,
    loss: Schedule = falling,
    epoch: int = 100,
) -> list[dict[str, Any]]:
    """Log entries; ``old`` versions log the rate after the step.  ``began`` is where the schedule counts from."""
    return [
        {"step": n, "epoch": n / epoch, "loss": loss(n), "learning_rate": rate(n - began - (0 if old else 1))}
        for n in steps
    ]


def state(path: str, step: int, history: list[Any]) -> logs.Log:
    return logs.from_state(path, step, history)


def lines(history: Iterable[dict[str, Any]], path: str = "trainer_log.jsonl") -> logs.Log:
    renamed = [
        {
            "current_steps": e["step"],
            "loss": e["loss"],
            "lr": e["learning_rate"],
            "epoch": e["epoch"],
            **e.get("more", {}),
        }
        for e in history
    ]
    return logs.from_lines(path, renamed)


def point(
    step: int, optimizer: float | None = None, scheduler: float | None = None, total: int | None = None
) -> Stored:
    return Stored(f"checkpoint-{step}", step, optimizer, scheduler, None, total)


def report(
    *joined: logs.Log,
    stored: Iterable[Stored] = (),
    schedule: str | None = "linear",
    kind: str | None = "LambdaLR",
    starts: Iterable[Start] | None = None,
    scaled: bool = False,
    **stated: Any,
) -> HistoryReport:
    """Judge logs, the newest first; without ``starts`` every checkpoint has the same arguments."""
    points = list(stored)
    arguments = {"lr_scheduler_type": schedule} if schedule else {}
    begun = [start(p.step or 0, **arguments) for p in points] if starts is None else list(starts)
    begun = begun or [start(0, **arguments)]
    facts = Facts(list(joined), stored=points, starts=begun, state=stated, kind=kind, counts=True, scaled=scaled)
    return judged("out", "hf-trainer", facts)


def start(
    step: int, *, world: int | None = 1, version: str | None = None, total: int | None = None, **args: Any
) -> Start:
    return Start(f"checkpoint-{step}", step, args, world, version, total)


def only(report: HistoryReport) -> Seam:
    (seam,) = report.seams
    return seam


def sign(seam: Seam, name: str) -> Sign:
    (found,) = (each for each in seam.signs if each.name == name)
    return found


def written(root: Path, states: dict[int, Any]) -> Path:
    """Write a run of checkpoints that hold a trainer's state alone."""
    for step, history in states.items():
        place = root / f"checkpoint-{step}"
        place.mkdir(parents=True)
        content = {"global_step": step, "max_steps": 100, "log_history": history}
        (place / "trainer_state.json").write_text(json.dumps(content))
    return root
