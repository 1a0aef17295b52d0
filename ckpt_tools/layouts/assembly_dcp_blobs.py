"""The blobs in the data files of a distributed checkpoint: each is a small torch file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from ckpt_tools.containers import kinds, reader
from ckpt_tools.containers.base import Content, Record
from ckpt_tools.core.errors import SourceError
from ckpt_tools.core.listing import Listing
from ckpt_tools.core.source import Extent, Source
from ckpt_tools.layouts.assembly import tensor_in
from ckpt_tools.model.checkpoint import Part
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.tensors import Chunk, TensorRef
from ckpt_tools.model.values import Value

SAMPLED = 512
"""So many blobs of a directory are looked into when only its structure is asked for, some of every file."""

MAX_NOTED = 3
_ZIP, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
_KEPT = frozenset(("resource-bomb", "unsafe-record-name", "zip-compressed"))
_FOREIGN = frozenset(("git-lfs-pointer", "html", "error-text", "json", "zeros", *kinds.COMPRESSED))


class Piece(NamedTuple):
    """What one blob is: ``chunk`` and ``dtype`` are those of a tensor, None and empty for another object.

    ``transform`` is what it went through before it was written, empty where it can be read as it is.
    """

    extent: Extent
    fqn: str
    chunk: Chunk | None = None
    dtype: str = ""
    transform: str = ""


class Blobs:
    """Opens blobs of the data files of one directory."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.kept: dict[tuple[str, str], Content] = {}  # by data file and name: what is about to be edited, as it was

    def objects(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Value]]:
        """Yield the decoded objects, file by file; what cannot be read or decoded is left out."""
        for piece, source in self._opened(pieces):
            content = reader.open(source.window(piece.extent.offset, piece.extent.length))
            if content.readable and content.container in ("torch-zip", "torch-legacy", "pickle"):
                yield piece, content.value

    def tensor(self, piece: Piece) -> TensorRef | None:
        """Return the tensor of a blob, None where it cannot be read."""
        return next((tensor_in(source, each.extent) for each, source in self._opened([piece])), None)

    def packed(self, path: str, offset: int) -> Content | None:
        """Return the safetensors file that begins at ``offset`` of a data file and goes to its end, None for none."""
        try:
            with self.listing.open(path) as source:
                if offset > source.size - 10 or source.read(offset, 4) == b"PK\x03\x04":
                    return None
                window = source.window(offset, source.size - offset)
                return reader.read(window) if kinds.identify(window) == "safetensors" else None
        except SourceError:
            return None

    def _opened(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Source]]:
        by_file: dict[str, list[Piece]] = {}
        for piece in pieces:
            by_file.setdefault(piece.extent.path, []).append(piece)
        for path, listed in by_file.items():
            try:
                with self.listing.open(path) as source:
                    yield from ((piece, source) for piece in listed if piece.extent.end <= source.size)
            except SourceError:
                continue  # told where the file itself is looked at

    def content(self, part: Part, pieces: list[Piece], total: int, files: int, everything: bool) -> Content:
        """Return what a data file holds; a share of its blobs where it is one of many.

        Raises:
            SourceError: the file could not be read.
        """
        with self.listing.open(part.path) as source:
            seen = kinds.look(source, part.containers)
            if seen.kind in _FOREIGN and not (seen.kind == "zstd" and any(piece.transform for piece in pieces)):
                return reader.read(source, part.containers)
            share = len(pieces) if everything or total <= SAMPLED else max(1, SAMPLED // max(1, files))
            taken = pieces if share >= len(pieces) else _spread(pieces, share)
            made = _File(source, pieces)
            for piece in taken:
                made.look(piece)
            return made.content(len(taken))


def _spread(pieces: list[Piece], count: int) -> list[Piece]:
    """Return ``count`` of the pieces, the last one among them: it is the one that a cut takes first."""
    stride = len(pieces) / count
    return [pieces[len(pieces) - 1 - int(number * stride)] for number in range(count)][::-1]


class _File:
    """One data file, while blobs of it are looked into."""

    def __init__(self, source: Source, pieces: list[Piece]) -> None:
        self.source = source
        self.pieces = pieces
        self.tensors: dict[str, TensorRef] = {}
        self.records: list[Record] = []
        self.globals: dict[str, int] = {}
        self.problems: list[Problem] = []
        self.refused: dict[str, list[tuple[str, str]]] = {}  # the name of the whole, and what is said
        self.compressed: list[str] = []
        self.unreadable: dict[str, int] = {}
        self.odd: list[tuple[Piece, bool]] = []
        self.usual = False
        self.crc_stored = False

    def look(self, piece: Piece) -> None:
        """Look into one blob, where it lies inside the file."""
        extent = piece.extent
        if extent.end > self.source.size:
            return
        if piece.transform:
            self._unread(f"written through {kinds.printable(piece.transform, 60)}, which is not undone here")
            return
        window = self.source.window(extent.offset, extent.length)
        if piece.chunk is None and window.read(0, 4) != _ZIP:
            self.odd.append((piece, window.read(window.size - 22, 4) == _ZIP_END))
            return
        self.usual = self.usual or piece.chunk is None
        content = reader.open(window)
        name = self._name(piece)
        for module, count in content.globals.items():
            self.globals[module] = self.globals.get(module, 0) + count
        for problem in content.problems:
            self._note(problem, piece, content)
        if content.container != "torch-zip" or not content.readable:
            if not content.problems:
                self._damaged(piece, f"it is {kinds.describe(content.container)}")
            return
        self.crc_stored = self.crc_stored or bool(content.facts.get("crc_stored"))
        self.compressed += (f"{name}/{record}" for record in content.facts.get("compressed", ()))
        self.records += (record._replace(name=f"{name}/{record.name}") for record in content.records)
        if piece.chunk is not None:
            self._tensor(piece, content, name)

    def _judge_odd(self) -> None:
        """Objects that are no torch files are damaged where others of the file are; some planners write all as else."""
        for piece, ends_well in self.odd:
            if self.usual or ends_well:
                self._damaged(piece, "it does not begin as a torch file does")
            else:
                self._unread("objects of a form of their own")

    def _unread(self, why: str) -> None:
        self.unreadable[why] = self.unreadable.get(why, 0) + 1

    def _name(self, piece: Piece) -> str:
        name = piece.fqn
        if piece.chunk is not None and any(piece.chunk.offsets):
            name += f"[{','.join(map(str, piece.chunk.offsets))}]"
        return name

    def _tensor(self, piece: Piece, content: Content, name: str) -> None:
        chunk = piece.chunk
        assert chunk is not None
        inner = next(iter(content.tensors.values()), None) if len(content.tensors) == 1 else None
        if inner is None:
            if not content.problems:
                self._damaged(piece, f"it holds {len(content.tensors)} tensors")
            return
        if inner.dtype != piece.dtype or inner.shape != chunk.sizes:
            said = f"the metadata says {piece.dtype} {list(chunk.sizes)}, the data is {inner.dtype} {list(inner.shape)}"
            self.refused.setdefault("dcp-blob-mismatch", []).append((piece.fqn, f"{name}: {said}"))
        self.tensors[name] = replace(inner, fqn=name, storage_id=None)

    def _note(self, problem: Problem, piece: Piece, content: Content) -> None:
        if problem.kind in _KEPT:
            self.problems.append(replace(problem, at=replace(problem.at, tensor=piece.fqn)))
            return
        if problem.kind == "unknown-bytes":
            self._damaged(piece, "no torch file begins there")
            return
        self._damaged(piece, f"{problem.message} ({problem.detail[0]})" if problem.detail else problem.message)

    def _damaged(self, piece: Piece, why: str) -> None:
        said = f"{piece.fqn}, at byte {piece.extent.offset:,}: {why}"
        self.refused.setdefault("dcp-blob-damaged", []).append((piece.fqn, said))

    def content(self, looked: int) -> Content:
        """Return what was found."""
        self._judge_odd()
        problems = [*self.problems, *self._told()]
        facts: dict[str, Any] = {
            "crc_stored": self.crc_stored,
            "compressed": tuple(self.compressed),
            "sampled": (looked, len(self.pieces)),
            "unreadable": self.unreadable,
            "refused": {kind: frozenset(fqn for fqn, _ in told) for kind, told in self.refused.items()},
        }
        size, records = self.source.size, tuple(self.records)
        return Content("distcp", size, True, None, self.tensors, records, self.globals, facts, tuple(problems))

    def _told(self) -> Iterator[Problem]:
        words = {
            "dcp-blob-damaged": ("what is stored cannot be read", "torch.distributed.checkpoint stops at it"),
            "dcp-blob-mismatch": ("the data is not what the metadata says", "a load stops, or takes wrong values"),
        }
        for kind, told in self.refused.items():
            message, stops = words[kind]
            lines = [said for _, said in told]
            more = len(lines) - MAX_NOTED
            many = f"... and {more:,} more of its {len(self.pieces):,} pieces"
            detail = (*lines[:MAX_NOTED], *((many,) if more > 0 else ()), stops)
            yield Problem(kind, message, detail, Spot(tensor=lines[0].split(", at byte")[0].split(": ")[0]))
