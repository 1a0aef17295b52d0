"""Runs, checkpoints, parts and roles."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ckpt_tools.core.listing import FileStat, Listing


class Role(StrEnum):
    """What a file is for."""

    WEIGHTS = "weights"
    INDEX = "index"
    ADAPTER = "adapter"
    ADAPTER_CONFIG = "adapter-config"
    OPTIMIZER = "optimizer"
    SCHEDULER = "scheduler"
    RNG = "rng"
    SCALER = "scaler"
    TRAINER_STATE = "trainer-state"
    TRAINING_ARGS = "training-args"
    CONFIG = "config"
    GENERATION_CONFIG = "generation-config"
    TOKENIZER = "tokenizer"
    DATALOADER = "dataloader"
    POINTER = "pointer"
    LOG = "log"
    RESULTS = "results"
    CUSTOM = "custom"
    COMBINED = "combined"
    TEMPORARY = "temporary"
    MARKER = "marker"
    METADATA = "metadata"
    COMMON = "common-state"
    BACKEND = "backend"
    CHUNKS = "chunks"
    MODEL_STATES = "model-states"
    OPTIMIZER_STATES = "optimizer-states"
    SIDECAR = "sidecar"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Part:
    """A file with a role; ``path`` is relative to its checkpoint.

    ``containers`` are the byte formats that its loaders read under this name, empty when any will do.
    ``rank`` is set for files that exist once per process, ``shard`` is ``(number, of how many)`` from the name.
    ``adapter`` is the name of the sub-directory of a named adapter, ``""`` at the top.
    """

    path: str
    role: Role
    layout: str
    containers: tuple[str, ...]
    stat: FileStat
    rank: int | None = None
    shard: tuple[int, int] | None = None
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place where a step, learning rate, epoch, world size ... is stored."""

    quantity: str
    part: Part
    key: str
    value: Any
    editable: bool = True


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint: a directory, or one file.

    ``path`` is POSIX, relative to the run's root (``.`` when it is the root itself).  ``step`` is what the
    directory's *name* says, None where it says nothing.  ``is_file`` is set where the checkpoint is one file,
    ``together`` where it is several files that lie directly in the run, beside those of others: ``path`` is then what
    their names begin with.
    """

    path: str
    listing: Listing
    layouts: tuple[str, ...]
    parts: tuple[Part, ...]
    unclaimed: tuple[str, ...] = ()
    step: int | None = None
    is_file: bool = False
    together: bool = False

    def of(self, *roles: Role) -> Iterator[Part]:
        """Yield the parts that have one of ``roles``, in the layout's order."""
        return (part for part in self.parts if part.role in roles)

    def first(self, *roles: Role) -> Part | None:
        return next(self.of(*roles), None)

    def has(self, *roles: Role) -> bool:
        return self.first(*roles) is not None

    @property
    def layout(self) -> str:
        return self.layouts[0]

    @property
    def size(self) -> int:
        return self.listing.size

    def place(self, path: str) -> str:
        """Return where a file of this checkpoint lies, relative to the root of the run; ``""`` is the checkpoint."""
        if self.is_file or not path:
            return self.path
        if self.together:
            return path
        return posixpath.normpath(posixpath.join(self.path, path))


@dataclass(frozen=True, slots=True)
class Stray:
    """A directory entry of a run that is no checkpoint but was meant to be one, or once was."""

    path: str
    why: str
    stat: FileStat


@dataclass(frozen=True, slots=True)
class Run:
    """An output directory: its checkpoints in ascending order of step, and its own files.

    A run made of a single checkpoint or file has one entry with the path ``.``.  ``root`` is what the user named.
    """

    root: str
    layout: str
    checkpoints: tuple[Checkpoint, ...]
    listing: Listing
    parts: tuple[Part, ...] = ()
    strays: tuple[Stray, ...] = ()
    single: bool = False
    notes: tuple[str, ...] = field(default_factory=tuple)
