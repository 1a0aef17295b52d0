"""``ckpt repair``: previews the fixes that findings offer, or makes them one by one, each its own edit."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ckpt_tools._version import __version__
from ckpt_tools.core.durable import LocalDisk, look
from ckpt_tools.core.errors import CkptError, EditError, EditRefusedError, SourceError
from ckpt_tools.edits import back, guards, repairs
from ckpt_tools.edits.apply import apply
from ckpt_tools.edits.journal import Home, home_of
from ckpt_tools.edits.outcome import Outcome
from ckpt_tools.edits.repair_base import CannotRepairError, Draft, Subject, parents
from ckpt_tools.layouts.match import is_export, open_run, run_directory
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Run
from ckpt_tools.model.findings import Finding, Fix, Purpose, Severity, Verdict
from ckpt_tools.model.plan import MoveFile
from ckpt_tools.ops import engine, sealed
from ckpt_tools.ops.undo import file_change
from ckpt_tools.ops.verify import verify
from ckpt_tools.reports.edit import Change, FileChange
from ckpt_tools.reports.repair import DONE, REFUSED, UNSAFE, WAITING, Left, Repair, RepairReport
from ckpt_tools.rules.base import Settings

_MOST = 64
"""Fixes that are made in one checkpoint before something must be wrong."""

_SEALED = "CK41"
"""Codes that tell a change since sealing, which every repair is."""


@dataclass
class _Session:
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
class _Found:
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
            key = _key(finding, fix)
            if key not in seen:
                seen.add(key)
                yield finding, fix


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
    session = _Session(path, write, unsafe, Settings(now, int(settle * 1e9)), command)
    _pending(session)
    run = open_run(path)
    saving: set[str] = set()
    for checkpoint in run.checkpoints:
        found = _look(run, checkpoint, session.settings)
        if engine.verdicts(found.findings)[0][Purpose.RESUME] is Verdict.IN_PROGRESS:
            saving.add(checkpoint.path)
            session.notes.append(f"{_shown(run, checkpoint)}: is being written, and left alone")
        elif write:
            _mend(session, checkpoint.path)
        else:
            session.repairs += _preview(session, found)
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


# Looking -----------------------------------------------------------------------------------------------------


def _look(run: Run, checkpoint: Checkpoint, settings: Settings) -> _Found:
    view = View(checkpoint)
    sealed.attach(run, view)
    sealed.hold(view)
    return _Found(Subject(run, checkpoint, view), engine.check(run, checkpoint, view, settings))


def _again(path: str, name: str, settings: Settings) -> _Found | None:
    """Look at one checkpoint of a path once more, as it is now; None when it is gone."""
    run = open_run(path)
    checkpoint = next((each for each in run.checkpoints if each.path == name), None)
    return None if checkpoint is None else _look(run, checkpoint, replace(settings, settle_ns=0))


def _whole(path: str, settings: Settings) -> list[tuple[Subject, Finding, Fix]]:
    """Return the fixes of what was found about a run as a whole, each with what it is a fix of."""
    run = open_run(path)
    views = {checkpoint.path: View(checkpoint) for checkpoint in run.checkpoints}
    found = []
    for finding in engine.check_run(run, views, settings):
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


def _key(finding: Finding, fix: Fix) -> str:
    if fix.kind in ("strip-prefixes", "rebuild-index", "restore-state"):
        return f"{fix.kind} {fix.params.get('index') or fix.params.get('path')}"
    return f"{fix.kind} {sorted(fix.params.items(), key=str)!r} {finding.path}"


def _shown(run: Run, checkpoint: Checkpoint) -> str:
    return run.root if checkpoint.path == "." else checkpoint.path


# Making ------------------------------------------------------------------------------------------------------


def _pending(session: _Session) -> None:
    """Take back what earlier edits left half done, in the run and in its checkpoints."""
    homes = [home_of(session.path)]
    with suppress(CkptError):
        run = open_run(session.path)
        homes += [Subject(run, checkpoint, None).home for checkpoint in run.checkpoints]
    done: set[tuple[str, str]] = set()
    for home in homes:
        for edit in back.unfinished(home):
            key = (edit.home.journal, edit.name)
            if key in done:
                continue
            done.add(key)
            place = os.path.relpath(edit.home.root, os.path.realpath(session.path))
            made = Repair(
                place, "", f"{edit.home.sidecar}/journal/{edit.name}", f"an edit that did not end: {edit.title}",
                "take it back as a whole", True, "finish-edit", WAITING, writes=edit.paths,
            )  # fmt: skip
            if session.write:
                outcomes = back.recover(edit.home)
                session.files += [file_change(touched) for each in outcomes for touched in each.files]
                made = replace(made, state=DONE)
            session.repairs.append(made)


def _preview(session: _Session, found: _Found) -> Iterator[Repair]:
    for finding, fix in found.fixes():
        yield _planned(session, found.subject, finding, fix)


def _planned(session: _Session, subject: Subject, finding: Finding, fix: Fix) -> Repair:
    """Return a fix as it would be made, or why it cannot."""
    try:
        draft = repairs.plan(fix, subject)
        plan = draft.plan(fix.title, subject.files)
        if not draft.staged:
            guards.check(subject.home, plan, None)
    except CannotRepairError as error:
        return _row(subject, finding, fix, REFUSED, _because(error))
    except (EditRefusedError, SourceError) as error:
        return _row(subject, finding, fix, REFUSED, str(error))
    return _row(subject, finding, fix, WAITING if fix.safe or session.unsafe else UNSAFE, None, draft)


def _because(error: CannotRepairError) -> str:
    return f"{error.reason}; {error.way_out}" if error.way_out else error.reason


def _row(
    subject: Subject, finding: Finding, fix: Fix, state: str, reason: str | None = None, draft: Draft | None = None
) -> Repair:
    name = subject.checkpoint.path if subject.checkpoint is not None else "."
    base = Repair(name, finding.code, finding.path, finding.message, fix.title, fix.safe, fix.kind, state, reason)
    base = replace(base, severity=finding.severity)
    if draft is None:
        return base
    staged = {each.path: each.size for each in draft.staged}
    moves = [(a.path, a.to) for a in draft.actions if isinstance(a, MoveFile) and a.path not in staged]
    writes = [a.path for a in draft.actions if not isinstance(a, MoveFile)]
    writes += [a.to for a in draft.actions if isinstance(a, MoveFile) and a.path in staged]
    plan = draft.plan(fix.title, subject.files)
    return replace(
        base,
        changes=tuple(Change(*change) for change in draft.changes),
        moves=tuple(moves),
        writes=tuple(dict.fromkeys(writes)),
        notes=draft.notes,
        bytes_written=plan.bytes_written + sum(staged.values()),
    )


def _mend(session: _Session, name: str) -> None:
    """Make the fixes of one checkpoint, looking again after each: one may bring to light or settle another."""
    tried: set[str] = set()
    for _ in range(_MOST):
        found = _again(session.path, name, session.settings)
        if found is None:
            return
        waiting = [(finding, fix) for finding, fix in found.fixes() if _key(finding, fix) not in tried]
        if not waiting:
            return
        finding, fix = waiting[0]
        tried.add(_key(finding, fix))
        _make(session, found.subject, finding, fix, found.findings)


def _make(session: _Session, subject: Subject, finding: Finding, fix: Fix, before: list[Finding]) -> None:
    if not fix.safe and not session.unsafe:
        session.repairs.append(_planned(session, subject, finding, fix))
        return
    name = subject.checkpoint.path if subject.checkpoint is not None else None
    try:
        draft = repairs.plan(fix, subject)
        outcome = _carried_out(session, subject, finding, fix, draft, before, name)
    except CannotRepairError as error:
        session.repairs.append(_row(subject, finding, fix, REFUSED, _because(error)))
    except (EditRefusedError, SourceError) as error:
        session.repairs.append(_row(subject, finding, fix, REFUSED, str(error)))
    except EditError as error:
        if error.pending:
            raise
        session.repairs.append(_row(subject, finding, fix, REFUSED, str(error)))
    else:
        made = _row(subject, finding, fix, DONE, None, draft)
        session.repairs.append(replace(made, notes=(*made.notes, *outcome.notes)))
        session.files += [file_change(touched) for touched in outcome.files]
        _warn_sealed(session, subject)


def _carried_out(
    session: _Session,
    subject: Subject,
    finding: Finding,
    fix: Fix,
    draft: Draft,
    before: list[Finding],
    name: str | None,
) -> Outcome:
    home = subject.home
    disk = LocalDisk()
    for staged in draft.staged:
        _stage(home, disk, staged.path, staged)
    title = f"repair {finding.code}: {fix.title}" if finding.code else fix.title
    try:
        return apply(
            home,
            draft.plan(title, subject.files),
            prove=(lambda: _proof(session, name, finding, before)) if name is not None else None,
            command=session.command,
        )
    except BaseException:
        for staged in draft.staged:
            if look(home.at(staged.path)) is not None:
                disk.unlink(home.at(staged.path))
        raise


def _stage(home: Home, disk: LocalDisk, path: str, staged: object) -> None:
    from ckpt_tools.edits.repair_base import Staged

    assert isinstance(staged, Staged)
    try:
        parents(disk, home, path)
        staged.write(disk, home.at(path))
        disk.sync(home.at(path))
        reason = staged.check(home.at(path))
    except OSError as error:
        _unstage(home, disk, path)
        raise EditError(f"{path}: {(error.strerror or str(error)).lower()}; nothing was changed") from error
    except BaseException:
        _unstage(home, disk, path)
        raise
    finally:
        disk.close()
    if reason is not None:
        _unstage(home, disk, path)
        raise CannotRepairError(f"the new file does not load: {reason}")


def _unstage(home: Home, disk: LocalDisk, path: str) -> None:
    with suppress(OSError):
        disk.unlink(home.at(path))


def _proof(session: _Session, name: str, finding: Finding, before: list[Finding]) -> str | None:
    """Return what speaks against a repair: its finding is still there, or an error that was not there before."""
    found = _again(session.path, name, session.settings)
    if found is None:
        return "the checkpoint is gone"
    known = {(each.code, each.path) for each in before}
    for each in found.findings:
        if (each.code, each.path, each.message) == (finding.code, finding.path, finding.message):
            return f"{each.code} is still found: {each.message}"
        fresh = (each.code, each.path) not in known and each.severity >= Severity.ERROR
        if fresh and not each.code.startswith((_SEALED, "CK00")):
            return f"{each.code} is found now, at {each.path}: {each.message}"
    return None


def _warn_sealed(session: _Session, subject: Subject) -> None:
    if subject.view is not None and subject.view.seal is not None and subject.view.seal.manifest is not None:
        note = (
            f"{subject.location}: was sealed before; `ckpt seal {shlex.quote(subject.location)}` seals it as it is now"
        )
        if note not in session.notes:
            session.notes.append(note)


def _mend_run(session: _Session, saving: set[str], quarantine: bool) -> None:
    """Make, or preview, the fixes of a run as a whole, then set aside what hides a good checkpoint."""
    tried: set[str] = set()
    for _ in range(_MOST):
        settings = replace(session.settings, settle_ns=0) if tried else session.settings
        waiting = [
            (subject, finding, fix)
            for subject, finding, fix in _whole(session.path, settings)
            if _key(finding, fix) not in tried and (subject.checkpoint is None or subject.checkpoint.path not in saving)
        ]
        if not waiting:
            break
        subject, finding, fix = waiting[0]
        tried.add(_key(finding, fix))
        if session.write:
            _make(session, subject, finding, fix, [])
        else:
            session.repairs.append(_planned(session, subject, finding, fix))
    if quarantine:
        _quarantine(session, saving)


def _quarantine(session: _Session, saving: set[str]) -> None:
    run = open_run(session.path)
    if run.single:
        session.notes.append(f"--quarantine is for a run: `ckpt repair --quarantine {shlex.quote(run_directory(run))}`")
        return
    judged = []
    for checkpoint in run.checkpoints:
        if is_export(run, checkpoint) or checkpoint.path in saving or "/" in checkpoint.path:
            continue
        found = _look(run, checkpoint, replace(session.settings, settle_ns=0))
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
            _make(session, subject, wrong[0], fix, [])
        else:
            session.repairs.append(_planned(session, subject, wrong[0], fix))


# What is left ------------------------------------------------------------------------------------------------


def _leftovers(session: _Session, saving: set[str]) -> None:
    """Tell the errors that no fix is known for, and the way out of each."""
    run = open_run(session.path)
    looked = [
        _look(run, each, replace(session.settings, settle_ns=0)) for each in run.checkpoints if each.path not in saving
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
        good = [each.path for each in ready if each is not None and each.path != found.name]
        for finding in found.findings:
            hurts = not finding.impact.harmless and finding.severity >= Severity.ERROR
            if not hurts or (finding.code, finding.path) in offered or found.name in aside:
                continue
            session.left.append(Left(finding.code, finding.path, finding.message, _way_out(run, decided, good)))


def _way_out(run: Run, decided: dict[Purpose, Verdict], good: list[str]) -> str:
    words = [f"fall back to {good[-1]}"] if good else []
    if run.single and not good:
        words.append(f"`ckpt latest {shlex.quote(run_directory(run))}` finds one to fall back to")
    if decided[Purpose.INFERENCE] is Verdict.READY:
        words.append("good for inference as it is")
    return ", or ".join(words) or "copy it again from where it came from"
