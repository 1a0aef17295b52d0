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
    from ckpt_tools.ops.checksum import checksum
    from ckpt_tools.ops.diff import diff
    from ckpt_tools.ops.explain import explain
    from ckpt_tools.ops.history import history
    from ckpt_tools.ops.info import info
    from ckpt_tools.ops.latest import latest
    from ckpt_tools.ops.merge import merge
    from ckpt_tools.ops.repair import repair
    from ckpt_tools.ops.seal import seal
    from ckpt_tools.ops.set_lr import set_lr
    from ckpt_tools.ops.set_step import set_step
    from ckpt_tools.ops.undo import undo
    from ckpt_tools.ops.verify import verify

__all__ = [
    "__version__",
    "checksum",
    "diff",
    "explain",
    "history",
    "info",
    "latest",
    "merge",
    "open_run",
    "repair",
    "seal",
    "set_lr",
    "set_step",
    "undo",
    "verify",
]

_HOMES = {
    "open_run": "ckpt_tools.layouts.match",
    "checksum": "ckpt_tools.ops.checksum",
    "diff": "ckpt_tools.ops.diff",
    "explain": "ckpt_tools.ops.explain",
    "history": "ckpt_tools.ops.history",
    "info": "ckpt_tools.ops.info",
    "latest": "ckpt_tools.ops.latest",
    "merge": "ckpt_tools.ops.merge",
    "repair": "ckpt_tools.ops.repair",
    "seal": "ckpt_tools.ops.seal",
    "set_lr": "ckpt_tools.ops.set_lr",
    "set_step": "ckpt_tools.ops.set_step",
    "undo": "ckpt_tools.ops.undo",
    "verify": "ckpt_tools.ops.verify",
}


def __getattr__(name: str) -> Any:
    """Import a verb on first use, so that importing the package costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
