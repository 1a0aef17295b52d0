"""A torch optimizer's state dict, described: its groups, its parameters and what it keeps for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping

Shape = tuple[int, ...]

# What optimizers keep per parameter in the parameter's own shape; the first of these that is there counts.
_MOMENTS = ("exp_avg", "exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "sum", "acc_delta", "z")
_LOW_RANK = ("rank", "proj_type", "update_proj_gap")


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """A state dict: its groups, the ids of its parameters in the order of the groups, and its state by id."""

    groups: list[Mapping[Any, Value]]
    ids: list[Value]
    state: Mapping[Any, Value]

    @property
    def numbered(self) -> bool:
        """Whether parameters are told by number; full states of FSDP use names."""
        return all(type(name) is int for name in self.ids)

    def entries(self) -> Iterator[tuple[Value, dict[str, Shape]]]:
        """Yield the shapes of the tensors kept for a parameter by their name."""
        for key, value in self.state.items():
            entry = as_mapping(value) or {}
            yield key, {key_name(name): ref.shape for name, ref in entry.items() if isinstance(ref, TensorRef)}

    def shapes(self) -> Counter[Shape]:
        """Return the shapes of the parameters, as far as their state tells them; none where it is of low rank."""
        if any(key in group for group in self.groups for key in _LOW_RANK):
            return Counter()
        known = {item for item in self.ids if type(item) in (int, str)}
        found = (_shape(entry) for key, entry in self.entries() if key in known)
        return Counter(shape for shape in found if shape is not None)


def _shape(entry: dict[str, Shape]) -> Shape | None:
    if "exp_avg_sq_row" in entry and "exp_avg_sq_col" in entry:  # Adafactor and its kin: all but one dimension each
        return squeezed((*entry["exp_avg_sq_row"], *entry["exp_avg_sq_col"][-1:]))
    return next((squeezed(entry[name]) for name in _MOMENTS if name in entry), None)


def squeezed(shape: Shape) -> Shape:
    """Return ``shape`` without sizes of 1, which adapters and quantisers add and drop."""
    return tuple(size for size in shape if size != 1)


def read_state_dict(value: Mapping[Any, Value]) -> OptimizerState | None:
    """Return ``value`` as an optimizer's state dict, None where it is none."""
    groups, state = value.get("param_groups"), as_mapping(value.get("state"))
    if not isinstance(groups, list) or not groups or state is None:
        return None
    found = [group for value in groups if (group := as_mapping(value)) is not None]
    lists = [group["params"] for group in found if isinstance(group.get("params"), list | tuple)]
    if len(lists) != len(groups):
        return None
    return OptimizerState(found, [item for ids in lists for item in ids], state)


def key_name(key: Value) -> str:
    """Return how a key is shown: a parameter's number, or a name; a pickle's integers may have thousands of digits."""
    if type(key) is int:
        return f"{key}" if abs(key) < 1 << 64 else "a huge number"
    return key if isinstance(key, str) else f"a {type(key).__name__}"
