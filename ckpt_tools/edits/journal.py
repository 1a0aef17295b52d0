"""The journal: one numbered entry per edit, written before the edit and kept after it.

An entry never changes; its *name* says how far the edit is, because a rename is atomic::

    0003.pending-2.json    begun; its first 2 steps are done and synced, the third may be half done
    0003.done.json         done, and proven by reading the files again
    0003.undoing-2.json    being taken back; only the first 2 steps are still surely there
    0003.undone.json       taken back, or never finished

The first line of an entry is its head; the second is the plan with all old and new bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from ckpt_tools._version import __version__
from ckpt_tools.core.durable import Disk, names
from ckpt_tools.core.errors import CkptError, EditRefusedError, NothingFoundError
from ckpt_tools.core.listing import SIDECAR, Listing
from ckpt_tools.core.source import FileSource
from ckpt_tools.model.plan import MoveFile, Plan, check_path, inside
from ckpt_tools.model.plan_document import from_document, to_document

SCHEMA = "ckpt-tools/journal/1"
MAX_ENTRY = 1 << 29
"""Bytes of an entry, old and new bytes of the plan included; a larger plan is refused."""

_MAX_HEAD = 1 << 20
_MAX_COMMAND = 4000
_NAME = re.compile(r"(\d{4,9})\.(?:(pending|undoing)-(\d{1,6})|(done)|(undone))\.json\Z")


@dataclass(frozen=True, slots=True)
class Home:
    """Where plans lead from (``root``) and where their journal is (``sidecar``, below the root)."""

    root: str
    sidecar: str = SIDECAR

    def at(self, path: str) -> str:
        return os.path.join(self.root, path) if path else self.root

    @property
    def journal(self) -> str:
        return self.at(f"{self.sidecar}/journal")

    @property
    def lock(self) -> str:
        return self.at(f"{self.sidecar}/lock")

    @property
    def exists(self) -> bool:
        return os.path.isdir(self.at(self.sidecar))

    @property
    def subject(self) -> str:
        """What ``ckpt undo`` takes, as one would type it into a shell."""
        return shlex.quote(self.at(self.sidecar.removeprefix(SIDECAR).lstrip("/")))


@dataclass(frozen=True, slots=True)
class Edit:
    """The head of an entry: what was done, when and by which version.

    ``state`` is ``pending``, ``done``, ``undoing`` or ``undone``; ``progress`` counts the steps that are surely there.
    """

    home: Home
    number: int
    state: str
    progress: int
    name: str
    tool: str
    time_ns: int
    title: str
    command: str
    paths: tuple[str, ...]

    @property
    def pending(self) -> bool:
        """Whether it was begun, or taken back, and not finished."""
        return self.state in ("pending", "undoing")

    @property
    def time(self) -> str:
        return datetime.fromtimestamp(self.time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def touches(self, names: tuple[str, ...]) -> bool:
        """Return whether the edit concerns any of ``names``, or something inside of them; ``()`` is everything."""
        return not names or any(inside(path, name) for path in self.paths for name in names)


@dataclass(frozen=True, slots=True)
class Entry:
    """A whole entry.

    ``files`` holds the modification times before the edit, ``directories`` those of the directories in which
    names change, ``made`` the directories that it makes, ``digests`` the SHA-256 of small files after it.
    """

    edit: Edit
    plan: Plan
    files: Mapping[str, int] = field(default_factory=dict)
    directories: Mapping[str, int] = field(default_factory=dict)
    made: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Name:
    number: int
    state: str
    progress: int
    name: str


def home_of(path: str | os.PathLike[str]) -> Home:
    """Return where the journal of a checkpoint is: in its directory, or beside it when it is one file.

    Raises:
        EditRefusedError: the file is a symbolic link; it is not written through.
        NothingFoundError: there is no such path.
    """
    location = os.fspath(path)
    if os.path.isdir(location):
        return Home(os.path.realpath(location))
    head, name = os.path.split(os.path.abspath(location))
    if os.path.islink(location):
        target = os.path.realpath(location)
        raise EditRefusedError(f"{location}: is a symbolic link, and not written through", hint=f"name {target} itself")
    sidecar = f"{SIDECAR}/{name}"
    if not os.path.exists(location) and not os.path.isdir(os.path.join(head, sidecar, "journal")):
        raise NothingFoundError(f"{location}: no such file or directory")
    return Home(os.path.realpath(head), sidecar)


def around(home: Home) -> list[tuple[Home, tuple[str, ...]]]:
    """Return the journals above that may concern ``home``, each with the names that stand for it there."""
    found: list[tuple[Home, tuple[str, ...]]] = []
    below = home.sidecar.removeprefix(f"{SIDECAR}/") if home.sidecar != SIDECAR else ""
    if below:
        found.append((Home(home.root), (below,)))
    parent, name = os.path.split(home.root)
    if name:
        found.append((Home(parent), (f"{name}/{below}" if below else name,)))
    return [(each, concerned) for each, concerned in found if each.exists]


def within(home: Home, paths: tuple[str, ...] = ()) -> list[Home]:
    """Return the other journals below ``home`` that speak of the same files: of single files, of checkpoints."""
    roots = {home.root: None} if home.sidecar == SIDECAR else {}
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            roots[home.at("/".join(parts[:depth]))] = None
    found = []
    for root in roots:
        sidecar = os.path.join(root, SIDECAR)
        if root != home.root and os.path.isdir(sidecar):
            found.append(Home(root))
        found += [
            Home(root, f"{SIDECAR}/{name}")
            for name in names(sidecar)
            if name != "quarantine" and os.path.isdir(os.path.join(sidecar, name, "journal"))
        ]
    return [each for each in found if each != home]


def edits(home: Home) -> list[Edit]:
    """Return the edits of one journal, oldest first.

    Raises:
        EditRefusedError: an entry cannot be read.
    """
    return [_head(home, name, _open(home, name)[0]) for name in _names(home)]


def pending(home: Home, names: tuple[str, ...] = ()) -> list[Edit]:
    """Return the edits of one journal that did not end and concern ``names``; only these entries are opened."""
    found = [_head(home, name, _open(home, name)[0]) for name in _names(home) if name.state in ("pending", "undoing")]
    return [edit for edit in found if edit.touches(names)]


def pending_in(listing: Listing) -> list[Edit]:
    """Return the edits that did not end, of a checkpoint as it was listed: for a rule that looks and never writes.

    An entry of its own that cannot be read is told with an empty title; those of its run that are about it are told.
    """
    found = []
    for home in _homes_in(listing):
        for name in _names(home):
            if name.state in ("pending", "undoing"):
                try:
                    found.append(_head(home, name, _open(home, name)[0]))
                except CkptError:
                    found.append(Edit(home, name.number, name.state, name.progress, name.name, "", 0, "", "", ()))
    root = os.path.realpath(listing.root)
    with suppress(CkptError):
        found += pending(Home(os.path.dirname(root)), (os.path.basename(root),))
    return found


def edited_in(listing: Listing) -> frozenset[str]:
    """Return the files of a checkpoint that edits changed, or began to, by its journal and that of its run."""
    found: set[str] = set()
    for home in _homes_in(listing):
        for name in _names(home):
            if name.state != "undone":
                with suppress(CkptError):
                    found.update(_head(home, name, _open(home, name)[0]).paths)
    with suppress(CkptError):
        found.update(_edited_above(os.path.realpath(listing.root)))
    return frozenset(found)


def _edited_above(root: str) -> Iterator[str]:
    """Yield the files of a checkpoint that edits of its run changed, under the names that it had."""
    parent, own = os.path.split(root)
    home = Home(parent)
    for name in reversed(_names(home)):
        edit = _head(home, name, _open(home, name)[0]) if name.state != "undone" else None
        if edit is None or not edit.touches((own,)):
            continue
        moves = [each for each in load(edit).plan.actions if isinstance(each, MoveFile)] if own in edit.paths else []
        if any(move.path == own for move in moves) and name.state == "done":
            return  # what it tells of, and all before, is another directory that had this name
        own = next((move.path for move in moves if move.to == own), own)
        yield from (path.removeprefix(f"{own}/") for path in edit.paths if path.startswith(f"{own}/"))


def _homes_in(listing: Listing) -> list[Home]:
    root = os.path.realpath(listing.root)
    if SIDECAR in listing.files:
        return [Home(root), *within(Home(root))]
    files = [path for path, entry in listing.files.items() if entry.is_file and "/" not in path]
    return [Home(root, f"{SIDECAR}/{files[0]}")] if len(files) == 1 else []


def load(edit: Edit) -> Entry:
    """Return an entry with its plan.

    Raises:
        EditRefusedError: it is damaged.
    """
    head, body = _open(edit.home, _Name(edit.number, edit.state, edit.progress, edit.name), whole=True)
    try:
        if hashlib.sha256(body).hexdigest() != head.get("sha256"):
            raise ValueError("its checksum does not fit")
        document = json.loads(body)
        plan = from_document(document["plan"])
        return Entry(
            edit,
            plan,
            {check_path(path): int(time) for path, time in document["files"].items()},
            {path and check_path(path): int(time) for path, time in document["directories"].items()},
            tuple(check_path(path) for path in document["made"]),
            {check_path(path): str(digest) for path, digest in document["digests"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(edit.home, edit.name, error) from None


def begin(home: Home, entry: Entry, disk: Disk) -> Entry:
    """Write a new entry, as pending and with no step done; it is on the disk when this returns.

    Raises:
        OSError: it is not, and nothing is left of it.
    """
    number = max((name.number for name in _names(home)), default=0) + 1
    edit = replace(entry.edit, number=number, state="pending", progress=0, name=f"{number:04d}.pending-0.json")
    body = json.dumps(
        {
            "plan": to_document(entry.plan),
            "files": dict(entry.files),
            "directories": dict(entry.directories),
            "made": list(entry.made),
            "digests": dict(entry.digests),
        }
    ).encode("ascii")
    head = {
        "schema": SCHEMA,
        "tool": edit.tool,
        "number": number,
        "time_ns": edit.time_ns,
        "time": edit.time,
        "title": edit.title,
        "command": edit.command,
        "paths": list(edit.paths),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    first = json.dumps(head).encode("ascii")
    if len(body) > MAX_ENTRY or len(first) >= _MAX_HEAD:
        raise EditRefusedError(f"the edit needs a journal entry of {len(body):,} bytes; {MAX_ENTRY:,} are the most")
    temporary = os.path.join(home.journal, f"{number:04d}.tmp")
    if os.path.lexists(temporary):  # of a process that died before its entry was one
        disk.unlink(temporary)
    try:
        disk.create(temporary, first + b"\n" + body + b"\n")
        disk.sync(temporary)
        disk.rename(temporary, os.path.join(home.journal, edit.name))
        disk.sync_directory(home.journal)
    except BaseException:
        for left in (temporary, os.path.join(home.journal, edit.name)):
            if os.path.lexists(left):
                disk.unlink(left)
        raise
    return replace(entry, edit=edit)


def first_draft(home: Home, plan: Plan, command: str, now_ns: int) -> Edit:
    """Return the head of an edit that was not begun."""
    paths = plan.paths
    if len(paths) > 1000:
        paths = tuple(dict.fromkeys(path.rpartition("/")[0] or path for path in paths))
    return Edit(home, 0, "planned", 0, "", __version__, now_ns, plan.title, command[:_MAX_COMMAND], paths)


def advance(entry: Entry, disk: Disk, state: str, progress: int = 0) -> Entry:
    """Say how far an edit is; this is on the disk when it returns.

    Raises:
        OSError: it is not; whether the entry has its new name already, ``current`` knows.
    """
    edit = entry.edit
    word = f"{state}-{progress}" if state in ("pending", "undoing") else state
    name = f"{edit.number:04d}.{word}.json"
    if name != edit.name:
        disk.rename(os.path.join(edit.home.journal, edit.name), os.path.join(edit.home.journal, name))
        disk.sync_directory(edit.home.journal)
    return replace(entry, edit=replace(edit, state=state, progress=progress, name=name))


def current(entry: Entry) -> Entry:
    """Return an entry as the directory has it: whoever was interrupted cannot know how far it came."""
    edit = entry.edit
    for name in _names(edit.home):
        if name.number == edit.number:
            return replace(entry, edit=replace(edit, state=name.state, progress=name.progress, name=name.name))
    return entry


def _names(home: Home) -> list[_Name]:
    return sorted(_parsed(names(home.journal)), key=lambda name: name.number)


def _parsed(found: list[str]) -> Iterator[_Name]:
    for name in found:
        match = _NAME.match(name)
        if match:
            number, moving, progress, done, _ = match.groups()
            yield _Name(int(number), moving or done or "undone", int(progress or 0), name)


def _open(home: Home, name: _Name, *, whole: bool = False) -> tuple[dict[str, Any], bytes]:
    shown = f"{home.sidecar}/journal/{name.name}"
    with FileSource(os.path.join(home.journal, name.name), shown) as source:
        if source.size > MAX_ENTRY + _MAX_HEAD + 2:
            raise _damaged(home, name.name, ValueError("it is too large"))
        first, _, rest = source.read(0, source.size if whole else _MAX_HEAD).partition(b"\n")
    try:
        head = json.loads(first)
        if not isinstance(head, dict) or head.get("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
    except (ValueError, RecursionError) as error:
        raise _damaged(home, name.name, error) from None
    return head, rest.removesuffix(b"\n")


def _head(home: Home, name: _Name, head: Mapping[str, Any]) -> Edit:
    try:
        paths = tuple(check_path(path) for path in head["paths"])
        tool, title, command = str(head["tool"]), str(head["title"]), str(head["command"])
        when = int(head["time_ns"])
        edit = Edit(home, name.number, name.state, name.progress, name.name, tool, when, title, command, paths)
        _ = edit.time
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise _damaged(home, name.name, error) from None
    return edit


def _damaged(home: Home, name: str, error: Exception) -> EditRefusedError:
    place = f"{home.sidecar}/journal/{name}"
    return EditRefusedError(
        f"{place}: the journal entry cannot be used: {error}",
        hint="it was written by another version, or damaged since; set it aside by hand to go on without it",
    )
