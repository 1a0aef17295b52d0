"""The manifest of a sealed checkpoint: what was in it, as data, and how that compares with what is there now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ckpt_tools.model.summaries import Segment

NAME = "manifest.json"

LIMIT = 1 << 28
"""Bytes of the largest manifest that is read; 300,000 tensors take about a quarter of it."""


class ManifestError(ValueError):
    """A document that is no manifest, or not one of this version."""


@dataclass(frozen=True, slots=True)
class SealedTensor:
    """A tensor; ``digest`` is None where its elements could not be read in order, ``largest`` where nobody looked."""

    dtype: str
    shape: tuple[int, ...]
    digest: str | None = None
    largest: float | None = None


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A file.  ``digest`` and ``segments`` are None where its bytes were not read.

    ``tensors`` is None where its header was not read.  ``mtime_ns`` is a hint: a file whose bytes changed and
    whose time did not was not written by anybody.
    """

    size: int
    digest: str | None = None
    mtime_ns: int | None = None
    container: str = ""
    segments: tuple[Segment, ...] | None = None
    tensors: Mapping[str, SealedTensor] | None = None


@dataclass(frozen=True, slots=True)
class SealedData:
    """A file or directory of training data: its own name, and its files below it (``""``: it is one file)."""

    name: str
    files: Mapping[str, tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A sealed checkpoint.  ``files`` are by POSIX path relative to it, so that it may be moved and renamed."""

    tool: str
    created: str
    name: str
    layouts: tuple[str, ...]
    step: int | None
    files: Mapping[str, SealedFile]
    environment: Mapping[str, str] | None = None
    data: tuple[SealedData, ...] = ()


# What changed ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TensorChange:
    """``how`` is ``missing``, ``extra``, ``form`` (dtype or shape) or ``bytes``; ``offset`` is where it is now."""

    name: str
    how: str
    then: str = ""
    now: str = ""
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file that is not as it was sealed.

    ``between`` are the runs ``(offset, length)`` of changed bytes that belong to no tensor, None where the file was cut
    into other segments than today's or was not read.  ``quiet`` says that its time of change is the sealed one.
    """

    path: str
    then: int
    now: int
    tensors: tuple[TensorChange, ...] = ()
    between: tuple[tuple[int, int], ...] | None = None
    quiet: bool = False

    @property
    def resized(self) -> bool:
        return self.then != self.now


@dataclass(frozen=True, slots=True)
class Changes:
    """``read`` are the files of which every byte was compared, ``unread`` those of which only the size was."""

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    changed: tuple[FileChange, ...] = ()
    read: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        return bool(self.missing or self.extra or self.changed)


@dataclass(frozen=True, slots=True)
class Seal:
    """A checkpoint's manifest, held against the checkpoint.

    ``place`` is where it is, ``problem`` why it is of no use.  ``now`` is today's environment, None where nobody asked;
    ``drift`` are differences of the data in words, None where it was not looked at.
    """

    place: str
    manifest: Manifest | None = None
    problem: str = ""
    changes: Changes = Changes()
    now: Mapping[str, str] | None = None
    drift: tuple[str, ...] | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)


def compare(then: Mapping[str, SealedFile], now: Mapping[str, SealedFile]) -> Changes:
    """Return what changed from one state to the other, as far as both know it."""
    changed = []
    read: list[str] = []
    unread: list[str] = []
    for path, old in then.items():
        new = now.get(path)
        if new is None:
            continue
        change = _file(path, old, new)
        if change is not None:
            changed.append(change)
        (read if old.digest is not None and new.digest is not None else unread).append(path)
    missing = tuple(path for path in then if path not in now)
    extra = tuple(path for path in now if path not in then)
    return Changes(missing, extra, tuple(changed), tuple(read), tuple(unread))


def _file(path: str, old: SealedFile, new: SealedFile) -> FileChange | None:
    same = old.size == new.size
    if same and old.digest is not None and old.digest == new.digest:
        return None
    tensors: list[TensorChange] = []
    if old.tensors is not None and new.tensors is not None:
        tensors += _tensors(old.tensors, new.tensors, new.segments)
    between: list[tuple[int, int]] | None = None
    if same and old.segments is not None and new.segments is not None:
        between = _segments(old.segments, new.segments, tensors)
    known = old.digest is not None and new.digest is not None
    if same and not known and not tensors and not between:
        return None
    quiet = old.mtime_ns is not None and old.mtime_ns == new.mtime_ns
    return FileChange(path, old.size, new.size, tuple(tensors), None if between is None else tuple(between), quiet)


def _tensors(
    old: Mapping[str, SealedTensor], new: Mapping[str, SealedTensor], segments: tuple[Segment, ...] | None
) -> list[TensorChange]:
    at = {segment.tensor: segment.offset for segment in segments or () if segment.tensor is not None}
    found = []
    for name, then in old.items():
        now = new.get(name)
        if now is None:
            found.append(TensorChange(name, "missing", form(then)))
        elif (then.dtype, then.shape) != (now.dtype, now.shape):
            found.append(TensorChange(name, "form", form(then), form(now), at.get(name)))
        elif then.digest is not None and now.digest is not None and then.digest != now.digest:
            found.append(TensorChange(name, "bytes", then.digest, now.digest, at.get(name)))
    found += [TensorChange(name, "extra", "", form(now), at.get(name)) for name, now in new.items() if name not in old]
    return found


def _segments(
    old: tuple[Segment, ...], new: tuple[Segment, ...], tensors: list[TensorChange]
) -> list[tuple[int, int]] | None:
    """Return the changed runs that are no tensor's, None where the cuts differ; tensors found changed are added.

    Segments that were not read today are not compared.
    """
    cuts = {(each.offset, each.length): each for each in old}
    known = {change.name for change in tensors}
    between = []
    for now in new:
        then = cuts.get((now.offset, now.length))
        if then is None or then.tensor != now.tensor:
            return None
        if then.digest == now.digest:
            continue
        if then.tensor is None:
            between.append((then.offset, then.length))
        elif then.tensor not in known:
            tensors.append(TensorChange(then.tensor, "bytes", then.digest, now.digest, then.offset))
    return between


def form(tensor: SealedTensor) -> str:
    """Return dtype and shape in words: ``float32 [2, 3]``."""
    return f"{tensor.dtype} [{', '.join(map(str, tensor.shape))}]"
