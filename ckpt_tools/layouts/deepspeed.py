"""DeepSpeed's ``save_checkpoint``: ``<run>/<tag>/`` with a file for each rank, the newest tag's name in ``latest``.

The tag is ``global_step<n>`` unless the loop says otherwise.  The Trainer and accelerate give every checkpoint a tag
directory and a ``latest`` of its own, Lightning a directory ``X.ckpt`` with the tag ``checkpoint``.  ``latest`` is
written by rank 0 while other ranks may still write: nothing marks a save as complete.
"""

from __future__ import annotations

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts.assembly_zero import assemble
from ckpt_tools.layouts.assembly_zero_names import LATEST, folders, pointed, target
from ckpt_tools.layouts.base import TORCH, Layout, Need, PartPattern, SlotSpec, Tracker
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME

_NAMES = (
    ("mp_rank_*_model_states.pt", Role.MODEL_STATES),
    ("zero_pp_rank_{rank}_mp_rank_*_model_states.pt", Role.MODEL_STATES),
    ("layer_*-model_states.pt", Role.MODEL_STATES),
    ("layer_*_expert_*_mp_rank_*_model_states.pt", Role.MODEL_STATES),
    ("expert_*_mp_rank_*_model_states.pt", Role.MODEL_STATES),
    ("zero_pp_rank_{rank}_mp_rank_*optim_states.pt", Role.OPTIMIZER_STATES),
    ("*_zero_pp_rank_{rank}_mp_rank_*optim_states.pt", Role.OPTIMIZER_STATES),
    ("expp_rank_{rank}_mp_rank_*_optim_states.pt", Role.OPTIMIZER_STATES),
    ("zero/*/fp32.pt", Role.MODEL_STATES),
    ("zero/*/*.pt", Role.OPTIMIZER_STATES),
    ("zero/optimizer_state.pt", Role.OPTIMIZER_STATES),
)
_BASE = "optimizer_state_dict.base_optimizer_state"
_STAGE_3 = "optimizer_state_dict.optimizer_state_dict"
_OPTIMIZERS = (
    (Role.OPTIMIZER_STATES, f"{_BASE}."),
    (Role.OPTIMIZER_STATES, f"{_STAGE_3}."),
    (Role.OPTIMIZER_STATES, "optimizer."),
    (Role.OPTIMIZER_STATES, "optimizer.optimizer_state_dict."),
    (Role.OPTIMIZER_STATES, ""),
    (Role.MODEL_STATES, "optimizer."),
    (Role.MODEL_STATES, "optimizer.optimizer_state_dict."),
)


def _probe(listing: Listing) -> bool:
    """Rank files at the top, in the one directory that has any, or in the one that ``latest`` names.

    Where the Trainer's state lies beside ``latest``, a tag was here, whatever became of it.
    """
    found = folders(listing)
    lost = not found and {"trainer_state.json", LATEST} <= listing.files.keys()
    return len(found) == 1 or "" in found or pointed(listing) in found or lost


LAYOUT = Layout(
    name="deepspeed",
    title="DeepSpeed",
    directories=("global_step{step}", "global_step{step}_universal"),
    tracker=Tracker(
        LATEST,
        target,
        without="DeepSpeed warns, loads nothing, and training starts from scratch",
        others=("latest_universal",),
    ),
    guest=True,
    probe=_probe,
    assemble=assemble,
    parts=(
        *(PartPattern(f"{folder}{name}", role, TORCH) for folder in ("", "*/") for name, role in _NAMES),
        PartPattern("latest", Role.POINTER),
        PartPattern("latest_universal", Role.POINTER),
        PartPattern("zero_to_fp32.py", Role.OTHER),
        PartPattern("zero_to_torch.py", Role.OTHER),
    ),
    run_parts=(
        PartPattern("latest", Role.POINTER),
        PartPattern("latest_universal", Role.POINTER),
        PartPattern("zero_to_fp32.py", Role.OTHER),
        PartPattern("zero_to_torch.py", Role.OTHER),
    ),
    slots=(
        SlotSpec("step", Role.MODEL_STATES, "global_steps"),
        SlotSpec("world-size", Role.MODEL_STATES, "dp_world_size", editable=False),
        SlotSpec("scheduler-step", Role.MODEL_STATES, "lr_scheduler.last_epoch"),
        SlotSpec("scheduler-step", Role.MODEL_STATES, "lr_scheduler.last_batch_iteration"),
        SlotSpec("base-lr", Role.MODEL_STATES, "lr_scheduler.base_lrs[*]"),
        SlotSpec("last-lr", Role.MODEL_STATES, "lr_scheduler._last_lr[*]"),
        *(SlotSpec("optimizer-step", role, f"{at}state[*].step") for role, at in _OPTIMIZERS),
        *(SlotSpec("lr", role, f"{at}param_groups[*].lr") for role, at in _OPTIMIZERS),
        *(SlotSpec("initial-lr", role, f"{at}param_groups[*].initial_lr") for role, at in _OPTIMIZERS),
    ),
    needs={
        Role.MODEL_STATES: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.OPTIMIZER_STATES: Need(missing=BREAKS_RESUME, damaged=BREAKS_RESUME),
        Role.POINTER: Need(missing=BREAKS_RESUME, damaged=BREAKS_RESUME),
    },
)
