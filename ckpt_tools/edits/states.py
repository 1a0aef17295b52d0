"""Where the numbers of a training lie: the state dicts of the optimizer and the scheduler, the trainer's state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_tools.containers.pickle_positions import Keys
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.edits.values import number_of
from ckpt_tools.layouts import plain
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, Value, as_mapping


@dataclass(frozen=True, slots=True)
class State:
    """A dictionary inside a file, ``keys`` lead to it."""

    part: Part
    keys: Keys
    value: Mapping[Any, Value]


@dataclass(frozen=True, slots=True)
class States:
    """What a resume continues from, as far as it is there."""

    optimizer: State | None
    scheduler: State | None
    trainer: State | None


def find(view: View) -> States:
    """Return the state dicts of a checkpoint.

    Raises:
        EditRefusedError: they are in files that are not edited, or there are several optimizers.
    """
    if view.elsewhere is not None:
        raise EditRefusedError(
            f"the optimizer is in the files of {view.elsewhere}, which are not edited by this version"
        )
    return States(
        _one(view, Role.OPTIMIZER, plain.OPTIMIZER_KEYS, "param_groups"),
        _one(view, Role.SCHEDULER, plain.SCHEDULER_KEYS, "_last_lr"),
        _trainer(view),
    )


def _one(view: View, role: Role, names: tuple[str, ...], mark: str) -> State | None:
    parts = list(view.checkpoint.of(role))
    if len(parts) > 1:
        listed = ", ".join(part.path for part in parts)
        raise EditRefusedError(f"there are several {role.value} files ({listed}); which is meant cannot be said yet")
    if parts:
        mapping = as_mapping(_value(view, parts[0]))
        if mapping is None:
            raise EditRefusedError(f"{parts[0].path}: holds no state dict", hint="`ckpt verify` tells more")
        return State(parts[0], (), mapping)
    for part in view.checkpoint.of(Role.COMBINED):
        combined = as_mapping(_value(view, part)) or {}
        for name in names:
            inner = as_mapping(combined.get(name))
            if inner is not None and mark in inner:
                return State(part, (name,), inner)
    return None


def _trainer(view: View) -> State | None:
    for part in view.checkpoint.of(Role.TRAINER_STATE, Role.COMBINED):
        mapping = as_mapping(_value(view, part))
        if mapping is not None:
            return State(part, (), mapping)
    return None


def _value(view: View, part: Part) -> Value:
    content = view.content(part)
    if content is None:
        error = view.errors.get(part.path)
        raise error if error is not None else EditRefusedError(f"{part.path}: cannot be read")
    if not content.readable:
        why = content.problems[0].message if content.problems else "it cannot be decoded"
        raise EditRefusedError(f"{part.path}: {why}; it is not edited", hint="`ckpt verify` tells more")
    return content.value


def numbers(view: View, value: Value) -> Value:
    """Return a copy of ``value`` in which every tensor or numpy scalar of one element is the number it holds.

    A dictionary's ``state`` and ``params``, the long part of an optimizer, are left out.
    """
    mapping = as_mapping(value)
    if mapping is not None:
        return {key: numbers(view, item) for key, item in mapping.items() if key not in ("state", "params")}
    if isinstance(value, list | tuple):
        return [numbers(view, item) for item in value]
    if isinstance(value, TensorRef | Opaque):
        return number_of(view, value)
    return value
