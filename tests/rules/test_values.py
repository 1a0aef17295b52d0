"""All rules about values together: silent on every fixture, each with a damage that it tells."""

from __future__ import annotations

import pytest

from ckpt_tools.model.findings import Severity
from ckpt_tools.rules import CATALOGUE
from tests.conftest import ENTRIES, FIXTURES
from tests.rules import (
    test_adapters,
    test_index,
    test_model_tensors,
    test_optimizer,
    test_safety,
    test_state,
    test_steps,
)
from tests.rules.damage_values import FAMILIES
from tests.rules.judge import judge

TABLES = (
    test_index.CASES,
    test_model_tensors.CASES,
    test_adapters.CASES,
    test_steps.CASES,
    test_optimizer.CASES,
    test_state.CASES,
    test_safety.CASES,
)


@pytest.mark.parametrize("entry", [each for each in ENTRIES if each["healthy"]], ids=lambda entry: entry["path"])
def test_healthy_checkpoints_are_left_alone(entry: dict[str, object]) -> None:
    report = judge(FIXTURES / str(entry["path"]), families=FAMILIES)
    loud = [finding for finding in report.all_findings() if finding.severity >= Severity.WARNING]
    assert not loud, "\n".join(f"{finding.code} {finding.path}: {finding.message}" for finding in loud)


IN_PIECES = ("CK36", "CK37", "CK56", "CK57", "CK58")
"""Rules about tensors in pieces and counters of frameworks, which have tables of their own."""


def test_every_rule_has_a_row() -> None:
    told = {code for table in TABLES for case in table for code in (*case.codes, *case.notes)}
    codes = {rule.code for rule in CATALOGUE if rule.code.startswith(FAMILIES)}
    assert told == {code for code in codes if not code.startswith(IN_PIECES)}


def test_names_of_rows_differ() -> None:
    for table in TABLES:
        names = [case.name for case in table]
        assert len(names) == len(set(names))
