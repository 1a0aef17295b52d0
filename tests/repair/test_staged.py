"""New files that wait until they are proven: what they leave when they are taken, taken back, or refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tools.ops.repair import repair
from ckpt_tools.ops.undo import undo
from ckpt_tools.reports.repair import DONE, REFUSED

Copy = Callable[..., Path]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 300)
    os.utime(path.parent, ns=(10**18, 10**18))


@pytest.mark.parametrize(
    ("name", "file", "edited"),
    [("lightning/cosine", "last.ckpt", "last.ckpt"), ("trainer5-full", "checkpoint-6/scheduler.pt", "checkpoint-6")],
)
def test_the_directory_keeps_its_time(copy_of: Copy, name: str, file: str, edited: str) -> None:
    """The rotation of a trainer sorts checkpoints by it."""
    run = copy_of(name)
    cut(run / file)
    damaged = (run / file).read_bytes()
    report = repair(str(run), write=True, settle=0)
    assert [each.state for each in report.repairs if each.path == file] == [DONE]
    assert (run / file).parent.stat().st_mtime_ns == 10**18
    undo(str(run / edited), settle=0)
    assert (run / file).read_bytes() == damaged
    assert (run / file).parent.stat().st_mtime_ns == 10**18


def test_one_that_is_refused_leaves_nothing(copy_of: Copy) -> None:
    pytest.importorskip("torch")
    run = copy_of("megatron/killed-in-finalize")
    file = run / "iter_0000003" / "common.pt"
    cut(file)
    report = repair(str(run), write=True, settle=0)
    (tried,) = (each for each in report.repairs if each.path == "iter_0000003/common.pt")
    assert tried.state == REFUSED
    assert "weights_only=True refuses argparse.Namespace" in str(tried.reason)
    assert file.parent.stat().st_mtime_ns == 10**18
    assert not list(run.rglob(".ckpt-tools"))
