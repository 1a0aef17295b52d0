"""Tensors in pieces against tensors in one: FSDP, torch.distributed.checkpoint and ZeRO, by name."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path

import pytest

import ckpt_tools
from tests.conftest import FIXTURES, Copy

SAME = ["one-rank", "two-ranks", "columns", "safetensors", "torch/model.pt"]


@pytest.mark.parametrize(("left", "right"), list(combinations(SAME, 2)))
def test_one_model_is_equal_in_every_form(left: str, right: str) -> None:
    report = ckpt_tools.diff(str(FIXTURES / "dcp/same-model" / left), str(FIXTURES / "dcp/same-model" / right))
    assert report.equal
    assert report.exit_code == 0
    assert report.tensors is not None
    assert (report.tensors.same, report.tensors.unread) == (4, ())


def test_only_names_and_shapes_without_tensors() -> None:
    places = [str(FIXTURES / "dcp/same-model" / form) for form in ("columns", "safetensors")]
    report = ckpt_tools.diff(*places, tensors=False)
    assert report.exit_code == 0
    assert report.tensors is not None
    assert {why for _, why in report.tensors.unread} == {"values not compared"}


@pytest.mark.parametrize("stage", ["stage1-fp32@4", "stage2-fp32@3", "stage3-fp32@4"])
def test_zero_has_the_values_of_its_consolidated_weights(stage: str) -> None:
    whole = FIXTURES / "deepspeed" / f"{stage.split('@')[0]}-consolidated"
    report = ckpt_tools.diff(str(FIXTURES / "deepspeed" / stage), str(whole))
    assert report.tensors is not None
    assert report.tensors.rows == ()
    assert report.tensors.only_right == ()
    assert all(name.startswith("frozen.") for name in report.tensors.only_left)


def test_masters_against_the_weights_that_were_rounded_from_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    source = FIXTURES / "deepspeed/stage1-bf16/global_step3"
    ckpt_tools.merge(str(source), str(tmp_path / "whole"))
    rounded = {name: ref.to(torch.bfloat16) for name, ref in load_file(tmp_path / "whole/model.safetensors").items()}
    (tmp_path / "rounded").mkdir()
    save_file(rounded, tmp_path / "rounded/model.safetensors")
    report = ckpt_tools.diff(str(source), str(tmp_path / "rounded"))
    assert any("no difference but the rounding" in reason for reason in report.reasons)


def test_world_sizes_do_not_matter() -> None:
    report = ckpt_tools.diff(str(FIXTURES / "deepspeed/stage1-fp32@4"), str(FIXTURES / "deepspeed/stage1-4ranks@4"))
    for found in (report.tensors, report.moments):
        assert found is not None
        assert (found.only_left, found.only_right, found.unread) == ((), (), ())
        assert found.total > 0


def test_moments_are_named_by_their_parameters() -> None:
    report = ckpt_tools.diff(str(FIXTURES / "dcp/run@2"), str(FIXTURES / "dcp/run@4"), by="role")
    assert report.moments is not None
    assert {row.weight for row in report.moments.rows} == {"first.weight", "second.weight"}
    assert "weight exp_avg" in {group.name for group in report.moments.groups}


def test_moments_by_number_meet_those_by_name(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    held = torch.load(FIXTURES / "trainer5-full/checkpoint-6/optimizer.pt", weights_only=True)
    left = tmp_path / "left"
    shutil.copytree(FIXTURES / "trainer5-full/checkpoint-6", left)
    right = tmp_path / "right"
    shutil.copytree(left, right)
    from ckpt_tools.layouts.match import open_run
    from ckpt_tools.layouts.view import View
    from ckpt_tools.ops.diff_names import parameter_names

    view = View(open_run(str(left)).checkpoints[0])
    assert view.optimizer is not None
    names = parameter_names(view.optimizer, view.weights)
    assert len(names) == len(held["state"])
    named = {names[str(number)]: entry for number, entry in held["state"].items()}
    for group in held["param_groups"]:
        group["params"] = [names[str(number)] for number in group["params"]]
    torch.save({"state": named, "param_groups": held["param_groups"]}, right / "optimizer.pt")
    report = ckpt_tools.diff(str(left), str(right))
    assert report.moments is not None
    assert (report.moments.only_left, report.moments.only_right, report.moments.rows) == ((), (), ())
    assert report.exit_code == 0


def test_a_piece_that_is_lost_is_told_and_not_taken_for_zeros(copy_of: Copy) -> None:
    place = copy_of("dcp/same-model/two-ranks")
    (place / "__1_0.distcp").unlink()
    report = ckpt_tools.diff(str(place), str(FIXTURES / "dcp/same-model/safetensors"))
    assert report.exit_code == 3
    assert report.tensors is not None
    assert any(name == "first.weight" for name, _ in report.tensors.unread)
    assert "scale" not in dict(report.tensors.unread)
    assert any("__1_0.distcp" in line for line in report.trouble)


def test_manifests_of_pieces_are_not_taken_for_those_of_the_whole(copy_of: Copy) -> None:
    left, right = copy_of("dcp/same-model/two-ranks", "left"), copy_of("dcp/same-model/columns", "right")
    for place in (left, right):
        assert ckpt_tools.seal(str(place), settle=0).exit_code == 0
    report = ckpt_tools.diff(str(left), str(right))
    assert report.exit_code == 0
    assert report.tensors is not None
    assert report.tensors.same == 4
