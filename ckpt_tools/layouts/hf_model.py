"""Weights alone: a downloaded or exported model, sharded or not, with or without its config."""

from __future__ import annotations

from ckpt_tools.layouts.base import JSON, MODEL_FILES, SAFETENSORS, TORCH, Layout, Need, PartPattern
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_INFERENCE, HARMLESS, Impact, Verdict

LAYOUT = Layout(
    name="hf-model",
    title="model weights",
    markers=(
        "*.safetensors",
        "*.safetensors.index.json",
        "pytorch_model*.bin",
        "pytorch_model*.bin.index.json",
    ),
    parts=(
        PartPattern("model.safetensors", Role.WEIGHTS, SAFETENSORS),
        PartPattern("model-{shard}-of-{shards}.safetensors", Role.WEIGHTS, SAFETENSORS),
        PartPattern("pytorch_model.bin", Role.WEIGHTS, TORCH),
        PartPattern("pytorch_model-{shard}-of-{shards}.bin", Role.WEIGHTS, TORCH),
        PartPattern("*.safetensors.index.json", Role.INDEX, JSON),
        PartPattern("*.bin.index.json", Role.INDEX, JSON),
        PartPattern("*-{shard}-of-{shards}.safetensors", Role.WEIGHTS, SAFETENSORS),
        PartPattern("*.safetensors", Role.WEIGHTS, SAFETENSORS),
        PartPattern("pytorch_model*.bin", Role.WEIGHTS, TORCH),
        PartPattern("training_args.bin", Role.TRAINING_ARGS, TORCH),
        *MODEL_FILES,
    ),
    needs={
        Role.WEIGHTS: Need(missing=BREAKS_INFERENCE, damaged=BREAKS_INFERENCE),
        Role.INDEX: Need(missing=BREAKS_INFERENCE, damaged=BREAKS_INFERENCE),
        Role.CONFIG: Need(missing=HARMLESS, damaged=BREAKS_INFERENCE),
        Role.GENERATION_CONFIG: Need(damaged=BREAKS_INFERENCE),
        Role.TOKENIZER: Need(damaged=Impact(Verdict.READY, Verdict.DEGRADED)),
    },
)
