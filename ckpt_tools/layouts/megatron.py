"""Megatron-LM and Megatron-Core: ``iter_<iteration>/`` directories, the newest named in a text file of the run.

``torch_dist`` is a DCP directory: ``.metadata`` is written after all chunks, then ``metadata.json`` (Megatron-Core's
``dist_checkpointing/serialization.py``), then the tracker (``training/checkpointing.py``).  Versions whose
``metadata.json`` names a ``common_backend`` keep ``common.pt`` beside it, later ones keep that state in the chunks.
The older ``torch`` format is a directory for each tensor and pipeline rank.
"""

from __future__ import annotations

import re

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts import assembly_megatron
from ckpt_tools.layouts.base import JSON, TORCH, Layout, Need, PartPattern, SlotSpec, Tracker
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME

_RANKS = re.compile(r"mp_rank_\d\d(?:_\d\d\d){0,2}/(?:model_optim_rng|distrib_optim|model_rng)\.pt\Z")


def _target(text: str) -> str | None:
    """Megatron takes ``int()`` of the stripped text, or the word ``release``."""
    said = text.strip()
    if said == "release":
        return said
    return f"iter_{int(said):07d}" if re.fullmatch(r"\d{1,18}", said) else None


def _text(name: str) -> str:
    return str(int(name.removeprefix("iter_"))) if name.startswith("iter_") else name


_DIRECTORIES = ("iter_{step}", "release")
_TRACKER = Tracker(
    "latest_checkpointed_iteration.txt",
    _target,
    text=_text,
    without="Megatron warns that there is none and trains from scratch, unless --exit-on-missing-checkpoint is given",
)
_RUN_PARTS = (
    PartPattern("latest_checkpointed_iteration.txt", Role.POINTER),
    PartPattern("progress.txt", Role.LOG),
)


def _ranks(listing: Listing) -> bool:
    return any(_RANKS.match(path) for path in listing.files)


def _distributed(listing: Listing) -> bool:
    """``metadata.json`` or ``common.pt`` beside what only a distributed save has."""
    names = listing.files
    data = ".metadata" in names or any(name.endswith((".distcp", "/.zarray")) for name in names)
    return data and ("metadata.json" in names or "common.pt" in names)


LAYOUT = Layout(
    name="megatron",
    title="Megatron-Core torch_dist",
    probe=_distributed,
    directories=_DIRECTORIES,
    telling=True,
    tracker=_TRACKER,
    run_parts=_RUN_PARTS,
    parts=(
        PartPattern(".metadata", Role.METADATA, ("dcp",)),
        PartPattern("*/.zarray", Role.METADATA),
        PartPattern("*__{rank}_{number}.distcp", Role.CHUNKS, ("distcp",)),
        PartPattern("common.pt", Role.COMMON, TORCH),
        PartPattern("metadata.json", Role.BACKEND, JSON),
        PartPattern("integrity.json", Role.OTHER, JSON),
    ),
    slots=(
        SlotSpec("step", Role.COMMON, "iteration", editable=False),
        SlotSpec("lr", Role.COMMON, "optimizer.param_groups[*].lr", editable=False),
        SlotSpec("lr", Role.COMMON, "optimizer.optimizer.param_groups[*].lr", editable=False),
    ),
    needs={
        Role.METADATA: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.CHUNKS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.COMMON: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.BACKEND: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
    },
    order=(Role.COMMON, Role.CHUNKS, Role.METADATA),
    assemble=assembly_megatron.assemble,
    commit=Role.METADATA,
    unfinished="Megatron cannot load it: without .metadata nothing tells which tensors lie where",
)

LEGACY = Layout(
    name="megatron-torch",
    title="Megatron torch format",
    probe=_ranks,
    directories=_DIRECTORIES,
    tracker=_TRACKER,
    run_parts=_RUN_PARTS,
    parts=(
        PartPattern("mp_rank_*/model_optim_rng.pt", Role.MODEL_STATES, TORCH),
        PartPattern("mp_rank_*/model_rng.pt", Role.MODEL_STATES, TORCH),
        PartPattern("mp_rank_*/distrib_optim.pt", Role.OPTIMIZER_STATES, TORCH),
        PartPattern("mp_rank_*/optim.pt", Role.OPTIMIZER_STATES, TORCH),
        PartPattern("mp_rank_*/layer_wise_optimizer_{number}.pt", Role.OPTIMIZER_STATES, TORCH),
    ),
    slots=(
        SlotSpec("step", Role.MODEL_STATES, "iteration", editable=False),
        SlotSpec("lr", Role.MODEL_STATES, "optimizer.optimizer.param_groups[*].lr", editable=False),
    ),
    needs={
        Role.MODEL_STATES: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.OPTIMIZER_STATES: Need(missing=BREAKS_RESUME, damaged=BREAKS_RESUME),
    },
    assemble=assembly_megatron.legacy,
)
