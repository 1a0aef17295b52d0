"""Errors that reach the user as one line.  Faults *inside* a checkpoint are findings, never these."""

from __future__ import annotations


class CkptError(Exception):
    """Base of every error that the command line prints as one line; ``hint`` is what to try next."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(CkptError):
    """The arguments contradict each other or are out of range."""

    exit_code = 2


class NothingFoundError(CkptError):
    """A path does not exist, or holds no checkpoint."""

    exit_code = 4


class SourceError(CkptError):
    """A file could not be read: permission, I/O error, or not a regular file.

    ``errno`` is the operating system's number, None where the tool itself refused to open it.
    """

    def __init__(self, path: str, message: str, *, errno: int | None = None) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.reason = message
        self.errno = errno


class SourceChangedError(SourceError):
    """A file became shorter, or was replaced, while it was being read."""


class EditRefusedError(CkptError):
    """An edit was not begun: its guards do not hold, or an earlier one did not end."""

    exit_code = 5


class EditError(CkptError):
    """An edit failed while it was made, or while it was taken back.

    ``pending`` says whether a journal entry is left that has to be finished (exit code 5).  If not, the files are as
    they were, but for the rare case that the message tells.
    """

    def __init__(self, message: str, *, hint: str | None = None, pending: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.pending = pending
        self.exit_code = 5 if pending else 3
