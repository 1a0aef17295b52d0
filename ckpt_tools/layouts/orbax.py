"""Orbax: a directory per step, in it one per item, or the files of a single item.

Everything is written into ``<step>.orbax-checkpoint-tmp`` and renamed at the end; ``_CHECKPOINT_METADATA`` gets the
time of the commit before that.  ``commit_success.txt`` is in local saves of newer versions only, and names the place of
the save: neither says anything of a local directory that has its final name.
"""

from __future__ import annotations

from ckpt_tools.layouts.assembly_orbax import assemble
from ckpt_tools.layouts.base import JSON, TEXT, Layout, Need, PartPattern
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL

_OCDBT = ("ocdbt",)
_DATA = ("raw", "ocdbt")


def _of_item(prefix: str) -> tuple[PartPattern, ...]:
    """Return the files of an item; ``prefix`` is its directory, ``""`` where it is the checkpoint itself."""
    return (
        PartPattern(f"{prefix}_METADATA", Role.METADATA, JSON),
        PartPattern(f"{prefix}manifest.ocdbt", Role.METADATA, _OCDBT),
        PartPattern(f"{prefix}d/*", Role.CHUNKS, _DATA),
        PartPattern(f"{prefix}ocdbt.process_*/manifest.ocdbt", Role.CUSTOM, _OCDBT),
        PartPattern(f"{prefix}ocdbt.process_*/d/*", Role.CUSTOM, _DATA),
        PartPattern(f"{prefix}_sharding", Role.OTHER, JSON),
        PartPattern(f"{prefix}array_metadatas/*", Role.OTHER, JSON),
        PartPattern(f"{prefix}commit_success.txt", Role.OTHER, TEXT),
        PartPattern(f"{prefix}*/.zarray", Role.METADATA, JSON),
        PartPattern(f"{prefix}*/zarr.json", Role.METADATA, JSON),
        PartPattern(f"{prefix}*/{{number}}", Role.CHUNKS, ("raw",)),
        PartPattern(f"{prefix}*/{{number}}.*", Role.CHUNKS, ("raw",)),
    )


LAYOUT = Layout(
    name="orbax",
    title="Orbax",
    markers=("_CHECKPOINT_METADATA", "_METADATA", "*/_METADATA"),
    directories=("{step}", "*_{step}"),
    loose=True,
    staging=("*.orbax-checkpoint-tmp*",),
    parts=(
        PartPattern("_CHECKPOINT_METADATA", Role.METADATA, JSON),
        *_of_item(""),
        *_of_item("*/"),
        PartPattern("*/metadata", Role.METADATA, JSON),
    ),
    needs={
        Role.METADATA: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.CHUNKS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
    },
    assemble=assemble,
)
