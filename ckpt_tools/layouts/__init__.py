"""Layouts turn file names into roles.  The order of ``LAYOUTS`` is meaning: the first that claims a file keeps it."""

from __future__ import annotations

from ckpt_tools.layouts import (
    accelerate,
    dcp,
    dcp_safetensors,
    deepspeed,
    detectron2,
    fairseq,
    flax,
    fsdp,
    hf_model,
    hf_trainer,
    keras,
    lightning,
    llama_factory,
    llama_recipes,
    megatron,
    mmengine,
    nemo,
    olmo_core,
    orbax,
    peft,
    plain,
    tensorflow,
    timm,
    torchtitan,
    torchtune,
    ultralytics,
)
from ckpt_tools.layouts.base import Layout

LAYOUTS: tuple[Layout, ...] = (
    hf_trainer.LAYOUT,
    orbax.LAYOUT,
    accelerate.LAYOUT,
    torchtitan.LAYOUT,
    olmo_core.LAYOUT,
    torchtune.LAYOUT,
    lightning.DEEPSPEED,
    lightning.LAYOUT,
    nemo.LAYOUT,
    megatron.LEGACY,
    megatron.LAYOUT,
    deepspeed.LAYOUT,
    fsdp.LAYOUT,
    llama_factory.LAYOUT,
    peft.LAYOUT,
    llama_recipes.LAYOUT,
    dcp.LAYOUT,
    dcp_safetensors.LAYOUT,
    hf_model.LAYOUT,
    timm.LAYOUT,
    mmengine.LAYOUT,
    detectron2.LAYOUT,
    ultralytics.LAYOUT,
    fairseq.LAYOUT,
    flax.LAYOUT,
    keras.LAYOUT,
    tensorflow.LAYOUT,
    plain.LAYOUT,
)


def by_name(name: str) -> Layout:
    """Return the layout called ``name``; KeyError when there is none."""
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise KeyError(name)
