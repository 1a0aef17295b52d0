"""Runs the catalogue over one checkpoint and draws the verdicts from what it found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ckpt_tools.core.listing import SIDECAR
from ckpt_tools.layouts.match import is_piece
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Part, Run
from ckpt_tools.model.findings import HARMLESS, Finding, Purpose, Severity, Skipped, Verdict
from ckpt_tools.model.summaries import DataSummary
from ckpt_tools.reports.units import count
from ckpt_tools.rules import CATALOGUE
from ckpt_tools.rules.base import Context, Hit, Rule, Settings

NO_CHECKSUM = "a changed value that stays plausible is seen only against a manifest"
NOT_READ = "tensor bytes were not read (structure only)"
_UNJUDGED: Mapping[str, Mapping[Purpose, Verdict]] = {}
ELSEWHERE = "the {} files inside are not read by this version"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which codes are reported: ``select`` empty means all; both take codes or prefixes of codes."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def wants(self, rule: Rule) -> bool:
        """Return whether the rule's findings are reported; FATAL ones always are."""
        if rule.severity is Severity.FATAL:
            return True
        if self.select and not rule.code.startswith(self.select):
            return False
        return not (self.ignore and rule.code.startswith(self.ignore))


def check(
    run: Run, checkpoint: Checkpoint, view: View, settings: Settings, selection: Selection = Selection()
) -> list[Finding]:
    """Return everything that the rules about checkpoints and their parts find, in the order of codes."""
    context = Context(run, settings, view)
    findings: list[Finding] = []
    for rule in CATALOGUE:
        if rule.subject is not Run and selection.wants(rule) and (rule.depth != "deep" or view.data is not None):
            findings += _apply(rule, checkpoint, context)
    findings += _crashes(context, _unread(view, frozenset(), checkpoint.place), checkpoint.place)
    return _settle(findings)


def check_run(
    run: Run,
    views: Mapping[str, View],
    settings: Settings,
    selection: Selection = Selection(),
    judged: Mapping[str, Mapping[Purpose, Verdict]] = _UNJUDGED,
) -> list[Finding]:
    """Return what the rules about whole runs find; readers that failed before were told with their checkpoint."""
    first = next(iter(views.values()), None)
    if first is None:
        return []
    context = Context(run, settings, first, views, judged=judged)
    told = {name: frozenset(view.crashes) for name, view in views.items()}
    findings: list[Finding] = []
    for rule in CATALOGUE:
        if rule.subject is Run and selection.wants(rule) and (rule.depth != "deep" or first.data is not None):
            findings += [_finding(rule, hit, hit.path or ".") for hit in _guarded(rule, run, context)]
    unread = [hit for name, view in views.items() for hit in _unread(view, told[name], view.checkpoint.place)]
    return findings + _crashes(context, unread, lambda path: path or ".")


def _apply(rule: Rule, checkpoint: Checkpoint, context: Context) -> Iterator[Finding]:
    subjects: Iterable[object] = (checkpoint,) if rule.subject is Checkpoint else _opened(checkpoint)
    for subject in subjects:
        for hit in _guarded(rule, subject, context):
            yield _finding(rule, hit, checkpoint.place(hit.path))


def _opened(checkpoint: Checkpoint) -> Iterator[object]:
    """Yield the parts whose bytes mean something to this tool."""
    return (part for part in checkpoint.parts if part.containers or part.role.value == "combined")


def _guarded(rule: Rule, subject: object, context: Context) -> list[Hit]:
    """Run one rule; a crash of ours becomes a finding and the other rules go on."""
    try:
        return list(rule.check(subject, context))
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001 - a crash of a rule is a finding
        place = subject.path if isinstance(subject, Part) else ""
        context.crashes.append(Hit(f"rule {rule.code} ({rule.name}) failed: {_told(error)}", place))
        return []


def _unread(view: View, told: frozenset[str], place: Callable[[str], str]) -> list[Hit]:
    """Return a hit, placed in the run, for every reader of ours that failed on a file that is not in ``told``."""
    failed = ((path, error) for path, error in view.crashes.items() if path not in told)
    return [Hit(f"reading it failed: {_told(error)}", place(path)) for path, error in failed]


def _crashes(context: Context, unread: Iterable[Hit], place: Callable[[str], str]) -> list[Finding]:
    """Return a finding for every rule and every reader of ours that failed."""
    rule = next(rule for rule in CATALOGUE if rule.name == "rule-crashed")
    found = [_finding(rule, hit, hit.path) for hit in unread]
    return found + [_finding(rule, hit, place(hit.path)) for hit in context.crashes]


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _finding(rule: Rule, hit: Hit, path: str) -> Finding:
    impact = hit.impact if hit.impact is not None else rule.impact
    return Finding(
        rule.code,
        rule.name,
        hit.severity or rule.severity,
        hit.message,
        path,
        hit.at,
        hit.detail,
        hit.related,
        hit.help,
        hit.fix,
        impact or HARMLESS,
    )


