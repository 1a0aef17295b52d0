"""A disk that is watched, and what a crash leaves of the changes that passed it.

``Watched`` stands in the place of the real disk: it records every change, and may fail or die before one.  ``World``
replays a recorded sequence up to any point and then forgets, at random, what was not synced: whole writes or single
sectors of them, truncations, and names.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt_tools.core.durable import LocalDisk
from ckpt_tools.core.listing import SIDECAR

SECTOR = 512


@dataclass(frozen=True)
class Change:
    """One call of the disk; ``content`` is what a copy copied."""

    name: str
    arguments: tuple[Any, ...]
    content: bytes = b""


class Quick(LocalDisk):
    """A disk that does not wait: a test's own crash model, not the machine's, says what is safe."""

    def sync(self, path: str) -> None:
        self._close(path)
        os.stat(path)

    def sync_directory(self, path: str) -> None:
        assert os.path.isdir(path)


class Watched:
    """Passes every change on, after ``before(number, change)``, and keeps what was done."""

    def __init__(self, before: Callable[[int, Change], None] | None = None, inner: LocalDisk | None = None) -> None:
        self.inner = inner or Quick()
        self.before = before
        self.changes: list[Change] = []

    def _pass(self, name: str, *arguments: Any) -> None:
        change = Change(name, arguments)
        if name == "copy":
            change = Change(name, arguments, Path(arguments[0]).read_bytes())
        if self.before is not None:
            self.before(len(self.changes), change)
        self.changes.append(change)
        getattr(self.inner, name)(*arguments)

    def write(self, path: str, offset: int, data: bytes) -> None:
        self._pass("write", path, offset, data)

    def truncate(self, path: str, size: int) -> None:
        self._pass("truncate", path, size)

    def create(self, path: str, data: bytes, like: str | None = None) -> None:
        self._pass("create", path, data, like)

    def copy(self, path: str, to: str) -> None:
        self._pass("copy", path, to)

    def mkdir(self, path: str) -> None:
        self._pass("mkdir", path)

    def rename(self, path: str, to: str) -> None:
        self._pass("rename", path, to)

    def unlink(self, path: str) -> None:
        self._pass("unlink", path)

    def rmdir(self, path: str) -> None:
        self._pass("rmdir", path)

    def times(self, path: str, mtime_ns: int) -> None:
        self._pass("times", path, mtime_ns)

    def sync(self, path: str) -> None:
        self._pass("sync", path)

    def sync_directory(self, path: str) -> None:
        self._pass("sync_directory", path)

    def lock(self, path: str, *, shared: bool = False) -> AbstractContextManager[None]:
        return self.inner.lock(path, shared=shared)


@dataclass
class _File:
    safe: bytes = b""
    waiting: list[tuple[str, int, bytes]] = field(default_factory=list)


@dataclass
class _Folder:
    names: dict[str, int] = field(default_factory=dict)


class World:
    """A directory tree as a disk has it: what is safe, and what still waits to be written."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.files: dict[int, _File] = {}
        self.safe: dict[int, _Folder] = {}
        self.live: dict[int, _Folder] = {}
        self.waiting: list[list[tuple[int, str, int | None]]] = []
        self.numbers: dict[int, int] = {}
        self.top = self._take(self.root)

    def _take(self, place: str) -> int:
        status = os.lstat(place)
        if status.st_ino in self.numbers:
            return self.numbers[status.st_ino]
        number = self.numbers[status.st_ino] = len(self.numbers)
        if os.path.isdir(place):
            inside = {name: self._take(os.path.join(place, name)) for name in sorted(os.listdir(place))}
            self.safe[number], self.live[number] = _Folder(dict(inside)), _Folder(dict(inside))
        else:
            self.files[number] = _File(Path(place).read_bytes())
        return number

    def play(self, change: Change) -> None:
        name, arguments = change.name, change.arguments
        if name == "write":
            self.files[self._find(arguments[0])].waiting.append(("write", arguments[1], arguments[2]))
        elif name == "truncate":
            self.files[self._find(arguments[0])].waiting.append(("truncate", arguments[1], b""))
        elif name in ("create", "copy"):
            target, data = (arguments[0], arguments[1]) if name == "create" else (arguments[1], change.content)
            number = self._new()
            self.files[number] = _File(b"", [("write", 0, data)])
            self._name([(*self._spot(target), number)])
        elif name == "mkdir":
            number = self._new()
            self.safe[number], self.live[number] = _Folder(), _Folder()
            self._name([(*self._spot(arguments[0]), number)])
        elif name == "rename":
            number = self._find(arguments[0])
            self._name([(*self._spot(arguments[0]), None), (*self._spot(arguments[1]), number)])
        elif name in ("unlink", "rmdir"):
            self._name([(*self._spot(arguments[0]), None)])
        elif name == "sync":
            file = self.files[self._find(arguments[0])]
            for each in file.waiting:
                file.safe = _after(file.safe, each)
            file.waiting = []
        elif name == "sync_directory":
            folder = self._find(arguments[0])
            now = [group for group in self.waiting if any(where == folder for where, _, _ in group)]
            self.waiting = [group for group in self.waiting if group not in now]
            for group in now:
                _rename(self.safe, group)

    def _new(self) -> int:
        number = len(self.numbers)
        self.numbers[-number] = number
        return number

    def _name(self, group: list[tuple[int, str, int | None]]) -> None:
        _rename(self.live, group)
        self.waiting.append(group)

    def _spot(self, path: str) -> tuple[int, str]:
        return self._find(os.path.dirname(path)), os.path.basename(path)

    def _find(self, path: str) -> int:
        assert path == self.root or path.startswith(f"{self.root}/"), path
        number = self.top
        for name in filter(None, path[len(self.root) :].split("/")):
            number = self.live[number].names[name]
        return number

    def crash(self, place: Path, fate: random.Random, keep: float) -> None:
        """Write below ``place`` what a crash leaves when each waiting change survives with probability ``keep``."""
        folders = {number: _Folder(dict(folder.names)) for number, folder in self.safe.items()}
        for group in self.waiting:
            if fate.random() < keep:
                _rename(folders, group)
        self._write(self.top, str(place), folders, fate, keep, {})

    def _write(
        self,
        number: int,
        place: str,
        folders: dict[int, _Folder],
        fate: random.Random,
        keep: float,
        done: dict[int, str],
    ) -> None:
        os.makedirs(place, exist_ok=True)
        for name, inner in folders[number].names.items():
            path = os.path.join(place, name)
            if inner in folders:
                self._write(inner, path, folders, fate, keep, done)
            elif inner in done:
                os.link(done[inner], path)
            else:
                done[inner] = path
                file, data = self.files[inner], self.files[inner].safe
                for each in file.waiting:
                    for piece in _torn(each, fate, keep):
                        data = _after(data, piece)
                Path(path).write_bytes(data)


