"""The fixes of ``ckpt repair``, one after the other, each an edit of its own that has to prove itself."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from ckpt_tools.core.durable import LocalDisk, look, names
from ckpt_tools.core.errors import CkptError, EditError, EditRefusedError, SourceError
from ckpt_tools.core.space import free_bytes
from ckpt_tools.edits import back, guards, journal, repairs
from ckpt_tools.edits.apply import apply
from ckpt_tools.edits.journal import Edit, Home, home_of
from ckpt_tools.edits.outcome import Outcome
from ckpt_tools.edits.repair_base import CannotRepairError, Draft, Staged, Subject, parents
from ckpt_tools.edits.session import set_time
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.findings import Finding, Fix, Severity
from ckpt_tools.model.plan import MoveFile, inside
from ckpt_tools.ops import engine, reseal
from ckpt_tools.ops import load as loading
from ckpt_tools.ops.repair_look import Found, Session, key_of, look_again
from ckpt_tools.ops.undo import file_change
from ckpt_tools.reports.edit import Change
from ckpt_tools.reports.repair import DONE, REFUSED, UNSAFE, WAITING, Repair
from ckpt_tools.rules.base import Settings

MOST = 64
"""Fixes that are made in one checkpoint before something must be wrong."""

_FOLLOWED = frozenset(
    ("rebuild-index", "copy-beside", "set-best", "align-step", "replace-numpy-scalar", "portable-rng")
)
"""Kinds of fixes that the manifest of a sealed checkpoint follows."""

_DAMAGE = engine.Selection(("CK2",))

_REFUSED = re.compile(r"Unsupported global: GLOBAL (\S+)")

SEALED = "CK41"
"""Codes that tell a change since sealing, which every repair is."""


def finish_pending(session: Session) -> None:
    """End what earlier edits left half done, in the run and in its checkpoints: done if all was made, else undone."""
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
            whole = back.all_made(journal.load(edit)) and _unreadable(edit) is None
            made = Repair(
                place, "CK005", f"{edit.home.sidecar}/journal/{edit.name}", f"an edit that did not end: {edit.title}",
                "note that it is done: all of it was made" if whole else "take it back as a whole", True, "finish-edit",
                WAITING, writes=() if whole else edit.paths, backward=not whole,
            )  # fmt: skip
            if session.write:
                outcomes = back.recover(edit.home, prove=_unreadable)
                session.files += [file_change(touched) for each in outcomes for touched in each.files]
                made = replace(made, state=DONE, notes=tuple(note for each in outcomes for note in each.notes))
            session.repairs.append(made)


def _unreadable(edit: Edit) -> str | None:
    """Return the damage that a file has which an edit changed, None when all of them can be read."""
    with suppress(CkptError):
        run = open_run(edit.home.root)
        for checkpoint in run.checkpoints:
            view = View(checkpoint)
            for finding in engine.check(run, checkpoint, view, Settings(0, 0), _DAMAGE):
                own = os.path.normpath(finding.path)
                if finding.severity >= Severity.ERROR and any(inside(own, path) for path in edit.paths):
                    return f"{finding.path}: {finding.message}"
    return None


def preview(session: Session, found: Found) -> Iterator[Repair]:
    for finding, fix in found.fixes():
        yield planned(session, found.subject, finding, fix)


def planned(session: Session, subject: Subject, finding: Finding, fix: Fix) -> Repair:
    """Return a fix as it would be made, or why it cannot."""
    subject = _owner(fix, subject)
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


def _owner(fix: Fix, subject: Subject) -> Subject:
    """Return what a fix is an edit of: the name of a checkpoint is its run's."""
    return Subject(subject.run, None, None) if fix.kind == "name-for-step" else subject


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


def mend(session: Session, name: str) -> None:
    """Make the fixes of one checkpoint, looking again after each: one may bring to light or settle another."""
    tried: set[str] = set()
    for _ in range(MOST):
        found = look_again(session.path, name, session.settings)
        if found is None:
            return
        waiting = [(finding, fix) for finding, fix in found.fixes() if key_of(finding, fix) not in tried]
        if not waiting:
            return
        finding, fix = waiting[0]
        tried.add(key_of(finding, fix))
        make(session, found.subject, finding, fix, found.findings)


