"""Merged weights against what torch and the frameworks read from the same files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save  # noqa: E402

import ckpt_tools  # noqa: E402
from tests.merge.support import FIXTURES  # noqa: E402


def one(pattern: str) -> Path:
    (path,) = FIXTURES.glob(pattern)
    return path


def merged(path: Path, out: Path) -> dict[str, Any]:
    """Return the merged tensors, tied ones under all of their names."""
    report = ckpt_tools.merge(str(path), str(out))
    found = {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}
    return found | {name: found[owner] for name, owner in report.tied.items()}


def require_same(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (mine[name].dtype, mine[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(mine[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)), name


# torch.distributed.checkpoint ------------------------------------------------------------------------------

DCP = ("plain", "threads", "files-per-item", "async", "flat-optimizer", "single-process", "lambda")
DISTRIBUTED = [
    *((f"dcp/{name}", ".", "model.") for name in DCP),
    ("dcp/grid", ".", ""),
    ("dcp/odd-shapes", ".", ""),
    ("dcp/run/step-4", ".", ""),
    ("torchtitan/checkpoint/step-4", ".", ""),
    ("torchtitan/checkpoint/step-5", ".", ""),
    ("lightning/sharded-fsdp/*.ckpt", ".", "model."),
    ("lightning/sharded-model-parallel/*.ckpt", ".", "state_dict."),
    ("fsdp/fsdp1-sharded", "pytorch_model_fsdp_0", "model."),
    ("fsdp/fsdp2-sharded", "pytorch_model_fsdp_0", "model."),
    ("fsdp/trainer-sharded/checkpoint-2", "pytorch_model_fsdp_0", "model."),
    ("llama-recipes/sharded-with-optimizer/*", "tiny-llama", "model."),
]
"""Checkpoints, where their distributed files are, and what the names of the model begin with there."""


def flat(state: dict[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if isinstance(value, dict):
            yield from flat(value, f"{at}{key}.")
        elif isinstance(value, torch.Tensor):
            yield f"{at}{key}", value


def of_the_model(path: Path, prefix: str, beside: Path) -> dict[str, Any]:
    dcp_to_torch_save(str(path), str(beside))
    every = dict(flat(torch.load(beside, weights_only=False)))
    others = ("optimizer.", "optim.", "lr_scheduler", "train_state.", "dataloader")
    found = {name: tensor for name, tensor in every.items() if not name.startswith(others)}
    return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}


@pytest.mark.parametrize(("name", "inner", "prefix"), DISTRIBUTED)
def test_distributed_ones_give_what_torch_puts_together(name: str, inner: str, prefix: str, tmp_path: Path) -> None:
    path = one(name)
    theirs = of_the_model(path / inner, prefix, tmp_path / "theirs.pt")
    assert theirs
    require_same(merged(path, tmp_path / "out"), theirs)


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "inner"), [("megatron/torch-dist/iter_*", "."), ("megatron/nemo2/*", "weights")])
def test_megatron_core_gives_what_torch_puts_together(name: str, inner: str, tmp_path: Path) -> None:
    pytest.importorskip("megatron.core")
    path = one(name)
    every = of_the_model(path / inner, "", tmp_path / "theirs.pt")
    mine = merged(path, tmp_path / "out")
    require_same(mine, {name: every[name] for name in mine})
    assert {name for name in every if "optimizer" not in name} == mine.keys()


# DeepSpeed -------------------------------------------------------------------------------------------------


def load(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def universal(path: Path) -> dict[str, Any]:
    found = {}
    for file in (path / "zero").rglob("fp32.pt"):
        value = load(file)
        found[file.parent.name] = value["param"] if isinstance(value, dict) else value
    return found


@pytest.mark.parametrize("stage", [1, 3])
def test_universal_ones_give_what_is_in_their_files(stage: int, tmp_path: Path) -> None:
    path = FIXTURES / f"deepspeed/universal-stage{stage}/global_step4_universal"
    mine = merged(path, tmp_path / "out")
    theirs = universal(path)
    assert {"first.weight", "first.bias", "second.weight", "second.bias"} <= theirs.keys() <= mine.keys()
    for name, tensor in theirs.items():  # ZeRO 3 has them flat
        assert torch.equal(mine[name].flatten(), tensor.flatten()), name


def layers(path: Path) -> dict[str, Any]:
    files = path.glob("layer_*-model_states.pt")
    return {f"{int(file.name[6:8])}.{name}": tensor for file in files for name, tensor in load(file).items()}


def experts(path: Path) -> dict[str, Any]:
    found = dict(load(path / "mp_rank_00_model_states.pt")["module"])
    for file in path.glob("layer_*_expert_*"):
        found |= load(file)
    return found


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("pipeline-stage0", layers),
        ("pipeline-bf16-stage1", layers),
        ("moe-stage0", experts),
        ("moe-stage2-bf16", experts),
        ("stage0", experts),
    ],
)
def test_stages_and_experts_give_what_is_in_their_files(
    name: str, read: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    path = max((FIXTURES / "deepspeed" / name).glob("global_step*"))
    mine, theirs = merged(path, tmp_path / "out"), read(path)
    assert mine.keys() == theirs.keys()
    # In bfloat16 the optimizer's masters are merged, which the model's own weights are rounded from.
    assert all(torch.equal(mine[name].to(tensor.dtype), tensor) for name, tensor in theirs.items())


@pytest.mark.distributed
@pytest.mark.parametrize(
    "name",
    [
        "stage1-4ranks/global_step4",
        "trainer-stage1/checkpoint-4/global_step4",
        "trainer-stage3/checkpoint-4/global_step4",
    ],
)
def test_zero_gives_what_deepspeed_puts_together(name: str, tmp_path: Path) -> None:
    zero_to_fp32 = pytest.importorskip("deepspeed.utils.zero_to_fp32")
    path = FIXTURES / "deepspeed" / name
    theirs = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(path.parent), path.name)
    mine = merged(path, tmp_path / "out")
    assert {name for name in mine if not name.startswith("frozen.")} == theirs.keys()
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())


# Files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "key"),
    [
        ("lightning/run/last.ckpt", "", "state_dict"),
        ("accelerate/bin", "pytorch_model.bin", ""),
        ("fsdp/fsdp2-full", "pytorch_model_fsdp.bin", ""),
        ("llama-recipes/full/*", "tiny-llama-1.pt", ""),
        ("detectron2/model_final.pth", "", "model"),
        ("timm/model_best.pth.tar", "", "state_dict"),
    ],
)
def test_whole_files_give_what_torch_loads(name: str, file: str, key: str, tmp_path: Path) -> None:
    path = one(name)
    theirs = load(next(iter(sorted(path.glob(file)))) if file else path)
    require_same(merged(path, tmp_path / "out"), dict(theirs[key] if key else theirs))
