"""Edits as data: what would be changed, byte by byte, before anything is.

A plan is made by looking, shown by ``--dry-run``, written to the journal and only then carried out.  Every action
holds the old bytes too, so that the plan is also the way back.  Paths are POSIX and relative to the directory
that the journal belongs to; they never lead out of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ckpt_tools.core.listing import SIDECAR, FileStat, Kind

OWN = frozenset({"journal", "lock"})
"""What of the sidecar belongs to the journal alone; no plan may touch it."""

STAGED = "staged"
"""The directory of the sidecar in which large new files are written before an edit moves them into their place."""


@dataclass(frozen=True, slots=True)
class PatchBytes:
    """Replace bytes in place by as many others."""

    path: str
    offset: int
    old: bytes
    new: bytes


@dataclass(frozen=True, slots=True)
class AppendBytes:
    """Make a file longer; ``offset`` is the size that it has until then."""

    path: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class TruncateTo:
    """Cut a file to ``size`` bytes; ``old`` are the bytes that go."""

    path: str
    size: int
    old: bytes


@dataclass(frozen=True, slots=True)
class CutFile:
    """Cut a file to ``size`` bytes; the ``length`` that go, too many for the journal, are in the file ``kept``."""

    path: str
    size: int
    length: int
    kept: str


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Give a file new contents as a whole; ``old`` None: it does not exist yet."""

    path: str
    new: bytes
    old: bytes | None


@dataclass(frozen=True, slots=True)
class MoveFile:
    """Give a file or a directory another name, which is free."""

    path: str
    to: str


Action = PatchBytes | AppendBytes | TruncateTo | CutFile | WriteFile | MoveFile
Step = tuple[Action, ...]
"""Actions that are carried out and synced together: patches of one file; every other action stands alone."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A file is as it was when the plan was made."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Absent:
    """Nothing has this name."""

    path: str


@dataclass(frozen=True, slots=True)
class Room:
    """So many bytes are free, besides what the journal needs."""

    size: int


Guard = Seen | Absent | Room


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in the order in which they are carried out, all or none, and what must hold before the first.

    Raises:
        ValueError: a path leads elsewhere, two actions change the same bytes, or sizes contradict each other.
    """

    title: str
    actions: tuple[Action, ...]
    guards: tuple[Guard, ...] = ()

    def __post_init__(self) -> None:
        _check(self.actions)

    @classmethod
    def of(cls, title: str, actions: Iterable[Action], files: Mapping[str, FileStat]) -> Plan:
        """Return a plan that is guarded by what ``files`` (a listing's) said when the plan was made."""
        made = cls(title, tuple(actions))
        steps = made.steps
        guards: list[Guard] = []
        for number, step in enumerate(steps):
            action = step[0]
            before = origin(steps, number, action.path)
            entry = files.get(before) if before is not None else None
            if before is not None and entry is not None and entry.kind is Kind.FILE:
                guards.append(Seen(before, entry.size, entry.mtime_ns))
            elif isinstance(action, WriteFile) and action.old is None and before is not None:
                guards.append(Absent(before))
            if isinstance(action, MoveFile) and (free := origin(steps, number, action.to)) is not None:
                guards.append(Absent(free))
        growth = sum(
            len(action.data) if isinstance(action, AppendBytes) else len(action.new)
            for action in made.actions
            if isinstance(action, AppendBytes | WriteFile)
        )
        if growth:
            guards.append(Room(growth))
        return cls(title, made.actions, tuple(dict.fromkeys(guards)))

    @property
    def steps(self) -> tuple[Step, ...]:
        """The actions in the groups in which they are carried out."""
        found: list[list[Action]] = []
        for action in self.actions:
            last = found[-1][-1] if found else None
            if isinstance(action, PatchBytes) and isinstance(last, PatchBytes) and last.path == action.path:
                found[-1].append(action)
            else:
                found.append([action])
        return tuple(tuple(step) for step in found)

    @property
    def bytes_written(self) -> int:
        """Bytes of checkpoint files that are written; the journal's own are not counted."""
        total = 0
        for action in self.actions:
            if isinstance(action, PatchBytes | WriteFile):
                total += len(action.new)
            elif isinstance(action, AppendBytes):
                total += len(action.data)
        return total

    @property
    def paths(self) -> tuple[str, ...]:
        """Every name that the plan touches, each once, those that it makes included."""
        found: dict[str, None] = {}
        for action in self.actions:
            found[action.path] = None
            if isinstance(action, MoveFile | CutFile):
                found[action.to if isinstance(action, MoveFile) else action.kept] = None
        return tuple(found)