def _rename(folders: dict[int, _Folder], group: list[tuple[int, str, int | None]]) -> None:
    for where, name, number in group:
        if number is None:
            folders[where].names.pop(name, None)
        else:
            folders[where].names[name] = number


def _after(data: bytes, change: tuple[str, int, bytes]) -> bytes:
    kind, offset, new = change
    if kind == "truncate":
        return data[:offset].ljust(offset, b"\0")
    return data[:offset].ljust(offset, b"\0") + new + data[offset + len(new) :]


def _torn(change: tuple[str, int, bytes], fate: random.Random, keep: float) -> Iterator[tuple[str, int, bytes]]:
    """Yield what a crash leaves of one change: all, nothing, or some of its sectors."""
    kind, offset, new = change
    if kind == "truncate" or keep in (0, 1) or fate.random() < 0.4:
        if fate.random() < keep:
            yield change
        return
    at = 0
    while at < len(new):
        end = min(len(new), at + SECTOR - (offset + at) % SECTOR)
        if fate.random() < keep:
            yield "write", offset + at, new[at:end]
        at = end


def state(root: Path) -> dict[str, bytes | None]:
    """Return every name below ``root`` with its bytes, but for what belongs to the journal alone."""
    found: dict[str, bytes | None] = {}
    for place, _, files in os.walk(root):
        folder = Path(place).relative_to(root)
        own = SIDECAR in folder.parts and "quarantine" not in folder.parts
        if not own:
            found[folder.as_posix()] = None
            found.update({(folder / name).as_posix(): (Path(place) / name).read_bytes() for name in files})
    return found


def stop_at(number: int, *, times: bool = False) -> Watched:
    """Return a disk that leaves the edit as it is at a change, as a killed process does; ``times`` stop as well."""

    def before(done: int, change: Change) -> None:
        if done >= number and (times or change.name != "times"):
            raise OSError(5, "gone")

    return Watched(before)
