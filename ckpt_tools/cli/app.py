"""The command group, and how errors become one line and an exit code."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from ckpt_tools._version import __version__
from ckpt_tools.cli.console import complain, settle_streams
from ckpt_tools.core.errors import CkptError

COMMANDS: tuple[str, ...] = (
    "verify",
    "info",
    "latest",
    "diff",
    "history",
    "seal",
    "checksum",
    "merge",
    "set-lr",
    "set-step",
    "repair",
    "undo",
    "explain",
)
"""The verbs, in the order in which ``ckpt --help`` lists them; each lives in ``cmd_<verb>.py``."""

USAGE = 2


class LazyGroup(click.Group):
    """A group that imports a command's module when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"ckpt_tools.cli.cmd_{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if word not in COMMANDS and not word.startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(word, COMMANDS, 1)
            tail = f"; did you mean {close[0]!r}?" if close else f" (there are: {', '.join(COMMANDS)})"
            raise click.UsageError(f"no such command: {word!r}{tail}", ctx)
        return super().resolve_command(ctx, args)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="ckpt %(version)s")
def ckpt() -> None:
    """Verify and inspect training checkpoints, and pick the one to resume from.

    Nothing in a checkpoint is ever run.  What a command changes, `ckpt undo` takes back.  Results go to stdout,
    everything else to stderr.

    \b
    Exit codes:
      0    clean, equal, found
      1    findings at or above --fail-on, differences, or no loadable checkpoint
      2    wrong usage
      3    could not finish looking (unreadable file, I/O error)
      4    a path that does not exist, or holds no checkpoint
      5    an edit was refused, or one is left unfinished
      130  interrupted
    """


def dispatch(words: list[str]) -> int:
    """Run one command line and return its exit code; the user's errors are printed, the tool's own are raised."""
    try:
        result = ckpt.main(words, prog_name="ckpt", standalone_mode=False)
        settle_streams()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show(sys.stderr)
        return USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "ckpt"
        complain(" ".join(error.format_message().split()), f"`{command} --help` shows how it is called")
        return USAGE
    except SystemExit:  # click's way to say that nobody reads the help any more
        return 0
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        complain(error.format_message())
        return error.exit_code
    except CkptError as error:
        complain(str(error), error.hint)
        return error.exit_code
    return result if isinstance(result, int) else 0
