"""What an edit did to files, and how errors of the system are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ckpt_tools.core.durable import Look
from ckpt_tools.edits.journal import Edit, Home
from ckpt_tools.model.plan import MoveFile, Plan, final, origin

VERIFY = "`ckpt verify` tells more"
"""The hint of a refusal that ends where the checkpoint is damaged; whoever knows its path puts that in."""


@dataclass(frozen=True, slots=True)
class Touched:
    """A file before and after; None stands for a file that is not there."""

    path: str
    size_before: int | None
    size_after: int | None
    mtime_before_ns: int | None
    mtime_after_ns: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done: the edit as the journal has it now, the files, and what a person should know besides."""

    edit: Edit
    files: tuple[Touched, ...]
    bytes_written: int
    notes: tuple[str, ...] = ()


def files_of(plan: Plan) -> dict[str, str]:
    """Return the files whose bytes the plan changes: the names before it, or when made, and those after it."""
    steps = plan.steps
    found: dict[str, str] = {}
    for number, step in enumerate(steps):
        if not isinstance(step[0], MoveFile):
            before = origin(steps, number, step[0].path)
            found.setdefault(before or step[0].path, final(steps, number, step[0].path))
    return found


def compare(before: Mapping[str, Look | None], after: Mapping[str, Look | None]) -> tuple[Touched, ...]:
    found = []
    for path, now in after.items():
        then = before.get(path)
        times = (then.mtime_ns if then else None, now.mtime_ns if now else None)
        found.append(Touched(path, then.size if then else None, now.size if now else None, *times))
    return tuple(found)


def why(home: Home, error: BaseException) -> str:
    """Return an error of the system as people read it, with the path inside the checkpoint."""
    if not isinstance(error, OSError):
        return str(error) or type(error).__name__
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    if not isinstance(error.filename, str):
        return reason
    return f"{error.filename.removeprefix(home.root).lstrip('/') or '.'}: {reason}"
