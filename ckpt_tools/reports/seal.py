"""What ``ckpt seal`` did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from ckpt_tools.model.findings import Finding
from ckpt_tools.model.manifest import Changes, FileChange
from ckpt_tools.reports.base import Block, Diagnostics, Text
from ckpt_tools.reports.units import count, first_names, human_bytes
from ckpt_tools.reports.verify import finding_document

SCHEMA = "ckpt-tools/seal/1"


@dataclass(frozen=True, slots=True)
class SealedCheckpoint:
    """One checkpoint.

    ``status`` is ``sealed``, ``unchanged`` (it was sealed before and nothing differs), ``refused`` or ``unreadable``.
    ``again`` says that there was a manifest before; ``changes`` are what differs from it.
    """

    path: str
    manifest: str
    status: str = "refused"
    step: int | None = None
    files: int = 0
    tensors: int = 0
    size: int = 0
    again: bool = False
    changes: Changes = field(default_factory=Changes)
    findings: tuple[Finding, ...] = ()
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SealReport:
    """All checkpoints of a run, or the one that was named."""

    tool: str
    root: str
    checkpoints: tuple[SealedCheckpoint, ...]
    bytes_read: int = 0
    seconds: float = 0.0
    single: bool = False

    @property
    def exit_code(self) -> int:
        """Return 3 when something could not be read, 5 when something was refused, else 0."""
        states = {checkpoint.status for checkpoint in self.checkpoints}
        return 3 if "unreadable" in states else 5 if "refused" in states else 0

    def blocks(self) -> Sequence[Block]:
        findings = tuple(finding for checkpoint in self.checkpoints for finding in checkpoint.findings)
        blocks: list[Block] = [Diagnostics(findings)] if findings else []
        for status, group in groupby(self.checkpoints, key=lambda each: each.status):
            blocks.append(Text(tuple(line for each in group for line in self._lines(each)), _STYLES[status]))
        blocks.append(Text((f"{human_bytes(self.bytes_read)} read in {self.seconds:.2f} s",), "faint"))
        return blocks

    def _lines(self, each: SealedCheckpoint) -> Iterator[str]:
        name = self.root if each.path == "." else each.path
        if each.status in ("refused", "unreadable"):
            yield f"not sealed: {name}"
            yield from (f"  {reason}" for reason in each.reasons)
            if each.status == "refused" and each.findings:
                yield "  --force seals it all the same"
        else:
            held = f"{count(each.files, 'file')}, {count(each.tensors, 'tensor')}, {human_bytes(each.size)}"
            word = "sealed before, nothing changed" if each.status == "unchanged" else "sealed"
            yield f"{word}: {name} ({held}), in {each.manifest}"
        yield from (f"  {note}" for note in each.notes)
        yield from (f"  {line}" for line in change_lines(each.changes))

    def document(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "tool": self.tool,
            "root": self.root,
            "checkpoints": [_document(each) for each in self.checkpoints],
            "summary": {"bytes_read": self.bytes_read, "seconds": round(self.seconds, 3)},
        }


_WORDS = (("bytes", "changed"), ("form", "of another shape or type"), ("missing", "gone"), ("extra", "new"))
_STYLES = {"sealed": "good", "unchanged": "good", "refused": "bad", "unreadable": "bad"}


def change_lines(changes: Changes) -> Iterator[str]:
    """Say in words what changed since the last seal."""
    if changes.any:
        yield "since it was sealed before:"
    if changes.missing:
        yield f"  removed: {first_names(changes.missing)}"
    if changes.extra:
        yield f"  added: {first_names(changes.extra)}"
    for change in changes.changed:
        yield f"  changed: {change.path}: {', '.join(_how(change))}"


def _how(change: FileChange) -> Iterator[str]:
    if change.resized:
        yield f"had {change.then:,} bytes, has {change.now:,}"
    for how, word in _WORDS:
        names = [tensor.name for tensor in change.tensors if tensor.how == how]
        if names:
            yield f"{count(len(names), 'tensor')} {word} ({first_names(names, 3)})"
    if change.between:
        yield f"{count(sum(length for _, length in change.between), 'byte')} outside of tensors in runs that changed"
    elif not change.tensors and not change.resized:
        yield "other bytes"


def _document(each: SealedCheckpoint) -> dict[str, Any]:
    return {
        "path": each.path,
        "status": each.status,
        "manifest": each.manifest,
        "step": each.step,
        "files": each.files,
        "tensors": each.tensors,
        "bytes": each.size,
        "sealed_before": each.again,
        "changes": {
            "removed": list(each.changes.missing),
            "added": list(each.changes.extra),
            "changed": [
                {
                    "path": change.path,
                    "size": [change.then, change.now],
                    "same_time": change.quiet,
                    "tensors": [{"name": tensor.name, "how": tensor.how} for tensor in change.tensors],
                }
                for change in each.changes.changed
            ],
        },
        "reasons": list(each.reasons),
        "findings": [finding_document(finding) for finding in each.findings],
    }
