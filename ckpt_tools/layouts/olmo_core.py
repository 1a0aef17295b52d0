"""OLMo-core: ``step<n>/`` with ``train/rank<r>.pt``, ``model_and_optim/`` (DCP), and ``.metadata.json`` at last.

A local save is made in ``step<n>-tmp/`` and renamed before the last file is written; a deletion removes that file first
(``train/checkpoint.py``).  A missing ``train/rank<r>.pt`` is replaced by that of rank 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ckpt_tools.layouts.assembly import Assembly
from ckpt_tools.layouts.assembly_dcp import assemble_at
from ckpt_tools.layouts.base import JSON, TORCH, Layout, Need, PartPattern, SlotSpec
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME

if TYPE_CHECKING:
    from ckpt_tools.layouts.view import View


def _assemble(view: View) -> Iterator[Assembly]:
    made = assemble_at(view, "model_and_optim")
    if made is not None:
        yield made


LAYOUT = Layout(
    name="olmo-core",
    title="OLMo-core",
    markers=("model_and_optim/.metadata", "model_and_optim/__{rank}_{number}.distcp"),
    directories=("step{step}",),
    staging=("step{step}-tmp",),
    parts=(
        PartPattern("model_and_optim/.metadata", Role.METADATA, ("dcp",)),
        PartPattern("model_and_optim/__{rank}_{number}.distcp", Role.CHUNKS, ("distcp",)),
        PartPattern("train/rank{rank}.pt", Role.CUSTOM, TORCH),
        PartPattern(".metadata.json", Role.RESULTS, JSON),
        PartPattern("config.json", Role.OTHER, JSON),
    ),
    slots=(SlotSpec("step", Role.CUSTOM, "global_step"), SlotSpec("epoch", Role.CUSTOM, "epoch")),
    needs={
        Role.METADATA: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.CHUNKS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.CUSTOM: Need(missing=BREAKS_RESUME, damaged=BREAKS_RESUME),
        Role.RESULTS: Need(missing=BREAKS_RESUME, damaged=BREAKS_RESUME),
    },
    order=(Role.CUSTOM, Role.CHUNKS, Role.METADATA, Role.RESULTS),
    commit=Role.RESULTS,
    unfinished="OLMo-core takes it for no checkpoint without .metadata.json; a deletion removes that file first",
    assemble=_assemble,
)
