"""Files of ``torch.save`` before 1.6 (and of ``_use_new_zipfile_serialization=False``): five pickles, then storages.

The even older form, a tar archive of ``sys_info``, ``pickle``, ``tensors`` and ``storages``, is recognised and not
decoded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ckpt_tools.containers import pickle_stream
from ckpt_tools.containers.base import Content, FormatError, Record, no_collection
from ckpt_tools.containers.kinds import printable
from ckpt_tools.containers.torch_values import TorchValues, several
from ckpt_tools.core.source import Extent, Source
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Value

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_NAMES = ("magic number", "protocol version", "system information", "object", "storage keys")


@no_collection()
def read(source: Source) -> Content:
    """Return what an old torch file says of itself; bad bytes are problems, never an exception.

    ``records`` are the storages by key.

    Raises:
        SourceError: the file could not be read.
    """
    if source.read(257, 5) == b"ustar":
        return Content("torch-legacy", source.size, readable=False, facts={"form": "tar"})
    return _Reader(source).content()


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.values = TorchValues(legacy=True)
        self.facts: dict[str, Any] = {"form": "stream"}
        self.problems: list[Problem] = []
        self.globals: dict[str, int] = {}
        self.records: list[Record] = []

    def content(self) -> Content:
        source = self.source
        value: Value = None
        readable = False
        tensors: dict[str, TensorRef] = {}
        try:
            position = self._head()
            begin = position
            value, position = self._next(3, position)
            readable = True
            keys, position = self._next(4, position)
            if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
                detail = (f"it is a {type(keys).__name__}; torch.load stops",)
                message = "the list of storage keys is none"
                self.problems.append(Problem("pickle-damaged", message, detail, Spot(record=_NAMES[4])))
                keys = []
            places = self._storages(keys, position)
            if places:
                order = "big" if self.facts.get("byteorder") == "big" else "little"
                self.values = TorchValues(places.get, order, legacy=True)
                value, _ = self._next(3, begin)
        except FormatError as error:
            self.problems.append(error.problem)
        if readable:
            tensors, overruns = self.values.flatten(value)
            self._users(tensors)
            self.problems += self.values.refusals() + overruns
        return Content(
            "torch-legacy",
            source.size,
            readable,
            value,
            tensors,
            tuple(self.records),
            self.globals,
            self.facts,
            tuple(self.problems),
        )

    def _next(self, number: int, position: int) -> tuple[Value, int]:
        name = _NAMES[number]
        try:
            length, result = pickle_stream.read_growing(
                self.source, position, self.values.persistent, self.values.rebuild, self.values.view
            )
        except FormatError as error:
            at = Spot(record=name, offset=self.source.base + position + (error.problem.at.offset or 0))
            if isinstance(error, pickle_stream.CutError):
                short = (
                    f"has {self.source.size:,} bytes and ends inside the {name}, pickle {number + 1} of 5",
                    "torch.load stops",
                )
                raise FormatError(Problem("file-cut-short", "the file is cut short", short, at)) from None
            detail = (f"in the {name}, pickle {number + 1} of 5", *error.problem.detail)
            raise FormatError(replace(error.problem, detail=detail, at=at)) from None
        new = [problem for problem in result.problems if problem not in self.problems]
        self.problems += new
        if number == 3:
            self.globals = dict(result.globals)
            self.facts["protocol"] = result.protocol
        if result.foreign:
            self.facts["foreign_opcodes"] = (*self.facts.get("foreign_opcodes", ()), *result.foreign)
        return result.value, position + length

    def _head(self) -> int:
        """Read the first three pickles and return where the object begins."""
        magic, position = self._next(0, 0)
        if magic != MAGIC:
            detail = ("it does not begin with torch's magic number",)
            raise FormatError(Problem("pickle-damaged", "the file is no torch file", detail, Spot(offset=0)))
        version, position = self._next(1, position)
        self.facts["version"] = version if type(version) is int else None
        if version != PROTOCOL:
            detail = (f"torch reads version {PROTOCOL}, and stops",)
            message = "the file's version is not supported"
            self.problems.append(Problem("record-invalid", message, detail, Spot(record=_NAMES[1])))
        system, position = self._next(2, position)
        little = system.get("little_endian", True) if isinstance(system, dict) else True
        self.facts["byteorder"] = "little" if little else "big"
        return position

    def _storages(self, keys: list[str], position: int) -> dict[str, Extent]:
        """Return where the storages lie, which follow in the order of ``keys``, each behind its number of elements."""
        source, known = self.source, self.values.storages
        places: dict[str, Extent] = {}
        missing = 0
        first: str | None = None
        unlisted = sorted(key for key in set(known) - set(keys) if known[key].nbytes)
        if unlisted:
            lines = (f"not in the list of storage keys: {several(unlisted)}",)
            self.problems.append(Problem("record-missing", "storages are missing", lines, Spot(record=unlisted[0])))
        for number, key in enumerate(keys):
            storage = known.get(key)
            if storage is None:
                self.facts["unknown_keys"] = keys[number:][:10]
                stray = (f"no tensor looks into number {number + 1:,}, {printable(key, 40)}", "torch.load stops")
                self.problems.append(
                    Problem("pickle-damaged", "the list of storage keys names others than the tensors", stray)
                )
                break
            count = source.read(position, 8)
            position += 8
            room = max(0, source.size - position)
            if len(count) == 8 and int.from_bytes(count, "little") != storage.numel:
                held = int.from_bytes(count, "little")
                sizes = (
                    f"storage {key} should have {storage.numel:,} elements, and says {held:,}",
                    "torch.load stops; what follows cannot be found",
                )
                self.problems.append(
                    Problem(
                        "record-size-mismatch",
                        "a storage has the wrong size",
                        sizes,
                        Spot(record=key, offset=source.base + position - 8),
                    )
                )
                break
            if storage.nbytes > room or len(count) < 8:
                missing += storage.nbytes - room + 8 - len(count)
                first = first or key
            else:
                places[key] = Extent(source.name, source.base + position, storage.nbytes)
                self.records.append(Record(key, places[key]))
            position += storage.nbytes
        else:
            if position > source.size:
                whole = position
                ends = (
                    f"has {source.size:,} bytes and needs {whole:,}: {whole - source.size:,} more bytes are expected",
                    f"the first storage that is not whole is {first}, number {keys.index(first) + 1:,} of {len(keys):,}"
                    if first is not None
                    else "the storages are cut",
                    'torch.load stops with "unexpected EOF"',
                )
                self.facts["expected_size"] = whole
                self.problems.append(
                    Problem("file-cut-short", "the file is cut short", ends, Spot(record=first, offset=source.size))
                )
            elif position < source.size:
                self.facts["trailing_bytes"] = source.size - position
        return places

    def _users(self, tensors: dict[str, TensorRef]) -> None:
        """Name the tensors of the storages that problems speak of."""
        for number, problem in enumerate(self.problems):
            key = problem.at.record
            if problem.kind in ("file-cut-short", "record-missing", "record-size-mismatch") and key is not None:
                names = [name for name, ref in tensors.items() if ref.storage_id == key]
                if names:
                    detail = (*problem.detail, f"needed by {several(names)}")
                    self.problems[number] = replace(problem, detail=detail, at=replace(problem.at, tensor=names[0]))
