"""All rules about values together: silent on every fixture, each with a damage that it tells."""

from __future__ import annotations

from ckpt_tools.rules import CATALOGUE
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

TABLES = (
    test_index.CASES,
    test_model_tensors.CASES,
    test_adapters.CASES,
    test_steps.CASES,
    test_optimizer.CASES,
    test_state.CASES,
    test_safety.CASES,
)


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
