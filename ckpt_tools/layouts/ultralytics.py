"""Ultralytics: ``weights/last.pt``, ``best.pt`` and ``epoch<n>.pt``, written in place in this order.

A finished run is stripped: the optimizer is None and the epoch -1.  The optimizer's state is in half precision.
"""

from __future__ import annotations

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts.base import TORCH, TORCH_FILE_SLOTS, Layout, Need, PartPattern
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL


def _probe(listing: Listing) -> bool:
    """The names are everybody's; the directory's is Ultralytics's."""
    named = listing.root.rstrip("/").rpartition("/")[2] == "weights"
    return named and ("last.pt" in listing.files or "best.pt" in listing.files)


LAYOUT = Layout(
    name="ultralytics",
    title="Ultralytics",
    probe=_probe,
    directories=("epoch{epoch}.pt",),
    single=True,
    collection=True,
    parts=(
        PartPattern("last.pt", Role.COMBINED, TORCH),
        PartPattern("best.pt", Role.COMBINED, TORCH),
        PartPattern("epoch{epoch}.pt", Role.COMBINED, TORCH),
    ),
    slots=TORCH_FILE_SLOTS,
    needs={Role.COMBINED: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL)},
)
