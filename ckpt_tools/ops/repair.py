"""``ckpt repair``: previews the fixes that findings offer, or makes them one by one, each its own edit."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace

from ckpt_tools._version import __version__
from ckpt_tools.core.errors import NothingFoundError
from ckpt_tools.edits.repair_base import Subject
from ckpt_tools.layouts.match import is_export, open_run, run_directory
from ckpt_tools.model.checkpoint import Run
from ckpt_tools.model.findings import Finding, Fix, Purpose, Severity, Verdict
from ckpt_tools.ops import engine, numbered
from ckpt_tools.ops.repair_look import Session, fixes_of_run, key_of, look_at, shown
from ckpt_tools.ops.repair_make import MOST, SEALED, finish_pending, make, mend, planned, preview
from ckpt_tools.ops.verify import verify
from ckpt_tools.reports.repair import DONE, REFUSED, Left, RepairReport
from ckpt_tools.rules.base import Settings


def repair(
    path: str,
    *,
    write: bool = False,
    unsafe: bool = False,
    quarantine: bool = False,
    settle: float = 60.0,
    now_ns: int | None = None,
    command: str = "",
) -> RepairReport:
    """Preview the repairs of a run, a checkpoint or a file, or make them.

    Args:
        path: a run, a checkpoint directory, or a file.
        write: make them; without it nothing is changed.
        unsafe: also those after which something may differ from what was saved.
        quarantine: also set checkpoints aside that cannot be resumed and hide a good one from the trainer.
        settle: see ``verify``; a checkpoint that is being written is left alone.
        now_ns: the clock, for tests.
        command: the command line, for the journal.

    Raises:
        NothingFoundError: no such path, or no checkpoint there.
        EditError: the system refused something in the middle of an edit.
    """
    now = time.time_ns() if now_ns is None else now_ns
    path = numbered.named(path)
    session = Session(path, write, unsafe, Settings(now, int(settle * 1e9)), command)
    finish_pending(session)
    run = open_run(path)
    saving: set[str] = set()
    for checkpoint in run.checkpoints:
        found = look_at(run, checkpoint, session.settings)
        if engine.verdicts(found.findings)[0][Purpose.RESUME] is Verdict.IN_PROGRESS:
            saving.add(checkpoint.path)
            session.notes.append(f"{shown(run, checkpoint)}: is being written, and left alone")
        elif write:
            mend(session, checkpoint.path)
        else:
            session.repairs += preview(session, found)
    _mend_run(session, saving, quarantine)
    after = verify(path, settle=0.0) if write else None
    _leftovers(session, saving)
    return RepairReport(
        __version__,
        path,
        write,
        tuple(session.repairs),
        tuple(session.left),
        tuple(session.files),
        tuple(session.notes),
        after,
    )


def _mend_run(session: Session, saving: set[str], quarantine: bool) -> None:
    """Make, or preview, the fixes of a run as a whole, then set aside what hides a good checkpoint."""
    tried: set[str] = set()
    for _ in range(MOST):
        settings = replace(session.settings, settle_ns=0) if tried else session.settings
        waiting = [
            (subject, finding, fix)
            for subject, finding, fix in fixes_of_run(session.path, settings)
            if key_of(finding, fix) not in tried
            and (subject.checkpoint is None or subject.checkpoint.path not in saving)
        ]
        if not waiting:
            break
        subject, finding, fix = waiting[0]
        tried.add(key_of(finding, fix))
        if session.write:
            make(session, subject, finding, fix, [])
        else:
            session.repairs.append(planned(session, subject, finding, fix))
    if quarantine:
        _quarantine(session, saving)


def _quarantine(session: Session, saving: set[str]) -> None:
    run = open_run(session.path)
    if run.single:
        session.notes.append(f"--quarantine is for a run: `ckpt repair --quarantine {shlex.quote(run_directory(run))}`")
        return
    judged = []
    for checkpoint in run.checkpoints:
        if is_export(run, checkpoint) or checkpoint.path in saving or "/" in checkpoint.path:
            continue
        found = look_at(run, checkpoint, replace(session.settings, settle_ns=0))
        judged.append((checkpoint, found.findings, engine.verdicts(found.findings)))
    good = [each for each, _, (verdicts, _) in judged if verdicts[Purpose.RESUME] in (Verdict.READY, Verdict.DEGRADED)]
    if not good:
        session.notes.append("--quarantine: no checkpoint of the run can be resumed, so that none is set aside")
        return
    newest = max(each.step or 0 for each in good)
    for checkpoint, findings, (verdicts, reasons) in judged:
        if (checkpoint.step or 0) <= newest or verdicts[Purpose.RESUME] is not Verdict.BROKEN:
            continue
        wrong = [each for each in findings if each.code == reasons[Purpose.RESUME][0]]
        if wrong[0].severity < Severity.ERROR:
            continue
        fix = Fix(f"set {checkpoint.path} aside", True, "quarantine", {"path": checkpoint.path})
        subject = Subject(run, None, None)
        if session.write:
            make(session, subject, wrong[0], fix, [])
        else:
            session.repairs.append(planned(session, subject, wrong[0], fix))


# What is left ------------------------------------------------------------------------------------------------


def _leftovers(session: Session, saving: set[str]) -> None:
    """Tell the errors that no fix is known for, and the way out of each."""
    run = open_run(session.path)
    looked = [
        look_at(run, each, replace(session.settings, settle_ns=0))
        for each in run.checkpoints
        if each.path not in saving
    ]
    ready = [
        found.subject.checkpoint
        for found in looked
        if engine.verdicts(found.findings)[0][Purpose.RESUME] is Verdict.READY and found.name != "."
    ]
    aside = {each.path for each in session.repairs if each.kind == "quarantine" and each.state != REFUSED}
    offered = {(each.code, each.path) for each in session.repairs if each.state != DONE}
    for found in looked:
        decided, _ = engine.verdicts(found.findings)
        changed = any(each.state == DONE and each.checkpoint == found.name for each in session.repairs)
        if changed and any(each.code.startswith(SEALED) for each in found.findings):
            again = f"`ckpt seal {shlex.quote(found.subject.location)}` seals it as it is now"
            session.notes.append(f"{found.subject.location}: is not as it was sealed; {again}")
        good = [each.path for each in ready if each is not None and each.path != found.name]
        for finding in found.findings:
            hurts = not finding.impact.harmless and finding.severity >= Severity.ERROR
            if finding.name == "pending-journal":  # told with its own fix
                continue
            if not hurts or (finding.code, finding.path) in offered or found.name in aside:
                continue
            session.left.append(
                Left(finding.code, finding.path, finding.message, _way_out(run, finding, decided, good))
            )


def _has_others(run: Run) -> bool:
    """Return whether there are other checkpoints beside a single one."""
    try:
        return len(open_run(run_directory(run)).checkpoints) > 1
    except NothingFoundError:
        return False


_NEVER_WRITTEN = frozenset(("save-interrupted", "megatron-not-finalised"))
_NEMO = "NeMo passes it over by itself, and deletes it at its next start; copied away, or with --quarantine, it is kept"


def _way_out(run: Run, finding: Finding, decided: dict[Purpose, Verdict], good: list[str]) -> str:
    if finding.name == "nemo-unfinished":
        return _NEMO
    words = [f"fall back to {good[-1]}"] if good else []
    if run.single and not good and _has_others(run):
        words.append(f"`ckpt latest {shlex.quote(run_directory(run))}` finds one to fall back to")
    if decided[Purpose.INFERENCE] is Verdict.READY:
        words.append("good for inference as it is")
    if not words and finding.name in _NEVER_WRITTEN:
        return "none here: the save did not end. If it did where this was copied from, copy it again"
    return ", or ".join(words) or "copy it again from where it came from"
