"""Files of each rank with pickled DTensors: every placement of torch's is followed, and the whole comes out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ckpt_tools
from ckpt_tools.core.errors import CkptError
from ckpt_tools.layouts.assembly import Assembly, unpack
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.numerics.assembled import Assembled, OpenFiles, problem
from tests.conftest import FIXTURES

NET = {"scale", "first.weight", "first.bias", "second.weight"}


def view_of(path: Path) -> View:
    return View(open_run(str(path)).checkpoints[0])


def contents(view: View, tensors: Any) -> dict[str, bytes]:
    """Return the bytes of every tensor as it is when it is put together."""
    found = {}
    with OpenFiles(view.listing) as files:
        for name, ref in unpack(view.listing, tensors).items():
            whole = Assembled(ref, files)
            found[name] = whole.read(0, whole.size)
    return found


def test_they_hold_what_a_full_save_of_the_same_training_holds() -> None:
    ranks, full = view_of(FIXTURES / "fsdp/fsdp2-rank-bins"), view_of(FIXTURES / "fsdp/fsdp2-full")
    assert set(ranks.weights) == NET
    assert contents(ranks, ranks.weights) == contents(full, full.weights)
    assert contents(ranks, ranks.optimizer_tensors) == contents(full, full.optimizer_tensors)
    assert {name: ref.shape for name, ref in ranks.weights.items()} == {
        name: ref.shape for name, ref in full.weights.items()
    }


def test_the_optimizer_is_that_of_all_ranks() -> None:
    view = view_of(FIXTURES / "fsdp/fsdp2-rank-bins")
    model, optimizer = view.assemblies
    assert optimizer.optimizer is not None
    moment = optimizer.optimizer["state"]["first.weight"]["exp_avg"]
    assert isinstance(moment, TensorRef)
    assert len(moment.chunks) == 2
    told = {slot.quantity: slot for slot in view.slots if slot.part.path == "optimizer_0_rank0.bin"}
    assert told["optimizer-step"].value == 3
    assert 0.01 < told["lr"].value < 0.02
    assert (model.world_size, model.reshardable, list(model.left_out)) == (2, False, [])


def test_digests_are_those_of_the_whole_and_of_one_file_its_own() -> None:
    def told(path: Path) -> dict[str, str | None]:
        return {row.tensor or "": row.digest for row in ckpt_tools.checksum(str(path)).rows}

    ranks, full = told(FIXTURES / "fsdp/fsdp2-rank-bins"), told(FIXTURES / "fsdp/fsdp2-full")
    assert ranks == full
    assert None not in ranks.values()
    alone = told(FIXTURES / "fsdp/fsdp2-rank-bins/optimizer_0_rank1.bin")
    assert None not in alone.values()
    assert alone["state.first.weight.exp_avg"] != ranks["state.first.weight.exp_avg"]


def test_flat_pieces_are_not_put_together() -> None:
    view = view_of(FIXTURES / "fsdp/fsdp1-local")
    assert not any(assembly.weights for assembly in view.assemblies)
    (reason,) = (reason for assembly in view.assemblies for code, reason in assembly.left_out if code == "CK3")
    assert reason == (
        "the pieces in pytorch_model_fsdp_rank*.bin: their shapes and places are stored nowhere, they are not put "
        "together"
    )


@contextmanager
def as_rank(rank: int, world: int) -> Iterator[None]:
    """Let torch believe, in one process, that it is one of several ranks."""
    dist = pytest.importorskip("torch.distributed")
    store = pytest.importorskip("torch.testing._internal.distributed.fake_pg").FakeStore()
    dist.init_process_group("fake", rank=rank, world_size=world, store=store)
    try:
        yield
    finally:
        dist.destroy_process_group()


def save_as_ranks(out: Path, mesh_shape: tuple[int, ...], tensors: dict[str, tuple[Any, list[Any]]]) -> None:
    """Save tensors with their placements as every rank of a mesh would."""
    torch = pytest.importorskip("torch")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, distribute_tensor

    world = 1
    for size in mesh_shape:
        world *= size
    for rank in range(world):
        with as_rank(rank, world):
            mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=tuple("abc"[: len(mesh_shape)]))
            state = {}
            for name, (whole, placements) in tensors.items():
                state[name] = distribute_tensor(whole, mesh, placements, src_data_rank=None)
                assert isinstance(state[name], DTensor)
            torch.save(state, out / f"pytorch_model_fsdp_0_rank{rank}.bin")


def put_together(out: Path) -> tuple[Assembly, dict[str, bytes]]:
    view = view_of(out)
    (found,) = view.assemblies
    assert [name for name, ref in found.weights.items() if problem(ref)] == []
    return found, contents(view, found.weights)


SHAPES = [(8, 6), (7, 5), (3, 2), (1, 4), (5,), (9, 4, 3), (0, 3), ()]


@pytest.mark.parametrize("mesh", [(1,), (2,), (3,), (4,), (8,), (2, 2), (2, 3), (3, 2), (2, 2, 2)])
def test_every_placement_of_torch(mesh: tuple[int, ...], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.distributed.tensor import Replicate, Shard

    tensors: dict[str, tuple[Any, list[Any]]] = {}
    for shape in SHAPES:
        whole = torch.randn(shape)
        ways: list[list[Any]] = [[]]
        for _ in mesh:
            choices = [Replicate(), *(Shard(dim) for dim in range(min(2, len(shape))))]
            ways = [[*before, choice] for before in ways for choice in choices]
        for number, way in enumerate(ways):
            tensors[f"{len(shape)}.{shape[0] if shape else ''}.{number}"] = (whole, way)
    save_as_ranks(tmp_path, mesh, tensors)
    found, held = put_together(tmp_path)
    assert held == {name: whole.numpy().tobytes() for name, (whole, _) in tensors.items()}
    assert all(found.weights[name].shape == tuple(whole.shape) for name, (whole, _) in tensors.items())
    assert not found.holes  # type: ignore[attr-defined]


ONE_RANK = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

rank, mesh, out = int(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3])), sys.argv[4]
dist.init_process_group("fake", rank=rank, world_size=mesh[0] * mesh[1], store=FakeStore())
grid = init_device_mesh("cpu", mesh, mesh_dim_names=("dp", "tp"))
for way in (0, 1, None):
    model = torch.nn.Linear(6, 13, bias=False)
    value = torch.arange(78.0).reshape(13, 6)
    if way is not None:
        value = distribute_tensor(value, grid["tp"], [Shard(way)], src_data_rank=None)
    model.weight = torch.nn.Parameter(value)
    fully_shard(model, mesh=grid if way is None else grid["dp"])
    place = Path(out, str(way))
    place.mkdir(exist_ok=True)
    torch.save(model.state_dict(), place / f"pytorch_model_fsdp_0_rank{rank}.bin")
"""


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 2), (3, 2), (2, 3)])
def test_fsdp_over_tensor_parallelism_and_over_replicas(mesh: tuple[int, int], tmp_path: Path) -> None:
    """A process for each rank: torch keeps meshes of a process, and with them the rank."""
    torch = pytest.importorskip("torch")
    for rank in range(mesh[0] * mesh[1]):
        subprocess.run([sys.executable, "-c", ONE_RANK, str(rank), *map(str, mesh), str(tmp_path)], check=True)
    for way in ("0", "1", "None"):
        found, held = put_together(tmp_path / way)
        assert held == {"weight": torch.arange(78.0).numpy().tobytes()}
        assert found.world_size == mesh[0] * mesh[1]


