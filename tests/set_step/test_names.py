"""Another name for the directory, and all that names it: together, or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.core.errors import EditRefusedError, UsageError
from ckpt_tools.ops.seal import seal
from ckpt_tools.ops.set_step import set_step
from ckpt_tools.ops.undo import undo
from ckpt_tools.ops.verify import verify
from tests.set_step.test_properties import state

Copy = Callable[..., Path]
NAMED = "trainer5-full/checkpoint-4"


def best(path: Path) -> Any:
    return json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["best_model_checkpoint"]


def test_everything_that_names_it(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    (run / "latest").write_text("checkpoint-4\n", encoding="utf-8")
    before = state(run)
    report = set_step(str(run / "checkpoint-4"), 5, rename=True)
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-5", "checkpoint-6"]
    for place in (run / "checkpoint-5", run / "checkpoint-6", run):
        assert best(place) == "trainer5-full/checkpoint-5"
    assert (run / "latest").read_text(encoding="utf-8") == "checkpoint-5\n"
    assert "checkpoint-4 renamed to checkpoint-5" in report.title
    told = {change.path for change in report.changes if change.new in ("checkpoint-5", "trainer5-full/checkpoint-5")}
    assert told == {
        "checkpoint-4/trainer_state.json",
        "checkpoint-6/trainer_state.json",
        "trainer_state.json",
        "latest",
    }
    undo(str(run))
    assert state(run) == before


def test_a_dry_run_tells_the_same_and_changes_nothing(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    (run / "latest").write_text("checkpoint-4", encoding="utf-8")
    before = state(run)
    told = set_step(str(run / "checkpoint-4"), 5, rename=True, dry_run=True)
    assert state(run) == before
    done = set_step(str(run / "checkpoint-4"), 5, rename=True)
    assert (told.changes, told.rates, told.bytes_written) == (done.changes, done.rates, done.bytes_written)


def test_what_names_another_one_stays(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    (run / "latest").write_text("checkpoint-6", encoding="utf-8")
    (run / "last_words").write_text("nothing to do with checkpoint-4 at all", encoding="utf-8")
    set_step(str(run / "checkpoint-2"), 1, rename=True)
    assert {best(run / name) for name in ("checkpoint-4", "checkpoint-6", ".")} == {NAMED}
    assert (run / "latest").read_text(encoding="utf-8") == "checkpoint-6"
    assert (run / "last_words").read_text(encoding="utf-8") == "nothing to do with checkpoint-4 at all"


def test_links_are_told_and_not_followed(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    os.symlink("checkpoint-4", run / "best")
    elsewhere = run.parent / "pointer"
    elsewhere.write_text("checkpoint-4", encoding="utf-8")
    os.symlink(elsewhere, run / "latest")
    report = set_step(str(run / "checkpoint-4"), 5, rename=True)
    assert any(note.startswith("best is a link to checkpoint-4") for note in report.notes)
    assert os.readlink(run / "best") == "checkpoint-4"
    assert elsewhere.read_text(encoding="utf-8") == "checkpoint-4"


def test_a_name_that_is_taken(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    before = state(run)
    with pytest.raises(EditRefusedError, match="exists"):
        set_step(str(run / "checkpoint-4"), 6, rename=True)
    assert state(run) == before


def test_a_file_that_cannot_be_changed_leaves_all_as_it_was(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    target = run.parent / "state.json"
    (run / "checkpoint-6" / "trainer_state.json").rename(target)
    os.symlink(target, run / "checkpoint-6" / "trainer_state.json")
    before = state(run)
    with pytest.raises(EditRefusedError, match="link"):
        set_step(str(run / "checkpoint-4"), 5, rename=True)
    assert state(run) == before


def test_seals_of_all_of_them_follow(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    for name in ("checkpoint-4", "checkpoint-6"):
        seal(str(run / name))
    set_step(str(run / "checkpoint-4"), 5, rename=True)
    for name in ("checkpoint-5", "checkpoint-6"):
        (report,) = verify(str(run / name), deep=True).checkpoints
        assert [finding for finding in report.findings if finding.code.startswith("CK41")] == []


def test_only_directories_that_are_named_by_their_step(copy_of: Copy) -> None:
    with pytest.raises(UsageError, match="--rename"):
        set_step(str(copy_of("plain/schedules/StepLR.pt")), 9, rename=True)
