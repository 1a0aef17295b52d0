"""``ckpt merge``."""

from __future__ import annotations

import re

import click

from ckpt_tools.cli import console, options

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def _bytes(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    """Read a size as Hugging Face writes it: ``5GB`` are 5 times 10 to the ninth, ``5GiB`` 5 times 2 to the 30th."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is no size (5GB, 500MB)")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** _POWERS[match[2].upper()])


@click.command("merge", short_help="Write sharded weights as plain safetensors.")
@click.argument("checkpoint", metavar="CKPT")
@click.argument("out", metavar="OUT")
@click.option(
    "--max-shard-size",
    metavar="SIZE",
    default="5GB",
    show_default=True,
    callback=_bytes,
    help="The largest file; more than one file come with an index.",
)
@options.output_format("text", "json")
@options.jobs
@options.quiet
@options.color
def command(
    checkpoint: str, out: str, max_shard_size: int, output_format: str, jobs: int | None, quiet: bool, color: str
) -> int:
    """Write the weights of CKPT (FSDP, torch.distributed.checkpoint, DeepSpeed ZeRO, shards) as safetensors into OUT.

    Neither torch nor the trainer is needed, and memory stays bounded.  Every tensor is read back and compared with its
    source by digest before OUT gets its name.  Config and tokenizer are copied; optimizer, scheduler and random states
    stay behind, and the report says so.  CKPT is a checkpoint, RUN@STEP, or a run (its newest good checkpoint).

    \b
        ckpt merge out/checkpoint-500 merged/
        ckpt merge out/global_step500 merged/ --max-shard-size 10GB

    \b
    Exit codes:
      0  OUT was written, and verified
      2  wrong usage
      3  a file could not be read or written; nothing is left of OUT
      4  CKPT does not exist, or holds no checkpoint
      5  refused: OUT exists, too little space, or the weights are damaged or not all there
    """
    from ckpt_tools.ops.merge import merge

    report = merge(checkpoint, out, max_shard_size=max_shard_size, jobs=jobs, progress=console.progress(quiet))
    if output_format == "json":
        from ckpt_tools.render import json

        console.write(json.render(report))
    elif not quiet:
        from ckpt_tools.render import text

        console.write(text.render(report, root=checkpoint, color=console.use_color(color), width=console.width()))
    return report.exit_code
