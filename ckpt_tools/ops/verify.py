"""``ckpt verify``: is it whole?"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckpt_tools._version import __version__
from ckpt_tools.core.errors import UsageError
from ckpt_tools.core.progress import SILENT, Progress, Task
from ckpt_tools.layouts.match import is_piece, open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Run
from ckpt_tools.model.findings import Finding, Purpose, Severity, Skipped, Verdict
from ckpt_tools.ops import engine, latest, numbered
from ckpt_tools.ops import load as loading
from ckpt_tools.reports.verify import CheckpointReport, VerifyReport
from ckpt_tools.rules.base import Settings

if TYPE_CHECKING:
    from ckpt_tools.ops.deep_look import Looker


def verify(
    path: str,
    *,
    load: bool = False,
    deep: bool = False,
    sample: str | None = None,
    jobs: int | None = None,
    against: str | None = None,
    data: tuple[str, ...] = (),
    world_size: int | None = None,
    select: tuple[str, ...] = (),
    ignore: tuple[str, ...] = (),
    settle: float = 60.0,
    allow_in_progress: bool = False,
    now_ns: int | None = None,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Check every checkpoint of a run, a single checkpoint, or one file.

    Args:
        path: a run, a checkpoint directory, or a file.
        load: also load every file with its own library, in a child process.
        deep: also read every byte: checksums, NaN and Inf, lost pages.
        sample: the share of the bytes that a deep look reads: a percentage (``5%``) or a part (``1/7``).
        jobs: threads that read; as many as processors when None.
        against: a manifest to compare with instead of the checkpoint's own; ``path`` must be one checkpoint.
        data: training data to compare with what was sealed.
        world_size: the number of ranks that a resume is planned for.
        select: codes or prefixes of codes to report; empty for all.
        ignore: codes or prefixes of codes to leave out.
        settle: seconds for which an unfinished checkpoint must have been quiet to count as interrupted; 0 never waits.
        allow_in_progress: report a save in progress as a note.
        now_ns: the clock, for tests; the system's when None.
        progress: where progress is announced.

    Raises:
        NothingFoundError: no such path, or no checkpoint there.
        UsageError: a sample that cannot be understood, or one without ``deep``.
    """
    started = time.perf_counter()
    if sample is not None and not deep:
        raise UsageError("--sample is the share that --deep reads; give both")
    run = open_run(numbered.named(path))
    if against is not None:
        from ckpt_tools.ops import sealed

        sealed.one_checkpoint(run, against)
    now = time.time_ns() if now_ns is None else now_ns
    settings = Settings(now, int(settle * 1e9), allow_in_progress, world_size)
    selection = engine.Selection(select, ignore)
    views = {checkpoint.path: View(checkpoint) for checkpoint in run.checkpoints}
    looker = _looker(sample, now, jobs) if deep else None
    with ExitStack() as stack:
        loader = stack.enter_context(loading.Loader()) if load else None
        if looker is not None:
            task = stack.enter_context(progress.task("reading", looker.size(views.values()), "B"))
        else:
            task = stack.enter_context(progress.task("checking", len(run.checkpoints), "checkpoint"))
        look = _Look(run, settings, selection, against, data, looker, loader, task)
        found = [look.at(checkpoint, views[checkpoint.path]) for checkpoint in run.checkpoints]
    reports = [
        replace(report, findings=_with_commands(report.findings, run.root)) for report in _with_way_out(run, found)
    ]
    unreadable = tuple(
        f"{view.checkpoint.path}/{name}" for view in views.values() for name in (*view.errors, *view.listing.errors)
    )
    judged = {report.path: report.verdicts for report in reports}
    findings = _with_commands(engine.check_run(run, views, settings, selection, judged), run.root)
    return VerifyReport(
        __version__,
        run.root,
        run.layout,
        tuple(reports),
        findings,
        sum(report.files for report in reports),
        sum(report.size for report in reports),
        run.listing.meter.bytes_read,
        time.perf_counter() - started,
        run.single,
        unreadable,
    )


def _looker(sample: str | None, now_ns: int, jobs: int | None) -> Looker:
    from ckpt_tools.ops.deep_look import Looker

    return Looker(sample, now_ns, jobs)


