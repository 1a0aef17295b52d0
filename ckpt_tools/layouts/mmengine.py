"""mmengine's ``CheckpointHook``: ``epoch_<n>.pth`` or ``iter_<n>.pth``, then ``last_checkpoint`` with its full path.

Files are written in place.  With ``max_keep_ckpts`` the old one is deleted before the new one is saved.  A resume
follows the path as it stands (``find_latest_checkpoint``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts.base import (
    TEXT,
    TORCH,
    TORCH_FILE_SLOTS,
    Layout,
    Need,
    PartPattern,
    SlotSpec,
    Tracker,
    compile_name,
)
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL
from ckpt_tools.model.values import as_mapping

if TYPE_CHECKING:
    from ckpt_tools.layouts.view import View

_NAMES = ("epoch_{epoch}.pth", "iter_{step}.pth", "best_*_epoch_{epoch}.pth", "best_*_iter_{step}.pth")


def _probe(listing: Listing) -> bool:
    names = [compile_name(name) for name in _NAMES[:2]]
    return "last_checkpoint" in listing.files and any(name.match(path) for name in names for path in listing.names())


def _certain(view: View) -> bool:
    """What MMEngine's hook saved; with ``out_dir`` it names them from another directory, that of the logs."""
    meta = as_mapping((view.mapping(Role.COMBINED) or {}).get("meta")) or {}
    return "mmengine_version" in meta and "out_dir" not in str(meta.get("cfg"))


LAYOUT = Layout(
    name="mmengine",
    title="MMEngine",
    probe=_probe,
    directories=_NAMES,
    single=True,
    collection=True,
    tracker=Tracker(
        "last_checkpoint",
        lambda text: text.strip().rpartition("/")[2] or None,
        without="mmengine then trains from the beginning",
        absolute=True,
        certain=_certain,
    ),
    parts=tuple(PartPattern(name, Role.COMBINED, TORCH) for name in _NAMES),
    run_parts=(PartPattern("last_checkpoint", Role.POINTER, TEXT),),
    slots=(
        SlotSpec("step", Role.COMBINED, "meta.iter"),
        SlotSpec("epoch", Role.COMBINED, "meta.epoch"),
        *TORCH_FILE_SLOTS,
    ),
    needs={Role.COMBINED: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL)},
)
