"""CK531 to CK535 and CK541: the trainer's state and its random generators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.rules import state
from tests.rules import damage
from tests.rules.damage import with_json
from tests.rules.damage_values import (
    FULL,
    READY,
    RESUME_BROKEN,
    RESUME_DEGRADED,
    RNG,
    STATE,
    Case,
    check,
    in_json,
    in_torch,
    lacking,
    values,
)
from tests.rules.judge import finding, judge

OLD, FOUR, ACCELERATE = (
    "trainer431-bin/checkpoint-4",
    "trainer4-bin/checkpoint-4",
    "accelerate/auto/checkpoints/checkpoint_0",
)


def entry(place: int, **changes: Any) -> damage.Damage:
    return in_json(STATE, lambda value: value["log_history"][place].update(changes))


def as_of(*keys: str) -> damage.Damage:
    """Take keys away that a transformers before some version did not write."""
    return in_json(STATE, lacking(*keys))


CASES = [
    Case("nothing", FULL, damage.nothing, set(), READY),
    Case("a key of one's own", FULL, with_json(STATE, note="mine"), {"CK531"}, RESUME_BROKEN),
    Case("a field of TRL", FULL, with_json(STATE, episode=7), set(), READY),
    Case("a file of 4.31", OLD, damage.nothing, set(), READY, frozenset({"CK532"})),
    Case("a file of 4.46", FOUR, as_of("best_global_step"), set(), READY),
    Case("a file of 4.36", FOUR, as_of("best_global_step", "stateful_callbacks"), set(), READY, frozenset({"CK532"})),
    Case("no step", FULL, in_json(STATE, lacking("global_step")), {"CK532"}, RESUME_DEGRADED),
    Case("no history", FULL, in_json(STATE, lacking("log_history")), {"CK532"}, READY),
    Case("no epoch", FULL, in_json(STATE, lacking("epoch")), set(), READY, frozenset({"CK532"})),
    Case("no batch size", FULL, in_json(STATE, lacking("train_batch_size")), {"CK532"}, RESUME_BROKEN),
    Case("no callbacks", FULL, in_json(STATE, lacking("stateful_callbacks")), {"CK532"}, RESUME_BROKEN),
    Case(
        "nothing in it", FULL, lambda directory: (directory / STATE).write_text("{}") and None, {"CK532"}, RESUME_BROKEN
    ),
    Case("a null batch size", FULL, with_json(STATE, train_batch_size=None), {"CK533"}, RESUME_BROKEN),
    Case("a null batch size of old", FOUR, with_json(STATE, train_batch_size=None), {"CK533"}, RESUME_BROKEN),
    Case("a text for a step", FULL, with_json(STATE, global_step="4"), {"CK533"}, RESUME_BROKEN),
    Case("a null step", FULL, with_json(STATE, global_step=None), {"CK533"}, RESUME_BROKEN),
    Case("true for a step", FULL, with_json(STATE, global_step=True), {"CK533"}, RESUME_BROKEN),
    Case("half a step", FULL, with_json(STATE, global_step=4.5), {"CK533"}, RESUME_BROKEN),
    Case("a step before the first", FULL, with_json(STATE, global_step=-4), {"CK501", "CK533", "CK534"}, RESUME_BROKEN),
    Case("a whole step with a point", FULL, with_json(STATE, global_step=4.0), set(), READY),
    Case("null steps between saves", FULL, with_json(STATE, save_steps=None), {"CK533"}, RESUME_BROKEN),
    Case("null steps between logs", FULL, with_json(STATE, logging_steps=None), {"CK533"}, RESUME_BROKEN),
    Case("a text for a history", FULL, with_json(STATE, log_history="lost"), {"CK533"}, RESUME_BROKEN),
    Case("a null history", FULL, with_json(STATE, log_history=None), set(), READY),
    Case("null callbacks", FULL, with_json(STATE, stateful_callbacks=None), {"CK533"}, RESUME_BROKEN),
    Case("other callbacks", FULL, with_json(STATE, stateful_callbacks={"Mine": {}}), {"CK533"}, RESUME_BROKEN),
    Case("NaN in the history", FULL, entry(2, loss=float("nan"), grad_norm=float("inf")), set(), READY),
    Case("falling steps", FULL, entry(3, step=1), {"CK534"}, READY),
    Case("steps beyond", FULL, entry(5, step=400), {"CK534"}, READY),
    Case("NaN for a step of the history", FULL, entry(3, step=float("nan")), set(), READY),
    Case("another best value", FULL, with_json(STATE, best_metric=1.5), set(), READY, frozenset({"CK535"})),
    Case("NaN for the best", FULL, with_json(STATE, best_metric=float("nan")), set(), READY),
    Case("a best step that was not logged", FULL, with_json(STATE, best_global_step=3), set(), READY),
    Case("no state of Python", FULL, in_torch(RNG, lacking("python")), {"CK541"}, RESUME_BROKEN),
    Case("no state of numpy", FULL, in_torch(RNG, lacking("numpy")), {"CK541"}, RESUME_BROKEN),
    Case("no state of torch", FULL, in_torch(RNG, lacking("cpu")), {"CK541"}, RESUME_BROKEN),
    Case(
        "a short state of torch",
        FULL,
        in_torch(RNG, lambda v: v.update(cpu=v["cpu"][:100].clone())),
        {"CK541"},
        RESUME_BROKEN,
    ),
    Case("a text for Python's", FULL, in_torch(RNG, values(python="seed")), {"CK541"}, RESUME_BROKEN),
    Case("a list of states", FULL, in_torch(RNG, lambda value: [value]), {"CK541"}, RESUME_BROKEN),
    Case("accelerate's own", ACCELERATE, in_torch("random_states_0.pkl", lacking("random_state")), set(), READY),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_state(case: Case, copy_of: Callable[..., Path]) -> None:
    check(case, copy_of)


def test_the_keys_are_those_of_the_trainer() -> None:
    trainer_callback = pytest.importorskip("transformers.trainer_callback")
    fields = {field.name for field in dataclasses.fields(trainer_callback.TrainerState)}
    assert fields - state.KNOWN == set(), "a newer transformers: add its keys"
    assert state.KNOWN - state._ELSEWHERE - fields == set()


def test_a_file_of_431_is_told_once_and_calmly(fixtures_dir: Path) -> None:
    report = judge(fixtures_dir / OLD, families=("CK53",))
    told = finding(report, "CK532")
    assert told.message == "written by a transformers before 4.36, and not to be resumed by a newer one as it is"
    assert told.detail[1] == "train_batch_size is what it lacks"
