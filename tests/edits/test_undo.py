"""``ckpt undo`` as a person and a program meet it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.cli import main
from ckpt_tools.core.errors import EditError
from ckpt_tools.core.listing import scan
from ckpt_tools.edits.apply import apply
from ckpt_tools.edits.journal import home_of
from ckpt_tools.model.plan import MoveFile, Plan, WriteFile
from ckpt_tools.ops.undo import being_saved
from ckpt_tools.reports.edit import Change, EditReport, Rates
from tests.edits.cases import times
from tests.edits.crash import Quick, state, stop_at

Copy = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def checkpoint(copy_of: Copy) -> Path:
    return copy_of("trainer5-full", "out") / "checkpoint-4"


def rewrite(checkpoint: Path, new: bytes, title: str, now: int) -> None:
    file = checkpoint / "trainer_state.json"
    plan = Plan.of(title, [WriteFile(file.name, new, file.read_bytes())], scan(checkpoint).files)
    apply(home_of(checkpoint), plan, command=f"ckpt {title}", now_ns=now * 10**9, disk=Quick())


def ask(capsys: Capture, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    return (code, *capsys.readouterr())


def document(capsys: Capture, *words: object) -> dict[str, Any]:
    code, out, _ = ask(capsys, *words, "--format", "json")
    assert code == 0
    read: dict[str, Any] = json.loads(out)
    return read


def test_down_to_the_first_edit(checkpoint: Path, capsys: Capture) -> None:
    old, then = state(checkpoint), times(checkpoint)
    rewrite(checkpoint, b"{}", "first", 1)
    rewrite(checkpoint, b"[]", "second", 2)
    code, out, _ = ask(capsys, "undo", checkpoint)
    assert code == 0
    assert out.splitlines()[0] == "took back edit 2: second"
    assert "1 earlier edit can be taken back: run it again" in out
    assert (checkpoint / "trainer_state.json").read_bytes() == b"{}"
    assert ask(capsys, "undo", checkpoint)[0] == 0
    assert (state(checkpoint), times(checkpoint)) == (old, then)
    code, out, err = ask(capsys, "undo", checkpoint)
    assert (code, out, err) == (5, "", "ckpt: error: there is no edit to take back\n")


def test_the_list(checkpoint: Path, capsys: Capture) -> None:
    assert ask(capsys, "undo", "--list", checkpoint)[:2] == (0, "no edits\n")
    rewrite(checkpoint, b"{}", "first", 1)
    ask(capsys, "undo", checkpoint)
    rewrite(checkpoint, b"[]", "second", 2)
    lines = ask(capsys, "undo", "--list", checkpoint)[1].splitlines()
    assert lines[1].split() == ["1", "undone", "1970-01-01T00:00:01Z", "0.1.0", "first"]
    assert lines[2].split() == ["2", "done", "1970-01-01T00:00:02Z", "0.1.0", "second"]
    listed = document(capsys, "undo", "--list", checkpoint)
    assert listed["schema"] == "ckpt-tools/edit/1"
    assert listed["applied"] is False
    assert listed["edits"][1] == {
        "number": 2,
        "state": "done",
        "time": "1970-01-01T00:00:02Z",
        "tool": "0.1.0",
        "title": "second",
        "command": "ckpt second",
        "paths": ["trainer_state.json"],
    }


def test_a_dry_run_tells_and_changes_nothing(checkpoint: Path, capsys: Capture) -> None:
    size = (checkpoint / "trainer_state.json").stat().st_size
    rewrite(checkpoint, b"{}", "first", 1)
    edited = state(checkpoint)
    told = document(capsys, "undo", "-n", checkpoint)
    assert state(checkpoint) == edited
    assert told["applied"] is False
    done = document(capsys, "undo", checkpoint)
    assert done["applied"] is True
    for shown in (told, done):
        (file,) = shown["files"]
        assert (file["path"], file["size_before"], file["size_after"]) == ("trainer_state.json", 2, size)
        assert file["mtime_after_ns"] == (checkpoint / "trainer_state.json").stat().st_mtime_ns
        assert shown["bytes_written"] == size


def test_an_interrupted_edit_is_finished(checkpoint: Path, capsys: Capture) -> None:
    old = state(checkpoint)
    file = checkpoint / "trainer_state.json"
    plan = Plan("halfway", (WriteFile(file.name, b"{}", file.read_bytes()), MoveFile("config.json", "c")))
    with pytest.raises(EditError):
        apply(home_of(checkpoint), plan, disk=stop_at(14))
    assert state(checkpoint) != old
    assert ask(capsys, "undo", "--list", checkpoint)[1].splitlines()[1].split()[1].startswith("pending")
    code, out, _ = ask(capsys, "undo", checkpoint)
    assert code == 0
    assert "the edit did not end" in out
    assert state(checkpoint) == old


def test_a_file_that_changed_since(checkpoint: Path, capsys: Capture) -> None:
    rewrite(checkpoint, b"{}", "first", 1)
    (checkpoint / "trainer_state.json").write_bytes(b"[]")
    code, out, err = ask(capsys, "undo", checkpoint)
    assert (code, out) == (5, "")
    assert err.splitlines()[0] == (
        "ckpt: error: trainer_state.json: was written by something else since: taking back 'first' of"
        " 1970-01-01T00:00:01Z would mix two states"
    ) or err.splitlines()[0].startswith("ckpt: error: trainer_state.json: changed since")


def test_paths_without_a_checkpoint(tmp_path: Path, capsys: Capture) -> None:
    for path in (tmp_path / "missing", tmp_path):
        code, out, err = ask(capsys, "undo", path)
        assert (code, out) == (4, "")
        assert "no such file" in err or "no checkpoint found" in err
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_being_written(checkpoint: Path, capsys: Capture) -> None:
    run = checkpoint.parent
    rewrite(run / "checkpoint-6", b"{}", "first", 1)
    (run / "checkpoint-6" / "trainer_state.json").unlink()
    code, _, err = ask(capsys, "undo", run / "checkpoint-6")
    assert code == 5
    assert "the checkpoint is being written: trainer_state.json, which is written last" in err
    assert being_saved(str(run / "checkpoint-6"), settle=0) is None
    assert being_saved(str(checkpoint)) is None


def test_a_report_with_everything() -> None:
    report = EditReport(
        "0", "out", "set the rate", False, (Change("o.pt", "lr", 0.1, None),), (Rates(3, (0.1,), (0.2,)),), "LambdaLR"
    )
    shown = report.document()
    assert shown["scheduler"] == "LambdaLR"
    assert shown["changes"] == [{"path": "o.pt", "key": "lr", "old": 0.1, "new": None}]
    assert shown["rates"] == [{"step": 3, "before": [0.1], "after": [0.2]}]
    from ckpt_tools.render import text

    lines = list(text.render(report))
    assert lines[0] == "set the rate"
    assert lines[-1] == "nothing was changed (0 B in 0 files would be)"
