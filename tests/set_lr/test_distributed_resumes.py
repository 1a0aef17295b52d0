"""Real resumes on two ranks, and on another number of them: what is used is what was printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from ckpt_tools.ops.set_lr import set_lr
from ckpt_tools.ops.set_step import set_step
from tests.set_lr.ranks import SAVED, STEPS, launched

Copy = Callable[..., Path]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_cosine(copy_of: Copy, tmp_path: Path, ranks: int) -> None:
    path = copy_of("dcp/plain", "out")
    report = set_lr(str(path), 1e-4)
    seen = launched(tmp_path, ranks, "dcp", str(path), "cosine", "nested")
    assert seen["used"] == [pytest.approx(row.after, rel=1e-9) for row in report.rates[:STEPS]]
    assert seen["used"][0] == [1e-4]
    assert (seen["step"], seen["epoch"], seen["counts"]) == (3, 3, [3.0])


@pytest.mark.parametrize(("name", "form"), [("lambda", "nested"), ("flat-optimizer", "flat")])
def test_a_function_of_the_step(copy_of: Copy, tmp_path: Path, name: str, form: str) -> None:
    path = copy_of(f"dcp/{name}", "out")
    report = set_lr(str(path), 1e-4)
    seen = launched(tmp_path, 2, "dcp", str(path), "lambda", form)
    assert seen["used"][0] == list(report.rates[0].after) == [1e-4]
    assert seen["used"] == [pytest.approx([1e-4 * 0.9**step], rel=1e-9) for step in range(STEPS)]


def test_another_step(copy_of: Copy, tmp_path: Path) -> None:
    path = copy_of("dcp/plain", "out")
    report = set_step(str(path), 300)
    seen = launched(tmp_path, 2, "dcp", str(path), "cosine", "nested")
    assert seen["used"] == [pytest.approx(row.after, rel=1e-9) for row in report.rates[:STEPS]]
    assert (seen["step"], seen["epoch"], seen["counts"]) == (300, 300, [300.0])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fsdp1-sharded", ("1", "SHARDED_STATE_DICT")),
        ("fsdp2-sharded", ("2", "SHARDED_STATE_DICT")),
        ("fsdp2-full", ("2", "FULL_STATE_DICT")),
        ("fsdp2-rank-bins", ("2", "SHARDED_STATE_DICT", "bins")),
    ],
)
def test_fsdp_of_accelerate(copy_of: Copy, tmp_path: Path, name: str, words: tuple[str, ...]) -> None:
    pytest.importorskip("accelerate")
    path = copy_of(f"fsdp/{name}", "out")
    set_step(str(path), 5)
    report = set_lr(str(path), 1e-4)
    seen = launched(tmp_path, 2, "accelerate", str(path), *words)
    assert seen["used"] == [pytest.approx(row.after, rel=1e-9) for row in report.rates[:STEPS]]
    assert seen["used"][0] == [1e-4]
    assert seen["epoch"] == 5
    if words[0] == "2":  # FSDP1 on a CPU leaves the state of its optimizer empty, edited or not
        assert seen["counts"] == [5.0]


def test_the_trainer_with_fsdp(tmp_path: Path) -> None:
    pytest.importorskip("transformers", minversion="5.0")
    launched(tmp_path, 2, "trainer", str(tmp_path / "run"))
    path = tmp_path / "run" / f"checkpoint-{SAVED}"
    assert (path / "optimizer_0" / ".metadata").exists()
    reference = launched(tmp_path, 2, "trainer", str(tmp_path / "first"), str(path))
    report = set_lr(str(path), 1e-4)
    assert {"optimizer_0/__1_0.distcp", "scheduler.pt"} <= {row.path for row in report.files}
    seen = launched(tmp_path, 2, "trainer", str(tmp_path / "second"), str(path))
    assert list(seen["used"]) == list(reference["used"])
    assert seen["used"][str(SAVED + 1)] == list(report.rates[0].after) == [1e-4, 1e-4]
    factor = 1e-4 / reference["used"][str(SAVED + 1)][0]
    for step, rates in reference["used"].items():
        assert seen["used"][step] == pytest.approx([rate * factor for rate in rates], rel=1e-9)
    assert seen["counts"] == [float(SAVED)]


@pytest.mark.distributed
def test_sharded_files_of_lightning(copy_of: Copy, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    (path,) = copy_of("lightning/sharded-model-parallel", "out").glob("*.ckpt")
    report = set_lr(str(path), 1e-4)
    seen = launched(tmp_path, 2, "lightning", str(path))
    assert list(report.rates[0].after) == [pytest.approx(1e-4, rel=1e-12)]
    assert [row[0] for row in seen["used"]] == pytest.approx([1e-4 * 0.9**step for step in range(STEPS)], rel=1e-9)
    set_step(str(path), 300)
    seen = launched(tmp_path, 2, "lightning", str(path))
    assert (seen["step"], seen["loops"], seen["epoch"], seen["counts"]) == (300, 300, 300, [300.0])
