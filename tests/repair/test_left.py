"""``ckpt repair``: the way out of what it cannot repair."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ckpt_tools

Copy = Callable[..., Path]


def ways_out(path: Path) -> dict[str, str]:
    return {each.code: each.way_out for each in ckpt_tools.repair(str(path), settle=0).left}


@pytest.mark.parametrize(
    ("fixture", "last", "code"),
    [("dcp/plain", ".metadata", "CK101"), ("megatron/torch-dist/iter_0000003", "metadata.json", "CK161")],
)
def test_what_a_save_did_not_come_to_is_nowhere_to_be_copied_from(
    fixture: str, last: str, code: str, copy_of: Copy
) -> None:
    checkpoint = copy_of(fixture)
    (checkpoint / last).unlink()
    assert ways_out(checkpoint)[code].startswith("none here: the save did not end")


def test_a_file_that_was_damaged_on_its_way_can_be_copied_again(copy_of: Copy) -> None:
    checkpoint = copy_of("dcp/plain")
    (checkpoint / "__0_0.distcp").write_bytes(b"")
    assert ways_out(checkpoint)["CK360"] == "copy it again from where it came from"


def test_what_nemo_passes_over_is_set_aside_only_to_be_kept(copy_of: Copy) -> None:
    run = copy_of("megatron/nemo2")
    (last,) = run.iterdir()
    good = "tiny--val_loss=3.30-step=2-consumed_samples=8.0"
    shutil.copytree(last, run / good)
    mark = run / f"{last.name}-unfinished"
    mark.touch()
    assert "passes it over by itself" in ways_out(run)["CK167"]
    made = ckpt_tools.repair(str(run), settle=0, write=True, quarantine=True)
    assert [(each.kind, each.state) for each in made.repairs] == [("quarantine", "done")]
    assert made.left == ()
    assert (run / ".ckpt-tools" / "quarantine" / last.name / "weights" / ".metadata").exists()
    assert mark.exists()  # NeMo takes it away, and finds nothing to delete with it
    ckpt_tools.undo(str(run))
    assert last.is_dir()
