"""DCP's ``HuggingFaceStorageWriter`` with ``save_distributed``: the ranks' pieces as safetensors files, no metadata.

``hf_storage.py``: ``shard-<rank + 1>-model-<i>-of-<n>.safetensors``; where a piece belongs is in each header, under
``DCP_SHARDING_INFO``.  The whole shapes are nowhere: a reader takes them from the pieces that are there.
"""

from __future__ import annotations

from ckpt_tools.layouts.assembly_dcp_safetensors import assemble
from ckpt_tools.layouts.base import SAFETENSORS, Layout, Need, PartPattern
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL

LAYOUT = Layout(
    name="dcp-safetensors",
    title="torch.distributed.checkpoint (safetensors)",
    markers=("shard-{rank}-model-{shard}-of-{shards}.safetensors",),
    directories=("step-{step}", "step_{step}", "step{step}"),
    parts=(PartPattern("shard-{rank}-model-{shard}-of-{shards}.safetensors", Role.CHUNKS, SAFETENSORS),),
    needs={Role.CHUNKS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL)},
    assemble=assemble,
)
