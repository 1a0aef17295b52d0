"""What ``ckpt latest`` decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any

from ckpt_tools.model.findings import Finding, Purpose, Verdict
from ckpt_tools.reports.base import Block, Text
from ckpt_tools.reports.verify import finding_document

SCHEMA = "ckpt-tools/latest/1"


@dataclass(frozen=True, slots=True)
class Passed:
    """A newer checkpoint that was passed over, with the findings that were the reason."""

    path: str
    verdict: Verdict
    reasons: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class TrackerSaid:
    """A file of the run that names the checkpoint to resume from; ``names`` is None where it makes no sense."""

    path: str
    names: str | None


@dataclass(frozen=True, slots=True)
class LatestReport:
    """The newest good checkpoint of a run; ``path`` is as a user would type it, None when none is good."""

    tool: str
    root: str
    purpose: Purpose
    path: str | None
    step: int | None
    passed: tuple[Passed, ...]
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    trackers: tuple[TrackerSaid, ...] = ()

    @property
    def exit_code(self) -> int:
        if self.path is not None:
            return 0
        return 3 if self.unreadable else 1

    def blocks(self) -> Sequence[Block]:
        return [Text((self.path,))] if self.path is not None else []

    def reasons(self) -> list[str]:
        """Return the lines for stderr: one for each checkpoint that was passed over, newest first."""
        lines = []
        for passed in self.passed:
            why = passed.reasons[0] if passed.reasons else None
            tail = f": {why.path}: {why.message} [{why.code}]" if why else ""
            lines.append(f"skipped {passed.path} ({passed.verdict.value}){tail}")
        lines += self.notes
        if self.path is None:
            lines.append(self._way_out())
        return lines

    def _way_out(self) -> str:
        purpose = "to resume from" if self.purpose is Purpose.RESUME else "for inference"
        degraded = next((passed.path for passed in self.passed if passed.verdict is Verdict.DEGRADED), None)
        more = f"--allow-degraded takes {degraded}; " if degraded else ""
        return f"no checkpoint is good {purpose}: {more}`ckpt verify {quote(self.root)}` tells what can be done"

    def document(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "tool": self.tool,
            "root": self.root,
            "for": self.purpose.value,
            "path": self.path,
            "step": self.step,
            "skipped": [
                {
                    "path": passed.path,
                    "verdict": passed.verdict.value,
                    "findings": [finding_document(finding) for finding in passed.reasons],
                }
                for passed in self.passed
            ],
            "trackers": [{"path": said.path, "names": said.names} for said in self.trackers],
        }
