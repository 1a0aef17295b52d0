"""``ckpt seal``."""

from __future__ import annotations

import click

from ckpt_tools.cli import console, options


@click.command("seal", short_help="Write down what is in a checkpoint, so that any change is seen.")
@click.argument("path", metavar="PATH")
@click.option("--env", is_flag=True, help="Also note this environment: python, torch, CUDA, packages, git commit.")
@click.option(
    "--data", "data", multiple=True, metavar="PATH", help="Also note the digests of training data; may be repeated."
)
@click.option(
    "-o", "--output", metavar="FILE", help="Write the manifest there and not into the checkpoint (read-only storage)."
)
@click.option(
    "--deep", is_flag=True, help="Also look for NaN, lost pages and impossible values, and refuse what has them."
)
@click.option("--force", is_flag=True, help="Seal it whatever is wrong with it.")
@options.output_format("text", "json")
@options.settle
@options.jobs
@options.quiet
@options.color
def command(
    path: str,
    env: bool,
    data: tuple[str, ...],
    output: str | None,
    deep: bool,
    force: bool,
    output_format: str,
    settle: float,
    jobs: int | None,
    quiet: bool,
    color: str,
) -> int:
    """Read every byte of a checkpoint, and write digests of all files and tensors to .ckpt-tools/manifest.json in it.

    For a run, every checkpoint is sealed.  `ckpt verify` compares sizes and small files with the manifest from then
    on, and all bytes with --deep.  Checkpoints with errors, and those that are being saved, are refused.

    \b
    Exit codes:
      0  sealed, or sealed before and unchanged
      2  wrong usage
      3  a file could not be read, or the manifest not be written
      4  PATH does not exist, or holds no checkpoint
      5  a checkpoint was refused; the others are sealed
    """
    from ckpt_tools.ops.seal import seal

    report = seal(
        path,
        env=env,
        data=data,
        output=output,
        deep=deep,
        force=force,
        settle=settle,
        jobs=jobs,
        progress=console.progress(quiet),
    )
    if output_format == "json":
        from ckpt_tools.render import json

        console.write(json.render(report))
    elif not quiet or report.exit_code:
        from ckpt_tools.render import text

        console.write(text.render(report, root=path, color=console.use_color(color), width=console.width()))
    return report.exit_code
