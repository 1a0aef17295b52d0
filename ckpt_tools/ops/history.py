"""``ckpt history``: did the training go on where it had stopped?"""

from __future__ import annotations

from ckpt_tools._version import __version__
from ckpt_tools.core.errors import NothingFoundError
from ckpt_tools.core.progress import SILENT, Progress
from ckpt_tools.layouts.match import open_run
from ckpt_tools.model.values import whole
from ckpt_tools.ops import logs
from ckpt_tools.ops.history_files import Facts, read
from ckpt_tools.ops.history_judge import Judge
from ckpt_tools.reports.history import HistoryReport


def history(path: str, *, every_row: bool = False, progress: Progress = SILENT) -> HistoryReport:
    """Join the logs of a run and judge its seams.

    Args:
        path: a run, a checkpoint, or one ``trainer_state.json`` or ``trainer_log.jsonl``.
        every_row: show all rows in text, not a choice of them.
        progress: where progress is announced.

    Raises:
        NothingFoundError: no such path, or nothing is logged or counted there.
        UsageError: several trainings lie below ``path``.
    """
    run = open_run(path)
    facts = read(run, progress)
    if not (facts.sources or facts.unreadable or any(point.tells for point in facts.stored)):
        raise NothingFoundError(f"{run.root}: no log and no step count in it", hint="`ckpt info` shows what there is")
    return judged(run.root, run.layout, facts, every_row)


def judged(root: str, layout: str, facts: Facts, every_row: bool = False) -> HistoryReport:
    """Join the logs that were read, and judge the places at which they were taken up again."""
    joined = logs.join(facts.logs)
    judge = Judge(facts, joined, facts.named)
    seams = judge.found()
    total = whole(facts.state.get("max_steps"))
    return HistoryReport(
        __version__,
        root,
        layout,
        tuple(facts.sources),
        tuple(joined.rows),
        tuple(facts.stored),
        tuple(seams),
        (*facts.notes, *judge.notes, *judge.remarks(seams)),
        facts.named if facts.kind in (None, "LambdaLR") or facts.named is None else facts.kind,
        total if total and total > 0 else None,
        tuple(facts.unreadable),
        tuple(facts.damaged),
        every_row,
    )
