"""Repairs of ``trainer_state.json``: a value in its place, or the whole from the state of a later checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import takewhile
from typing import Any

from ckpt_tools.containers import reader
from ckpt_tools.core.errors import CkptError
from ckpt_tools.edits.repair_base import MAX_WHOLE, CannotRepairError, Draft, Subject
from ckpt_tools.edits.repair_files import siblings
from ckpt_tools.layouts.match import open_run, run_directory
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import Fix
from ckpt_tools.model.plan import Action, WriteFile
from ckpt_tools.model.values import Value, as_mapping

NAME = "trainer_state.json"
_AWAY = "fall back to an older checkpoint"
_SPACE = re.compile(r"[ \t\r\n]*")


def set_value(fix: Fix, subject: Subject) -> Draft:
    """Plan to set one top-level value of a JSON file; every other byte stays."""
    path, key, value = str(fix.params["path"]), str(fix.params["key"]), fix.params["value"]
    old = subject.bytes_of(path)
    try:
        text = old.decode("utf-8")
        start, end = span(text, key)
    except ValueError as error:
        raise CannotRepairError(f"{path}: {error}") from None
    before = json.loads(text[start:end])
    new = text[:start] + json.dumps(value) + text[end:]
    return Draft((WriteFile(path, new.encode(), old),), ((path, key, before, value),))


def span(text: str, key: str) -> tuple[int, int]:
    """Return where the value of a top-level key stands in the text of a JSON object, the last one of its name.

    Raises:
        ValueError: it is no JSON object, or has no such key.
    """
    decoder = json.JSONDecoder()
    found: tuple[int, int] | None = None
    at = _skip(text, 1 if text.startswith("\ufeff") else 0)
    if text[at : at + 1] != "{":
        raise ValueError("it is no JSON object")
    at = _skip(text, at + 1)
    while text[at : at + 1] != "}":
        name, at = decoder.raw_decode(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise ValueError("it is no JSON object")
        start = _skip(text, at + 1)
        _, at = decoder.raw_decode(text, start)
        if name == key:
            found = (start, at)
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "}":
            raise ValueError("it is no JSON object")
    if found is None:
        raise ValueError(f"it has no {key}")
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def restore(fix: Fix, subject: Subject) -> Draft:
    """Plan to write a lost state again from the history that a later checkpoint, or the run at its end, carries."""
    step = subject.checkpoint.step if subject.checkpoint is not None else None
    if step is None:
        raise CannotRepairError("the directory's name tells no step")
    _agree(subject.opened(), step)
    for name, state in _later(subject, step):
        if isinstance(state.get("log_history"), list):
            made, notes = _at(dict(state), step, name)
            text = json.dumps(made, indent=2, sort_keys=True) + "\n"
            actions: list[Action] = [subject.aside(NAME)] if NAME in subject.files else []
            actions.append(WriteFile(NAME, text.encode(), None))
            return Draft(tuple(actions), notes=(f"from the state of {name}, as it was at step {step:,}", *notes))
    earlier = [(other.step or 0, name) for name, other in siblings(subject) if (other.step or 0) < step]
    if not earlier:
        raise CannotRepairError("no later checkpoint of the run has a state to take it from", _AWAY)
    last, name = max(earlier)
    raise CannotRepairError(
        f"no later checkpoint of the run carries the history up to step {step:,}; an earlier one ends at {last:,}, and"
        " what was logged and counted after it is nowhere else",
        f"resume from {name}, or use this one for inference only",
    )


def _later(subject: Subject, step: int) -> Iterator[tuple[str, Mapping[Any, Value]]]:
    """Yield the states of later steps by where they are, the nearest first, and that which the run left at its end."""
    later = [(each.step or 0, name, each) for name, each in siblings(subject) if (each.step or 0) > step]
    for _, name, other in sorted(later, key=lambda found: found[:2]):
        state = as_mapping(View(other).mapping(Role.TRAINER_STATE))
        if state is not None:
            yield name, state
    with suppress(CkptError):
        run = open_run(run_directory(subject.run)) if subject.run.single else subject.run
        for part in run.parts:
            if part.role is Role.TRAINER_STATE and part.stat.is_file and part.stat.size <= MAX_WHOLE:
                with run.listing.open(part.path) as source:
                    state = as_mapping(reader.read(source, part.containers).value)
                last = (state or {}).get("global_step")
                if state is not None and isinstance(last, int) and last >= step:
                    yield "the run itself", state


def _agree(view: View, step: int) -> None:
    """Require that everything else of the save is there, and of this step."""
    for role in (Role.OPTIMIZER, Role.SCHEDULER, Role.RNG):
        if not view.checkpoint.has(role) and view.elsewhere is None:
            raise CannotRepairError(
                f"the save also lacks {role.value}, so that a state alone does not make it whole",
                _AWAY,
            )
    if not view.checkpoint.has(Role.WEIGHTS, Role.ADAPTER):
        raise CannotRepairError("the save has no weights", _AWAY)
    for part in view.checkpoint.parts:
        content = view.content(part) if part.role in (Role.OPTIMIZER, Role.SCHEDULER, Role.WEIGHTS, Role.RNG) else None
        if content is not None and (not content.readable or content.problems):
            raise CannotRepairError(f"{part.path} is damaged as well", _AWAY)
    epoch = (view.scheduler or {}).get("last_epoch")
    if "lr_lambdas" in (view.scheduler or {}) and epoch != step:
        raise CannotRepairError(f"the schedule is of step {epoch}, the directory is named for step {step:,}")


def _at(state: dict[Any, Value], step: int, name: str) -> tuple[dict[Any, Value], list[str]]:
    """Return a later state as it was at ``step``, and what of it could only be estimated."""
    last, notes = state.get("global_step"), []
    if not isinstance(last, int) or last < step:
        raise CannotRepairError(f"the state of {name} says step {last}")
    entries = [entry for entry in state["log_history"] if isinstance(entry, dict)]
    # The summary of a training is logged at its end, after the last save; so is what follows it.
    history = list(takewhile(lambda entry: "train_runtime" not in entry, entries))
    kept = [entry for entry in history if isinstance(entry.get("step"), int) and entry["step"] <= step]
    epochs = {entry["step"]: entry["epoch"] for entry in kept if "epoch" in entry}
    if step in epochs:
        epoch = epochs[step]
    elif isinstance(state.get("epoch"), int | float) and last:
        epoch = state["epoch"] * step / last
        notes.append("epoch is estimated (only shown, never used)")
    else:
        epoch = state.get("epoch")
    if isinstance(state.get("total_flos"), int | float):
        state["total_flos"] = float(state["total_flos"]) * step / last
        notes.append("total_flos is estimated")
    if isinstance(state.get("num_input_tokens_seen"), int):
        state["num_input_tokens_seen"] = state["num_input_tokens_seen"] * step // last
    best = state.get("best_global_step")
    named = str(state.get("best_model_checkpoint") or "")
    if (isinstance(best, int) and best > step) or _number(named) > step:
        for key in ("best_global_step", "best_metric", "best_model_checkpoint"):
            if key in state:
                state[key] = None
        notes.append("the best checkpoint was a later one: there is none yet")
    control = (as_mapping(state.get("stateful_callbacks")) or {}).get("TrainerControl")
    arguments = (as_mapping(control) or {}).get("args")
    if isinstance(arguments, dict) and isinstance(control, dict) and "should_training_stop" in arguments:
        arguments = {**arguments, "should_training_stop": False}
        callbacks = {**state["stateful_callbacks"], "TrainerControl": {**control, "args": arguments}}
        state["stateful_callbacks"] = callbacks
    return {**state, "global_step": step, "epoch": epoch, "log_history": kept}, notes


def _number(path: str) -> int:
    match = re.search(r"checkpoint-(\d{1,18})/?\Z", path)
    return int(match.group(1)) if match else -1
