"""HDF5 files (Keras): the superblock alone, which says where the file ends, and the names at the top.

The format has no checksums by default and its tree needs a library, so that a cut is what plain bytes can tell: the
library itself refuses a file that is shorter than its superblock says ("truncated file").
"""

from __future__ import annotations

from ckpt_tools.containers.base import Content
from ckpt_tools.core.source import Source
from ckpt_tools.model.findings import Problem, Spot

_HEAD = 64
_NAMES, _HEAP, _MOST = 88, 32, 1 << 20
_UNDEFINED = (1 << 64) - 1


def read(source: Source) -> Content:
    """Return what the superblock says: ``facts["version"]``, ``facts["end"]``, and ``facts["names"]`` of the top group.

    The names are absent where the file keeps them in a newer way; among them may be some that were deleted.

    Raises:
        SourceError: the file could not be read.
    """
    head = source.read(0, _HEAD)
    size = source.size
    version = head[8] if len(head) > 8 else 0
    place = {0: 40, 1: 44, 2: 28, 3: 28}.get(version)
    width = head[13 if version < 2 else 9] if len(head) >= 14 else 0
    if place is None or len(head) < _HEAD or width != 8:
        if size < _HEAD:
            return _broken(size, Problem("file-cut-short", "the file is cut short, inside its superblock"))
        detail = (f"version {version}, offsets of {width} bytes",)
        return _broken(size, Problem("hdf5-damaged", "the superblock makes no sense", detail, Spot(offset=8)))
    end = int.from_bytes(head[place : place + 8], "little")
    facts = {"version": version, "end": end}
    if end == _UNDEFINED or end < _HEAD // 2:
        detail = (f"it says that the file ends at byte {end:,}",)
        return _broken(size, Problem("hdf5-damaged", "the superblock makes no sense", detail, Spot(offset=place)))
    if end > size:
        lines = (f"needs {end:,} bytes, has {size:,}", 'h5py refuses it: "truncated file"')
        return _broken(size, Problem("file-cut-short", "the file is cut short", lines, Spot(offset=size)))
    names = _names(source) if version < 2 else None
    return Content("hdf5", size, facts=facts if names is None else {**facts, "names": names})


def _names(source: Source) -> frozenset[str] | None:
    """Return what lies in the heap of names that the top group has, which its entry in the superblock points to."""
    at = int.from_bytes(source.read(_NAMES, 8), "little") if source.size >= _NAMES + 8 else source.size
    heap = source.read(at, _HEAP) if at + _HEAP <= source.size else b""
    if heap[:4] != b"HEAP":
        return None
    length, place = int.from_bytes(heap[8:16], "little"), int.from_bytes(heap[24:32], "little")
    if length > _MOST or place + length > source.size:
        return None
    return frozenset(name.decode("utf-8", "replace") for name in source.read(place, length).split(b"\0") if name)


def _broken(size: int, problem: Problem) -> Content:
    return Content("hdf5", size, readable=False, problems=(problem,))
