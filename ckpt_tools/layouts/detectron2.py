"""fvcore's ``PeriodicCheckpointer``, which detectron2 uses: ``model_<iteration>.pth``, ``model_final.pth``.

Files are written in place, then ``last_checkpoint`` gets the name of the newest.  The iteration counts from 0.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts.base import TEXT, TORCH, TORCH_FILE_SLOTS, Layout, Need, PartPattern, SlotSpec, Tracker
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL
from ckpt_tools.model.values import as_mapping, whole

if TYPE_CHECKING:
    from ckpt_tools.layouts.view import View

_OWN = ("last_checkpoint", "metrics.json", "config.yaml")
_NAME = re.compile(r"model_\d{7}\.pth\Z")


def _probe(listing: Listing) -> bool:
    """Numbered files, and something else that fvcore or detectron2 writes: others count with seven digits too."""
    return any(_NAME.match(name) for name in listing.names()) and any(name in listing.files for name in _OWN)


def _certain(view: View) -> bool:
    """What fvcore's ``Checkpointer`` saves, which also names it: the model and the iteration under these keys."""
    held = view.mapping(Role.COMBINED) or {}
    return as_mapping(held.get("model")) is not None and whole(held.get("iteration")) is not None


LAYOUT = Layout(
    name="detectron2",
    title="detectron2 (fvcore)",
    probe=_probe,
    directories=("model_{step}.pth", "model_final.pth"),
    single=True,
    collection=True,
    tracker=Tracker(
        "last_checkpoint",
        lambda text: text.strip() if text.strip() and "/" not in text else None,
        without="detectron2 then loads the weights that the configuration names, and trains from the beginning",
        certain=_certain,
    ),
    parts=(PartPattern("model_{step}.pth", Role.COMBINED, TORCH), PartPattern("model_*.pth", Role.COMBINED, TORCH)),
    run_parts=(PartPattern("last_checkpoint", Role.POINTER, TEXT),),
    slots=(SlotSpec("step", Role.COMBINED, "iteration"), *TORCH_FILE_SLOTS),
    needs={Role.COMBINED: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL)},
)
