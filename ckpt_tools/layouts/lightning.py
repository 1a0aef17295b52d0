"""PyTorch Lightning: ``epoch=0-step=4.ckpt`` files, ``last.ckpt``, and ``X.ckpt`` directories of sharded strategies.

``ModelCheckpoint`` names the files (``model_checkpoint.py``); ``hpc_ckpt_<n>`` counts resubmissions of a job, not steps
(``checkpoint_connector.py``).  A sharded save writes DCP files and then ``meta.pt``, everything else, as its last
(``strategies/fsdp.py``, ``model_parallel.py``); the DeepSpeed strategy writes a tag directory called ``checkpoint``.
A file under any other name is told by its key ``pytorch-lightning_version``: see ``rules/lightning.py``.
"""

from __future__ import annotations

import re

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts import assembly_dcp
from ckpt_tools.layouts.base import TORCH, Layout, Need, PartPattern, SlotSpec
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL

_CHUNK = re.compile(r"\.metadata|__\d+_\d+\.distcp\Z")
_OPTIMIZER, _SCHEDULER = "optimizer_states[*]", "lr_schedulers[*]"
_SLOTS = (
    SlotSpec("step", Role.COMBINED, "global_step"),
    SlotSpec("epoch", Role.COMBINED, "epoch"),
    SlotSpec("lr", Role.COMBINED, f"{_OPTIMIZER}.param_groups[*].lr"),
    SlotSpec("initial-lr", Role.COMBINED, f"{_OPTIMIZER}.param_groups[*].initial_lr"),
    SlotSpec("optimizer-step", Role.COMBINED, f"{_OPTIMIZER}.state[*].step"),
    SlotSpec("scheduler-step", Role.COMBINED, f"{_SCHEDULER}.last_epoch"),
    SlotSpec("base-lr", Role.COMBINED, f"{_SCHEDULER}.base_lrs[*]"),
    SlotSpec("last-lr", Role.COMBINED, f"{_SCHEDULER}._last_lr[*]"),
)


def _sharded(listing: Listing) -> bool:
    """``meta.pt`` beside DCP files; without it the name of the directory has to tell."""
    chunks = any(_CHUNK.match(name) for name in listing.files)
    return chunks and ("meta.pt" in listing.files or listing.root.rstrip("/").endswith(".ckpt"))


def _by_deepspeed(listing: Listing) -> bool:
    return listing.root.rstrip("/").endswith(".ckpt") and any(
        name.startswith("checkpoint/") and name.endswith("_states.pt") for name in listing.files
    )


LAYOUT = Layout(
    name="lightning",
    title="PyTorch Lightning",
    probe=_sharded,
    directories=("*step={step}*.ckpt", "*.ckpt"),
    single=True,
    parts=(
        PartPattern("meta.pt", Role.COMBINED, TORCH),
        PartPattern("*step={step}*.ckpt", Role.COMBINED, TORCH),
        PartPattern("*epoch=*.ckpt", Role.COMBINED, TORCH),
        PartPattern("last.ckpt", Role.COMBINED, TORCH),
        PartPattern("last-v{number}.ckpt", Role.COMBINED, TORCH),
        PartPattern("hpc_ckpt_{number}.ckpt", Role.COMBINED, TORCH),
        PartPattern(".metadata", Role.METADATA, ("dcp",)),
        PartPattern("__{rank}_{number}.distcp", Role.CHUNKS, ("distcp",)),
    ),
    slots=_SLOTS,
    needs={
        Role.COMBINED: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.METADATA: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.CHUNKS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
    },
    order=(Role.CHUNKS, Role.METADATA, Role.COMBINED),
    assemble=assembly_dcp.assemble,
    commit=Role.COMBINED,
    unfinished="Lightning takes it for no checkpoint: meta.pt is how it knows a sharded one",
)

DEEPSPEED = Layout(
    name="lightning-deepspeed",
    title="PyTorch Lightning with DeepSpeed",
    probe=_by_deepspeed,
    directories=LAYOUT.directories,
    parts=(),
    slots=(SlotSpec("step", Role.MODEL_STATES, "global_step"), SlotSpec("epoch", Role.MODEL_STATES, "epoch")),
)
