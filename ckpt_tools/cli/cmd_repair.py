"""``ckpt repair``."""

from __future__ import annotations

import click

from ckpt_tools.cli import console, options


@click.command("repair", short_help="Repair what can be repaired, as a preview first.")
@click.argument("path", metavar="PATH")
@click.option("--write", is_flag=True, help="Make the fixes; without it they are only shown.")
@click.option("-n", "--dry-run", is_flag=True, help="Only show them, whatever else is given.")
@click.option("--unsafe", is_flag=True, help="Also make fixes after which something may differ from what was saved.")
@click.option(
    "--quarantine",
    is_flag=True,
    help="Also set checkpoints aside that cannot be resumed and are newer than the newest good one.",
)
@click.option(
    "--salvage",
    metavar="OUT",
    help="Instead, copy the tensors of a cut safetensors file that are whole into the new file OUT.",
)
@options.settle
@options.output_format("text", "json")
@options.color
def command(
    path: str,
    write: bool,
    dry_run: bool,
    unsafe: bool,
    quarantine: bool,
    salvage: str | None,
    settle: float,
    output_format: str,
    color: str,
) -> int:
    """Repair what can be repaired in a run, a checkpoint or a file.

    Without --write nothing is changed.  Each fix belongs to a finding of `ckpt verify` and is an edit of its own, which
    `ckpt undo` takes back.  Nothing is deleted: files are moved into .ckpt-tools/quarantine.  A checkpoint that is
    being saved is left alone.  After --write the result is verified again.

    \b
    Exit codes:
      0  no fix waits; with --write: no error is left
      1  fixes wait; with --write: errors are left
      2  wrong usage
      3  a file could not be read, or the system refused something and all is as before
      4  PATH does not exist, or holds no checkpoint
      5  an interrupted edit is left
    """
    writing = write and not dry_run
    if salvage is not None:
        from ckpt_tools.ops.salvage import salvage as salvaged

        report = salvaged(path, salvage, write=writing)
    else:
        from ckpt_tools.ops.repair import repair

        words = ["ckpt", "repair", path, *(["--unsafe"] if unsafe else []), *(["--quarantine"] if quarantine else [])]
        report = repair(
            path,
            write=writing,
            unsafe=unsafe,
            quarantine=quarantine,
            settle=settle,
            command=" ".join([*words, "--write"]),
        )
    if output_format == "json":
        from ckpt_tools.render import json

        console.write(json.render(report))
    else:
        from ckpt_tools.render import text

        console.write(text.render(report, root=path, color=console.use_color(color), width=console.width()))
    return report.exit_code
