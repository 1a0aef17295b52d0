"""The terminal: where lines go, whether they may be coloured, and how progress is shown."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, TextIO

from ckpt_tools.core.errors import CkptError
from ckpt_tools.core.progress import SILENT, Progress, Task
from ckpt_tools.render.base import visible

if TYPE_CHECKING:
    from tqdm import tqdm

PATIENCE = 0.7
"""Seconds that a task may take before a bar appears; short ones stay silent and never import tqdm."""


def use_color(wish: str, stream: TextIO | None = None) -> bool:
    """Decide for ``--color``: ``auto`` is a terminal that is not dumb, without ``NO_COLOR`` in the environment."""
    if wish != "auto":
        return wish == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return is_terminal(stream or sys.stdout)


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def width() -> int | None:
    """Return the columns of the terminal on stdout; None when it is a file or a pipe."""
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None


def write(lines: Iterable[str]) -> None:
    """Write lines of a result to stdout.

    A reader that goes away early (``| head``) is no error: the rest is dropped and the exit code stays what the
    result says.

    Raises:
        CkptError: the result could not be written (a full disk).
    """
    _write(sys.stdout, lines)


def write_path(path: str) -> None:
    """Write a path for a program to read: its exact bytes, except on a terminal, where control characters show."""
    if is_terminal(sys.stdout):
        write([visible(path)])
    else:
        _write(sys.stdout, [path], exact=True)


def remark(lines: Iterable[str]) -> None:
    """Write lines to stderr: what is no result."""
    _write(sys.stderr, (visible(line) for line in lines))


def complain(message: str, hint: str | None = None) -> None:
    """Write an error to stderr as one line, and what to try next as a second one."""
    remark([f"ckpt: error: {message}"] + ([f"  = help: {hint}"] if hint else []))


def progress(quiet: bool = False) -> Progress:
    """Return the bars of a terminal on stderr, or silence."""
    return SILENT if quiet or not is_terminal(sys.stderr) else _Bars()


def spare_processors() -> None:
    """Keep numpy's linear algebra, which is not used here, from starting threads of its own when numpy is imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def settle_streams() -> None:
    """Flush both streams, so that nothing is left for the interpreter to complain about while it ends."""
    for stream in (sys.stdout, sys.stderr):
        _write(stream, [])


def _write(stream: TextIO | None, lines: Iterable[str], *, exact: bool = False) -> None:
    if stream is None:
        return
    try:
        for line in lines:
            try:
                stream.write(f"{line}\n")
            except UnicodeEncodeError:
                encoded = os.fsencode(line) if exact else line.encode("ascii", "backslashreplace")
                stream.flush()
                stream.buffer.write(encoded + b"\n")
        stream.flush()
    except BrokenPipeError:
        _discard(stream)
    except OSError as error:
        _discard(stream)
        if stream is sys.stdout:
            raise CkptError(f"the result could not be written: {(error.strerror or str(error)).lower()}") from None


def _discard(stream: TextIO) -> None:
    """Let everything still buffered, and all that follows, vanish."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


class _Bars:
    @contextmanager
    def task(self, label: str, total: int | None, unit: str) -> Iterator[Task]:
        bar = _Bar(label, total, unit)
        try:
            yield bar
        finally:
            bar.close()


class _Bar:
    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._since = time.monotonic()
        self._done = 0
        self._bar: tqdm[NoReturn] | None = None

    def advance(self, amount: int) -> None:
        self._done += amount
        if self._bar is not None:
            self._bar.update(amount)
        elif time.monotonic() - self._since > PATIENCE:
            self._bar = self._opened()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _opened(self) -> tqdm[NoReturn]:
        from tqdm import tqdm

        binary = self._unit == "B"
        return tqdm(
            total=self._total,
            initial=self._done,
            desc=visible(self._label),
            unit="B" if binary else f" {self._unit}",
            unit_scale=binary,
            unit_divisor=1024 if binary else 1000,
            leave=False,
            file=sys.stderr,
            dynamic_ncols=True,
        )
