"""NeMo 2: ``<name>/weights/`` as Megatron-Core writes it, and ``<name>/context/`` with what makes the model again.

While a save goes on an empty file ``<name>-unfinished`` lies beside it; NeMo passes such a checkpoint over and deletes
it at the next start (``nemo/lightning/pytorch/callbacks/model_checkpoint.py``).
A ``.nemo`` file is a tar archive, and is
only named as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts import assembly_megatron
from ckpt_tools.layouts.base import JSON, TORCH, Layout, Need, PartPattern, SlotSpec
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_INFERENCE

if TYPE_CHECKING:
    from ckpt_tools.layouts.assembly import Assembly
    from ckpt_tools.layouts.view import View


def _assemble(view: View) -> Iterator[Assembly]:
    return assembly_megatron.within(view, "weights")


def _probe(listing: Listing) -> bool:
    """``context/`` beside ``weights/``; a save that was killed has only the second."""
    weights = any(path.startswith("weights/") and path.endswith((".distcp", "/.metadata")) for path in listing.files)
    return weights and ("weights/metadata.json" in listing.files or "context" in listing.files)


LAYOUT = Layout(
    name="nemo",
    title="NeMo 2",
    probe=_probe,
    directories=("*step={step}*", "*-last"),
    parts=(
        PartPattern("weights/.metadata", Role.METADATA, ("dcp",)),
        PartPattern("weights/*__{rank}_{number}.distcp", Role.CHUNKS, ("distcp",)),
        PartPattern("weights/common.pt", Role.COMMON, TORCH),
        PartPattern("weights/metadata.json", Role.BACKEND, JSON),
        PartPattern("context/io.json", Role.CONFIG, JSON),
        PartPattern("context/model.yaml", Role.OTHER),
    ),
    slots=(SlotSpec("step", Role.COMMON, "global_step", editable=False),),
    needs={
        Role.METADATA: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.CHUNKS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.COMMON: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.BACKEND: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.CONFIG: Need(missing=BREAKS_INFERENCE, damaged=BREAKS_INFERENCE),
    },
    order=(Role.COMMON, Role.CHUNKS, Role.METADATA),
    assemble=_assemble,
    commit=Role.METADATA,
    unfinished="NeMo cannot load it: without weights/.metadata nothing tells which tensors lie where",
)
