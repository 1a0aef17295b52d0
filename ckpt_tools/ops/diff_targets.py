"""What the two sides of a comparison are: a file, a checkpoint, the newest good one of a run, or ``RUN@STEP``."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ckpt_tools.core.progress import SILENT, Progress
from ckpt_tools.layouts.match import is_export, is_file, open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Checkpoint, Run
from ckpt_tools.model.findings import Purpose
from ckpt_tools.ops import numbered


@dataclass(frozen=True, slots=True)
class Target:
    """One side: ``path`` as the user would type it, ``taken`` why it is this checkpoint where the user named a run.

    ``file`` is set where the user named one file: nothing else of its checkpoint is looked at.
    """

    path: str
    view: View
    file: bool
    run: Run
    taken: str | None = None


def find(words: str, progress: Progress = SILENT) -> Target:
    """Return what ``words`` name.

    Raises:
        NothingFoundError: no such path, no checkpoint there, or none of that step.
    """
    meant = numbered.find(words)
    if meant is not None:
        return _target(*meant, None)
    run = open_run(words)
    if run.single:
        return Target(words, View(run.checkpoints[0]), is_file(run), run)
    return _newest(run, words, progress)


def _newest(run: Run, words: str, progress: Progress) -> Target:
    from ckpt_tools.ops.latest import latest  # the whole catalogue of rules, which only a run needs

    saved = [checkpoint for checkpoint in run.checkpoints if not is_export(run, checkpoint)]
    by_path = {numbered.place(run, checkpoint): checkpoint for checkpoint in run.checkpoints}
    for purpose, why in ((Purpose.RESUME, "the newest to resume from"), (Purpose.INFERENCE, "the newest that loads")):
        report = latest(words, purpose=purpose, progress=progress)
        if report.path in by_path:
            skipped = f", {len(report.passed)} newer passed over" if report.passed else ""
            return _target(run, by_path[report.path], f"{why}{skipped}")
    chosen = max(saved or run.checkpoints, key=lambda checkpoint: (checkpoint.step or -1, checkpoint.path))
    return _target(run, chosen, "the newest; none of the run is whole")


def _target(run: Run, checkpoint: Checkpoint, taken: str | None) -> Target:
    file = os.path.isfile(os.path.join(run.root, checkpoint.path))
    return Target(numbered.place(run, checkpoint), View(checkpoint), file, run, taken)
