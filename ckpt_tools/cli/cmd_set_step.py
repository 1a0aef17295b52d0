"""``ckpt set-step``."""

from __future__ import annotations

import shlex

import click

from ckpt_tools.cli import console, options

PARTS = ("trainer-state", "scheduler", "optimizer")


@click.command("set-step", short_help="Change the step that a resume goes on from.")
@click.argument("path", metavar="CKPT")
@click.argument("step", metavar="N", type=click.IntRange(min=0, max=1 << 53))
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Change only this part; repeatable.")
@click.option("--rename", is_flag=True, help="Also rename the directory, and what names it.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be changed, and check that it can be.")
@options.settle
@options.output_format("text", "json")
@options.color
def command(
    path: str,
    step: int,
    only: tuple[str, ...],
    rename: bool,
    dry_run: bool,
    settle: float,
    output_format: str,
    color: str,
) -> int:
    """Make CKPT say that it is of step N: the trainer's state, the scheduler and the optimizer.

    Counters move by as much as the step does, so that what lagged behind still does.  The rates are set to those of
    step N where a formula gives them.  Weights and moments stay what they are.  `ckpt undo` takes it back.

    \b
    Exit codes:
      0  changed, or shown
      2  wrong usage
      3  the system refused something, and all is as before
      4  CKPT does not exist, or holds no checkpoint
      5  refused: damaged, being written, counts nothing; or an interrupted edit is left
    """
    from ckpt_tools.ops.set_step import set_step

    words = ["ckpt", "set-step", path, str(step), *(f"--only={part}" for part in only)]
    words += ["--rename"] if rename else []
    report = set_step(path, step, only=only, rename=rename, dry_run=dry_run, settle=settle, command=shlex.join(words))
    if output_format == "json":
        from ckpt_tools.render import json

        console.write(json.render(report))
    else:
        from ckpt_tools.render import text

        console.write(text.render(report, root=path, color=console.use_color(color), width=console.width()))
    return report.exit_code
