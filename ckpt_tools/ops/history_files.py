"""What the files of a run say about its training, before anything is judged."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from ckpt_tools.core.errors import UsageError
from ckpt_tools.core.listing import Listing
from ckpt_tools.core.progress import Progress
from ckpt_tools.layouts import LAYOUTS
from ckpt_tools.layouts.match import is_export, is_file
from ckpt_tools.layouts.view import View
from ckpt_tools.model import schedules
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role, Run
from ckpt_tools.model.values import Value, whole
from ckpt_tools.ops import describe, logs, seams
from ckpt_tools.reports.history import Note, Source, Stored

OWN = "trainer_state.json"


@dataclass(slots=True)
class Facts:
    """What the files of a run say, before anything is judged."""

    logs: list[logs.Log] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    state: Mapping[Any, Value] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    kind: str | None = None
    counts: bool = False
    scaled: bool = False

    @property
    def named(self) -> str | None:
        """The schedule that the newest training arguments name."""
        value = self.starts[-1].arguments.get("lr_scheduler_type") if self.starts else None
        return value if isinstance(value, str) else None


@dataclass(frozen=True, slots=True)
class Start:
    """What a checkpoint tells of the process that wrote it."""

    path: str
    step: int
    arguments: Mapping[str, Value]
    world: int | None
    version: str | None
    total: int | None


def read(run: Run, progress: Progress) -> Facts:
    facts = Facts()
    found: list[tuple[int, bool, logs.Log, Mapping[Any, Value]]] = []
    chosen = _one_training(run)
    with progress.task("reading", len(chosen), "checkpoint") as task:
        for checkpoint in chosen:
            view = View(checkpoint)
            own = os.path.basename(run.root) if is_file(run) else OWN
            log = None if _log_pattern(own) else _state(view, own if run.single else checkpoint.path, facts)
            if log is not None:
                found.append((log.step, False, log, view.state or {}))
            _numbers(view, facts)
            facts.unreadable += [posixpath.normpath(f"{checkpoint.path}/{file}") for file in view.errors]
            view.release()
            task.advance(1)
    if not run.single:
        view = View(Checkpoint(".", run.listing, (run.layout,), run.parts))
        log = _state(view, OWN, facts) if view.checkpoint.has(Role.TRAINER_STATE) else None
        if log is not None:
            found.append((log.step, True, log, view.state or {}))
        facts.unreadable += list(view.errors)
    found.sort(key=lambda each: each[:2], reverse=True)
    facts.logs = [log for _, _, log, _ in found]
    facts.state = next((state for _, _, _, state in found), {})
    facts.logs += _appended(run, facts)
    return facts


def _one_training(run: Run) -> list[Checkpoint]:
    """Return the checkpoints of the only training below the run, by step."""
    groups: dict[str, list[Checkpoint]] = {}
    for checkpoint in run.checkpoints:
        if not is_export(run, checkpoint):
            groups.setdefault(checkpoint.path.rpartition("/")[0], []).append(checkpoint)
    if len(groups) > 1:
        logged = {name: group for name, group in groups.items() if any(each.has(Role.TRAINER_STATE) for each in group)}
        groups = logged if len(logged) == 1 else groups
    if len(groups) > 1:
        names = [os.path.join(run.root, name) if name else run.root for name in groups]
        nested = next(name for name in names if name != run.root)
        raise UsageError(
            f"{run.root}: holds {len(groups)} trainings", hint=f"name one of them: `ckpt history {nested}`"
        )
    return next(iter(groups.values()), [])


def _state(view: View, name: str, facts: Facts) -> logs.Log | None:
    """Read the log of one trainer's state, and say so where that is not possible."""
    part = view.checkpoint.first(Role.TRAINER_STATE)
    if part is None:
        if view.checkpoint.layout == "hf-trainer" and view.checkpoint.path != ".":
            facts.notes.append(Note("no-log", f"{name} has no {OWN}: what it logged is not here"))
        return None
    state = view.state
    if state is None:
        if part.path not in view.errors:
            content = view.content(part)
            why = content.problems[0].message if content is not None and content.problems else "is no object"
            facts.damaged.append(name)
            facts.sources.append(Source(name, None, 0, why))
            facts.notes.append(Note("log-damaged", f"{name}: the log cannot be read: {why}"))
        return None
    step = whole(state.get("global_step"))
    log = logs.from_state(name, view.checkpoint.step or 0 if step is None else step, state.get("log_history"))
    facts.sources.append(Source(name, step, len(log.entries)))
    return log


def _numbers(view: View, facts: Facts) -> None:
    """Keep the counters of a checkpoint, and what tells one start of the training from another."""
    path = view.checkpoint.path
    if view.scheduler is not None:
        row = schedules.scheduler(view.scheduler)
        facts.kind = row.kind if row else "unknown"
    counted = view.numbers("optimizer-step")
    rates = view.numbers("lr") or view.numbers("last-lr")
    total = whole((view.state or {}).get("max_steps"))
    total = total if total and total > 0 else None
    finite = [number for number in counted if isfinite(number)]
    epoch = view.number("scheduler-step")
    ticks = facts.kind in seams.COUNTING_KINDS and epoch is not None and isfinite(epoch) and not _by_epoch(view, epoch)
    step = view.step
    rate = rates[0] if rates and isfinite(rates[0]) else None
    facts.stored.append(Stored(path, step, max(finite, default=None), epoch if ticks else None, rate, total))
    stated = view.number("step")
    facts.counts = facts.counts or stated is not None
    facts.scaled = facts.scaled or view.checkpoint.has(Role.SCALER) or view.training_args.get("fp16") is True
    if step is not None:
        version = (view.config or {}).get("transformers_version")
        start = Start(path, step, view.training_args, describe.world_size(view), None, total)
        if isinstance(version, str):
            start = Start(path, step, view.training_args, describe.world_size(view), version[:40], total)
        facts.starts.append(start)


def _by_epoch(view: View, counter: float) -> bool:
    """Whether a scheduler may have counted epochs, as Lightning's do unless told otherwise: nothing in a file says."""
    epoch = view.number("epoch")
    return view.checkpoint.layout != "hf-trainer" and epoch is not None and counter <= epoch + 1


def _appended(run: Run, facts: Facts) -> list[logs.Log]:
    """Read ``trainer_log.jsonl`` beside the checkpoints; a last line cut short is what a killed writer leaves."""
    found = []
    listing = Listing(run.listing.root, run.listing.files, {}, run.listing.meter)
    for name in listing.names():
        pattern = _log_pattern(name)
        if pattern is None or not listing.files[name].is_file:
            continue
        part = Part(name, Role.LOG, run.layout, pattern, listing.files[name])
        view = View(Checkpoint(".", listing, (run.layout,), (part,)))
        content = view.content(part)
        if content is None:
            facts.unreadable += list(view.errors)
            continue
        told = [problem for problem in content.problems if problem.kind != "json-nan"]
        facts.notes += [Note("log-damaged", f"{name}: {problem.message}") for problem in told]
        if not content.readable or any(problem.kind == "json-damaged" for problem in told):
            facts.damaged.append(name)
        log = logs.from_lines(name, content.value)
        facts.sources.append(Source(name, log.step, len(log.entries), told[0].message if told else ""))
        found.append(log)
    return found


def _log_pattern(name: str) -> tuple[str, ...] | None:
    """Return the containers of a file that is a log by its name, None for any other."""
    patterns = (pattern for layout in LAYOUTS for pattern in layout.run_parts if pattern.role is Role.LOG)
    return next((pattern.containers for pattern in patterns if pattern.expression.match(name)), None)
