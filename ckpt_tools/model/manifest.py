"""The manifest of a sealed checkpoint: what was in it, as data, and how that compares with what is there now.

The documented form is in docs/manifest.md.  A manifest is read from the checkpoint itself, so nothing in it is
believed: types, sizes and paths are checked, and no path that it names is ever opened for its own sake.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpt_tools.core.listing import SIDECAR
from ckpt_tools.model.summaries import Segment

SCHEMA = "ckpt-tools/manifest/1"
_FAMILY = "ckpt-tools/manifest/"
NAME = "manifest.json"

LIMIT = 1 << 28
"""Bytes of the largest manifest that is read; 300,000 tensors take about a quarter of it."""

_DIGEST = re.compile(r"[a-z0-9-]{1,32}:[0-9a-f]{64}\Z")
_MAX_SIZE = 1 << 63
_MAX_RANK = 64


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

    ``tensors`` is None where its header was not read.  ``mtime_ns`` is a hint: a file whose bytes changed and whose time
    did not was not written by anybody.
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


# The document ----------------------------------------------------------------------------------------------


def document(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as the documented JSON value, without its own checksum."""
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "tool": manifest.tool,
        "created": manifest.created,
        "name": manifest.name,
        "layouts": list(manifest.layouts),
        "step": manifest.step,
        "files": {path: _file_document(file) for path, file in manifest.files.items()},
    }
    if manifest.environment is not None:
        found["environment"] = dict(manifest.environment)
    if manifest.data:
        found["data"] = [
            {
                "name": data.name,
                "files": {path: {"size": size, "digest": digest} for path, (size, digest) in data.files.items()},
            }
            for data in manifest.data
        ]
    return found


def _file_document(file: SealedFile) -> dict[str, Any]:
    found: dict[str, Any] = {"size": file.size, "digest": file.digest}
    if file.mtime_ns is not None:
        found["mtime_ns"] = file.mtime_ns
    if file.container:
        found["container"] = file.container
    found["segments"] = [
        [each.length, each.digest] if each.tensor is None else [each.length, None, each.tensor]
        for each in file.segments or ()
    ]
    if file.tensors:
        found["tensors"] = {name: _tensor_document(tensor) for name, tensor in file.tensors.items()}
    return found


def _tensor_document(tensor: SealedTensor) -> dict[str, Any]:
    found: dict[str, Any] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "digest": tensor.digest}
    if tensor.largest is not None:
        found["largest"] = tensor.largest
    return found


def parse(value: Any) -> Manifest:
    """Return the manifest that a decoded JSON value is.

    Raises:
        ManifestError: it is none; the message says where.
    """
    top = _object(value, "the document")
    schema = top.get("schema")
    if schema != SCHEMA:
        if isinstance(schema, str) and schema.startswith(_FAMILY):
            raise ManifestError(f"is of the schema {schema[:60]!r}, which this version does not know")
        raise ManifestError(f"names no schema {SCHEMA!r}")
    files = {}
    for path, each in _object(top.get("files"), "files").items():
        files[_path(path)] = _parsed_file(each, path)
    step = top.get("step")
    environment = top.get("environment")
    return Manifest(
        _text(top, "tool"),
        _text(top, "created"),
        _text(top, "name"),
        tuple(_word(each, "layouts") for each in _list(top.get("layouts", []), "layouts")),
        None if step is None else _number(step, "step"),
        files,
        None
        if environment is None
        else {key: _word(each, "environment") for key, each in _object(environment, "environment").items()},
        tuple(_parsed_data(each) for each in _list(top.get("data", []), "data")),
    )


def _parsed_file(value: Any, path: str) -> SealedFile:
    where = f"files[{path[:80]!r}]"
    found = _object(value, where)
    size = _number(found.get("size"), f"{where}.size")
    tensors = {
        name: _parsed_tensor(each, f"{where}.tensors[{name[:80]!r}]")
        for name, each in _object(found.get("tensors", {}), f"{where}.tensors").items()
    }
    mtime = found.get("mtime_ns")
    container = found.get("container", "")
    segments = []
    offset = 0
    for each in _list(found.get("segments"), f"{where}.segments"):
        segment = _segment(each, offset, tensors, f"{where}.segments")
        segments.append(segment)
        offset += segment.length
    if offset != size:
        raise ManifestError(f"{where}: its segments have {offset:,} bytes, its size is {size:,}")
    return SealedFile(
        size,
        _digest(found.get("digest"), f"{where}.digest"),
        mtime if type(mtime) is int else None,
        _word(container, f"{where}.container"),
        tuple(segments),
        tensors,
    )


def _segment(value: Any, offset: int, tensors: Mapping[str, SealedTensor], where: str) -> Segment:
    parts = _list(value, where)
    if len(parts) not in (2, 3):
        raise ManifestError(f"{where}: a segment has {len(parts)} parts")
    length = _number(parts[0], where)
    if len(parts) == 2:
        return Segment(offset, length, None, _digest(parts[1], where))
    name = _word(parts[2], where)
    tensor = tensors.get(name)
    if tensor is None or tensor.digest is None:
        raise ManifestError(f"{where}: {name[:80]!r} is no tensor of the file, or has no digest")
    return Segment(offset, length, name, tensor.digest)


def _parsed_tensor(value: Any, where: str) -> SealedTensor:
    found = _object(value, where)
    shape = _list(found.get("shape"), f"{where}.shape")
    if len(shape) > _MAX_RANK:
        raise ManifestError(f"{where}.shape has {len(shape)} dimensions")
    digest, largest = found.get("digest"), found.get("largest")
    return SealedTensor(
        _word(found.get("dtype"), f"{where}.dtype"),
        tuple(_number(size, f"{where}.shape") for size in shape),
        None if digest is None else _digest(digest, f"{where}.digest"),
        float(largest) if isinstance(largest, float) or (type(largest) is int and largest < _MAX_SIZE) else None,
    )


def _parsed_data(value: Any) -> SealedData:
    found = _object(value, "data")
    files: dict[str, tuple[int, str]] = {}
    for path, each in _object(found.get("files"), "data.files").items():
        entry = _object(each, "data.files")
        size, digest = _number(entry.get("size"), "data.files"), _digest(entry.get("digest"), "data.files")
        files[_path(path) if path else ""] = size, digest
    return SealedData(_text(found, "name"), files)


def _path(path: str) -> str:
    """Return a path of the manifest when it stays inside the checkpoint and is none of the tool's own."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in path or len(path) > 4096:
        raise ManifestError(f"the path {path[:80]!r} leads out of the checkpoint")
    if parts[0] == SIDECAR:
        raise ManifestError(f"the path {path[:80]!r} belongs to this tool")
    return path


def _of(kind: type, words: str) -> Callable[[Any, str], Any]:
    def checked(value: Any, where: str) -> Any:
        if not isinstance(value, kind):
            raise ManifestError(f"{where}: {words} is expected, not {type(value).__name__}")
        return value

    return checked


_object = _of(dict, "an object")
_list = _of(list, "a list")
_word = _of(str, "a text")


def _text(found: Mapping[str, Any], key: str) -> str:
    text: str = _word(found.get(key, ""), key)
    return text[:1000]


def _number(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value < _MAX_SIZE:
        raise ManifestError(f"{where}: a number from 0 to 2**63 is expected")
    return value


def _digest(value: Any, where: str) -> str:
    text: str = _word(value, where)
    if not _DIGEST.match(text):
        raise ManifestError(f"{where}: {text[:80]!r} is no digest")
    return text
