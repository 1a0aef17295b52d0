"""Single files of plain PyTorch loops, ``{model, optimizer, epoch}`` and the like, and directories of numbered ones."""

from __future__ import annotations

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts.base import TORCH, Layout, Need, PartPattern, SlotSpec
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL

ENDINGS = (".pt", ".pth", ".ckpt", ".pth.tar", ".tar", ".bin", ".pkl")

WEIGHTS_KEYS = ("model", "state_dict", "model_state_dict", "net", "module", "ema")
OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict", "optim")
SCHEDULER_KEYS = ("scheduler", "lr_scheduler", "lr_scheduler_state_dict", "scheduler_state_dict")
STEP_KEYS = ("global_step", "step", "iteration", "iter", "num_updates", "steps")
EPOCH_KEYS = ("epoch",)


def is_name(name: str) -> bool:
    """Return whether a file of this name may be a checkpoint of a plain loop."""
    return name.endswith(ENDINGS) and not name.startswith(".")


def _probe(listing: Listing) -> bool:
    return any(is_name(path) for path in listing.names())


LAYOUT = Layout(
    name="plain",
    title="plain PyTorch",
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
