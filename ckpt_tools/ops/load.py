"""``--load``: every file is loaded with its own library, in a child process that may crash without harm."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role
from ckpt_tools.model.findings import Finding, Severity, Skipped
from ckpt_tools.ops.engine import Selection
from ckpt_tools.rules import by_code

if TYPE_CHECKING:
    import subprocess

CODE = "CK240"
LOADED = ("safetensors", "torch-zip", "torch-legacy")
UNSAFE = "not loaded: its pickle needs weights_only=False, which would run what it names"


class Loader:
    """A child process that loads files on request; a new one is started after a crash."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def load(self, path: str, kind: str, *, rng: bool) -> tuple[str, str]:
        """Return ``(status, text)``: ``ok``, ``refused``, ``missing`` (a library) or ``crashed`` (with the signal)."""
        child = self._child or self._start()
        request = json.dumps({"path": path, "kind": kind, "rng": rng})
        try:
            _pipe(child.stdin).write(request + "\n")
            _pipe(child.stdin).flush()
            line = _pipe(child.stdout).readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = child.wait()
            self._child = None
            return "crashed", f"the loading process died with {_signal(status)}"
        reply = json.loads(line)
        return reply["status"], reply["text"]

    def _start(self) -> subprocess.Popen[str]:
        import subprocess

        self._child = subprocess.Popen(
            [sys.executable, "-m", "ckpt_tools.ops.probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self._child

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            _pipe(self._child.stdin).close()
            _pipe(self._child.stdout).close()
            self._child.wait()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _signal(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit code {status}"


def proven(
    findings: list[Finding], checkpoint: Checkpoint, view: View, selection: Selection, loader: Loader
) -> tuple[list[Finding], list[Skipped]]:
    """Load every file that has a loader of its own.

    Returns ``findings`` with what the loaders said: added to the error that already stands for a refused file, or
    as a CK240 of its own; and what was not loaded, with the reason.
    """
    found = list(findings)
    skipped: list[Skipped] = []
    for part, kind in _loadable(checkpoint, view):
        if part.role is Role.TRAINING_ARGS:
            skipped.append(Skipped(CODE, f"{part.path} {UNSAFE}; no resume reads it"))
            continue
        location = os.path.join(checkpoint.listing.root, part.path)
        status, text = loader.load(location, kind, rng=part.role is Role.RNG)
        if status == "missing":
            skipped.append(Skipped(CODE, f"loading needs {text}: pip install 'ckpt-tools[torch]'"))
        elif status != "ok":
            _add(found, _refused(part, checkpoint, view, text), selection)
    return found, list(dict.fromkeys(skipped))


def _loadable(checkpoint: Checkpoint, view: View) -> Iterator[tuple[Part, str]]:
    for part in checkpoint.parts:
        if part.stat.is_file and set(part.containers) & set(LOADED):
            content = view.content(part)
            by_name = "safetensors" if "safetensors" in part.containers else "torch-zip"
            kind = content.container if content is not None and content.container in part.containers else by_name
            yield part, kind


def _add(found: list[Finding], refused: Finding, selection: Selection) -> None:
    for place, finding in enumerate(found):
        if finding.path == refused.path and finding.severity >= Severity.ERROR:
            found[place] = replace(finding, detail=(*finding.detail, *refused.detail))
            return
    rule = by_code(CODE)
    if rule is not None and selection.wants(rule):
        found.append(refused)


def _refused(part: Part, checkpoint: Checkpoint, view: View, text: str) -> Finding:
    impact = view.need(part.role).damaged
    unsafe = "weights only load failed" in text.lower() and "unsupported global" in text.lower()
    message = "only an unsafe load could read this file, so it was not loaded"
    return Finding(
        CODE,
        "loader-refused",
        Severity.WARNING if impact.harmless else Severity.ERROR,
        message if unsafe else "its own loader refuses the file",
        checkpoint.place(part.path),
        detail=(f"the loader says: {textwrap.shorten(text, 160, placeholder=' ...')}",),
        help='paste the whole message into `ckpt explain "..."`',
        impact=impact,
    )
