"""``ckpt info``."""

from __future__ import annotations

import click

from ckpt_tools.cli import console, options


@click.command("info", short_help="Show what a run, checkpoint or file holds.")
@click.argument("target", metavar="PATH")
@click.option("--tensors", is_flag=True, help="Also list every tensor with dtype, shape and size.")
@click.option(
    "--filter",
    "pattern",
    metavar="GLOB",
    help="List only tensors whose name fits, as in '*.weight'; implies --tensors.",
)
@options.output_format("text", "json")
@options.quiet
@options.color
def command(target: str, tensors: bool, pattern: str | None, output_format: str, quiet: bool, color: str) -> int:
    """Show what a run, a checkpoint or a single file holds.

    Only headers are read, however large the files are; no object of a pickle is built.

    \b
    Exit codes:
      0  shown
      1  shown as far as the file is whole
      2  wrong usage
      3  a file could not be read
      4  PATH does not exist, or holds no checkpoint
    """
    from ckpt_tools.ops.info import info

    report = info(target, tensors=tensors or pattern is not None, pattern=pattern, progress=console.progress(quiet))
    if output_format == "json":
        from ckpt_tools.render import json

        console.write(json.render(report))
    else:
        from ckpt_tools.render import text

        console.write(text.render(report, root=target, color=console.use_color(color), width=console.width()))
    return report.exit_code
