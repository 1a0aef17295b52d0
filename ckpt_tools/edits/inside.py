"""Files inside of files: every object and tensor of a distributed checkpoint is a small torch file in a data file.

The metadata says where each begins and ends.  An edit keeps the length of each, so that nothing behind it moves and the
metadata, which is not touched, stays true.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ckpt_tools.containers import reader
from ckpt_tools.containers.base import Content
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.core.source import BytesSource, Source
from ckpt_tools.edits.outcome import VERIFY
from ckpt_tools.layouts.assembly_dcp import DcpAssembly
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part

_FORM = ("torch-zip",)


@dataclass(frozen=True, slots=True)
class Inner:
    """One such file: ``offset`` is where ``source`` begins in the data file; the value of ``content`` has one key, the
    name."""

    name: str
    content: Content
    source: Source
    offset: int


def opened(view: View, part: Part, names: Iterable[str], source: Source) -> Iterator[Inner]:
    """Yield the files of these names in a data file.

    Raises:
        EditRefusedError: one is not there, or is none that can be edited.
        SourceError: the file could not be read.
    """
    found = _home(view, part)
    pieces = {piece.fqn: piece for piece in found.pieces.get(part.path, ())}
    for name in names:
        piece = pieces.get(name)
        if piece is None or piece.extent.end > source.size:
            raise _refused(part, name, "is not there")
        if piece.transform:
            raise _refused(part, name, f"went through {piece.transform} before it was written, and has no room")
        own = BytesSource(source.read(piece.extent.offset, piece.extent.length), part.path)
        content = read(own, name)
        if content.container not in _FORM or not content.readable or content.problems:
            why = content.problems[0].message if content.problems else f"is {reader.describe(content.container)}"
            raise _refused(part, name, why)
        yield Inner(name, content, own, piece.extent.offset)


def read(source: Source, name: str) -> Content:
    """Return what is in such a file, under its name."""
    content = reader.read(source, _FORM)
    return replace(content, value={name: content.value})


def keep(view: View, part: Part, inner: Inner) -> None:
    """Remember what a file is now, for the time after it was edited."""
    _home(view, part).blobs.kept[part.path, inner.name] = inner.content


def kept(view: View, part: Part, name: str) -> Content | None:
    """Return what a file was before it was edited, None where that is not known."""
    return _home(view, part).blobs.kept.get((part.path, name))


def _home(view: View, part: Part) -> DcpAssembly:
    for made in view.assemblies:
        if isinstance(made, DcpAssembly) and part.path in made.data:
            return made
    raise EditRefusedError(f"{part.path}: no metadata says what it holds; it is not edited")


def _refused(part: Part, name: str, why: str) -> EditRefusedError:
    return EditRefusedError(f"{part.path}: {name} {why}; nothing was changed", hint=VERIFY)
