"""Flax: msgpack files, ``checkpoint_<step>`` of ``flax.training.checkpoints`` and ``*.msgpack`` of ``to_bytes``.

Since it hands saves to Orbax, ``checkpoint_<step>`` is a directory of that layout; the files are those of older
versions, or of ``flax_use_orbax_checkpointing=False``.  A save writes ``<name>tmp`` and renames.
"""

from __future__ import annotations

from ckpt_tools.layouts.base import TORCH, Layout, Need, PartPattern, SlotSpec
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL

MSGPACK = ("msgpack",)

LAYOUT = Layout(
    name="flax",
    title="Flax",
    markers=("checkpoint_{step}", "*.msgpack"),
    directories=("checkpoint_{step}",),
    single=True,
    collection=True,
    staging=("checkpoint_{step}tmp", "*.msgpacktmp"),
    parts=(
        PartPattern("checkpoint_{step}", Role.COMBINED, (*MSGPACK, *TORCH, "pickle")),  # a name that others use too
        PartPattern("*.msgpack", Role.COMBINED, MSGPACK),
    ),
    slots=(
        SlotSpec("step", Role.COMBINED, "step", editable=False),
        SlotSpec("lr", Role.COMBINED, "opt_state.hyperparams.learning_rate", editable=False),
    ),
    needs={Role.COMBINED: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL)},
)
