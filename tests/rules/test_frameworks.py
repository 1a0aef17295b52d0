"""CK17x and CK27x: checkpoints of TensorFlow, JAX and the libraries around PyTorch, damaged one way at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.model.findings import Severity
from tests.rules.damage_frameworks import CASES, Case
from tests.rules.judge import codes, verdicts

Copy = Callable[..., Path]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.fixture}: {case.name}")
def test_a_damage_gives_its_finding_and_no_other(case: Case, copy_of: Copy) -> None:
    run = copy_of(case.fixture)
    case.damage(run)
    report = ckpt_tools.verify(str(run), settle=0, deep=case.deep)
    found = "\n".join(f"{each.code} {each.path} {each.message}" for each in report.all_findings())
    assert codes(report, Severity.WARNING) == case.codes, found
    assert verdicts(report, case.checkpoint) == case.verdicts, found
