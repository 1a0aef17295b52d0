"""Keras: ``.keras`` archives, ``.weights.h5`` and the old ``.h5``, each a file by itself."""

from __future__ import annotations

from ckpt_tools.layouts.base import Layout, Need, PartPattern
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL

LAYOUT = Layout(
    name="keras",
    title="Keras",
    markers=("*.keras", "*.h5", "*.hdf5"),
    single=True,
    collection=True,
    parts=(
        PartPattern("*.keras", Role.COMBINED, ("keras-zip",)),
        PartPattern("*.h5", Role.COMBINED, ("hdf5",)),
        PartPattern("*.hdf5", Role.COMBINED, ("hdf5",)),
    ),
    needs={Role.COMBINED: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL)},
)
