"""``ckpt seal``: what it writes, what it refuses, and what it leaves alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.core.durable import LocalDisk
from ckpt_tools.core.errors import CkptError, EditRefusedError, NothingFoundError, UsageError
from ckpt_tools.model.findings import Severity
from ckpt_tools.ops.environment import gather, git_commit
from ckpt_tools.ops.seal import seal
from tests.seal.support import MANIFEST, codes, flip, found, looked, safetensors, sealed

Copy = Callable[..., Path]


def states(path: Path, **options: object) -> dict[str, str]:
    report = seal(str(path), settle=0, **options)  # type: ignore[arg-type]
    return {each.path: each.status for each in report.checkpoints}


@pytest.mark.parametrize(
    "name",
    [
        "trainer5-full",
        "trainer5-lora",
        "trainer5-sharded",
        "trainer5-2ranks",
        "trainer5-scaler",
        "trainer5-bf16",
        "trainer4-bin-sharded",
        "trainer431-bin",
        "accelerate/auto",
        "accelerate/bin",
        "hf-model/tiny-llama",
        "hf-model/sharded",
        "peft/dora",
        "llama-factory/sft-lora",
        "plain/epochs",
    ],
)
def test_sealed_fixtures_have_no_finding_at_any_depth(name: str, copy_of: Copy) -> None:
    run = copy_of(name)
    report = seal(str(run), settle=0)
    assert {each.status for each in report.checkpoints} == {"sealed"}, report
    assert report.exit_code == 0
    for deep in (False, True):
        assert found(looked(run, deep=deep)) == []
    assert {each.status for each in seal(str(run), settle=0).checkpoints} == {"unchanged"}


def test_nothing_but_the_sidecar_changes(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    os.utime(run / "checkpoint-2", ns=(10**18, 10**18))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in run.rglob("*")}
    seal(str(run), settle=0)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in before} == before
    added = {path.relative_to(run).parts[-2:] for path in run.rglob("*") if path not in before and path.is_file()}
    assert added == {(".ckpt-tools", "manifest.json"), (".ckpt-tools", "lock")}


def test_a_checkpoint_may_be_moved_renamed_and_copied(copy_of: Copy, tmp_path: Path) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    sealed(place)
    place.rename(tmp_path / "other")
    assert found(looked(tmp_path / "other", deep=True)) == []
    shutil.copytree(tmp_path / "other", tmp_path / "copy", copy_function=shutil.copyfile)
    assert found(looked(tmp_path / "copy", deep=True)) == []


def test_one_file_is_sealed_beside_itself(copy_of: Copy, tmp_path: Path) -> None:
    place = copy_of("trainer5-full/checkpoint-2") / "optimizer.pt"
    made = sealed(place)
    manifest = place.parent / ".ckpt-tools" / "optimizer.pt" / "manifest.json"
    assert made.manifest == str(manifest)
    assert found(looked(place, deep=True)) == []
    flip(place, place.stat().st_size // 2)
    assert found(looked(place), Severity.ERROR)
    assert found(looked(place.parent)) == [], "the directory itself was not sealed"


def test_files_of_a_run_are_sealed_one_by_one(copy_of: Copy) -> None:
    run = copy_of("plain/epochs")
    done = states(run)
    assert len(done) > 1
    for name in done:
        assert (run / ".ckpt-tools" / name / "manifest.json").is_file()
    name = next(iter(done))
    flip(run / name, (run / name).stat().st_size - 30)
    assert {each.path for each in found(looked(run))} == {name}


def test_a_checkpoint_with_errors_is_refused(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    os.truncate(run / "checkpoint-4" / "optimizer.pt", 1000)
    report = seal(str(run), settle=0)
    done = {each.path: each.status for each in report.checkpoints}
    assert done == {"checkpoint-2": "sealed", "checkpoint-4": "refused", "checkpoint-6": "sealed", ".": "sealed"}
    assert report.exit_code == 5
    assert not (run / "checkpoint-4" / ".ckpt-tools").exists()
    assert states(run / "checkpoint-4", force=True) == {".": "sealed"}


def test_a_wrong_checksum_inside_a_file_is_an_error(copy_of: Copy) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    data = (place / "optimizer.pt").read_bytes()
    at = data.index(b"optimizer/data/1") + 100
    flip(place / "optimizer.pt", at)
    (made,) = seal(str(place), settle=0).checkpoints
    assert made.status == "refused"
    assert any(each.code == "CK401" for each in made.findings)


def test_a_save_in_progress_is_refused(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    (run / "checkpoint-6" / "trainer_state.json").unlink()
    report = seal(str(run / "checkpoint-6"))
    assert report.exit_code == 5
    assert any(each.code == "CK109" for each in report.checkpoints[0].findings)


def test_sealing_again_says_what_changed(copy_of: Copy) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    sealed(place, env=True)
    first = json.loads((place / MANIFEST).read_text())
    assert sealed(place).status == "unchanged"
    state = (place / "trainer_state.json").read_text()
    (place / "trainer_state.json").write_text(state + "\n")
    (place / "notes.txt").write_text("x")
    (place / "generation_config.json").unlink()
    made = sealed(place)
    assert made.status == "sealed"
    assert made.changes.missing == ("generation_config.json",)
    assert made.changes.extra == ("notes.txt",)
    assert [each.path for each in made.changes.changed] == ["trainer_state.json"]
    second = json.loads((place / MANIFEST).read_text())
    assert second["environment"] == first["environment"], "what was noted before stays"
    assert found(looked(place, deep=True)) == []


def test_damage_is_not_sealed_as_if_it_were_an_edit(copy_of: Copy) -> None:
    """Bytes that changed while the time of change did not: nobody wrote them."""
    place = copy_of("trainer5-full/checkpoint-2")
    sealed(place)
    good = (place / MANIFEST).read_bytes()
    flip(place / "model.safetensors", (place / "model.safetensors").stat().st_size - 3)
    (made,) = seal(str(place), settle=0).checkpoints
    assert made.status == "refused"
    assert "damage" in made.reasons[0]
    assert (place / MANIFEST).read_bytes() == good
    assert sealed(place, force=True).status == "sealed"


def test_an_unusable_manifest_is_replaced(copy_of: Copy) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    sealed(place)
    (place / MANIFEST).write_text("{")
    made = sealed(place)
    assert "no JSON" in made.notes[0]
    assert found(looked(place, deep=True)) == []


def test_the_manifest_can_go_elsewhere(copy_of: Copy, tmp_path: Path) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    target = tmp_path / "m.json"
    assert sealed(place, output=str(target)).manifest == str(target)
    assert not (place / ".ckpt-tools").exists()
    assert sealed(place, output=str(target)).status == "unchanged"
    assert found(looked(place, against=str(target), deep=True)) == []
    target.write_text("my notes")
    with pytest.raises(EditRefusedError):
        sealed(place, output=str(target))
    assert target.read_text() == "my notes"
    with pytest.raises(UsageError):
        sealed(place, output=str(place / "m.json"))
    with pytest.raises(UsageError):
        seal(str(copy_of("trainer5-full", "run")), output=str(target))


def test_the_sidecar_is_never_written_through_a_link(copy_of: Copy, tmp_path: Path) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    (tmp_path / "victim").mkdir()
    (place / ".ckpt-tools").symlink_to(tmp_path / "victim")
    (made,) = seal(str(place), settle=0).checkpoints
    assert (made.status, list((tmp_path / "victim").iterdir())) == ("refused", [])
    (place / ".ckpt-tools").unlink()
    (place / ".ckpt-tools").mkdir()
    (place / MANIFEST).symlink_to(tmp_path / "victim" / "file")
    (made,) = seal(str(place), settle=0).checkpoints
    assert (made.status, list((tmp_path / "victim").iterdir())) == ("refused", [])


class Failing(LocalDisk):
    """A disk that dies, or fails, at one of its calls."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = at, error

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error

    def mkdir(self, path: str) -> None:
        self._count()
        super().mkdir(path)

    def create(self, path: str, data: bytes, like: str | None = None) -> None:
        self._count()
        super().create(path, data[: len(data) // 2] if self.left == 1 else data, like)

    def sync(self, path: str) -> None:
        self._count()
        super().sync(path)

    def rename(self, path: str, to: str) -> None:
        self._count()
        super().rename(path, to)

    def lock(self, path: str, *, shared: bool = False) -> AbstractContextManager[None]:
        self._count()
        return super().lock(path, shared=shared)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", range(1, 6))
@pytest.mark.parametrize("before", [False, True])
def test_killed_at_any_call_the_manifest_is_old_or_new(call: int, before: bool, copy_of: Copy) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    if before:
        sealed(place)
        (place / "notes.txt").write_text("x")
    old = (place / MANIFEST).read_bytes() if before else None
    try:
        seal(str(place), settle=0, disk=Failing(call, Killed()))
    except Killed:
        assert ((place / MANIFEST).read_bytes() if (place / MANIFEST).exists() else None) == old
    sealed(place)
    assert found(looked(place, deep=True)) == []
    assert {path.name for path in (place / ".ckpt-tools").iterdir()} == {"manifest.json", "lock"}


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("call", [1, 3])
def test_a_disk_that_refuses_is_one_line_with_a_way_out(number: int, call: int, copy_of: Copy) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    with pytest.raises(CkptError) as raised:
        seal(str(place), settle=0, disk=Failing(call, OSError(number, os.strerror(number))))
    assert raised.value.exit_code == 3
    assert "-o FILE" in str(raised.value.hint)


def test_another_ckpt_at_work_is_refused(copy_of: Copy) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    sealed(place)
    (place / "notes.txt").write_text("x")
    with LocalDisk().lock(str(place / ".ckpt-tools" / "lock")):
        (made,) = seal(str(place), settle=0).checkpoints
    assert (made.status, made.reasons) == ("refused", ("another ckpt is at work in it",))


def test_a_file_that_changes_meanwhile_is_not_sealed(copy_of: Copy) -> None:
    place = copy_of("trainer5-full/checkpoint-2")

    class Meddler(LocalDisk):
        def lock(self, path: str, *, shared: bool = False) -> AbstractContextManager[None]:
            (place / "config.json").write_text("{}")
            return super().lock(path, shared=shared)

    (made,) = seal(str(place), settle=0, disk=Meddler()).checkpoints
    assert made.status == "refused"
    assert not (place / MANIFEST).exists()


def test_nothing_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NothingFoundError):
        seal(str(tmp_path / "none"))


def test_latest_passes_over_what_differs_from_its_seal(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    seal(str(run), settle=0)
    assert ckpt_tools.latest(str(run), settle=0).path == str(run / "checkpoint-6")
    flip(run / "checkpoint-6" / "model.safetensors", (run / "checkpoint-6" / "model.safetensors").stat().st_size - 3)
    assert ckpt_tools.latest(str(run), settle=0).path == str(run / "checkpoint-4")


# Environment and data --------------------------------------------------------------------------------------


def test_the_environment_is_compared(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    sealed(place, env=True)
    assert found(looked(place)) == []
    now = gather()
    monkeypatch.setattr("ckpt_tools.ops.environment.gather", lambda: {**now, "torch": "9.9", "git": "f" * 40})
    (drift,) = found(looked(place))
    assert (drift.code, drift.severity) == ("CK417", Severity.WARNING)
    assert any(line.startswith("torch: ") and line.endswith("9.9 here") for line in drift.detail)
    without = {key: value for key, value in now.items() if key in ("python", "platform")}
    monkeypatch.setattr("ckpt_tools.ops.environment.gather", lambda: without)
    (drift,) = found(looked(place))
    assert drift.severity is Severity.NOTE, "no torch here: no training environment"


def test_the_commit_is_read_without_git(tmp_path: Path) -> None:
    assert git_commit(str(tmp_path)) is None
    (tmp_path / ".git" / "refs" / "heads").mkdir(parents=True)
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / ".git" / "packed-refs").write_text(f"# pack-refs\n{'a' * 40} refs/heads/main\n")
    (tmp_path / "below" / "deeper").mkdir(parents=True)
    assert git_commit(str(tmp_path / "below" / "deeper")) == "a" * 40
    (tmp_path / ".git" / "refs" / "heads" / "main").write_text("b" * 40 + "\n")
    assert git_commit(str(tmp_path)) == "b" * 40
    (tmp_path / ".git" / "HEAD").write_text("c" * 40 + "\n")
    assert git_commit(str(tmp_path)) == "c" * 40


def test_the_data_is_compared_where_it_is_named(copy_of: Copy, tmp_path: Path) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    (data / "train.jsonl").write_text("one\n")
    (data / "a" / "more.jsonl").write_text("two\n")
    (tmp_path / "single.txt").write_text("three")
    given = (str(data), str(tmp_path / "single.txt"))
    sealed(place, data=given)
    report = looked(place)
    assert found(report) == []
    assert any(skip.code == "CK418" for skip in report.checkpoints[0].skipped)
    assert found(looked(place, data=given, deep=True)) == []
    (data / "train.jsonl").write_text("One\n")
    assert codes(looked(place, data=given)) == set(), "the size is the same"
    assert codes(looked(place, data=given, deep=True)) == {"CK418"}
    (data / "a" / "more.jsonl").unlink()
    (data / "new.jsonl").write_text("")
    (drift,) = found(looked(place, data=given))
    assert [line.removeprefix(f"{data}/") for line in drift.detail] == [
        "a/more.jsonl: is missing",
        "new.jsonl: was not there",
    ]
    moved = tmp_path / "elsewhere"
    data.rename(moved)
    (moved / "a" / "more.jsonl").write_text("two\n")
    (moved / "new.jsonl").unlink()
    (moved / "train.jsonl").write_text("one\n")
    assert found(looked(place, data=(given[1], str(moved)), deep=True)) == [], "by name, and the rest by order"


def test_data_that_is_not_there_is_an_error_of_the_caller(copy_of: Copy) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    with pytest.raises(NothingFoundError):
        sealed(place, data=("nowhere",))
    (place.parent / "d").write_text("x")
    sealed(place, data=(str(place.parent / "d"),))
    with pytest.raises(NothingFoundError):
        looked(place, data=("nowhere",))


def test_large_files_are_named_as_compared_by_size(copy_of: Copy) -> None:
    place = copy_of("hf-model/tiny-llama")
    safetensors(place / "big.safetensors", {"w": bytes(4 << 20)})
    sealed(place, force=True)
    (skip,) = (skip for skip in looked(place).checkpoints[0].skipped if skip.code == "CK41")
    assert skip.reason == "1 sealed file, compared by size: needs --deep"
    assert not any(skip.code == "CK41" for skip in looked(place, deep=True).checkpoints[0].skipped)


def test_names_that_are_no_text_are_sealed_too(copy_of: Copy) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    odd = Path(os.fsdecode(os.fsencode(place) + b"/bad\xff\n\xe2\x80\xa8"))
    odd.write_bytes(b"x")
    sealed(place)
    assert found(looked(place, deep=True)) == []
    odd.write_bytes(b"y")
    assert codes(looked(place)) == {"CK413"}


def test_links_to_files_are_sealed_as_what_they_lead_to(copy_of: Copy, tmp_path: Path) -> None:
    place = copy_of("hf-model/tiny-llama", "snapshot")
    blob = tmp_path / "blob"
    (place / "model.safetensors").rename(blob)
    (place / "model.safetensors").symlink_to(blob)
    sealed(place)
    flip(blob, blob.stat().st_size - 3)
    assert codes(looked(place)) == {"CK415"}


def test_a_fault_of_ours_is_a_finding(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    sealed(place)
    monkeypatch.setattr("ckpt_tools.ops.sealed.compare", lambda *_: 1 / 0)
    report = looked(place)
    assert {each.code for each in report.all_findings()} == {"CK001"}
    assert report.exit_code() == 1
