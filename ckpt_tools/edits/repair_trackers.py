"""Repairs of what is written last: the file that names the checkpoint to resume from, and the metadata of DCP."""

from __future__ import annotations

import posixpath

from ckpt_tools.containers import reader
from ckpt_tools.containers.base import Content
from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.source import Extent
from ckpt_tools.edits.repair_base import MAX_WHOLE, CannotRepairError, Draft, Subject
from ckpt_tools.model.findings import Finding, Fix
from ckpt_tools.model.plan import Action, MoveFile, WriteFile
from ckpt_tools.model.tiling import fit

METADATA = ".metadata"
UNFINISHED = ".metadata.tmp"


def offer(finding: Finding, subject: Subject) -> Fix | None:
    """Return the fix of a save that ended just before its metadata got its name."""
    checkpoint = subject.checkpoint
    if checkpoint is None or finding.name != "save-interrupted":
        return None
    for path in checkpoint.listing.files:
        if posixpath.basename(path) == UNFINISHED and path.removesuffix(".tmp") not in checkpoint.listing.files:
            title = f"give {path} the name that the save would have given it"
            return Fix(title, True, "promote-metadata", {"path": path})
    return None


def rewrite(fix: Fix, subject: Subject) -> Draft:
    """Plan to let a tracker name another checkpoint."""
    path, target, text = (str(fix.params[key]) for key in ("path", "target", "text"))
    listing = (subject.checkpoint or subject.run).listing
    if "/" in path:
        raise CannotRepairError("it is in a directory of the run", f"repair {posixpath.dirname(path)} by itself")
    if target not in listing.files:
        raise CannotRepairError(f"{target} is not there")
    entry = listing.files.get(path)
    if entry is None:
        return Draft((WriteFile(path, text.encode(), None),), ((path, "text", None, text),))
    if not entry.is_file or entry.link is not None:
        raise CannotRepairError(f"{path} is no regular file")
    if entry.size > MAX_WHOLE:
        raise CannotRepairError(f"{path} has {entry.size:,} bytes, too many to be kept in the journal")
    try:
        with listing.open(path) as source:
            old = source.read(0, source.size)
    except SourceError as error:
        raise CannotRepairError(str(error)) from None
    shown = old[:80].decode("utf-8", "replace").strip()
    return Draft((WriteFile(path, text.encode(), old),), ((path, "text", shown, text),))


def promote(fix: Fix, subject: Subject) -> Draft:
    """Plan to rename a metadata file that was written completely, and that finds everything it speaks of."""
    path = str(fix.params["path"])
    listing = subject.opened().listing
    try:
        with listing.open(path) as source:
            content = reader.read(source, ("dcp",))
    except SourceError as error:
        raise CannotRepairError(str(error)) from None
    if content.container != "dcp" or not content.readable or content.problems:
        raise CannotRepairError(f"{path} was not written completely", "fall back to an older checkpoint")
    for extent in _extents(content):
        place = extent.path
        entry = listing.files.get(place)
        if entry is None or not entry.is_file:
            raise CannotRepairError(f"it speaks of {place}, which is not there", "fall back to an older checkpoint")
        if entry.size < extent.end:
            said = f"it speaks of {extent.end:,} bytes of {place}, which has {entry.size:,}"
            raise CannotRepairError(said, "fall back to an older checkpoint")
    for fqn, ref in content.tensors.items():
        if not fit(ref.shape, [(chunk.offsets, chunk.sizes) for chunk in ref.chunks]).exact:
            raise CannotRepairError(
                f"its pieces of {fqn} do not make up the tensor", "fall back to an older checkpoint"
            )
    actions: tuple[Action, ...] = (MoveFile(path, path.removesuffix(".tmp")),)
    count = len({extent.path for extent in _extents(content)})
    return Draft(actions, notes=(f"{count:,} data files hold all that it speaks of",))


def _extents(content: Content) -> list[Extent]:
    """Return the bytes of data files that a metadata file speaks of."""
    pieces = [chunk.extent for ref in content.tensors.values() for chunk in ref.chunks]
    return [*pieces, *content.facts.get("items", {}).values()]
