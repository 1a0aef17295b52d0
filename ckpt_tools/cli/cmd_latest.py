"""``ckpt latest``."""

from __future__ import annotations

import click

from ckpt_tools.cli import console, options
from ckpt_tools.model.findings import Purpose


@click.command("latest", short_help="Print the newest good checkpoint of a run.")
@click.argument("path", metavar="RUN")
@options.output_format("text", "json")
@options.purpose(Purpose.RESUME, "What the checkpoint is wanted for.")
@click.option(
    "--allow-degraded",
    is_flag=True,
    help="Take one that loads although something in it would silently start afresh (optimizer, scheduler).",
)
@options.settle
@options.world_size
@options.load
@options.quiet
def command(
    path: str,
    output_format: str,
    purpose: Purpose,
    allow_degraded: bool,
    settle: float,
    world_size: int | None,
    load: bool,
    quiet: bool,
) -> int:
    """Print the newest checkpoint of RUN that is good to resume from, and nothing else.

    Newest is the highest step, never the latest file time.  Why newer ones were passed over goes to stderr; -q keeps
    that to itself.

    \b
        model=$(ckpt latest out/) && train --resume_from_checkpoint "$model"

    \b
    Exit codes:
      0  found
      1  there are checkpoints, and none is good
      2  wrong usage
      3  a file could not be read, and none is good
      4  RUN does not exist, or holds no checkpoint yet
    """
    from ckpt_tools.ops.latest import latest

    report = latest(
        path,
        purpose=purpose,
        load=load,
        allow_degraded=allow_degraded,
        world_size=world_size,
        settle=settle,
        progress=console.progress(quiet),
    )
    if not quiet:
        console.remark(report.reasons())
    if output_format == "json":
        from ckpt_tools.render import json

        console.write(json.render(report))
    elif report.path is not None:
        console.write_path(report.path)
    return report.exit_code
