"""``ckpt checksum``."""

from __future__ import annotations

import click

from ckpt_tools.cli import console, options


@click.command("checksum", short_help="Print a digest of every tensor or file.")
@click.argument("path", metavar="PATH")
@click.option(
    "--by",
    type=click.Choice(["tensor", "file"]),
    default="tensor",
    show_default=True,
    help="tensor: over dtype, shape and elements, the same in every format; file: over the file's bytes.",
)
@click.option(
    "--algorithm",
    type=click.Choice(["blake3", "sha256"]),
    default="blake3",
    show_default=True,
    help="sha256 is for files alone, and prints what `sha256sum -c` reads.",
)
@options.output_format("text", "json")
@options.jobs
@options.quiet
def command(path: str, by: str, algorithm: str, output_format: str, jobs: int | None, quiet: bool) -> int:
    """Print a digest of every tensor, or of every file, of a run, a checkpoint or one file.

    The same tensor has the same digest in a .bin, a .safetensors and an old torch file, strided, shared or not.

    \b
        diff <(ckpt checksum a/pytorch_model.bin | sort) <(ckpt checksum b/model.safetensors | sort)
        ckpt checksum out/ --by file --algorithm sha256 > SUMS && sha256sum -c SUMS

    \b
    Exit codes:
      0  printed
      2  wrong usage
      3  a file could not be read; the others are printed
      4  PATH does not exist, or holds no checkpoint
    """
    from ckpt_tools.ops.checksum import checksum

    report = checksum(path, by=by, algorithm=algorithm, jobs=jobs, progress=console.progress(quiet))
    if output_format == "json":
        from ckpt_tools.render import json

        console.write(json.render(report))
    else:
        for line in report.lines():
            console.write_path(line)
    console.remark(report.remarks())
    return report.exit_code
