"""What each command says, to the letter: standard output, standard error and exit code of whole command lines.

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

from ckpt_tools.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent / "expected"
VOLATILE = (
    (re.compile(r"[\d.,]+ (?:B|KiB|MiB) read in [\d.]+ s"), "N read in N s"),
    (re.compile(r'"bytes_read": \d+'), '"bytes_read": 0'),
    (re.compile(r'"seconds": [\d.e-]+'), '"seconds": 0'),
    (re.compile(r'"mtime_(before|after)_ns": \d+'), r'"mtime_\1_ns": 0'),
    (re.compile(r"^(torch .*>= 1\.6 +).+", re.MULTILINE), r"\1VERSION"),
    (re.compile(r"\d{4}-\d\d-\d\d([ T])\d\d:\d\d:\d\dZ"), r"YYYY-MM-DD\1hh:mm:ssZ"),
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


def grow(name: str) -> Callable[[Path], None]:
    """Put zeros behind a file."""

    def made(root: Path) -> None:
        os.truncate(root / name, (root / name).stat().st_size + 100)

    return made


def rename(old: str, new: str) -> Callable[[Path], None]:
    def made(root: Path) -> None:
        (root / old).rename(root / new)

    return made


def nothing(root: Path) -> None:
    pass


def after(*lines: str) -> Callable[[Path], None]:
    """Run other commands first."""

    def made(root: Path) -> None:
        for line in lines:
            assert main(line.split()) == 0

    return made


METADATA_LOST = rename("step-4/.metadata", "step-4/.metadata.tmp")
PARTITION_LOST = remove("global_step4/zero_pp_rank_1_mp_rank_00_optim_states.pt")

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
    "repair-lost-index": (
        "trainer5-sharded",
        remove("checkpoint-4/model.safetensors.index.json"),
        "repair out --settle 0",
    ),
    "repair-trailing-bytes": (
        "trainer5-sharded",
        grow("checkpoint-4/model-00001-of-00004.safetensors"),
        "repair out --settle 0 --write",
    ),
    "repair-lost-tokenizer": ("trainer5-full", remove("checkpoint-4/tokenizer.json"), "repair out --settle 0"),
    "repair-renamed": ("trainer5-sharded", rename("checkpoint-4", "checkpoint-40"), "repair out --settle 0"),
    "repair-nothing-helps": (
        "trainer5-resumed-well",
        remove("checkpoint-12/trainer_state.json"),
        "repair out --settle 0 --write --unsafe",
    ),
    "repair-json": (
        "trainer5-sharded",
        remove("checkpoint-4/model.safetensors.index.json"),
        "repair out --settle 0 --format json",
    ),
    "set-lr-dry-run": ("trainer5-full", nothing, "set-lr out/checkpoint-4 1e-3 -n --settle 0"),
    "set-lr": ("trainer5-full", nothing, "set-lr out/checkpoint-4 --scale 0.5 --settle 0"),
    "set-lr-json": ("trainer5-full", nothing, "set-lr out/checkpoint-4 1e-3 --settle 0 --format json"),
    "set-lr-dry-run-json": ("trainer5-full", nothing, "set-lr out/checkpoint-4 1e-3 -n --settle 0 --format json"),
    "set-lr-group": ("trainer5-full", nothing, "set-lr out/checkpoint-4 1e-3 --group 1 -n --settle 0"),
    "set-lr-plateau": ("trainer5-plateau", nothing, "set-lr out/checkpoint-4 1e-3 --settle 0"),
    "set-lr-same": ("trainer5-full", nothing, "set-lr out/checkpoint-4 0.064 --settle 0"),
    "set-lr-run": ("trainer5-full", nothing, "set-lr out 1e-3"),
    "set-lr-damaged": (
        "trainer5-full",
        cut("checkpoint-6/optimizer.pt"),
        "set-lr out/checkpoint-6 1e-3 --settle 0",
    ),
    "set-lr-being-written": (
        "trainer5-full",
        remove("checkpoint-6/trainer_state.json"),
        "set-lr out/checkpoint-6 1e-3 --settle 1e12",
    ),
    "set-lr-parameter-by-parameter": ("dcp/flat-optimizer", nothing, "set-lr out 1e-3 --settle 0"),
    "set-lr-fsdp-json": ("fsdp/fsdp2-sharded", nothing, "set-lr out 1e-3 --settle 0 --format json"),
    "set-lr-megatron": ("megatron/torch-dist", nothing, "set-lr out/iter_0000003 1e-3 --settle 0"),
    "set-step-distributed": ("dcp/run", nothing, "set-step out/step-4 1000 --rename --settle 0"),
    "set-step-dry-run": ("trainer5-full", nothing, "set-step out/checkpoint-4 3 -n --settle 0"),
    "set-step": ("trainer5-full", nothing, "set-step out/checkpoint-4 3 --settle 0"),
    "set-step-json": ("trainer5-full", nothing, "set-step out/checkpoint-4 3 --settle 0 --format json"),
    "set-step-rename": ("trainer5-full", nothing, "set-step out/checkpoint-4 5 --rename --settle 0"),
    "set-step-rename-dry-run": ("trainer5-full", nothing, "set-step out/checkpoint-4 5 --rename -n --settle 0"),
    "set-step-being-written": (
        "trainer5-full",
        remove("checkpoint-6/trainer_state.json"),
        "set-step out/checkpoint-6 5 --settle 1e12",
    ),
    "undo": ("trainer5-full", after("set-lr out/checkpoint-4 1e-3"), "undo out/checkpoint-4"),
    "undo-json": ("trainer5-full", after("set-lr out/checkpoint-4 1e-3"), "undo out/checkpoint-4 --format json"),
    "undo-dry-run": ("trainer5-full", after("set-step out/checkpoint-4 3"), "undo out/checkpoint-4 -n"),
    "undo-list": (
        "trainer5-full",
        after("set-lr out/checkpoint-4 1e-3", "set-step out/checkpoint-4 3", "undo out/checkpoint-4"),
        "undo out/checkpoint-4 --list",
    ),
    "undo-nothing": ("trainer5-full", nothing, "undo out/checkpoint-4"),
    "dcp-killed-verify": ("dcp/run", METADATA_LOST, "verify out --settle 0"),
    "dcp-killed-repair": ("dcp/run", METADATA_LOST, "repair out --settle 0"),
    "dcp-lost-file-merge": ("dcp/run", remove("step-4/__1_0.distcp"), "merge out/step-4 merged"),
    "dcp-diff": ("dcp/run", nothing, "diff out/step-2 out/step-4"),
    "dcp-info": ("dcp/run", nothing, "info out/step-4"),
    "deepspeed-lost-rank-verify": ("deepspeed/stage1-fp32", PARTITION_LOST, "verify out --settle 0"),
    "deepspeed-lost-rank-latest": ("deepspeed/stage1-fp32", PARTITION_LOST, "latest out --settle 0"),
    "deepspeed-merge": ("deepspeed/stage1-fp32", nothing, "merge out merged"),
    "deepspeed-info": ("deepspeed/stage1-fp32", nothing, "info out/global_step4"),
    "nothing-there-verify": ("ultralytics", nothing, "verify out"),
}


@pytest.fixture
def update(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-goldens"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory where the command is typed, which holds the fixture as ``out``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def prepare(name: str, place: Path) -> str:
    """Copy the fixture, damage it, and return the line to type."""
    fixture, damaged, line = CASES[name]
    shutil.copytree(REPOSITORY / "fixtures" / fixture, place / "out")
    damaged(place / "out")
    return line


@pytest.mark.parametrize("name", CASES)
def test_output_is_the_golden_one(name: str, place: Path, update: bool, capsys: pytest.CaptureFixture[str]) -> None:
    line = prepare(name, place)
    capsys.readouterr()
    code = main(line.split())
    output, remarks = capsys.readouterr()
    said = spoken(output, remarks, code)
    golden = HERE / f"{name}.json"
    if update:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert said == json.loads(golden.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["verify-cut-optimizer", "verify-no-such-path", "set-lr", "dcp-diff"])
def test_a_process_of_its_own_says_the_same(name: str, place: Path) -> None:
    line = prepare(name, place)
    words = [sys.executable, "-m", "ckpt_tools", *line.split()]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, check=False, env=environment, capture_output=True, text=True)
    golden = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    assert spoken(done.stdout, done.stderr, done.returncode) == golden


def spoken(output: str, remarks: str, code: int) -> dict[str, object]:
    return {"stdout": still(output).splitlines(), "stderr": still(remarks).splitlines(), "rc": code}


def still(text: str) -> str:
    """Return output without what differs from run to run."""
    for pattern, stand_in in VOLATILE:
        text = pattern.sub(stand_in, text)
    return text
