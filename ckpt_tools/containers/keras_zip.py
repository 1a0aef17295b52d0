"""``.keras`` files: a zip of ``metadata.json``, ``config.json`` and ``model.weights.h5``.

Keras stores the members uncompressed, so their checksums can be compared with the bytes as they lie in the file.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ckpt_tools.containers import reader, zip_directory
from ckpt_tools.containers.base import Content, FormatError, Record
from ckpt_tools.containers.zip_directory import STORED
from ckpt_tools.core.source import Extent, Source
from ckpt_tools.model.findings import Problem

WEIGHTS = ("model.weights.h5", "model.weights.npz", "model.weights.json")
NEEDED = ("metadata.json", "config.json")


def read(source: Source) -> Content:
    """Return the members as records, and what is missing or damaged.

    Raises:
        SourceError: the file could not be read.
    """
    try:
        directory = zip_directory.read(source)
    except FormatError as error:
        return Content("keras-zip", source.size, readable=False, problems=(error.problem,))
    problems = list(directory.problems)
    records = tuple(
        Record(entry.name, Extent(source.name, source.base + entry.start, entry.packed), entry.crc32)
        for entry in directory.entries
        if entry.start >= 0 and not entry.name.endswith("/")
    )
    names = {record.name for record in records}
    lost = [name for name in NEEDED if name not in names]
    if not names & set(WEIGHTS):
        lost.append(WEIGHTS[0])
    if lost and not problems:
        detail = (f"not there: {', '.join(lost)}", "keras.models.load_model stops")
        problems.append(Problem("keras-member-missing", "the archive is no whole Keras model", detail))
    top: frozenset[str] | None = None
    compressed = tuple(entry.name for entry in directory.entries if entry.method != STORED)
    for entry in directory.entries:
        if entry.name.endswith(".h5") and entry.method == STORED and entry.start >= 0:
            inner = reader.open(source.window(entry.start, entry.packed))
            top = inner.facts.get("names", top)
            problems += (replace(each, at=replace(each.at, record=entry.name)) for each in inner.problems)
    facts: dict[str, Any] = {"compressed": compressed, "crc_stored": True}
    if top is not None:
        facts["names"] = top
    return Content("keras-zip", source.size, not lost, records=records, facts=facts, problems=tuple(problems))
