"""What an edit did, would do, or took back: one shape for every command that writes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ckpt_tools.reports.base import Block, Table, Text
from ckpt_tools.reports.units import count, human_bytes, human_rate

SCHEMA = "ckpt-tools/edit/1"


@dataclass(frozen=True, slots=True)
class Change:
    """A value at a key path of a file; ``None`` stands for one that is not there."""

    path: str
    key: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Rates:
    """The learning rates that a step will use, one per parameter group, with and without the edit.

    ``step_before`` is what the same step would be called without an edit that sets the step.
    """

    step: int
    before: tuple[float, ...]
    after: tuple[float, ...]
    step_before: int | None = None


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file before and after; ``None`` stands for one that is not there.  Times are in nanoseconds."""

    path: str
    size_before: int | None
    size_after: int | None
    mtime_before_ns: int | None = None
    mtime_after_ns: int | None = None


@dataclass(frozen=True, slots=True)
class PastEdit:
    """An edit of the journal; ``state`` is ``pending``, ``done``, ``undoing`` or ``undone``."""

    number: int
    state: str
    time: str
    tool: str
    title: str
    command: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EditReport:
    """An edit that was applied, or with ``applied`` False only planned.

    ``rates`` are those of the next steps where they are known.  ``notes`` are lines that a person should read
    besides.  ``edits`` is the journal, where that was asked for.  ``undo`` is the path that ``ckpt undo`` takes.
    """

    tool: str
    root: str
    title: str
    applied: bool
    changes: tuple[Change, ...] = ()
    rates: tuple[Rates, ...] = ()
    scheduler: str | None = None
    files: tuple[FileChange, ...] = ()
    bytes_written: int = 0
    notes: tuple[str, ...] = ()
    edits: tuple[PastEdit, ...] | None = None
    undo: str = ""

    @property
    def exit_code(self) -> int:
        return 0

    def blocks(self) -> Sequence[Block]:
        if self.edits is not None:
            return [journal_table(self.edits)]
        blocks: list[Block] = [Text((self.title,), "heading")]
        if self.changes:
            rows = tuple((c.path, c.key, _value(c.old), _value(c.new)) for c in self.changes)
            blocks.append(Table(("file", "key", "before", "after"), rows))
        if self.rates:
            blocks.append(_rates_table(self.rates))
        if self.files:
            files = tuple((f.path, _size(f.size_before), _size(f.size_after), *_times(f)) for f in self.files)
            blocks.append(Table(("file", "size before", "size after", "changed", "now"), files, frozenset({1, 2})))
        if self.notes:
            blocks.append(Text(self.notes))
        blocks.append(Text((self._last_line(),), "good" if self.applied else "faint"))
        return blocks

    def _last_line(self) -> str:
        files = count(len(self.files), "file")
        size = human_bytes(self.bytes_written)
        if not self.applied:
            return f"nothing was changed ({size} in {files} would be)"
        back = f"; `ckpt undo {shlex.quote(self.undo)}` takes it back" if self.undo else ""
        return f"done: {size} written in {files}{back}"

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "tool": self.tool,
            "root": self.root,
            "title": self.title,
            "applied": self.applied,
            "scheduler": self.scheduler,
            "changes": [{"path": c.path, "key": c.key, "old": c.old, "new": c.new} for c in self.changes],
            "rates": [
                {
                    "step": rate.step,
                    **({} if rate.step_before is None else {"step_before": rate.step_before}),
                    "before": list(rate.before),
                    "after": list(rate.after),
                }
                for rate in self.rates
            ],
            "files": [
                {
                    "path": file.path,
                    "size_before": file.size_before,
                    "size_after": file.size_after,
                    "mtime_before_ns": file.mtime_before_ns,
                    "mtime_after_ns": file.mtime_after_ns,
                }
                for file in self.files
            ],
            "bytes_written": self.bytes_written,
            "notes": list(self.notes),
        }
        if self.edits is not None:
            document["edits"] = [edit_document(edit) for edit in self.edits]
        return document


def edit_document(edit: PastEdit) -> Mapping[str, Any]:
    """Return an edit of the journal as JSON documents show it."""
    return {
        "number": edit.number,
        "state": edit.state,
        "time": edit.time,
        "tool": edit.tool,
        "title": edit.title,
        "command": edit.command,
        "paths": list(edit.paths),
    }


def journal_table(edits: tuple[PastEdit, ...]) -> Block:
    """Return the edits of a journal as people read them."""
    if not edits:
        return Text(("no edits",))
    rows = tuple((str(edit.number), edit.state, edit.time, edit.tool, edit.title) for edit in edits)
    return Table(("edit", "state", "when", "version", "what"), rows, frozenset({0}))


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return human_rate(value) if isinstance(value, float) else str(value)


def _rates_table(rates: tuple[Rates, ...]) -> Block:
    if all(rate.step_before in (None, rate.step) for rate in rates):
        rows = tuple((f"{rate.step:,}", _rates(rate.before), _rates(rate.after)) for rate in rates)
        return Table(("step", "rate before", "rate after"), rows, frozenset({0}))
    moved = tuple(
        (
            f"{rate.step_before or 0:,}" if rate.before else "-",
            _rates(rate.before),
            f"{rate.step:,}" if rate.after else "-",
            _rates(rate.after),
        )
        for rate in rates
    )
    return Table(("step before", "rate before", "step after", "rate after"), moved, frozenset({0, 2}))


def _rates(rates: tuple[float, ...]) -> str:
    return ", ".join(map(human_rate, rates)) or "-"


def _size(size: int | None) -> str:
    return "-" if size is None else f"{size:,}"


def _times(file: FileChange) -> tuple[str, str]:
    return _time(file.mtime_before_ns), _time(file.mtime_after_ns)


def _time(when: int | None) -> str:
    return "-" if when is None else datetime.fromtimestamp(when // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
