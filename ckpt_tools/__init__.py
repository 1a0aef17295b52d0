"""ckpt-tools: inspect, verify, compare, edit and repair training checkpoints.

>>> import ckpt_tools
>>> report = ckpt_tools.verify("fixtures/trainer5-full")
>>> report.exit_code()
0
"""

from __future__ import annotations

from ckpt_tools._version import __version__

TYPE_CHECKING = False  # as type checkers read it; importing typing for it would be a sixth of `ckpt --version`
if TYPE_CHECKING:
    from typing import Any

    from ckpt_tools.layouts.match import open_run
    from ckpt_tools.ops.latest import latest
    from ckpt_tools.ops.verify import verify

__all__ = ["__version__", "latest", "open_run", "verify"]

_HOMES = {
    "open_run": "ckpt_tools.layouts.match",
    "latest": "ckpt_tools.ops.latest",
    "verify": "ckpt_tools.ops.verify",
}


def __getattr__(name: str) -> Any:
    """Import a verb on first use, so that importing the package costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
