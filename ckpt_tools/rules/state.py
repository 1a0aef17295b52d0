"""CK53x: what `trainer_state.json` says, against what the Trainer makes of it at a resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from math import isclose, isnan
from typing import Any, TypeGuard

from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.findings import BREAKS_RESUME, DEGRADES_RESUME, HARMLESS, Severity, Spot
from ckpt_tools.model.values import Value
from ckpt_tools.rules.base import Context, Hit, Rule, rule

NEWEST = "5.23"
_SINCE_EVER = (
    "best_metric",
    "best_model_checkpoint",
    "epoch",
    "global_step",
    "is_hyper_param_search",
    "is_local_process_zero",
    "is_world_process_zero",
    "log_history",
    "max_steps",
    "num_train_epochs",
    "total_flos",
    "trial_name",
    "trial_params",
)
# The keys that came with a version of transformers, or with one not long before it, and so tell a newer file.
_ADDED = {
    "4.36": (
        "eval_steps",
        "logging_steps",
        "num_input_tokens_seen",
        "save_steps",
        "stateful_callbacks",
        "best_global_step",
    ),
    "4.41": ("best_global_step",),
}
# The keys that a resume cannot do without: since when, and where it stops.
_NEEDED = {
    "train_batch_size": ("4.36", "at once: \"unsupported operand type(s) for //: 'NoneType' and 'int'\""),
    "stateful_callbacks": ("4.41", "at its first save: \"KeyError: 'TrainerControl'\""),
}
# Fields that other trainers add to the class and read back themselves.
_ELSEWHERE = frozenset({"episode", "last_model_checkpoint"})
KNOWN = frozenset((*_SINCE_EVER, *_NEEDED, *_ADDED["4.36"])) | _ELSEWHERE
_SHOWN = 10


def _state(part: Part, context: Context) -> Mapping[Any, Value] | None:
    content = context.content(part) if part.role is Role.TRAINER_STATE else None
    if content is None or not content.readable or not isinstance(content.value, dict):
        return None
    return content.value


def _listed(names: list[str]) -> str:
    more = f" ... and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _number(value: Value) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 1 << 63


@rule("CK531", "state-unknown-key", Severity.ERROR, Part, impact=BREAKS_RESUME)
def state_unknown_key(part: Part, context: Context) -> Iterator[Hit]:
    """`trainer_state.json` has a key that no `TrainerState` up to transformers 5.23 has.

    **Why it matters.** The file is expanded into the arguments of a class: an unknown key is a `TypeError`, and the
    resume dies. A key of a newer transformers does the same to an older one.

    **How to repair.** Remove keys of your own; for a newer file resume with the transformers that wrote it.

    **Known exceptions.** Fields that TRL and ms-swift add to the class.
    """
    state = _state(part, context)
    unknown = [str(key) for key in state if key not in KNOWN] if state else []
    if unknown:
        yield Hit(
            f"{len(unknown):,} key{' is' if len(unknown) == 1 else 's are'} unknown to the Trainer",
            part.path,
            Spot(key=unknown[0]),
            (
                _listed(unknown),
                f'the Trainer up to {NEWEST} would stop with "unexpected keyword argument"; a newer one may know it',
            ),
        )


@rule("CK532", "state-key-missing", Severity.NOTE, Part)
def state_key_missing(part: Part, context: Context) -> Iterator[Hit]:
    """`trainer_state.json` lacks a key that every version writes.

    **Why it matters.** A missing key silently takes its default. Without `global_step` the training starts again at
    step 1 with the old optimizer and schedule; without `log_history` the history is lost; without `train_batch_size`
    or `stateful_callbacks` a resume stops. The others are computed again.

    **How to repair.** `global_step` is the number of the directory; copy the rest from a neighbouring checkpoint.

    **Known exceptions.** Keys that came with a later transformers than the one that wrote the file are not missing.
    """
    state = _state(part, context)
    if state is None:
        return
    if "global_step" not in state:
        yield Hit(
            "global_step is missing",
            part.path,
            Spot(key="global_step"),
            ("the Trainer would take 0: it trains again from step 1, with the old optimizer and schedule",),
            severity=Severity.ERROR,
            impact=DEGRADES_RESUME,
        )
    if "log_history" not in state:
        text = "the history of losses and rates would be lost"
        yield Hit("log_history is missing", part.path, Spot(key="log_history"), (text,), severity=Severity.WARNING)
    rest = [key for key in _SINCE_EVER if key not in state and key not in ("global_step", "log_history")]
    for key, (since, error) in _NEEDED.items():
        if key not in state:
            old = not rest and not any(newer in state for newer in _ADDED[since])
            yield _needed(part, key, since, error, old=old)
            if old:
                break
    if rest:
        yield Hit(f"{len(rest):,} keys that every version writes are missing", part.path, detail=(_listed(rest),))


def _needed(part: Part, key: str, since: str, error: str, *, old: bool) -> Hit:
    """Tell of a key without which a newer Trainer stops; ``old``: the file is of a time before the key."""
    title = f"written by a transformers before {since}, and not to be resumed by a newer one as it is"
    return Hit(
        title if old else f"{key} is missing",
        part.path,
        Spot(key=key),
        (f"transformers from {since} on would stop {error}", *((f"{key} is what it lacks",) if old else ())),
        severity=Severity.NOTE if old else Severity.ERROR,
        impact=HARMLESS if old else BREAKS_RESUME,
    )


@rule("CK533", "state-value-invalid", Severity.ERROR, Part, impact=BREAKS_RESUME)
def state_value_invalid(part: Part, context: Context) -> Iterator[Hit]:
    """A value of `trainer_state.json` that a resume computes with is of the wrong type.

    **Why it matters.** Steps and batch size are computed with, `log_history` is appended to, `stateful_callbacks` is
    written to: a null or a text there stops the resume, at once or at its first save.

    **How to repair.** Write the number: `global_step` is the number of the directory, `train_batch_size` the batch
    per process.
    """
    state = _state(part, context) or {}
    checks: dict[str, tuple[Callable[[Value], bool], str]] = {
        "global_step": (lambda value: _number(value) and value >= 0 and value == value // 1, "a whole number"),
        "train_batch_size": (lambda value: type(value) is int, "a whole number"),
        "logging_steps": (_number, "a number"),
        "save_steps": (_number, "a number"),
        "log_history": (lambda value: value is None or isinstance(value, list), "a list"),
        "stateful_callbacks": (
            lambda value: isinstance(value, dict) and "TrainerControl" in value,
            "an object with TrainerControl in it: a resume stops at its first save",
        ),
    }
    for key, (is_right, wanted) in checks.items():
        if key in state and not is_right(state[key]):
            shown = "null" if state[key] is None else repr(state[key])[:60]
            yield Hit(f"{key} is {shown}", part.path, Spot(key=key), (f"must be {wanted}",))


@rule("CK534", "log-history-order", Severity.WARNING, Part)
def log_history_order(part: Part, context: Context) -> Iterator[Hit]:
    """The steps in `log_history` fall, or go beyond `global_step`.

    **Why it matters.** The file was edited, or put together from two runs; a best step or a curve read from it
    misleads. A resume does not look at it.

    **How to repair.** Cut the entries that do not belong to this run.

    **Known exceptions.** Equal steps are normal: training and evaluation log apart. `epoch` may fall.
    """
    state = _state(part, context) or {}
    history, last = state.get("log_history"), state.get("global_step")
    if not isinstance(history, list):
        return
    steps = [
        (place, entry["step"])
        for place, entry in enumerate(history)
        if isinstance(entry, dict) and _number(entry.get("step")) and not isnan(entry["step"])
    ]
    for (_, before), (place, step) in pairwise(steps):
        if step < before:
            at = Spot(key=f"log_history[{place}].step")
            yield Hit("the steps of log_history fall", part.path, at, (f"step {step:,} comes after step {before:,}",))
            break
    beyond = [(place, step) for place, step in steps if type(last) is int and step > last]
    if beyond:
        place, step = beyond[0]
        at = Spot(key=f"log_history[{place}].step")
        yield Hit("log_history goes beyond global_step", part.path, at, (f"step {step:,}; global_step is {last:,}",))


@rule("CK535", "best-metric-disagrees", Severity.NOTE, Part)
def best_metric_disagrees(part: Part, context: Context) -> Iterator[Hit]:
    """`best_metric` is none of the values logged at `best_global_step`.

    **Why it matters.** The best checkpoint that is kept or loaded at the end may not be the best one.

    **How to repair.** Look at `log_history`; nothing needs to be done for a resume.

    **Known exceptions.** NaN, and steps that the history does not have.
    """
    state = _state(part, context) or {}
    best, step, history = state.get("best_metric"), state.get("best_global_step"), state.get("log_history")
    if not _number(best) or isnan(best) or not _number(step) or not isinstance(history, list):
        return
    entries = [entry for entry in history if isinstance(entry, dict) and entry.get("step") == step]
    logged = [value for entry in entries for key, value in entry.items() if key.startswith("eval_") and _number(value)]
    if logged and not any(isclose(best, value, rel_tol=1e-6, abs_tol=1e-9) for value in logged):
        yield Hit(
            f"best_metric is not among what was logged at step {step:,}",
            part.path,
            Spot(key="best_metric"),
            (f"best_metric is {best}; best_global_step is {step:,}",),
        )


RULES: tuple[Rule, ...] = (
    state_unknown_key,
    state_key_missing,
    state_value_invalid,
    log_history_order,
    best_metric_disagrees,
)
