"""Single steps of a plan, forwards and back, each synced before it counts as done.

A step back may find its step not begun, half done, or done, and may itself have been cut short before: it looks at
what is there, and leaves alone what neither the plan nor the state before it can explain.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence

from ckpt_tools.core.durable import Disk, Look, look
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.core.source import FileSource, Source
from ckpt_tools.model.plan import (
    AppendBytes,
    CutFile,
    MoveFile,
    PatchBytes,
    Plan,
    Step,
    TruncateTo,
    WriteFile,
    final,
    inside,
)

_PIECE = 1 << 22


class Steps:
    """The steps of one plan, below ``root``; ``number`` is that of the journal entry and names temporary files."""

    def __init__(self, root: str, plan: Plan, number: int, disk: Disk) -> None:
        self.root = root
        self.steps = plan.steps
        self.number = number
        self.disk = disk

    def at(self, path: str) -> str:
        return os.path.join(self.root, path) if path else self.root

    def forward(self, number: int) -> None:
        """Carry out one step.

        Raises:
            OSError: the system refused something; the step may be half done.
        """
        step = self.steps[number]
        path = step[0].path
        match step[0]:
            case PatchBytes():
                self._own(number, path)
                for patch in step:
                    if isinstance(patch, PatchBytes):
                        self.disk.write(self.at(path), patch.offset, patch.new)
                self.disk.sync(self.at(path))
            case AppendBytes(_, offset, data):
                self._own(number, path)
                self.disk.write(self.at(path), offset, data)
                self.disk.sync(self.at(path))
            case TruncateTo(_, size, _) | CutFile(_, size, _, _):
                self._own(number, path)
                self.disk.truncate(self.at(path), size)
                self.disk.sync(self.at(path))
            case WriteFile(_, new, old):
                self._parents(path)
                self._replace(number, path, new, exists=old is not None)
            case MoveFile(_, to):
                self._parents(to)
                self._rename(path, to)

    def back(self, number: int) -> None:
        """Take one step back, whatever of it was done; every later one was taken back, or never begun.

        Raises:
            EditRefusedError: something else changed the file since.
            OSError: the system refused something.
        """
        step = self.steps[number]
        reason = self.foreign(number, step[0].path)
        if reason is not None:
            raise EditRefusedError(reason)
        path = step[0].path
        place = self.at(path)
        match step[0]:
            case PatchBytes():
                self._patch_back(number, path, step)
            case AppendBytes(_, offset, _):
                if self._file(path).size > offset:
                    self._own(number, path)
                    self.disk.truncate(place, offset)
                self.disk.sync(place)
            case TruncateTo(_, size, old):
                there = self._file(path)
                if there.links < 2 or there.size != size + len(old) or self._read(path, size, len(old)) != old:
                    self._own(number, path)
                    self.disk.write(place, size, old)
                self.disk.sync(place)
            case CutFile(_, size, _, kept):
                self._grow_back(number, path, size, kept)
            case WriteFile(_, _, old):
                self._write_back(number, path, old)
            case MoveFile(_, to):
                if look(self.at(to)) is not None:
                    self._rename(to, path)
                else:
                    self._sync_parents(path, to)
        self._clean(number, path)

    # What is there ------------------------------------------------------------------------------------------

    def foreign(self, number: int, path: str) -> str | None:
        """Return why a step, whose file now has the name ``path``, cannot have been done or half done; None if it can.

        A crash may leave any mixture of old and new bytes, so any is taken.
        """
        step = self.steps[number]
        there = look(self.at(path))
        match step[0]:
            case MoveFile(_, to):
                if (there is None) == (look(self.at(to)) is None):
                    return f"{path}: it, or {to}, was moved by something else since"
                return None
            case WriteFile(_, new, old):
                if there is None:
                    return None if old is None else f"{path}: is gone"
                if not there.is_file or not self._holds(path, there, [new] if old is None else [new, old]):
                    return f"{path}: was written by something else since"
                return None
        if there is None or not there.is_file:
            return f"{path}: is gone" if there is None else f"{path}: is a {there.kind} now"
        match step[0]:
            case AppendBytes(_, offset, _):
                return f"{path}: became shorter since" if there.size < offset else None
            case TruncateTo(_, size, _):
                return f"{path}: became shorter since" if there.size < size else None
            case CutFile(_, size, length, kept):
                tail = look(self.at(kept))
                if tail is None or not tail.is_file or tail.size != length:
                    return f"{kept}: is gone, or is not the {length:,} bytes that were cut off any more"
                return f"{path}: became shorter since" if there.size < size else None
        for patch, found in self._found(path, step):
            if len(found) != len(patch.old) or any(
                byte not in pair for byte, *pair in zip(found, patch.old, patch.new, strict=True)
            ):
                return f"{path}: bytes at {patch.offset:,} were changed by something else since"
        return None

    def foreign_up_to(self, progress: int) -> str | None:
        """Return what in the files contradicts that the steps before ``progress`` are done and no later one is."""
        moved = self.steps[progress][0] if progress < len(self.steps) else None
        for number, step in enumerate(self.steps[: progress + 1]):
            if isinstance(step[0], MoveFile):
                continue  # looked at when its turn comes: the names on both sides may have been used again
            path = final(self.steps, number, step[0].path, progress)
            if isinstance(moved, MoveFile) and number < progress and look(self.at(path)) is None:
                path = final(self.steps, number, step[0].path, progress + 1)
            reason = self.foreign(number, path)
            if reason is not None:
                return reason
        return None

    def differs(self, digests: Iterable[tuple[str, str]] = ()) -> str | None:
        """Return what is not as the whole plan leaves it, None when all is; ``digests`` are SHA-256 by final name."""
        sizes: dict[str, int] = {}
        for number, step in enumerate(self.steps):
            path = final(self.steps, number, step[0].path)
            reason = None
            if isinstance(step[0], MoveFile):
                reason = self._not_moved(number, step[0])
            elif (there := look(self.at(path))) is None or not there.is_file:
                return f"{path}: is gone" if there is None else f"{path}: is a {there.kind} now"
            else:
                match step[0]:
                    case AppendBytes(_, offset, data):
                        sizes[path] = offset + len(data)
                        if self._read(path, offset, len(data)) != data:
                            reason = f"{path}: its last {len(data):,} bytes changed since"
                    case TruncateTo(_, size, _):
                        sizes[path] = size
                    case CutFile(_, size, length, kept):
                        sizes[path] = size
                        sizes[final(self.steps, number, kept)] = length
                    case WriteFile(_, new, _):
                        if not self._holds(path, there, [new]):
                            reason = f"{path}: changed since"
                for patch, found in self._found(path, step):
                    if found != patch.new:
                        reason = f"{path}: bytes at {patch.offset:,} changed since"
            if reason is not None:
                return reason
        for path, size in sizes.items():
            now = look(self.at(path))
            if now is None or now.size != size:
                return f"{path}: has {now.size if now else 0:,} bytes, and had {size:,}"
        for path, digest in digests:
            if self.digest(path, ()) != digest:
                return f"{path}: changed since"
        return None

    def digest(self, path: str, steps: Sequence[Step]) -> str:
        """Return the SHA-256 that a file has after ``steps``, which speak of nothing else."""
        with FileSource(self.at(path), path) as source:
            data = bytearray(source.read(0, source.size))
        for step in steps:
            for action in step:
                match action:
                    case PatchBytes(_, offset, _, new):
                        data[offset : offset + len(new)] = new
                    case AppendBytes(_, offset, more):
                        data[offset:] = more
                    case TruncateTo(_, size, _) | CutFile(_, size, _, _):
                        del data[size:]
        return hashlib.sha256(data).hexdigest()

    def _not_moved(self, number: int, move: MoveFile) -> str | None:
        here = final(self.steps, number, move.to)
        if look(self.at(here)) is None:
            return f"{here}: is gone"
        again = any(
            (isinstance(later[0], WriteFile) and inside(later[0].path, move.path))
            or (isinstance(later[0], MoveFile) and inside(move.path, later[0].to))
            for later in self.steps[number + 1 :]
        )
        if not again and look(self.at(move.path)) is not None:
            return f"{move.path}: was made again since it was moved to {here}"
        return None

    def _holds(self, path: str, there: Look, texts: Sequence[bytes]) -> bool:
        fitting = [text for text in texts if len(text) == there.size]
        return bool(fitting) and self._read(path, 0, there.size) in fitting

    def _file(self, path: str) -> Look:
        found = look(self.at(path))
        if found is None or not found.is_file:
            raise EditRefusedError(f"{path}: {'is gone' if found is None else f'is a {found.kind} now'}")
        return found

    def _read(self, path: str, offset: int, length: int) -> bytes:
        with FileSource(self.at(path), path) as source:
            return source.read(offset, length)

    def _found(self, path: str, step: Step) -> Iterator[tuple[PatchBytes, bytes]]:
        """Yield every patch of a step with the bytes that are in its place."""
        if not isinstance(step[0], PatchBytes):
            return
        with FileSource(self.at(path), path) as source:
            for patch in step:
                if isinstance(patch, PatchBytes):
                    yield patch, source.read(patch.offset, len(patch.old))

    # Changes ------------------------------------------------------------------------------------------------

    def _patch_back(self, number: int, path: str, step: Step) -> None:
        if self._file(path).links < 2 or any(found != patch.old for patch, found in self._found(path, step)):
            # Written even where the old bytes are read: after a failed sync that says nothing about the disk.
            self._own(number, path)
            for patch in step:
                if isinstance(patch, PatchBytes):
                    self.disk.write(self.at(path), patch.offset, patch.old)
        self.disk.sync(self.at(path))

    def _grow_back(self, number: int, path: str, size: int, kept: str) -> None:
        with FileSource(self.at(kept), kept) as tail:
            if self._file(path).links > 1 and self._ends_with(path, size, tail):
                return
            self._own(number, path)
            at = size
            for piece in tail.chunks(_PIECE):
                self.disk.write(self.at(path), at, bytes(piece))
                at += len(piece)
        self.disk.sync(self.at(path))

    def _ends_with(self, path: str, size: int, tail: Source) -> bool:
        with FileSource(self.at(path), path) as whole:
            return whole.size == size + tail.size and all(
                whole.read(size + at, len(piece)) == piece
                for at, piece in zip(range(0, tail.size, _PIECE), tail.chunks(_PIECE), strict=True)
            )

    def _write_back(self, number: int, path: str, old: bytes | None) -> None:
        there = look(self.at(path))
        if old is None:
            if there is not None:
                self.disk.unlink(self.at(path))
        elif there is None or not self._holds(path, there, [old]):
            self._clean(number, path)
            self._replace(number, path, old, exists=there is not None)
        self._sync_parents(path)

    def _replace(self, number: int, path: str, data: bytes, *, exists: bool) -> None:
        temporary, place = self._temporary(number, path), self.at(path)
        self._clean(number, path)
        self.disk.create(temporary, data, place if exists else None)
        self.disk.sync(temporary)
        self.disk.rename(temporary, place)
        self._sync_parents(path)

    def _own(self, number: int, path: str) -> None:
        """Make a file that has other hard links a file of its own: the others keep what they have."""
        if self._file(path).links < 2:
            return
        temporary, place = self._temporary(number, path), self.at(path)
        self._clean(number, path)
        self.disk.copy(place, temporary)
        self.disk.sync(temporary)
        self.disk.rename(temporary, place)
        self._sync_parents(path)

    def _rename(self, path: str, to: str) -> None:
        if look(self.at(to)) is not None:
            raise EditRefusedError(f"{to}: exists")
        self.disk.rename(self.at(path), self.at(to))
        self._sync_parents(path, to)

    def _sync_parents(self, *paths: str) -> None:
        for parent in dict.fromkeys(os.path.dirname(self.at(path)) for path in paths):
            if os.path.isdir(parent):
                self.disk.sync_directory(parent)

    def _parents(self, path: str) -> None:
        """Make the directories that lead to ``path``."""
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            parent = self.at("/".join(parts[:depth]))
            if look(parent) is None:
                self.disk.mkdir(parent)
                self.disk.sync_directory(os.path.dirname(parent))

    def _temporary(self, number: int, path: str) -> str:
        return os.path.join(os.path.dirname(self.at(path)), f".ckpt-tools-{self.number}-{number}.tmp")

    def _clean(self, number: int, path: str) -> None:
        temporary = self._temporary(number, path)
        if look(temporary) is not None:
            self.disk.unlink(temporary)
            self.disk.sync_directory(os.path.dirname(temporary))
