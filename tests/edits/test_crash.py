"""Power is lost at any point of an edit: after ``recover`` the checkpoint is old or new, never a mixture."""

from __future__ import annotations

import random
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from ckpt_tools.core.errors import EditError, EditRefusedError
from ckpt_tools.edits.apply import apply
from ckpt_tools.edits.back import newest, recover, undo, unfinished
from ckpt_tools.edits.journal import home_of
from tests.edits.cases import PLANS, prepare
from tests.edits.crash import Change, Quick, Watched, World, state

FATES = ((0.0, 0), (1.0, 0), (0.5, 1), (0.5, 2), (0.8, 3), (0.3, 4))
"""How likely a change that was not synced survives, and a seed."""

State = dict[str, bytes | None]


class Scene:
    """A checkpoint with one recorded sequence of changes, and the states before and after it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.world = World(root)
        self.before = state(root)
        self.disk = Watched()

    @property
    def changes(self) -> list[Change]:
        return self.disk.changes

    def crashes(
        self, into: Path, sample: int | None = None, *, after: Collection[int] | None = None
    ) -> Iterator[tuple[int, Path]]:
        """Yield what a crash after every number of changes (or those of ``after``), with every fate, leaves.

        Of these, a sample of so many is enough where one is asked for.
        """
        counts = range(len(self.changes) + 1) if after is None else after
        every = [(done, *fate) for done in counts for fate in FATES]
        chosen = every if sample is None else random.Random(str(into.name)).sample(every, min(sample, len(every)))
        played = 0
        for done, keep, seed in sorted(chosen):
            for change in self.changes[played:done]:
                self.world.play(change)
            played = done
            place = into / f"{done}-{keep}-{seed}"
            self.world.crash(place, random.Random(f"{done} {seed}"), keep)
            yield done, place
            shutil.rmtree(place)


def require(place: Path, old: State, new: State) -> bool:
    """Recover, require old or new, and return whether it is new."""
    recover(home_of(place), disk=Quick())
    now = state(place)
    assert now in (old, new), (
        sorted(name for name in {**now, **old, **new} if now.get(name, 0) not in (old.get(name, 0), new.get(name, 0)))
        or "files of both states"
    )
    done = newest(home_of(place)) is not None
    assert done is (now == new)
    assert recover(home_of(place)) == ()
    return done


@pytest.mark.parametrize("name", PLANS)
def test_an_edit_is_whole_or_was_never_there(tmp_path: Path, name: str) -> None:
    root = tmp_path / "ckpt"
    plan = prepare(root, name)
    scene = Scene(root)
    apply(home_of(root), plan, disk=scene.disk)
    new = state(root)
    assert new != scene.before
    outcomes: dict[int, set[bool]] = {}
    for done, place in scene.crashes(tmp_path / "crashes"):
        outcomes.setdefault(done, set()).add(require(place, scene.before, new))
    assert outcomes[0] == {False}
    assert outcomes[len(scene.changes)] == {True}, "what was reported as done is done"


@pytest.mark.parametrize("name", PLANS)
def test_an_undo_is_whole_or_can_be_finished(tmp_path: Path, name: str) -> None:
    root = tmp_path / "ckpt"
    plan = prepare(root, name)
    old = state(root)
    apply(home_of(root), plan, disk=Quick())
    scene = Scene(root)
    undo(home_of(root), disk=scene.disk)
    assert state(root) == old
    outcomes: dict[int, set[bool]] = {}
    for done, place in scene.crashes(tmp_path / "crashes"):
        outcomes.setdefault(done, set()).add(require(place, old, scene.before))
    assert outcomes[0] == {True}
    assert outcomes[len(scene.changes)] == {False}


@pytest.mark.parametrize("name", PLANS)
def test_an_edit_that_lacks_only_its_mark_is_finished_and_undo_takes_it_back(tmp_path: Path, name: str) -> None:
    root = tmp_path / "ckpt"
    plan = prepare(root, name)
    old = state(root)
    scene = Scene(root)
    apply(home_of(root), plan, disk=scene.disk)
    new = state(root)
    wanted = f".pending-{len(plan.steps)}."
    ends = {
        number + 2  # with the sync of the name
        for number, change in enumerate(scene.changes)
        if change.name == "rename" and wanted in str(change.arguments[1])
    }
    assert ends
    for _, place in scene.crashes(tmp_path / "crashes", after=ends):
        (edit,) = unfinished(home_of(place))
        assert edit.progress == len(plan.steps)
        again = place.parent / f"{place.name}-again"
        shutil.copytree(place, again)
        assert require(place, old, new)
        undo(home_of(again), disk=Quick())
        assert state(again) == old


def test_what_a_proof_speaks_against_is_taken_back_though_all_of_it_was_made(tmp_path: Path) -> None:
    root = tmp_path / "ckpt"
    plan = prepare(root, "several")
    old = state(root)

    gone: list[Change] = []

    def before(number: int, change: Change) -> None:
        if gone or ".done." in str(change.arguments[-1]):
            gone.append(change)
            raise OSError(5, "gone")

    with pytest.raises(EditError):
        apply(home_of(root), plan, disk=Watched(before))
    (edit,) = unfinished(home_of(root))
    assert edit.progress == len(plan.steps)
    (outcome,) = recover(home_of(root), disk=Quick(), prove=lambda edit: "it does not load")
    assert outcome.edit.state == "undone"
    assert state(root) == old


@pytest.mark.parametrize("name", PLANS)
def test_a_crash_while_recovering_from_a_crash(tmp_path: Path, name: str) -> None:
    root = tmp_path / "ckpt"
    plan = prepare(root, name)
    first = Scene(root)
    apply(home_of(root), plan, disk=first.disk)
    new = state(root)
    for number, (_, place) in enumerate(first.crashes(tmp_path / name, 20)):
        second = Scene(place)
        recover(home_of(place), disk=second.disk)
        for _, again in second.crashes(tmp_path / f"{name}-{number}", 8):
            require(again, first.before, new)


def test_the_model_forgets_what_was_not_synced(tmp_path: Path) -> None:
    """The crash model itself: without it a green test above would say nothing."""
    root = tmp_path / "here"
    root.mkdir()
    (root / "a").write_bytes(bytes(2048))
    scene = Scene(root)
    disk, a = scene.disk, str(root / "a")
    disk.write(a, 0, b"1" * 2048)
    disk.create(str(root / "b"), b"2" * 600)
    disk.sync(str(root / "b"))
    disk.rename(a, str(root / "c"))
    disk.sync(str(root / "c"))
    disk.sync_directory(str(root))
    disk.truncate(str(root / "c"), 100)
    seen: list[dict[str, set[bytes | None]]] = [{} for _ in range(len(scene.changes) + 1)]
    for done, place in scene.crashes(tmp_path / "crashes"):
        for name, data in state(place).items():
            seen[done].setdefault(name, set()).add(data)
    assert seen[0] == {".": {None}, "a": {bytes(2048)}}
    assert len(seen[1]["a"]) > 2, "torn between sectors"
    assert all(len(data) == 2048 for data in seen[1]["a"])
    assert b"2" * 600 in seen[3]["b"]
    assert seen[3]["b"] == {b"2" * 600}, "synced bytes stay when the name does"
    assert {"a", "c"} <= set(seen[4]), "a name that was not synced may be either"
    assert set(seen[6]) == {".", "b", "c"}
    assert seen[6]["c"] == {b"1" * 2048}
    assert seen[7]["c"] == {b"1" * 2048, b"1" * 100}


def test_the_model_catches_an_edit_that_does_not_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out all syncs of files, as a careless engine would: the same check must fail."""
    root = tmp_path / "ckpt"
    plan = prepare(root, "several")
    scene = Scene(root)
    monkeypatch.setattr(Watched, "sync", lambda *_: None)
    apply(home_of(root), plan, disk=scene.disk)
    new = state(root)
    monkeypatch.undo()

    def check() -> None:
        for _, place in scene.crashes(tmp_path / "crashes"):
            require(place, scene.before, new)

    with pytest.raises((AssertionError, EditRefusedError)):
        check()
