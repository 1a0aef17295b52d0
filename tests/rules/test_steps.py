"""CK501 to CK508: the step and the learning rates in several files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rules import damage
from tests.rules.damage import Damage, together, with_json
from tests.rules.damage_values import (
    FULL,
    LORA,
    OPTIMIZER,
    READY,
    RESUME_BROKEN,
    RESUME_DEGRADED,
    SCHEDULER,
    STATE,
    Case,
    check,
    each_group,
    in_json,
    in_torch,
    lacking,
    values,
)
from tests.rules.judge import codes, finding, judge, verdicts
from tests.zero.states import changed
from tests.zero.states import values as states

LAST = "trainer5-full/checkpoint-6"
SGD, PLATEAU, GREEDY = (
    "trainer5-sgd-constant/checkpoint-4",
    "trainer5-plateau/checkpoint-4",
    "trainer5-greedy/checkpoint-4",
)
FUSED, UNFUSED = "trainer5-scaler/checkpoint-4", "trainer5-scaler-unfused/checkpoint-4"


def of_step(number: int, *names: str) -> Damage:
    """Take files from another checkpoint of the run."""
    return lambda directory: (
        [shutil.copy2(directory.parent / f"checkpoint-{number}" / name, directory / name) for name in names] and None
    )


def renamed(number: int) -> Damage:
    return lambda directory: directory.rename(directory.parent / f"checkpoint-{number}") and None


def stepped(number: float) -> Damage:
    return in_torch(
        OPTIMIZER, lambda value: [entry["step"].fill_(number) for entry in value["state"].values()] and None
    )


def afresh(value: dict[str, Any]) -> None:
    """The log of a run whose schedule was started again at step 2: the rates of its first steps once more."""
    first = [entry for entry in value["log_history"] if "learning_rate" in entry]
    for entry in first[2:]:
        entry["learning_rate"] = first[entry["step"] - 3]["learning_rate"]


def rate(key: str, value: float, place: int = 0) -> Callable[[Any], None]:
    return lambda state: state[key].__setitem__(place, value)


ZERO1, ZERO3 = "deepspeed/trainer-stage1/checkpoint-2", "deepspeed/trainer-stage3/checkpoint-4"
SHARDED = "fsdp/trainer-sharded/checkpoint-2"


def model_states(**entries: Any) -> Damage:
    """Change what DeepSpeed's model states say."""
    return lambda directory: (
        [changed(path.name, states(**entries))(path.parent) for path in directory.glob("global_step*/*model_states.pt")]
        and None
    )


