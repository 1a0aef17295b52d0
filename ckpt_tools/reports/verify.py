"""What ``ckpt verify`` says of one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckpt_tools.model.findings import Finding, Purpose, Severity, Skipped, Verdict
from ckpt_tools.reports.base import Block, Diagnostics, Table, Text
from ckpt_tools.reports.units import count, human_bytes, human_rate

SCHEMA = "ckpt-tools/verify/1"


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """One checkpoint of a verified run; ``path`` is relative to the run, ``.`` when it is the run itself.

    A ``piece`` is one file of a checkpoint that was looked at alone.
    """

    path: str
    layouts: tuple[str, ...]
    step: int | None
    depth: str
    verdicts: Mapping[Purpose, Verdict]
    reasons: Mapping[Purpose, tuple[str, ...]]
    findings: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]
    files: int
    size: int
    epoch: float | None = None
    rate: float | None = None
    piece: bool = False


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """A verified run: its checkpoints in ascending order of step, and what was found about the run as a whole."""

    tool: str
    root: str
    layout: str
    checkpoints: tuple[CheckpointReport, ...]
    findings: tuple[Finding, ...] = ()
    files: int = 0
    size: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    single: bool = False
    unreadable: tuple[str, ...] = field(default_factory=tuple)

    def all_findings(self) -> Iterator[Finding]:
        """Yield every finding, those of the run last."""
        for checkpoint in self.checkpoints:
            yield from checkpoint.findings
        yield from self.findings

    def worst_first(self) -> list[Finding]:
        return sorted(self.all_findings(), key=lambda finding: (-finding.severity, finding.path, finding.code))

    def tally(self, severity: Severity) -> int:
        return sum(finding.severity is severity for finding in self.all_findings())

    def failed(self, fail_on: Severity = Severity.ERROR, purpose: Purpose | None = None) -> bool:
        """Return whether the exit code should be 1.

        With a ``purpose``, only findings that matter for it count, and a verdict of ``broken`` or ``in-progress``
        fails whatever the severities are; the model that a finished run exported is not judged for a resume.
        """
        if purpose is None:
            return any(finding.severity >= fail_on for finding in self.all_findings())
        judged = [
            checkpoint
            for checkpoint in self.checkpoints
            if purpose is Purpose.INFERENCE or not self._is_export(checkpoint)
        ]
        if any(checkpoint.verdicts[purpose] in (Verdict.BROKEN, Verdict.IN_PROGRESS) for checkpoint in judged):
            return True
        return any(
            finding.severity >= fail_on and finding.impact.on(purpose) is not Verdict.READY
            for finding in self.all_findings()
        )

    def _is_export(self, checkpoint: CheckpointReport) -> bool:
        return checkpoint.path == "." and not self.single

    def exit_code(self, fail_on: Severity = Severity.ERROR, purpose: Purpose | None = None) -> int:
        """Return 0, 1 or 3 as the table of exit codes says."""
        if self.unreadable:
            return 3
        return 1 if self.failed(fail_on, purpose) else 0

    def blocks(self) -> Sequence[Block]:
        blocks: list[Block] = []
        if self.checkpoints:
            blocks.append(self._table())
        findings = self.worst_first()
        if findings:
            blocks.append(Diagnostics(tuple(findings)))
        blocks.append(self._closing())
        return blocks

    def _table(self) -> Table:
        rows = [
            (
                checkpoint.path if checkpoint.path != "." else self.root,
                "-" if checkpoint.step is None else str(checkpoint.step),
                "-" if checkpoint.epoch is None else f"{checkpoint.epoch:.4g}",
                human_rate(checkpoint.rate),
                human_bytes(checkpoint.size),
                "-" if self._is_export(checkpoint) else _verdict(checkpoint, Purpose.RESUME),
                _verdict(checkpoint, Purpose.INFERENCE),
            )
            for checkpoint in self.checkpoints
        ]
        columns = ("checkpoint", "step", "epoch", "learning rate", "size", "resume", "inference")
        return Table(columns, tuple(rows), right=frozenset({1, 2, 3, 4}))

    def _closing(self) -> Text:
        tallies = [
            count(self.tally(severity), severity.label)
            for severity in sorted(Severity, reverse=True)
            if self.tally(severity)
        ]
        looked = (
            f"{count(len(self.checkpoints), 'checkpoint')}, {count(self.files, 'file')}, {human_bytes(self.size)} "
            f"({human_bytes(self.bytes_read)} read in {self.seconds:.2f} s)"
        )
        verdict = ", ".join(tallies) if tallies else "nothing found"
        left_out = sorted({skip.reason for checkpoint in self.checkpoints for skip in checkpoint.skipped})
        lines = [f"{verdict} in {looked}"]
        lines += [f"not checked: {reason}" for reason in left_out]
        bad = self.tally(Severity.ERROR) + self.tally(Severity.FATAL)
        return Text(tuple(lines), style="bad" if bad else "good")

    def document(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "tool": self.tool,
            "root": self.root,
            "layout": self.layout,
            "checkpoints": [_checkpoint(checkpoint) for checkpoint in self.checkpoints],
            "findings": [finding_document(finding) for finding in self.findings],
            "summary": {
                "checkpoints": len(self.checkpoints),
                "files": self.files,
                "bytes": self.size,
                "bytes_read": self.bytes_read,
                "seconds": round(self.seconds, 3),
                "fatals": self.tally(Severity.FATAL),
                "errors": self.tally(Severity.ERROR),
                "warnings": self.tally(Severity.WARNING),
                "notes": self.tally(Severity.NOTE),
            },
        }


def _verdict(checkpoint: CheckpointReport, purpose: Purpose) -> str:
    """Return the verdict in a word; a piece that is whole does not make a checkpoint that is."""
    verdict = checkpoint.verdicts[purpose]
    return "-" if checkpoint.piece and verdict is Verdict.READY else verdict.value


def _checkpoint(checkpoint: CheckpointReport) -> dict[str, Any]:
    return {
        "path": checkpoint.path,
        "layouts": list(checkpoint.layouts),
        "step": checkpoint.step,
        "depth": checkpoint.depth,
        "resume": checkpoint.verdicts[Purpose.RESUME].value,
        "inference": checkpoint.verdicts[Purpose.INFERENCE].value,
        "reasons": {purpose.value: list(checkpoint.reasons[purpose]) for purpose in Purpose},
        "findings": [finding_document(finding) for finding in checkpoint.findings],
        "skipped": [{"code": skip.code, "reason": skip.reason} for skip in checkpoint.skipped],
    }


def finding_document(finding: Finding) -> dict[str, Any]:
    """Return a finding in the shape that every JSON document of this tool shares."""
    document: dict[str, Any] = {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity.label,
        "message": finding.message,
        "path": finding.path,
    }
    spot = finding.at
    if spot.record or spot.tensor or spot.key or spot.offset is not None:
        document["at"] = {"record": spot.record, "tensor": spot.tensor, "key": spot.key, "offset": spot.offset}
    document["related"] = list(finding.related)
    document["detail"] = list(finding.detail)
    if finding.help:
        document["help"] = finding.help
    if finding.fix:
        document["fix"] = {"title": finding.fix.title, "safe": finding.fix.safe, "command": finding.fix.command}
    return document