def origin(steps: Sequence[Step], number: int, path: str) -> str | None:
    """Return the name that ``path`` has before the first step, when step ``number`` speaks of it.

    None when the plan itself has freed or made the name by then.
    """
    for earlier, *_ in reversed(steps[:number]):
        if isinstance(earlier, MoveFile):
            if inside(path, earlier.to):
                path = rebase(path, earlier.to, earlier.path)
            elif inside(path, earlier.path):
                return None
        elif isinstance(earlier, WriteFile) and earlier.path == path and earlier.old is None:
            return None
    return path


def final(steps: Sequence[Step], number: int, path: str, upto: int | None = None) -> str:
    """Return the name that ``path``, as step ``number`` knows it, has once the steps before ``upto`` are done."""
    for later, *_ in steps[number + 1 : upto]:
        if isinstance(later, MoveFile):
            path = rebase(path, later.path, later.to)
    return path


def inside(path: str, directory: str) -> bool:
    """Return whether ``path`` is ``directory`` itself or lies in it."""
    return path == directory or path.startswith(f"{directory}/")


def rebase(path: str, old: str, new: str) -> str:
    """Return ``path`` after ``old``, which may be one of its directories, was renamed."""
    return new + path[len(old) :] if inside(path, old) else path


def check_path(path: str) -> str:
    """Return ``path`` when a plan may touch it.

    Raises:
        ValueError: it is absolute, leads out of the directory, or belongs to the journal.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise ValueError(f"a plan cannot touch {path!r}")
    for at, part in enumerate(parts):
        below = parts[at + 1 : at + 3] if part == SIDECAR else []
        if below[:1] and (below[0] in OWN or (below[0] != "quarantine" and below[1:2] and below[1] in OWN)):
            raise ValueError(f"{path!r} belongs to the journal")
    return path


def _check(actions: Sequence[Action]) -> None:
    if not actions:
        raise ValueError("a plan without actions")
    patched: dict[str, list[tuple[int, int]]] = {}
    added: dict[str, list[tuple[int, int]]] = {}
    cut: dict[str, list[tuple[int, int]]] = {}
    sizes: dict[str, int] = {}
    whole: set[str] = set()
    for action in actions:
        check_path(action.path)
        if isinstance(action, CutFile):
            check_path(action.kept)
        if isinstance(action, MoveFile):
            check_path(action.to)
            if inside(action.to, action.path) or inside(action.path, action.to):
                raise ValueError(f"{action.path!r} cannot be moved to {action.to!r}")
            continue
        if action.path in whole or (isinstance(action, WriteFile) and action.path in {**patched, **added, **cut}):
            raise ValueError(f"{action.path!r} is changed twice")
        if isinstance(action, WriteFile):
            whole.add(action.path)
        else:
            kind = patched if isinstance(action, PatchBytes) else added if isinstance(action, AppendBytes) else cut
            kind.setdefault(action.path, []).append(_span(action, sizes))
    for path, spans in patched.items():
        for others in (added.get(path, []), cut.get(path, [])):
            found = sorted(spans + others)
            if any(end > start for (_, end), (start, _) in pairwise(found)):
                raise ValueError(f"two actions change the same bytes of {path!r}")


def _span(action: PatchBytes | AppendBytes | TruncateTo | CutFile, sizes: dict[str, int]) -> tuple[int, int]:
    size = sizes.get(action.path)
    if isinstance(action, PatchBytes):
        if action.offset < 0 or len(action.old) != len(action.new) or not action.new:
            raise ValueError(f"a patch of {action.path!r} is not of one length")
        return action.offset, action.offset + len(action.new)
    longer = isinstance(action, AppendBytes)
    start = action.offset if isinstance(action, AppendBytes) else action.size
    if isinstance(action, CutFile):
        end = start + action.length
    else:
        end = start + len(action.data if isinstance(action, AppendBytes) else action.old)
    if start < 0 or start == end or size not in (None, start if longer else end):
        raise ValueError(f"the sizes of {action.path!r} contradict each other")
    sizes[action.path] = end if longer else start
    return start, end
