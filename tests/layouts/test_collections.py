"""Files beside each other that are checkpoints: whose they are, and names that mislead."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.core.errors import NothingFoundError
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.findings import Severity
from tests.conftest import FIXTURES

PLAIN = FIXTURES / "plain/epochs/epoch_1.pt"
BUNDLES = FIXTURES / "tensorflow/manager"


def _put(home: Path, *names: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy2(PLAIN, home / name)


def _layouts(path: Path) -> dict[str, str]:
    return {checkpoint.path: checkpoint.layout for checkpoint in open_run(path).checkpoints}


@pytest.mark.parametrize(
    ("fixture", "layout", "steps"),
    [
        ("tensorflow/manager", "tensorflow", {"ckpt-2": 4, "ckpt-3": 6}),
        ("flax/legacy", "flax", {"checkpoint_2": 2, "checkpoint_4": 4}),
        ("flax/checkpoint", "orbax", {"checkpoint_2": 2, "checkpoint_4": 4}),
        ("orbax/manager", "orbax", {"4": 4, "10": 10}),
        ("orbax/prefix", "orbax", {"ckpt_000003": 3}),
        ("mmengine", "mmengine", {"epoch_2.pth": 8, "epoch_3.pth": 12}),
        ("detectron2", "detectron2", {"model_0000002.pth": 2, "model_0000005.pth": 5, "model_final.pth": 7}),
        (
            "timm",
            "timm",
            dict.fromkeys(
                (
                    "checkpoint-1.pth.tar",
                    "checkpoint-2.pth.tar",
                    "recovery-3-2.pth.tar",
                    "last.pth.tar",
                    "model_best.pth.tar",
                )
            ),
        ),
        ("ultralytics/weights", "ultralytics", dict.fromkeys(("epoch0.pt", "epoch1.pt", "best.pt", "last.pt"))),
        ("torchtitan", "torchtitan", {"checkpoint/step-2": 2, "checkpoint/step-4": 4, "checkpoint/step-5": 5}),
        ("olmo-core", "olmo-core", {"step2": 2, "step4": 4}),
    ],
)
def test_layout_and_step_of_what_the_library_wrote(fixture: str, layout: str, steps: dict[str, int | None]) -> None:
    run = open_run(FIXTURES / fixture)
    assert {each.layout for each in run.checkpoints} == {layout}
    assert {each.path: View(each).step for each in run.checkpoints} == steps


def test_the_number_of_an_epoch_is_no_step_of_the_file_alone() -> None:
    path = FIXTURES / "timm/recovery-3-2.pth.tar"
    (checkpoint,) = open_run(path).checkpoints
    view = View(checkpoint)
    assert (view.step, view.number("epoch"), checkpoint.step) == (None, 3, 3)
    assert ckpt_tools.latest(str(path), settle=0).step is None


def test_a_run_is_ordered_by_its_epochs() -> None:
    assert ckpt_tools.latest(str(FIXTURES / "ultralytics/weights"), settle=0).path == str(
        FIXTURES / "ultralytics/weights/epoch1.pt"
    )


@pytest.mark.parametrize(
    "names",
    [
        ("model_best.pth.tar", "checkpoint.pth.tar"),
        ("last.pt", "best.pt"),
        ("epoch_1.pth", "epoch_2.pth"),
        ("model_0000100.pth", "model_0000200.pth"),
    ],
)
def test_names_that_everybody_uses_stay_plain(tmp_path: Path, names: tuple[str, ...]) -> None:
    _put(tmp_path, *names)
    assert _layouts(tmp_path) == dict.fromkeys(names, "plain")


def test_a_fraction_in_a_name_is_no_step(tmp_path: Path) -> None:
    """``{epoch}_{loss:.2f}``: the numbers of the fractions would turn the order round."""
    names = ("epoch1_loss0.06.ckpt", "epoch2_loss0.03.ckpt", "best_0.9.pt", "model_12.3.pt", "ckpt_5.bin")
    _put(tmp_path, *names)
    found = {each.path: each.step for each in open_run(tmp_path).checkpoints}
    assert found == dict(zip(names, (1, 2, 0, 12, 5), strict=True))


def test_an_index_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    _put(tmp_path, "model.pt")
    (tmp_path / "vectors.index").write_bytes(b"IxFI" + bytes(100))
    assert _layouts(tmp_path) == {"model.pt": "plain"}


def test_a_torch_file_without_an_ending_is_read_as_what_it_is(tmp_path: Path) -> None:
    _put(tmp_path, "checkpoint_3")
    report = ckpt_tools.verify(str(tmp_path), settle=0)
    assert [finding.code for finding in report.all_findings() if finding.severity > Severity.NOTE] == []


def test_directories_beside_the_steps_of_orbax_are_no_steps(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "orbax/manager", tmp_path / "run")
    (tmp_path / "run" / "logs_2024").mkdir()
    (tmp_path / "run" / "logs_2024" / "events").write_text("x")
    assert set(_layouts(tmp_path / "run")) == {"4", "10"}


def test_a_prefix_is_a_checkpoint() -> None:
    (checkpoint,) = open_run(BUNDLES / "ckpt-3").checkpoints
    assert (checkpoint.layout, checkpoint.step, len(checkpoint.parts)) == ("tensorflow", 3, 2)
    assert ckpt_tools.verify(str(BUNDLES / "ckpt-3"), settle=0).exit_code() == 0


def test_a_prefix_of_nothing_is_not_found() -> None:
    with pytest.raises(NothingFoundError):
        open_run(BUNDLES / "ckpt")


def test_the_tensors_of_a_bundle_have_their_names_and_places() -> None:
    (checkpoint,) = open_run(BUNDLES / "ckpt-3").checkpoints
    view = View(checkpoint)
    kernel = view.weights["optimizer/_trainable_variables/0"]
    assert (kernel.dtype, kernel.shape) == ("float32", (5, 7))
    assert kernel.chunks[0].extent.path == "ckpt-3.data-00000-of-00001"
    assert view.number("lr") == pytest.approx(0.01)
    assert view.numbers("optimizer-step") == [6]
    assert len(view.optimizer_tensors) == 10


def test_a_directory_of_dcp_called_as_torchtitans_is_taken_for_one(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "dcp/plain", tmp_path / "step-5")
    shutil.copytree(FIXTURES / "dcp/plain", tmp_path / "other")
    assert open_run(tmp_path / "step-5").layout == "torchtitan"
    assert open_run(tmp_path / "other").layout == "dcp"
