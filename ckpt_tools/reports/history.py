"""What ``ckpt history`` found: one table of all logs of a run, and the seams in it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ckpt_tools.reports.base import Block, Fields, Table, Text
from ckpt_tools.reports.curves import Figure, Mark, Panel, series
from ckpt_tools.reports.units import count, first_names

SCHEMA = "ckpt-tools/history/1"
SHOWN_ROWS = 24
SHOWN_METRICS = 2
SHOWN_NOTES = 12
MOST_COLUMNS = 200
_UNTOLD = ("_runtime", "_per_second", "_time", "_model_preparation_time")


class State(StrEnum):
    """What one sign says about a seam."""

    CONTINUOUS = "continuous"
    BROKEN = "broken"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Row:
    """All that is logged for one step; ``values`` are the measures beside loss and learning rate."""

    step: int
    epoch: float | None
    loss: float | None
    rate: float | None
    values: Mapping[str, float]
    source: str

    @property
    def trains(self) -> bool:
        return self.loss is not None or self.rate is not None

    def measure(self, name: str) -> float | None:
        return self.loss if name == "loss" else self.rate if name == "learning_rate" else self.values.get(name)


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was joined: its path in the run, how far it goes, and what was wrong with it."""

    path: str
    step: int | None
    entries: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """The counters and rates that one checkpoint holds, ``total`` being the steps that were planned then."""

    path: str
    step: int | None
    optimizer_step: float | None
    scheduler_step: float | None
    rate: float | None
    total: int | None

    @property
    def counts(self) -> bool:
        """Whether it has a counter that shows a restart."""
        return self.optimizer_step is not None or self.scheduler_step is not None

    @property
    def tells(self) -> bool:
        return self.counts or self.step is not None


@dataclass(frozen=True, slots=True)
class Sign:
    """One thing that a good resume leaves continuous: ``loss``, ``rate``, ``step`` or ``optimizer``."""

    name: str
    state: State
    text: str


@dataclass(frozen=True, slots=True)
class Seam:
    """A place between ``step`` and the next one where a training was, or must have been, taken up again.

    ``evidence`` says by what it is known; ``resumed`` is False where only a break in the curves speaks for it.
    """

    step: int
    checkpoint: str | None
    resumed: bool
    evidence: tuple[str, ...]
    signs: tuple[Sign, ...]

    @property
    def continuous(self) -> bool:
        return all(sign.state is not State.BROKEN for sign in self.signs)


@dataclass(frozen=True, slots=True)
class Note:
    """Something about the log that is told beside the seams; ``breaks`` when it is a discontinuity itself."""

    kind: str
    message: str
    step: int | None = None
    breaks: bool = False