SHARDED = """
import sys

import torch
import torch.distributed as dist
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards
from torch.testing._internal.distributed.fake_pg import FakeStore

dist.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
piece = Shard(torch.randn(3, 4), ShardMetadata([0, 0], [3, 4], "rank:0/cpu"))
torch.save({"weight": init_from_local_shards([piece], 3, 4)}, sys.argv[1])
"""


def test_pieces_of_fsdp1_are_told_apart_from_flat_ones(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "pytorch_model_fsdp_0_rank0.bin"
    subprocess.run([sys.executable, "-W", "ignore", "-c", SHARDED, str(file)], check=True)
    why = view_of(tmp_path).assemblies[0].unplaced  # type: ignore[attr-defined]
    assert why is not None
    assert "ShardedTensor" in why[0]
    with pytest.raises(CkptError, match="as ShardedTensor") as caught:
        ckpt_tools.merge(str(tmp_path), str(tmp_path / "merged"))
    assert "SHARDED_STATE_DICT" in (caught.value.hint or "")
    rows = {row.tensor: (row.digest, row.reason) for row in ckpt_tools.checksum(str(tmp_path)).rows}
    assert rows == {"weight": (None, "it is stored as a ShardedTensor, which is not read")}
    flat = view_of(FIXTURES / "fsdp/fsdp1-local").assemblies[1].unplaced  # type: ignore[attr-defined]
    assert flat is not None
    assert "LOCAL_STATE_DICT" in flat[0]
    placed = view_of(FIXTURES / "fsdp/fsdp2-rank-bins").assemblies[0].unplaced  # type: ignore[attr-defined]
    assert placed is None
