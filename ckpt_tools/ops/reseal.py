"""The manifest of a sealed checkpoint follows an edit: only what changes is read and digested again."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt_tools.containers import reader
from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.source import FileSource, Source
from ckpt_tools.edits.overlay import Edited
from ckpt_tools.layouts.assembly_dcp import DcpAssembly
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Run
from ckpt_tools.model.manifest import NAME, SealedFile, SealedTensor
from ckpt_tools.model.manifest_document import ManifestError
from ckpt_tools.model.plan import Action, AppendBytes, MoveFile, PatchBytes, WriteFile, rebase
from ckpt_tools.model.summaries import Segment
from ckpt_tools.ops import sealed

_WORTH = (PatchBytes, AppendBytes, WriteFile)


def follow(
    run: Run, view: View, actions: Sequence[Action], step: int | None = None, name: str | None = None
) -> tuple[list[Action], tuple[str, ...]]:
    """Return what becomes of a checkpoint's manifest when ``actions`` change its files, and what to tell about it.

    Args:
        run: the run of the checkpoint.
        view: the checkpoint as it is now.
        actions: what is done to its files.
        step: the step that it is of afterwards, None where that stays.
        name: the name that it has afterwards, None where that stays.
    """
    directory, inner = sealed.place_of(run, view.checkpoint)
    place = os.path.join(directory, NAME)
    shown = f"{inner}/{NAME}"
    if not os.path.exists(place):
        return [], ()
    try:
        manifest = sealed.load(place, shown)
        with FileSource(place, shown) as source:
            old = source.read(0, source.size)
        files = dict(manifest.files)
        for path in dict.fromkeys(action.path for action in actions if isinstance(action, _WORTH)):
            if path in files:
                own = [action for action in actions if action.path == path]
                with view.listing.open(path) as before:
                    after = Edited(before, own)
                    files[path] = _after(_shifted(files[path], _ends(view, path, before, after, own)), after, own)
    except (ManifestError, SourceError) as error:
        return [], (f"the manifest cannot be read and was left alone: {error}",)
    for move in (action for action in actions if isinstance(action, MoveFile)):
        files = {rebase(path, move.path, move.to): file for path, file in files.items()}
    made = replace(manifest, files=files, step=manifest.step if step is None else step, name=name or manifest.name)
    new = sealed.encode(made)
    return ([WriteFile(shown, new, old)] if new != old else []), ("the manifest of the seal is updated as well",)


def _ends(view: View, path: str, before: Source, after: Source, actions: Sequence[Action]) -> dict[int, int]:
    """Return where records end now, by where they ended: those inside of a data file may grow into their padding."""
    spans = [(each.offset, each.offset + len(each.new)) for each in actions if isinstance(each, PatchBytes)]
    found: dict[int, int] = {}
    for made in view.assemblies:
        for piece in made.pieces.get(path, ()) if isinstance(made, DcpAssembly) else ():
            start, end = piece.extent.offset, piece.extent.end
            if any(first < end and last > start for first, last in spans):
                old, new = (reader.open(each.window(start, end - start)).records for each in (before, after))
                pairs = ((one.extent, other.extent) for one, other in zip(old, new, strict=False))
                found |= {one.end: other.end for one, other in pairs if one.offset == other.offset and one != other}
    return found


def _shifted(file: SealedFile, ends: Mapping[int, int]) -> SealedFile:
    """Return a file cut into segments where records end now; what was cut anew is digested anew."""
    if file.segments is None or not ends:
        return file
    cut = []
    for each in file.segments:
        start, end = (ends.get(place, place) for place in (each.offset, each.offset + each.length))
        same = (start, end - start) == (each.offset, each.length)
        cut.append(each if same else replace(each, offset=start, length=end - start, digest=""))
    return replace(file, segments=tuple(cut))


def _after(file: SealedFile, source: Source, actions: Sequence[Action]) -> SealedFile:
    """Return a file as it stands in a manifest after the edit; tensor bytes that stay are not read."""
    from ckpt_tools.numerics.digest import file_digest

    if file.segments is None or (actions and isinstance(actions[0], WriteFile) and len(file.segments) != 1):
        return SealedFile(source.size, container=file.container)
    longer = any(isinstance(action, AppendBytes) for action in actions)
    whole = any(isinstance(action, WriteFile) for action in actions)
    spans = sorted((each.offset, each.offset + len(each.new)) for each in actions if isinstance(each, PatchBytes))
    ends = [stop for _, stop in spans]
    known = {(each.offset, each.length): each for each in file.segments}
    segments: list[Segment] = []
    for segment in _recut(file.segments, source, longer=longer):
        old = known.get((segment.offset, segment.length))
        rank = bisect_right(ends, segment.offset)
        touched = whole or (rank < len(spans) and spans[rank][0] < segment.offset + segment.length)
        segments.append(
            old if old is not None and old.digest and not touched else _digested(segment, source, file.tensors or {})
        )
    digest = file_digest((each.length, each.digest) for each in segments)
    return SealedFile(source.size, digest, None, file.container, tuple(segments), _tensors(file, segments))


def _recut(segments: Sequence[Segment], source: Source, *, longer: bool) -> Iterator[Segment]:
    """Yield the segments that a seal would cut the file into now, those that are new without a digest.

    What was appended to a zip has records of its own, and the bytes of a record that it replaced belong to none.
    """
    if not longer:
        yield from [replace(segments[0], length=source.size)] if len(segments) == 1 else segments
        return
    records = sorted(record.extent[1:] for record in reader.read(source).records if record.extent.length)
    starts = [offset for offset, _ in records]
    live: list[Segment] = []
    covered: set[int] = set()
    for segment in segments:
        rank = bisect_right(starts, segment.offset) - 1
        if rank >= 0 and segment.offset + segment.length <= sum(records[rank]):
            live.append(segment)
            covered.add(rank)
    live += [Segment(*records[rank], None, "") for rank in range(len(records)) if rank not in covered]
    end = 0
    for segment in sorted(live, key=lambda each: each.offset):
        if segment.offset > end:
            yield Segment(end, segment.offset - end, None, "")
        yield segment
        end = segment.offset + segment.length
    if end < source.size:
        yield Segment(end, source.size - end, None, "")


def _digested(segment: Segment, source: Source, tensors: Mapping[str, SealedTensor]) -> Segment:
    from ckpt_tools.numerics.digest import BYTES, PieceHasher, finish, tensor_head

    hasher = PieceHasher()
    for chunk in source.window(segment.offset, segment.length).chunks():
        hasher.update(chunk)
    tensor = tensors.get(segment.tensor) if segment.tensor is not None else None
    head = tensor_head(tensor.dtype, tensor.shape) if tensor is not None else BYTES
    return replace(segment, digest=finish(head, hasher.finish()))


def _tensors(file: SealedFile, segments: Sequence[Segment]) -> Mapping[str, SealedTensor] | None:
    if file.tensors is None:
        return None
    found = dict(file.tensors)
    for segment in segments:
        tensor = found.get(segment.tensor) if segment.tensor is not None else None
        if segment.tensor is not None and tensor is not None and tensor.digest not in (None, segment.digest):
            found[segment.tensor] = SealedTensor(tensor.dtype, tensor.shape, segment.digest, None)
    return found
