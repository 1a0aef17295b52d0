"""The Trainer of transformers 4.31 to 5.x: ``<output_dir>/checkpoint-<step>/``.

Names, write order and what a resume reads: transformers ``trainer.py`` (``_save_checkpoint``,
``_load_from_checkpoint``, ``_load_optimizer_and_scheduler``, ``_load_rng_state``).
"""

from __future__ import annotations

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts.base import (
    JSON,
    MODEL_FILES,
    SAFETENSORS,
    TORCH,
    TORCH_STATE_SLOTS,
    Layout,
    Need,
    PartPattern,
    SlotSpec,
)
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import (
    BREAKS_ALL,
    BREAKS_INFERENCE,
    BREAKS_RESUME,
    DEGRADES_RESUME,
    HARMLESS,
    Impact,
    Verdict,
)

_OWN = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_0.pth")


def _probe(listing: Listing) -> bool:
    """Two of the Trainer's own names: one alone may be any loop's."""
    return sum(name in listing.files for name in _OWN) >= 2


LAYOUT = Layout(
    name="hf-trainer",
    title="Hugging Face Trainer",
    markers=("trainer_state.json",),
    probe=_probe,
    directories=("checkpoint-{step}",),
    telling=True,
    staging=("tmp-checkpoint-{step}", "tmp-checkpoint-*"),
    parts=(
        PartPattern("model.safetensors", Role.WEIGHTS, SAFETENSORS),
        PartPattern("model-{shard}-of-{shards}.safetensors", Role.WEIGHTS, SAFETENSORS),
        PartPattern("pytorch_model.bin", Role.WEIGHTS, TORCH),
        PartPattern("pytorch_model-{shard}-of-{shards}.bin", Role.WEIGHTS, TORCH),
        PartPattern("model.safetensors.index.json", Role.INDEX, JSON),
        PartPattern("pytorch_model.bin.index.json", Role.INDEX, JSON),
        PartPattern("pytorch_model_fsdp.bin", Role.WEIGHTS, TORCH),
        PartPattern("optimizer.pt", Role.OPTIMIZER, TORCH),
        PartPattern("optimizer.bin", Role.OPTIMIZER, TORCH),
        PartPattern("scheduler.pt", Role.SCHEDULER, TORCH),
        PartPattern("scaler.pt", Role.SCALER, TORCH),
        PartPattern("rng_state.pth", Role.RNG, TORCH),
        PartPattern("rng_state_{rank}.pth", Role.RNG, TORCH),
        PartPattern("trainer_state.json", Role.TRAINER_STATE, JSON),
        PartPattern("training_args.bin", Role.TRAINING_ARGS, TORCH),
        PartPattern("checkpoint-is-incomplete.txt", Role.MARKER),
        PartPattern("latest", Role.POINTER),
        PartPattern("tokens_state.json", Role.OTHER, JSON),
        PartPattern("args.json", Role.OTHER, JSON),
        *MODEL_FILES,
    ),
    run_parts=(
        PartPattern("trainer_state.json", Role.TRAINER_STATE, JSON),
        PartPattern("training_args.bin", Role.TRAINING_ARGS, TORCH),
        PartPattern("all_results.json", Role.RESULTS, JSON),
        PartPattern("train_results.json", Role.RESULTS, JSON),
        PartPattern("eval_results.json", Role.RESULTS, JSON),
    ),
    slots=(
        SlotSpec("step", Role.TRAINER_STATE, "global_step"),
        SlotSpec("epoch", Role.TRAINER_STATE, "epoch"),
        SlotSpec("max-steps", Role.TRAINER_STATE, "max_steps", editable=False),
        *TORCH_STATE_SLOTS,
    ),
    needs={
        Role.WEIGHTS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.INDEX: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.ADAPTER: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.ADAPTER_CONFIG: Need(missing=BREAKS_INFERENCE, damaged=BREAKS_INFERENCE),
        Role.OPTIMIZER: Need(missing=DEGRADES_RESUME, damaged=BREAKS_RESUME),
        Role.SCHEDULER: Need(missing=DEGRADES_RESUME, damaged=BREAKS_RESUME),
        Role.SCALER: Need(missing=DEGRADES_RESUME, damaged=BREAKS_RESUME),
        Role.RNG: Need(missing=DEGRADES_RESUME, damaged=BREAKS_RESUME),
        Role.TRAINER_STATE: Need(missing=BREAKS_RESUME, damaged=BREAKS_RESUME),
        Role.CONFIG: Need(missing=BREAKS_INFERENCE, damaged=BREAKS_ALL),
        Role.GENERATION_CONFIG: Need(missing=HARMLESS, damaged=BREAKS_INFERENCE),
        Role.TOKENIZER: Need(missing=HARMLESS, damaged=Impact(Verdict.READY, Verdict.DEGRADED)),
    },
    order=(
        Role.WEIGHTS,
        Role.INDEX,
        Role.ADAPTER,
        Role.CONFIG,
        Role.TOKENIZER,
        Role.TRAINING_ARGS,
        Role.OPTIMIZER,
        Role.SCHEDULER,
        Role.SCALER,
        Role.RNG,
        Role.TRAINER_STATE,
    ),
    commit=Role.TRAINER_STATE,
)
