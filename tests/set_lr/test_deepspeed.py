"""Rates in the files of DeepSpeed: those of all ranks change together, or nothing does."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tools.cli.app import dispatch
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.findings import Severity
from ckpt_tools.ops import change
from ckpt_tools.ops.seal import seal
from ckpt_tools.ops.set_lr import set_lr
from ckpt_tools.ops.set_step import set_step
from ckpt_tools.ops.undo import undo
from ckpt_tools.ops.verify import verify
from ckpt_tools.reports.edit import Change
from tests.set_lr.distributed import digests

Copy = Callable[..., Path]
TAGS = {
    "stage0/global_step4": 1,
    "stage1-fp32/global_step4": 3,
    "stage1-4ranks/global_step4": 5,
    "stage1-bf16/global_step3": 2,
    "stage3-fp32/global_step4": 4,
    "moe-stage0/global_step3": 3,
    "moe-stage2-bf16/global_step3": 2,
    "universal-stage1/global_step4_universal": 2,
    "universal-stage3/global_step4_universal": 3,
    "trainer-stage1/checkpoint-2": 3,
    "trainer-stage3/checkpoint-2": 3,
}
"""Tags without a scheduler of DeepSpeed's own, and how many files of each hold a rate."""
BUILT_IN = ("stage2-fp32", "stage3-bf16", "pipeline-stage0", "pipeline-bf16-stage1")
RATES = ("lr", "initial-lr", "base-lr", "last-lr")


def rates(path: Path) -> dict[tuple[str, str], float]:
    (checkpoint,) = open_run(str(path)).checkpoints
    view = View(checkpoint)
    try:
        return {(slot.part.path, slot.key): slot.value for slot in view.slots if slot.quantity in RATES}
    finally:
        view.close()


@pytest.mark.parametrize("name", TAGS)
def test_the_rates_of_all_files_change_and_come_back(copy_of: Copy, name: str) -> None:
    path = copy_of(f"deepspeed/{name}")
    before, old = digests(path), rates(path)
    report = set_lr(str(path), scale=0.5)
    assert rates(path) == {place: pytest.approx(rate / 2, rel=1e-12) for place, rate in old.items()}
    assert len(report.files) == TAGS[name]
    after = digests(path)
    assert {file for file in after if after[file] != before[file]} == {row.path for row in report.files}
    assert all(row.size_before == row.size_after for row in report.files)
    for row in report.files:
        with zipfile.ZipFile(path / row.path) as archive:
            assert archive.testzip() is None
    assert any("ignores the lr of the ds_config" in note for note in report.notes)
    assert not any(each.severity is Severity.ERROR for each in verify(str(path)).checkpoints[0].findings)
    undo(str(path))
    assert digests(path) == before


def pipeline(path: Path, rates: tuple[float, float]) -> None:
    """Give the two stages of a pipeline these rates, and schedules of torch."""
    torch = pytest.importorskip("torch")
    for number, rate in enumerate(rates):
        file = path / f"mp_rank_0{number}_model_states.pt"
        value = torch.load(file, weights_only=True)
        value["optimizer"]["param_groups"][0] |= {"lr": rate, "initial_lr": rate}
        schedule = {"last_epoch": 3, "_step_count": 4, "lr_lambdas": [None]}
        value["lr_scheduler"] = {**schedule, "base_lrs": [rate], "_last_lr": [rate]}
        torch.save(value, file)


def test_the_stages_of_a_pipeline_are_one_optimizer(copy_of: Copy) -> None:
    path = copy_of("deepspeed/pipeline-stage0") / "global_step3"
    pipeline(path, (0.02, 0.02))
    assert not verify(str(path)).checkpoints[0].findings
    report = set_lr(str(path), 0.005)
    assert report.rates[0].after == (0.005,)
    assert set(rates(path).values()) == {0.005}
    assert not verify(str(path)).checkpoints[0].findings


def test_stages_with_rates_of_their_own_are_several(copy_of: Copy) -> None:
    path = copy_of("deepspeed/pipeline-stage0") / "global_step3"
    pipeline(path, (0.02, 0.01))
    with pytest.raises(EditRefusedError, match="several optimizers, and their rates differ"):
        set_lr(str(path), 0.005)
    report = set_lr(str(path), scale=0.5)
    for number, rate in ((0, 0.01), (1, 0.005)):
        own = {row.new for row in report.changes if row.path == f"mp_rank_0{number}_model_states.pt"}
        assert own == {rate}
    set_step(str(path), 5)
    assert not {each.code for each in verify(str(path)).checkpoints[0].findings} & {"CK507", "CK570", "CK571", "CK575"}


