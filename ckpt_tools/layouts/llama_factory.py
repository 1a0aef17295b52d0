"""LLaMA-Factory's own files around a Trainer run, and the value heads of its reward and PPO stages."""

from __future__ import annotations

from ckpt_tools.layouts.base import JSON, SAFETENSORS, TEXT, TORCH, Layout, Need, PartPattern
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL

LAYOUT = Layout(
    name="llama-factory",
    title="LLaMA-Factory",
    overlay=True,
    markers=(
        "trainer_log.jsonl",
        "llamaboard_config.yaml",
        "training_args.yaml",
        "value_head.safetensors",
        "value_head.bin",
    ),
    parts=(
        PartPattern("value_head.safetensors", Role.CUSTOM, SAFETENSORS),
        PartPattern("value_head.bin", Role.CUSTOM, TORCH),
    ),
    run_parts=(
        PartPattern("trainer_log.jsonl", Role.LOG, ("jsonl",)),
        PartPattern("all_results.json", Role.RESULTS, JSON),
        PartPattern("train_results.json", Role.RESULTS, JSON),
        PartPattern("eval_results.json", Role.RESULTS, JSON),
        PartPattern("predict_results.json", Role.RESULTS, JSON),
        PartPattern("training_args.yaml", Role.OTHER, TEXT),
        PartPattern("llamaboard_config.yaml", Role.OTHER, TEXT),
    ),
    needs={Role.CUSTOM: Need(damaged=BREAKS_ALL)},
)
