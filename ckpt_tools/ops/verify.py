"""``ckpt verify``: is it whole?"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

from ckpt_tools._version import __version__
from ckpt_tools.core.progress import SILENT, Progress
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Run
from ckpt_tools.model.findings import Finding, Purpose, Severity, Skipped, Verdict
from ckpt_tools.ops import engine
from ckpt_tools.ops import load as loading
from ckpt_tools.reports.verify import CheckpointReport, VerifyReport
from ckpt_tools.rules.base import Settings


def verify(
    path: str,
    *,
    load: bool = False,
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
        world_size: the number of ranks that a resume is planned for.
        select: codes or prefixes of codes to report; empty for all.
        ignore: codes or prefixes of codes to leave out.
        settle: seconds for which an unfinished checkpoint must have been quiet to count as interrupted; 0 never waits.
        allow_in_progress: report a save in progress as a note.
        now_ns: the clock, for tests; the system's when None.
        progress: where progress is announced.

    Raises:
        NothingFoundError: no such path, or no checkpoint there.
    """
    started = time.perf_counter()
    run = open_run(path)
    now = time.time_ns() if now_ns is None else now_ns
    settings = Settings(now, int(settle * 1e9), allow_in_progress, world_size)
    selection = engine.Selection(select, ignore)
    views = {checkpoint.path: View(checkpoint) for checkpoint in run.checkpoints}
    reports: list[CheckpointReport] = []
    with ExitStack() as stack:
        loader = stack.enter_context(loading.Loader()) if load else None
        task = stack.enter_context(progress.task("checking", len(run.checkpoints), "checkpoint"))
        for checkpoint in run.checkpoints:
            view = views[checkpoint.path]
            found = engine.check(run, checkpoint, view, settings, selection)
            left_out = list(engine.skipped(view))
            if loader is not None:
                found, not_loaded = loading.proven(found, checkpoint, view, selection, loader)
                left_out += not_loaded
            reports.append(_report(checkpoint, view, found, left_out, "load" if load else "structure"))
            view.release()
            task.advance(1)
    reports = _with_way_out(run, reports)
    unreadable = tuple(
        f"{view.checkpoint.path}/{name}" for view in views.values() for name in (*view.errors, *view.listing.errors)
    )
    findings = tuple(engine.check_run(run, views, settings, selection))
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


def _with_way_out(run: Run, reports: list[CheckpointReport]) -> list[CheckpointReport]:
    """Name the checkpoint to fall back to in the findings of those that cannot be resumed."""
    ready = [report for report in reports if report.verdicts[Purpose.RESUME] is Verdict.READY and report.path != "."]
    if not ready:
        return reports
    advice = f"`ckpt latest {run.root}` finds {ready[-1].path}, which can be resumed"
    return [
        replace(report, findings=tuple(_advised(finding, advice) for finding in report.findings))
        if report.verdicts[Purpose.RESUME] is Verdict.BROKEN
        else report
        for report in reports
    ]


def _advised(finding: Finding, advice: str) -> Finding:
    hurts = finding.severity >= Severity.ERROR and finding.impact.resume is Verdict.BROKEN
    return replace(finding, help=finding.help or advice) if hurts else finding


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
    )