def _settle(findings: list[Finding]) -> list[Finding]:
    """While a save is in progress, what is missing or unfinished is no fault: only the save itself is told."""
    saving = next((finding for finding in findings if finding.impact.resume is Verdict.IN_PROGRESS), None)
    if saving is None:
        return findings
    kept = []
    for finding in findings:
        if finding is saving or finding.severity is Severity.FATAL:
            kept.append(finding)
        elif finding.code.startswith("CK1"):
            continue
        else:
            kept.append(replace(finding, severity=Severity.NOTE, impact=HARMLESS))
    return kept


def verdicts(findings: Iterable[Finding]) -> tuple[dict[Purpose, Verdict], dict[Purpose, tuple[str, ...]]]:
    """Return the verdict for each purpose and the codes that are its reasons, worst first."""
    found = list(findings)
    saving = any(finding.impact.resume is Verdict.IN_PROGRESS for finding in found)
    decided: dict[Purpose, Verdict] = {}
    reasons: dict[Purpose, tuple[str, ...]] = {}
    for purpose in Purpose:
        hurting = [finding for finding in found if finding.impact.on(purpose) is not Verdict.READY]
        worst = max((finding.impact.on(purpose) for finding in hurting), key=lambda v: v.rank, default=Verdict.READY)
        decided[purpose] = Verdict.IN_PROGRESS if saving else worst
        hurting.sort(key=lambda finding: (-finding.impact.on(purpose).rank, -finding.severity, finding.code))
        reasons[purpose] = tuple(dict.fromkeys(finding.code for finding in hurting))
    return decided, reasons


def skipped(view: View) -> tuple[Skipped, ...]:
    """Return what no rule looked at in this checkpoint, with the reason."""
    left_out = [Skipped("CK4", NOT_READ)] if view.data is None else list(_not_compared(view, view.data))
    left_out += sealed_skips(view)
    if is_piece(view.checkpoint):
        left_out.append(Skipped("CK1", "the rest of the checkpoint: one file of it was given"))
    left_out += (Skipped(*each) for assembly in view.assemblies for each in assembly.left_out)
    if view.elsewhere and not view.assemblies and not view.checkpoint.is_file:
        left_out.append(Skipped("CK1", ELSEWHERE.format(view.elsewhere)))
    return tuple(left_out)


def may_be_sealed(checkpoint: Checkpoint) -> bool:
    """Return whether a manifest may lie with the checkpoint; where none can, the code for it is not even imported."""
    return checkpoint.is_file or checkpoint.together or SIDECAR in checkpoint.listing.files


def may_be_edited(checkpoint: Checkpoint) -> bool:
    """Return whether a journal may tell of the checkpoint: its own, or that of the run around it."""
    above = os.path.join(os.path.dirname(os.path.abspath(checkpoint.listing.root)), SIDECAR)
    return may_be_sealed(checkpoint) or os.path.isdir(above)


def find_pending(view: View) -> None:
    """Note the edits of a checkpoint that were begun and not finished, and which files others changed, for rules."""
    if may_be_edited(view.checkpoint):
        from ckpt_tools.edits.journal import edited_in, pending_in

        view.edited = edited_in(view.listing)
        view.pending = tuple(edit.title or "its journal entry is damaged" for edit in pending_in(view.listing))


def sealed_skips(view: View) -> Iterator[Skipped]:
    """Yield what a manifest could not be held against."""
    seal = view.seal
    if seal is None or seal.manifest is None:
        return
    if seal.changes.unread and view.data is not None:
        yield Skipped("CK41", f"{count(len(seal.changes.unread), 'sealed file')}, compared by size: not read whole")
    elif seal.changes.unread:
        yield Skipped("CK41", f"{count(len(seal.changes.unread), 'sealed file')}, compared by size: needs --deep")
    if seal.manifest.data and seal.drift is None:
        yield Skipped("CK418", "the data it was sealed with: `--data PATH` names it")


def _not_compared(view: View, data: DataSummary) -> Iterator[Skipped]:
    """Yield what a deep look could not judge, or left out."""
    if data.sample:
        whole = sum(file.size for file in data.files.values())
        yield Skipped("CK4", f"{data.left_out:,} of {whole:,} bytes, left out by --sample {data.sample}")
    bare: dict[str, list[str]] = {}
    compared = frozenset(view.seal.changes.read if view.seal is not None else ())
    for file in data.files.values():
        if file.protection in ("none", "off") and file.tensors and file.path not in compared:
            kind = file.container if file.protection == "none" else "written without them"
            bare.setdefault(kind, []).append(file.path)
        if file.container == "hdf5" and file.path not in compared:
            yield Skipped("CK4", f"the values in {file.path}: HDF5 is not decoded; a manifest would show a change")
        if file.unchecked:
            why = ", ".join(dict.fromkeys(reason for _, reason in file.unchecked))
            yield Skipped("CK401", f"{count(len(file.unchecked), 'record')} of {file.path}: {why}")
        reasons = [each.reason for each in file.tensors.values() if not each.checked]
        for reason in dict.fromkeys(reasons):
            number = count(reasons.count(reason), "tensor")
            yield Skipped("CK4", f"{number} of {file.path}: {reason}")
        if file.unread:
            yield Skipped("CK4", f"{file.unread:,} bytes of {file.path}: they could not be read")
    for kind, names in bare.items():
        more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
        yield Skipped("CK401", f"checksums of {', '.join(names[:3])}{more}: none inside ({kind}); {NO_CHECKSUM}")
