"""Two sealed checkpoints: their digests answer, and no tensor byte is read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tools.cli import main
from ckpt_tools.core.source import FileSource
from ckpt_tools.ops.diff import diff

Copy = Callable[..., Path]


@pytest.fixture
def sealed(copy_of: Copy) -> Path:
    run = copy_of("trainer5-full", "out")
    for step in (2, 4):
        assert main(["seal", str(run / f"checkpoint-{step}")]) == 0
    shutil.copytree(run / "checkpoint-2", run.parent / "copy" / "checkpoint-2")
    return run


def read_from(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Record the offsets that are read from files of a name."""
    honest = FileSource.read_into
    offsets: list[int] = []

    def recording(self: FileSource, offset: int, buffer: memoryview) -> None:
        if self.name == name:
            offsets.append(offset)
        honest(self, offset, buffer)

    monkeypatch.setattr(FileSource, "read_into", recording)
    return offsets


def test_equal_digests_are_believed_and_nothing_is_read(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = read_from(monkeypatch, "model.safetensors")
    report = diff(f"{sealed}@2", f"{sealed.parent / 'copy'}@2")
    assert report.equal
    assert report.tensors is not None
    assert report.tensors.same == 21
    assert report.skipped == ("63 tensors are equal by the manifests of both sides and were not read",)
    data_start = 8 + int.from_bytes((sealed / "checkpoint-2" / "model.safetensors").read_bytes()[:8], "little")
    assert offsets
    assert max(offsets) < data_start


def test_no_tensors_knows_what_changed_when_both_are_sealed(sealed: Path) -> None:
    report = diff(f"{sealed}@2", f"{sealed}@4", tensors=False)
    assert report.tensors is not None
    assert len(report.tensors.rows) == 21
    assert {row.note for row in report.tensors.rows} == {"another digest in the manifest"}
    same = diff(f"{sealed}@2", f"{sealed.parent / 'copy'}@2", tensors=False)
    assert same.tensors is not None
    assert (same.tensors.same, same.tensors.unread) == (21, ())


def test_other_digests_are_measured(sealed: Path, copy_of: Copy) -> None:
    plain = copy_of("trainer5-full", "plain")
    mine = diff(f"{sealed}@2", f"{sealed}@4").document()["tensors"]
    assert mine == diff(f"{plain}@2", f"{plain}@4").document()["tensors"]


def test_a_file_of_another_size_than_sealed_is_read(sealed: Path) -> None:
    place = sealed / "checkpoint-2" / "model.safetensors"
    raw = place.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    place.write_bytes((length + 8).to_bytes(8, "little") + raw[8 : 8 + length] + b" " * 8 + raw[8 + length :])
    report = diff(f"{sealed}@2", f"{sealed.parent / 'copy'}@2")
    assert report.equal
    assert report.skipped == ("42 tensors are equal by the manifests of both sides and were not read",)


def test_a_manifest_that_was_changed_is_not_believed(sealed: Path) -> None:
    place = sealed / "checkpoint-2" / ".ckpt-tools" / "manifest.json"
    place.write_text(place.read_text(encoding="utf-8").replace("model.norm", "model.form"), encoding="utf-8")
    report = diff(f"{sealed}@2", f"{sealed.parent / 'copy'}@2")
    assert report.equal
    assert len(report.skipped) == 1
    assert "not used" in report.skipped[0]


def test_sealed_checkpoints_say_their_answer_at_once(sealed: Path) -> None:
    assert diff(f"{sealed}@2", f"{sealed}@4", tensors=False).headline[-1].startswith("21 of 21 weights changed, by the")
    assert diff(f"{sealed}@2", f"{sealed.parent / 'copy'}@2", tensors=False).headline == ("equal",)


def test_stored_checksums_prove_a_difference_and_only_hint_at_the_rest(fixtures_dir: Path) -> None:
    run = fixtures_dir / "trainer5-full"
    report = diff(f"{run}@2", f"{run}@4", tensors=False)
    assert report.moments is not None
    assert {row.note for row in report.moments.rows} == {"another checksum in the file"}
    same = diff(f"{run}@2", f"{run}@2", tensors=False)
    assert same.equal
    assert same.headline == ("no difference found; the values of tensors were not compared (--no-tensors)",)
    assert same.skipped == (
        "42 tensors have the size and the stored checksum of the other side: probably equal, not compared",
    )


def test_environment_and_data_are_compared_where_both_are_sealed_with_them(copy_of: Copy, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    run = copy_of("trainer5-full", "out")
    for step in (2, 4):
        data.write_text(f"{step}", encoding="utf-8")
        assert main(["seal", "--env", "--data", str(data), str(run / f"checkpoint-{step}")]) == 0
    sections = {section.name: section for section in diff(f"{run}@2", f"{run}@4").sections}
    assert sections["environment"].changes == ()
    (change,) = sections["data"].changes
    assert change.left != change.right
    assert change.key.startswith("data")
