"""Tensors whose chunks are files within files, opened so that what cannot be opened costs no other tensor."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.listing import Listing
from ckpt_tools.layouts.assembly import unpack
from ckpt_tools.model.tensors import TensorRef


def unpacked(listing: Listing, tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef | str]:
    """Return the tensors with the places of their elements, or why one has none."""
    try:
        found = unpack(listing, tensors)
    except SourceError:
        found = {}
    told: dict[str, TensorRef | str] = {}
    for name, ref in tensors.items():
        try:
            now = found[name] if found else unpack(listing, {name: ref})[name]
            told[name] = now if now.chunks or not ref.chunks else _why(ref)
        except SourceError as error:
            told[name] = str(error)
    return told


def _why(ref: TensorRef) -> str:
    kinds = sorted({chunk.inside for chunk in ref.chunks if chunk.inside})
    places = sorted({chunk.extent.path for chunk in ref.chunks})
    return f"not every chunk of it in {', '.join(places[:3])} is a readable {' or '.join(kinds)}"
