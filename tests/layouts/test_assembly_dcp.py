"""What a distributed checkpoint holds, by the names that the model and the optimizer use."""

from __future__ import annotations

import pytest

from ckpt_tools.layouts.assembly import Assembly, unpack
from ckpt_tools.layouts.assembly_dcp_names import Keys, Kind, nested
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from tests.conftest import FIXTURES

NET = {"scale", "first.weight", "first.bias", "second.weight"}
ALL = ["plain", "flat-optimizer", "rank-local", "safetensors-serialization", "threads", "files-per-item"]


def view_of(name: str) -> View:
    return View(open_run(str(FIXTURES / name)).checkpoints[0])


def assembled(name: str) -> Assembly:
    (found,) = view_of(name).assemblies
    return found


@pytest.mark.parametrize("name", [*ALL, "single-process", "hf-writer", "same-model/columns"])
def test_weights_have_the_names_of_the_model(name: str) -> None:
    found = assembled(f"dcp/{name}")
    assert set(found.weights) == NET
    assert found.weights["first.weight"].shape == (7, 5)
    opened = unpack(found.view.listing, found.weights)
    assert sum(chunk.extent.length for ref in opened.values() for chunk in ref.chunks) == 4 * 64


@pytest.mark.parametrize("name", ALL)
def test_the_optimizer_goes_by_parameter_names(name: str) -> None:
    found = assembled(f"dcp/{name}")
    assert found.optimizer_tensors["state.first.weight.exp_avg"].shape == (7, 5)
    assert found.optimizer is not None
    assert set(found.optimizer["state"]["second.weight"]) == {"step", "exp_avg", "exp_avg_sq"}
    (group,) = found.optimizer["param_groups"]
    assert group["params"] == ["first.weight", "first.bias", "second.weight"]
    assert 0.01 < group["lr"] < 0.02
    assert found.scheduler is not None
    assert found.scheduler["base_lrs"] == [0.02]


@pytest.mark.parametrize("name", ALL)
def test_numbers_are_told_with_their_files(name: str) -> None:
    found = assembled(f"dcp/{name}")
    told = {slot.quantity: slot for slot in found.slots}
    assert told["step"].value == told["scheduler-step"].value == told["optimizer-step"].value == 3
    assert told["step"].key == "train_state.step"
    assert told["step"].part.path.endswith(".distcp")
    assert told["lr"].value == told["last-lr"].value


def test_model_and_optimizer_in_directories_of_their_own() -> None:
    view = view_of("fsdp/fsdp2-sharded")
    assert [(each.framework, each.place) for each in view.assemblies] == [
        ("FSDP", "pytorch_model_fsdp_0"),
        ("FSDP", "optimizer_0"),
    ]
    assert set(view.weights) == NET
    assert set(view.optimizer_tensors) >= {"state.first.weight.exp_avg"}
    assert all(chunk.extent.path.startswith("optimizer_0/") for chunk in view.optimizer_tensors[
        "state.first.weight.exp_avg"].chunks)  # fmt: skip


@pytest.mark.parametrize(
    ("paths", "kinds"),
    [
        ({"model.a": ("model", "a"), "optim.state.a.m": ("optim", "state", "a", "m")}, ["weights", "optimizer"]),
        ({"layers.0": ("layers.0",), "optimizer.state.a.m": ("optimizer", "state.a.m")}, ["weights", "optimizer"]),
        ({"app.model.a": ("app", "model", "a"), "app.optim.x": ("app", "optim", "x")}, ["weights", "optimizer"]),
        ({"model.a": ("model.a",), "lr_scheduler.x": ("lr_scheduler", "x")}, ["weights", "scheduler"]),
        ({"model.a": ("model", "a"), "anything": ("anything",)}, ["weights", "state"]),
    ],
)
def test_what_names_stand_for(paths: dict[str, tuple[str, ...]], kinds: list[str]) -> None:
    keys = Keys(paths, paths)
    assert [keys.kind(name) for name in paths] == [Kind(kind) for kind in kinds]


def test_names_lose_the_key_of_the_model_and_nothing_else() -> None:
    rooted = {"model.a": ("model", "a"), "optimizer.x": ("optimizer", "x")}
    assert Keys(rooted, rooted).rest("model.a") == "a"
    flat = {"model.a": ("model.a",), "optimizer.x": ("optimizer", "x")}
    assert Keys(flat, flat).rest("model.a") == "model.a"
    assert Keys({}, ["model.a"]).rest("model.a") == "model.a"


def test_dictionaries_and_lists_from_paths() -> None:
    values = [(("a", 0, "x"), 1), (("a", 1, "x"), 2), (("b.c",), 3)]
    assert nested(values) == {"a": [{"x": 1}, {"x": 2}], "b.c": 3}
