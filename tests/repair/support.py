"""What every test of a repair asks: the fix is made, its finding is gone, and undo restores every byte."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import ckpt_tools
from ckpt_tools.ops.repair import repair
from ckpt_tools.ops.undo import undo
from ckpt_tools.reports.repair import DONE, RepairReport


def snapshot(directory: Path) -> dict[str, tuple[str, int]]:
    """Return digest and time of every file, and the time of every directory, but for the tool's own."""
    found = {}
    for path in sorted([directory, *directory.rglob("*")]):
        name = str(path.relative_to(directory))
        if ".ckpt-tools" in path.parts or path.is_dir():
            continue
        found[name] = (hashlib.sha256(path.read_bytes()).hexdigest(), os.stat(path).st_mtime_ns)
    return found


def codes(path: Path) -> set[str]:
    return {finding.code for finding in ckpt_tools.verify(str(path), settle=0).all_findings()}


def states(report: RepairReport) -> dict[str, str]:
    return {each.kind: each.state for each in report.repairs}


def mended(path: Path, kind: str, code: str, *, unsafe: bool = False, edited: Path | None = None) -> RepairReport:
    """Preview, make and take back one repair, then leave it made again."""
    before = snapshot(path)
    assert code in codes(path)
    preview = repair(str(path), settle=0, unsafe=unsafe)
    assert preview.exit_code == 1
    assert not preview.applied
    assert snapshot(path) == before
    assert not list(path.rglob(".ckpt-tools"))
    made = repair(str(path), settle=0, unsafe=unsafe, write=True)
    done = [each for each in made.repairs if each.state == DONE]
    assert kind in {each.kind for each in done}, made.repairs
    assert code not in codes(path)
    for each in reversed(done):
        undo(str(edited or (path if each.checkpoint == "." else path / each.checkpoint)), settle=0)
    assert snapshot(path) == before
    return repair(str(path), settle=0, unsafe=unsafe, write=True)
