"""What tests of rules ask of a report: which codes, which verdicts, at which clock."""

from __future__ import annotations

from pathlib import Path

import ckpt_tools
from ckpt_tools.model.findings import Finding, Purpose, Severity
from ckpt_tools.reports.verify import VerifyReport

FAMILIES = ("CK1", "CK6")


def judge(path: Path, *, settle: float = 0, families: tuple[str, ...] = FAMILIES, **options: object) -> VerifyReport:
    """Verify ``path`` by the rules of some families alone; without a clock nothing is ever in progress."""
    return ckpt_tools.verify(str(path), settle=settle, select=families, **options)  # type: ignore[arg-type]


def codes(report: VerifyReport, least: Severity = Severity.WARNING) -> set[str]:
    return {finding.code for finding in report.all_findings() if finding.severity >= least}


def verdicts(report: VerifyReport, name: str = ".") -> tuple[str, str]:
    """Return the verdicts on one checkpoint, ``(resume, inference)``."""
    (found,) = (checkpoint for checkpoint in report.checkpoints if checkpoint.path == name)
    return found.verdicts[Purpose.RESUME].value, found.verdicts[Purpose.INFERENCE].value


def finding(report: VerifyReport, code: str) -> Finding:
    """Return the only finding with ``code``."""
    (found,) = (finding for finding in report.all_findings() if finding.code == code)
    return found
