"""What may be named to the commands that edit: a checkpoint, the run of an only one, and never a part of one."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tools.cli.app import dispatch
from ckpt_tools.core.errors import EditRefusedError, UsageError
from ckpt_tools.ops.latest import latest
from ckpt_tools.ops.repair import repair
from ckpt_tools.ops.set_lr import set_lr
from ckpt_tools.ops.set_step import set_step
from ckpt_tools.ops.undo import undo
from ckpt_tools.ops.verify import verify
from tests.edits.crash import state

Copy = Callable[..., Path]

ALONE = {
    "deepspeed/stage1-bf16": "global_step3",
    "deepspeed/trainer-stage3-gathered": "checkpoint-2",
    "lightning/sharded-fsdp": "epoch=0-step=4.ckpt",
    "fsdp/trainer-sharded": "checkpoint-2",
    "trainer5-tied": "checkpoint-2",
}


@pytest.mark.parametrize("name", ALONE)
def test_the_run_of_an_only_checkpoint_stands_for_it(copy_of: Copy, name: str) -> None:
    run = copy_of(name)
    before = state(run)
    told = set_lr(str(run), scale=0.5) if "trainer" not in name else set_lr(str(run), peak=0.5)
    assert told.undo == str(run / ALONE[name])
    assert any(ALONE[name] in note and "one checkpoint" in note for note in told.notes)
    assert state(run) != before
    assert [edit.state for edit in undo(str(run), list_only=True).edits or ()] == ["done"]
    undo(str(run))
    assert state(run) == before


def test_the_only_file_of_a_run(copy_of: Copy) -> None:
    run = copy_of("lightning/run")
    for path in run.iterdir():
        if path.name != "epoch=1-step=8.ckpt":
            path.unlink()
    before = state(run)
    assert set_lr(str(run), scale=0.5).undo == str(run / "epoch=1-step=8.ckpt")
    undo(str(run))
    assert state(run) == before


def test_undo_of_a_run_takes_the_newest_of_both_journals(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage1-bf16")
    before = state(run)
    set_lr(str(run), scale=0.5, now_ns=1)
    between = state(run)
    assert set_step(str(run), 9, rename=True, now_ns=2).undo == str(run / "global_step9")
    undo(str(run))
    assert state(run) == between
    undo(str(run))
    assert state(run) == before


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("deepspeed/stage3-fp32", "latest names .*/global_step4"),
        ("mmengine", "last_checkpoint names .*/epoch_3.pth"),
        ("dcp/run", "for example .*/step-4"),
        ("lightning/linked-last", "for example .*/epoch=1-step=8.ckpt"),
    ],
)
def test_of_several_one_is_offered_that_can_be_edited(copy_of: Copy, name: str, named: str) -> None:
    run = copy_of(name)
    if name.endswith("linked-last"):
        (run / "last.ckpt").unlink()
        (run / "last.ckpt").symlink_to("epoch=1-step=8.ckpt")
    for edit in (lambda: set_lr(str(run), scale=0.5), lambda: set_step(str(run), 9)):
        with pytest.raises(UsageError, match="several checkpoints; name one") as refused:
            edit()
        assert re.search(named, str(refused.value.hint))


def test_undo_of_a_run_of_several_says_which_was_edited(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage3-fp32")
    with pytest.raises(EditRefusedError, match="no edit to take back"):
        undo(str(run))
    set_lr(str(run / "global_step4"), scale=0.5)
    for list_only in (False, True):
        with pytest.raises(EditRefusedError, match="scaled by") as refused:
            undo(str(run), list_only=list_only)
        assert str(run / "global_step4") in str(refused.value.hint)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("deepspeed/trainer-stage1", "checkpoint-4/global_step4"),
        ("deepspeed/stage3-fp32", "global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        ("fsdp/trainer-sharded", "checkpoint-2/optimizer_0"),
        ("fsdp/trainer-sharded", "checkpoint-2/pytorch_model_fsdp_0"),
        ("fsdp/fsdp2-sharded", "optimizer_0"),
        ("lightning/sharded-fsdp", "epoch=0-step=4.ckpt/meta.pt"),
        ("dcp/plain", "__0_0.distcp"),
        ("dcp/plain", ".metadata"),
    ],
)
def test_a_part_of_a_checkpoint_is_refused(copy_of: Copy, name: str, part: str) -> None:
    path = copy_of(name) / part
    for edit in (lambda: set_lr(str(path), 0.001), lambda: set_step(str(path), 9)):
        with pytest.raises(UsageError, match="the others have to fit it") as refused:
            edit()
        assert refused.value.hint == f"name {path.parent}"


def test_a_part_is_told_from_inside_of_it(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_of("deepspeed/trainer-stage1") / "checkpoint-4"
    monkeypatch.chdir(path / "global_step4")
    with pytest.raises(UsageError) as refused:
        set_step(".", 9)
    assert refused.value.hint == f"name {path}"


@pytest.mark.parametrize("name", ["orbax/standard", "flax/legacy/checkpoint_4", "keras/model.keras"])
def test_what_is_not_edited_is_not_called_missing(copy_of: Copy, name: str) -> None:
    path = copy_of(name)
    for edit in (lambda: set_lr(str(path), 0.001), lambda: set_step(str(path), 9)):
        with pytest.raises(EditRefusedError, match="is not edited by this version"):
            edit()


def test_damage_is_told_with_the_command_that_tells_more(copy_of: Copy) -> None:
    path = copy_of("dcp/interrupted-overwrite")
    with pytest.raises(EditRefusedError) as refused:
        set_lr(str(path), 0.001)
    assert refused.value.hint == f"`ckpt verify {path}` tells more"


# After a rename, which is an edit of the run --------------------------------------------------------------


def codes(path: Path) -> set[str]:
    return {finding.code for each in verify(str(path)).checkpoints for finding in each.findings}


def test_data_that_was_edited_before_a_rename_is_not_called_newer(copy_of: Copy) -> None:
    run = copy_of("dcp/run")
    shutil.copytree(run / "step-4", run.parent / "kept")
    set_step(str(run / "step-4"), 300, rename=True, now_ns=1)
    set_step(str(run / "step-300"), 500, rename=True, now_ns=2)
    for path in (run, run / "step-500"):
        assert "CK561" not in codes(path)
    shutil.copytree(run.parent / "kept", run / "step-4")  # another one of the old name, which nobody edited
    for data in (run / "step-4").glob("*.distcp"):
        os.utime(data, ns=(10**18 * 2, 10**18 * 2))
    assert "CK561" in codes(run / "step-4")


def interrupted(copy_of: Copy) -> Path:
    """Return a run in which a checkpoint was renamed, and taking that back was begun."""
    run = copy_of("dcp/run")
    set_step(str(run / "step-4"), 300, rename=True)
    (entry,) = (run / ".ckpt-tools" / "journal").glob("*.done.json")
    entry.rename(entry.with_name("0001.undoing-3.json"))
    return run


def test_an_edit_of_the_run_that_did_not_end_is_found_in_its_checkpoint(copy_of: Copy) -> None:
    run = interrupted(copy_of)
    assert "CK005" in codes(run / "step-300")
    for report in verify(str(run)).checkpoints:
        found = [finding for finding in report.findings if finding.code == "CK005"]
        assert bool(found) is (report.path == "step-300")
        assert all(f"`ckpt undo {run / 'step-300'}`" in str(finding.help) for finding in found)
    assert "CK561" not in codes(run)
    assert latest(str(run)).path == str(run / "step-2")
    with pytest.raises(EditRefusedError, match="did not end") as refused:
        set_lr(str(run / "step-300"), 0.001)
    assert f"`ckpt undo {run}`" in str(refused.value.hint)
    undo(str(run / "step-300"))
    assert codes(run) == set()
    assert not (run / "step-300").exists()


def test_a_repair_that_takes_an_edit_back_offers_no_undo_of_it(copy_of: Copy) -> None:
    run = interrupted(copy_of)
    report = repair(str(run), write=True)
    assert [each.backward for each in report.repairs] == [True]
    with pytest.raises(EditRefusedError):
        undo(str(run))


# The last line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["set-lr", "{}", "0.001"],
        ["set-step", "{}", "9"],
        ["set-step", "{}", "9", "--rename"],
    ],
)
def test_the_command_that_takes_it_back_is_typed_out(
    copy_of: Copy, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    run = copy_of("deepspeed/stage1-fp32", "a run")
    path = run / "global_step4"
    before = state(run)
    assert dispatch([word.format(path) for word in words]) == 0
    assert dispatch(typed_out(capsys)) == 0
    assert state(run) == before


def typed_out(capsys: pytest.CaptureFixture[str]) -> list[str]:
    line = next(line for line in capsys.readouterr().out.splitlines() if "`ckpt undo " in line)
    ckpt, *words = shlex.split(line.partition("`")[2].partition("`")[0])
    assert ckpt == "ckpt"
    return words


@pytest.mark.parametrize("fixes", [1, 2])
@pytest.mark.parametrize("given", ["checkpoint-4", "."])
def test_a_repair_types_it_out_too(copy_of: Copy, capsys: pytest.CaptureFixture[str], fixes: int, given: str) -> None:
    run = copy_of("trainer5-sharded", "a run")
    for shard in sorted((run / "checkpoint-4").glob("*.safetensors"))[:fixes]:
        with shard.open("ab") as file:
            file.write(bytes(100))
    before = state(run)
    dispatch(["repair", str(run / given), "--write", "--settle=0"])
    words = typed_out(capsys)
    for _ in range(fixes):
        assert state(run) != before
        assert dispatch(words) == 0
    assert state(run) == before
