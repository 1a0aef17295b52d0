"""``tf.train.Checkpoint``: ``P.index`` and ``P.data-00000-of-00001`` for each prefix ``P``, side by side.

Written in ``P_temp/`` first; then the shards are renamed, the index is written under its final name, and the text
file ``checkpoint`` names the newest (``tensor_bundle.cc``, ``checkpoint_management.py``).  A deletion removes the index
first.
"""

from __future__ import annotations

import re

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts.assembly_bundle import assemble, saved_with_tracker, stem
from ckpt_tools.layouts.base import TEXT, Layout, Need, PartPattern, Tracker
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL

_NAMED = re.compile(r'^model_checkpoint_path:\s*"([^"\n]+)"', re.MULTILINE)


def _target(text: str) -> str | None:
    match = _NAMED.search(text)
    return match.group(1).rpartition("/")[2] or None if match else None


def _text(name: str) -> str:
    return f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'


def _probe(listing: Listing) -> bool:
    """Shards tell; an index alone may be of anything, unless the pointer file lies beside it."""
    names = [name for name in listing.names() if stem(name) is not None]
    return any(not name.endswith(".index") for name in names) or (bool(names) and "checkpoint" in listing.files)


LAYOUT = Layout(
    name="tensorflow",
    title="tf.train.Checkpoint",
    probe=_probe,
    directories=("*-{step}",),
    single=True,
    collection=True,
    group=stem,
    staging=("*_temp", "*.tempstate*", "checkpoint.tmp*"),
    tracker=Tracker(
        "checkpoint",
        _target,
        text=_text,
        without="tf.train.latest_checkpoint then gives None, and a training that asks it starts from scratch",
        dangling="tf.train.latest_checkpoint gives None, and a training that asks it starts from scratch",
        suffix=".index",
        certain=saved_with_tracker,
    ),
    parts=(
        PartPattern("*.index", Role.METADATA, ("tensor-bundle",)),
        PartPattern("*.data-{shard}-of-{shards}", Role.CHUNKS, ("raw",)),
    ),
    run_parts=(PartPattern("checkpoint", Role.POINTER, TEXT),),
    needs={
        Role.METADATA: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.CHUNKS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
    },
    assemble=assemble,
)
