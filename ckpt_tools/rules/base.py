"""What a rule is, what it may look at, and what it says."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ckpt_tools.containers.base import Content
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part, Role, Run
from ckpt_tools.model.findings import HARMLESS, Fix, Impact, Purpose, Severity, Spot, Verdict

_ABSOLUTE = re.compile(r"[/\\~]|[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the caller asked for; ``now_ns`` is the clock, ``settle_ns`` how long a quiet file must have been quiet."""

    now_ns: int
    settle_ns: int = 60 * 10**9
    allow_in_progress: bool = False
    world_size: int | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """What a rule yields: a finding without the rule's own facts.

    ``path`` is relative to the checkpoint (to the run for a rule about runs), ``""`` for the directory itself.
    ``severity`` and ``impact`` replace the rule's where they are set.
    """

    message: str
    path: str = ""
    at: Spot = Spot()
    detail: tuple[str, ...] = ()
    related: tuple[str, ...] = ()
    help: str | None = None
    fix: Fix | None = None
    severity: Severity | None = None
    impact: Impact | None = None


@dataclass
class Context:
    """What a rule may look at besides its subject.

    ``view`` is the checkpoint at hand.  ``views`` are those of the whole run by checkpoint path; only rules about
    runs read them, and ``judged``, the verdicts on its checkpoints where there are any.  ``crashes`` collects the rules
    that failed.
    """

    run: Run
    settings: Settings
    view: View
    views: Mapping[str, View] = field(default_factory=dict)
    crashes: list[Hit] = field(default_factory=list)
    judged: Mapping[str, Mapping[Purpose, Verdict]] = field(default_factory=dict)

    def content(self, part: Part) -> Content | None:
        return self.view.content(part)

    def damaged(self, part: Part) -> Impact:
        """Return what it means that ``part`` is damaged; nothing when loaders never take this file.

        What lies in a directory of the optimizer's is read by a resume alone.
        """
        damaged = self.view.need(part.role).damaged
        if part.role in (Role.METADATA, Role.CHUNKS) and part.path.startswith("optim") and "/" in part.path:
            return replace(damaged, inference=Verdict.READY)
        return damaged


Check = Callable[[Any, Context], Iterable[Hit]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the catalogue.

    ``subject`` is the type it looks at and thereby how often it runs: ``Run``, ``Checkpoint`` or ``Part``.  Its
    docstring (``page``) is the text of the docs and of ``ckpt explain``.  ``impact`` None means: what
    damage to the part's role means in its layout.
    """

    code: str
    name: str
    severity: Severity
    subject: type
    check: Check
    impact: Impact | None
    depth: str

    @property
    def page(self) -> str:
        return self.check.__doc__ or ""


def rule(
    code: str,
    name: str,
    severity: Severity,
    subject: type,
    *,
    impact: Impact | None = HARMLESS,
    depth: str = "structure",
) -> Callable[[Check], Rule]:
    """Make a rule of a function ``(subject, context) -> iterator of Hit``."""

    def made(check: Check) -> Rule:
        return Rule(code, name, severity, subject, check, impact, depth)

    return made


def unless_dead(context: Context) -> str:
    """Return what to type where a save seems to go on, and no job is left that could be writing."""
    return f"if no job is writing it: `ckpt verify --settle 0 {shlex.quote(context.run.root)}` looks at it as it is"


def relay(part: Part, context: Context, kind: str, *, harmless: bool = False) -> Iterator[Hit]:
    """Yield a hit for every problem called ``kind`` that the container of ``part`` states.

    Damage to a file that no purpose needs is a warning; ``harmless`` problems do not hurt whatever the file is.
    """
    content = context.content(part)
    impact = HARMLESS if harmless else context.damaged(part)
    lowered = Severity.WARNING if impact.harmless and not harmless else None
    for problem in content.problems if content else ():
        if problem.kind == kind:
            yield Hit(
                problem.message,
                part.path,
                problem.at,
                problem.detail,
                help=problem.help,
                severity=lowered,
                impact=impact,
            )


def leaves_directory(name: str, index: str) -> bool:
    """Return whether ``name``, as the file ``index`` of a checkpoint gives it, leads out of the directory."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(index), name.replace("\\", "/")))
    return bool(_ABSOLUTE.match(name)) or path == ".." or path.startswith("../") or "\0" in name
