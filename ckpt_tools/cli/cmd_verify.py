"""``ckpt verify``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from ckpt_tools.cli import console, options
from ckpt_tools.core.errors import CkptError, UsageError
from ckpt_tools.model.findings import Finding, Purpose, Severity, Verdict
from ckpt_tools.render.base import visible

if TYPE_CHECKING:
    from ckpt_tools.reports.verify import VerifyReport

_WORST_FIRST = (3, 4, 1)


@click.command("verify", short_help="Check every checkpoint of a run.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@options.output_format("text", "json", "github")
@options.select
@options.ignore
@options.fail_on
@options.purpose(None, "Count only findings that matter for this purpose; a checkpoint broken for it fails.")
@options.settle
@options.allow_in_progress
@options.world_size
@options.deep
@options.sample
@options.jobs
@options.against
@options.sealed_data
@options.load
@options.quiet
@options.color
def command(
    paths: tuple[str, ...],
    output_format: str,
    fail_on: Severity,
    purpose: Purpose | None,
    quiet: bool,
    color: str,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    settle: float,
    allow_in_progress: bool,
    world_size: int | None,
    deep: bool,
    sample: str | None,
    jobs: int | None,
    against: str | None,
    data: tuple[str, ...],
    load: bool,
) -> int:
    """Check every checkpoint of a run, a single checkpoint, or one file.

    Each checkpoint gets two verdicts, for resuming and for inference: ready, degraded, in-progress or broken.
    Structure is read; tensor bytes only with --deep.  Several PATHs are checked one after another; with --format json
    each gives one line.

    With -q, text is one line for each finding that makes the exit code 1, and nothing when there is none;
    annotations lose their closing line; JSON stays as it is.

    \b
    Exit codes, the first that applies to any PATH:
      2  wrong usage
      3  a file could not be read
      4  a PATH does not exist, or holds no checkpoint
      1  findings at or above --fail-on
      0  none of these
    """
    from ckpt_tools.ops.verify import verify

    if deep:
        console.spare_processors()
    codes = set()
    headed = len(paths) > 1 and output_format == "text" and not quiet
    for number, path in enumerate(paths):
        try:
            report = verify(
                path,
                load=load,
                deep=deep,
                sample=sample,
                jobs=jobs,
                against=against,
                data=data,
                world_size=world_size,
                select=select,
                ignore=ignore,
                settle=settle,
                allow_in_progress=allow_in_progress,
                progress=console.progress(quiet),
            )
        except UsageError:
            raise
        except CkptError as error:
            console.complain(str(error), error.hint)
            codes.add(error.exit_code)
            continue
        if headed:
            console.write([""] * bool(number) + [f"{visible(path)}:"])
        console.write(_lines(report, path, output_format, quiet, color, fail_on, purpose))
        codes.add(report.exit_code(fail_on, purpose))
        console.remark(f"could not be read: {name}" for name in report.unreadable)
    return next((code for code in _WORST_FIRST if code in codes), 0)


def _lines(
    report: VerifyReport,
    path: str,
    output_format: str,
    quiet: bool,
    color: str,
    fail_on: Severity,
    purpose: Purpose | None,
) -> Iterable[str]:
    if output_format == "json":
        from ckpt_tools.render import json

        return json.render(report)
    if output_format == "github":
        from ckpt_tools.render import github

        return github.render(report, base=_directory(path), closing=not quiet)
    from ckpt_tools.render import text

    if quiet:
        return (text.brief(finding, _directory(path)) for finding in _failing(report, fail_on, purpose))
    return text.render(report, root=path, color=console.use_color(color), width=console.width())


def _directory(path: str) -> str:
    """Return the directory that findings' paths start from."""
    return os.path.dirname(path) if os.path.isfile(path) else path


def _failing(report: VerifyReport, fail_on: Severity, purpose: Purpose | None) -> Iterator[Finding]:
    for finding in report.worst_first():
        verdict = finding.impact.on(purpose) if purpose else None
        heavy = finding.severity >= fail_on and verdict is not Verdict.READY
        if heavy or verdict in (Verdict.BROKEN, Verdict.IN_PROGRESS):
            yield finding
