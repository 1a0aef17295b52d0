"""What the trackers say: the files, in a run or in a checkpoint, that name the one to resume from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.listing import Kind, Listing, scan
from ckpt_tools.layouts import LAYOUTS, by_name, plain
from ckpt_tools.layouts.base import Layout, Tracker
from ckpt_tools.layouts.match import is_export
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Run

_MOST = 1 << 16
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Tracked:
    """A tracker, or the place where one should be.

    ``home`` is the directory of the run that it stands in (``""`` is the run, or the checkpoint, itself).  ``said`` is
    its text, None where there is no such file, ``""`` also where it cannot be read.  ``target`` is the checkpoint that
    the text names, None where it names none, and ``there`` is whether its directory or file lies beside it.
    ``name`` is the file that was read: the tracker, or the first that stands in for it.
    """

    layout: Layout
    tracker: Tracker
    home: str
    said: str | None
    target: str | None = None
    there: bool = False
    name: str = ""

    @property
    def path(self) -> str:
        return self.at(self.name or self.tracker.name)

    def at(self, name: str) -> str:
        """Return where an entry beside the tracker lies."""
        return f"{self.home}/{name}" if self.home else name

    def means(self, checkpoint: Checkpoint) -> bool:
        """Return whether a checkpoint of the run is the one that is named."""
        return self.target is not None and self.there and checkpoint.path == self.at(self.target)

    @property
    def quoted(self) -> str:
        """The text for a message: short, and in one line."""
        text = (self.said or "").strip()
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        return repr(shown)[1:-1].replace('"', "'")


def of_run(run: Run, *, lost: bool = True) -> Iterator[Tracked]:
    """Yield what tells the checkpoint of each training in a run; nothing where no loader looks for such a file.

    ``lost`` ones, which are not there and should be, take a look into a checkpoint.
    """
    if run.single:
        return
    homes: dict[str, list[Checkpoint]] = {}
    for checkpoint in run.checkpoints:
        if not is_export(run, checkpoint):
            homes.setdefault(os.path.dirname(checkpoint.path), []).append(checkpoint)
    for home, held in homes.items():
        listing = scan(os.path.join(run.root, home), depth=1) if home else run.listing
        names = dict.fromkeys(each.layout for each in held)
        found = list(_trackers(map(by_name, names), listing, home))
        others = (layout for layout in LAYOUTS if layout.tracker and layout.tracker.certain)
        found += (Tracked(each, each.tracker, home, None) for each in others if each.tracker and each.name not in names)
        yield from (each for each in found if each.said is not None or (lost and _owed(each, held)))


def family(tracked: Tracked, checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Return the checkpoints that a tracker is for: of its layout, or files named so that are of none without it."""
    layout, loose = tracked.layout, tracked.tracker.certain is not None
    beside = [each for each in checkpoints if os.path.dirname(each.path) == tracked.home and each.path != "."]
    return [
        each
        for each in beside
        if layout.name in each.layouts
        or (loose and each.layout == plain.LAYOUT.name and layout.names(os.path.basename(each.path)))
    ]


def _owed(tracked: Tracked, held: list[Checkpoint]) -> bool:
    """Say whether a tracker that is not there should be: one checkpoint alone was perhaps copied from its run."""
    certain = tracked.tracker.certain
    if certain is None:
        return True
    names = tracked.layout.names
    mine = [each for each in family(tracked, held) if names(os.path.basename(each.path))]
    if len({each.step for each in mine}) < 2:
        return False
    view = View(max(mine, key=lambda each: each.step or 0))
    try:
        return certain(view)
    finally:
        view.close()


def of_checkpoint(checkpoint: Checkpoint) -> Iterator[Tracked]:
    """Yield what tells which part of a checkpoint is the one, where a guest layout keeps several in it."""
    hosted = [layout for name in checkpoint.layouts[1:] if (layout := by_name(name)).guest]
    yield from _trackers(hosted, checkpoint.listing, "")


def _trackers(layouts: Iterable[Layout], listing: Listing, home: str) -> Iterator[Tracked]:
    for layout in layouts:
        tracker = layout.tracker
        if tracker is None:
            continue
        names = (tracker.name, *tracker.others)
        name = next((name for name in names if name in listing.files), tracker.name)
        entry = listing.files.get(name)
        if entry is None or not entry.is_file:
            yield Tracked(layout, tracker, home, None)
            continue
        said = _text(listing, name) if entry.size <= _MOST else ""
        target = tracker.target(said) if said.strip() else None
        found = listing.files.get(target + tracker.suffix) if target else None
        there = found is not None and found.kind in (Kind.DIRECTORY, Kind.FILE)
        yield Tracked(layout, tracker, home, said, target, there, name)


def _text(listing: Listing, name: str) -> str:
    try:
        with listing.open(name) as source:
            return source.read(0, source.size).decode("utf-8", "replace")
    except SourceError:
        return ""