def test_one_group(copy_of: Copy) -> None:
    path = copy_of("deepspeed/stage3-fp32/global_step4")
    old = rates(path)
    report = set_lr(str(path), 0.001, groups=[1])
    assert {change.key.rpartition(".")[0][-1:] for change in report.changes if "param_groups" in change.key} <= {"]"}
    changed = {place for place, rate in rates(path).items() if rate != old[place]}
    assert {key for _, key in changed} == {key for _, key in old if "[1]" in key or "groups.1" in key}
    assert len({file for file, _ in changed}) == 4


@pytest.mark.parametrize("name", BUILT_IN)
def test_deepspeeds_own_scheduler_keeps_no_rate(copy_of: Copy, name: str) -> None:
    path = next(copy_of(f"deepspeed/{name}").glob("global_step*"))
    before = digests(path)
    for force in (False, True):
        with pytest.raises(EditRefusedError, match="ds_config given at launch") as refused:
            set_lr(str(path), 0.001, force=force)
        assert "WarmupLR was saved with" in str(refused.value.hint)
        assert "scheduler.params.warmup_max_lr (0.02)" in str(refused.value.hint)
    assert digests(path) == before


def damaged(path: Path, how: str) -> None:
    own = path / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    older = path.with_name("global_step2") / own.name
    if how == "missing":
        own.unlink()
    elif how == "cut":
        own.write_bytes(own.read_bytes()[:-500])
    elif how == "too many":
        shutil.copy(own, path / "zero_pp_rank_2_mp_rank_00_optim_states.pt")
    elif how == "of another step":
        shutil.copy(older, own)
    elif how == "without model states":
        (path / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink()
    else:
        first = path / f"zero_pp_rank_0_mp_rank_00_{'optim' if how == 'another rate' else 'model'}_states.pt"
        kept = first.read_bytes()
        set_lr(str(path), scale=2)
        shutil.rmtree(path / ".ckpt-tools")
        first.write_bytes(kept)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "an optimizer file of rank 1 .*missing; the files of all ranks are changed, or none"),
        ("cut", "zero_pp_rank_1_mp_rank_00_optim_states.pt: .*the files of all ranks are changed, or none"),
        ("too many", "zero_pp_rank_2_mp_rank_00_optim_states.pt: belongs to no rank"),
        ("of another step", "of the ranks differ: .*zero_pp_rank_0.*zero_pp_rank_1"),
        ("without model states", "model states of mp_rank 00, rank 1 is missing"),
        ("another rate", "the rates of the ranks differ: .*lr is 0.013122 in .*rank_0.* and 0.026244 in .*rank_1"),
        ("another schedule", "the schedulers of the ranks are not the same"),
    ],
)
@pytest.mark.parametrize("command", ["set-lr", "set-step"])
def test_ranks_that_do_not_fit_are_refused(copy_of: Copy, how: str, words: str, command: str) -> None:
    path = copy_of("deepspeed/stage3-fp32") / "global_step4"
    damaged(path, how)
    before = digests(path)
    with pytest.raises(EditRefusedError, match=words):
        set_lr(str(path), 0.001) if command == "set-lr" else set_step(str(path), 9)
    assert digests(path) == before


@pytest.mark.parametrize(
    "name", ["stage1-fp32/global_step4", "stage3-fp32/global_step4", "trainer-stage1/checkpoint-2"]
)
def test_a_sealed_one_stays_sealed(copy_of: Copy, name: str) -> None:
    path = copy_of(f"deepspeed/{name}")
    seal(str(path))
    manifest = path / ".ckpt-tools" / "manifest.json"
    before, sealed = digests(path), manifest.read_bytes()
    set_lr(str(path), scale=3)
    assert manifest.read_bytes() != sealed
    assert not verify(str(path), deep=True).checkpoints[0].findings
    undo(str(path))
    assert (digests(path), manifest.read_bytes()) == (before, sealed)


def test_a_dry_run_tells_the_same_and_changes_nothing(copy_of: Copy) -> None:
    path = copy_of("deepspeed/stage1-fp32/global_step4")
    before = digests(path)
    told = set_lr(str(path), 0.001, dry_run=True)
    assert digests(path) == before
    done = set_lr(str(path), 0.001)
    assert (told.changes, told.rates, told.bytes_written) == (done.changes, done.rates, done.bytes_written)


def test_many_ranks_are_one_line() -> None:
    """A thousand ranks are not a thousand lines."""
    rows = [Change(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", "lr", 1, 2) for rank in range(64)]
    other = Change("zero_pp_rank_7_mp_rank_00_model_states.pt", "global_steps", 4, 7)
    told = list(change.of_ranks([*rows, other]))
    assert told == [Change("zero_pp_rank_*_mp_rank_*_optim_states.pt", "lr", 1, 2), other]


def test_the_command_names_the_setting(copy_of: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy_of("deepspeed/stage2-fp32") / "global_step3"
    assert dispatch(["set-lr", str(path), "1e-3"]) == 5
    error = capsys.readouterr().err
    assert "the ds_config given at launch" in error
    assert "scheduler.params.warmup_max_lr (0.02)" in error
