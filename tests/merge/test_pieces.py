"""What is not merged: a file of several, and weights that lie where nothing can be put together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.core.errors import EditRefusedError, UsageError
from tests.conftest import Copy
from tests.merge.support import FIXTURES


def refused(name: str, out: Path) -> tuple[str, str]:
    (path,) = FIXTURES.glob(name)
    with pytest.raises(EditRefusedError) as caught:
        ckpt_tools.merge(str(path), str(out))
    assert not os.path.lexists(out)
    return str(caught.value), str(caught.value.hint)


PIECES = [
    "dcp/plain/.metadata",
    "dcp/plain/__0_0.distcp",
    "deepspeed/stage3-fp32/global_step4/zero_pp_rank_0_mp_rank_00_model_states.pt",
    "deepspeed/stage1-fp32/global_step4/zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "deepspeed/moe-stage0/global_step3/mp_rank_00_model_states.pt",
    "deepspeed/moe-stage0/global_step3/layer_0_expert_0_mp_rank_00_model_states.pt",
    "deepspeed/pipeline-stage0/global_step3/layer_00-model_states.pt",
    "fsdp/fsdp1-local/pytorch_model_fsdp_rank0.bin",
    "fsdp/fsdp2-rank-bins/pytorch_model_fsdp_0_rank0.bin",
    "lightning/sharded-fsdp/*.ckpt/meta.pt",
    "trainer5-sharded/checkpoint-4/model.safetensors.index.json",
    "trainer5-sharded/checkpoint-4/model-00001-of-00004.safetensors",
    "trainer4-bin-sharded/checkpoint-2/pytorch_model-00001-of-00004.bin",
]


@pytest.mark.parametrize("name", PIECES)
def test_one_file_of_several_is_not_a_model(name: str, tmp_path: Path) -> None:
    told, hint = refused(name, tmp_path / "out")
    assert "the weights are not all in it" in told
    assert hint == f"name {next(FIXTURES.glob(name)).parent}"


def test_one_rank_of_megatron_is_not_a_model(tmp_path: Path) -> None:
    told, hint = refused("megatron/legacy/iter_*/mp_rank_00/model_optim_rng.pt", tmp_path / "out")
    assert "the weights are not all in it" in told
    assert hint == f"name {FIXTURES / 'megatron/legacy/iter_0000003'}"


@pytest.mark.parametrize("end", ["index", "data-00000-of-00001"])
def test_one_file_of_tensorflow_names_what_they_share(end: str, tmp_path: Path) -> None:
    told, hint = refused(f"tensorflow/manager/ckpt-3.{end}", tmp_path / "out")
    assert "the weights are not all in it" in told
    assert hint == f"name {FIXTURES / 'tensorflow/manager/ckpt-3'}"
    report = ckpt_tools.merge(str(FIXTURES / "tensorflow/manager/ckpt-3"), str(tmp_path / "out"))
    assert any("TensorFlow's objects" in note for note in report.notes)


@pytest.mark.parametrize(
    "name",
    [
        "deepspeed/stage1-fp32/global_step4/mp_rank_00_model_states.pt",
        "trainer5-full/checkpoint-4/model.safetensors",
        "accelerate/bin/pytorch_model.bin",
        "hf-model/tiny-llama/model.safetensors",
    ],
)
def test_a_file_with_all_weights_is_merged(name: str, tmp_path: Path) -> None:
    assert ckpt_tools.merge(str(FIXTURES / name), str(tmp_path / "out")).tensors


@pytest.mark.parametrize(
    ("name", "why", "hint"),
    [
        ("deepspeed/tensor-stage1", "each file holds the tensor-parallel slices", "ds_to_universal"),
        ("deepspeed/trainer-lora-stage2/checkpoint-2", "an adapter's", "merge_and_unload()"),
        ("ultralytics/weights/last.pt", "inside of objects of ultralytics", "state_dict()"),
        ("trainer5-lora/checkpoint-4", "an adapter's", "merge_and_unload()"),
        ("fsdp/fsdp2-sharded/optimizer_0", "the state of an optimizer, and no model", "None"),
        ("dcp/zstd", "went through stream.zstd/1", "without that extension"),
        ("tensorflow/odd/odd.index", "not all in it", "tensorflow/odd/odd"),
    ],
)
def test_the_reason_is_said(name: str, why: str, hint: str, tmp_path: Path) -> None:
    told, way_out = refused(name, tmp_path / "out")
    assert why in told
    assert hint in way_out


@pytest.mark.parametrize("inner", ["sub", "global_step2/sub", "../checkpoint-2/sub"])
def test_an_output_inside_of_the_source(inner: str, copy_of: Copy) -> None:
    place = copy_of("deepspeed/trainer-stage3-gathered") / "checkpoint-2"
    out = os.path.join(place, inner)
    with pytest.raises(EditRefusedError, match=r"lies inside of .*checkpoint-2, which it would be a part of"):
        ckpt_tools.merge(str(place), out)
    assert not os.path.lexists(out)
    assert ckpt_tools.merge(str(place), str(place) + "-merged").tensors


def test_a_prefix_of_tensorflow_in_a_run_is_merged(copy_of: Copy, tmp_path: Path) -> None:
    run = copy_of("tensorflow/manager")
    one = ckpt_tools.merge(str(run / "ckpt-3"), str(tmp_path / "one"))
    (run / "checkpoint").unlink()
    other = ckpt_tools.merge(str(run / "ckpt-3"), str(tmp_path / "other"))
    assert one.digests == other.digests == ckpt_tools.merge(f"{run}@3", str(tmp_path / "step")).digests


def test_types_that_safetensors_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(EditRefusedError, match=r"can be written: .*no type for complex128"):
        ckpt_tools.merge(str(FIXTURES / "plain/odd/tensors.pt"), str(tmp_path / "out"))


def test_no_name_for_the_output() -> None:
    with pytest.raises(UsageError, match="has no name"):
        ckpt_tools.merge(str(FIXTURES / "dcp/plain"), "")


def test_what_else_is_in_the_file_is_told_and_a_state_dict_alone_is_not(tmp_path: Path) -> None:
    one = ckpt_tools.merge(str(FIXTURES / "lightning/run@8"), str(tmp_path / "one"))
    assert ("what else is in the file", "epoch=1-step=8.ckpt") in {(each.what, each.detail) for each in one.left_out}
    other = ckpt_tools.merge(str(FIXTURES / "plain/odd/weights.pth"), str(tmp_path / "other"))
    assert other.left_out == ()
