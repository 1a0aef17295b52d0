"""``ckpt repair``: trackers that name the wrong one or nothing, and metadata that did not get its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.reports.repair import REFUSED, UNSAFE
from tests.rules.judge import codes, judge

Copy = Callable[..., Path]

ZERO = "deepspeed/stage1-fp32"


def mend(path: Path, **options: object) -> list[tuple[str, str]]:
    """Make the repairs and return kind and state of each."""
    report = ckpt_tools.repair(str(path), write=True, settle=0, **options)  # type: ignore[arg-type]
    return [(each.kind, each.state) for each in report.repairs]


@pytest.mark.parametrize(
    "text", [None, "", "global_step9", "global_step4"], ids=["missing", "empty", "dangling", "broken"]
)
def test_the_tracker_names_the_newest_good_one(text: str | None, copy_of: Copy) -> None:
    run = copy_of(ZERO)
    next((run / "global_step4").glob("*rank_1*optim_states.pt")).unlink()
    (run / "latest").unlink()
    if text is not None:
        (run / "latest").write_text(text)
    assert mend(run) == [("rewrite-tracker", "done")]
    assert (run / "latest").read_bytes() == b"global_step2"
    ckpt_tools.undo(str(run))
    assert ((run / "latest").read_text() if (run / "latest").exists() else None) == text


def test_a_preview_changes_nothing(copy_of: Copy) -> None:
    run = copy_of(ZERO)
    (run / "latest").write_text("global_step9")
    report = ckpt_tools.repair(str(run), settle=0)
    assert [(each.kind, each.state) for each in report.repairs] == [("rewrite-tracker", "waiting")]
    assert (run / "latest").read_text() == "global_step9"


def test_going_back_on_purpose_is_not_undone_by_itself(copy_of: Copy) -> None:
    run = copy_of(ZERO)
    (run / "latest").write_text("global_step2")
    assert mend(run) == [("rewrite-tracker", UNSAFE)]
    assert (run / "latest").read_text() == "global_step2"
    assert mend(run, unsafe=True) == [("rewrite-tracker", "done")]
    assert (run / "latest").read_text() == "global_step4"


def test_a_number_for_megatron(copy_of: Copy) -> None:
    run = copy_of("megatron/legacy")
    tracker = run / "latest_checkpointed_iteration.txt"
    tracker.write_text("0000020")
    assert mend(run) == [("rewrite-tracker", "done")]
    assert tracker.read_text() == "3"


def test_an_unfinished_tag_is_set_aside_and_named_no_more(copy_of: Copy) -> None:
    run = copy_of(ZERO)
    next((run / "global_step4").glob("*rank_1*optim_states.pt")).unlink()
    made = mend(run, quarantine=True)
    assert made == [("rewrite-tracker", "done"), ("quarantine", "done")]
    assert not (run / "global_step4").exists()
    assert (run / ".ckpt-tools" / "quarantine" / "global_step4").is_dir()
    assert codes(judge(run, families=("CK",))) == set()


def test_a_tracker_inside_of_a_checkpoint(copy_of: Copy) -> None:
    checkpoint = copy_of("trainer5-full") / "checkpoint-4"
    shutil.copytree(copy_of(ZERO, "zero") / "global_step4", checkpoint / "global_step4")
    (checkpoint / "optimizer.pt").unlink()
    assert ("rewrite-tracker", "done") in mend(checkpoint)
    assert (checkpoint / "latest").read_text() == "global_step4"


# .metadata.tmp -----------------------------------------------------------------------------------------------


@pytest.fixture
def unnamed(copy_of: Copy) -> Path:
    """A save that was killed after all was written, before the metadata got its name."""
    checkpoint = copy_of("dcp/plain")
    (checkpoint / ".metadata").rename(checkpoint / ".metadata.tmp")
    return checkpoint


def test_complete_metadata_gets_its_name(unnamed: Path) -> None:
    assert ("promote-metadata", "done") in mend(unnamed)
    assert (unnamed / ".metadata").exists()
    assert not (unnamed / ".metadata.tmp").exists()
    assert codes(judge(unnamed, families=("CK",))) == set()


def damage_short(checkpoint: Path) -> None:
    path = checkpoint / "__1_0.distcp"
    path.write_bytes(path.read_bytes()[:-100])


def damage_absent(checkpoint: Path) -> None:
    (checkpoint / "__1_0.distcp").unlink()


def damage_cut(checkpoint: Path) -> None:
    path = checkpoint / ".metadata.tmp"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("done", [damage_short, damage_absent, damage_cut])
def test_metadata_that_does_not_fit_keeps_its_name(done: Callable[[Path], None], unnamed: Path) -> None:
    done(unnamed)
    assert ("promote-metadata", REFUSED) in mend(unnamed)
    assert not (unnamed / ".metadata").exists()
