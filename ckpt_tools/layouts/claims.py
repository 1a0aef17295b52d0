"""What the entries of one directory are: which layouts claim it, and which role each file has."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ckpt_tools.core.listing import SIDECAR, FileStat, Kind, Listing, scan
from ckpt_tools.core.source import Meter
from ckpt_tools.layouts import LAYOUTS, plain
from ckpt_tools.layouts.base import Layout, PartPattern
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role

Named = tuple[Layout, str, int | None]
"""``(layout, path, number in the name)`` of a directory that has the name of a checkpoint."""


def divided(root: str, found: list[Named], meter: Meter) -> list[Named]:
    """Return what was found in ``root``, with the directories in one instead of it where each of them is a checkpoint.

    ``root`` may be such a directory itself.
    """
    own = os.path.basename(os.path.abspath(root))
    made: list[Named] = []
    for layout, path, number in found or [(each, "", None) for each in LAYOUTS if each.several and each.names(own)]:
        place = os.path.join(root, path)
        inner = layout.several(scan(place, depth=2, meter=meter)) if layout.several is not None else ()
        made += [(layout, os.path.join(path, name), None) for name in inner] or (
            [(layout, path, number)] if path else []
        )
    return made


def checkpoint_of(
    root: str, path: str, listing: Listing, step: int | None, named: Layout | None = None
) -> Checkpoint | None:
    """Return the checkpoint that a directory is, None for none; ``named`` is the layout that its name belongs to."""
    claims = [layout for layout in LAYOUTS if layout is not plain.LAYOUT and layout.claims(listing)]
    if named is None and step is None:
        named, step = _by_own_name(root, claims)
    if named is not None and named not in claims:
        own = os.path.basename(os.path.abspath(root))
        kin = [layout for layout in claims if layout.directories == named.directories or layout.names(own)]
        kin = kin or [layout for layout in claims if layout.name == "accelerate" and _state_saved(listing)]
        kin = kin or _of_ranks(claims, listing)
        named = kin[0] if kin else named  # layouts with the same names: what is inside decides
    if named is not None and named not in claims:
        claims.insert(0, named)
    primary = [layout for layout in claims if not layout.overlay]
    if any(not layout.guest for layout in primary):
        primary = [layout for layout in primary if not layout.guest]
    overlays = [layout for layout in claims if layout.overlay or (layout.guest and layout not in primary)]
    if named is not None and named in primary and primary[0] is not named and not _owns(primary[0], listing):
        primary = [named, *primary]
    chosen = [*primary[:1], *overlays]
    if not chosen:
        return None
    # Names of an overlay are its own: `*.safetensors` of another layout must not take an adapter for a model.
    parts = tuple(parts_of(listing, [*overlays, *primary[:1]]))
    if not primary and not any("/" not in part.path for part in parts if part.role is not Role.OTHER):
        return None  # adapters in sub-directories alone: a collection of checkpoints, and none itself
    claimed = {part.path for part in parts}
    unclaimed = tuple(
        name for name, entry in listing.files.items() if name not in claimed and entry.kind is not Kind.DIRECTORY
    )
    return Checkpoint(path, listing, tuple(layout.name for layout in chosen), parts, unclaimed, step)


def _state_saved(listing: Listing) -> bool:
    """Whether there are files that ``save_state`` writes and the Trainer, which has ``optimizer.bin``, never does."""
    return any(name == "scheduler.bin" or name.startswith("random_states_") for name in listing.files)


def _of_ranks(claims: list[Layout], listing: Listing) -> list[Layout]:
    """Return the guests whose rank files lie at the top: in what is another's, they have a directory of their own."""
    roles = (Role.MODEL_STATES, Role.OPTIMIZER_STATES)
    guests = [layout for layout in claims if layout.guest]
    return [each for each in guests if any(p.role in roles and "/" not in p.path for p in parts_of(listing, [each]))]


def _owns(layout: Layout, listing: Listing) -> bool:
    return layout.name in ("hf-trainer", "accelerate") and layout.claims(listing)


def _by_own_name(root: str, claims: list[Layout]) -> tuple[Layout | None, int | None]:
    name = os.path.basename(os.path.abspath(root))
    naming = [layout for layout in LAYOUTS if layout.names(name) and (layout.telling or layout in claims)]
    naming.sort(key=lambda layout: layout not in claims)
    if naming:
        return naming[0], naming[0].number(name)
    # A model alone has no step, and its directory may be numbered for anything.
    return None, next((each.number(name) for each in claims if not each.overlay and each.name != "hf-model"), None)


def parts_of(listing: Listing, layouts: Iterable[Layout], *, run_level: bool = False) -> Iterator[Part]:
    """Yield a part for every listed entry that a layout names, in the order of the tables."""
    taken: set[str] = set()
    for layout in layouts:
        for pattern in layout.run_parts if run_level else layout.parts:
            for path, entry in listing.files.items():
                if path in taken or not _fits(entry, pattern):
                    continue
                part = _part(path, entry, pattern, layout)
                if part is not None:
                    taken.add(path)
                    yield part


def _fits(entry: FileStat, pattern: PartPattern) -> bool:
    """A directory under the name of a file is claimed too, so that a rule can say so; a glob never claims one."""
    return entry.kind is not Kind.DIRECTORY or not any(mark in pattern.name for mark in "*{")


def _part(path: str, entry: FileStat, pattern: PartPattern, layout: Layout) -> Part | None:
    match = pattern.expression.match(path)
    if match is None or path.startswith(f"{SIDECAR}/"):
        return None
    fields = match.groupdict()
    shard = (int(fields["shard"]), int(fields["shards"])) if "shards" in fields else None
    rank = int(fields["rank"]) if "rank" in fields else None
    return Part(path, pattern.role, layout.name, pattern.containers, entry, rank, shard, fields.get("adapter", ""))
