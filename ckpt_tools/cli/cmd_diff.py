"""``ckpt diff``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from ckpt_tools.cli import console, options

if TYPE_CHECKING:
    from ckpt_tools.reports.diff import DiffReport

ALL = 5000
"""Tensors that a page lists: there they can be sorted."""


@click.command("diff", short_help="Show what changed between two checkpoints.")
@click.argument("left", metavar="A")
@click.argument("right", metavar="B")
@options.output_format("text", "json", "markdown", "html")
@click.option("--no-tensors", is_flag=True, help="Compare no values of tensors, only names, dtypes and shapes.")
@click.option(
    "--map",
    "maps",
    metavar="REGEX=REPLACEMENT",
    multiple=True,
    help="Rewrite tensor names of both sides before they are matched; may be repeated.",
)
@click.option(
    "--strip-prefix",
    "prefixes",
    metavar="PREFIX",
    multiple=True,
    help="Take this off the beginning of tensor names of both sides; may be repeated.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="NUMBER",
    default=0.0,
    help="Count tensors as the same whose largest difference is at most this.",
)
@click.option("--by", type=click.Choice(["layer", "role"]), help="Group tensors by layer, or by their role in a layer.")
@click.option(
    "--top", type=click.IntRange(min=1), metavar="N", help="List only the N tensors, or groups, that moved most."
)
@options.jobs
@options.quiet
@options.color
def command(
    left: str,
    right: str,
    output_format: str,
    no_tensors: bool,
    maps: tuple[str, ...],
    prefixes: tuple[str, ...],
    tolerance: float,
    by: str | None,
    top: int | None,
    jobs: int | None,
    quiet: bool,
    color: str,
) -> int:
    """Show what changed between two checkpoints, files or runs, whatever their formats and shardings are.

    Of a run the newest good checkpoint is taken; RUN@1500 names the one of step 1500.  Tensors are compared by their
    values, never by the files that hold them.

    \b
        ckpt diff out@1000 out@2000
        ckpt diff model.safetensors pytorch_model.bin
        ckpt diff --format html out@1000 out@2000 > diff.html

    With -q the exit code is the only answer.

    \b
    Exit codes, the first that applies:
      2  wrong usage
      4  A or B does not exist, or holds no checkpoint
      3  something of A or B could not be read
      1  they differ
      0  they are equal
    """
    from ckpt_tools.ops.diff import diff

    report = diff(
        left,
        right,
        tensors=not no_tensors,
        maps=maps,
        strip_prefixes=prefixes,
        tolerance=tolerance,
        by=by,
        top=top,
        jobs=jobs,
        progress=console.progress(quiet),
    )
    if not quiet or output_format != "text":
        console.write(_lines(report, output_format, color))
    return report.exit_code


def _lines(report: DiffReport, output_format: str, color: str) -> Iterable[str]:
    if output_format == "json":
        from ckpt_tools.render import json

        return json.render(report)
    if output_format == "markdown":
        from ckpt_tools.render import markdown

        return markdown.render(report)
    if output_format == "html":
        from ckpt_tools.render import html

        return html.render(report.listing(ALL) if report.top is None else report)
    from ckpt_tools.render import text

    return text.render(report, color=console.use_color(color), width=console.width())
