"""One damaged file before the loader and before ckpt, and whether the two agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import ckpt_tools
from ckpt_tools.model.findings import Finding, Severity
from tests.differential import accepted, loaders
from tests.differential.corpus import Subject
from tests.differential.damages import Damage, make


@dataclass(frozen=True, slots=True)
class Case:
    """``refusal`` is what the loader said, None when it took the file; ``outcome`` is a column of the summary."""

    subject: Subject
    seed: int
    damage: Damage
    refusal: str | None
    findings: tuple[Finding, ...]
    outcome: str
    rows: frozenset[str] = field(default_factory=frozenset)

    @property
    def agrees(self) -> bool:
        return self.outcome not in ("MISSED", "FALSE ALARM", "CRASHED")

    def told(self) -> str:
        """Return everything that is needed to look into this case."""
        found = "".join(
            f"\n      {each.severity.label}[{each.code}] {each.message}; {'; '.join(each.detail)[:200]}"
            for each in self.findings
        )
        return (
            f"{self.outcome}: {self.subject.path} ({self.damage.kind}: {self.damage.what})\n"
            f"   loader: {self.refusal or 'took it'}\n"
            f"   ckpt:   {found or 'nothing'}\n"
            f"   again:  python -m tests.differential.replay {self.subject.path} {self.seed}"
        )


def look(path: Path) -> tuple[Finding, ...]:
    """Return what ``ckpt verify FILE`` finds in the file."""
    report = ckpt_tools.verify(str(path), settle=0)
    return tuple(report.all_findings())


def compare(subject: Subject, seed: int, directory: Path, original: bytes | None = None) -> Case:
    """Damage a fixture file, write it below ``directory`` under its own name, and ask both."""
    data = subject.read() if original is None else original
    damage = make(subject.path, data, seed)
    return judge(subject, seed, damage, directory)


def judge(subject: Subject, seed: int, damage: Damage, directory: Path) -> Case:
    path = directory / subject.name
    path.write_bytes(damage.data)
    refusal = loaders.load(path, subject.container, subject.path)
    try:
        findings = look(path)
    except Exception as error:  # noqa: BLE001 - nothing may come out of a damaged file but findings
        crash = Finding("-", "exception", Severity.FATAL, f"{type(error).__name__}: {error}", "")
        return Case(subject, seed, damage, refusal, (crash,), "CRASHED")
    bad = [finding for finding in findings if finding.severity >= Severity.ERROR]
    if any(finding.name == "rule-crashed" for finding in findings):
        return Case(subject, seed, damage, refusal, findings, "CRASHED")
    if refusal is not None and bad:
        return Case(subject, seed, damage, refusal, findings, "both refuse")
    if refusal is not None:
        row = accepted.milder(subject, findings, refusal)
        outcome = "milder by table" if row else "MISSED"
        return Case(subject, seed, damage, refusal, findings, outcome, frozenset({row} if row else ()))
    rows = [accepted.stricter(damage, finding) for finding in bad]
    if None in rows:
        return Case(subject, seed, damage, refusal, findings, "FALSE ALARM")
    named = frozenset(row for row in rows if row)
    return Case(subject, seed, damage, refusal, findings, "stricter by table" if named else "both take it", named)
