"""Another step in the files of DeepSpeed: what the engine counts, every partition, the tag's name and ``latest``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.ops.seal import seal
from ckpt_tools.ops.set_step import set_step
from ckpt_tools.ops.undo import undo
from ckpt_tools.ops.verify import verify
from tests.set_lr.distributed import digests
from tests.set_step.test_properties import state

Copy = Callable[..., Path]
TAGS = {
    "stage0/global_step4": 8,
    "stage1-fp32/global_step4": 8,
    "stage2-fp32/global_step3": 8,
    "stage3-fp32/global_step4": 8,
    "moe-stage0/global_step3": 8,
    "moe-stage2-bf16/global_step3": 8,
    "pipeline-stage0/global_step3": 4,
    "pipeline-bf16-stage1/global_step3": 4,
    "universal-stage1/global_step4_universal": 8,
    "universal-stage3/global_step4_universal": 8,
    "trainer-stage1/checkpoint-2": 4,
    "trainer-stage3/checkpoint-2": 4,
}
"""Tags, and how many samples one step of each takes."""


def counters(path: Path) -> dict[str, set[Any]]:
    """Return every value that is stored of each counter."""
    (checkpoint,) = open_run(str(path)).checkpoints
    view = View(checkpoint)
    found: dict[str, set[Any]] = {}
    try:
        for slot in view.slots:
            if slot.quantity in ("step", "optimizer-step", "scheduler-step"):
                name = "batch" if slot.key.endswith("last_batch_iteration") else slot.quantity
                found.setdefault(name, set()).add(slot.value)
        for part in checkpoint.parts:
            content = view.content(part)
            value = content.value if content is not None else None
            if isinstance(value, dict) and "global_samples" in value:
                found.setdefault("samples", set()).add(value["global_samples"])
                found.setdefault("skipped", set()).add(value["skipped_steps"])
    finally:
        view.close()
    return found


@pytest.mark.parametrize("name", TAGS)
def test_all_that_counts_moves_and_comes_back(copy_of: Copy, name: str) -> None:
    path = copy_of(f"deepspeed/{name}")
    before, old = digests(path), counters(path)
    report = set_step(str(path), 9)
    now = counters(path)
    expected = {"step": {9}, "samples": {9 * TAGS[name]}, "skipped": {0}, "scheduler-step": {9}, "batch": {8}}
    assert {key: value for key, value in now.items() if key != "optimizer-step"} == {
        key: value for key, value in expected.items() if key in old
    }
    steps = sorted(path.rglob("step.pt"))
    assert now.get("optimizer-step", {9}) == {9}
    assert {row.path for row in report.changes if row.path.endswith("step.pt")} == {
        str(each.relative_to(path)) for each in steps
    }
    wrong = {finding.code for finding in verify(str(path), deep=True).checkpoints[0].findings}
    assert wrong <= {"CK576", "CK501", "CK603"}, "all but the name, and the end of the training"
    undo(str(path))
    assert digests(path) == before


def test_back_to_the_beginning(copy_of: Copy) -> None:
    path = copy_of("deepspeed/stage2-fp32") / "global_step3"
    set_step(str(path), 0)
    assert counters(path) == {
        "step": {0}, "samples": {0}, "skipped": {0}, "batch": {-1}, "optimizer-step": {0},
    }  # fmt: skip


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("name", ["stage1-fp32", "stage3-fp32"])
def test_a_tag_gets_another_name(copy_of: Copy, name: str, sealed: bool) -> None:
    run = copy_of(f"deepspeed/{name}")
    if sealed:
        seal(str(run / "global_step4"))
    before = state(run)
    report = set_step(str(run / "global_step4"), 40, rename=True)
    assert sorted(path.name for path in run.iterdir() if path.is_dir() and path.name[0] != ".") == [
        "global_step2", "global_step40",
    ]  # fmt: skip
    assert (run / "latest").read_text(encoding="utf-8") == "global_step40"
    assert "global_step4 renamed to global_step40" in report.title
    assert not verify(str(run), deep=True).checkpoints[-1].findings
    undo(str(run))
    assert state(run) == before


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("name", ["trainer-stage1", "trainer-stage3"])
def test_a_tag_inside_of_a_checkpoint_gets_another_name_too(copy_of: Copy, name: str, sealed: bool) -> None:
    run = copy_of(f"deepspeed/{name}")
    if sealed:
        seal(str(run / "checkpoint-2"))
    before = state(run)
    report = set_step(str(run / "checkpoint-2"), 3, rename=True)
    moved = run / "checkpoint-3"
    assert not (run / "checkpoint-2").exists()
    assert (moved / "latest").read_text(encoding="utf-8") == "global_step3"
    assert not (moved / "global_step2").exists()
    assert len(list((moved / "global_step3").iterdir())) >= 3
    assert ("checkpoint-2/latest", "global_step2", "global_step3") in {
        (row.path, row.old, row.new) for row in report.changes
    }
    (found,) = verify(str(moved), deep=True).checkpoints
    assert not found.findings
    undo(str(run))
    assert state(run) == before
    assert not verify(str(run / "checkpoint-2"), deep=True).checkpoints[0].findings


def test_a_tag_that_was_left_behind_follows(copy_of: Copy) -> None:
    run = copy_of("deepspeed/trainer-stage1")
    set_step(str(run / "checkpoint-2"), 3)
    (run / "checkpoint-2").rename(run / "checkpoint-3")
    assert {each.code for each in verify(str(run / "checkpoint-3")).checkpoints[0].findings} == {"CK576"}
    before = state(run)
    report = set_step(str(run / "checkpoint-3"), 3, rename=True)
    assert {row.path for row in report.changes} == {"latest"}
    assert (run / "checkpoint-3" / "global_step3").is_dir()
    assert not verify(str(run / "checkpoint-3")).checkpoints[0].findings
    undo(str(run / "checkpoint-3"))
    assert state(run) == before


def test_a_dry_run_tells_the_same_and_changes_nothing(copy_of: Copy) -> None:
    run = copy_of("deepspeed/trainer-stage3")
    before = state(run)
    told = set_step(str(run / "checkpoint-2"), 3, rename=True, dry_run=True)
    assert state(run) == before
    done = set_step(str(run / "checkpoint-2"), 3, rename=True)
    assert (told.changes, told.rates, told.bytes_written) == (done.changes, done.rates, done.bytes_written)


def test_one_part_alone(copy_of: Copy) -> None:
    path = copy_of("deepspeed/stage1-fp32") / "global_step4"
    old = counters(path)
    set_step(str(path), 9, only=["trainer-state"])
    assert counters(path) == old | {"step": {9}, "samples": {72}}


def changed_states(path: Path, **values: Any) -> None:
    torch = pytest.importorskip("torch")
    for file in path.glob("*model_states.pt"):
        torch.save(torch.load(file, weights_only=True) | values, file)


def test_what_a_loop_added_is_named_or_follows(copy_of: Copy) -> None:
    path = copy_of("deepspeed/stage3-fp32") / "global_step4"
    changed_states(path, global_step=4, iteration=16, data_sampler={"consumed": 5}, skipped_steps=1, note=None)
    report = set_step(str(path), 9)
    changed = {(row.key, row.old, row.new) for row in report.changes if "model_states" in row.path}
    assert {each for each in changed if "scheduler" not in each[0]} == {
        ("global_steps", 4, 9), ("global_step", 4, 9), ("global_samples", 32, 72),
    }  # fmt: skip
    (staying,) = [note for note in report.notes if "stays as it is" in note]
    for name in ("data_sampler", "epoch", "iteration", "rows_seen"):
        assert name in staying
    assert "note" not in staying.partition(":")[2]
    assert "skipped_steps stays 1" in report.notes


def test_what_lags_still_does(copy_of: Copy) -> None:
    """Under float16 the engine counts steps that the optimizer skipped."""
    path = copy_of("deepspeed/stage1-fp32") / "global_step4"
    changed_states(path, global_steps=6, skipped_steps=2)
    set_step(str(path), 100)
    now = counters(path)
    assert (now["step"], now["optimizer-step"], now["scheduler-step"]) == ({100}, {98}, {98})
