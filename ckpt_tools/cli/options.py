"""Options that several commands share, each one a decorator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ckpt_tools.model.findings import Purpose, Severity

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]


def output_format(*formats: str) -> Decorator[Any]:
    """Return ``--format`` with the formats that a command has; the first is the default."""
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help="How results are written to stdout.",
    )


def purpose(default: Purpose | None, text: str) -> Decorator[Any]:
    """Return ``--for``, what the checkpoint is wanted for."""
    return click.option(
        "--for",
        "purpose",
        type=click.Choice([str(each) for each in Purpose]),
        default=str(default) if default else None,
        show_default=default is not None,
        callback=lambda _context, _parameter, value: Purpose(value) if value else None,
        help=text,
    )


def _codes(_context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Split comma lists and require that each word is the beginning of a rule's code."""
    words = tuple(word.strip().upper() for value in values for word in value.split(",") if word.strip())
    if any(values) and not words:
        raise click.BadParameter("no code given")
    if words:
        from ckpt_tools.rules import CATALOGUE

        for word in words:
            if not word.startswith("CK") or not any(rule.code.startswith(word) for rule in CATALOGUE):
                raise click.BadParameter(f"{word!r} is no rule's code, nor the beginning of one")
    return words


def _finite(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter("must be a number of seconds")
    return value


select = click.option(
    "--select",
    multiple=True,
    metavar="CODES",
    callback=_codes,
    help="Report only these rules: codes or beginnings of codes (CK203,CK5); may be repeated.",
)
ignore = click.option(
    "--ignore",
    multiple=True,
    metavar="CODES",
    callback=_codes,
    help="Leave these rules out; what could not be interpreted at all (fatal) is always reported.",
)
fail_on = click.option(
    "--fail-on",
    type=click.Choice([severity.label for severity in Severity]),
    default=Severity.ERROR.label,
    show_default=True,
    callback=lambda _context, _parameter, value: Severity[value.upper()],
    help="The least severity that makes the exit code 1.",
)
settle = click.option(
    "--settle",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=60.0,
    show_default=True,
    callback=_finite,
    help="Take an unfinished newest checkpoint for one being saved while a file of it is younger than this; 0: never.",
)
allow_in_progress = click.option(
    "--allow-in-progress", is_flag=True, help="A checkpoint that is being saved is a note, not an error."
)
world_size = click.option(
    "--world-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="The number of ranks that a resume is planned for; per-rank files are checked against it.",
)
deep = click.option(
    "--deep", is_flag=True, help="Also read every byte: stored checksums, NaN and Inf, lost pages, impossible values."
)
sample = click.option(
    "--sample",
    metavar="SHARE",
    help="With --deep, read only a share: 1/7 to 7/7 are seven parts, 5% is another twentieth every day.",
)
jobs = click.option(
    "-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Threads that read; as many as processors by default."
)
against = click.option(
    "--against",
    metavar="MANIFEST",
    help="Compare with this manifest (`ckpt seal`) and not with the checkpoint's own; PATH is then one checkpoint.",
)
sealed_data = click.option(
    "--data",
    "data",
    multiple=True,
    metavar="PATH",
    help="Compare this training data with what was sealed (`ckpt seal --data`); may be repeated.",
)
load = click.option(
    "--load",
    is_flag=True,
    help="Also load every file with its own library, in a child process (torch: always with weights_only=True).",
)
quiet = click.option("-q", "--quiet", is_flag=True, help="Say only what was asked for, and show no progress.")
color = click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Colours in text; auto: on a terminal, unless NO_COLOR is set.",
)