@dataclass(frozen=True, slots=True)
class _Look:
    """How every checkpoint of a run is looked at."""

    run: Run
    settings: Settings
    selection: engine.Selection
    against: str | None
    data: tuple[str, ...]
    looker: Looker | None
    loader: loading.Loader | None
    task: Task

    @property
    def depth(self) -> str:
        used = (("deep", self.looker is not None), ("load", self.loader is not None))
        return "+".join(name for name, wanted in used if wanted) or "structure"

    def at(self, checkpoint: Checkpoint, view: View) -> CheckpointReport:
        """Check one of them, and keep of its view what the rules about the whole run ask for."""
        self._read(view)
        found = engine.check(self.run, checkpoint, view, self.settings, self.selection)
        left_out = list(engine.skipped(view))
        if self.loader is not None:
            found, not_loaded = loading.proven(found, checkpoint, view, self.selection, self.loader)
            left_out += not_loaded
        report = _report(checkpoint, view, found, left_out, self.depth)
        view.release()
        view.seal = None
        if self.looker is not None:
            self.looker.slim(view)
        else:
            self.task.advance(1)
        return report

    def _read(self, view: View) -> None:
        """Read what the rules will look at: the manifest where there may be one, and the bytes where that was asked."""
        engine.find_pending(view)
        if self.against is None and self.looker is None and not engine.may_be_sealed(view.checkpoint):
            return
        from ckpt_tools.ops import sealed

        sealed.attach(self.run, view, self.against)
        if self.looker is not None:
            self.looker.look(view, self.task)
        sealed.hold(view, self.data or None)
        if self.looker is not None and self.run.single:
            view.beside = sealed.beside(self.run)


def _with_way_out(run: Run, reports: list[CheckpointReport]) -> list[CheckpointReport]:
    """Name the checkpoint to fall back to in the findings of those that should not be resumed."""
    told = {report.path: report for report in reports if report.path != "."}
    forbidden = {path for path, report in told.items() if latest.judge(report.findings, Purpose.RESUME)[1]}
    if not forbidden:
        return reports
    numbered = [checkpoint for checkpoint in run.checkpoints if checkpoint.path != "."]
    newest_first = latest.ordered(numbered, lambda checkpoint: told[checkpoint.path].step)
    command = f"ckpt latest {shlex.quote(run.root)}"
    good = next((checkpoint.path for checkpoint in newest_first if checkpoint.path not in forbidden), None)
    if good is not None:
        advice = f"`{command}` finds {good}, which can be resumed"
    else:
        exports = [report for report in reports if report.path == "."]
        advice = _second_best(exports, [told[checkpoint.path] for checkpoint in newest_first], command)
    return [
        replace(report, findings=tuple(_advised(finding, advice, good is not None) for finding in report.findings))
        if report.path in forbidden
        else report
        for report in reports
    ]


def _second_best(exports: list[CheckpointReport], newest_first: list[CheckpointReport], command: str) -> str:
    """Tell what a run is good for, none of whose checkpoints is good to resume from."""
    for report in newest_first:
        if report.verdicts[Purpose.RESUME] is Verdict.DEGRADED:
            return f"no checkpoint here is whole; `{command} --allow-degraded` finds {report.path}, which loads"
    for report in (*exports, *newest_first):
        if report.verdicts[Purpose.INFERENCE] is Verdict.READY:
            name = (
                "the model that the run left at its end"
                if report.path == "."
                else f"{report.path}, whose weights are whole"
            )
            return f"no checkpoint here can be resumed; `{command} --for inference` finds {name}"
    return "no checkpoint here can be resumed, and the weights of none are whole: look for another copy"


def _with_commands(findings: Iterable[Finding], root: str) -> tuple[Finding, ...]:
    """Write out the command that makes a fix, where a finding offers one."""
    made = []
    for finding in findings:
        if finding.fix is not None and finding.fix.command is None:
            from shlex import quote

            command = f"ckpt repair --write {'' if finding.fix.safe else '--unsafe '}{quote(root)}"
            finding = replace(finding, fix=replace(finding.fix, command=command))
        made.append(finding)
    return tuple(made)


def _advised(finding: Finding, advice: str, good: bool) -> Finding:
    """Add the way out; what has one of its own, or a save that goes on, gets it only where another is good."""
    hurt = finding.impact.resume
    kept = not good and (hurt is Verdict.IN_PROGRESS or finding.help is not None)
    if finding.severity < Severity.ERROR or hurt is Verdict.READY or kept:
        return finding
    return replace(finding, help=f"{finding.help}; {advice}" if finding.help else advice)


def _report(
    checkpoint: Checkpoint, view: View, findings: list[Finding], left_out: list[Skipped], depth: str
) -> CheckpointReport:
    decided, reasons = engine.verdicts(findings)
    return CheckpointReport(
        checkpoint.path,
        checkpoint.layouts,
        view.step,
        depth,
        decided,
        reasons,
        tuple(findings),
        tuple(left_out),
        sum(entry.is_file for entry in checkpoint.listing.files.values()),
        checkpoint.size,
        view.number("epoch"),
        view.number("lr") if view.numbers("lr") else view.number("last-lr"),
        piece=is_piece(checkpoint),
    )
