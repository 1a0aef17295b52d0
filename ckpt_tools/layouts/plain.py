"""Single files of plain PyTorch loops, ``{model, optimizer, epoch}`` and the like, and directories of numbered ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts.base import TORCH, Layout, Need, PartPattern, SlotSpec
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL
from ckpt_tools.model.values import Value, as_mapping

ENDINGS = (".pt", ".pth", ".ckpt", ".pth.tar", ".tar", ".bin", ".pkl")

WEIGHTS_KEYS = ("model", "state_dict", "model_state_dict", "net", "module", "ema", "params")
OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict", "optim")
SCHEDULER_KEYS = ("scheduler", "lr_scheduler", "lr_scheduler_state_dict", "scheduler_state_dict")
OPTIMIZERS = (*OPTIMIZER_KEYS, "optimizer_states")
SCHEDULERS = (*SCHEDULER_KEYS, "lr_schedulers")
"""The same, with the lists of several that Lightning writes."""

STEP_KEYS = ("global_step", "step", "iteration", "iter", "num_updates", "steps", "steps_run")
EPOCH_KEYS = ("epoch",)


def is_name(name: str) -> bool:
    """Return whether a file of this name may be a checkpoint of a plain loop."""
    return name.endswith(ENDINGS) and not name.startswith(".")


def inside(
    combined: Mapping[Any, Value], names: tuple[str, ...], mark: str
) -> Iterator[tuple[tuple[str | int, ...], Mapping[Any, Value]]]:
    """Yield the state dicts, told by their key ``mark``, under the first of ``names`` that has any, and their keys."""
    for name in names:
        value = combined.get(name)
        several = list(enumerate(value)) if isinstance(value, list | tuple) else [(None, value)]
        found = [
            ((name,) if number is None else (name, number), inner)
            for number, each in several
            if (inner := as_mapping(each)) is not None and mark in inner
        ]
        if found:
            yield from found
            return


def _probe(listing: Listing) -> bool:
    return any(is_name(path) for path in listing.names())


LAYOUT = Layout(
    name="plain",
    title="plain PyTorch",
    single=True,
    parts=tuple(PartPattern(f"*{ending}", Role.COMBINED, (*TORCH, "pickle")) for ending in ENDINGS),
    slots=(
        *(SlotSpec("step", Role.COMBINED, key) for key in STEP_KEYS),
        *(SlotSpec("epoch", Role.COMBINED, key) for key in EPOCH_KEYS),
        *(SlotSpec("lr", Role.COMBINED, f"{key}.param_groups[*].lr") for key in OPTIMIZER_KEYS),
        *(SlotSpec("initial-lr", Role.COMBINED, f"{key}.param_groups[*].initial_lr") for key in OPTIMIZER_KEYS),
        *(SlotSpec("optimizer-step", Role.COMBINED, f"{key}.state[*].step") for key in OPTIMIZER_KEYS),
        *(SlotSpec("scheduler-step", Role.COMBINED, f"{key}.last_epoch") for key in SCHEDULER_KEYS),
        *(SlotSpec("base-lr", Role.COMBINED, f"{key}.base_lrs[*]") for key in SCHEDULER_KEYS),
        *(SlotSpec("last-lr", Role.COMBINED, f"{key}._last_lr[*]") for key in SCHEDULER_KEYS),
    ),
    needs={Role.COMBINED: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL)},
    probe=_probe,
)
