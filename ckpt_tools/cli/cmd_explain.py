"""``ckpt explain``."""

from __future__ import annotations

import click

from ckpt_tools.cli import console, options


@click.command("explain", short_help="Explain a rule or a loader's error message.")
@click.argument("words", metavar="TEXT...", nargs=-1, required=True)
@options.output_format("text", "json")
@options.color
def command(words: tuple[str, ...], output_format: str, color: str) -> int:
    """Explain a rule by its code or name, or an error message that a loader printed.

    \b
        ckpt explain CK203
        ckpt explain "failed finding central directory"

    \b
    Exit codes:
      0  explained
      1  nothing is known about it
      4  there is no such code
      2  wrong usage
    """
    from ckpt_tools.ops.explain import explain

    report = explain(" ".join(words))
    if output_format == "json":
        from ckpt_tools.render import json

        console.write(json.render(report))
    else:
        from ckpt_tools.render import text

        console.write(text.render(report, color=console.use_color(color), width=console.width()))
    return report.exit_code
