"""Named damages to DeepSpeed's checkpoints, and what the rules say of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.rules.damage import (
    Damage,
    cut,
    directory_in_place_of,
    emptied_file,
    renamed,
    together,
    with_copy,
    with_file,
    without,
)
from tests.zero.states import MODEL, base, changed, inner, model, optimizer, other, shortened, stepped, values

READY, BROKEN = ("ready", "ready"), ("broken", "broken")
RESUME, DEGRADED, BOTH = ("broken", "ready"), ("degraded", "ready"), ("degraded", "degraded")
FAMILIES = ("CK1", "CK2", "CK3", "CK5", "CK7")
S1, S4, S3 = "stage1-fp32/global_step4", "stage1-4ranks/global_step4", "stage3-fp32/global_step4"
BF1, BF3, S2 = "stage1-bf16/global_step3", "stage3-bf16/global_step3", "stage2-fp32/global_step3"
S0, PIPE0, PIPE1 = "stage0/global_step4", "pipeline-stage0/global_step3", "pipeline-bf16-stage1/global_step3"
MOE0, MOE2 = "moe-stage0/global_step3", "moe-stage2-bf16/global_step3"
U1, U3 = "universal-stage1/global_step4_universal", "universal-stage3/global_step4_universal"
T1, T3 = "trainer-stage1/checkpoint-4", "trainer-stage3/checkpoint-4"


@dataclass(frozen=True, slots=True)
class Row:
    """``codes`` are all that are found at least as warnings."""

    name: str
    fixture: str
    damage: Damage
    codes: set[str]
    verdict: tuple[str, str]


def from_fixture(name: str, file: str, target: str | None = None) -> Damage:
    """Take a file from another fixture."""
    source = Path(__file__).resolve().parents[2] / "fixtures/deepspeed" / name / file
    return lambda directory: (directory / (target or file)).write_bytes(source.read_bytes()) and None


def to_step_40(directory: Path) -> None:
    directory.rename(directory.parent / "global_step40")


no_tag = together(without("global_step4"), with_file("zero_to_fp32.py", b"#"))


def rate(value: float) -> Callable[[Any], object]:
    return base(lambda state: state["param_groups"][0].update(lr=value))


ROWS = [
    Row("a partition missing", S4, without(optimizer(2)), {"CK150"}, RESUME),
    Row("two partitions missing", S4, without(optimizer(1), optimizer(2)), {"CK150"}, RESUME),
    Row("the last partition missing", S1, without(optimizer(1)), {"CK150"}, RESUME),
    Row("no partition left", S1, without("*optim*"), {"CK150"}, RESUME),
    Row("a partition of stage 3 missing", S3, without(optimizer(1)), {"CK150"}, BROKEN),
    Row("all partitions of stage 3 missing", S3, without("*optim*"), {"CK150"}, BROKEN),
    Row("the model states missing", S1, without(MODEL), {"CK151"}, BROKEN),
    Row("the model states of a rank missing", S3, without(model(1)), {"CK151"}, BROKEN),
    Row("the model states of rank 0 missing", S3, without(model(0)), {"CK151"}, BROKEN),
    Row("the model states of a pipeline stage missing", PIPE1, without("mp_rank_01_model*"), {"CK151"}, BROKEN),
    Row("a partition of a pipeline stage missing", PIPE1, without("bf16*mp_rank_01*"), {"CK150"}, RESUME),
    Row("a partition empty", S1, emptied_file(optimizer(1)), {"CK201"}, RESUME),
    Row("a partition cut", S1, cut(optimizer(1)), {"CK203"}, RESUME),
    Row("a partition of stage 3 cut", S3, cut(optimizer(1)), {"CK203", "CK374"}, BROKEN),
    Row("a partition of stage 3 empty", S3, emptied_file(optimizer(0)), {"CK201", "CK374"}, BROKEN),
    Row("the model states cut", S1, cut(MODEL), {"CK203"}, BROKEN),
    Row("a directory instead of a partition", S1, directory_in_place_of(optimizer(1)), {"CK150"}, RESUME),
    Row("one partition of four ranks", S1, from_fixture("stage1-4ranks/global_step4", optimizer(1)), {"CK152"}, RESUME),
    Row(
        "left over by four ranks",
        S1,
        together(*(from_fixture("stage1-4ranks/global_step4", optimizer(rank)) for rank in (2, 3))),
        {"CK153"},
        READY,
    ),
    Row("left over of stage 3", S3, with_copy(optimizer(1), optimizer(5)), {"CK153"}, ("ready", "degraded")),
    Row(
        "a partition of stage 3 in stage 1",
        S1,
        from_fixture("stage3-fp32/global_step4", optimizer(1)),
        {"CK152"},
        RESUME,
    ),
    Row(
        "model states of stage 1 beside those of stage 3",
        S3,
        from_fixture("stage1-fp32/global_step4", MODEL),
        {"CK152"},
        READY,
    ),
    Row("one file lost its prefix", BF1, renamed(optimizer(1, prefix="bf16_"), optimizer(1)), {"CK154"}, RESUME),
    Row("one file got a prefix", S4, renamed(optimizer(3), optimizer(3, prefix="bf16_")), {"CK154"}, RESUME),
    Row(
        "a second file without the prefix", BF1, with_copy(optimizer(1, prefix="bf16_"), optimizer(1)), {"CK153"}, READY
    ),
    Row("a layer missing", PIPE1, without("layer_02*"), {"CK155"}, BROKEN),
    Row("a layer missing without ZeRO", PIPE0, without("layer_02*"), {"CK155"}, BROKEN),
    Row("the last layer missing without ZeRO", PIPE0, without("layer_03*"), {"CK155"}, BROKEN),
    Row("a layer without parameters missing", PIPE0, without("layer_01*"), set(), READY),
    Row("an expert missing", MOE2, without("layer_0_expert_3*"), {"CK156"}, BROKEN),
    Row("the optimizer of experts missing", MOE0, without("expp_rank_1*"), {"CK156"}, RESUME),
    Row("weights of a universal parameter missing", U1, without("zero/first.bias/fp32.pt"), {"CK375"}, BROKEN),
    Row("a moment of a universal parameter missing", U3, without("zero/second.weight/exp_avg.pt"), {"CK375"}, RESUME),
    Row("a parameter missing", U1, without("zero/second.weight"), {"CK375"}, BROKEN),
    Row("a conversion that did not end", U1, with_file("tmp/first.bias/0/fp32.00", b""), {"CK375"}, READY),
    Row("a partition of another tag", S1, other("global_step2", optimizer(1)), {"CK571"}, BOTH),
    Row("a partition of stage 3 of another tag", S3, other("global_step2", optimizer(1)), {"CK571"}, BOTH),
    Row("model states of another tag", S1, other("global_step2", MODEL), {"CK572"}, READY),
    Row("model states of a rank of another tag", S3, other("global_step2", model(1)), {"CK570"}, BOTH),
    Row(
        "model states and partition of a rank of another tag",
        S3,
        together(other("global_step2", model(1)), other("global_step2", optimizer(1))),
        {"CK570", "CK571"},
        BOTH,
    ),
    Row("the tag renamed", S1, to_step_40, set(), READY),
    Row("too many elements", S1, changed(MODEL, lambda v: v["param_shapes"][0].popitem()), {"CK370"}, BOTH),
    Row("too few elements", S1, changed(optimizer(0), inner(shortened)), {"CK370"}, BOTH),
    Row("a slice too short", S3, changed(optimizer(1), inner(shortened)), {"CK371"}, BROKEN),
    Row(
        "moments of another length",
        S2,
        changed(optimizer(1), base(lambda s: s["state"][0].update(exp_avg=s["state"][0]["exp_avg"][:-1].clone()))),
        {"CK372"},
        RESUME,
    ),
    Row(
        "a place that does not add up",
        S2,
        changed(optimizer(1), inner(lambda s: s["param_slice_mappings"][0].popitem())),
        {"CK373"},
        DEGRADED,
    ),
    Row(
        "a weight of another shape",
        S1,
        changed(MODEL, lambda v: v["module"].update({"first.weight": v["module"]["first.weight"].T})),
        {"CK376"},
        RESUME,
    ),
    Row(
        "an optimizer at another step",
        S1,
        together(*(changed(optimizer(r), stepped(9)) for r in (0, 1))),
        {"CK572"},
        READY,
    ),
    Row("another version on a rank", S3, changed(model(1), values(ds_version="0.15.0")), {"CK574"}, READY),
    Row(
        "another schedule on a rank",
        BF3,
        changed(model(1), values(lr_scheduler={"last_batch_iteration": 9})),
        {"CK574"},
        DEGRADED,
    ),
    Row("a rate edited on one rank", S1, changed(optimizer(1), rate(0.5)), {"CK575"}, DEGRADED),
    Row("something else in model states", S1, changed(MODEL, lambda v: v.clear()), {"CK577"}, BROKEN),
    Row(
        "the trainer at another step",
        T1,
        changed(f"global_step4/{MODEL}", values(global_steps=9)),
        {"CK572", "CK573"},
        READY,
    ),
    Row("a number of ranks that is none", S1, changed(MODEL, values(dp_world_size="two")), {"CK577"}, RESUME),
    Row("a partition missing in the trainer's", T1, without(f"global_step4/{optimizer(1)}"), {"CK150"}, RESUME),
    Row(
        "a partition of stage 3 missing in the trainer's",
        T3,
        without(f"global_step4/{optimizer(1)}"),
        {"CK150"},
        BROKEN,
    ),
    Row("a tag without any file", T3, without("global_step4/*"), {"CK151"}, BROKEN),
    Row("no tag left", T3, no_tag, {"CK151"}, BROKEN),
    Row("no tag left, weights beside", T1, no_tag, {"CK151"}, RESUME),
    Row("no schedule", T1, without("scheduler.pt"), {"CK158"}, RESUME),
    Row(
        "the schedule is DeepSpeed's",
        T1,
        together(
            without("scheduler.pt"), changed(f"global_step4/{MODEL}", values(lr_scheduler={"last_batch_iteration": 3}))
        ),
        set(),
        READY,
    ),
    Row("killed before the state", T1, without("trainer_state.json", "rng_state.pth"), {"CK101"}, RESUME),
    Row("no random state", T1, without("rng_state.pth"), {"CK105"}, DEGRADED),
]
