"""Manifests on the disk: where they are, how they are written and read, and how a checkpoint compares with its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ckpt_tools.containers.base import Content
from ckpt_tools.core.errors import CkptError, NothingFoundError, SourceError, UsageError
from ckpt_tools.core.listing import SIDECAR, FileStat
from ckpt_tools.core.source import FileSource, Source
from ckpt_tools.layouts.match import is_file, newer_siblings, older_siblings
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Run
from ckpt_tools.model.manifest import (
    LIMIT,
    NAME,
    Changes,
    Manifest,
    ManifestError,
    Seal,
    SealedFile,
    SealedTensor,
    compare,
)
from ckpt_tools.model.manifest_document import document, parse
from ckpt_tools.model.summaries import DataSummary, FileSummary, Segment, TensorSummary
from ckpt_tools.model.tensors import TensorRef

SMALL = 1 << 20
"""Files of at most so many bytes are compared byte by byte, however shallow the look is."""

_HEAD = b"ckpt-tools/manifest/1\0"


def place_of(run: Run, checkpoint: Checkpoint) -> tuple[str, str]:
    """Return the directory of the tool's own files for a checkpoint, and its path relative to the checkpoint's.

    For a checkpoint that is one file, or several beside others, the directory is beside it.
    """
    listing = checkpoint.listing
    if checkpoint.together:
        name = os.path.basename(run.root) if checkpoint.path == "." else checkpoint.path
        return os.path.join(listing.root, SIDECAR, name), f"{SIDECAR}/{name}"
    single = is_file(run) or checkpoint.path in listing.files
    inner = f"{SIDECAR}/{next(iter(listing.files))}" if single else SIDECAR
    return os.path.join(listing.root, inner), inner


# The file --------------------------------------------------------------------------------------------------


def encode(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest: JSON with one file of the checkpoint on a line."""
    body = document(manifest)
    files = body.pop("files")
    lines = [f"{_json(path)}: {_json(each)}" for path, each in files.items()]
    listed = ",\n  ".join(lines)
    head = "".join(f"{_json(key)}: {_json(value)},\n " for key, value in body.items())
    checksum = _checksum({**body, "files": files})
    return f'{{{head}"files": {{\n  {listed}\n }},\n "checksum": {_json(checksum)}}}\n'.encode()


def decode(data: bytes) -> Manifest:
    """Return the manifest that some bytes are.

    Raises:
        ManifestError: they are none, or were changed after they were written.
    """
    from ckpt_tools.numerics.digest import ALGORITHM, file_digest

    try:
        value = json.loads(data)
    except RecursionError:
        raise ManifestError("is nested too deeply") from None
    except ValueError as error:
        raise ManifestError(f"is no JSON: {error}") from None
    manifest = parse(value)
    stored = value.pop("checksum", None)
    if stored != _checksum(value):
        raise ManifestError("was changed after it was written: its own checksum does not fit")
    for path, file in manifest.files.items():
        segments = file.segments or ()
        words = [file.digest or "", *(each.digest for each in segments)]
        if any(not word.startswith(f"{ALGORITHM}:") for word in words):
            raise ManifestError(f"has digests other than {ALGORITHM}, which this version does not know")
        if file.digest != file_digest((each.length, each.digest) for each in segments):
            raise ManifestError(f"contradicts itself about {path!r}")
    return manifest


def load(location: str, name: str) -> Manifest:
    """Read a manifest.

    Raises:
        SourceError: it cannot be read; ``errno`` tells one that is not there.
        ManifestError: it is none.
    """
    with FileSource(location, name) as source:
        if source.size > LIMIT:
            raise ManifestError(f"has {source.size:,} bytes; at most {LIMIT:,} are read")
        return decode(source.read(0, source.size))


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _checksum(value: Mapping[str, Any]) -> str:
    from ckpt_tools.numerics.digest import PieceHasher, finish

    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    except (RecursionError, ValueError):
        raise ManifestError("is nested too deeply") from None
    hasher = PieceHasher()
    hasher.update(memoryview(text.encode()))
    return finish(_HEAD, hasher.finish())


def beside(run: Run) -> tuple[DataSummary, ...]:
    """Return the magnitudes that the sealed checkpoints next to a single one had; nothing else of them is read."""
    parent = os.path.dirname(os.path.abspath(run.root))
    found = []
    for name in (*older_siblings(run)[:1], *newer_siblings(run)[:1]):
        inner = f"{name}/{SIDECAR}/{NAME}"
        try:
            manifest = load(os.path.join(parent, inner), inner)
        except (SourceError, ManifestError):
            continue  # not sealed; what is wrong with its manifest is told where it is looked at itself
        found.append(DataSummary({path: _magnitudes(path, file) for path, file in manifest.files.items()}))
    return tuple(found)


def _magnitudes(path: str, file: SealedFile) -> FileSummary:
    known = {name: each.largest for name, each in (file.tensors or {}).items() if each.largest is not None}
    tensors = {name: TensorSummary(TensorRef(name, "", (), ()), largest=largest) for name, largest in known.items()}
    return FileSummary(path, file.size, file.container, "", tensors)


# Comparison ------------------------------------------------------------------------------------------------


