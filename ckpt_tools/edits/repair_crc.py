"""Checksums of a torch zip that were damaged themselves: written again where a manifest proves every other byte.

A wrong checksum alone tells nothing: the record may be damaged as well.  So a new one is written only where the file
is, with it, byte for byte the one that was sealed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckpt_tools.containers.zip_directory import STORED
from ckpt_tools.core.errors import EditRefusedError, SourceError
from ckpt_tools.core.source import Source
from ckpt_tools.edits.overlay import Edited
from ckpt_tools.edits.repair_base import CannotRepairError, Draft, Subject
from ckpt_tools.edits.zip_patch import Checked, checked_records
from ckpt_tools.model.findings import Fix
from ckpt_tools.model.manifest import SealedFile
from ckpt_tools.model.plan import PatchBytes
from ckpt_tools.model.summaries import Segment
from ckpt_tools.numerics.crc import crc32

_AWAY = "copy the file again, or fall back to an older checkpoint"
_SHOWN = 3
_ZIPS = ("torch-zip", "torchscript", "npz", "zip")


@dataclass(frozen=True, slots=True)
class _Wrong:
    """A place that does not hold the checksum of its record; ``new`` are the bytes that may belong there."""

    offset: int
    old: bytes
    new: tuple[bytes, ...]
    record: str


def doubtful(subject: Subject, path: str) -> bool:
    """Return whether the places that hold the checksum of a record contradict each other, in a file that is sealed.

    Only these places are read.  A record that is damaged itself shows no contradiction.
    """
    sealed, entry = _sealed(subject, path), subject.files.get(path)
    if sealed is None or sealed.container not in _ZIPS or entry is None or not entry.is_file:
        return False
    try:
        with subject.opened().listing.open(path) as source:
            return any(_contradicts(record) for record in checked_records(source, path))
    except (EditRefusedError, SourceError):
        return False


def refresh(fix: Fix, subject: Subject) -> Draft:
    """Plan to write the checksums of a file again, where it then is the one that was sealed."""
    path = str(fix.params["path"])
    sealed = _sealed(subject, path)
    if sealed is None:
        raise CannotRepairError(f"{path}: no manifest says what its bytes were", _AWAY)
    with subject.opened().listing.open(path) as source:
        if source.size != sealed.size:
            raise CannotRepairError(f"{path}: has {source.size:,} bytes, and {sealed.size:,} were sealed", _AWAY)
        try:
            wrong = [place for record in checked_records(source, path) for place in _wrong(source, record)]
        except EditRefusedError as error:
            raise CannotRepairError(str(error), _AWAY) from None
        if not wrong:
            raise CannotRepairError(f"{path}: its checksums fit its bytes, which are not those that were sealed", _AWAY)
        patches = _proven(source, path, sealed, wrong)
    names = list(dict.fromkeys(each.record for each in wrong))
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    shown = tuple((path, f"checksum of {each.record}", each.old.hex(), new.new.hex()) for each, new in patches[:_SHOWN])
    notes = (
        f"checksums of {', '.join(names[:_SHOWN])}{more}",
        "with them the file is byte for byte the one that was sealed, as its digests prove",
    )
    return Draft(tuple(new for _, new in patches), shown, notes)


def _sealed(subject: Subject, path: str) -> SealedFile | None:
    seal = subject.opened().seal
    file = seal.manifest.files.get(path) if seal is not None and seal.manifest is not None else None
    return file if file is not None and file.segments is not None and file.digest is not None else None


def _contradicts(record: Checked) -> bool:
    told = {stored for where, _, stored in record.places if where == "directory" or stored}
    return len(told) > 1


def _wrong(source: Source, record: Checked) -> Iterator[_Wrong]:
    """Yield the places whose checksum is not that of the record's bytes; 0 stands for none before the bytes."""
    if record.method != STORED:
        raise CannotRepairError(f"{record.name} is compressed", _AWAY)
    right = 0
    for piece in source.window(record.start, record.size).chunks():
        right = crc32(piece, right)
    for where, offset, stored in record.places:
        if stored == right or (where == "header" and stored == 0):
            continue
        likely = (right, 0) if where == "header" else (right,)
        yield _Wrong(offset, stored.to_bytes(4, "little"), tuple(n.to_bytes(4, "little") for n in likely), record.name)


def _proven(source: Source, path: str, sealed: SealedFile, wrong: Sequence[_Wrong]) -> list[tuple[_Wrong, PatchBytes]]:
    """Return the patches after which every segment of the file has its sealed digest."""
    made: list[tuple[_Wrong, PatchBytes]] = []
    for segment in sealed.segments or ():
        inside = [each for each in wrong if segment.offset <= each.offset < segment.offset + segment.length]
        for choice in range(max((len(each.new) for each in inside), default=1)):
            patches = [
                PatchBytes(path, each.offset, each.old, each.new[min(choice, len(each.new) - 1)]) for each in inside
            ]
            if _digest(Edited(source, patches), segment, sealed) == segment.digest:
                made += zip(inside, patches, strict=True)
                break
        else:
            what = f"the bytes of {segment.tensor}" if segment.tensor else f"bytes from {segment.offset:,} on"
            raise CannotRepairError(
                f"{path}: more than checksums changed: {what} are not those that were sealed", _AWAY
            )
    return made


def _digest(source: Source, segment: Segment, sealed: SealedFile) -> str:
    from ckpt_tools.numerics.digest import BYTES, PieceHasher, finish, tensor_head

    hasher = PieceHasher()
    for piece in source.window(segment.offset, segment.length).chunks():
        hasher.update(piece)
    tensor = (sealed.tensors or {}).get(segment.tensor) if segment.tensor is not None else None
    head = tensor_head(tensor.dtype, tensor.shape) if tensor is not None else BYTES
    return finish(head, hasher.finish())
