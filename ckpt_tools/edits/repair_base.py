"""What a repair is planned on and what it comes to: shared by the planners of the single kinds of fix."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_tools.core.durable import Disk, look
from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.listing import FileStat
from ckpt_tools.edits.journal import Home, home_of
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Part, Run
from ckpt_tools.model.findings import Fix
from ckpt_tools.model.plan import STAGED, Action, MoveFile, Plan

MAX_WHOLE = 1 << 26
"""Bytes of the largest file that a repair keeps in the journal as a whole."""


class CannotRepairError(Exception):
    """A fix cannot be planned on what is there; ``way_out`` is what to do instead."""

    def __init__(self, reason: str, way_out: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.way_out = way_out


@dataclass(frozen=True, slots=True)
class Subject:
    """What a fix is for: a checkpoint of a run with its contents, or the run itself (``checkpoint`` None)."""

    run: Run
    checkpoint: Checkpoint | None
    view: View | None

    @property
    def location(self) -> str:
        """Where it lies on this machine."""
        if self.checkpoint is None or self.checkpoint.path == ".":
            return self.run.root
        return os.path.join(self.run.root, self.checkpoint.path)

    @property
    def home(self) -> Home:
        return home_of(self.location)

    @property
    def files(self) -> Mapping[str, FileStat]:
        return (self.checkpoint or self.run).listing.files

    def part(self, path: str) -> Part:
        """Return the part called ``path``, a regular file."""
        for part in self.checkpoint.parts if self.checkpoint is not None else ():
            if part.path == path and part.stat.is_file:
                return part
        raise CannotRepairError(f"{path} is no file of the checkpoint")

    def opened(self) -> View:
        if self.view is None:
            raise CannotRepairError("it is about a whole run")
        return self.view

    def bytes_of(self, path: str) -> bytes:
        """Return a whole small file."""
        try:
            with self.opened().listing.open(path) as source:
                if source.size > MAX_WHOLE:
                    raise CannotRepairError(f"{path} has {source.size:,} bytes, too many to be kept in the journal")
                return source.read(0, source.size)
        except SourceError as error:
            raise CannotRepairError(str(error)) from None

    def aside(self, path: str) -> MoveFile:
        """Return the move that sets a file or directory aside, to a free name in the quarantine."""
        home, name, number = self.home, f"{self.home.sidecar}/quarantine/{path}", 1
        free = name
        while look(home.at(free)) is not None:
            number += 1
            free = f"{name}.{number}"
        return MoveFile(path, free)


@dataclass(frozen=True, slots=True)
class Staged:
    """A new file that is too large for the journal: written completely under ``path`` before the plan begins.

    ``write`` makes it; ``check`` says what is wrong with it then, None when nothing is.  Where ``kind`` is set, its own
    library has to load it too (``rng``: with what the Trainer allows itself for rng files).
    """

    path: str
    size: int
    write: Callable[[Disk, str], None]
    check: Callable[[str], str | None] = lambda place: None
    kind: str = ""
    rng: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """A planned repair; ``changes`` are ``(path, key, old, new)`` for people, as are ``notes``."""

    actions: tuple[Action, ...]
    changes: tuple[tuple[str, str, Any, Any], ...] = ()
    notes: tuple[str, ...] = ()
    staged: tuple[Staged, ...] = ()

    def plan(self, title: str, files: Mapping[str, FileStat]) -> Plan:
        return Plan.of(title, self.actions, files)


Planner = Callable[[Fix, Subject], Draft]


def stage_name(home: Home, path: str) -> str:
    """Return where a new file waits until it takes its place."""
    return f"{home.sidecar}/{STAGED}/{path}"


def parents(disk: Disk, home: Home, path: str) -> None:
    """Make the directories that lead to ``path``."""
    parts = path.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        place = home.at("/".join(parts[:depth]))
        if look(place) is None:
            disk.mkdir(place)
            disk.sync_directory(os.path.dirname(place))
