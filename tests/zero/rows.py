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
from tests.rules.dcp_damage import exchanged as swapped
from tests.zero.states import (
    MODEL,
    base,
    changed,
    inner,
    model,
    optimizer,
    other,
    shortened,
    stepped,
    streamed,
    values,
)

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


def bf16(dp: int, mp: int = 0) -> str:
    return optimizer(dp, mp, "bf16_")


def layer(number: int) -> str:
    return f"layer_{number:02d}-model_states.pt"


def expert(number: int) -> str:
    return f"layer_0_expert_{number}_mp_rank_00_model_states.pt"


def expert_rank(number: int) -> str:
    return f"expp_rank_{number}_mp_rank_00_optim_states.pt"


def to_step_40(directory: Path) -> None:
    directory.rename(directory.parent / "global_step40")


both_streamed = streamed(optimizer(0), optimizer(1))
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
    Row("a step of a universal parameter missing", U1, without("zero/first.bias/step.pt"), {"CK375"}, RESUME),
    Row("no step of a universal group", U1, without("zero/*.bias/step.pt"), set(), READY),
    Row(
        "the moments of a universal parameter swapped",
        U1,
        swapped("zero/first.bias/exp_avg.pt", "zero/first.bias/exp_avg_sq.pt"),
        {"CK378"},
        DEGRADED,
    ),
    Row(
        "weights and a moment of a universal parameter swapped",
        U3,
        swapped("zero/first.bias/exp_avg.pt", "zero/first.bias/fp32.pt"),
        {"CK378"},
        BROKEN,
    ),
    Row("the model states of rank 0 missing in a universal one", U3, without(model(0)), {"CK151"}, BROKEN),
    Row("those of rank 1, which nobody reads", U3, without(model(1)), set(), READY),
    Row("those of two ranks swapped, which say the same", U3, swapped(model(0), model(1)), set(), READY),
    Row("a parameter missing", U1, without("zero/second.weight"), {"CK375"}, BROKEN),
    Row("a conversion that did not end", U1, with_file("tmp/first.bias/0/fp32.00", b""), {"CK375"}, READY),
    Row("a partition of another tag", S1, other("global_step2", optimizer(1)), {"CK571"}, BOTH),
    Row("a partition of stage 3 of another tag", S3, other("global_step2", optimizer(1)), {"CK571"}, BOTH),
    Row("model states of another tag", S1, other("global_step2", MODEL), {"CK505", "CK572", "CK576"}, READY),
    Row("model states of a rank of another tag", S3, other("global_step2", model(1)), {"CK570"}, BOTH),
    Row(
        "model states and partition of a rank of another tag",
        S3,
        together(other("global_step2", model(1)), other("global_step2", optimizer(1))),
        {"CK570", "CK571"},
        BOTH,
    ),
    Row("the tag renamed", S1, to_step_40, {"CK576"}, READY),
    Row("model states of another tag without ZeRO", S0, other("global_step2", MODEL), {"CK576"}, READY),
    Row("partitions swapped", S1, swapped(optimizer(0), optimizer(1)), {"CK378"}, BOTH),
    Row("partitions of four ranks swapped", S4, swapped(optimizer(0), optimizer(2)), {"CK378"}, BOTH),
    Row("partitions of stage 2 swapped", S2, swapped(optimizer(0), optimizer(1)), {"CK378"}, BOTH),
    Row("partitions of stage 3 swapped", S3, swapped(optimizer(0), optimizer(1)), {"CK378"}, BOTH),
    Row("a partition of stage 3 over another", S3, with_copy(optimizer(0), optimizer(1)), {"CK378"}, BOTH),
    Row("model states with frozen slices swapped", S3, swapped(model(0), model(1)), {"CK378"}, BOTH),
    Row(
        "partitions without a name swapped",
        S1,
        together(both_streamed, swapped(optimizer(0), optimizer(1))),
        {"CK378"},
        BOTH,
    ),
    Row("partitions without a name", S1, both_streamed, set(), READY),
    Row("partitions of stage 3 without a name", S3, both_streamed, set(), READY),
    Row("partitions of experts swapped", MOE2, swapped(bf16(0), bf16(1)), {"CK378"}, BOTH),
    Row(
        "partitions of pipeline stages swapped", PIPE1, swapped(bf16(0), bf16(0, 1)), {"CK370", "CK373", "CK378"}, BOTH
    ),
    Row("the optimizer of experts swapped", MOE0, swapped(expert_rank(0), expert_rank(1)), {"CK378"}, DEGRADED),
    Row("experts of two ranks swapped", MOE0, swapped(expert(0), expert(2)), {"CK378", "CK587"}, BROKEN),
    Row("experts of two ranks swapped, ZeRO 2", MOE2, swapped(expert(1), expert(2)), {"CK378", "CK587"}, BROKEN),
    Row("experts of rank 0 swapped", MOE0, swapped(expert(0), expert(1)), {"CK587"}, READY),
    Row("experts of rank 0 swapped, ZeRO 2", MOE2, swapped(expert(0), expert(1)), {"CK587"}, READY),
    Row("experts of rank 1 swapped", MOE2, swapped(expert(2), expert(3)), {"CK378", "CK587"}, BROKEN),
    Row("an expert over another", MOE0, with_copy(expert(0), expert(1)), {"CK378", "CK587"}, BROKEN),
    Row("layers swapped", PIPE0, swapped(layer(0), layer(2)), {"CK378"}, BROKEN),
    Row("a layer swapped with an empty one", PIPE0, swapped(layer(0), layer(1)), {"CK378"}, BROKEN),
    Row("a layer over another", PIPE1, with_copy(layer(0), layer(2)), {"CK376"}, BROKEN),
    Row("an empty layer over another", PIPE1, with_copy(layer(1), layer(0)), {"CK376"}, BROKEN),
    Row("pipeline stages swapped", PIPE0, swapped(MODEL, MODEL.replace("00", "01")), {"CK378"}, RESUME),
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
    Row(
        "model states of two ranks swapped",
        T3,
        swapped(f"global_step4/{model(0)}", f"global_step4/{model(1)}"),
        {"CK378"},
        READY,
    ),
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
