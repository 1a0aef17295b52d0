"""What ``ckpt repair`` looks at: one checkpoint with its findings and fixes, or the run as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ckpt_tools.edits import repair_crc, repairs
from ckpt_tools.edits.repair_base import Subject
from ckpt_tools.layouts import tracking
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Run
from ckpt_tools.model.findings import Finding, Fix
from ckpt_tools.ops import engine, sealed
from ckpt_tools.reports.edit import FileChange
from ckpt_tools.reports.repair import Left, Repair
from ckpt_tools.rules.base import Settings


@dataclass
class Session:
    """What the caller asked for, and what came of it."""

    path: str
    write: bool
    unsafe: bool
    settings: Settings
    command: str
    repairs: list[Repair] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    files: list[FileChange] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint, or a run (``subject.checkpoint`` None), with what the rules say of it."""

    subject: Subject
    findings: list[Finding]

    @property
    def name(self) -> str:
        return self.subject.checkpoint.path if self.subject.checkpoint is not None else "."

    def fixes(self) -> Iterator[tuple[Finding, Fix]]:
        """Yield the fixes on offer in the order of making, each once."""
        found = [(finding, fix) for finding in self.findings if (fix := repairs.offer(finding, self.subject))]
        seen: set[str] = set()
        for finding, fix in sorted(found, key=lambda pair: repairs.rank(pair[1])):
            key = key_of(finding, fix)
            if key not in seen:
                seen.add(key)
                yield finding, fix


def look_at(run: Run, checkpoint: Checkpoint, settings: Settings) -> Found:
    """Look at a checkpoint as ``verify`` does, and at every byte of sealed files with contradicting checksums."""
    view = View(checkpoint)
    sealed.attach(run, view)
    subject = Subject(run, checkpoint, view)
    doubtful = [part.path for part in checkpoint.parts if repair_crc.doubtful(subject, part.path)]
    if doubtful:
        from ckpt_tools.ops import deep

        view.data = deep.read(view, deep.Wants(digests=True), paths=doubtful)
    sealed.hold(view)
    return Found(subject, engine.check(run, checkpoint, view, settings))


def look_again(path: str, name: str, settings: Settings) -> Found | None:
    """Look at one checkpoint of a path once more, as it is now; None when it is gone."""
    run = open_run(path)
    checkpoint = next((each for each in run.checkpoints if each.path == name), None)
    return None if checkpoint is None else look_at(run, checkpoint, replace(settings, settle_ns=0))


def fixes_of_run(path: str, settings: Settings) -> list[tuple[Subject, Finding, Fix]]:
    """Return the fixes of what was found about a run as a whole, each with what it is a fix of."""
    run = open_run(path)
    views = {checkpoint.path: View(checkpoint) for checkpoint in run.checkpoints}
    judged = {}
    if any(True for _ in tracking.of_run(run)):  # whether one of them is good decides what a tracker should name
        looked = ((each.path, look_at(run, each, settings).findings) for each in run.checkpoints)
        judged = {name: engine.verdicts(findings)[0] for name, findings in looked}
    found = []
    for finding in engine.check_run(run, views, settings, judged=judged):
        subject, own = Subject(run, None, None), finding
        for checkpoint in run.checkpoints:
            inner = checkpoint.place("trainer_state.json")
            if finding.path == inner or (finding.path == "trainer_state.json" and checkpoint.path == "."):
                subject = Subject(run, checkpoint, views[checkpoint.path])
        fix = repairs.offer(own, subject)
        if fix is not None:
            if subject.checkpoint is not None and "path" in fix.params:
                fix = replace(fix, params={**fix.params, "path": os.path.basename(str(fix.params["path"]))})
            found.append((subject, finding, fix))
    return found


def key_of(finding: Finding, fix: Fix) -> str:
    if fix.kind in ("strip-prefixes", "rebuild-index", "restore-state", "align-step", "name-for-step"):
        return f"{fix.kind} {fix.params.get('index') or fix.params.get('path')}"
    return f"{fix.kind} {sorted(fix.params.items(), key=str)!r} {finding.path}"


def shown(run: Run, checkpoint: Checkpoint) -> str:
    return run.root if checkpoint.path == "." else checkpoint.path
