"""What DeepSpeed goes on with after an edit: rates and steps of real resumes on two ranks."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.ops.set_lr import set_lr
from ckpt_tools.ops.set_step import set_step
from tests.conftest import FIXTURES
from tests.set_lr.test_deepspeed import BUILT_IN
from tests.zero.test_zero_resume import LOADER, SETTINGS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed"),
]
RUNS = Path(__file__).parent / "zero_runs.py"
LAMBDA = 0.9


def seen(place: Path, *what: str, ranks: int = 2) -> Any:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*launch, str(RUNS), str(place), *what], check=False, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((place / "answers.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What was seen in one process group, by stage and scheduler: every resume was launched with another rate."""
    return seen(tmp_path_factory.mktemp("engine"), "engine")


@pytest.mark.parametrize("case", ["1-none", "3-none", "0-lambda", "1-lambda", "3-lambda"])
def test_the_rates_are_those_that_were_told(engine: Any, case: str) -> None:
    own = engine[case]
    before, after = own["told"]["before"], own["told"]["after"]
    assert after[0] == [0.005, 0.005]
    for rates, told in ((own["plain"]["rates"], before), (own["rated"]["rates"], after)):
        known = min(3, len(told))
        assert rates[:known] == [pytest.approx(each, rel=1e-12) for each in told[:known]]
        falls = LAMBDA if case.endswith("lambda") else 1.0
        assert rates == [[pytest.approx(told[0][0] * falls**number, rel=1e-12)] * 2 for number in range(3)]
    assert own["rated"]["counts"] == own["plain"]["counts"] == [2.0]


@pytest.mark.parametrize("case", ["1-none", "3-none", "0-lambda", "1-lambda", "3-lambda"])
def test_every_rank_moves_its_share_by_the_new_rate(engine: Any, case: str) -> None:
    own = engine[case]
    factor = own["told"]["after"][0][0] / own["told"]["before"][0][0]
    ways = [(new, old) for new, old in zip(own["rated"]["way"], own["plain"]["way"], strict=True) if abs(old) > 1e-5]
    assert len(ways) > 50
    assert all(new / old == pytest.approx(factor, rel=2e-2) for new, old in ways)


@pytest.mark.parametrize("case", ["1-warmup", "3-warmup"])
def test_a_rate_under_deepspeeds_own_scheduler_would_be_lost(engine: Any, case: str) -> None:
    """Why that is refused: changed by hand in every file, it lasts one step."""
    plain, rated = engine[case]["plain"]["rates"], engine[case]["rated"]["rates"]
    assert rated[0] == [0.005, 0.005]
    assert rated[0] != plain[0]
    assert rated[1:] == plain[1:]


@pytest.mark.parametrize("case", ["0-lambda", "1-none", "1-lambda", "1-warmup", "3-none", "3-lambda", "3-warmup"])
def test_a_tag_of_another_step_is_resumed_as_that(engine: Any, case: str) -> None:
    moved = engine[case]["moved"]
    assert (moved["loaded"], moved["steps"], moved["samples"], moved["counts"]) == ("global_step7", 7, 56, [7.0])
    assert moved.get("last_epoch", 7) == 7
    assert moved.get("last_batch_iteration", 6) == 6
    if case.endswith("lambda"):
        assert moved["rates"][1] == [pytest.approx(0.02 * LAMBDA**8, rel=1e-12)] * 2


def test_universal_checkpoints(tmp_path: Path) -> None:
    for case, own in seen(tmp_path, "universal").items():
        rated, moved = own["rated"], own["moved"]
        assert own["told"]["after"][0] == [0.005, 0.005]
        assert rated["rates"] == [[pytest.approx(0.005 * LAMBDA**number, rel=1e-12)] * 2 for number in range(3)], case
        assert (rated["steps"], rated["counts"], rated["last_epoch"]) == (4, [4.0], 4)
        assert (moved["steps"], moved["counts"], moved["last_epoch"], moved["samples"]) == (7, [7.0], 7, 56)
        assert moved["rates"][1] == [pytest.approx(0.02 * LAMBDA**8, rel=1e-12)] * 2


@pytest.mark.parametrize(
    ("ranks", "stage", "warmup"), [(2, "1", "1"), (2, "2", "5"), (1, "3", "1"), (2, "3", "1"), (2, "3", "5")]
)
def test_the_trainer_with_deepspeed(tmp_path: Path, ranks: int, stage: str, warmup: str) -> None:
    own = seen(tmp_path, "trainer", stage, warmup, ranks=ranks)
    steps = [int(step) for step in own["rated"]["used"]]
    assert steps == [3, 4, 5, 6, 7, 8]
    told = dict(zip(steps, own["told"]["after"], strict=False))
    assert len(told) >= 3
    assert told[3] == [0.005, 0.005]
    for step, rates in told.items():
        assert own["rated"]["used"][str(step)] == pytest.approx(rates, rel=1e-12)
        assert own["rated"]["log"][str(step)] == pytest.approx(rates[0], rel=1e-12)
    for step, rates in zip(steps, own["told"]["before"], strict=False):
        assert own["plain"]["used"][str(step)] == pytest.approx(rates, rel=1e-12)
    assert own["rated"]["steps"] == own["plain"]["steps"] == 8
    moved = own["moved"]
    assert [int(step) for step in moved["used"]] == [5, 6, 7, 8]
    assert moved["steps"] == moved["end"] == 8
    for step, rates in zip((5, 6, 7, 8), own["shifted"]["after"], strict=False):
        assert moved["used"][str(step)] == pytest.approx(rates, rel=1e-12)
        assert moved["used"][str(step)] == own["plain"]["used"][str(step)]


def test_edited_tags_of_all_kinds_are_resumed(tmp_path: Path) -> None:

    cases = []
    for name, (ranks, kind, settings) in SETTINGS.items():
        run = tmp_path / name
        shutil.copytree(FIXTURES / "deepspeed" / name, run)
        newest = max(run.glob("global_step*"))
        if name not in BUILT_IN:
            set_lr(str(newest), 0.001)
        set_step(str(newest), 9, rename=True)
        cases.append({"place": str(run / "global_step9"), "ranks": ranks, "kind": kind, "settings": settings})
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    command = [sys.executable, str(LOADER), str(tmp_path / "cases.json"), str(tmp_path / "answers.json")]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    answers = json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))
    assert dict(zip(SETTINGS, answers, strict=True)) == dict.fromkeys(SETTINGS, "")
