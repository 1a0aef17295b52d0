"""torch.distributed.checkpoint: a directory of data files, one or more per rank, and one ``.metadata``.

``filesystem.py`` (``_FileSystemWriter.finish``): data files get their final names at once, ``.metadata`` is written to
``.metadata.tmp`` and renamed when all ranks are done.  ``use_collectives=False`` writes ``__<rank>.metadata`` instead.
"""

from __future__ import annotations

from ckpt_tools.layouts.assembly_dcp import assemble
from ckpt_tools.layouts.base import Layout, Need, PartPattern
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL

METADATA = ("dcp",)
DATA = ("distcp",)

LAYOUT = Layout(
    name="dcp",
    title="torch.distributed.checkpoint",
    markers=(".metadata", "__{rank}.metadata", ".metadata.tmp", "*__{rank}_{number}.distcp"),
    directories=("step-{step}", "step_{step}", "step{step}", "checkpoint-{step}", "checkpoint_{step}"),
    parts=(
        PartPattern(".metadata", Role.METADATA, METADATA),
        PartPattern("__{rank}.metadata", Role.METADATA, METADATA),
        PartPattern("__{rank}_{number}.distcp", Role.CHUNKS, DATA),
        PartPattern("*__{rank}_{number}.distcp", Role.CHUNKS, DATA),
        PartPattern(".metadata.tmp", Role.TEMPORARY),
        PartPattern("__{rank}.metadata.tmp", Role.TEMPORARY),
    ),
    needs={
        Role.METADATA: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.CHUNKS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
    },
    order=(Role.CHUNKS, Role.METADATA),
    commit=Role.METADATA,
    unfinished="it says what every tensor is and where; without it torch stops with `metadata is None`. Or a copy left "
    "the hidden file out, as `cp dir/*` does",
    assemble=assemble,
)
