"""The ``ckpt`` command: the only place that prints, exits, or looks at the environment or the terminal."""

from __future__ import annotations

import gc
import os
import sys

from ckpt_tools._version import __version__

DEBUG_VARIABLE = "CKPT_DEBUG"
INTERRUPTED = 130
BUG = 3


def main(arguments: list[str] | None = None) -> int:
    """Run ``ckpt`` with ``arguments`` (those of the process by default) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:  # answered before click is imported
        return _version()
    from ckpt_tools.cli.console import complain

    gc.set_threshold(1_000_000, 20, 50)  # a command makes objects by the hundred thousand and throws few away
    try:
        from ckpt_tools.cli.app import dispatch

        code = dispatch(words)
    except KeyboardInterrupt:
        complain("interrupted")
        code = INTERRUPTED
    except Exception as error:  # the last door: a person gets a line, not a traceback
        if os.environ.get(DEBUG_VARIABLE):
            raise
        hint = f"run it again with {DEBUG_VARIABLE}=1 and report what it prints"
        complain(f"{type(error).__name__}: {error} (this is a bug in ckpt-tools)", hint)
        code = BUG
    return code


def _version() -> int:
    try:
        print(f"ckpt {__version__}", flush=True)  # noqa: T201
    except OSError:
        from ckpt_tools.cli.console import settle_streams

        settle_streams()
    return 0
