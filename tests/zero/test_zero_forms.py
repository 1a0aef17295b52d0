"""Forms of DeepSpeed's saves that a plain run does not have: slices, tied layers, sub-groups, adapters, parts alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.findings import Severity
from ckpt_tools.reports.info import Described
from tests.conftest import Copy
from tests.rules.damage import without
from tests.rules.judge import codes, finding, judge, verdicts
from tests.zero.rows import FAMILIES, READY
from tests.zero.states import base, changed, optimizer

TENSOR = "deepspeed/tensor-stage1/global_step3"
TIED_0, TIED_1 = "deepspeed/pipeline-tied-stage0/global_step3", "deepspeed/pipeline-tied-bf16-stage1/global_step3"
TRAINED = "deepspeed/stage2-elastic-trained/global_step3"
SUBGROUPS = "deepspeed/stage3-subgroups/global_step3"
LORA = "deepspeed/trainer-lora-stage2/checkpoint-2"


def described(path: Path) -> Described:
    found = ckpt_tools.info(str(path)).described
    assert found is not None
    return found


def view(path: Path) -> View:
    return View(open_run(path).checkpoints[-1])


@pytest.mark.parametrize("name", [TENSOR, TIED_0, TIED_1, SUBGROUPS, LORA])
def test_they_are_ready_and_silent(fixtures_dir: Path, name: str) -> None:
    report = ckpt_tools.verify(str(fixtures_dir / name), settle=0, deep=True)
    assert codes(report) <= {"CK603"}
    assert verdicts(report) == READY


# Slices ----------------------------------------------------------------------------------------------------


def test_tensor_parallel_slices_are_no_weights_and_are_told(fixtures_dir: Path) -> None:
    found = described(fixtures_dir / TENSOR)
    assert found.model.tensors == found.model.parameters == 0
    assert found.model.trained == 4
    assert (
        "slices",
        "of 4 tensors on 2 ranks: 78 numbers, those of all ranks counted each time",
    ) in found.training.others
    assert any("tensor-parallel slices" in note for note in found.notes)
    (assembly,) = view(fixtures_dir / TENSOR).assemblies
    assert assembly.outline["mp_rank_01/first.weight"] == "float32 [4, 5]"
    assert len(assembly.outline) == 8


def test_slices_are_compared_by_what_is_told_of_them(fixtures_dir: Path, copy_of: Copy) -> None:
    one = fixtures_dir / TENSOR
    other = copy_of("deepspeed/tensor-stage1") / "global_step3"
    changed("mp_rank_01_model_states.pt", lambda state: state["module"]["first.weight"].add_(1))(other)
    report = ckpt_tools.diff(str(one), str(other))
    assert any("the weights are not compared: each file holds the tensor-parallel" in each for each in report.trouble)
    assert report.exit_code == 3


def test_slices_where_nothing_is_partitioned(copy_of: Copy) -> None:
    place = copy_of("deepspeed/tensor-stage1") / "global_step3"
    for name in ("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"):
        changed(name, lambda state: state.update(param_shapes=None, shared_params=None))(place)
    without("*optim*")(place)
    found = view(place)
    assert not found.weights
    assert len(found.assemblies[0].outline) == 8


# Tied layers -----------------------------------------------------------------------------------------------


def test_a_weight_that_stages_share_is_counted_once_under_its_layer(fixtures_dir: Path) -> None:
    for name in (TIED_0, TIED_1):
        assert sorted(view(fixtures_dir / name).weights) == ["0.weight", "2.bias", "2.weight"]
        assert described(fixtures_dir / name).model.parameters == 91
    assert described(fixtures_dir / TIED_1).model.trained == 3
    assert {ref.dtype for ref in view(fixtures_dir / TIED_1).weights.values()} == {"float32"}
    moments = sorted(view(fixtures_dir / TIED_1).optimizer_tensors)
    assert moments[-2:] == ["state.tied_modules.embed.weight.exp_avg", "state.tied_modules.embed.weight.exp_avg_sq"]
    assert len(moments) == 6


def test_a_shared_weight_is_the_float32_one_of_its_layer(fixtures_dir: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    ckpt_tools.merge(str(fixtures_dir / TIED_1), str(tmp_path / "out"))
    merged = load_file(tmp_path / "out/model.safetensors")
    for layer in (0, 2):
        stored = torch.load(fixtures_dir / TIED_1 / f"layer_{layer:02d}-model_states.pt", weights_only=True)
        for name, tensor in stored.items():
            assert merged[f"{layer}.{name}"].dtype == torch.float32
            assert torch.equal(merged[f"{layer}.{name}"].bfloat16(), tensor)


def test_a_layer_lost_beside_a_shared_weight_is_missing(copy_of: Copy) -> None:
    for name in ("layer_02*", "layer_00*"):
        place = copy_of("deepspeed/pipeline-tied-stage0") / "global_step3"
        without(name)(place)
        assert finding(judge(place), "CK155").severity is Severity.ERROR
        shutil.rmtree(place.parent)


# Sub-groups, elastic saves, trained parameters alone ---------------------------------------------------------


def test_sub_groups_are_groups_with_all_of_their_parameters(fixtures_dir: Path) -> None:
    assert described(fixtures_dir / SUBGROUPS).model.trained == 4
    found = view(fixtures_dir / SUBGROUPS).optimizer
    assert found is not None
    groups = [(group["weight_decay"], group["params"]) for group in found["param_groups"]]
    assert groups == [(0.01, ["first.weight", "second.weight"]), (0.0, ["first.bias", "second.bias"])]


def test_the_elastic_form_tells_its_optimizer_and_why_there_is_no_rate(fixtures_dir: Path) -> None:
    found = described(fixtures_dir / TRAINED)
    assert (found.training.optimizer or "").startswith("of Adam's family")
    assert found.model.trained == 4
    assert (
        "elastic",
        "its rates are not stored; a resume takes those that it is started with",
    ) in found.training.others


def test_saves_without_frozen_parameters_are_noted(fixtures_dir: Path, tmp_path: Path) -> None:
    report = judge(fixtures_dir / TRAINED, families=FAMILIES)
    told = finding(report, "CK379")
    assert told.severity is Severity.NOTE
    assert told.detail == ("5 tensors are here: what is trained, and buffers",)
    assert verdicts(report) == ("ready", "degraded")
    made = ckpt_tools.merge(str(fixtures_dir / TRAINED), str(tmp_path / "out"))
    assert any("the frozen parameters are not in the checkpoint" in note for note in made.notes)


@pytest.mark.parametrize(
    "name", ["stage2-fp32", "stage3-fp32", "stage3-bf16", "stage1-fp32", "moe-stage2-bf16", "stage0"]
)
def test_saves_with_them_are_not(fixtures_dir: Path, name: str) -> None:
    assert "CK379" not in {
        each.code for each in judge(fixtures_dir / "deepspeed" / name, families=FAMILIES).all_findings()
    }


# Adapters --------------------------------------------------------------------------------------------------


def test_an_adapter_is_counted_once(fixtures_dir: Path) -> None:
    found = described(fixtures_dir / LORA)
    assert (found.model.tensors, found.model.parameters) == (4, 56)
    assert [each.parameters for each in found.model.adapters] == [56]
    assert not view(fixtures_dir / LORA).weights
    report = ckpt_tools.diff(str(fixtures_dir / LORA), str(fixtures_dir / LORA))
    assert report.equal
    assert report.tensors is not None
    assert report.tensors.same == 4


def test_base_weights_beside_an_adapter_are_weights(copy_of: Copy) -> None:
    torch = pytest.importorskip("torch")
    place = copy_of("deepspeed/trainer-lora-stage2") / "checkpoint-2"
    name = "base_model.model.model.norm.weight"
    changed("mp_rank_00_model_states.pt", lambda state: state["module"].update({name: torch.ones(8)}))(
        place / "global_step2"
    )
    assert set(view(place).weights) == {name}
    assert described(place).model.parameters == 64


# After a universal conversion ------------------------------------------------------------------------------


def test_a_conversion_beside_its_source_is_not_the_same_step_twice(copy_of: Copy, fixtures_dir: Path) -> None:
    run = copy_of("deepspeed/stage1-fp32")
    made = "global_step4_universal"
    shutil.copytree(fixtures_dir / "deepspeed/universal-stage1" / made, run / made)
    assert "CK605" not in codes(judge(run))
    shutil.copytree(run / "global_step4", run / "global_step04")
    assert "CK605" in codes(judge(run))


@pytest.mark.parametrize("decay", [None, 0.01])
def test_a_counter_that_sub_groups_share_is_a_note(copy_of: Copy, decay: float | None) -> None:
    place = copy_of("deepspeed/stage3-fp32") / "global_step4"

    def edit(state: dict[str, object]) -> None:
        for entry in state["state"].values():  # type: ignore[attr-defined]
            entry["step"].fill_(8)
        for group in state["param_groups"] if decay is not None else ():  # type: ignore[attr-defined]
            group["weight_decay"] = decay

    for rank in (0, 1):
        changed(optimizer(rank), base(edit))(place)
    assert finding(judge(place, families=FAMILIES), "CK572").severity is (
        Severity.WARNING if decay is None else Severity.NOTE
    )


@pytest.mark.parametrize("left", ["zero/first.bias/step.pt", "zero/first.bias/exp_avg.pt", "tmp/first.bias/0/fp32.00"])
def test_a_conversion_that_was_killed_at_its_beginning(copy_of: Copy, fixtures_dir: Path, left: str) -> None:
    run = copy_of("deepspeed/stage1-fp32")
    piece = fixtures_dir / "deepspeed/universal-stage1/global_step4_universal/zero/first.bias/fp32.pt"
    target = run / "global_step4_universal" / left
    target.parent.mkdir(parents=True)
    shutil.copyfile(piece, target)
    for place, name in ((run, "global_step4_universal"), (run / "global_step4_universal", ".")):
        report = judge(place, families=FAMILIES)
        assert "CK151" in codes(report)
        assert verdicts(report, name) == ("broken", "broken")
    assert ckpt_tools.latest(str(run), settle=0).path == str(run / "global_step4")


def test_slices_that_were_converted_are_whole(copy_of: Copy) -> None:
    place = copy_of("deepspeed/universal-stage1") / "global_step4_universal"
    before = view(place).weights
    shutil.copyfile(place / "mp_rank_00_model_states.pt", place / "mp_rank_01_model_states.pt")
    after = view(place).weights
    assert "first.weight" in before
    assert after == before
