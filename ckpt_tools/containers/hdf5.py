"""HDF5 files (Keras): the superblock alone, which says where the file ends.

The format has no checksums by default and its tree needs a library, so that a cut is what plain bytes can tell: the
library itself refuses a file that is shorter than its superblock says ("truncated file").
"""

from __future__ import annotations

from ckpt_tools.containers.base import Content
from ckpt_tools.core.source import Source
from ckpt_tools.model.findings import Problem, Spot

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HEAD = 64
_UNDEFINED = (1 << 64) - 1


def read(source: Source) -> Content:
    """Return what the superblock says: ``facts["version"]`` and ``facts["end"]``.

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
    return Content("hdf5", size, facts=facts)


def _broken(size: int, problem: Problem) -> Content:
    return Content("hdf5", size, readable=False, problems=(problem,))
