"""Repairs of the trainer's state and of counters, pending edits, and what is salvaged from a cut file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ckpt_tools.core.durable import LocalDisk
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.edits import back
from ckpt_tools.edits.apply import apply
from ckpt_tools.edits.journal import home_of, pending
from ckpt_tools.model.plan import Plan, WriteFile
from ckpt_tools.ops.repair import repair
from ckpt_tools.ops.salvage import salvage
from ckpt_tools.ops.undo import undo
from ckpt_tools.reports.repair import DONE, REFUSED, UNSAFE
from tests.conftest import Copy
from tests.repair.support import codes, mended, snapshot, states

STATE = "trainer_state.json"


def test_the_best_checkpoint_is_named_where_it_is_now(copy_of: Copy) -> None:
    run = copy_of("trainer5-full", "moved")
    newest = run / "checkpoint-6" / STATE
    assert states(repair(str(run), settle=0, write=True)) == {"set-best": UNSAFE}
    old = newest.read_text()
    report = repair(str(run), settle=0, write=True, unsafe=True)
    assert states(report) == {"set-best": DONE}
    best = json.loads(newest.read_text())["best_model_checkpoint"]
    assert os.path.isdir(best)
    assert newest.read_text() == old.replace(json.dumps(json.loads(old)["best_model_checkpoint"]), json.dumps(best))
    undo(str(run / "checkpoint-6"), settle=0)
    assert newest.read_text() == old


def test_a_best_checkpoint_that_is_gone_is_cleared(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    newest = run / "checkpoint-6" / STATE
    state = json.loads(newest.read_text())
    newest.write_text(json.dumps({**state, "best_model_checkpoint": "trainer5-full/checkpoint-3"}, indent=2))
    report = repair(str(run), settle=0, write=True, unsafe=True)
    assert states(report) == {"set-best": DONE}
    assert json.loads(newest.read_text()) == {**state, "best_model_checkpoint": None}


@pytest.mark.parametrize("damage", ["missing", "zeros", "cut"])
def test_a_lost_state_is_written_from_a_later_one(copy_of: Copy, damage: str) -> None:
    run = copy_of("trainer5-resumed-well")
    place = run / "checkpoint-8" / STATE
    wanted = json.loads(place.read_text())
    before = codes(run)
    if damage == "missing":
        place.unlink()
    else:
        size = place.stat().st_size
        place.write_bytes(bytes(size) if damage == "zeros" else place.read_bytes()[: size // 2])
    code = min(codes(run) - before - {"CK601"}) if damage != "missing" else "CK101"
    mended(run, "restore-state", code, unsafe=True)
    found = json.loads(place.read_text())
    for key in ("global_step", "log_history", "max_steps", "save_steps", "train_batch_size", "epoch"):
        assert found[key] == wanted[key], key
    assert set(found) == set(wanted)


def test_a_lost_state_of_the_newest_is_written_from_that_of_the_run(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    place = run / "checkpoint-6" / STATE
    wanted = json.loads(place.read_text())
    place.unlink()
    assert "train_runtime" in (run / STATE).read_text()
    mended(run, "restore-state", "CK101", unsafe=True, edited=run / "checkpoint-6")
    found = json.loads(place.read_text())
    for key in ("global_step", "log_history", "max_steps", "epoch", "best_metric"):
        assert found[key] == wanted[key], key


def test_a_state_cannot_come_from_an_earlier_one(copy_of: Copy) -> None:
    run = copy_of("trainer5-resumed-well")
    (run / "checkpoint-12" / STATE).unlink()
    report = repair(str(run), settle=0, write=True, unsafe=True)
    (row,) = [each for each in report.repairs if each.kind == "restore-state"]
    assert row.state == REFUSED
    assert "an earlier one ends at 8" in str(row.reason)
    assert "resume from checkpoint-8" in str(row.reason)


def test_a_state_is_not_made_for_a_save_that_lacks_more(copy_of: Copy) -> None:
    run = copy_of("trainer5-resumed-well")
    (run / "checkpoint-8" / STATE).unlink()
    (run / "checkpoint-8" / "scheduler.pt").unlink()
    report = repair(str(run), settle=0, write=True, unsafe=True)
    assert states(report)["restore-state"] == REFUSED
    assert not (run / "checkpoint-8" / STATE).exists()


def test_a_state_of_another_step_is_aligned(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    wanted = json.loads((run / "checkpoint-4" / STATE).read_text())
    (run / "checkpoint-4" / STATE).write_bytes((run / "checkpoint-6" / STATE).read_bytes())
    (code,) = codes(run) & {"CK501", "CK504"}
    mended(run, "align-step", code, unsafe=True)
    found = json.loads((run / "checkpoint-4" / STATE).read_text())
    for key in ("global_step", "log_history", "epoch"):
        assert found[key] == wanted[key], key


def test_a_schedule_of_another_step_is_aligned(copy_of: Copy) -> None:
    torch = pytest.importorskip("torch")
    run = copy_of("trainer5-full")
    path = run / "checkpoint-4"
    wanted = torch.load(path / "scheduler.pt", weights_only=True)
    (path / "scheduler.pt").write_bytes((run / "checkpoint-2" / "scheduler.pt").read_bytes())
    found = codes(path) & {"CK502", "CK504"}
    assert found
    mended(path, "align-step", min(found), unsafe=True)
    assert torch.load(path / "scheduler.pt", weights_only=True) == wanted


class _Dying(LocalDisk):
    """Dies before the file is in place, as a killed process does."""

    def rename(self, path: str, to: str) -> None:
        if to.endswith("config.json"):
            raise KeyboardInterrupt
        super().rename(path, to)

    def unlink(self, path: str) -> None:
        raise KeyboardInterrupt


def _interrupt(path: Path) -> None:
    old = (path / "config.json").read_bytes()
    home = home_of(str(path))
    with pytest.raises(BaseException):  # noqa: B017 - however it dies
        apply(home, Plan("half an edit", (WriteFile("config.json", b"{}", old),)), disk=_Dying())
    assert pending(home)


def test_a_pending_edit_is_taken_back(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    before = snapshot(run)
    _interrupt(run / "checkpoint-2")
    preview = repair(str(run), settle=0)
    assert preview.exit_code == 1
    assert states(preview)["finish-edit"] == "waiting"
    report = repair(str(run), settle=0, write=True)
    assert states(report)["finish-edit"] == DONE
    assert not back.unfinished(home_of(str(run / "checkpoint-2")))
    assert snapshot(run) == before


class _Unmarked(LocalDisk):
    """Dies once all is made, before the entry is marked as done."""

    def rename(self, path: str, to: str) -> None:
        if ".done." in to or ".pending-1." in path:
            raise KeyboardInterrupt
        super().rename(path, to)


def _unmarked(path: Path, new: bytes) -> None:
    home = home_of(str(path))
    old = (path / "config.json").read_bytes()
    with pytest.raises(BaseException):  # noqa: B017 - however it dies
        apply(home, Plan("a whole edit", (WriteFile("config.json", new, old),)), disk=_Unmarked())
    assert [each.progress for each in pending(home)] == [1]


def test_an_edit_that_was_made_as_a_whole_is_finished(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    path = run / "checkpoint-2"
    before = snapshot(run)
    new = json.dumps({**json.loads((path / "config.json").read_text()), "note": 1}).encode()
    _unmarked(path, new)
    (row,) = [each for each in repair(str(run), settle=0).repairs if each.kind == "finish-edit"]
    assert "all of it was made" in row.title
    assert "CK005" in codes(path)
    report = repair(str(run), settle=0, write=True)
    assert states(report)["finish-edit"] == DONE
    assert (path / "config.json").read_bytes() == new
    assert "CK005" not in codes(path)
    undo(str(path), settle=0)
    assert snapshot(run) == before


def test_a_whole_edit_after_which_a_file_is_damaged_is_taken_back(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    before = snapshot(run)
    _unmarked(run / "checkpoint-2", b"{")
    (row,) = [each for each in repair(str(run), settle=0).repairs if each.kind == "finish-edit"]
    assert row.title == "take it back as a whole"
    repair(str(run), settle=0, write=True)
    assert snapshot(run) == before


def test_undo_takes_back_what_was_made_as_a_whole_and_not_marked(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    before = snapshot(run)
    _unmarked(run / "checkpoint-2", b"{}")
    undo(str(run / "checkpoint-2"), settle=0)
    assert snapshot(run) == before


def test_the_whole_tensors_of_a_cut_file_are_salvaged(copy_of: Copy, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    file = copy_of("hf-model/tiny-llama/model.safetensors")
    wanted = load_file(file)
    os.truncate(file, int(file.stat().st_size * 0.7))
    cut = file.read_bytes()
    out = tmp_path / "salvaged.safetensors"
    assert salvage(str(file), str(out)).exit_code == 1
    assert not out.exists()
    report = salvage(str(file), str(out), write=True)
    assert report.exit_code == 0
    found = load_file(out)
    assert 0 < len(found) < len(wanted)
    assert all((found[name] == wanted[name]).all() for name in found)
    assert file.read_bytes() == cut
    lost = [name for name in wanted if name not in found]
    assert all(name in " ".join(report.repairs[0].notes) for name in lost[:3])
    with pytest.raises(EditRefusedError):
        salvage(str(file), str(out), write=True)
