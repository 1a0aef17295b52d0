"""What the engine itself answers for: faults of ours are findings, each told once."""

from __future__ import annotations

import pytest

import ckpt_tools
from ckpt_tools.containers import reader
from ckpt_tools.containers.base import Content
from ckpt_tools.core.source import Source
from tests.conftest import Copy


def test_a_reader_that_fails_is_told_once_and_with_its_file(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copy_of("trainer5-full")
    read = reader.read

    def failing(source: Source, expected: tuple[str, ...] = ()) -> Content:
        if source.name.endswith("scheduler.pt"):
            raise LookupError("of ours")
        return read(source, expected)

    monkeypatch.setattr(reader, "read", failing)
    found = [each for each in ckpt_tools.verify(str(run), settle=0).all_findings() if each.code == "CK001"]
    assert sorted(each.path for each in found) == [f"checkpoint-{step}/scheduler.pt" for step in (2, 4, 6)]
    assert all("LookupError: of ours" in each.message for each in found)


def test_a_reader_that_fails_for_a_rule_about_the_run_is_told_too(
    copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckpt_tools.layouts.match import open_run
    from ckpt_tools.layouts.view import View
    from ckpt_tools.ops import engine
    from ckpt_tools.rules.base import Settings

    run = open_run(str(copy_of("trainer5-full")))
    read = reader.read

    def failing(source: Source, expected: tuple[str, ...] = ()) -> Content:
        if source.name.endswith("trainer_state.json"):
            raise LookupError("of ours")
        return read(source, expected)

    monkeypatch.setattr(reader, "read", failing)
    views = {checkpoint.path: View(checkpoint) for checkpoint in run.checkpoints}
    found = [each for each in engine.check_run(run, views, Settings(0, 0)) if each.code == "CK001"]
    paths = [each.path for each in found]
    assert "checkpoint-4/trainer_state.json" in paths
    assert len(paths) == len(set(paths))
    assert not [each for each in engine.check_run(run, views, Settings(0, 0)) if each.code == "CK001"]
