"""torchtune: ``epoch_<n>/`` or ``step_<n>/`` with shards and an index, and ``recipe_state.pt`` to resume from.

Weights, index, adapter, copies of the base model's files, then the recipe's state: in the directory, or, in older
versions, in ``recipe_state/`` beside it.  The last one of a run has none on purpose.  Adapters in PEFT's form are left
to that layout.  Names only, from torchtune's ``_checkpointer.py``: it does not run with current torch.
"""

from __future__ import annotations

from ckpt_tools.layouts.base import JSON, MODEL_FILES, SAFETENSORS, TORCH, Layout, Need, PartPattern, SlotSpec
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME

LAYOUT = Layout(
    name="torchtune",
    title="torchtune",
    markers=("recipe_state.pt",),
    directories=("epoch_{epoch}", "step_{step}"),
    parts=(
        PartPattern("model-{shard}-of-{shards}.safetensors", Role.WEIGHTS, SAFETENSORS),
        PartPattern("model-{shard}-of-{shards}.bin", Role.WEIGHTS, TORCH),
        PartPattern("model.safetensors.index.json", Role.INDEX, JSON),
        PartPattern("pytorch_model.bin.index.json", Role.INDEX, JSON),
        PartPattern("adapter_model.pt", Role.CUSTOM, TORCH),
        PartPattern("recipe_state.pt", Role.COMBINED, TORCH),
        *MODEL_FILES,
    ),
    slots=(
        SlotSpec("epoch", Role.COMBINED, "epochs_run"),
        SlotSpec("step", Role.COMBINED, "steps_run"),
        SlotSpec("lr", Role.COMBINED, "optimizer.param_groups[*].lr"),
        SlotSpec("optimizer-step", Role.COMBINED, "optimizer.state[*].step"),
    ),
    needs={
        Role.WEIGHTS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.INDEX: Need(damaged=BREAKS_ALL),
        Role.COMBINED: Need(damaged=BREAKS_RESUME),
    },
)