def make(session: Session, subject: Subject, finding: Finding, fix: Fix, before: list[Finding]) -> None:
    if not fix.safe and not session.unsafe:
        session.repairs.append(planned(session, subject, finding, fix))
        return
    subject = _owner(fix, subject)
    name = subject.checkpoint.path if subject.checkpoint is not None else None
    try:
        draft = _with_manifest(subject, fix, repairs.plan(fix, subject))
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


def _carried_out(
    session: Session,
    subject: Subject,
    finding: Finding,
    fix: Fix,
    draft: Draft,
    before: list[Finding],
    name: str | None,
) -> Outcome:
    home = subject.home
    disk = LocalDisk()
    time = look(home.root)
    for staged in draft.staged:
        _stage(home, disk, staged)
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
            _unstage(home, disk, staged.path)
        if time is not None and draft.staged:
            set_time(home.root, time.mtime_ns, disk)
        disk.close()
        raise


def _stage(home: Home, disk: LocalDisk, staged: Staged) -> None:
    """Write a large new file where it waits, and load it there, before anything else is changed."""
    place = home.at(staged.path)
    before = look(home.root)
    try:
        parents(disk, home, staged.path)
        if look(place) is not None:  # left by an attempt that was killed
            disk.unlink(place)
        free = free_bytes(home.root)
        if free is not None and free < staged.size + guards.SPARE:
            raise CannotRepairError(
                f"too little space: {staged.size + guards.SPARE:,} bytes are needed, {free:,} are free"
            )
        staged.write(disk, place)
        disk.sync(place)
        reason = staged.check(place) or _loaded(staged, place)
        if reason is not None:
            raise CannotRepairError(f"the new file does not load: {reason}")
    except OSError as error:
        _unstage(home, disk, staged.path)
        raise EditError(f"{staged.path}: {(error.strerror or str(error)).lower()}; nothing was changed") from error
    except BaseException:
        _unstage(home, disk, staged.path)
        raise
    finally:
        if before is not None:  # a trainer's rotation sorts by it
            set_time(home.root, before.mtime_ns, disk)
        disk.close()


def _loaded(staged: Staged, place: str) -> str | None:
    """Return what the file's own library says against it, None when it loads or the library is not installed."""
    if not staged.kind:
        return None
    with loading.Loader() as loader:
        status, text = loader.load(os.path.abspath(place), staged.kind, rng=staged.rng)
    refused = _REFUSED.search(text)
    told = f"torch.load with weights_only=True refuses {refused[1]}" if refused else text
    return told if status in ("refused", "crashed") else None


def _unstage(home: Home, disk: LocalDisk, path: str) -> None:
    """Remove what waited, and the directories that nothing else is in."""
    with suppress(OSError, SourceError):
        if look(home.at(path)) is not None:
            disk.unlink(home.at(path))
        parent = path.rpartition("/")[0]
        while parent and look(home.at(parent)) is not None and not names(home.at(parent)):
            disk.rmdir(home.at(parent))
            parent = parent.rpartition("/")[0]


def _proof(session: Session, name: str, finding: Finding, before: list[Finding]) -> str | None:
    """Return what speaks against a repair: its finding is still there, or an error that was not there before."""
    found = look_again(session.path, name, session.settings)
    if found is None:
        return "the checkpoint is gone"
    known = {(each.code, each.path) for each in before}
    for each in found.findings:
        if (each.code, each.path, each.message) == (finding.code, finding.path, finding.message):
            return f"{each.code} is still found: {each.message}"
        fresh = (each.code, each.path) not in known and each.severity >= Severity.ERROR
        if fresh and not each.code.startswith((SEALED, "CK00")):
            return f"{each.code} is found now, at {each.path}: {each.message}"
    return None


def _with_manifest(subject: Subject, fix: Fix, draft: Draft) -> Draft:
    """Add what becomes of the manifest of a sealed checkpoint; new names and new files need a new seal."""
    if subject.view is None or subject.checkpoint is None or fix.kind not in _FOLLOWED:
        return draft
    known = [action for action in draft.actions if action.path in subject.files]
    more, notes = reseal.follow(subject.run, subject.view, known)
    return replace(draft, actions=(*draft.actions, *more), notes=(*draft.notes, *notes)) if more else draft
