"""The documents' own commands and examples are run, so that none of them is a promise."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ckpt_tools

REPOSITORY = Path(__file__).resolve().parents[2]
TIMES = re.compile(r"[\d.]+ (?:B|KiB|MiB) read in [\d.]+ s")


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a documented command line, `ckpt` being this very package."""
    words = command.split()
    assert words[0].endswith("ckpt"), command
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-m", "ckpt_tools", *words[1:]],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_examples_of_the_library_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    page = str(REPOSITORY / "docs" / "library.md")
    for failures, tried in (doctest.testfile(page, module_relative=False), doctest.testmod(ckpt_tools)):
        assert tried > 0
        assert failures == 0


def test_the_readme_shows_what_its_first_command_prints() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    command = re.search(r"&& \.venv/bin/(ckpt verify \S+)\n", text)
    assert command is not None
    printed = run(command[1], REPOSITORY)
    assert printed.returncode == 0
    assert TIMES.sub("TIMES", printed.stdout.strip()) in TIMES.sub("TIMES", text)


def test_the_catalogue_page_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, "docs/make_rules.py", "--check"],
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert made.returncode == 0, "run: python docs/make_rules.py"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A repository with a `models/` directory, as the CI job of docs/ci.md expects it."""
    shutil.copytree(REPOSITORY / "fixtures" / "hf-model" / "tiny-llama", tmp_path / "models")
    return tmp_path


def documented(pattern: str) -> str:
    found = re.search(pattern, (REPOSITORY / "docs" / "ci.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_job_passes_on_a_healthy_model_and_annotates_a_damaged_one(published: Path) -> None:
    command = documented(r"^ +- run: (ckpt .*)$")
    assert run(command, published).returncode == 0
    weights = published / "models" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    printed = run(command, published)
    assert printed.returncode == 1
    assert "::error file=models/model.safetensors,title=CK203 file-cut-short::" in printed.stdout


def test_the_hook_passes_on_healthy_files_and_stops_damaged_ones(published: Path) -> None:
    command = documented(r"^ +entry: (ckpt .*)$") + " models/model.safetensors"
    healthy = run(command, published)
    assert (healthy.returncode, healthy.stdout) == (0, "")
    os.truncate(published / "models" / "model.safetensors", 0)
    damaged = run(command, published)
    assert damaged.returncode == 1
    assert "CK201" in damaged.stdout
