"""llama-recipes (llama-cookbook): ``fine-tuned-<model>`` folders.

``model_checkpointing/checkpoint_handler.py``: sharded saves are a DCP directory with the roots ``model`` and ``optim``,
written over by each epoch; full ones are ``<model>-<epoch>.pt`` and ``optimizer-<model>-<epoch>.pt``.  A model's name
with a slash in it makes a folder in the folder, which may hold several of one organisation.  ``train_params.yaml`` is
written when the training ends.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts.assembly import Assembly
from ckpt_tools.layouts.assembly_dcp import assemble_at
from ckpt_tools.layouts.base import TEXT, TORCH, Layout, Need, PartPattern
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME

if TYPE_CHECKING:
    from ckpt_tools.layouts.view import View


def assemble(view: View) -> Iterator[Assembly]:
    """Yield what the folder, or the folder in it, holds."""
    for place in dict.fromkeys(posixpath.dirname(part.path) for part in view.checkpoint.parts):
        made = assemble_at(view, place)
        if made is not None:
            yield made


_FOLDERS = ("", "*/")
_SAVED = re.compile(r"(?:[^/]+/)?(?:\.metadata|__\d+_\d+\.distcp|[^/]+-\d+\.pt)\Z")


def _named(listing: Listing) -> bool:
    return os.path.basename(os.path.abspath(listing.root)).startswith("fine-tuned-")


def _probe(listing: Listing) -> bool:
    """A training that was killed has no parameters yet: then the name of the folder tells, and what is in it."""
    return _named(listing) and any(_SAVED.match(path) for path in listing.files)


def _models(listing: Listing) -> tuple[str, ...]:
    """Return the folders in the folder of an organisation, where it holds several models."""
    saved = [path for path in listing.files if _SAVED.match(path)]
    models = {path.rpartition("/")[0] for path in saved} if _named(listing) else set()
    return tuple(sorted(models)) if len(models) > 1 and "" not in models else ()


LAYOUT = Layout(
    name="llama-recipes",
    title="llama-recipes",
    markers=("train_params.yaml", "*/train_params.yaml"),
    probe=_probe,
    directories=("fine-tuned-*",),
    several=_models,
    parts=tuple(
        PartPattern(f"{folder}{name}", role, containers)
        for folder in _FOLDERS
        for name, role, containers in (
            (".metadata", Role.METADATA, ("dcp",)),
            ("__{rank}_{number}.distcp", Role.CHUNKS, ("distcp",)),
            (".metadata.tmp", Role.TEMPORARY, ()),
            ("optimizer-*-{number}.pt", Role.OPTIMIZER, TORCH),
            ("*-{number}.pt", Role.WEIGHTS, TORCH),
            ("train_params.yaml", Role.OTHER, TEXT),
        )
    ),
    needs={
        Role.METADATA: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.CHUNKS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.WEIGHTS: Need(missing=BREAKS_ALL, damaged=BREAKS_ALL),
        Role.OPTIMIZER: Need(damaged=BREAKS_RESUME),
    },
    assemble=assemble,
)
