"""CK51x and CK521: the optimizer's state against the weights and against itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpt_tools.containers.torch_values import numpy_scalar_value
from ckpt_tools.layouts import plain
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME, DEGRADES_RESUME, Fix, Severity, Spot
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, Value, as_mapping, children
from ckpt_tools.rules.base import Context, Hit, Rule, rule

Shape = tuple[int, ...]

# Per-parameter tensors that have the parameter's own shape, in the optimizers that are known.
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "sum", "acc_delta", "z")
_SAME = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf")
_LOW_RANK = ("rank", "proj_type", "update_proj_gap")
_WEIGHTS_LIKE = (".safetensors", ".bin", ".pt", ".pth")
_MAX_SCALARS = 10_000


@dataclass(frozen=True, slots=True)
class _Optimizer:
    """A torch optimizer's state dict: its groups, the ids of its parameters in order, and its state by id."""

    path: str
    groups: list[Mapping[Any, Value]]
    ids: list[Value]
    state: Mapping[Any, Value]
    held: Counter[Shape] = field(default_factory=Counter)

    @property
    def numbered(self) -> bool:
        """Whether parameters are told by number; full states of FSDP use names."""
        return all(type(name) is int for name in self.ids)

    def moments(self) -> Iterator[tuple[Value, dict[str, Shape]]]:
        """Yield the shapes of a parameter's moments by their name, for every parameter that has some."""
        for key, value in self.state.items():
            entry = as_mapping(value) or {}
            found = {name: ref.shape for name, ref in entry.items() if isinstance(ref, TensorRef) and name in _MOMENTS}
            if found:
                yield key, found


def _optimizer(view: View) -> _Optimizer | None:
    """Return the only optimizer of the checkpoint, None where there is none or it is of another make."""
    if len(list(view.checkpoint.of(Role.OPTIMIZER, Role.COMBINED))) != 1:
        return None
    value = view.optimizer or {}
    groups = value.get("param_groups")
    state = as_mapping(value.get("state"))
    if not isinstance(groups, list) or state is None:
        return None
    found = [as_mapping(group) for group in groups]
    lists = [group.get("params") if group is not None else None for group in found]
    if not found or not all(isinstance(ids, list | tuple) for ids in lists):
        return None
    part = view.checkpoint.first(Role.OPTIMIZER, Role.COMBINED)
    assert part is not None
    ids = [item for ids in lists for item in ids or ()]
    return _Optimizer(part.path, [group for group in found if group is not None], ids, state)


def _plain_shape(shape: Shape) -> Shape:
    """Return ``shape`` without sizes of 1, which adapters and quantisers add and drop."""
    return tuple(size for size in shape if size != 1)


def _trained(view: View) -> dict[str, Shape] | None:
    """Return the shapes of all tensors that the optimizer may train, None where the files cannot say.

    That is: weights of another framework's directories, weights in files that no layout knows (a second model, a head of
    its own), damaged or missing shards, adapters that are stored in another form than they are trained in, and experts,
    which newer loaders fuse.
    """
    checkpoint = view.checkpoint
    beside = any(path.endswith(_WEIGHTS_LIKE) for path in checkpoint.unclaimed)
    if view.elsewhere is not None or beside or len(set(_shards(view))) > 1:
        return None
    kinds = [str((as_mapping(value) or {}).get("peft_type")).upper() for _, value in view.values(Role.ADAPTER_CONFIG)]
    if any(kind != "LORA" for kind in kinds):
        return None
    found: dict[str, Shape] = {}
    for part in checkpoint.of(Role.WEIGHTS, Role.ADAPTER, Role.CUSTOM, Role.COMBINED):
        content = view.content(part)
        if content is None or not content.readable:
            return None
        own = [f"{key}." for key in plain.OPTIMIZER_KEYS] if part.role is Role.COMBINED else []
        found |= {
            f"{part.path}:{name}": ref.shape
            for name, ref in content.tensors.items()
            if not name.startswith(tuple(own)) or not own
        }
    if not found or any(".experts." in name for name in found):
        return None
    return found


def _shards(view: View) -> Iterator[str]:
    """Yield the names of the faults that keep the shards from being the whole model."""
    yield "whole"
    parts = [part for part in view.weight_parts if part.shard is not None]
    if parts and len(parts) != parts[0].shard[1] if parts and parts[0].shard else False:
        yield "missing"
