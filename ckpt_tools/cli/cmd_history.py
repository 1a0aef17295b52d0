"""``ckpt history``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from ckpt_tools.cli import console, options
from ckpt_tools.core.errors import CkptError
from ckpt_tools.render.base import visible

if TYPE_CHECKING:
    from ckpt_tools.reports.curves import Figure
    from ckpt_tools.reports.history import HistoryReport

_PICTURES = (".svg", ".html", ".png")


def _picture(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.lower().endswith(_PICTURES):
        raise click.BadParameter(f"{value!r} must end in .svg, .html or .png")
    return value


@click.command("history", short_help="Join the logs of a run and show where it was resumed, well or badly.")
@click.argument("path", metavar="RUN")
@options.output_format("text", "json", "csv")
@click.option("--check", is_flag=True, help="Exit with 1 when the history is not continuous.")
@click.option("--all", "every_row", is_flag=True, help="Show every logged step in text, not a choice of them.")
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=False),
    callback=_picture,
    help="Also draw the curves into FILE: .svg and .html need nothing more, .png needs the extra `plot`.",
)
@options.quiet
@options.color
def command(
    path: str, output_format: str, check: bool, every_row: bool, plot: str | None, quiet: bool, color: str
) -> int:
    """Join the log histories of all checkpoints of RUN, its trainer_log.jsonl and its final state into one table.

    Each place at which the training was resumed gets its signs: does the loss join, does the learning rate move on
    instead of restarting, do the steps add up, did the optimizer keep its state.  With -q, text is one line
    for each sign of a break, and nothing when there is none.

    \b
    Exit codes:
      0  shown; with --check: continuous
      1  with --check: not continuous, or a log that cannot be decoded
      2  wrong usage
      3  a file could not be read, or the picture could not be written
      4  RUN does not exist, or holds neither a checkpoint nor a log
    """
    from ckpt_tools.ops.history import history

    if plot is not None and plot.lower().endswith(".png"):
        from ckpt_tools.render import png

        png.require()
    report = history(path, every_row=every_row, progress=console.progress(quiet))
    if plot is not None:
        _draw(report.figure(), plot)
    if output_format == "json":
        from ckpt_tools.render import json

        console.write(json.render(report))
    elif output_format == "csv":
        from ckpt_tools.render import csv

        console.write(csv.render(*report.records()))
    else:
        console.write(_text(report, path, quiet, color))
    console.remark(f"could not be read: {name}" for name in report.unreadable)
    return report.exit_code(check)


def _text(report: HistoryReport, path: str, quiet: bool, color: str) -> Iterator[str]:
    from ckpt_tools.render import chart, text

    if quiet:
        yield from map(visible, report.brief())
        return
    drawn = list(chart.render(report.figure(), width=console.width(), blocks=_shows(chart.BLOCKS)))
    yield from drawn
    if drawn:
        yield ""
    yield from text.render(report, root=path, color=console.use_color(color), width=console.width())


def _shows(characters: str) -> bool:
    """Return whether stdout's encoding has all of ``characters``."""
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _draw(figure: Figure, plot: str) -> None:
    """Write the picture: beside the place first, and renamed when it is whole."""
    ending = plot.lower().rpartition(".")[2]
    if ending == "png":
        from ckpt_tools.render import png

        data = png.render(figure)
    else:
        from ckpt_tools.render import svg

        data = (svg.page(figure) if ending == "html" else svg.render(figure)).encode()
    try:
        with click.open_file(plot, "wb", atomic=True) as file:
            file.write(data)
    except OSError as error:
        raise CkptError(f"{plot}: could not be written: {(error.strerror or str(error)).lower()}") from None
