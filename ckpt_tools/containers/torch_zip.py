"""Files of ``torch.save``: a zip of one pickle and one record per storage."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckpt_tools.containers import pickle_stream, torch_zip_cut, torch_zip_miniz, zip_directory
from ckpt_tools.containers.base import Content, FormatError, Record, no_collection
from ckpt_tools.containers.torch_values import TorchValues, several
from ckpt_tools.containers.zip_directory import DEFLATED, LOCAL, LOCKED, REACH, STORED, Directory, Entry
from ckpt_tools.core.source import Extent, Source
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.tensors import TensorRef

MIN_VERSION, MAX_VERSION = 1, 10
MAX_SMALL = 4096
MAX_UNPACKED = 1 << 26
MAX_NOTED = 50
_LEADING = re.compile(rb"[ \t\n\v\f\r]*\+?(\d+)")
_MARKS = ("..", "\\", "\0", ":", "\n/")
_OWN = frozenset(
    ("data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")
)


def read(source: Source) -> Content:
    """Return what a torch file says of itself; bad bytes are problems, never an exception.

    Tensors refer to bytes of the file, ``records`` are its members by full name (``root/data/0``).  Of ``facts``,
    ``extra`` are the members that the pickle does not need, ``compressed`` those that are not stored as they are.

    Raises:
        SourceError: the file could not be read.
    """
    with no_collection():
        try:
            directory = zip_directory.read(source)
        except FormatError as error:
            if error.problem.kind == "file-cut-short":
                return torch_zip_cut.describe(source, error.problem)
            return Content("torch-zip", source.size, readable=False, problems=(error.problem,))
        return _Reader(source, directory).content()


class _Reader:
    """One file, while it is being read."""

    def __init__(self, source: Source, directory: Directory) -> None:
        self.source = source
        self.directory = directory
        self.problems: list[Problem] = []
        self.facts: dict[str, Any] = {}
        self.members: dict[str, Entry] = {}
        self.root = ""
        self.rooted = False
        self.folded: dict[str, Entry] = {}
        self.big = False
        self.extents: dict[str, Extent] = {}
        self.packed: frozenset[str] = frozenset()

    def content(self) -> Content:
        source, entries = self.source, self.directory.entries
        self.surroundings()
        self.problems += self.directory.problems
        refused = torch_zip_miniz.refusal(source, self.directory) if not self.directory.problems else None
        if refused is not None:
            self.problems.append(Problem("zip-damaged", "torch cannot open the zip archive", (refused,)))
        self.names(entries)
        path, base = source.name, source.base
        records = tuple(
            [
                Record(name, Extent(path, base + start, packed), crc32)
                for name, (_, _, start, packed, _, crc32, _, _) in self.members.items()
                if start >= 0 and name[-1:] != "/"
            ]
        )
        self.extents = {record.name: record.extent for record in records}
        container = self.container()
        if container in ("npz", "zip"):
            return Content(container, source.size, False, None, {}, records, {}, self.facts, tuple(self.problems))
        self.versions()
        values = TorchValues(self.place, "big" if self.big else "little")
        try:
            pickled = self.pickle(values)
        except FormatError as error:
            self.problems.append(error.problem)
            self.extra({})
            problems = tuple(self.problems)
            return Content(container, source.size, False, None, {}, records, {}, self.facts, problems)
        tensors, overruns = values.flatten(pickled.value)
        if values.pieces:
            self.facts["pieces"], self.facts["rank"] = values.placed(tensors), values.rank
        self.storages(values, tensors)
        self.extra(values.storages)
        problems = (*self.problems, *pickled.problems, *values.refusals(), *overruns)
        return Content(
            container, source.size, True, pickled.value, tensors, records, pickled.globals, self.facts, problems
        )

    # The archive -------------------------------------------------------------------------------------------

    def surroundings(self) -> None:
        """Look for bytes before and behind the archive."""
        directory, size = self.directory, self.source.size
        trailing = size - directory.end
        if trailing:
            self.facts["trailing_bytes"] = trailing
            detail = (
                f"{trailing:,} byte{'s follow' if trailing != 1 else ' follows'} the end of the zip at byte"
                f" {directory.end:,} of {size:,}",
                "torch.load does not find the zip directory behind so many"
                if trailing > REACH
                else "torch.load looks across them; a copy that is cut there would not be noticed",
            )
            self.problems.append(
                Problem(
                    "bytes-around-archive",
                    "bytes follow the archive",
                    detail,
                    Spot(offset=self.source.base + directory.end),
                )
            )
        if directory.gap:
            detail = (
                f"{directory.gap:,} bytes lie between the directory and the end record that points to it",
                "torch.load reads the archive that the last end record points to, the first one of several",
            )
            self.problems.append(
                Problem(
                    "bytes-around-archive", "the file holds several archives", detail, Spot(offset=self.source.base)
                )
            )
        before = directory.begin
        if before or self.source.read(0, 4) != LOCAL:
            several_archives = before > 0 and self.source.read(0, 4) == LOCAL
            detail = (
                f"the archive that was read begins at byte {before:,}",
                "torch.load does not find its records there, and stops"
                if several_archives
                else "torch.load takes a file that does not begin with a zip record for something else, and stops",
            )
            message = "the file holds several archives" if several_archives else "bytes precede the archive"
            self.problems.append(Problem("bytes-around-archive", message, detail, Spot(offset=self.source.base)))

    def member(self, name: str) -> Entry | None:
        """Return the record that torch finds under a name."""
        entry = self.members.get(name)
        return self.folded.get(name.lower()) if entry is None else entry

    def names(self, entries: list[Entry]) -> None:
        """Collect the members by name; of several of one name, the one that torch finds."""
        if entries:
            self.root, slash, _ = entries[0].name.partition("/")
            self.rooted = bool(slash)
            self.root = self.root if slash else ""
        self.facts["root"] = self.root
        members = self.members = {entry.name: entry for entry in entries}
        doubled: dict[str, int] = {}
        self.folded = {entry.name.lower(): entry for entry in entries}
        if len(self.folded) != len(entries):
            self.folded = torch_zip_miniz.winners(entries)
            for entry in entries:
                doubled[entry.name] = doubled.get(entry.name, 0) + 1
                members[entry.name] = self.folded[entry.name.lower()]
            doubled = {name: count for name, count in doubled.items() if count > 1}
        inside = f"{self.root}/"
        outside = [name for name in members if not name.startswith(inside) or not self.rooted]
        every = "\n".join(("", *members))
        unsafe = [name for name in members if _unsafe(name)] if outside or any(mark in every for mark in _MARKS) else []
        for name, count in list(doubled.items())[:MAX_NOTED]:
            self.problem("record-duplicate", "a record is there more than once", name,
                         f"{name} is listed {count} times", "torch.load takes one of them")  # fmt: skip
        if outside:
            self.problem("record-outside-root", "records lie outside of the archive's directory", outside[0],
                         f"not in {self.root or 'any directory'}/: {several(outside)}",
                         "torch.load stops with \"file in archive is not in a subdirectory\"")  # fmt: skip
        if unsafe:
            self.problem("unsafe-record-name", "records are named so that unpacking would leave the directory",
                         unsafe[0], several(repr(name) for name in unsafe))  # fmt: skip
        packed = [entry.name for entry in members.values() if entry.method != STORED]
        self.packed = frozenset(name.removeprefix(f"{self.root}/data/") for name in packed)
        self.facts["compressed"] = tuple(packed)
        if packed:
            self.problem("zip-compressed", "records are compressed", packed[0], several(packed),
                         "torch.load reads them; with mmap=True it reads wrong values")  # fmt: skip
        locked = [entry.name for entry in members.values() if entry.flags & LOCKED]
        if locked:
            self.problem("zip-damaged", "records are marked as encrypted or as patches", locked[0], several(locked))
        self.facts["crc_stored"] = any(entry.crc32 for entry in members.values() if entry.size)

    def container(self) -> str:
        """Name what the archive is, by the names of its records."""
        names = self.members
        script = f"{self.root}/constants.pkl" in names
        self.facts["torchscript"] = script
        if script:
            return "torchscript"
        if any(name.endswith("data.pkl") for name in names) or (self.rooted and f"{self.root}/version" in names):
            return "torch-zip"
        if any(name.startswith(f"{self.root}/data/") for name in names) and self.rooted:
            return "torch-zip"
        if names and all(name.endswith(".npy") for name in names):
            return "npz"
        return "torch-zip" if self.directory.problems else "zip"

    def versions(self) -> None:
        """Read the small records that say how to read the others."""
        name = ".data/version" if self.member(f"{self.root}/.data/version") is not None else "version"
        version = self.raw(name)
        if version is None and self.member(f"{self.root}/{name}") is None:
            self.problem("record-invalid", "the version record is missing", f"{self.root}/version",
                         "torch.load stops without it")  # fmt: skip
        elif version is not None and (digits := _LEADING.match(version)) is None:
            self.problem("record-invalid", "the version record is no number", f"{self.root}/{name}",
                         f"it holds {_shown(version)}")  # fmt: skip
        elif version is not None and digits is not None:
            self.facts["version"] = number = int(digits[1][:30])
            if not MIN_VERSION <= number <= MAX_VERSION:
                self.problem("record-invalid", "the file's version is not supported", f"{self.root}/{name}",
                             f"it is {number}; torch reads {MIN_VERSION} to {MAX_VERSION}")  # fmt: skip
        order = self.text("byteorder")
        self.facts["byteorder"] = order or "little"
        self.big = order == "big"
        if order is not None and order not in ("little", "big"):
            self.problem("record-invalid", "the byteorder record is invalid", f"{self.root}/byteorder",
                         f'it holds {order[:40]!r}; "little" and "big" are known')  # fmt: skip
        form = self.text(".format_version")
        if form is not None:
            self.facts["format_version"] = int(form) if form.isdecimal() and len(form) < 20 else form[:40]
        alignment = self.raw(".storage_alignment")
        if alignment is not None:
            try:
                self.facts["storage_alignment"] = int(alignment)
            except ValueError as error:
                self.facts["storage_alignment"] = alignment[:40].decode("utf-8", "backslashreplace")
                self.problem("record-invalid", "the storage_alignment record is no number",
                             f"{self.root}/.storage_alignment", f"it holds {_shown(alignment)}",
                             f"torch.load stops: {str(error)[:80]}")  # fmt: skip
        serial = self.raw(".data/serialization_id")
        if serial is not None:
            self.facts["serialization_id"] = serial[:80].decode("utf-8", "backslashreplace")
            try:
                serial.decode()
            except UnicodeDecodeError:
                self.problem("record-invalid", "the serialization_id record is no text",
                             f"{self.root}/.data/serialization_id", f"it holds {_shown(serial)}",
                             "torch.load stops with a UnicodeDecodeError")  # fmt: skip

    def extra(self, needed: Mapping[str, Any]) -> None:
        prefix, own = f"{self.root}/data/", {f"{self.root}/{name}" for name in _OWN}
        skip = len(prefix)
        self.facts["extra"] = tuple(
            [
                name
                for name in self.members
                if not (name.startswith(prefix) and name[skip:] in needed) and name not in own and name[-1:] != "/"
            ]
        )

    # Payloads ----------------------------------------------------------------------------------------------

    def text(self, name: str) -> str | None:
        """Return a small record as text, None where there is none."""
        raw = self.raw(name)
        return None if raw is None else raw.decode("utf-8", "backslashreplace")

    def raw(self, name: str) -> bytes | None:
        """Return the bytes of a small record, None where there is none."""
        entry = self.member(f"{self.root}/{name}")
        if entry is None or entry.start < 0:
            return None
        try:
            return self.payload(entry, MAX_SMALL)
        except FormatError as error:
            self.problems.append(error.problem)
            return None

    def payload(self, entry: Entry, limit: int) -> bytes:
        """Return the bytes of a record, inflated where it is compressed."""
        spot = Spot(record=entry.name, offset=self.source.base + entry.header)
        if entry.size > limit or entry.packed > limit:
            detail = (f"{entry.name} has {max(entry.size, entry.packed):,} bytes; more than {limit:,} are not read",)
            raise FormatError(Problem("resource-bomb", "a record is too large to be what it is called", detail, spot))
        if entry.size > MAX_UNPACKED and entry.size > 100 * entry.packed:
            detail = (f"{entry.name} would unpack from {entry.packed:,} to {entry.size:,} bytes",)
            raise FormatError(Problem("resource-bomb", "a record is packed to exhaust memory", detail, spot))
        raw = self.source.read(entry.start, entry.packed)
        if entry.method == STORED:
            return raw
        if entry.method != DEFLATED:
            detail = (f"{entry.name} is packed by method {entry.method}",)
            raise FormatError(Problem("zip-damaged", "a record is compressed in a way torch cannot read", detail, spot))
        try:
            unpacked = zlib.decompressobj(-15).decompress(raw, entry.size + 1)
        except zlib.error as error:
            raise FormatError(Problem("zip-damaged", "a record cannot be unpacked", (str(error),), spot)) from None
        if len(unpacked) != entry.size:
            detail = (f"{entry.name} should unpack to {entry.size:,} bytes",)
            raise FormatError(Problem("zip-damaged", "a record cannot be unpacked", detail, spot))
        return unpacked

    def pickle(self, values: TorchValues) -> pickle_stream.PickleResult:
        name = f"{self.root}/data.pkl"
        entry = self.member(name)
        if entry is None:
            detail = (f"there is no {name}, which says what the file holds", "torch.load stops without it")
            raise FormatError(Problem("record-missing", "the pickle is missing", detail, Spot(record=name)))
        if entry.start < 0:
            raise FormatError(
                Problem(
                    "pickle-damaged",
                    "the pickle cannot be read",
                    (f"{name} is not inside the file",),
                    Spot(record=name),
                )
            )
        data = self.payload(entry, pickle_stream.MAX_BYTES)
        intact = zlib.crc32(data) == entry.crc32 if entry.crc32 else None
        self.facts["pickle_crc_ok"] = intact
        try:
            result = pickle_stream.read(data, persistent=values.persistent, rebuild=values.rebuild, view=values.view)
        except FormatError as error:
            said = error.problem.detail
            if intact is False:
                said += ("its checksum does not fit either: the bytes changed after they were written",)
            offset = self.source.base + entry.start + (error.problem.at.offset or 0)
            at = Spot(record=name, offset=offset if entry.method == STORED else None)
            raise FormatError(replace(error.problem, detail=said, at=at)) from None
        self.facts["protocol"] = result.protocol
        if result.foreign:
            self.facts["foreign_opcodes"] = result.foreign
        return result

    def place(self, key: str) -> Extent | None:
        if key in self.packed:
            return None
        name = f"{self.root}/data/{key}"
        extent = self.extents.get(name)
        if extent is not None or name in self.members:
            return extent
        entry = self.member(name)
        return None if entry is None else self.extents.get(entry.name)

    def storages(self, values: TorchValues, tensors: Mapping[str, TensorRef]) -> None:
        """Check that every storage has its record, of the right size."""
        wrong: list[tuple[str, Entry | None]] = []
        members, prefix = self.members, f"{self.root}/data/"
        for key, storage in values.storages.items():
            entry = members.get(prefix + key)
            if entry is None:
                entry = self.member(prefix + key)
            if (entry is None or entry.size != storage.nbytes) and storage.location != "meta":
                wrong.append((key, entry))
            elif entry is not None and entry.method not in (STORED, DEFLATED):
                detail = f"{entry.name} is packed by method {entry.method}"
                self.problem("zip-damaged", "a record is compressed in a way torch cannot read", entry.name, detail)
        if not wrong:
            return
        users: dict[str, list[str]] = {key: [] for key, _ in wrong}
        for name, ref in tensors.items():
            if ref.storage_id in users:
                users[ref.storage_id].append(name)
        for key, entry in wrong[:MAX_NOTED]:
            name, needed, names = prefix + key, values.storages[key].nbytes, users[key]
            spot = Spot(record=name, tensor=names[0] if names else None)
            whose = f"needed by {several(names)}" if names else "no tensor looks into it"
            if entry is None:
                lines = (f"there is no {name}, of {needed:,} bytes", whose, 'torch.load stops with "file not found"')
                self.problems.append(Problem("record-missing", "a record is missing", lines, spot))
            else:
                lines = (
                    f"{name} should have {needed:,} bytes, and has {entry.size:,}",
                    whose,
                    "torch.load stops; with mmap=True it reads the bytes of other records",
                )
                self.problems.append(Problem("record-size-mismatch", "a record has the wrong size", lines, spot))
        if len(wrong) > MAX_NOTED:
            rest = [prefix + key for key, _ in wrong[MAX_NOTED:]]
            kind = "record-missing" if wrong[-1][1] is None else "record-size-mismatch"
            message = f"{len(rest):,} more records are missing or have the wrong size"
            self.problems.append(Problem(kind, message, (several(rest),)))

    def problem(self, kind: str, message: str, record: str, *detail: str) -> None:
        self.problems.append(Problem(kind, message, detail, Spot(record=record)))


def _shown(raw: bytes) -> str:
    return repr(raw[:40])[1:]


def _unsafe(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return name[:1] == "/" or ".." in parts or "\\" in name or "\0" in name or parts[0][1:2] == ":"
