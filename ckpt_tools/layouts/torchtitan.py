"""torchtitan: ``checkpoint/step-<n>/``, each a directory of torch.distributed.checkpoint.

A directory counts only with ``.metadata``, which is written last, or with ``model.safetensors.index.json`` of a last
save in the format of Hugging Face: torchtitan passes unfinished ones over by itself (``checkpointer/dcp.py``).
"""

from __future__ import annotations

import os

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts.assembly_dcp import assemble
from ckpt_tools.layouts.base import JSON, SAFETENSORS, Layout, Need, PartPattern, compile_name
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL

_OWN_NAME = compile_name("step-{step}")
_CHUNK = compile_name("__{rank}_{number}.distcp")


def _probe(listing: Listing) -> bool:
    """The files are those of any DCP directory: the name of the directory tells."""
    if not _OWN_NAME.match(os.path.basename(os.path.abspath(listing.root))):
        return False
    return ".metadata" in listing.files or any(_CHUNK.match(name) for name in listing.files)


LAYOUT = Layout(
    name="torchtitan",
    title="torchtitan",
    probe=_probe,
    directories=("step-{step}",),
    parts=(
        PartPattern(".metadata", Role.METADATA, ("dcp",)),
        PartPattern("__{rank}_{number}.distcp", Role.CHUNKS, ("distcp",)),
        PartPattern("model.safetensors.index.json", Role.INDEX, JSON),
        PartPattern("model-{shard}-of-{shards}.safetensors", Role.WEIGHTS, SAFETENSORS),
    ),
    needs={
        Role.METADATA: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.CHUNKS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
    },
    order=(Role.CHUNKS, Role.METADATA),
    commit=Role.METADATA,
    unfinished="torchtitan passes it over, and resumes from an older one. Or a copy left the hidden file out, as "
    "`cp dir/*` does",
    assemble=assemble,
)
