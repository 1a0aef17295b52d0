"""The system refuses something, or the process is killed, at any step of an edit."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from ckpt_tools.core.errors import EditError
from ckpt_tools.edits.apply import apply
from ckpt_tools.edits.back import newest, recover, undo, unfinished
from ckpt_tools.edits.journal import home_of
from ckpt_tools.model.plan import Plan
from tests.architecture.package import REPOSITORY
from tests.edits.cases import PLANS, prepare
from tests.edits.crash import Change, Quick, Watched, state

SYNCS = ("sync", "sync_directory")
NEEDS_ROOM = ("write", "create", "copy", "mkdir")
FULL, BROKEN = errno.ENOSPC, errno.EIO


class Failing(Watched):
    """Refuses the change numbered ``at``, half of it done; when it ``lasts``, every later one like it as well."""

    def __init__(self, at: int, number: int, *, lasts: bool) -> None:
        super().__init__(self._judge)
        self.at, self.number, self.lasts = at, number, lasts
        self.refused: list[Change] = []

    def _judge(self, done: int, change: Change) -> None:
        if done < self.at or change.name == "times":
            return
        if self.refused and not self.lasts:
            return
        if self.number == FULL and change.name not in NEEDS_ROOM and self.lasts:
            return
        self.refused.append(change)
        path, *rest = change.arguments
        if change.name == "write":
            self.inner.write(path, rest[0], rest[1][: len(rest[1]) // 2])
        elif change.name == "create":
            self.inner.create(path, rest[0][: len(rest[0]) // 2])
        raise OSError(self.number, os.strerror(self.number), path)


def attempt(root: Path, plan: Plan, disk: Watched) -> EditError | None:
    try:
        apply(home_of(root), plan, disk=disk)
    except EditError as error:
        return error
    return None


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("number", [FULL, BROKEN])
def test_one_refusal_takes_the_whole_edit_back(tmp_path: Path, name: str, number: int) -> None:
    for at in count():
        root = tmp_path / f"at-{at}" / "ckpt"
        plan = prepare(root, name)
        old, times = state(root), os.stat(root).st_mtime_ns
        disk = Failing(at, number, lasts=False)
        error = attempt(root, plan, disk)
        if error is not None:
            assert not error.pending
            assert error.exit_code == 3
            assert str(tmp_path) not in str(error)
            assert os.strerror(number).lower() in str(error)
            assert state(root) == old
            assert os.stat(root).st_mtime_ns == times
            assert unfinished(home_of(root)) == []
            assert newest(home_of(root)) is None
            apply(home_of(root), plan, disk=Quick())  # and once the cause is gone, it works
        if not disk.refused:
            assert at > 8
            return
        assert state(root) != old


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("number", [FULL, BROKEN])
def test_what_cannot_be_taken_back_yet_is_left_for_undo(tmp_path: Path, name: str, number: int) -> None:
    for at in count():
        root = tmp_path / f"at-{at}" / "ckpt"
        plan = prepare(root, name)
        old = state(root)
        disk = Failing(at, number, lasts=True)
        error = attempt(root, plan, disk)
        if error is not None:
            waiting = unfinished(home_of(root))
            assert error.pending is bool(waiting)
            assert error.exit_code == (5 if waiting else 3)
            made = "the edit was made" in str(error) or any(edit.progress == len(plan.steps) for edit in waiting)
            recover(home_of(root), disk=Quick())
            assert (state(root) == old) is (newest(home_of(root)) is None)
            assert (newest(home_of(root)) is not None) is made
        if not disk.refused:
            return


@pytest.mark.parametrize("name", PLANS)
def test_an_undo_that_fails_can_be_repeated(tmp_path: Path, name: str) -> None:
    for at in count():
        root = tmp_path / f"at-{at}" / "ckpt"
        plan = prepare(root, name)
        old = state(root)
        apply(home_of(root), plan, disk=Quick())
        disk = Failing(at, BROKEN, lasts=False)
        try:
            undo(home_of(root), disk=disk)
        except EditError:
            if state(root) != old or unfinished(home_of(root)):
                undo(home_of(root), disk=Quick())
        assert state(root) == old
        assert newest(home_of(root)) is None
        if not disk.refused:
            return


def test_an_interrupt_takes_the_edit_back(tmp_path: Path) -> None:
    for at in range(4, 12):
        root = tmp_path / f"at-{at}" / "ckpt"
        plan = prepare(root, "several")
        old = state(root)
        raised: list[int] = []

        def before(done: int, _: Change, at: int = at, raised: list[int] = raised) -> None:
            if done == at and not raised:
                raised.append(done)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            apply(home_of(root), plan, disk=Watched(before))
        assert state(root) == old
        assert unfinished(home_of(root)) == []


KILLER = """
import os, signal, sys
from pathlib import Path
from ckpt_tools.core.durable import LocalDisk
from ckpt_tools.edits.apply import apply
from ckpt_tools.edits.back import undo
from ckpt_tools.edits.journal import home_of
from tests.edits.cases import prepare
from tests.edits.crash import Watched

where, name, verb = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
for at in range(200):
    root = where / f"{at}" / "ckpt"
    plan = prepare(root, name)
    if verb == "undo":
        apply(home_of(root), plan)
    child = os.fork()
    if child == 0:
        def before(done, change):
            if done == at:
                if change.name == "write":
                    half = len(change.arguments[2]) // 2
                    disk.inner.write(*change.arguments[:2], change.arguments[2][:half])
                os.kill(os.getpid(), signal.SIGKILL)
        disk = Watched(before, LocalDisk())
        apply(home_of(root), plan, disk=disk) if verb == "apply" else undo(home_of(root), disk=disk)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert status == 0, status
        print(at)
        break
"""


@pytest.mark.parametrize("name", ["several", "quarantine", "linked"])
@pytest.mark.parametrize("verb", ["apply", "undo"])
def test_a_process_is_killed_at_each_step(tmp_path: Path, name: str, verb: str) -> None:
    whole = tmp_path / "ckpt"
    plan = prepare(whole, name)
    old = state(whole)
    apply(home_of(whole), plan, disk=Quick())
    new = state(whole)
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "killed"), name, verb],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps > 10
    for at in range(steps):
        root = tmp_path / "killed" / str(at) / "ckpt"
        recover(home_of(root), disk=Quick())
        assert state(root) == (new if newest(home_of(root)) else old)
    last = tmp_path / "killed" / str(steps) / "ckpt"
    assert state(last) == (new if verb == "apply" else old)
