"""What each command says, to the letter: standard output, standard error and exit code of real command lines.

Run with ``--update-goldens`` to write what is printed today, and read the difference before committing it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent / "expected"
VOLATILE = (
    (re.compile(r"[\d.,]+ (?:B|KiB|MiB) read in [\d.]+ s"), "N read in N s"),
    (re.compile(r'"bytes_read": \d+'), '"bytes_read": 0'),
    (re.compile(r'"seconds": [\d.e-]+'), '"seconds": 0'),
)


def cut(name: str) -> Callable[[Path], None]:
    """Halve a file."""

    def made(root: Path) -> None:
        os.truncate(root / name, (root / name).stat().st_size // 2)

    return made


def remove(name: str) -> Callable[[Path], None]:
    def made(root: Path) -> None:
        (root / name).unlink()

    return made


def nothing(root: Path) -> None:
    pass


CASES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "verify-healthy": ("trainer5-full", nothing, "verify out"),
    "verify-cut-optimizer": ("trainer5-full", cut("checkpoint-6/optimizer.pt"), "verify out --settle 0"),
    "verify-cut-optimizer-json": (
        "trainer5-full",
        cut("checkpoint-6/optimizer.pt"),
        "verify out --settle 0 --format json",
    ),
    "verify-cut-optimizer-github": (
        "trainer5-full",
        cut("checkpoint-6/optimizer.pt"),
        "verify out --settle 0 --format github",
    ),
    "verify-quiet": ("trainer5-full", cut("checkpoint-6/optimizer.pt"), "verify out --settle 0 --quiet"),
    "verify-interrupted": ("trainer5-full", remove("checkpoint-6/trainer_state.json"), "verify out --settle 0"),
    "verify-without-scheduler": ("trainer5-lora", remove("checkpoint-4/scheduler.pt"), "verify out/checkpoint-4"),
    "verify-missing-shard": (
        "trainer5-sharded",
        lambda root: next(iter(sorted((root / "checkpoint-4").glob("model-*.safetensors")))).unlink(),
        "verify out/checkpoint-4 --for inference",
    ),
    "verify-no-such-path": ("trainer5-full", nothing, "verify out nowhere"),
    "latest-falls-back": ("trainer5-full", cut("checkpoint-6/optimizer.pt"), "latest out --settle 0"),
    "latest-json": ("trainer5-full", cut("checkpoint-6/optimizer.pt"), "latest out --settle 0 --format json"),
    "explain-code": ("trainer5-full", nothing, "explain CK203"),
}


@pytest.fixture
def update(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-goldens"))


@pytest.mark.parametrize("name", CASES)
def test_output_is_the_golden_one(name: str, tmp_path: Path, update: bool) -> None:
    fixture, damaged, line = CASES[name]
    shutil.copytree(REPOSITORY / "fixtures" / fixture, tmp_path / "out")
    damaged(tmp_path / "out")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-m", "ckpt_tools", *line.split()],
        check=False,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    said = {"stdout": still(done.stdout).splitlines(), "stderr": still(done.stderr).splitlines(), "rc": done.returncode}
    golden = HERE / f"{name}.json"
    if update:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert said == json.loads(golden.read_text(encoding="utf-8"))


def still(text: str) -> str:
    """Return output without what differs from run to run."""
    for pattern, stand_in in VOLATILE:
        text = pattern.sub(stand_in, text)
    return text
