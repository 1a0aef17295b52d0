"""timm's ``CheckpointSaver``: ``last``, ``model_best``, ``checkpoint-<epoch>`` and ``recovery-*``, all ``.pth.tar``.

Written as ``tmp.pth.tar`` and renamed to ``last``; the others are hard links to it.  Where links work, the old ``last``
is removed before the rename, so that a crash leaves ``tmp.pth.tar`` alone, and whole.
"""

from __future__ import annotations

from ckpt_tools.layouts.base import TORCH, TORCH_FILE_SLOTS, Layout, Need, PartPattern
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL

LAYOUT = Layout(
    name="timm",
    title="timm",
    markers=("last.pth.tar", "tmp.pth.tar", "recovery-{epoch}-{number}.pth.tar"),
    directories=("checkpoint-{epoch}.pth.tar", "recovery-{epoch}-{number}.pth.tar"),
    single=True,
    collection=True,
    staging=("tmp.pth.tar", "recovery_tmp.pth.tar"),
    parts=(
        PartPattern("tmp.pth.tar", Role.TEMPORARY, TORCH),
        PartPattern("recovery_tmp.pth.tar", Role.TEMPORARY, TORCH),
        PartPattern("*.pth.tar", Role.COMBINED, TORCH),
    ),
    slots=TORCH_FILE_SLOTS,
    needs={Role.COMBINED: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL)},
)
