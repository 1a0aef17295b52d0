"""The manifest and the nodes of an OCDBT store (Orbax, tensorstore), as far as their plain bytes go.

Both are a magic number, their own length, a version, and at the end a CRC-32C over all of it.  What is between is
mostly compressed by Zstandard; names of data files are found in a manifest where they were stored as they are.  A
manifest is a file of its own and small, so its checksum is compared at once; a node is the beginning of a data file.
"""

from __future__ import annotations

import re

from ckpt_tools.containers.base import Content, Record
from ckpt_tools.core.crc32c import crc32c
from ckpt_tools.core.source import Extent, Source
from ckpt_tools.model.findings import Problem, Spot

MAGIC = b"\x0c\xdb\x3a\x2a"
NODE = b"\x0c\xdb\x20\xde"
LIMIT = 1 << 24
_NAME = re.compile(rb"(?<![0-9a-f])d/[0-9a-f]{32}(?![0-9a-f])")
_STOPS = "tensorstore refuses to open it"


def read(source: Source) -> Content:
    """Return the names of data files that can be read (``facts["data"]``), and whether length and checksum fit.

    Raises:
        SourceError: the file could not be read.
    """
    if source.read(0, 4) == NODE:
        return _node(source)
    size = source.size
    length = int.from_bytes(source.read(4, 8), "little") if size >= 12 else 0
    if size < 18 or length > size:
        needs = f"needs {length:,} bytes, has {size:,}" if size >= 12 else f"has {size:,} bytes"
        return _broken(size, Problem("file-cut-short", "the manifest is cut short", (needs, _STOPS), Spot(offset=size)))
    if length != size or size > LIMIT:
        detail = (f"it says {length:,} bytes, the file has {size:,}", _STOPS)
        return _broken(size, Problem("ocdbt-damaged", "the manifest is not of its length", detail, Spot(offset=4)))
    raw = source.read(0, size)
    stored, found = int.from_bytes(raw[-4:], "little"), crc32c(raw[:-4])
    if stored != found:
        detail = (f"stored {stored:08x}, found {found:08x}", _STOPS)
        return _broken(size, Problem("ocdbt-damaged", "the checksum of the manifest does not fit", detail))
    names = tuple(dict.fromkeys(name.decode() for name in _NAME.findall(raw)))
    return Content("ocdbt", size, facts={"data": names, "compressed": bool(raw[13])})


def _node(source: Source) -> Content:
    """Return the node that a data file begins with as a record; what follows it is not looked at."""
    size = source.size
    length = int.from_bytes(source.read(4, 8), "little") if size >= 12 else 18
    if length > size:
        detail = (f"the node that it begins with needs {length:,} bytes, the file has {size:,}", _STOPS)
        return _broken(size, Problem("file-cut-short", "the file is cut short", detail, Spot(offset=size)))
    if length < 18:
        detail = (f"the node that it begins with says {length:,} bytes", _STOPS)
        return _broken(size, Problem("ocdbt-damaged", "the node is not of its length", detail, Spot(offset=4)))
    stored = int.from_bytes(source.read(length - 4, 4), "little")
    record = Record("node", Extent(source.name, source.base, length - 4), stored)
    return Content("ocdbt", size, records=(record,), facts={"checksum": "crc32c"})


def _broken(size: int, problem: Problem) -> Content:
    return Content("ocdbt", size, readable=False, problems=(problem,))