@dataclass(frozen=True, slots=True)
class HistoryReport:
    """The joined history; ``total`` is the number of steps that the newest state plans."""

    tool: str
    root: str
    layout: str
    sources: tuple[Source, ...]
    rows: tuple[Row, ...]
    stored: tuple[Stored, ...]
    seams: tuple[Seam, ...]
    notes: tuple[Note, ...]
    schedule: str | None = None
    total: int | None = None
    unreadable: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    every_row: bool = False

    @property
    def continuous(self) -> bool:
        return all(seam.continuous for seam in self.seams) and not any(note.breaks for note in self.notes)

    @property
    def judged(self) -> bool:
        """Whether there is a log, or a counter beside the steps: else nothing would show a break."""
        return bool(self.rows or self.sources) or any(point.counts for point in self.stored)

    def exit_code(self, check: bool) -> int:
        """0; 3 when a file could not be read; with ``check`` 1 for a discontinuity or a log that cannot be decoded.

        With ``check`` also 3 where there is nothing to judge by.
        """
        if self.unreadable or (check and not self.judged):
            return 3
        return 1 if check and (self.damaged or not self.continuous) else 0

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures beside loss and rate, in the order in which they were first logged."""
        names = dict.fromkeys(name for row in self.rows for name in row.values)
        return tuple(names)[:MOST_COLUMNS]

    # For people --------------------------------------------------------------------------------------------

    def blocks(self) -> Sequence[Block]:
        found: list[Block] = [Text(tuple(self._head()), "heading")]
        if self.rows:
            found.append(self._table())
        elif self.stored:
            found.append(self._counters())
        for seam in self.seams:
            found.append(Text((_seam_line(seam),), "plain" if seam.continuous else "bad"))
            found.append(Fields(tuple((f"  {sign.name}", f"{_WORDS[sign.state]}{sign.text}") for sign in seam.signs)))
        if self.notes:
            loud = [note for note in self.notes if note.breaks]
            quiet = [note for note in self.notes if not note.breaks]
            lines = [*(f"broken: {note.message}" for note in loud), *(f"note: {note.message}" for note in quiet)]
            more = [f"... and {len(lines) - SHOWN_NOTES:,} more"] if len(lines) > SHOWN_NOTES else []
            found.append(Text((*lines[:SHOWN_NOTES], *more), "bad" if loud else "plain"))
        if not self.judged:
            found.append(Text(("not judged: nothing is stored that would show how a resume went",)))
        else:
            found.append(Text((self._verdict(),), "good" if self.continuous else "bad"))
        return found

    def brief(self) -> Iterator[str]:
        """Yield one line for every sign of a break, and nothing where all is continuous."""
        for seam in self.seams:
            for sign in seam.signs:
                if sign.state is State.BROKEN:
                    yield f"after step {seam.step:,}: {sign.name} {sign.text}"
        yield from (note.message for note in self.notes if note.breaks)

    def _head(self) -> Iterator[str]:
        if self.rows:
            total = f" of {self.total:,}" if self.total else ""
            schedule = f", {self.schedule} schedule" if self.schedule else ""
            steps = f"steps {self.rows[0].step:,} to {self.rows[-1].step:,}{total}"
            yield f"{steps}, {count(len(self.rows), 'logged step')}{schedule}"
        else:
            what = "only stored counters can be compared" if self.judged else "the steps are those of the checkpoints"
            yield f"no step is logged: {what}"
        if self.sources:
            yield f"joined from {first_names([each.path for each in self.sources], 6)}"

    def _counters(self) -> Table:
        rows = tuple(
            (
                each.path,
                _number(each.step),
                _number(each.optimizer_step),
                _number(each.scheduler_step),
                _number(each.rate),
            )
            for each in self.stored
        )
        columns = ("checkpoint", "step", "optimizer steps", "scheduler steps", "learning rate")
        return Table(columns, rows, frozenset(range(1, 5)))

    def _table(self) -> Table:
        names = [name for name in self.measures if name.startswith("eval_") and not name.endswith(_UNTOLD)]
        names.sort(key=lambda name: name != "eval_loss")
        names = names[:SHOWN_METRICS]
        shown: list[tuple[str, ...]] = []
        places = self._seam_places()
        chosen = self._chosen(places)
        for place in chosen:
            row = self.rows[place]
            numbers = [_number(row.loss), _number(row.rate), *(_number(row.values.get(name)) for name in names)]
            shown.append((f"{row.step:,}", _number(row.epoch), *numbers, _mark(places.get(place))))
        left = len(self.rows) - len(chosen)
        title = f"{len(chosen):,} of {len(self.rows):,} rows; --all shows all" if left else ""
        columns = ("step", "epoch", "loss", "learning rate", *names, "")
        return Table(columns, tuple(shown), frozenset(range(4 + len(names))), title)

    def _chosen(self, places: Mapping[int, Seam]) -> list[int]:
        """Return the places of the rows to show: evenly spread, and those around every seam."""
        size = len(self.rows)
        if self.every_row or size <= SHOWN_ROWS:
            return list(range(size))
        near = [place + offset for place in places for offset in (-2, -1, 0, 1)][:SHOWN_ROWS]
        room = max(6, SHOWN_ROWS - len(near))
        even = [round(number * (size - 1) / (room - 1)) for number in range(room)]
        return sorted({place for place in (*near, *even) if 0 <= place < size})

    def _seam_places(self) -> dict[int, Seam]:
        """Return the place of the first row after every seam."""
        steps = [row.step for row in self.rows]
        places = ((bisect_right(steps, seam.step), seam) for seam in self.seams)
        return {place: seam for place, seam in places if place < len(steps)}

    def _verdict(self) -> str:
        resumes = sum(seam.resumed for seam in self.seams)
        seen = f"{count(resumes, 'resume')} seen" if resumes else "no sign of a resume"
        if self.continuous:
            return f"continuous: {seen}"
        bad = sum(not seam.continuous for seam in self.seams)
        where = f" at {count(bad, 'seam')}" if bad else ""
        return f"not continuous{where}: {seen}"

    def figure(self) -> Figure:
        """Return the curves of loss and learning rate, the evaluation loss beside the training loss."""
        rows = self.rows
        loss = [series("loss", ((row.step, row.loss) for row in rows))]
        if "eval_loss" in self.measures:
            loss.append(series("eval_loss", ((row.step, row.values.get("eval_loss")) for row in rows)))
        rate = series("learning rate", ((row.step, row.rate) for row in rows))
        panels = [Panel("loss", tuple(each for each in loss if each.points)), Panel("learning rate", (rate,))]
        marks = tuple(
            Mark(seam.step, f"step {seam.step:,}" + ("" if seam.continuous else ": broken"), not seam.continuous)
            for seam in self.seams
        )
        return Figure(self.root, tuple(panel for panel in panels if panel.points), marks)

    # For programs ------------------------------------------------------------------------------------------

    def records(self) -> tuple[tuple[str, ...], Iterator[tuple[Any, ...]]]:
        """Return the columns of the table and its rows, one per step; what is not logged is None."""
        measures = self.measures
        places = self._seam_places()

        def rows() -> Iterator[tuple[Any, ...]]:
            for place, row in enumerate(self.rows):
                seam = places.get(place)
                word = None if seam is None else "continuous" if seam.continuous else "broken"
                values = (row.values.get(name) for name in measures)
                yield (row.step, row.epoch, row.loss, row.rate, *values, word, row.source)

        return ("step", "epoch", "loss", "learning_rate", *measures, "seam", "source"), rows()

    def document(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "tool": self.tool,
            "root": self.root,
            "layout": self.layout,
            "continuous": self.continuous if self.judged else None,
            "schedule": self.schedule,
            "total": self.total,
            "sources": [
                {"path": each.path, "step": each.step, "entries": each.entries, "note": each.note or None}
                for each in self.sources
            ],
            "checkpoints": [
                {
                    "path": each.path,
                    "step": each.step,
                    "optimizer_step": each.optimizer_step,
                    "scheduler_step": each.scheduler_step,
                    "learning_rate": each.rate,
                    "total": each.total,
                }
                for each in self.stored
            ],
            "rows": [
                {
                    "step": row.step,
                    "epoch": row.epoch,
                    "loss": row.loss,
                    "learning_rate": row.rate,
                    "values": dict(row.values),
                    "source": row.source,
                }
                for row in self.rows
            ],
            "seams": [
                {
                    "after_step": seam.step,
                    "checkpoint": seam.checkpoint,
                    "resumed": seam.resumed,
                    "continuous": seam.continuous,
                    "evidence": list(seam.evidence),
                    "signs": {sign.name: {"state": sign.state.value, "text": sign.text} for sign in seam.signs},
                }
                for seam in self.seams
            ],
            "notes": [
                {"kind": note.kind, "step": note.step, "breaks": note.breaks, "message": note.message}
                for note in self.notes
            ],
        }


_WORDS = {State.CONTINUOUS: "", State.BROKEN: "BROKEN: ", State.UNKNOWN: "not known: "}


def _seam_line(seam: Seam) -> str:
    what = "resumed" if seam.resumed else "a seam"
    where = f" ({seam.checkpoint})" if seam.checkpoint else ""
    why = f": {'; '.join(seam.evidence[:4])}" if seam.evidence else ""
    return f"{what} after step {seam.step:,}{where}{why}"


def _mark(seam: Seam | None) -> str:
    if seam is None:
        return ""
    return ("resumed" if seam.resumed else "a seam") + ("" if seam.continuous else ", broken")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
