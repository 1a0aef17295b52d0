"""Whether the metadata of a distributed checkpoint, its data files and its tensors fit together."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ckpt_tools.containers.pickle_names import several
from ckpt_tools.layouts.assembly import stored_nowhere
from ckpt_tools.layouts.assembly_dcp_names import Kind
from ckpt_tools.model.findings import BREAKS_ALL, BREAKS_RESUME, HARMLESS, Impact, Problem, Spot
from ckpt_tools.model.tensors import Box, Chunk, TensorRef
from ckpt_tools.model.tiling import fit
from ckpt_tools.model.values import real

if TYPE_CHECKING:
    from ckpt_tools.layouts.assembly_dcp import DcpAssembly
    from ckpt_tools.layouts.assembly_dcp_blobs import Piece

_DATA = re.compile(r"__(\d+)_\d+\.distcp\Z")
_WRITTEN = re.compile(r"(?:.*/)?__(\d+)_\d+\.distcp\Z")
_LAYER = re.compile(r".*\.\d+(?=\.)|\d+(?=\.)")
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_CLOCK_NS = 2 * 10**9
"""Times of files this close mean nothing: some file systems keep them to two seconds."""

SILENT = "torch loads what is there and keeps the rest of the tensor as it was, without a word"
SHOWN = 10
_NAMED = 4  # names of tensors are long


class Misfit(NamedTuple):
    """A problem of a file, and what it means: what belongs to the optimizer alone does not hurt inference."""

    path: str
    problem: Problem
    impact: Impact = BREAKS_ALL


def joined(maps: Iterable[Mapping[str, TensorRef]]) -> dict[str, TensorRef]:
    """Return tensors with the chunks of all ranks; what several ranks stored alike counts once."""
    found: dict[str, TensorRef] = {}
    for tensors in maps:
        for fqn, ref in tensors.items():
            known = found.get(fqn)
            if known is None:
                found[fqn] = ref
                continue
            places: dict[tuple[tuple[int, ...], tuple[int, ...]], Chunk] = {}
            for chunk in (*known.chunks, *ref.chunks):
                places.setdefault((chunk.offsets, chunk.sizes), chunk)
            shape = tuple(map(max, known.shape, ref.shape)) if len(known.shape) == len(ref.shape) else known.shape
            found[fqn] = replace(known, shape=shape, chunks=tuple(places.values()))
    return found


def impact_of(made: DcpAssembly, names: Iterable[str]) -> Impact:
    """Return what it means that these names cannot be read."""
    return BREAKS_ALL if any(made.kind(fqn) is Kind.WEIGHTS for fqn in names) else BREAKS_RESUME


def _weights_first(made: DcpAssembly, names: list[str]) -> str:
    ordered = sorted(names, key=lambda fqn: (made.kind(fqn) is not Kind.WEIGHTS, fqn not in made.tensors))
    return ", ".join(ordered[:_NAMED]) + (f" ... and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")


def misfits(made: DcpAssembly) -> Iterator[Misfit]:
    """Yield everything that does not fit, files first."""
    if not made.readable or made.view.checkpoint.is_file:
        return
    yield from _ranks(made)
    yield from _absent(made)
    yield from _ranges(made)
    yield from _orphans(made)
    yield from _tiles(made)
    yield from _times(made)


def _home(made: DcpAssembly) -> str:
    return made.metadata[0].path


def _ranks(made: DcpAssembly) -> Iterator[Misfit]:
    """The metadata of one rank each: those of all ranks up to the highest one that left anything."""
    if not made.rank_local:
        return
    present = {part.rank for part in made.metadata if part.rank is not None}
    named = {int(match[1]) for path in made.data if (match := _DATA.search(path))}
    last = max(present | named)
    lost = last + 1 - len(present)
    if lost:
        first = list(islice((rank for rank in range(last + 1) if rank not in present), SHOWN))
        names = several((posixpath.join(made.place, f"__{rank}.metadata") for rank in first), lost)
        detail = (
            f"of ranks 0 to {last:,}, {lost:,} left none: {names}",
            "torch loads what is there and keeps the rest of every tensor as it was, without a word",
        )
        problem = Problem("dcp-rank-missing", "the metadata of some ranks is missing", detail)
        yield Misfit(made.place, problem)
    yield from _swapped(made)


def _swapped(made: DcpAssembly) -> Iterator[Misfit]:
    """Each rank describes the files that it wrote itself, and finds nothing of its own in the metadata of another.

    Where every tensor is whole in the metadata of one rank, it does not matter whose that is.
    """
    for part, content in made.readable:
        parted = [fqn for fqn, ref in content.tensors.items() if not fit(ref.shape, [c[:2] for c in ref.chunks]).exact]
        chunks = (chunk for fqn in parted for chunk in content.tensors[fqn].chunks)
        ranks = {int(match[1]) for chunk in chunks if (match := _WRITTEN.match(chunk.extent.path))}
        if part.rank is not None and ranks and part.rank not in ranks:
            detail = (
                f"{len(parted):,} tensors have parts there: {_weights_first(made, parted)}",
                f"rank {part.rank:,} finds nothing of its own in it, and keeps these tensors as they were",
            )
            message = f"it describes the files of rank {several(map(str, sorted(ranks)))}"
            yield Misfit(part.path, Problem("dcp-metadata-misplaced", message, detail), impact_of(made, parted))


def _absent(made: DcpAssembly) -> Iterator[Misfit]:
    files = made.view.listing.files
    lost = sorted(path for path in made.pieces if path not in files)
    if not lost:
        return
    names = list(dict.fromkeys(piece.fqn for path in lost for piece in made.pieces[path]))
    detail = (
        f"{len(lost):,} of {len(made.pieces):,} data files: {several(lost)}",
        f"{len(names):,} tensors and objects have parts there: {_weights_first(made, names)}",
        "torch.distributed.checkpoint stops with FileNotFoundError at the first that is loaded",
    )
    message = f"{lost[0]} is missing" if len(lost) == 1 else f"{len(lost):,} data files are missing"
    yield Misfit(_home(made), Problem("dcp-data-missing", message, detail), impact_of(made, names))


def _ranges(made: DcpAssembly) -> Iterator[Misfit]:
    for path, pieces in made.pieces.items():
        entry = made.view.listing.files.get(path)
        if entry is None or not entry.is_file:
            continue
        beyond = [piece for piece in pieces if piece.extent.end > entry.size]
        if beyond:
            yield _beyond(made, path, entry.size, beyond, pieces)
        if path in made.packed:
            continue
        overlapping = list(_overlapping(pieces))
        if overlapping:
            names = list(dict.fromkeys(piece.fqn for pair in overlapping for piece in pair))
            first, second = overlapping[0]
            detail = (
                f"{first.fqn} ends at byte {first.extent.end:,}, {second.fqn} begins at byte {second.extent.offset:,}",
                several(names),
                "the metadata is damaged, or is not that of this file",
            )
            problem = Problem("dcp-ranges-overlap", "pieces lie on the same bytes", detail, Spot(tensor=second.fqn))
            yield Misfit(path, problem, impact_of(made, names))
        end = max((piece.extent.end for piece in pieces), default=0)
        if not beyond and end < entry.size:
            yield from _longer(made, path, entry.size, end)


def _beyond(made: DcpAssembly, path: str, size: int, beyond: list[Piece], pieces: list[Piece]) -> Misfit:
    names = list(dict.fromkeys(piece.fqn for piece in beyond))
    needed = max(piece.extent.end for piece in beyond)
    cause = "the file was cut, or written over since the metadata was: a save into the same directory that did not end"
    detail = (
        f"should have {needed:,} bytes by the metadata, and has {size:,}",
        f"{len(beyond):,} of its {len(pieces):,} pieces are not all there: {_weights_first(made, names)}",
        cause,
        'torch.distributed.checkpoint stops with "failed finding central directory" or an end of file',
    )
    spot = Spot(tensor=names[0], offset=beyond[0].extent.offset)
    problem = Problem("dcp-range-outside-file", "the file is shorter than the metadata says", detail, spot)
    return Misfit(path, problem, impact_of(made, names))


def _overlapping(pieces: list[Piece]) -> Iterator[tuple[Piece, Piece]]:
    reached: Piece | None = None
    for piece in pieces:
        if not piece.extent.length:
            continue
        if reached is not None and piece.extent.offset < reached.extent.end:
            yield reached, piece
        if reached is None or piece.extent.end > reached.extent.end:
            reached = piece


def _longer(made: DcpAssembly, path: str, size: int, end: int) -> Iterator[Misfit]:
    detail = (
        f"has {size:,} bytes; the metadata speaks of the first {end:,}",
        "no writer of torch leaves a rest: a larger save into the same directory, that did not end, does",
    )
    message = "the file goes on behind the last piece that is known"
    problem = Problem("dcp-file-longer", message, detail, Spot(offset=end))
    yield Misfit(path, problem, HARMLESS)


def _orphans(made: DcpAssembly) -> Iterator[Misfit]:
    files = sorted(path for path in made.data if path not in made.pieces and made.data[path].stat.size)
    if files and made.pieces:
        known = {int(match[1]) for path in made.pieces if (match := _DATA.search(path))}
        more = all(int(match[1]) > max(known) for path in files if (match := _DATA.search(path))) if known else False
        why = "left by an earlier save of more ranks into this directory" if more else "left by another save into it"
        detail = (several(files), f"{why}; no loader reads them, and they take {_bytes(made, files):,} bytes")
        message = f"{len(files):,} data file{'s are' if len(files) > 1 else ' is'} not in the metadata"
        yield Misfit(files[0], Problem("dcp-orphan-files", message, detail), HARMLESS)


def _bytes(made: DcpAssembly, files: list[str]) -> int:
    return sum(made.data[path].stat.size for path in files)


def of_two_steps(made: DcpAssembly) -> tuple[str, Problem] | None:
    """Return how data files are of different steps of the training, by what the optimizer counts for each parameter.

    Every file has to agree with itself.  Parameters may have begun later than others, and then layers do, or one kind
    of module in all layers: so layers and kinds of modules must not agree with themselves, and only the file tells
    which step it is.  Or some parameters are ahead of the training, and the others are where it is.
    """
    steps: dict[str, float] = {}
    files: dict[str, set[float]] = {}
    for slot in made.slots:
        number = real(slot.value) if slot.quantity == "optimizer-step" else None
        owner = made.keys.state_of(slot.key)[0]
        if number is not None and owner is not None:
            steps[owner] = number
            files.setdefault(slot.part.path, set()).add(number)
    told = {path: found.pop() for path, found in files.items() if len(found) == 1}
    if len(told) < len(files) or len(set(told.values())) < 2:
        return None
    training = set(made.view.numbers("step") or made.view.numbers("scheduler-step"))
    if training != {min(told.values())} and not all(_apart(steps, group) for group in (_layer, _module)):
        return None
    latest = max(told.values())
    behind = sorted(path for path, number in told.items() if number < latest)
    shown = [f"step {told[path]:,.0f} in {path}" for path in sorted(told, key=lambda path: (-told[path], path))]
    detail = (
        f"of {len(steps):,} parameters the optimizer counts {several(shown)}",
        "a load takes them as they are: weights and moments of several steps, without a word",
    )
    return behind[0], Problem("dcp-data-mixed", "data files are of different steps", detail)


def _apart(steps: Mapping[str, float], group: Callable[[str], str]) -> bool:
    """Return whether two groups of parameters at least do not agree with themselves."""
    groups: dict[str, set[float]] = {}
    for owner, number in steps.items():
        groups.setdefault(group(owner), set()).add(number)
    return sum(len(found) > 1 for found in groups.values()) > 1


def _layer(name: str) -> str:
    """Return the layer that a parameter belongs to: its name up to the last number, or that of its module."""
    found = _LAYER.match(name)
    return found[0] if found is not None else name.rpartition(".")[0]


def _module(name: str) -> str:
    """Return the kind of module that a parameter belongs to, the same in all layers."""
    return _NUMBER.sub("*", name.rpartition(".")[0])


def _tiles(made: DcpAssembly) -> Iterator[Misfit]:
    holes: dict[str, Box] = {}
    shared: list[str] = []
    first_shared = ""
    unplaced = {fqn for _, content in made.readable for fqn in content.facts["unplaced"]}
    for fqn, ref in made.tensors.items():
        if fqn in unplaced:
            continue
        found = fit(ref.shape, [chunk[:2] for chunk in ref.chunks])
        if found.exact:
            continue
        if found.outside is not None:
            shared.append(fqn)
            chunk = ref.chunks[found.outside]
            first_shared = first_shared or (
                f"{fqn} is {list(ref.shape)}, a chunk of {list(chunk.sizes)} at {list(chunk.offsets)} reaches beyond it"
            )
        elif found.overlap is not None:
            shared.append(fqn)
            one, two = (ref.chunks[number] for number in found.overlap)
            first_shared = first_shared or (
                f"{fqn}: {list(one.sizes)} at {list(one.offsets)} and {list(two.sizes)} at {list(two.offsets)}"
            )
        if found.hole is not None:
            holes[fqn] = found.hole
    if holes:
        yield Misfit(_home(made), stored_nowhere(made.tensors, holes, SILENT), impact_of(made, list(holes)))
    if shared:
        detail = (first_shared, several(shared), "what torch loads depends on the order it reads them in")
        message = f"chunks of {len(shared):,} tensor{'s' if len(shared) > 1 else ''} do not fit side by side"
        yield Misfit(_home(made), Problem("dcp-chunks-overlap", message, detail, Spot(tensor=shared[0])),
                     impact_of(made, shared))  # fmt: skip


def _times(made: DcpAssembly) -> Iterator[Misfit]:
    """The metadata is written last; data that is newer was written by another save, or the times were not kept."""
    written = max(part.stat.mtime_ns for part in made.metadata)
    files = made.view.listing.files
    known = [path for path in made.pieces if path in files and path not in made.view.edited]
    newer = sorted(path for path in known if files[path].mtime_ns > written + _CLOCK_NS)
    if newer:
        seconds = (max(files[path].mtime_ns for path in newer) - written) / 1e9
        detail = (
            f"by up to {seconds:,.0f} s: {several(newer)}",
            "a save over this directory that did not end leaves old metadata beside new data; so does a copy that "
            "does not keep times",
        )
        problem = Problem("dcp-data-newer", "data files are newer than their metadata", detail)
        yield Misfit(_home(made), problem, HARMLESS)
