"""``RUN@STEP``: one meaning in every command that takes a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckpt_tools
from ckpt_tools.core.errors import NothingFoundError
from ckpt_tools.layouts.view import View
from ckpt_tools.ops.numbered import named

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.mark.parametrize(
    ("run", "step", "place"),
    [
        ("trainer5-full", 2, "checkpoint-2"),
        ("tensorflow/manager", 2, "ckpt-2"),  # the number of the name goes first ...
        ("tensorflow/manager", 6, "ckpt-3"),  # ... and what it states second
        ("mmengine", 3, "epoch_3.pth"),
        ("mmengine", 12, "epoch_3.pth"),
        ("lightning/run", 8, "epoch=1-step=8.ckpt"),
        ("torchtitan", 4, "checkpoint/step-4"),
    ],
)
def test_the_number_of_a_name_or_the_step_that_is_stated(run: str, step: int, place: str) -> None:
    assert named(f"{FIXTURES / run}@{step}") == str(FIXTURES / run / place)


def test_names_are_enough_where_one_has_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(View, "step", property(lambda view: pytest.fail("a checkpoint was opened")))
    assert named(f"{FIXTURES / 'mmengine'}@2").endswith("epoch_2.pth")


def test_the_steps_that_there_are() -> None:
    with pytest.raises(NothingFoundError, match="no checkpoint of step 7") as caught:
        named(f"{FIXTURES / 'mmengine'}@7")
    assert caught.value.hint == "there are: 8, 12"


def test_a_path_that_has_such_a_name_is_meant_itself(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "mmengine", tmp_path / "run@2")
    shutil.copytree(FIXTURES / "mmengine", tmp_path / "run")
    assert named(f"{tmp_path / 'run@2'}") == str(tmp_path / "run@2")
    assert named(str(tmp_path / "nothing")) == str(tmp_path / "nothing")


COMMANDS: dict[str, Callable[[str], Any]] = {
    "verify": lambda path: [(each.path, each.findings) for each in ckpt_tools.verify(path).checkpoints],
    "info": lambda path: ckpt_tools.info(path).document(),
    "checksum": lambda path: ckpt_tools.checksum(path).rows,
    "repair": lambda path: ckpt_tools.repair(path).document(),
    "set-lr": lambda path: ckpt_tools.set_lr(path, 1e-4, dry_run=True, settle=0).document(),
    "set-step": lambda path: ckpt_tools.set_step(path, 10, dry_run=True, settle=0).document(),
    "undo": lambda path: ckpt_tools.undo(path, list_only=True, settle=0).edits,
    "seal": lambda path: [each.path for each in ckpt_tools.seal(path).checkpoints],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_takes_a_checkpoint(command: str, tmp_path: Path) -> None:
    run = shutil.copytree(FIXTURES / "mmengine", tmp_path / "run")
    ckpt_tools.set_lr(str(run / "epoch_3.pth"), 1e-3, settle=0)
    by_path = COMMANDS[command](str(run / "epoch_3.pth"))
    assert COMMANDS[command](f"{run}@12") == by_path


def test_a_value_inside_of_it() -> None:
    found = ckpt_tools.info(f"{FIXTURES / 'mmengine'}@12:meta.iter").document()
    assert found["root"].endswith("epoch_3.pth")
    assert found["values"] == [{"key": "meta.iter", "value": 12}]
