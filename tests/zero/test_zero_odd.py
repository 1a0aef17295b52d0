"""States that nobody would write: no rule fails on them, none takes long, and none says nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import ckpt_tools
from tests.conftest import FIXTURES, Copy
from tests.rules.judge import codes, judge
from tests.zero.rows import FAMILIES, MOE2, PIPE1, S0, S1, S3, U1
from tests.zero.states import MODEL, changed, model, optimizer, values

ODD = (None, "x", -1, 10**30, 1.5, [], {}, [None], {"a": None}, [[[]]], True)
MODEL_KEYS = (
    "module", "optimizer", "param_shapes", "frozen_param_shapes", "frozen_param_fragments", "shared_params",
    "lr_scheduler", "skipped_steps", "global_steps", "dp_world_size", "mp_world_size",
    "checkpoint_parallel_dimensions", "ds_config", "num_experts", "buffer_names",
)  # fmt: skip
OPTIMIZER_KEYS = (
    "base_optimizer_state", "optimizer_state_dict", "single_partition_of_fp32_groups", "fp32_flat_groups", "zero_stage",
    "group_paddings", "param_alignment_paddings", "partition_count", "param_slice_mappings",
)  # fmt: skip


def survives(place: Path) -> None:
    report = ckpt_tools.verify(str(place), settle=0, world_size=3)
    assert "CK001" not in codes(report), [each.message for each in report.all_findings() if each.code == "CK001"]
    assert ckpt_tools.info(str(place)).described is not None


@pytest.mark.parametrize("fixture", [S0, S1, S3, PIPE1, MOE2])
@pytest.mark.parametrize("key", MODEL_KEYS)
def test_odd_model_states(fixture: str, key: str, tmp_path: Path) -> None:
    for number, odd in enumerate(ODD):
        place = tmp_path / str(number) / "global_step4"
        shutil.copytree(FIXTURES / "deepspeed" / fixture, place)
        name = next(
            path.name for path in sorted(place.glob("*mp_rank_00_model_states.pt")) if "expert" not in path.name
        )
        changed(name, values(**{key: odd}))(place)
        survives(place)


@pytest.mark.parametrize("fixture", [S1, S3, MOE2])
@pytest.mark.parametrize("key", OPTIMIZER_KEYS)
def test_odd_optimizer_states(fixture: str, key: str, tmp_path: Path) -> None:
    def edit(odd: Any) -> Any:
        return lambda value: value["optimizer_state_dict"].update({key: odd})

    for number, odd in enumerate(ODD):
        place = tmp_path / str(number) / "global_step4"
        shutil.copytree(FIXTURES / "deepspeed" / fixture, place)
        changed(next(path.name for path in sorted(place.glob("*optim_states.pt"))), edit(odd))(place)
        survives(place)


def test_numbers_that_are_made_up(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage3-fp32")
    place = run / "global_step4"
    changed(model(0), values(dp_world_size=10**9, mp_world_size=10**9))(place)
    (place / optimizer(10**12)).write_bytes((place / optimizer(0)).read_bytes())
    (place / optimizer(0, 10**12)).write_bytes((place / optimizer(0)).read_bytes())
    assert codes(judge(place, families=FAMILIES))
    survives(place)
    many = copy_of("deepspeed/moe-stage2-bf16") / "global_step3"
    changed(MODEL, values(num_experts=[10**12]))(many)
    assert "CK156" in codes(judge(many, families=FAMILIES))


def test_universal_pieces_that_hold_something_else(copy_of: Copy) -> None:
    run, _, tag = U1.partition("/")
    place = copy_of(f"deepspeed/{run}") / tag
    for name in ("zero/first.bias/fp32.pt", "zero/first.weight/exp_avg.pt", "zero/optimizer_state.pt"):
        changed(name, lambda value: value.clear())(place)
    survives(place)
