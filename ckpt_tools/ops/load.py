"""``--load``: every file is loaded with its own library, in a child process that may crash without harm."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from dataclasses import replace
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role
from ckpt_tools.model.findings import Finding, Severity, Skipped
from ckpt_tools.ops.engine import Selection
from ckpt_tools.rules import by_code
from ckpt_tools.rules.safety import loaded_without_safety

if TYPE_CHECKING:
    import subprocess

CODE = "CK240"
LOADED = ("safetensors", "torch-zip", "torch-legacy")
UNSAFE = "not loaded: the pickle needs weights_only=False, which would run what it names"
PLAIN = "not loaded: torch reads .metadata with plain pickle, which would run what it names"
UNKNOWN = "not loaded: only torch and safetensors files are"
OTHERS = {
    **dict.fromkeys(("dcp", "distcp"), PLAIN),
    **dict.fromkeys(("hdf5", "keras-zip", "msgpack", "ocdbt", "raw", "tensor-bundle"), UNKNOWN),
}
_SHOWN = 3
_REASON = "WeightsUnpickler error: "


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
    missing: list[Skipped] = []
    unloaded: dict[str, list[str]] = {}
    for part in checkpoint.parts:
        kind = _kind(part, view)
        if kind in OTHERS:
            unloaded.setdefault(OTHERS[kind], []).append(part.path)
        elif part.role is Role.TRAINING_ARGS and kind:
            unloaded.setdefault(f"{UNSAFE}; no resume reads it", []).append(part.path)
        elif kind:
            location = os.path.join(checkpoint.listing.root, part.path)
            status, text = loader.load(location, kind, rng=part.role is Role.RNG)
            if status == "missing":
                missing.append(Skipped(CODE, f"loading needs {text}: pip install 'ckpt-tools[torch]'"))
            elif status != "ok" and loaded_without_safety(part) and _of_names(text):
                unloaded.setdefault(UNSAFE, []).append(part.path)
            elif status != "ok":
                _add(found, _refused(part, checkpoint, view, text), selection)
    skipped = [Skipped(CODE, f"{_first(paths)} {why}") for why, paths in unloaded.items()]
    return found, [*dict.fromkeys(missing), *skipped]


def _kind(part: Part, view: View) -> str:
    """Return the kind of file that a part is taken for: a key of ``OTHERS``, one to load, or nothing."""
    known = [kind for kind in part.containers if kind in LOADED or kind in OTHERS]
    if not known or not part.stat.is_file:
        return ""
    content = view.content(part) if set(known) & set(LOADED) else None
    return content.container if content is not None and content.container in part.containers else known[0]


def _first(paths: list[str]) -> str:
    more = len(paths) - _SHOWN
    return ", ".join(paths[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _of_names(text: str) -> bool:
    """Whether a safe load only stopped at a class or function that it does not build."""
    return "weights only load failed" in text.lower() and "unsupported global" in text.lower()


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
    message = "only an unsafe load could read this file, so it was not loaded"
    said = text.partition(_REASON)[2] or text
    return Finding(
        CODE,
        "loader-refused",
        Severity.WARNING if impact.harmless else Severity.ERROR,
        message if _of_names(text) else "its own loader refuses the file",
        checkpoint.place(part.path),
        detail=(f"the loader says: {textwrap.shorten(said, 160, placeholder=' ...')}",),
        help='paste the whole message into `ckpt explain "..."`',
        impact=impact,
    )
