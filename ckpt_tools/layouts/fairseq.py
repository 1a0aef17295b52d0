"""fairseq: ``checkpoint_<epoch>_<updates>.pt``, ``checkpoint<epoch>.pt``, ``checkpoint_last.pt``, ``..._best.pt``.

The first name is written as ``.tmp`` and renamed, the others are copies of it and not atomic: ``checkpoint_last.pt``
may be cut where its original is whole.  Names only, from fairseq's ``checkpoint_utils.py``: fairseq does
not run with current Python.
"""

from __future__ import annotations

from ckpt_tools.layouts.base import TORCH, TORCH_FILE_SLOTS, Layout, Need, PartPattern, SlotSpec
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL

_HISTORY = "optimizer_history[*]"
_OPTIMIZER = "last_optimizer_state"

LAYOUT = Layout(
    name="fairseq",
    title="fairseq",
    markers=("checkpoint_last.pt", "checkpoint_last-shard{rank}.pt"),
    directories=("checkpoint_{epoch}_{number}.pt", "checkpoint{epoch}.pt"),
    single=True,
    collection=True,
    staging=("*.pt.tmp",),
    parts=(PartPattern("*.pt.tmp", Role.TEMPORARY, TORCH), PartPattern("checkpoint*.pt", Role.COMBINED, TORCH)),
    slots=(
        SlotSpec("step", Role.COMBINED, f"{_HISTORY}.num_updates"),
        SlotSpec("epoch", Role.COMBINED, "extra_state.train_iterator.epoch"),
        SlotSpec("lr", Role.COMBINED, f"{_OPTIMIZER}.param_groups[*].lr"),
        SlotSpec("optimizer-step", Role.COMBINED, f"{_OPTIMIZER}.state[*].step"),
        *TORCH_FILE_SLOTS,
    ),
    needs={Role.COMBINED: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL)},
)
