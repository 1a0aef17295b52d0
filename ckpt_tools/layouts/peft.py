"""PEFT adapters, alone or inside a Trainer checkpoint: the default one at the top, named ones in sub-directories."""

from __future__ import annotations

from ckpt_tools.layouts.base import JSON, SAFETENSORS, TORCH, Layout, Need, PartPattern
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_INFERENCE

LAYOUT = Layout(
    name="peft",
    title="PEFT adapter",
    overlay=True,
    markers=(
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model.bin",
        "{adapter}/adapter_config.json",
        "{adapter}/adapter_model.safetensors",
        "{adapter}/adapter_model.bin",
    ),
    parts=(
        PartPattern("adapter_model.safetensors", Role.ADAPTER, SAFETENSORS),
        PartPattern("adapter_model.bin", Role.ADAPTER, TORCH),
        PartPattern("adapter_config.json", Role.ADAPTER_CONFIG, JSON),
        PartPattern("{adapter}/adapter_model.safetensors", Role.ADAPTER, SAFETENSORS),
        PartPattern("{adapter}/adapter_model.bin", Role.ADAPTER, TORCH),
        PartPattern("{adapter}/adapter_config.json", Role.ADAPTER_CONFIG, JSON),
        PartPattern("{adapter}/README.md", Role.OTHER),
        PartPattern("README.md", Role.OTHER),
    ),
    needs={
        Role.ADAPTER: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.ADAPTER_CONFIG: Need(missing=BREAKS_INFERENCE, damaged=BREAKS_INFERENCE),
    },
)
