"""``Accelerator.save_state`` directories: ``checkpoints/checkpoint_<n>/``, or any directory.

``n`` counts saves, not steps; the global step is stored nowhere.  accelerate ``checkpointing.py``
(``save_accelerator_state``, ``load_accelerator_state``): a missing model, optimizer, scheduler or scaler file is an
error, trouble with the random states is only logged.
"""

from __future__ import annotations

from ckpt_tools.layouts.base import JSON, MODEL_FILES, SAFETENSORS, TORCH, TORCH_STATE_SLOTS, Layout, Need, PartPattern
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME, DEGRADES_RESUME

LAYOUT = Layout(
    name="accelerate",
    title="accelerate save_state",
    markers=("random_states_{rank}.pkl", "optimizer.bin", "scheduler.bin", "custom_checkpoint_{number}.pkl"),
    directories=("checkpoint_{number}",),
    telling=True,
    parts=(
        PartPattern("model.safetensors", Role.WEIGHTS, SAFETENSORS),
        PartPattern("model_{number}.safetensors", Role.WEIGHTS, SAFETENSORS),
        PartPattern("model-{shard}-of-{shards}.safetensors", Role.WEIGHTS, SAFETENSORS),
        PartPattern("model.safetensors.index.json", Role.INDEX, JSON),
        PartPattern("pytorch_model.bin", Role.WEIGHTS, TORCH),
        PartPattern("pytorch_model_{number}.bin", Role.WEIGHTS, TORCH),
        PartPattern("optimizer.bin", Role.OPTIMIZER, TORCH),
        PartPattern("optimizer_{number}.bin", Role.OPTIMIZER, TORCH),
        PartPattern("scheduler.bin", Role.SCHEDULER, TORCH),
        PartPattern("scheduler_{number}.bin", Role.SCHEDULER, TORCH),
        PartPattern("random_states_{rank}.pkl", Role.RNG, TORCH),
        PartPattern("custom_checkpoint_{number}.pkl", Role.CUSTOM, TORCH),
        PartPattern("sampler.bin", Role.DATALOADER, TORCH),
        PartPattern("sampler_{number}.bin", Role.DATALOADER, TORCH),
        PartPattern("dl_state_dict.bin", Role.DATALOADER, TORCH),
        PartPattern("dl_state_dict_{number}.bin", Role.DATALOADER, TORCH),
        PartPattern("scaler.pt", Role.SCALER, TORCH),
        *MODEL_FILES,
    ),
    slots=(*TORCH_STATE_SLOTS,),
    needs={
        Role.WEIGHTS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.INDEX: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.OPTIMIZER: Need(missing=BREAKS_RESUME, damaged=BREAKS_RESUME),
        Role.SCHEDULER: Need(damaged=BREAKS_RESUME),
        Role.SCALER: Need(damaged=BREAKS_RESUME),
        Role.DATALOADER: Need(damaged=BREAKS_RESUME),
        Role.CUSTOM: Need(damaged=BREAKS_RESUME),
        Role.RNG: Need(missing=DEGRADES_RESUME, damaged=DEGRADES_RESUME),
    },
    order=(
        Role.WEIGHTS,
        Role.INDEX,
        Role.OPTIMIZER,
        Role.SCHEDULER,
        Role.DATALOADER,
        Role.SCALER,
        Role.RNG,
        Role.CUSTOM,
    ),
    commit=Role.RNG,
)
