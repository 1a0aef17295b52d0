"""Partitions of DeepSpeed put together: equal, bit by bit, to what DeepSpeed's own converters made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.tensors import TensorRef
from tests.conftest import Copy
from tests.rules.damage import without
from tests.rules.judge import codes, judge
from tests.zero.rows import FAMILIES
from tests.zero.states import changed, optimizer

TYPES = {"float32": "<f4", "bfloat16": "<u2", "int64": "<i8"}


def values(listing: Listing, ref: TensorRef) -> Any:
    """Return a tensor in float32, put together from its chunks; every element has to come from exactly one."""
    whole = np.zeros(ref.shape, TYPES[ref.dtype])
    taken = np.zeros(ref.shape, np.int64)
    for chunk in ref.chunks:
        with listing.open(chunk.extent.path) as source:
            stored = np.frombuffer(source.read(chunk.extent.offset, chunk.extent.length), TYPES[ref.dtype])
        if chunk.strides is None:
            block = stored.reshape(chunk.sizes)
        else:
            strides = [stride * stored.itemsize for stride in chunk.strides]
            block = np.lib.stride_tricks.as_strided(stored, chunk.sizes, strides)
        place = tuple(slice(at, at + size) for at, size in zip(chunk.offsets, chunk.sizes, strict=True))
        whole[place] = block
        taken[place] += 1
    assert (taken == 1).all(), ref.fqn
    return (whole.astype("<u4") << 16).view("<f4") if ref.dtype == "bfloat16" else whole


def newest(path: Path) -> View:
    return View(open_run(path).checkpoints[-1])


def same(ours: Mapping[str, TensorRef], view: View, theirs: Mapping[str, TensorRef], other: View) -> None:
    for name, ref in theirs.items():
        expected, found = values(other.listing, ref), values(view.listing, ours[name])
        assert found.shape == expected.shape, name
        assert found.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("name", ["stage1-fp32", "stage1-bf16", "stage2-fp32", "stage3-fp32", "stage3-bf16"])
def test_weights_are_those_of_zero_to_fp32(fixtures_dir: Path, name: str) -> None:
    view, made = newest(fixtures_dir / f"deepspeed/{name}"), newest(fixtures_dir / f"deepspeed/{name}-consolidated")
    assert made.weights
    same(view.weights, view, made.weights, made)
    frozen = {"frozen.weight", "frozen.bias"} if name.startswith("stage1") else set()  # which the converter leaves out
    assert set(view.weights) == {*made.weights, *frozen}


@pytest.mark.parametrize(("name", "source"), [("universal-stage1", "stage1-fp32"), ("universal-stage3", "stage3-fp32")])
def test_universal_checkpoints_are_those_they_were_made_from(fixtures_dir: Path, name: str, source: str) -> None:
    view, made = newest(fixtures_dir / f"deepspeed/{source}"), newest(fixtures_dir / f"deepspeed/{name}")
    same(view.weights, view, made.weights, made)
    assert set(view.weights) == set(made.weights)
    moments = {key: ref for key, ref in made.optimizer_tensors.items() if not key.endswith(".step")}
    assert set(moments) == set(view.optimizer_tensors)
    same(view.optimizer_tensors, view, moments, made)


def test_one_training_is_the_same_however_it_was_cut(fixtures_dir: Path) -> None:
    whole = newest(fixtures_dir / "deepspeed/stage0")
    for name in ("stage1-fp32", "stage1-4ranks", "stage3-fp32"):
        view = newest(fixtures_dir / f"deepspeed/{name}")
        assert set(view.weights) == set(whole.weights)
        for key, ref in whole.weights.items():
            expected = values(whole.listing, ref)
            np.testing.assert_allclose(values(view.listing, view.weights[key]), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["moe-stage2-bf16", "pipeline-bf16-stage1"])
def test_masters_are_the_weights_that_were_trained(fixtures_dir: Path, name: str) -> None:
    """Experts and layers have files in bfloat16: what the float32 of the partitions is when it is rounded."""
    view = newest(fixtures_dir / f"deepspeed/{name}")
    files = [part for part in view.checkpoint.parts if "expert_" in part.path or part.path.startswith("layer_")]
    checked = 0
    for part in files:
        content = view.content(part)
        assert content is not None
        for key, ref in content.tensors.items():
            prefix = f"{int(part.path[6:8])}." if part.path.startswith("layer_") and "expert" not in part.path else ""
            master = view.weights[prefix + key]
            assert (ref.dtype, master.dtype) == ("bfloat16", "float32")
            full = values(view.listing, master).view("<u4").astype(np.uint64)
            rounded = ((full + 0x7FFF + ((full >> 16) & 1)) >> 16).astype("<u2")
            kept = (values(view.listing, ref).view("<u4") >> 16).astype("<u2")
            assert rounded.tobytes() == kept.tobytes(), key
            checked += 1
    assert checked


def test_the_optimizer_knows_its_parameters_by_name(fixtures_dir: Path) -> None:
    view = newest(fixtures_dir / "deepspeed/stage3-fp32")
    assert view.optimizer is not None
    assert [group["params"] for group in view.optimizer["param_groups"]] == [
        ["first.weight", "second.weight"],
        ["first.bias", "second.bias"],
    ]
    assert set(view.optimizer["state"]["first.weight"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert view.numbers("step") == [4, 4]
    assert view.numbers("optimizer-step") == [4.0] * 4
    assert view.numbers("scheduler-step") == [4, 4]
    assert len(view.numbers("lr")) == 4
    assert [assembly.world_size for assembly in view.assemblies] == [2]


def test_experts_of_all_ranks_are_trained(fixtures_dir: Path) -> None:
    view = newest(fixtures_dir / "deepspeed/moe-stage2-bf16")
    assert view.optimizer is not None
    members = [name for group in view.optimizer["param_groups"] for name in group["params"]]
    assert sorted(members) == sorted(view.weights)


def test_pipeline_stages_keep_their_own_numbers(fixtures_dir: Path) -> None:
    view = newest(fixtures_dir / "deepspeed/pipeline-stage0")
    assert {name.split(".")[0] for name in view.weights} == {"0", "2", "3"}
    assert view.optimizer is not None
    assert sum(len(group["params"]) for group in view.optimizer["param_groups"]) == len(view.weights)
    assert "state.mp_rank_01.0.exp_avg" in view.optimizer_tensors


def test_without_a_partition_stages_1_and_2_still_have_the_trained_weights(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage1-bf16")
    without(optimizer(1, prefix="bf16_"))(run / "global_step3")
    view = newest(run)
    assert view.weights["first.weight"].dtype == "bfloat16"  # a piece of its master is gone
    assert all(ref.chunks for ref in view.weights.values())


def test_without_a_partition_stage_3_has_names_and_no_bytes(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage3-fp32")
    without(optimizer(1))(run / "global_step4")
    view = newest(run)
    assert view.weights["first.weight"].shape == (7, 5)
    assert not view.weights["first.weight"].chunks


@pytest.mark.parametrize("name", ["trainer-stage1", "trainer-stage3"])
def test_inside_of_a_trainer_checkpoint(fixtures_dir: Path, name: str) -> None:
    view = newest(fixtures_dir / f"deepspeed/{name}")
    (assembly,) = view.assemblies
    assert assembly.place == f"global_step{view.step}"
    assert view.checkpoint.layouts == ("hf-trainer", "deepspeed")
    for key, ref in assembly.weights.items():
        assert values(view.listing, ref).shape == ref.shape, key
    if name == "trainer-stage1":  # float32: what the Trainer saved beside them is the same
        same(assembly.weights, view, view.weights, view)


def test_a_tag_of_any_name_that_latest_names(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage3-fp32")
    (run / "global_step4").rename(run / "checkpoint")
    for text in ("checkpoint", "checkpoint\n", "checkpoint\r\n"):
        (run / "latest").write_bytes(text.encode())
        found = open_run(run)
        assert {checkpoint.path for checkpoint in found.checkpoints} == {"checkpoint", "global_step2"}
        (named,) = (checkpoint for checkpoint in found.checkpoints if checkpoint.path == "checkpoint")
        assert View(named).step == 4


def test_the_optimizer_of_bfloat16_keeps_its_padding_and_tells_no_stage(copy_of: Copy) -> None:
    torch = pytest.importorskip("torch")
    run = copy_of("deepspeed/stage1-bf16")
    before = newest(run)
    expected = {name: values(before.listing, ref).tobytes() for name, ref in before.weights.items()}

    def older(value: Any) -> None:
        state = value["optimizer_state_dict"]
        del state["zero_stage"], state["param_alignment_paddings"]
        for place, flat in enumerate(state["single_partition_of_fp32_groups"]):
            rest = state["group_paddings"][place]
            state["single_partition_of_fp32_groups"][place] = torch.cat([flat, torch.zeros(rest)])

    for rank in (0, 1):
        changed(optimizer(rank, prefix="bf16_"), older)(run / "global_step3")
    view = newest(run)
    assert {name: values(view.listing, ref).tobytes() for name, ref in view.weights.items()} == expected
    assert not codes(judge(run, families=FAMILIES))


def test_the_elastic_form_has_moments_without_padding(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage2-fp32")
    before = newest(run)
    expected = {name: values(before.listing, ref).tobytes() for name, ref in before.optimizer_tensors.items()}

    def elastic(value: Any) -> None:
        state = value["optimizer_state_dict"]
        inner, flats = state["base_optimizer_state"]["state"], state["single_partition_of_fp32_groups"]
        state["base_optimizer_state"] = [
            {key: held[: flats[place].numel()].clone() if held.dim() else held for key, held in inner[place].items()}
            for place in inner
        ]

    for rank in (0, 1):
        changed(optimizer(rank), elastic)(run / "global_step3")
    view = newest(run)
    assert {name: values(view.listing, ref).tobytes() for name, ref in view.optimizer_tensors.items()} == expected
    assert not codes(judge(run, families=FAMILIES))


def test_very_old_names(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage1-fp32")
    tag = run / "global_step4"
    for rank in (0, 1):
        (tag / optimizer(rank)).rename(tag / optimizer(rank).replace("_optim_states", "optim_states"))
    view = newest(run)
    assert len(view.optimizer_tensors) == 8
    assert all(ref.chunks for ref in view.optimizer_tensors.values())
