"""Which block of a tensor a pickled DTensor is, in the forms of older versions of torch, and of no version."""

from __future__ import annotations

from typing import Any

import pytest

from ckpt_tools.containers.torch_rebuild_shards import box, rank
from ckpt_tools.model.tensors import Box, TensorRef
from ckpt_tools.model.values import Opaque

PLACEMENTS = "torch.distributed.tensor.placement_types"


def made(name: str, **state: Any) -> Opaque:
    return Opaque(name, (), state, called=True)


def shard(dim: Any) -> Opaque:
    return made(f"{PLACEMENTS}.Shard", dim=dim)


def strided(dim: int, factor: Any) -> Opaque:
    return made(f"{PLACEMENTS}._StridedShard", dim=dim, split_factor=factor)


REPLICATE, PARTIAL = made(f"{PLACEMENTS}.Replicate"), made(f"{PLACEMENTS}.Partial", reduce_op="sum")
AXES = (made("_FlatLayout", shape=(2,), stride=(3,)), made("_FlatLayout", shape=(3,), stride=(1,)))
LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor of ranks": {"mesh": TensorRef("", "int32", (2, 3), ())},
    "layout": {"_layout": made("_MeshLayout", shape=(2, 3), stride=(3, 1))},
    "axes": {"_layout": made("_MeshLayout", axes=AXES)},
}
GRID = LAYOUTS["axes"]


def spec(mesh: dict[str, Any], at: Any, *placements: Any, **more: Any) -> Opaque:
    held = made("torch.distributed.device_mesh.DeviceMesh", _coordinate_on_dim=at, **mesh)
    return made("torch.distributed.tensor._dtensor_spec.DTensorSpec", mesh=held, placements=placements, **more)


@pytest.mark.parametrize("form", LAYOUTS)
@pytest.mark.parametrize("at", [(1, 2), [1, 2]])
def test_every_form_of_a_mesh(form: str, at: Any) -> None:
    assert box(spec(LAYOUTS[form], at, shard(0), shard(1)), (5, 7)) == ((3, 6), (2, 1))
    assert box(spec(LAYOUTS[form], at, REPLICATE, shard(0)), (5, 7)) == ((4, 0), (1, 7))


def test_a_mesh_of_one_dimension_and_axes_of_several() -> None:
    line = {"_layout": made("_MeshLayout", shape=4, stride=1)}
    assert box(spec(line, [3], shard(0)), (5,)) == ((5,), (0,))
    several = {"_layout": made("_MeshLayout", axes=(made("_FlatLayout", shape=(2, 2), stride=(4, 1)),))}
    assert box(spec(several, (3,), shard(0)), (8,)) == ((6,), (2,))


@pytest.mark.parametrize(("order", "expected"), [((0, 1), ((7,), (2,))), ((1, 0), ((5,), (1,)))])
def test_the_order_of_cuts(order: tuple[int, ...], expected: Box) -> None:
    """Nine elements are cut in two of 5 and 4 and then in three, or in three of 3 and then in two."""
    entry = Opaque("ShardOrderEntry", (0, order), called=True)
    assert box(spec(GRID, (1, 1), shard(0), shard(0), shard_order=(entry,)), (9,)) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        spec(GRID, None, shard(0), shard(1)),
        spec(GRID, (1,), shard(0), shard(1)),
        spec(GRID, (2, 0), shard(0), shard(1)),
        spec(GRID, (True, 0), shard(0), shard(1)),
        spec(GRID, (1, 1), shard(0)),
        spec(GRID, (1, 1), shard(2), shard(1)),
        spec(GRID, (1, 1), shard("0"), shard(1)),
        spec(GRID, (1, 1), PARTIAL, shard(1)),
        spec(GRID, (1, 1), "Shard", shard(1)),
        spec(GRID, (1, 1), strided(0, 2), shard(0)),
        spec(GRID, (1, 1), strided(0, "3"), shard(0)),
        spec(GRID, (1, 1), shard(0), shard(1), shard_order=(1, 2)),
        spec(GRID, (1, 1), shard(0), shard(1), shard_order=(Opaque("", (0, (0,))),)),
        spec({}, (1, 1), shard(0), shard(1)),
        spec({"_layout": made("_MeshLayout", axes=3)}, (1, 1), shard(0), shard(1)),
        spec({"_layout": made("_MeshLayout", shape=(2, "3"))}, (1, 1), shard(0), shard(1)),
        spec({"_layout": made("_MeshLayout", shape=(2, (3,) * 99))}, (1, 1), shard(0), shard(1)),
        made("torch.distributed.tensor._dtensor_spec.DTensorSpec"),
        Opaque("torch.distributed.tensor._dtensor_spec.DTensorSpec", state=[1]),
    ],
)
def test_what_cannot_be_told(wrong: Any) -> None:
    assert box(wrong, (5, 7)) is None
    assert rank(wrong) is None
