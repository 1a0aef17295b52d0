"""Progress as a protocol: the library reports, only the command line shows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Task(Protocol):
    """One running piece of work."""

    def advance(self, amount: int) -> None:
        """Report that ``amount`` more units are done."""


class Progress(Protocol):
    """Where work in progress is announced."""

    def task(self, label: str, total: int | None, unit: str) -> AbstractContextManager[Task]:
        """Open a task of ``total`` units (``"B"`` for bytes; None when not known beforehand)."""


class _SilentTask:
    def advance(self, amount: int) -> None:
        pass


class _SilentProgress:
    def task(self, label: str, total: int | None, unit: str) -> AbstractContextManager[Task]:
        return nullcontext(_SilentTask())


SILENT: Progress = _SilentProgress()
