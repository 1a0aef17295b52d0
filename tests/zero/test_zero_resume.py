"""The rules against the real DeepSpeed: what it refuses is an error, and errors it accepts are listed with a reason."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_tools.model.findings import Severity
from tests.conftest import FIXTURES
from tests.rules.damage import nothing
from tests.rules.judge import codes, judge
from tests.zero.rows import FAMILIES, READY, ROWS, Row

pytestmark = [
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed"),
]
LOADER = Path(__file__).parent / "loader.py"
SETTINGS = {
    "stage0": (2, "network", [0, False, "lambda", False]),
    "stage1-fp32": (2, "network", [1, False, "lambda", False]),
    "stage1-4ranks": (4, "network", [1, False, "lambda", False]),
    "stage2-fp32": (2, "network", [2, False, "warmup", True]),
    "stage3-fp32": (2, "network", [3, False, "lambda", False]),
    "stage1-bf16": (2, "network", [1, True, "none", False]),
    "stage3-bf16": (2, "network", [3, True, "warmup", False]),
    "pipeline-stage0": (2, "pipeline", [0, False]),
    "pipeline-bf16-stage1": (2, "pipeline", [1, True]),
    "moe-stage0": (2, "experts", [0, False]),
    "moe-stage2-bf16": (2, "experts", [2, True]),
}
"""Ranks, what the loader trains, and its settings: stage, bfloat16, scheduler and tied weights."""

MIXED = "each rank reads its own file, and nobody compares them: the result is wrong weights or moments"
STRANGE = "every rank loads what lies under its own name: the weights or moments of other parameters"
ACCEPTED = {
    "a partition of another tag": MIXED,
    "a partition of stage 3 of another tag": MIXED,
    "model states of a rank of another tag": MIXED,
    "model states and partition of a rank of another tag": MIXED,
    "another schedule on a rank": MIXED,
    "partitions swapped": STRANGE,
    "partitions of four ranks swapped": STRANGE,
    "partitions of stage 2 swapped": STRANGE,
    "partitions of stage 3 swapped": STRANGE,
    "a partition of stage 3 over another": STRANGE,
    "partitions without a name swapped": STRANGE,
    "partitions of experts swapped": STRANGE,
    "the optimizer of experts swapped": STRANGE,
    "model states with frozen slices swapped": STRANGE,
    "a rate edited on one rank": MIXED,
    "a place that does not add up": "the mappings are for conversions alone",
    "too many elements": "the shapes are for conversions alone, and zero_to_fp32.py stops",
    "too few elements": "what is missing becomes zeros",
}
"""Damages that are errors here, and that DeepSpeed resumes from without a word."""
UNSEEN = {"a layer without parameters missing": "a function as a layer has no file either: a gap is a note"}
"""Damages that DeepSpeed refuses, and that nothing in the files tells."""


def _tried(rows: list[Row], place: Path) -> list[tuple[Row, str, set[str]]]:
    """Return what DeepSpeed said to each damage, empty where it accepts it, and the errors that rules find."""
    cases, errors = [], []
    for number, row in enumerate(rows):
        run, _, tag = row.fixture.partition("/")
        copied = place / str(number)
        shutil.copytree(FIXTURES / "deepspeed" / run, copied)
        row.damage(copied / tag)
        moved = copied / tag if (copied / tag).exists() else copied / "global_step40"
        ranks, kind, settings = SETTINGS[run]
        cases.append({"place": str(moved), "ranks": ranks, "kind": kind, "settings": settings})
        errors.append(codes(judge(moved, families=FAMILIES), Severity.ERROR))
    (place / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    command = [sys.executable, str(LOADER), str(place / "cases.json"), str(place / "answers.json")]
    done = subprocess.run(
        command, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads((place / "answers.json").read_text(encoding="utf-8"))
    return list(zip(rows, answers, errors, strict=True))


@pytest.mark.parametrize("fixture", SETTINGS)
def test_what_deepspeed_refuses_is_an_error(fixture: str, tmp_path: Path) -> None:
    damaged = [row for row in ROWS if row.fixture.startswith(f"{fixture}/")]
    rows = [Row("nothing", damaged[0].fixture, nothing, set(), READY), *damaged]
    tried = _tried(rows, tmp_path)
    assert tried[0][1] == "", "a healthy tag is resumed"
    missed = [(row.name, said[:200]) for row, said, errors in tried if said and not errors and row.name not in UNSEEN]
    assert not missed
    surprising = [(row.name, errors) for row, said, errors in tried if errors and not said and row.name not in ACCEPTED]
    assert not surprising
