"""``ckpt diff`` as it is typed: exit codes, formats, options, what is imported, and its words to the letter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.cli import main
from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.source import FileSource
from tests.diff.pairs import safetensors, weights

REPOSITORY = Path(__file__).resolve().parents[2]
EXPECTED = Path(__file__).parent / "expected"
RUN = "fixtures/trainer5-full"

Copy = Callable[..., Path]


def ckpt(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-m", "ckpt_tools", "diff", *words],
        check=False, cwd=REPOSITORY, env=environment, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip


def document(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["diff", "--format", "json", *words])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((f"{RUN}/checkpoint-2", f"{RUN}/checkpoint-2"), 0),
        ((f"{RUN}@2", f"{RUN}@4"), 1),
        (("--no-tensors", f"{RUN}@2", f"{RUN}@4"), 1),
        (("--no-tensors", f"{RUN}@2", f"{RUN}@2"), 0),
        ((f"{RUN}@2", "nowhere"), 4),
        (("nowhere", f"{RUN}@2"), 4),
        ((f"{RUN}@3", f"{RUN}@2"), 4),
        (("docs", f"{RUN}@2"), 4),
        ((f"{RUN}@2",), 2),
        (("--tolerance", "-1", RUN, RUN), 2),
        (("--tolerance", "nan", RUN, RUN), 2),
        (("--map", "x", RUN, RUN), 2),
        (("--by", "size", RUN, RUN), 2),
        (("--top", "0", RUN, RUN), 2),
        (("--format", "sarif", RUN, RUN), 2),
    ],
)
def test_exit_codes(words: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(["diff", *words]) == code


def test_unreadable_files_are_trouble(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    honest = FileSource.read_into
    broken = "checkpoint-4"

    def failing(self: FileSource, offset: int, buffer: memoryview) -> None:
        if self.name == "model.safetensors" and offset > 4000:
            raise SourceError(self.name, "Input/output error", errno=5)
        honest(self, offset, buffer)

    monkeypatch.setattr(FileSource, "read_into", failing)
    code, found = document(capsys, f"{RUN}@2", f"{RUN}/{broken}")
    assert code == 3
    assert found["trouble"]
    assert found["tensors"]["unread"]
    assert all("Input/output error" in row["reason"] for row in found["tensors"]["unread"])


def test_the_document(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    code, found = document(capsys, f"{RUN}@2", f"{RUN}@4", "--top", "3", "--by", "layer")
    assert code == 1
    assert found["schema"] == "ckpt-tools/diff/1"
    assert (found["equal"], found["left"], found["right"]) == (False, f"{RUN}/checkpoint-2", f"{RUN}/checkpoint-4")
    assert found["step"] == [2, 4]
    assert {"key": "global_step", "left": 2, "right": 4} in found["sections"]["trainer_state"]
    assert found["sections"]["config"] == []
    tensors = found["tensors"]
    assert (tensors["same"], tensors["changed"], tensors["only_left"], tensors["only_right"]) == (0, 21, [], [])
    assert len(tensors["rows"]) == 3
    assert {"name", "part", "dtype", "shape", "max_abs", "rel_l2", "cosine"} <= set(tensors["rows"][0])
    assert tensors["rows"][0]["part"] == "weights"
    assert [row["rel_l2"] for row in tensors["rows"]] == sorted(
        (row["rel_l2"] for row in tensors["rows"]), reverse=True
    )
    assert {group["name"] for group in tensors["groups"]} >= {"model.layers.0", "lm_head"}
    assert found["optimizer_tensors"]["changed"] == 42


def test_equal_documents_are_short(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    code, found = document(capsys, f"{RUN}@2", f"{RUN}@2")
    assert (code, found["equal"], found["tensors"]["same"]) == (0, True, 21)
    assert not any(found["sections"].values())


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(["diff", "-q", f"{RUN}@2", f"{RUN}@4"]) == 1
    assert capsys.readouterr().out == ""


def test_formats(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    for form, beginning in (("markdown", "**21 of 21 weights changed**"), ("html", "<!DOCTYPE html>"), ("json", "{")):
        assert main(["diff", "--format", form, f"{RUN}@2", f"{RUN}@4"]) == 1
        assert capsys.readouterr().out.startswith(beginning)


PROGRAM = """
import sys
from ckpt_tools.cli import main
main(["diff", *sys.argv[1:]])
print(*sorted(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (
            ("--no-tensors", f"{RUN}@2", f"{RUN}@4"),
            {"numpy", "deepdiff", "ml_dtypes", "torch", "safetensors", "blake3"},
        ),
        ((f"{RUN}@2", f"{RUN}@2"), {"numpy", "deepdiff", "ml_dtypes", "torch", "safetensors"}),
        ((f"{RUN}@2", f"{RUN}@4"), {"deepdiff", "torch", "safetensors"}),
    ],
    ids=["no-tensors", "equal", "different"],
)
def test_what_is_not_needed_is_not_imported(words: tuple[str, ...], refused: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert refused & set(done.stderr.splitlines()[-1].split()) == set()


def test_warnings_of_numpy_are_not_the_users(tmp_path: Path) -> None:
    import numpy as np

    values = np.array([3e38, -3e38, np.nan, np.inf, 1e-40] * 1000, np.float32)
    left = safetensors(tmp_path / "a.safetensors", {"t": values})
    right = safetensors(tmp_path / "b.safetensors", {"t": -values})
    done = ckpt(str(left), str(right))
    assert (done.returncode, done.stderr) == (1, "")


def test_numbers_that_json_has_no_word_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    left = safetensors(tmp_path / "a.safetensors", {"t": np.zeros(4, np.float32)})
    right = safetensors(tmp_path / "b.safetensors", {"t": np.array([0, 1, np.nan, np.inf], np.float32)})
    _, found = document(capsys, str(left), str(right))
    (row,) = found["tensors"]["rows"]
    assert (row["max_abs"], row["rel_l2"], row["cosine"], row["nan"]) == ("Infinity", "Infinity", None, [0, 1])


# Goldens -----------------------------------------------------------------------------------------------------

GOLDENS: dict[str, tuple[str, str]] = {
    "run-text": ("trainer5-full", "out@2 out@4"),
    "run-no-tensors-text": ("trainer5-full", "--no-tensors out@2 out@4"),
    "lora-markdown": ("trainer5-lora", "--format markdown out@2 out@4"),
    "lora-json": ("trainer5-lora", "--format json out@2 out@4"),
    "frozen-by-layer-text": ("trainer5-frozen", "--by layer --top 5 out@2 out"),
    "equal-text": ("trainer5-full", "out@2 out@2"),
    "no-such-step-text": ("trainer5-full", "out@2 out@3"),
}


def rounded(value: Any) -> Any:
    """Cut floats: the last digits are the processor's."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", GOLDENS)
def test_the_words(
    name: str,
    tmp_path: Path,
    fixtures_dir: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fixture, line = GOLDENS[name]
    shutil.copytree(fixtures_dir / fixture, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    code = main(["diff", *line.split()])
    out, remarks = capsys.readouterr()
    if name.endswith("json"):
        out = json.dumps(rounded(json.loads(out)), indent=1) + "\n"
    text = f"$ ckpt diff {line}\n{out}--- stderr\n{remarks}--- exit code {code}\n"
    golden = EXPECTED / f"{name}.txt"
    if request.config.getoption("--update-goldens"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_case_87_from_the_command_line(copy_of: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_of("trainer5-full", "out")
    shutil.copy(run / "checkpoint-2" / "model.safetensors", run / "checkpoint-4" / "model.safetensors")
    assert main(["diff", f"{run}@2", f"{run}@4"]) == 1
    assert capsys.readouterr().out.splitlines()[0] == "no weight changed: 21 tensors with the same values"


def test_values_cannot_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = weights()
    left = safetensors(tmp_path / "a.safetensors", {**values, "\x1b[2Jname": values["model.embed_tokens.weight"]})
    right = safetensors(tmp_path / "b.safetensors", values)
    assert main(["diff", str(left), str(right)]) == 1
    assert "\x1b" not in capsys.readouterr().out
