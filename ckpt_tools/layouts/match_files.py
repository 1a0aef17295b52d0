"""Checkpoints that are files: the one that a user names, those that lie beside each other, and those of a prefix."""

from __future__ import annotations

import os
import re
from dataclasses import replace

from ckpt_tools.containers.kinds import KINDS, identify
from ckpt_tools.core.errors import NothingFoundError
from ckpt_tools.core.listing import Kind, Listing, scan
from ckpt_tools.core.source import Meter
from ckpt_tools.layouts import LAYOUTS, by_name, plain
from ckpt_tools.layouts.base import JSON, Layout
from ckpt_tools.layouts.claims import parts_of
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role, Run

_NUMBER = re.compile(r"(\d+)(?!.*\d)")
_FRACTION = re.compile(r"\d+\.\d+(?=[._-]|\Z)")


def one_file(root: str, listing: Listing) -> Run:
    """Return the run of one file.

    Raises:
        NothingFoundError: it is no piece of a checkpoint.
    """
    (name,) = listing.files
    if not listing.files[name].is_file:
        raise NothingFoundError(f"{root}: is a {listing.files[name].kind}, not a file or directory")
    part: Part | None = None
    for layout in LAYOUTS:
        part = next(parts_of(listing, [layout]), None) if not layout.collection or layout.gathers(listing) else None
        if part is not None:
            break
    part = part or _of_home(root, name) or _nameless(root, name, listing)
    of_ranks = (Role.CHUNKS, Role.METADATA, Role.MODEL_STATES, Role.OPTIMIZER_STATES)
    numbered = part.rank is None and part.role not in of_ranks
    step = _step(by_name(part.layout), name) if numbered else None
    checkpoint = Checkpoint(".", listing, (part.layout,), (part,), (), step, is_file=True)
    return Run(root, part.layout, (checkpoint,), listing, single=True)


def _nameless(root: str, name: str, listing: Listing) -> Part:
    """Return a file whose name says nothing as the checkpoint that it may be; JSON may be a piece of one."""
    with listing.open(name) as source:
        kind = identify(source)
    json = name.endswith((".json", ".jsonl"))
    if kind in ("text", "unknown") and not json:
        raise NothingFoundError(f"{root}: is {KINDS[kind]}, no checkpoint", hint="give the checkpoint, or the run")
    return Part(name, Role.COMBINED, plain.LAYOUT.name, JSON if json or kind in JSON else (), listing.files[name])


def _of_home(root: str, name: str) -> Part | None:
    """Return what a file whose name says nothing is in the checkpoint that it lies in, a directory or two above."""
    pieces = os.path.abspath(root).split(os.sep)
    for up in (2, 3):
        home, path = os.sep.join(pieces[:-up]), "/".join(pieces[-up:])
        listing = scan(home, depth=up) if home else None
        if listing is None or path not in listing.files:
            continue
        own = Listing(home, {path: listing.files[path]}, {})
        claims = [layout for layout in LAYOUTS if layout is not plain.LAYOUT and layout.claims(listing)]
        part = next(parts_of(own, claims), None)
        if part is not None:
            return replace(part, path=name)
    return None


def numbered(root: str, top: Listing) -> Run | None:
    """Return the run whose checkpoints are files directly in ``root``."""
    layouts = [layout for layout in LAYOUTS if layout.gathers(top)]
    groups: dict[tuple[str, str], Listing] = {}
    together = set()
    for name in top.names():
        listing = Listing(top.root, {name: top.files[name]}, {}, top.meter)
        layout = _gatherer(layouts, name, listing)
        if layout is None:
            continue
        prefix = layout.group(name) if layout.group is not None else None
        key = (layout.name, prefix or name)
        if prefix is not None:
            together.add(key)
        groups[key] = (
            Listing(top.root, {**groups[key].files, **listing.files}, {}, top.meter) if key in groups else listing
        )
    if not groups:
        return None
    checkpoints = [_of_files(key, listing, key in together) for key, listing in groups.items()]
    checkpoints.sort(key=lambda checkpoint: (checkpoint.step is None, checkpoint.step or 0, checkpoint.path))
    first = next(layout for layout in LAYOUTS if any(layout.name == each.layout for each in checkpoints))
    return Run(root, first.name, tuple(checkpoints), top, tuple(parts_of(top, [first], run_level=True)))


def prefixed(root: str, meter: Meter) -> Run | None:
    """Return the checkpoint whose files begin with ``root``, as TensorFlow names one."""
    home, name = os.path.split(root)
    if not name or not os.path.isdir(home or "."):
        return None
    top = scan(home or ".", depth=1, meter=meter)
    for layout in LAYOUTS:
        if layout.group is None:
            continue
        files = {path: top.files[path] for path in top.names() if layout.group(path) == name}
        if files:
            listing = Listing(top.root, files, {}, meter)
            made = replace(_of_files((layout.name, name), listing, together=True), path=".")
            return Run(root, layout.name, (made,), listing, single=True)
    return None


def _gatherer(layouts: list[Layout], name: str, listing: Listing) -> Layout | None:
    """Return the layout that takes a file for a checkpoint or part of one."""
    if name.startswith(".") or listing.files[name].kind is Kind.DIRECTORY:
        return None
    for layout in layouts:
        part = next(parts_of(listing, [layout]), None)
        if part is not None:
            return None if part.role is Role.TEMPORARY else layout
    return None


def _of_files(key: tuple[str, str], listing: Listing, together: bool) -> Checkpoint:
    layout, name = by_name(key[0]), key[1]
    parts, step = tuple(parts_of(listing, [layout])), _step(layout, name)
    return Checkpoint(name, listing, (layout.name,), parts, (), step, is_file=not together, together=together)


def _step(layout: Layout, name: str) -> int | None:
    """Return the step in the name of a file, where the layout says which of its numbers that is."""
    return layout.number(name) if layout.single and layout.names(name) else _number(name)


def _number(name: str) -> int | None:
    """Return the last number of a name such as ``epoch_12_loss_0.06.pt``; the 6, or ``-00001-of-00003``, is no step."""
    stem = name.split(".", 1)[0]
    match = _NUMBER.search(_FRACTION.sub("", name).split(".", 1)[0]) or _NUMBER.search(stem)
    return int(match.group(1)) if match and "-of-" not in stem and len(match.group(1)) < 19 else None
