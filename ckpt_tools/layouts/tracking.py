"""What the trackers say: the files, in a run or in a checkpoint, that name the one to resume from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.listing import Kind, Listing, scan
from ckpt_tools.layouts import by_name
from ckpt_tools.layouts.base import Layout, Tracker
from ckpt_tools.layouts.match import is_export
from ckpt_tools.model.checkpoint import Checkpoint, Run

_MOST = 1 << 16
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Tracked:
    """A tracker, or the place where one should be.

    ``home`` is the directory of the run that it stands in (``""`` is the run, or the checkpoint, itself).  ``said`` is
    its text, None where there is no such file, ``""`` also where it cannot be read.  ``target`` is the entry that the
    text stands for, None where it stands for none, and ``there`` is whether that is a directory or file beside it.
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
        wanted = self.at(self.target) if self.target is not None and self.there else None
        return checkpoint.path == wanted or (checkpoint.together and wanted in checkpoint.listing.files)

    @property
    def quoted(self) -> str:
        """The text for a message: short, and in one line."""
        text = (self.said or "").strip()
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        return repr(shown)[1:-1].replace('"', "'")


def of_run(run: Run) -> Iterator[Tracked]:
    """Yield what tells the checkpoint of each training in a run; nothing where no loader looks for such a file."""
    if run.single:
        return
    homes: dict[str, list[str]] = {}
    for checkpoint in run.checkpoints:
        if not is_export(run, checkpoint):
            homes.setdefault(os.path.dirname(checkpoint.path), []).append(checkpoint.layout)
    for home, names in homes.items():
        listing = scan(os.path.join(run.root, home), depth=1) if home else run.listing
        yield from _trackers(map(by_name, dict.fromkeys(names)), listing, home)


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
        found = listing.files.get(target) if target else None
        there = found is not None and found.kind in (Kind.DIRECTORY, Kind.FILE)
        yield Tracked(layout, tracker, home, said, target, there, name)


def _text(listing: Listing, name: str) -> str:
    try:
        with listing.open(name) as source:
            return source.read(0, source.size).decode("utf-8", "replace")
    except SourceError:
        return ""
