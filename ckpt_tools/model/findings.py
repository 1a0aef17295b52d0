"""Findings, verdicts and fixes: what a rule says, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any


class Severity(IntEnum):
    """How much a finding matters; comparable, FATAL is the worst."""

    NOTE = 1
    WARNING = 2
    ERROR = 3
    FATAL = 4

    @property
    def label(self) -> str:
        return self.name.lower()


class Verdict(StrEnum):
    """What a checkpoint is good for, for one purpose."""

    READY = "ready"
    DEGRADED = "degraded"
    IN_PROGRESS = "in-progress"
    BROKEN = "broken"

    @property
    def rank(self) -> int:
        """0 for ``ready``, higher is worse."""
        return list(Verdict).index(self)


class Purpose(StrEnum):
    """What a checkpoint is wanted for."""

    RESUME = "resume"
    INFERENCE = "inference"


@dataclass(frozen=True, slots=True)
class Impact:
    """What a finding, or a missing or damaged part, means for the two purposes."""

    resume: Verdict = Verdict.READY
    inference: Verdict = Verdict.READY

    def on(self, purpose: Purpose) -> Verdict:
        return self.resume if purpose is Purpose.RESUME else self.inference

    @property
    def harmless(self) -> bool:
        return self.resume is Verdict.READY and self.inference is Verdict.READY


HARMLESS = Impact()
BREAKS_ALL = Impact(Verdict.BROKEN, Verdict.BROKEN)
BREAKS_RESUME = Impact(Verdict.BROKEN, Verdict.READY)
BREAKS_INFERENCE = Impact(Verdict.READY, Verdict.BROKEN)
DEGRADES_RESUME = Impact(Verdict.DEGRADED, Verdict.READY)
DEGRADES_ALL = Impact(Verdict.DEGRADED, Verdict.DEGRADED)


@dataclass(frozen=True, slots=True)
class Spot:
    """The place inside a file that a finding speaks of: any of record, tensor, key path and byte offset."""

    record: str | None = None
    tensor: str | None = None
    key: str | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the bytes of one file, as its container states it.

    ``kind`` is the name of the rule that reports it (``"file-cut-short"``).  ``detail`` lines say expected and
    found with numbers, then what a loader would do.
    """

    kind: str
    message: str
    detail: tuple[str, ...] = ()
    at: Spot = Spot()
    help: str | None = None


@dataclass(frozen=True, slots=True)
class Fix:
    """A repair on offer, as data; ``kind`` and ``params`` are what a plan is made from."""

    title: str
    safe: bool
    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a rule found.

    ``path`` is POSIX and relative to the root of the report.  ``message`` is one phrase, lower case, no final
    stop; ``detail`` lines give numbers and consequences; ``help`` is the next command to type.
    """

    code: str
    name: str
    severity: Severity
    message: str
    path: str
    at: Spot = Spot()
    detail: tuple[str, ...] = ()
    related: tuple[str, ...] = ()
    help: str | None = None
    fix: Fix | None = None
    impact: Impact = HARMLESS


@dataclass(frozen=True, slots=True)
class Skipped:
    """A rule that was not run, and why."""

    code: str
    reason: str
