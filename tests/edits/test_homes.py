"""Where journals are, what they concern, and that two processes never edit the same files at once."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tools.core.errors import EditError, EditRefusedError, NothingFoundError
from ckpt_tools.core.listing import SIDECAR, scan
from ckpt_tools.edits.apply import apply
from ckpt_tools.edits.back import history, undo, unfinished
from ckpt_tools.edits.journal import home_of, pending_in
from ckpt_tools.model.plan import MoveFile, PatchBytes, Plan, WriteFile
from tests.edits.cases import PATCHES, SOME, STATE, make, times
from tests.edits.crash import Quick, state, stop_at


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make(tmp_path / "ckpt")


class TestHomes:
    def test_a_checkpoint_that_is_one_file(self, root: Path) -> None:
        file = root / "optimizer.pt"
        old = state(root)
        apply(home_of(file), Plan("p", PATCHES), disk=Quick())
        assert [path.name for path in (root / SIDECAR / "optimizer.pt" / "journal").iterdir()] == ["0001.done.json"]
        assert [edit.title for edit in history(home_of(root))] == ["p"], "seen from its directory too"
        undo(home_of(root), disk=Quick())
        assert state(root) == old
        with pytest.raises(NothingFoundError):
            home_of(root / "missing.pt")

    def test_pending_of_one_file_is_seen_in_its_listing(self, root: Path) -> None:
        with pytest.raises(EditError):
            apply(home_of(root / "optimizer.pt"), Plan("p", PATCHES), disk=stop_at(11))
        assert [edit.title for edit in pending_in(scan(root / "optimizer.pt"))] == ["p"]
        assert [edit.title for edit in pending_in(scan(root))] == ["p"]
        assert pending_in(scan(root / "state.json")) == []
        with pytest.raises(EditRefusedError, match="did not end"):
            apply(home_of(root), Plan("p", PATCHES))

    def test_a_renamed_checkpoint_is_undone_from_either_side(self, tmp_path: Path) -> None:
        run = tmp_path / "out"
        make(run / "checkpoint-5")
        make(run / "checkpoint-9")
        apply(home_of(run / "checkpoint-5"), Plan("inside", PATCHES), now_ns=1, disk=Quick())
        before, then = state(run), times(run)
        patch = WriteFile("checkpoint-5/state.json", b"{}", STATE)
        plan = Plan("renamed", (patch, MoveFile("checkpoint-5", "checkpoint-7")))
        apply(home_of(run), plan, now_ns=2, disk=Quick())
        assert sorted(path.name for path in run.glob("checkpoint*")) == ["checkpoint-7", "checkpoint-9"]
        assert (run / "checkpoint-7").stat().st_mtime_ns == then["checkpoint-5"]
        assert [edit.title for edit in history(home_of(run / "checkpoint-7"))] == ["inside", "renamed"]
        assert history(home_of(run / "checkpoint-9")) == []
        undo(home_of(run / "checkpoint-7"), disk=Quick())
        assert state(run) == before
        assert times(run) == then
        undo(home_of(run / "checkpoint-5"), disk=Quick())
        assert (run / "checkpoint-5" / "optimizer.pt").read_bytes() == SOME

    def test_a_pending_edit_of_the_run_concerns_its_checkpoints(self, tmp_path: Path) -> None:
        run = tmp_path / "out"
        make(run / "checkpoint-5")
        make(run / "checkpoint-9")
        old = state(run)
        plan = Plan("all", (WriteFile("checkpoint-5/state.json", b"{}", STATE), MoveFile("checkpoint-5", "c")))
        with pytest.raises(EditError):
            apply(home_of(run), plan, disk=stop_at(12))
        with pytest.raises(EditRefusedError, match="did not end: 'all'") as refused:
            apply(home_of(run / "checkpoint-5"), Plan("p", PATCHES))
        assert f"`ckpt undo {run}`" in str(refused.value.hint)
        assert [edit.title for edit in pending_in(scan(run / "checkpoint-5"))] == ["all"]
        assert pending_in(scan(run / "checkpoint-9")) == []
        apply(home_of(run / "checkpoint-9"), Plan("p", PATCHES), disk=Quick())
        undo(home_of(run / "checkpoint-9"), disk=Quick())
        undo(home_of(run / "checkpoint-5"), disk=Quick())
        assert state(run) == old
        assert unfinished(home_of(run)) == []


HOLDER = """
import sys
from ckpt_tools.core.durable import LocalDisk
disk = LocalDisk()
with disk.lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("locked", "edited", "free"),
    [("ckpt", "ckpt", False), ("ckpt/optimizer.pt", "ckpt", False), ("ckpt", "ckpt/optimizer.pt", False),
     ("ckpt", ".", False), (".", "ckpt", False), ("ckpt/state.json", "ckpt/optimizer.pt", True)],
)  # fmt: skip
def test_two_processes_exclude_each_other(tmp_path: Path, locked: str, edited: str, free: bool) -> None:
    make(tmp_path / "ckpt")
    for place in (locked, edited):  # makes the sidecars
        home = home_of(tmp_path / place)
        prefix = "" if (tmp_path / place).name == "ckpt" or "/" in place else "ckpt/"
        apply(home, Plan("p", (WriteFile(f"{prefix}made", b"", None),)), disk=Quick())
        undo(home, disk=Quick())
    arguments = [sys.executable, "-c", HOLDER, home_of(tmp_path / locked).lock]
    prefix = "ckpt/" if edited == "." else ""
    plan = Plan("p", tuple(PatchBytes(prefix + a.path, a.offset, a.old, a.new) for a in PATCHES))
    attempt: Callable[[], object] = lambda: apply(home_of(tmp_path / edited), plan, disk=Quick())  # noqa: E731
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        if free:
            attempt()
            return
        with pytest.raises(EditRefusedError, match="another ckpt process"):
            attempt()
    attempt()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "ckpt")

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr("fcntl.flock", no_locks)
    apply(home_of(root), Plan("p", PATCHES), disk=Quick())
    apply(home_of(root / "state.json"), Plan("p", (WriteFile("state.json", b"{}", STATE),)), disk=Quick())
    held = root / SIDECAR / "lock.held"
    assert not held.exists()
    held.touch()
    for path in (root, root / "state.json"):
        with pytest.raises(EditRefusedError, match="another ckpt process") as raised:
            undo(home_of(path), disk=Quick())
        assert str(held) in str(raised.value.hint)
    held.unlink()
    undo(home_of(root), disk=Quick())
