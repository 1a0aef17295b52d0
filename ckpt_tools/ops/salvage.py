"""``ckpt repair --salvage OUT``: the intact tensors of a cut safetensors file, in a new one."""

from __future__ import annotations

import os

from ckpt_tools._version import __version__
from ckpt_tools.containers.base import Content
from ckpt_tools.core.durable import LocalDisk, look
from ckpt_tools.core.errors import CkptError, EditRefusedError, UsageError
from ckpt_tools.core.source import FileSource
from ckpt_tools.core.space import free_bytes
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.ops import safetensors_file
from ckpt_tools.ops.verify import verify
from ckpt_tools.reports.repair import DONE, WAITING, Repair, RepairReport
from ckpt_tools.reports.units import first_names

_PIECE = 1 << 22


def salvage(path: str, out: str, *, write: bool = False) -> RepairReport:
    """Copy the tensors of a safetensors file that are whole into a new file; the old one is not touched.

    Args:
        path: a safetensors file, or a checkpoint in which just one is damaged.
        out: the new file, which must not exist.
        write: make it; without it only what would be kept is told.

    Raises:
        NothingFoundError: no such path.
        UsageError: there is not just one such file.
        EditRefusedError: ``out`` exists, or there is nothing to keep or nothing lost.
        CkptError: the system refused something; no new file is left.
    """
    location, part, content = _damaged(path)
    kept = [ref for ref in content.tensors.values() if ref.chunks]
    lost = [name for name, ref in content.tensors.items() if not ref.chunks]
    if not content.readable or not kept:
        raise EditRefusedError(f"{part.path}: nothing in it is whole", hint="fall back to an older checkpoint")
    if look(out) is not None:
        raise EditRefusedError(f"{out}: exists already")
    made = safetensors_file.header(kept, content.facts.get("metadata"))
    size = len(made) + sum(ref.nbytes for ref in kept)
    if write:
        free = free_bytes(os.path.dirname(os.path.abspath(out)))
        if free is not None and free < size:
            raise EditRefusedError(f"too little space: {size:,} bytes are needed, and {free:,} are free")
        _write(location, part, out, made, kept)
    notes = [f"{len(kept):,} of {len(content.tensors):,} tensors are whole"]
    if lost:
        notes.append(f"lost: {first_names(lost)}")
        notes.append("a model loaded from it keeps fresh random values for these, without an error")
    row = Repair(
        ".", "", part.path, content.problems[0].message, "copy the tensors that are whole into a new file", False,
        "salvage", DONE if write else WAITING, writes=(out,), notes=tuple(notes), bytes_written=size,
    )  # fmt: skip
    return RepairReport(__version__, path, write, (row,), after=verify(out, settle=0.0) if write else None)


def _damaged(path: str) -> tuple[str, Part, Content]:
    run = open_run(path)
    found = []
    for checkpoint in run.checkpoints if run.single else ():
        view = View(checkpoint)
        for part in checkpoint.of(Role.WEIGHTS, Role.ADAPTER, Role.COMBINED, Role.TEMPORARY):
            content = view.content(part)
            if content is not None and content.container == "safetensors" and content.problems:
                found.append((os.path.join(checkpoint.listing.root, part.path), part, content))
    if len(found) != 1:
        raise UsageError(f"{path}: holds {len(found)} damaged safetensors files; name the one that is meant")
    return found[0]


def _write(location: str, part: Part, out: str, header: bytes, kept: list[TensorRef]) -> None:
    disk = LocalDisk()
    made = False
    try:
        with FileSource(location, part.path) as source:
            disk.create(out, header)
            made = True
            at = len(header)
            for ref in kept:
                extent = ref.chunks[0].extent
                for piece in source.window(extent.offset, extent.length).chunks(_PIECE) if extent.length else ():
                    disk.write(out, at, bytes(piece))
                    at += len(piece)
        disk.sync(out)
        disk.sync_directory(os.path.dirname(os.path.abspath(out)))
    except BaseException as error:
        disk.close()
        if made:
            disk.unlink(out)
        if isinstance(error, OSError):
            raise CkptError(f"{out}: {(error.strerror or str(error)).lower()}") from error
        raise
    finally:
        disk.close()
