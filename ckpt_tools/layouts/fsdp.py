"""FSDP as accelerate saves it, and the Trainer through it: in directories or files of its own beside the others.

accelerate ``utils/fsdp_utils.py`` (``save_fsdp_model``, ``save_fsdp_optimizer``): ``SHARDED_STATE_DICT`` gives one DCP
directory for the model and one for the optimizer, ``FULL_STATE_DICT`` one file each, written by rank 0, whose optimizer
goes by parameter names; ``LOCAL_STATE_DICT`` and ``use_dcp=False`` give a file per rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ckpt_tools.layouts import assembly_ranks
from ckpt_tools.layouts.assembly import Assembly
from ckpt_tools.layouts.assembly_dcp import assemble_at
from ckpt_tools.layouts.base import TORCH, Layout, Need, PartPattern
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME

if TYPE_CHECKING:
    from ckpt_tools.layouts.view import View

_PLACE = re.compile(r"((?:pytorch_model_fsdp|optimizer)_\d+)/")


def assemble(view: View) -> Iterator[Assembly]:
    """Yield the model's and the optimizer's directories, or their files of each rank."""
    places = dict.fromkeys(match[1] for part in view.checkpoint.parts if (match := _PLACE.match(part.path)))
    for place in sorted(places, key=lambda place: (place.startswith("optimizer"), place)):
        made = assemble_at(view, place, "FSDP")
        if made is not None:
            yield made
    yield from assembly_ranks.assemble(view, "FSDP")


LAYOUT = Layout(
    name="fsdp",
    title="FSDP",
    markers=(
        "pytorch_model_fsdp_*/.metadata",
        "pytorch_model_fsdp_*/__{rank}_{number}.distcp",
        "optimizer_*/__{rank}_{number}.distcp",
        "pytorch_model_fsdp.bin",
        "pytorch_model_fsdp_{number}.bin",
        "pytorch_model_fsdp_rank{rank}.bin",
        "pytorch_model_fsdp_{number}_rank{rank}.bin",
    ),
    parts=(
        PartPattern("pytorch_model_fsdp_*/.metadata", Role.METADATA, ("dcp",)),
        PartPattern("optimizer_*/.metadata", Role.METADATA, ("dcp",)),
        PartPattern("pytorch_model_fsdp_*/__{rank}_{number}.distcp", Role.CHUNKS, ("distcp",)),
        PartPattern("optimizer_*/__{rank}_{number}.distcp", Role.CHUNKS, ("distcp",)),
        PartPattern("pytorch_model_fsdp_*/.metadata.tmp", Role.TEMPORARY),
        PartPattern("optimizer_*/.metadata.tmp", Role.TEMPORARY),
        PartPattern("pytorch_model_fsdp.bin", Role.WEIGHTS, TORCH),
        PartPattern("pytorch_model_fsdp_{number}.bin", Role.WEIGHTS, TORCH),
        PartPattern("pytorch_model_fsdp_rank{rank}.bin", Role.MODEL_STATES, TORCH),
        PartPattern("pytorch_model_fsdp_{number}_rank{rank}.bin", Role.MODEL_STATES, TORCH),
        PartPattern("optimizer_{number}_rank{rank}.bin", Role.OPTIMIZER_STATES, TORCH),
    ),
    needs={
        Role.METADATA: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.CHUNKS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.WEIGHTS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.MODEL_STATES: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.OPTIMIZER_STATES: Need(missing=BREAKS_RESUME, damaged=BREAKS_RESUME),
    },
    guest=True,
    assemble=assemble,
)
