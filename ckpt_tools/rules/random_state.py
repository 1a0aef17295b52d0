"""CK54x: what the Trainer's rng files hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_tools.containers.torch_values import numpy_array
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.findings import Severity, Spot
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value, as_mapping
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_GENERATOR = 5048
"""Bytes of torch's CPU generator in its oldest form; today 5056."""


@rule("CK541", "rng-state-invalid", Severity.ERROR, Part, impact=None)
def rng_state_invalid(part: Part, context: Context) -> Iterator[Hit]:
    """The Trainer's rng file lacks the state of Python, numpy or torch, or holds something else in its place.

    **Why it matters.** The resume stops: the Trainer sets all three without looking.

    **How to repair.** Move the file away: the run goes on, and only its randomness differs.

    **Known exceptions.** accelerate logs trouble with random states and goes on; its files are not looked at.
    """
    content = context.content(part) if part.role is Role.RNG and part.layout == "hf-trainer" else None
    if content is None or not content.readable or content.container not in part.containers:
        return
    value = as_mapping(content.value)
    wrong = ["no object"] if value is None else list(_wrong(value))
    if wrong:
        yield Hit(
            "this is no state of the random generators",
            part.path,
            Spot(key=wrong[0].split()[0]) if value is not None else Spot(),
            tuple(wrong),
            help="without this file a resume goes on, with other random numbers",
            impact=context.damaged(part),
        )


def _wrong(value: Mapping[Any, Value]) -> Iterator[str]:
    python, numbers, torch = value.get("python"), value.get("numpy"), value.get("cpu")
    if not isinstance(python, tuple) or len(python) != 3 or not isinstance(python[1], tuple):
        yield "python must be (version, integers, number)"
    array = numbers[1] if isinstance(numbers, tuple) and len(numbers) > 1 else None
    # set_state takes the long form too, and integers in a list
    if numpy_array(array) is None and not isinstance(numbers, dict) and not _integers(array):
        yield "numpy must be (name, array, position, ...)"
    if not isinstance(torch, TensorRef) or torch.dtype != "uint8" or torch.numel < _GENERATOR:
        yield f"cpu must be a tensor of at least {_GENERATOR:,} bytes"


def _integers(value: Value) -> bool:
    return isinstance(value, list) and len(value) == 624 and all(type(item) is int for item in value)


RULES: tuple[Rule, ...] = (rng_state_invalid,)
