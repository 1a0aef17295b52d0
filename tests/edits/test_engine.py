"""What an edit leaves, restores and refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckpt_tools.core import space
from ckpt_tools.core.durable import LocalDisk
from ckpt_tools.core.errors import EditError, EditRefusedError
from ckpt_tools.core.listing import SIDECAR, scan
from ckpt_tools.edits import guards
from ckpt_tools.edits.apply import apply
from ckpt_tools.edits.back import history, newest, recover, undo
from ckpt_tools.edits.journal import home_of, load, pending_in
from ckpt_tools.model.plan import AppendBytes, MoveFile, PatchBytes, Plan, Seen, WriteFile
from tests.edits.cases import PATCHES, PLANS, SOME, make, prepare, times
from tests.edits.crash import Quick, state, stop_at


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make(tmp_path / "ckpt")


class TestTimes:
    @pytest.mark.parametrize("name", PLANS)
    def test_directories_keep_theirs_and_undo_restores_all(self, tmp_path: Path, name: str) -> None:
        root = tmp_path / "ckpt"
        plan = prepare(root, name)
        before = times(root)
        outcome = apply(home_of(root), plan, disk=Quick())
        after = times(root)
        deep = {"move": "less/deep", "nested": "less/deeper"}
        names = {"more": "less", "more/deep": deep[name]} if name in deep else {}
        made = {"made", "made/for"}
        for path in (path for path in before if (root / names.get(path, path)).is_dir()):
            assert after[names.get(path, path)] == before[path]
        assert {path for path in after if (root / path).is_dir()} - made <= {*before, *names.values()}
        told = {file.path: (file.mtime_before_ns, file.mtime_after_ns) for file in outcome.files}
        for path, (old, new) in told.items():
            assert old == before.get(path) or old is None
            assert new is not None
        assert undo(home_of(root), disk=Quick()).edit.state == "undone"
        assert times(root) == before

    def test_recovery_restores_them_too(self, root: Path) -> None:
        before = times(root)
        with pytest.raises(EditError):
            apply(home_of(root), Plan("p", PLANS["several"]), disk=stop_at(25, times=True))
        recover(home_of(root), disk=Quick())
        assert times(root) == before

    def test_a_refusal_changes_nothing_at_all(self, root: Path) -> None:
        before = times(root)
        with pytest.raises(EditRefusedError):
            apply(home_of(root), Plan("p", (PatchBytes("optimizer.pt", 0, b"no", b"XX"),)))
        assert times(root) == before
        assert not (root / SIDECAR).exists()


class TestRefusals:
    def refused(self, root: Path, *actions: object, words: str, **options: object) -> None:
        old = state(root)
        plan = Plan.of("p", actions, scan(root).files)  # type: ignore[arg-type]
        with pytest.raises(EditRefusedError, match=words) as raised:
            apply(home_of(root), plan, **options)  # type: ignore[arg-type]
        assert raised.value.exit_code == 5
        assert state(root) == old

    def test_a_save_in_progress(self, root: Path) -> None:
        self.refused(root, *PATCHES, words="being written: it grows", saving=lambda: "it grows")

    @pytest.mark.parametrize("place", ["optimizer.pt", "."])
    def test_what_is_read_only(self, root: Path, place: str) -> None:
        mode = (root / place).stat().st_mode
        (root / place).chmod(mode & ~0o222)
        try:
            self.refused(root, *PATCHES, words="read-only")
        finally:
            (root / place).chmod(mode)

    def test_a_read_only_file_is_not_replaced_either(self, root: Path) -> None:
        (root / "state.json").chmod(0o444)
        self.refused(root, *PLANS["write"], words=r"state\.json: is read-only")

    def test_too_little_space(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guards, "free_bytes", lambda _: 70_000)
        self.refused(root, AppendBytes("optimizer.pt", len(SOME), b"x" * 4000), words="too little space")
        monkeypatch.setattr(guards, "free_bytes", space.free_bytes)
        plan = Plan("p", PATCHES)
        apply(home_of(root), plan, disk=Quick())

    def test_a_copy_of_a_linked_file_needs_space_too(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (root / "big").write_bytes(bytes(300_000))
        monkeypatch.setattr(guards, "free_bytes", lambda _: 200_000)
        patch = PatchBytes("big", 0, b"\0", b"1")
        os.link(root / "big", root / "other")
        self.refused(root, patch, words="too little space")
        (root / "other").unlink()
        apply(home_of(root), Plan("p", (patch,)), disk=Quick())

    @pytest.mark.parametrize("name", ["optimizer.pt", "state.json"])
    def test_a_file_that_changed_since(self, root: Path, name: str) -> None:
        plan = Plan.of("p", PLANS["several"], scan(root).files)
        os.utime(root / name)
        with pytest.raises(EditRefusedError, match="changed since the edit was planned"):
            apply(home_of(root), plan)
        assert [guard.path for guard in plan.guards if isinstance(guard, Seen)].count(name) == 1

    def test_old_bytes_that_are_not_there(self, root: Path) -> None:
        for action in (
            PatchBytes("optimizer.pt", 5, b"zz", b"yy"),
            PatchBytes("optimizer.pt", len(SOME), b"zz", b"yy"),
            AppendBytes("optimizer.pt", 7, b"zz"),
            WriteFile("state.json", b"", b"{}"),
        ):
            self.refused(root, action, words="changed since")

    def test_names_that_are_taken_or_missing(self, root: Path) -> None:
        self.refused(root, WriteFile("state.json", b"", None), words="exists already")
        self.refused(root, MoveFile("state.json", "optimizer.pt"), words="exists already")
        self.refused(root, MoveFile("nothing", "there"), words="no such file")
        self.refused(root, PatchBytes("more", 0, b"1", b"2"), words="is a directory")

    def test_links_are_never_written_through(self, root: Path, tmp_path: Path) -> None:
        outside = tmp_path / "blob"
        outside.write_bytes(SOME)
        (tmp_path / "elsewhere").mkdir()
        (root / "link.pt").symlink_to(outside)
        (root / "away").symlink_to(tmp_path / "elsewhere")
        self.refused(root, PatchBytes("link.pt", 0, SOME[:1], b"9"), words="symbolic link")
        self.refused(root, WriteFile("link.pt", b"9", SOME), words="symbolic link")
        self.refused(root, WriteFile("away/new", b"9", None), words="symbolic link")
        self.refused(root, MoveFile("state.json", "away/state.json"), words="symbolic link")
        assert outside.read_bytes() == SOME
        assert list((tmp_path / "elsewhere").iterdir()) == []
        with pytest.raises(EditRefusedError, match="symbolic link"):
            home_of(root / "link.pt")

    def test_a_sidecar_that_is_a_link(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (root / SIDECAR).symlink_to(tmp_path / "elsewhere")
        self.refused(root, *PATCHES, words="symbolic link")
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_an_edit_that_did_not_end(self, root: Path) -> None:
        with pytest.raises(EditError) as raised:
            apply(home_of(root), Plan("the first", PATCHES), disk=stop_at(9))
        assert raised.value.exit_code == 5
        self.refused(root, *GROWTH_ONLY, words="an earlier edit did not end: 'the first'")
        (edit,) = pending_in(scan(root))
        assert (edit.title, edit.state, edit.number) == ("the first", "pending", 1)

    @pytest.mark.parametrize(
        "path", ["../x", "/etc/x", "a/../x", "", ".", f"{SIDECAR}/journal/0001.done.json", f"{SIDECAR}/x.pt/lock"]
    )
    def test_paths_that_no_plan_may_have(self, path: str) -> None:
        with pytest.raises(ValueError, match=r"cannot touch|belongs to the journal"):
            Plan("p", (WriteFile(path, b"", None),))

    def test_plans_that_contradict_themselves(self) -> None:
        for actions in (
            (),
            (PatchBytes("a", 0, b"12", b"1"),),
            (PatchBytes("a", 0, b"12", b"34"), PatchBytes("a", 1, b"2", b"3")),
            (AppendBytes("a", 5, b"1"), AppendBytes("a", 7, b"1")),
            (AppendBytes("a", 5, b"1"), PatchBytes("a", 5, b"1", b"2")),
            (WriteFile("a", b"", b""), PatchBytes("a", 5, b"1", b"2")),
            (MoveFile("a", "a/b"),),
        ):
            with pytest.raises(ValueError):
                Plan("p", actions)


GROWTH_ONLY = (AppendBytes("scheduler.pt", 1500, b"more"),)


class TestProof:
    @pytest.mark.parametrize("answer", ["lr is 5", None])
    def test_a_complaint_takes_the_edit_back(self, root: Path, answer: str | None) -> None:
        old = state(root)
        seen = []

        def prove() -> str | None:
            seen.append(state(root))
            return answer

        if answer is None:
            apply(home_of(root), Plan("p", PATCHES), prove=prove, disk=Quick())
            assert seen == [state(root)]
            return
        with pytest.raises(EditError, match="lr is 5") as raised:
            apply(home_of(root), Plan("p", PATCHES), prove=prove, disk=Quick())
        assert not raised.value.pending
        assert seen != [old]
        assert state(root) == old

    def test_bytes_that_did_not_arrive_are_noticed(self, root: Path) -> None:
        class Lying(Quick):
            def write(self, path: str, offset: int, data: bytes) -> None:
                super().write(path, offset, data[:-1] + b"?")

        with pytest.raises(EditError, match="did not have the effect"):
            apply(home_of(root), Plan("p", PATCHES), disk=Lying())


class TestUndo:
    def test_back_to_the_first_and_no_further(self, root: Path) -> None:
        home, states = home_of(root), [state(root)]
        for number, name in enumerate(("patch", "new", "write")):
            apply(home, Plan(name, PLANS[name]), command=f"ckpt {name}", now_ns=number * 10**9, disk=Quick())
            states.append(state(root))
        assert [(edit.title, edit.state, edit.command) for edit in history(home)][1:] == [
            ("new", "done", "ckpt new"),
            ("write", "done", "ckpt write"),
        ]
        assert history(home)[2].time == "1970-01-01T00:00:02Z"
        for _ in range(3):
            before = state(root)
            assert undo(home, dry_run=True).edit.state == "done"
            assert state(root) == before == states.pop()
            undo(home, disk=Quick())
        assert state(root) == states.pop()
        with pytest.raises(EditRefusedError, match="no edit to take back"):
            undo(home, disk=Quick())

    @pytest.mark.parametrize("name", ["patch", "append", "write", "new", "move", "quarantine", "several"])
    def test_files_that_changed_since_are_refused(self, tmp_path: Path, name: str) -> None:
        for number in range(40):
            root = tmp_path / str(number)
            plan = prepare(root, name)
            apply(home_of(root), plan, disk=Quick())
            files = [file.path for file in newest_files(root, plan)]
            if number >= 3 * len(files):
                return
            file = root / files[number // 3]
            data = file.read_bytes()
            harm = (None, data + b"x", bytes([*data[:-1], data[-1] ^ 1]) if data else b"x")[number % 3]
            file.unlink() if harm is None else file.write_bytes(harm)
            changed = state(root)
            for options in ({"dry_run": True}, {"disk": Quick()}):
                with pytest.raises(EditRefusedError, match="would mix two states"):
                    undo(home_of(root), **options)  # type: ignore[arg-type]
            assert state(root) == changed
            assert newest(home_of(root)) is not None

    def test_a_pending_edit_of_a_file_that_was_saved_anew(self, root: Path) -> None:
        with pytest.raises(EditError):
            apply(home_of(root), Plan("p", PATCHES), disk=stop_at(10))
        (root / "optimizer.pt").write_bytes(b"another save" * 300)
        saved = state(root)
        with pytest.raises(EditRefusedError, match="by something else since"):
            recover(home_of(root), disk=Quick())
        assert state(root) == saved

    def test_hard_links_keep_the_old_bytes(self, tmp_path: Path) -> None:
        root = tmp_path / "ckpt"
        plan = prepare(root, "linked")
        outcome = apply(home_of(root), plan, disk=LocalDisk())
        assert (tmp_path / "ckpt-other").read_bytes() == SOME
        assert outcome.notes == ("linked.pt had other hard links; they keep the old bytes",)
        os.link(root / "linked.pt", tmp_path / "backup")
        edited = (root / "linked.pt").read_bytes()
        undo(home_of(root))
        assert (tmp_path / "backup").read_bytes() == edited
        assert (root / "linked.pt").read_bytes() == SOME

    def test_mode_of_a_replaced_file(self, root: Path) -> None:
        (root / "state.json").chmod(0o640)
        apply(home_of(root), Plan("p", PLANS["write"]))
        assert (root / "state.json").stat().st_mode & 0o777 == 0o640
        undo(home_of(root))
        assert (root / "state.json").stat().st_mode & 0o777 == 0o640

    def test_an_entry_that_leads_through_a_link(self, root: Path, tmp_path: Path) -> None:
        """A journal that came with a download is no better than any other file of it."""
        plan = Plan("p", (PatchBytes("more/rng.pt", 0, b"rng", b"bad"),))
        apply(home_of(root), plan, disk=Quick())
        (root / "more").rename(tmp_path / "elsewhere")
        (root / "more").symlink_to(tmp_path / "elsewhere")
        for options in ({"dry_run": True}, {"disk": Quick()}):
            with pytest.raises(EditRefusedError, match="not written through"):
                undo(home_of(root), **options)  # type: ignore[arg-type]
        assert (tmp_path / "elsewhere" / "rng.pt").read_bytes().startswith(b"bad")

    @pytest.mark.parametrize("harm", [b"", b"{}", b'{"schema": "ckpt-tools/journal/9"}\n{}', None])
    def test_a_damaged_entry(self, root: Path, harm: bytes | None) -> None:
        apply(home_of(root), Plan("p", PATCHES), disk=Quick())
        edited = state(root)
        (entry,) = (root / SIDECAR / "journal").iterdir()
        data = entry.read_bytes()
        entry.write_bytes(data.replace(b'"offset": 500', b'"offset": 501') if harm is None else harm)
        with pytest.raises(EditRefusedError, match=r"0001\.done\.json: the journal entry cannot be used"):
            undo(home_of(root), disk=Quick())
        assert state(root) == edited


def newest_files(root: Path, plan: Plan) -> list[object]:
    edit = newest(home_of(root))
    assert edit is not None
    entry = load(edit)
    assert entry.plan == plan
    from ckpt_tools.edits.outcome import Touched, files_of

    return [Touched(last, 0, 0, 0, 0) for last in files_of(plan).values()]
