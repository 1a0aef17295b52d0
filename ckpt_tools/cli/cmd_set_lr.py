"""``ckpt set-lr``."""

from __future__ import annotations

import shlex

import click

from ckpt_tools.cli import console, options


@click.command("set-lr", short_help="Change the learning rate that a resume goes on with.")
@click.argument("path", metavar="CKPT")
@click.argument("rate", metavar="[VALUE]", type=float, required=False)
@click.option("--peak", type=float, metavar="VALUE", help="Set the base rate of the schedule instead.")
@click.option("--scale", type=float, metavar="FACTOR", help="Multiply the whole schedule by a factor.")
@click.option("--group", "groups", type=int, multiple=True, metavar="N", help="Only this parameter group; repeatable.")
@click.option("--keep-floor", is_flag=True, help="Leave lower bounds (eta_min, min_lr, min_lrs) as they are.")
@click.option("--force", is_flag=True, help="Edit the optimizer alone where the scheduler is of no known kind.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be changed, and check that it can be.")
@options.settle
@options.output_format("text", "json")
@options.color
def command(
    path: str,
    rate: float | None,
    peak: float | None,
    scale: float | None,
    groups: tuple[int, ...],
    keep_floor: bool,
    force: bool,
    dry_run: bool,
    settle: float,
    output_format: str,
    color: str,
) -> int:
    """Change the learning rate that a resume of CKPT goes on with.

    VALUE is the rate of the next step, of group 0 or of the first group named; the whole schedule is scaled by the
    same factor, and the ratios between groups stay.  Groups are counted through all optimizers where there are several.
    Every place that decides is edited, in the optimizer and in the scheduler.  The rates of the next steps are shown
    before and after.  `ckpt undo` takes it back.

    \b
    Exit codes:
      0  changed, or shown
      2  wrong usage
      3  the system refused something, and all is as before
      4  CKPT does not exist, or holds no checkpoint
      5  refused: damaged, being written, of no known scheduler; or an interrupted edit is left
    """
    from ckpt_tools.ops.set_lr import set_lr

    words = ["ckpt", "set-lr", path, *([f"{rate:g}"] if rate is not None else [])]
    words += [f"--peak={peak:g}"] if peak is not None else []
    words += [f"--scale={scale:g}"] if scale is not None else []
    words += [f"--group={number}" for number in groups]
    words += [word for word, given in (("--keep-floor", keep_floor), ("--force", force)) if given]
    report = set_lr(
        path,
        rate,
        peak=peak,
        scale=scale,
        groups=groups,
        keep_floor=keep_floor,
        force=force,
        dry_run=dry_run,
        settle=settle,
        command=shlex.join(words),
    )
    if output_format == "json":
        from ckpt_tools.render import json

        console.write(json.render(report))
    else:
        from ckpt_tools.render import text

        console.write(text.render(report, root=path, color=console.use_color(color), width=console.width()))
    return report.exit_code
