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


def sessions(text: str) -> list[tuple[str, str]]:
    """The commands after a `$ ` in a page's blocks, each with what the page says that it prints."""
    blocks = re.findall(r"^```\n(\$ ckpt .*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        (line, said.strip()) for block in blocks for line, said in re.findall(r"\$ (.*)\n((?:(?!\$ ).*\n)*)", block)
    ]


def test_the_readme_shows_what_damaged_ones_look_like(tmp_path: Path) -> None:
    trainer, zero = tmp_path / "trainer" / "out", tmp_path / "zero" / "out"
    shutil.copytree(REPOSITORY / "fixtures" / "trainer5-full", trainer)
    os.truncate(trainer / "checkpoint-6" / "optimizer.pt", 3_000)
    shutil.copytree(REPOSITORY / "fixtures" / "deepspeed" / "stage1-fp32", zero)
    (zero / "global_step4" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    shown = sessions((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert [line for line, _ in shown] == [
        "ckpt verify out",
        "ckpt verify out",
        "ckpt latest out",
        "ckpt merge out merged",
    ]
    for folder, (line, said) in zip((trainer, zero, zero, zero), shown, strict=True):
        quiet = "" if line.startswith("ckpt merge") else " --settle 0"  # the copy was made a moment ago
        printed = run(line + quiet, folder.parent)
        assert TIMES.sub("TIMES", (printed.stderr + printed.stdout).strip()) == TIMES.sub("TIMES", said)


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


def stand_in(folder: Path, name: str, line: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)


GUARDED = [
    ("good", "checkpoint-6", 0, "python train.py --output_dir RUN --resume_from_checkpoint RUN/checkpoint-6"),
    ("one broken", "checkpoint-4", 0, "python train.py --output_dir RUN --resume_from_checkpoint RUN/checkpoint-4"),
    ("all broken", None, 1, None),
    ("a first start", "", 0, "python train.py --output_dir RUN"),
]


@pytest.mark.parametrize(("newest", "code", "started"), [row[1:] for row in GUARDED], ids=[row[0] for row in GUARDED])
def test_the_job_script_resumes_from_what_is_good_and_never_starts_over(
    newest: str | None, code: int, started: str | None, tmp_path: Path
) -> None:
    job = tmp_path / "job.sh"
    job.write_text(documented(r"```bash\n((?:#!/bin/bash\n)(?s:.*?))```"), encoding="utf-8")
    place = tmp_path / "RUN"
    place.mkdir()
    for name in ("checkpoint-4", "checkpoint-6") if newest != "" else ():
        shutil.copytree(REPOSITORY / "fixtures" / "trainer5-full" / name, place / name)
        if newest is None or name > newest:
            os.truncate(place / name / "optimizer.pt", 100)
    stand_in(tmp_path, "ckpt", f'PYTHONPATH={REPOSITORY} exec {sys.executable} -m ckpt_tools "$@"')
    stand_in(tmp_path, "srun", 'echo "$@" > started')
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RUN": "RUN"}
    done = subprocess.run(["bash", job], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    said = (tmp_path / "started").read_text().strip() if (tmp_path / "started").exists() else None
    assert said == started
    assert ("cut short" in done.stderr) == (newest in (None, "checkpoint-4"))
