"""What ``--deep`` says of DeepSpeed's files, and runs whose directory or tags are not named by DeepSpeed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.layouts.match import open_run
from ckpt_tools.model.findings import Severity
from tests.conftest import Copy
from tests.rules.judge import codes, finding, judge, verdicts
from tests.zero.states import changed

NAN = math.nan
PARTITION = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
RANK_1 = "zero_pp_rank_1_mp_rank_00_model_states.pt"


def first(held: Any, *keys: Any) -> None:
    """Make the first number of a tensor none."""
    for key in keys:
        held = held[key]
    held.data.view(-1)[0] = NAN


VALUES: list[tuple[str, str, tuple[Any, ...]]] = [
    ("stage1-fp32", PARTITION, ("optimizer_state_dict", "single_partition_of_fp32_groups", 0)),
    ("stage1-fp32", PARTITION, ("optimizer_state_dict", "base_optimizer_state", "state", 0, "exp_avg")),
    ("stage1-fp32", "mp_rank_00_model_states.pt", ("module", "first.weight")),
    ("stage3-fp32", PARTITION, ("optimizer_state_dict", "fp32_flat_groups", 0)),
    ("stage3-fp32", PARTITION, ("optimizer_state_dict", "optimizer_state_dict", "state", 0, "exp_avg_sq")),
    ("stage3-fp32", RANK_1, ("frozen_param_fragments", "frozen.weight")),
    ("stage0", "mp_rank_00_model_states.pt", ("module", "first.weight")),
    ("stage0", "mp_rank_00_model_states.pt", ("optimizer", "state", 0, "exp_avg")),
]


@pytest.mark.parametrize(("fixture", "file", "keys"), VALUES)
def test_weights_and_moments_that_are_no_numbers_are_errors(
    fixture: str, file: str, keys: tuple[Any, ...], copy_of: Copy
) -> None:
    run = copy_of(f"deepspeed/{fixture}")
    changed(file, lambda held: first(held, *keys))(run / "global_step4")
    report = judge(run, families=("CK4",), deep=True)
    assert codes(report) == {"CK402"}
    assert finding(report, "CK402").severity is Severity.ERROR
    assert verdicts(report, "global_step4")[0] == "degraded"


def test_what_the_user_saved_beside_may_be_anything(copy_of: Copy) -> None:
    torch = pytest.importorskip("torch")
    run = copy_of("deepspeed/stage1-fp32")
    losses = {"losses": torch.tensor([1.0, NAN])}
    changed("mp_rank_00_model_states.pt", lambda held: held.update(losses))(run / "global_step4")
    report = judge(run, families=("CK4",), deep=True)
    assert codes(report) == set()
    assert codes(report, Severity.NOTE) == {"CK402"}


def test_the_end_of_the_last_frozen_slice_is_memory_that_nobody_wrote(copy_of: Copy) -> None:
    """25 numbers on two ranks are 13 and 12: rank 1 stores a thirteenth."""
    run = copy_of("deepspeed/stage3-fp32")

    def past_the_end(held: Any) -> None:
        fragment = held["frozen_param_fragments"]["frozen.weight"].data.view(-1)
        assert fragment.numel() == 13
        fragment[12] = NAN

    changed(RANK_1, past_the_end)(run / "global_step4")
    assert codes(judge(run, families=("CK4",), deep=True), Severity.NOTE) == set()


@pytest.mark.parametrize("name", ["checkpoint-{}", "checkpoint_{}"])
def test_tags_that_are_named_as_others_name_their_checkpoints(name: str, copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage1-fp32")
    for step in (2, 4):
        (run / f"global_step{step}").rename(run / name.format(step))
    (run / "latest").write_text(name.format(4))
    assert {each.layouts for each in open_run(run).checkpoints} == {("deepspeed",)}
    assert [each.layouts for each in open_run(run / name.format(4)).checkpoints] == [("deepspeed",)]
    assert codes(judge(run, families=("CK",)), Severity.NOTE) == set()


def test_weights_beside_several_tags_are_an_export(copy_of: Copy) -> None:
    """``save_16bit_model`` into the directory of the run."""
    torch = pytest.importorskip("torch")
    run = copy_of("deepspeed/stage1-fp32")
    torch.save({"first.weight": torch.ones(7, 5)}, Path(run) / "pytorch_model.bin")
    assert [each.path for each in open_run(run).checkpoints] == ["global_step2", "global_step4", "."]
