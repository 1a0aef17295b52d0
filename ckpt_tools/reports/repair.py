"""What ``ckpt repair`` would do, or did: the fixes, what is left, and after writing what ``verify`` says."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_tools.model.findings import Severity
from ckpt_tools.reports.base import Block, Table, Text
from ckpt_tools.reports.edit import Change, EditReport, FileChange
from ckpt_tools.reports.units import count, human_bytes
from ckpt_tools.reports.verify import VerifyReport

WAITING, UNSAFE, DONE, REFUSED = "waiting", "needs --unsafe", "done", "cannot be made"


@dataclass(frozen=True, slots=True)
class Repair:
    """One fix.  ``state`` is one of the four words above; ``reason`` says why it cannot be made.

    ``moves`` are the names that change, ``(old, new)``, ``writes`` the files that are written.  ``checkpoint`` is what
    ``ckpt undo`` takes.  ``backward`` is that an earlier edit is taken back by it.
    """

    checkpoint: str
    code: str
    path: str
    found: str
    title: str
    safe: bool
    kind: str
    state: str
    reason: str | None = None
    changes: tuple[Change, ...] = ()
    moves: tuple[tuple[str, str], ...] = ()
    writes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    bytes_written: int = 0
    severity: Severity = Severity.ERROR
    backward: bool = False


@dataclass(frozen=True, slots=True)
class Left:
    """A finding that no fix is known for, and the way out."""

    code: str
    path: str
    message: str
    way_out: str


@dataclass(frozen=True, slots=True)
class RepairReport:
    """The fixes in the order in which they are made, and what is left without one."""

    tool: str
    root: str
    applied: bool
    repairs: tuple[Repair, ...]
    left: tuple[Left, ...] = ()
    files: tuple[FileChange, ...] = ()
    notes: tuple[str, ...] = ()
    after: VerifyReport | None = None

    @property
    def waiting(self) -> int:
        """How many fixes wait; unsafe ones of what is only a note do not count."""
        unsafe = [each for each in self.repairs if each.state == UNSAFE and each.severity > Severity.NOTE]
        return len(unsafe) + sum(repair.state == WAITING for repair in self.repairs)

    @property
    def exit_code(self) -> int:
        """Return 1 when fixes wait; after writing 0 when ``verify`` finds no error any more."""
        if self.applied and self.after is not None:
            return self.after.exit_code()
        return 1 if self.waiting else 0

    def blocks(self) -> Sequence[Block]:
        blocks: list[Block] = []
        for repair in self.repairs:
            blocks += _repair(repair)
        if self.left:
            rows = tuple((left.code, left.path, left.message, left.way_out) for left in self.left)
            blocks.append(Table(("code", "where", "cannot be repaired", "way out"), rows))
        if self.notes:
            blocks.append(Text(self.notes))
        blocks.append(self._closing())
        if self.after is not None:
            blocks.append(Text(("", "ckpt verify says now:"), "heading"))
            blocks += self.after.blocks()
        return blocks

    def _closing(self) -> Text:
        safe = sum(repair.state == WAITING for repair in self.repairs)
        unsafe = sum(repair.state == UNSAFE for repair in self.repairs)
        if self.applied:
            made = [repair for repair in self.repairs if repair.state == DONE]
            undo = f"; {self._undo(made)}" if made else ""
            line = f"{count(len(made), 'fix', 'fixes')} made{undo}"
            return Text((line,), "good" if made else "faint")
        if not safe and not unsafe:
            return Text(("nothing that can be repaired",), "faint")
        words = [f"{count(safe, 'fix', 'fixes')} with --write"] if safe else []
        words += [f"{count(unsafe, 'fix', 'fixes')} with --write --unsafe"] if unsafe else []
        return Text((f"nothing was changed; would make {' and '.join(words)}",), "faint")

    def _undo(self, made: Sequence[Repair]) -> str:
        """Return the commands that take fixes back, the last one first."""
        edits = [repair for repair in made if not repair.backward]
        if not edits:
            return "an edit that was taken back needs no undo"
        paths = dict.fromkeys(os.path.normpath(os.path.join(self.root, repair.checkpoint)) for repair in edits[::-1])
        commands = ", ".join(f"`ckpt undo {shlex.quote(path)}`" for path in paths)
        if len(edits) == 1:
            return f"{commands} takes it back"
        return f"{commands} take{'s' if len(paths) == 1 else ''} them back, one at a time and the newest first"

    def document(self) -> dict[str, Any]:
        done = [repair for repair in self.repairs if repair.state == DONE]
        shown = done if self.applied else [repair for repair in self.repairs if repair.state in (WAITING, UNSAFE)]
        edit = EditReport(
            self.tool,
            self.root,
            "repair",
            self.applied,
            tuple(change for repair in shown for change in repair.changes),
            files=self.files,
            bytes_written=sum(repair.bytes_written for repair in shown),
            notes=self.notes,
        )
        return {
            **edit.document(),
            "fixes": [_document(repair) for repair in self.repairs],
            "left": [
                {"code": left.code, "path": left.path, "message": left.message, "way_out": left.way_out}
                for left in self.left
            ],
            "verify": self.after.document() if self.after is not None else None,
        }


def _repair(repair: Repair) -> Iterator[Block]:
    grade = "safe" if repair.safe else "unsafe: look first"
    code = f"{repair.code}: " if repair.code else ""
    place = repair.path or repair.checkpoint
    yield Text((f"{place}: {code}{repair.found}",), "heading")
    lines = [f"  fix ({grade}): {repair.title} - {repair.state}"]
    if repair.reason:
        lines.append(f"    {repair.reason}")
    lines += [f"    {old} -> {new}" for old, new in repair.moves]
    if repair.writes:
        size = f" ({human_bytes(repair.bytes_written)})" if repair.bytes_written else ""
        lines.append(f"    {'writes' if size else 'changes'} {', '.join(repair.writes)}{size}")
    lines += [f"    {change.path}: {change.key}: {change.old!r} -> {change.new!r}" for change in repair.changes]
    lines += [f"    {note}" for note in repair.notes]
    yield Text(tuple(lines), "bad" if repair.state == REFUSED else "plain")


def _document(repair: Repair) -> dict[str, Any]:
    return {
        "checkpoint": repair.checkpoint,
        "code": repair.code,
        "path": repair.path,
        "found": repair.found,
        "title": repair.title,
        "safe": repair.safe,
        "kind": repair.kind,
        "state": repair.state,
        "severity": repair.severity.label,
        "reason": repair.reason,
        "moves": [{"from": old, "to": new} for old, new in repair.moves],
        "writes": list(repair.writes),
        "bytes_written": repair.bytes_written,
        "notes": list(repair.notes),
    }
