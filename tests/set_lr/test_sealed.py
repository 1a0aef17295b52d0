"""The manifest of a sealed checkpoint follows its edits, and comes back with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.ops.seal import seal
from ckpt_tools.ops.set_lr import set_lr
from ckpt_tools.ops.set_step import set_step
from ckpt_tools.ops.undo import undo
from ckpt_tools.ops.verify import verify

Copy = Callable[..., Path]


def complaints(path: Path) -> list[Any]:
    (report,) = verify(str(path), deep=True).checkpoints
    return [finding for finding in report.findings if finding.code.startswith("CK41")]


@pytest.mark.parametrize("name", ["trainer5-full", "trainer5-adafactor-cosine"])
def test_a_sealed_checkpoint_stays_one(copy_of: Copy, name: str) -> None:
    run = copy_of(name)
    path = max(run.glob("checkpoint-*"))
    seal(str(path))
    manifest = path / ".ckpt-tools" / "manifest.json"
    before = manifest.read_bytes()
    report = set_lr(str(path), peak=1e-3)
    assert any("manifest" in note for note in report.notes)
    assert complaints(path) == []
    set_step(str(path), 1000)
    assert complaints(path) == []
    for _ in range(2):
        undo(str(path))
    assert manifest.read_bytes() == before
    assert complaints(path) == []
