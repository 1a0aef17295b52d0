"""The real Trainer, resumed after a repair: it goes on as from the checkpoint that was never damaged."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", minversion="5.0")

from ckpt_tools.ops.repair import repair
from ckpt_tools.reports.repair import DONE
from tests.set_lr.trainer import TOTAL, Seen, changes, module, quiet, resumed

pytestmark = pytest.mark.slow

NAME = "checkpoint-8"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    with quiet(directory):
        module("trainer5").trainer("run", module("tiny").llama(), changes("linear", TOTAL)).train()
    return directory / "run"


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    directory = tmp_path_factory.mktemp("whole")
    shutil.copytree(run, directory / "run")
    return resumed(directory / "run" / NAME, "linear")


def _grown(path: Path) -> None:
    with open(path / "model.safetensors", "ab") as file:
        file.write(b"\0")


def _headless(path: Path) -> None:
    with zipfile.ZipFile(path / "optimizer.pt") as opened:
        end = opened.start_dir
    os.truncate(path / "optimizer.pt", end)


def _stateless(path: Path) -> None:
    (path / "trainer_state.json").unlink()


def _numpy(path: Path) -> None:
    import numpy
    import torch

    value = torch.load(path / "optimizer.pt", weights_only=True)
    for group in value["param_groups"]:
        group["lr"] = numpy.float64(group["lr"])
    torch.save(value, path / "optimizer.pt")


def _prefixed(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    save_file({f"_orig_mod.{name}": each for name, each in weights.items()}, path / "model.safetensors")


def _mixed(path: Path) -> None:
    shutil.copy2(path.parent / "checkpoint-4" / "scheduler.pt", path / "scheduler.pt")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut-trailing": _grown,
    "rebuild-zip-directory": _headless,
    "restore-state": _stateless,
    "replace-numpy-scalar": _numpy,
    "strip-prefixes": _prefixed,
    "align-step": _mixed,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_repaired_checkpoint_is_resumed_like_the_whole_one(run: Path, whole: Seen, tmp_path: Path, kind: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    checkpoint = tmp_path / "run" / NAME
    DAMAGES[kind](checkpoint)
    report = repair(str(checkpoint), write=True, unsafe=True, settle=0)
    assert kind in {each.kind for each in report.repairs if each.state == DONE}
    seen = resumed(checkpoint, "linear")
    assert _told(seen) == _told(whole)


def test_the_trainer_resumes_from_its_latest_after_quarantine(run: Path, whole: Seen, tmp_path: Path) -> None:
    from transformers.trainer_utils import get_last_checkpoint

    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-12" / "trainer_state.json").unlink()
    (tmp_path / "run" / "checkpoint-12" / "optimizer.pt").unlink()
    repair(str(tmp_path / "run"), write=True, quarantine=True, settle=0)
    latest = get_last_checkpoint(str(tmp_path / "run"))
    assert Path(latest).name == NAME
    assert _told(resumed(Path(latest), "linear")) == _told(whole)


def _told(seen: Seen) -> tuple[Any, ...]:
    return seen.used, seen.log, seen.batches, seen.first["counts"], seen.first["epoch"]
