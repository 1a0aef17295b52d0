"""``ckpt undo``."""

from __future__ import annotations

import click

from ckpt_tools.cli import console, options


@click.command("undo", short_help="Take the newest edit of a checkpoint back.")
@click.argument("path", metavar="CKPT")
@click.option("--list", "list_only", is_flag=True, help="List the edits, and change nothing.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be taken back, and check that it can be.")
@options.settle
@options.output_format("text", "json")
@options.color
def command(path: str, list_only: bool, dry_run: bool, settle: float, output_format: str, color: str) -> int:
    """Take the newest edit of a checkpoint back: every byte, name and file time is as it was before.

    Called again it takes back the edit before that one, down to the first.  An edit that was interrupted is finished
    by taking it back.  Files that changed since are refused.

    \b
    Exit codes:
      0  taken back, or listed
      2  wrong usage
      3  the system refused something, and all is as before
      4  CKPT does not exist, or holds no checkpoint
      5  refused: no edit is left, or the files changed since; or an interrupted edit is left
    """
    from ckpt_tools.ops.undo import undo

    report = undo(path, list_only=list_only, dry_run=dry_run, settle=settle)
    if output_format == "json":
        from ckpt_tools.render import json

        console.write(json.render(report))
    else:
        from ckpt_tools.render import text

        console.write(text.render(report, root=path, color=console.use_color(color), width=console.width()))
    return report.exit_code