def attach(run: Run, view: View, against: str | None = None) -> None:
    """Read the manifest of a checkpoint, where it has one, or the one named by the user, into ``view.seal``.

    Raises:
        CkptError: the one named by the user cannot be used.
    """
    if against is not None:
        try:
            manifest = load(against, against)
        except SourceError as error:
            kind = NothingFoundError if error.errno == 2 else CkptError
            raise kind(str(error)) from None
        except ManifestError as error:
            raise CkptError(f"{against}: the manifest {error}") from None
        view.seal = Seal(against, manifest)
        return
    directory, inner = place_of(run, view.checkpoint)
    if inner == SIDECAR and SIDECAR not in view.listing.files:
        return
    name = f"{inner}/{NAME}"
    try:
        view.seal = Seal(name, load(os.path.join(directory, NAME), name))
    except SourceError as error:
        if error.errno not in (2, 20):  # there is none
            view.seal = Seal(name, problem=f"cannot be read: {error.reason.lower()}")
    except ManifestError as error:
        view.seal = Seal(name, problem=str(error))


def one_checkpoint(run: Run, against: str) -> None:
    """Raise an error when a manifest, which speaks of one checkpoint, is held against a run of several."""
    if len(run.checkpoints) != 1:
        raise UsageError(
            f"--against {against}: a manifest speaks of one checkpoint, and {run.root} holds {len(run.checkpoints)}",
            hint="name the checkpoint",
        )


def hold(view: View, data: Iterable[str] | None = None) -> None:
    """Compare a checkpoint with its manifest, as deep as it was read, and keep what differs in ``view.seal``.

    Raises:
        CkptError: the data that the user named could not be read.
    """
    seal = view.seal
    if seal is None or seal.manifest is None:
        return
    try:
        _hold(view, seal, seal.manifest, data)
    except CkptError:
        raise
    except Exception as error:  # noqa: BLE001 - a fault of ours, which the engine reports as CK001
        view.crashes[seal.place] = error


def _hold(view: View, seal: Seal, manifest: Manifest, data: Iterable[str] | None) -> None:
    now = None
    if manifest.environment is not None:
        from ckpt_tools.ops.environment import gather

        now = gather()
    drift = None
    if data is not None and manifest.data:
        from ckpt_tools.ops.sealed_data import drift_of

        drift = tuple(drift_of(manifest.data, tuple(data), deep=view.data is not None))
    view.seal = replace(seal, changes=_changes(view, manifest), now=now, drift=drift)


def _changes(view: View, manifest: Manifest) -> Changes:
    now: dict[str, SealedFile] = {}
    for path, entry in view.listing.files.items():
        if entry.is_file and path.split("/", 1)[0] != SIDECAR:
            now[path] = _current(view, path, entry, manifest.files.get(path))
    return compare(manifest.files, now)


def _current(view: View, path: str, entry: FileStat, sealed: SealedFile | None) -> SealedFile:
    """Return what is known of a file now."""
    summary = view.data.files.get(path) if view.data is not None else None
    if sealed is None:
        return SealedFile(entry.size, mtime_ns=entry.mtime_ns)
    if summary is not None and (summary.digest is not None or summary.segments):
        found = of_summary(summary, entry)
        if entry.size == sealed.size and found.digest not in (None, sealed.digest) and not _readable(view, path):
            return replace(_recut(view, path, sealed), mtime_ns=entry.mtime_ns)
        return found
    found = SealedFile(entry.size, mtime_ns=entry.mtime_ns, tensors=_headers(view, path) if sealed.tensors else None)
    if entry.size == sealed.size and entry.size <= SMALL:
        try:
            with view.listing.open(path) as source:
                return replace(digested(source, sealed), mtime_ns=entry.mtime_ns)
        except SourceError as error:
            view.errors.setdefault(path, error)
    return found


def of_summary(summary: FileSummary, entry: FileStat) -> SealedFile:
    """Return a file that was read whole as it stands in a manifest."""
    tensors = {
        name: SealedTensor(each.ref.dtype, each.ref.shape, each.digest, each.largest)
        for name, each in summary.tensors.items()
    }
    return SealedFile(summary.size, summary.digest, entry.mtime_ns, summary.container, summary.segments, tensors)


def digested(source: Source, sealed: SealedFile) -> SealedFile:
    """Read a file of the sealed size and return its digests, cut as the manifest cuts it.

    Raises:
        SourceError: it cannot be read.
    """
    from ckpt_tools.numerics.digest import BYTES, PieceHasher, file_digest, finish, tensor_head

    segments = []
    for each in sealed.segments or ():
        hasher = PieceHasher()
        for piece in source.window(each.offset, each.length).chunks():
            hasher.update(piece)
        tensor = (sealed.tensors or {}).get(each.tensor) if each.tensor is not None else None
        head = tensor_head(tensor.dtype, tensor.shape) if tensor is not None else BYTES
        segments.append(Segment(each.offset, each.length, each.tensor, finish(head, hasher.finish())))
    digest = file_digest((each.length, each.digest) for each in segments)
    return SealedFile(source.size, digest, segments=tuple(segments))


def _recut(view: View, path: str, sealed: SealedFile) -> SealedFile:
    """Read a file again, cut as the manifest cuts it: its own header no longer tells where its tensors are."""
    try:
        with view.listing.open(path) as source:
            return digested(source, sealed) if source.size == sealed.size else SealedFile(source.size)
    except SourceError as error:
        view.errors.setdefault(path, error)
        return SealedFile(sealed.size)


def _content(view: View, path: str) -> Content | None:
    part = next((part for part in view.checkpoint.parts if part.path == path and part.containers), None)
    return view.content(part) if part is not None else None


def _readable(view: View, path: str) -> bool:
    """Whether the file says today, without a fault, where its tensors are."""
    content = _content(view, path)
    return content is not None and content.readable and not content.problems


def _headers(view: View, path: str) -> Mapping[str, SealedTensor] | None:
    """Return the tensors that a file describes today, None where it has none or is damaged."""
    content = _content(view, path)
    if content is None or not content.readable or content.problems:
        return None
    return {name: SealedTensor(ref.dtype, ref.shape) for name, ref in content.tensors.items()}
