"""Nothing is found in the bytes of any healthy checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.model.findings import Severity
from tests.conftest import ENTRIES, Copy
from tests.deep.support import codes, skipped, verify

HEALTHY = [entry["path"] for entry in ENTRIES if entry["healthy"]]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_checkpoint_stays_clean(name: str, fixtures_dir: Path) -> None:
    report = verify(fixtures_dir / name)
    assert codes(report) == set()
    assert not [each for each in report.all_findings() if each.severity >= Severity.ERROR]
    assert {checkpoint.depth for checkpoint in report.checkpoints} == {"deep"}
    assert "tensor bytes were not read" not in skipped(report)
    assert not report.unreadable


@pytest.mark.parametrize("name", ["trainer5-full", "plain/odd", "trainer4-bin"])
def test_only_what_deep_adds_differs_from_a_structural_look(name: str, fixtures_dir: Path) -> None:
    import ckpt_tools

    def rest(report: Any) -> list[tuple[str, str]]:
        return [(each.code, each.path) for each in report.all_findings() if not each.code.startswith("CK4")]

    shallow = ckpt_tools.verify(str(fixtures_dir / name), settle=0)
    assert rest(verify(fixtures_dir / name)) == rest(shallow)
    assert "tensor bytes were not read" in skipped(shallow)


def test_safetensors_are_said_to_hold_no_checksum(fixtures_dir: Path) -> None:
    report = verify(fixtures_dir / "trainer5-full")
    assert "model.safetensors: none inside (safetensors)" in skipped(report)
    assert "optimizer.pt" not in skipped(report)


def test_a_run_of_one_thread_says_the_same(fixtures_dir: Path) -> None:
    def said(jobs: int) -> list[tuple[Any, ...]]:
        report = verify(fixtures_dir / "trainer5-full", jobs=jobs)
        return [(each.code, each.path, each.message) for each in report.all_findings()]

    assert said(1) == said(4)


def test_a_copy_is_not_touched(copy_of: Copy) -> None:
    run = copy_of("trainer5-lora")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    verify(run)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
