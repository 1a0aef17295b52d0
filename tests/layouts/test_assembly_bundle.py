"""Which tensors of a TensorFlow checkpoint are weights, an optimizer's, or counters, whatever their names are."""

from __future__ import annotations

import pytest

from ckpt_tools.containers.base import Content
from ckpt_tools.containers.tensor_bundle import Entry
from ckpt_tools.layouts.assembly_bundle import BundleAssembly, saved_with_tracker
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from tests.conftest import FIXTURES

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def assembly(*entries: tuple[str, str, tuple[int, ...]]) -> BundleAssembly:
    run = open_run(FIXTURES / "tensorflow/manager")
    size = {"float32": 4, "int64": 8, "int32": 4}
    held = tuple(
        Entry(name + VALUE, dtype, shape, 0, 0, size[dtype] * (shape[0] if shape else 1), 0)
        for name, dtype, shape in entries
    )
    return BundleAssembly(
        View(run.checkpoints[0]), Content("tensor-bundle", 0, facts={"entries": held, "byteorder": "little"})
    )


KERAS_3 = (
    ("trainer/opt/_iterations", "int64", ()),
    ("trainer/opt/_variables/2", "float32", (3,)),
    ("trainer/opt/_trainable_variables/0", "float32", (3,)),
    ("trainer/net/moving_mean", "float32", (3,)),
    ("epoch", "int32", ()),
    ("scale", "float32", ()),
)
KERAS_2 = (
    ("adam/iter", "int64", ()),
    ("adam/decay", "float32", ()),
    ("model/dense/kernel", "float32", (3,)),
    ("model/dense/kernel/.OPTIMIZER_SLOT/adam/m", "float32", (3,)),
    ("save_counter", "int64", ()),
)


@pytest.mark.parametrize(
    ("entries", "weights", "optimizer", "others"),
    [
        (
            KERAS_3,
            {"trainer/opt/_trainable_variables/0", "trainer/net/moving_mean", "scale"},
            {"trainer/opt/_iterations", "trainer/opt/_variables/2"},
            {"epoch"},
        ),
        (
            KERAS_2,
            {"model/dense/kernel"},
            {"adam/iter", "adam/decay", "model/dense/kernel/.OPTIMIZER_SLOT/adam/m"},
            {"save_counter"},
        ),
    ],
    ids=["Keras 3", "Keras 2"],
)
def test_what_each_tensor_is(
    entries: tuple[tuple[str, str, tuple[int, ...]], ...], weights: set[str], optimizer: set[str], others: set[str]
) -> None:
    found = assembly(*entries)
    assert (set(found.weights), set(found.optimizer_tensors), set(found.other_tensors)) == (weights, optimizer, others)


def test_a_layer_that_counts_is_no_optimizer() -> None:
    found = assembly(("net/iter", "float32", (3,)), ("net/kernel", "float32", (3,)))
    assert set(found.weights) == {"net/iter", "net/kernel"}


def test_a_save_counts_itself_and_a_write_does_not() -> None:
    saved, written = (open_run(FIXTURES / name).checkpoints[0] for name in ("tensorflow/manager", "tensorflow/odd"))
    assert saved_with_tracker(View(saved))
    assert not saved_with_tracker(View(written))
