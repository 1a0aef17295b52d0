"""Layouts turn file names into roles.  The order of ``LAYOUTS`` is meaning: the first that claims a file keeps it."""

from __future__ import annotations

from ckpt_tools.layouts import accelerate, hf_model, hf_trainer, llama_factory, peft, plain
from ckpt_tools.layouts.base import Layout

LAYOUTS: tuple[Layout, ...] = (
    hf_trainer.LAYOUT,
    accelerate.LAYOUT,
    llama_factory.LAYOUT,
    peft.LAYOUT,
    hf_model.LAYOUT,
    plain.LAYOUT,
)


def by_name(name: str) -> Layout:
    """Return the layout called ``name``; KeyError when there is none."""
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise KeyError(name)