CASES = [
    Case("nothing", FULL, damage.nothing, set(), READY),
    Case("a schedule of a later step, DeepSpeed", ZERO1, of_step(4, SCHEDULER), {"CK505"}, RESUME_DEGRADED),
    Case("a schedule of another step, DeepSpeed", ZERO3, of_step(2, SCHEDULER), {"CK504"}, RESUME_DEGRADED),
    Case(
        "a schedule that DeepSpeed does not read",
        ZERO3,
        together(of_step(2, SCHEDULER), model_states(lr_scheduler={"last_batch_iteration": 3})),
        set(),
        READY,
    ),
    Case(
        "steps that float16 skipped, DeepSpeed",
        ZERO3,
        together(in_torch(SCHEDULER, values(last_epoch=3)), model_states(skipped_steps=1)),
        set(),
        READY,
    ),
    Case(
        "more of them than DeepSpeed says",
        ZERO3,
        in_torch(SCHEDULER, values(last_epoch=3)),
        {"CK502"},
        RESUME_DEGRADED,
    ),
    Case("a rate edited, DeepSpeed", ZERO1, in_torch(SCHEDULER, rate("_last_lr", 0.5)), {"CK505"}, RESUME_DEGRADED),
    Case(
        "no schedule in its file, DeepSpeed",
        ZERO1,
        in_torch(SCHEDULER, lacking("lr_lambdas")),
        {"CK508"},
        RESUME_BROKEN,
    ),
    Case(
        "a schedule of another step, FSDP",
        SHARDED,
        in_torch(SCHEDULER, values(last_epoch=1)),
        {"CK502"},
        RESUME_DEGRADED,
    ),
    Case("a state of another step", FULL, of_step(2, STATE), {"CK501"}, RESUME_DEGRADED),
    Case("a step edited", FULL, with_json(STATE, global_step=3), {"CK501", "CK534"}, RESUME_DEGRADED),
    Case("a schedule of another step", FULL, of_step(2, SCHEDULER), {"CK504"}, RESUME_DEGRADED),
    Case("a schedule of a later step", FULL, of_step(6, SCHEDULER), {"CK504"}, RESUME_DEGRADED),
    Case("an optimizer of another step", FULL, of_step(2, OPTIMIZER), {"CK504"}, RESUME_DEGRADED),
    Case("an optimizer of a later step", FULL, of_step(6, OPTIMIZER), {"CK504"}, RESUME_DEGRADED),
    Case("both of a later step", FULL, of_step(6, OPTIMIZER, SCHEDULER), {"CK504"}, RESUME_DEGRADED),
    Case("both of an earlier step", LAST, of_step(4, OPTIMIZER, SCHEDULER), {"CK504"}, RESUME_DEGRADED),
    Case(
        "both started afresh at step 2",
        FULL,
        together(of_step(2, OPTIMIZER, SCHEDULER), in_json(STATE, afresh)),
        set(),
        READY,
        frozenset({"CK502"}),
    ),
    Case("a count edited", FULL, in_torch(SCHEDULER, values(last_epoch=2)), {"CK502"}, RESUME_DEGRADED),
    Case("a count per process", FULL, in_torch(SCHEDULER, values(last_epoch=8)), set(), READY),
    Case("a count too high", FULL, in_torch(SCHEDULER, values(last_epoch=5)), {"CK502"}, RESUME_DEGRADED),
    Case(
        "a count edited, no optimizer step", SGD, in_torch(SCHEDULER, values(last_epoch=3)), {"CK502"}, RESUME_DEGRADED
    ),
    Case("a plateau's count", PLATEAU, in_torch(SCHEDULER, values(last_epoch=1)), set(), READY),
    Case("a greedy one's count", GREEDY, in_torch(SCHEDULER, values(last_epoch=1)), set(), READY),
    Case("skipped steps", UNFUSED, damage.nothing, set(), READY),
    Case("skipped steps, fused", FUSED, damage.nothing, set(), READY),
    Case("an optimizer ahead", FULL, stepped(400), {"CK503"}, RESUME_DEGRADED),
    Case("an optimizer behind", FULL, stepped(1), {"CK503"}, READY),
    Case("a rate edited", FULL, in_torch(OPTIMIZER, each_group(lr=0.5)), {"CK505"}, RESUME_DEGRADED),
    Case(
        "a rate edited in one group",
        LORA,
        in_torch(OPTIMIZER, lambda v: v["param_groups"][1].update(lr=0.5)),
        {"CK505"},
        RESUME_DEGRADED,
    ),
    Case("noise in a rate", FULL, in_torch(OPTIMIZER, each_group(lr=0.064 * (1 + 1e-12))), set(), READY),
    Case("a plateau's rate", PLATEAU, in_torch(OPTIMIZER, each_group(lr=0.5)), set(), READY),
    Case("a schedule-free optimizer", FULL, in_torch(OPTIMIZER, each_group(lr=0.5, scheduled_lr=0.5)), set(), READY),
    Case("an initial rate edited", FULL, in_torch(OPTIMIZER, each_group(initial_lr=0.5)), {"CK506"}, READY),
    Case("a base rate edited", FULL, in_torch(SCHEDULER, rate("base_lrs", 0.5, 1)), {"CK506"}, READY),
    Case(
        "a base rate less", FULL, in_torch(SCHEDULER, lambda v: v["base_lrs"].pop() and None), {"CK507"}, RESUME_BROKEN
    ),
    Case("a last rate less", FULL, in_torch(SCHEDULER, lambda v: v["_last_lr"].pop() and None), {"CK507"}, READY),
    Case("no lambdas", FULL, in_torch(SCHEDULER, lacking("lr_lambdas")), {"CK508"}, RESUME_BROKEN),
    Case("no count", FULL, in_torch(SCHEDULER, lacking("last_epoch")), {"CK508"}, RESUME_DEGRADED),
    Case("a text for a count", FULL, in_torch(SCHEDULER, values(last_epoch="4")), {"CK508"}, RESUME_BROKEN),
    Case("an empty schedule", FULL, in_torch(SCHEDULER, lambda value: value.clear()), {"CK508"}, RESUME_BROKEN),
    Case("a list for a schedule", FULL, in_torch(SCHEDULER, lambda value: [value]), {"CK508"}, RESUME_BROKEN),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_steps_and_rates(case: Case, copy_of: Callable[..., Path]) -> None:
    check(case, copy_of)


@pytest.mark.parametrize("number", [40, 6])
def test_a_renamed_directory_can_be_resumed(number: int, copy_of: Callable[..., Path]) -> None:
    run = copy_of("trainer5-frozen")
    (run / "checkpoint-4").rename(run / f"checkpoint-{number}")
    report = judge(run / f"checkpoint-{number}", families=("CK5",))
    told = finding(report, "CK501")
    assert (codes(report), verdicts(report)) == ({"CK501"}, READY)
    assert told.message == f"the directory is named for step {number}, its state says 4"
    assert told.detail == ("the trainer's state says step 4, the schedule 4, the optimizer 4",)


def test_accelerate_counts_saves_in_its_names(fixtures_dir: Path) -> None:
    report = judge(fixtures_dir / "accelerate/auto/checkpoints/checkpoint_1", families=("CK5",))
    assert not list(report.all_findings())


@pytest.mark.parametrize(
    "schedule", ["LambdaLR", "StepLR", "OneCycleLR", "CyclicLR", "SequentialLR", "ReduceLROnPlateau"]
)
def test_every_schedule_of_torch_is_taken_as_it_is(schedule: str, fixtures_dir: Path) -> None:
    assert not codes(judge(fixtures_dir / f"plain/schedules/{schedule}.pt", families=("CK5",)))


@pytest.mark.parametrize("step", ["Infinity", "NaN", "1e999", "-1", '"4"', "null", "[]", "1" * 4000])
def test_no_step_is_too_odd(step: str, copy_of: Callable[..., Path]) -> None:
    directory = copy_of("trainer5-frozen") / "checkpoint-4"
    text = (directory / STATE).read_text(encoding="utf-8")
    (directory / STATE).write_text(text.replace('"global_step": 4', f'"global_step": {step}'), encoding="utf-8")
    assert "CK001" not in codes(judge(directory, families=("CK",)))
