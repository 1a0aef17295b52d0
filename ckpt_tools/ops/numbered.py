"""``RUN@STEP``: the checkpoint of a run that is named by a number, or is of that step."""

from __future__ import annotations

import os
import re

from ckpt_tools.core.errors import NothingFoundError
from ckpt_tools.layouts.match import is_prefix, open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Run
from ckpt_tools.reports.units import first_names

_AT = re.compile(r"(?P<path>.+)@(?P<step>\d{1,18})\Z", re.DOTALL)


def named(words: str) -> str:
    """Return the path of the checkpoint that ``words`` name: themselves, where they are no ``RUN@STEP``.

    Raises:
        NothingFoundError: there is no checkpoint of that step.
    """
    found = find(words)
    return words if found is None else place(*found)


def find(words: str) -> tuple[Run, Checkpoint] | None:
    """Return the run and the checkpoint that ``RUN@STEP`` names, None where the words are a path.

    The number is that of a name; where no name has it, it is the step that a checkpoint states.

    Raises:
        NothingFoundError: there is no such run, or no such checkpoint in it.
    """
    match = None if os.path.lexists(words) or is_prefix(words) else _AT.match(words)
    if match is None:
        return None
    run, step = open_run(match["path"]), int(match["step"])
    found = [checkpoint for checkpoint in run.checkpoints if checkpoint.step == step]
    if found:
        return run, found[-1]
    stated = [(View(checkpoint).step, checkpoint) for checkpoint in run.checkpoints]
    found = [checkpoint for number, checkpoint in stated if number == step]
    if found:
        return run, found[-1]
    either = (each.step if number is None else number for number, each in stated)
    steps = dict.fromkeys(f"{number}" for number in either if number is not None)
    raise NothingFoundError(
        f"{match['path']}: no checkpoint of step {step}", hint=f"there are: {first_names(steps)}" if steps else None
    )


def place(run: Run, checkpoint: Checkpoint) -> str:
    """Return where a checkpoint of a run lies, in the words of the user."""
    return run.root if checkpoint.path == "." else os.path.join(run.root, checkpoint.path)
