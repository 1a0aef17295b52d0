"""Weights that are not read by this version: why, and what reads them."""

from __future__ import annotations

from ckpt_tools.layouts.assembly_ranks import RankFiles
from ckpt_tools.layouts.assembly_zero_ranks import ZeroAssembly
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Role

_PIECE = ("it is one of several files, which hold tensors only together", "name the checkpoint")
_LAYOUTS = {
    "keras": (
        "Keras keeps them in HDF5, which is not read by this version",
        "load it with keras and save the weights",
    ),
    "megatron-torch": (
        "each file holds the slices of its rank, and how they were cut is not stored",
        "Megatron-LM's tools/checkpoint/convert.py puts them together",
    ),
    "orbax": ("the arrays of Orbax are not read by this version", "restore it with orbax.checkpoint"),
}


def why(view: View) -> tuple[str, str] | None:
    """Return why the weights of a checkpoint are not read and what reads them; None where they are, or are damaged."""
    checkpoint = view.checkpoint
    if view.errors or view.weights or view.adapters():
        return None
    if checkpoint.is_file and not checkpoint.together and _is_piece(view):
        return _PIECE
    sliced = next((each.unplaced for each in view.assemblies if isinstance(each, ZeroAssembly) and each.unplaced), None)
    if sliced:
        return sliced
    if "fsdp" in checkpoint.layouts and checkpoint.has(Role.MODEL_STATES):
        return next((each.unplaced for each in view.assemblies if isinstance(each, RankFiles)), None)
    if checkpoint.layout == "orbax" and not any(each.outline for each in view.assemblies):
        return None  # items of JSON alone
    return next((_LAYOUTS[layout] for layout in checkpoint.layouts if layout in _LAYOUTS), None)


def _is_piece(view: View) -> bool:
    """Return whether a single file is a data file of several, or tells what is in others."""
    parts = view.checkpoint.parts
    bundle = any(content.container == "tensor-bundle" for part in parts if (content := view.content(part)))
    return bundle or view.checkpoint.has(Role.CHUNKS, Role.METADATA)
