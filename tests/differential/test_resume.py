"""The real Trainer resumes from damaged checkpoints, and ckpt's verdict is held against what it did.

It raises: the verdict must be ``broken``.  It goes on and something of the training was lost: ``degraded`` or
``broken``, with an error.  It resumes: not ``broken``, and no error that speaks of resuming.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.model.findings import Finding, Purpose, Severity, Verdict
from tests.conftest import needs
from tests.differential import resume
from tests.differential.faults import FAULTS, Fault

needs("torch", "transformers", "peft")
pytestmark = pytest.mark.slow

_BYTES = "tensor bytes are read by --deep alone, and a structural look says that it did not read them"
ON_PURPOSE: dict[str, str] = {
    "all-of-training-missing": "saved so on purpose (save_only_model): a note says why no resume is possible, no error",
    "marked-incomplete": "the Trainer itself wrote that this save did not end, and its resume does not look",
    "index-leads-outside": "a name that leads out of the directory is refused on principle and not followed",
    "index-tensor-nowhere": "this model has no such parameter, and another may: promised and not there is an error",
    "key-renamed": "number and shapes are as before, and nothing in a checkpoint says which names its model asks for",
    "optimizer-entry-missing": "a parameter that never got a gradient has no entry either: a note",
    "optimizer-moments-swapped": "the state has no names: of two parameters of one shape either may be first",
    "optimizer-moment-nan": _BYTES,
    "weight-nan": _BYTES,
    "weights-tail-zeroed": _BYTES,
    "weights-of-another-step": "weights do not say which step they are of",
}
"""Where ckpt says something else than one resume of one version shows, and why that is right."""


def judged(directory: Path) -> tuple[Verdict, list[Finding], list[Finding]]:
    """Return the verdict for a resume, the errors that speak of it, and all findings."""
    report = ckpt_tools.verify(str(directory), settle=0)
    (checkpoint,) = report.checkpoints
    findings = list(report.all_findings())
    errors = [
        finding
        for finding in findings
        if finding.severity >= Severity.ERROR and finding.impact.resume is not Verdict.READY
    ]
    return checkpoint.verdicts[Purpose.RESUME], errors, findings


def agree(kind: str, verdict: Verdict, errors: list[Finding]) -> bool:
    match kind:
        case "raises":
            return verdict is Verdict.BROKEN
        case "loses":
            return verdict in (Verdict.DEGRADED, Verdict.BROKEN) and bool(errors)
        case _:
            return verdict is not Verdict.BROKEN and not errors


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_ckpt_says_what_a_resume_does(
    fault: Fault, copy_of: Callable[..., Path], record_property: Callable[[str, object], None]
) -> None:
    run = copy_of(fault.fixture)
    directory = run / resume.SETTINGS[fault.fixture].checkpoint
    fault.change(directory)
    verdict, errors, findings = judged(run / fault.moved if fault.moved else directory)
    if fault.child:
        outcome = resume.resume_in_child(fault.fixture, run)
    else:
        outcome = resume.resume(
            fault.fixture, run, lambda: copy_of(fault.fixture, f"fresh/{fault.fixture}"), fault.moved
        )
    agrees = agree(outcome.kind, verdict, errors)
    column = "agrees" if agrees else "on purpose" if fault.name in ON_PURPOSE else "DISAGREES"
    row = f"the Trainer {outcome.kind}, ckpt says {verdict.value}"
    record_property("tally", {"table": "ckpt against a real resume", "rows": {row: {column: 1}}})
    told = (
        f"{fault.name} ({fault.fixture}): the Trainer {outcome.kind}: {outcome.error or outcome.differs}\n"
        f"ckpt says {verdict.value}: "
        + (
            "; ".join(f"{each.severity.label}[{each.code}] {each.message} ({each.path})" for each in findings)
            or "nothing"
        )
    )
    if fault.name in ON_PURPOSE:
        assert not agrees, f"they agree now, so the row of `{fault.name}` can go: {told}"
    else:
        assert agrees, told


def test_every_row_of_the_table_is_a_fault() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names)) >= 60
    assert set(ON_PURPOSE) <= set(names)
