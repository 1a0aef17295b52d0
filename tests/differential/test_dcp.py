"""What torch's own loader of distributed checkpoints refuses, ckpt calls an error; and hardly anything else."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

import ckpt_tools
from ckpt_tools.model.findings import Severity
from tests.conftest import FIXTURES
from tests.differential import dcp

BLOCKS = 8

STRICTER = {
    "CK291": "a load that goes by the metadata never asks for what is not described, and reads it never",
    "CK292": "torch opens a file outside of the directory where there is one; this tool does not follow it",
    "CK293": "a piece is read by its zip directory: torch does not look at what lies before or behind it",
    "CK360": "a range that reaches beyond the file's end: torch reads what is there, and by chance it is whole",
    "CK361": "a range that reaches into the next piece: torch finds the zip directory nevertheless, or not, by chance",
    "CK362": "torch copies the chunks that there are, and leaves the rest of the tensor as it was, in silence",
    "CK363": "torch copies chunk after chunk, and does not ask whether they overlap or reach beyond the tensor",
    "CK364": "torch converts types without a word; sizes that differ it broadcasts where it can",
}
"""Codes of errors that torch loads nevertheless, each with the reason that it is one."""


def judged(path: Path) -> set[str]:
    """Return the codes of the errors."""
    report = ckpt_tools.verify(str(path), settle=0)
    return {found.code for found in report.all_findings() if found.severity >= Severity.ERROR}


@pytest.mark.parametrize("block", range(BLOCKS))
def test_ckpt_agrees_with_torch_on_damage(
    block: int, tmp_path: Path, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    count = request.config.getoption("--damages") // 10
    rows: dict[str, Counter[str]] = {}
    wrong = []
    for seed in range(block, count, BLOCKS):
        case = dcp.deal(seed, tmp_path)
        said, errors = dcp.load(case.path), judged(case.path)
        row = rows.setdefault(case.kind, Counter())
        if said is not None and not errors:
            row["MISSED"] += 1
            wrong.append(f"{seed} ({case.subject}, {case.what}): missed: {said}")
        elif said is None and errors - STRICTER.keys():
            row["FALSE ALARM"] += 1
            wrong.append(f"{seed} ({case.subject}, {case.what}): torch takes it, ckpt says {errors}")
        else:
            row["both refuse" if said else "stricter by table" if errors else "both take it"] += 1
        shutil.rmtree(case.path)
    counts = {kind: dict(row) for kind, row in rows.items()}
    record_property("tally", {"table": "ckpt against torch.distributed.checkpoint", "rows": counts})
    assert not wrong, f"{len(wrong)} disagreements:\n" + "\n".join(wrong[:20])


@pytest.mark.parametrize("name", dcp.SUBJECTS)
def test_both_take_what_is_whole(name: str) -> None:
    assert dcp.load(FIXTURES / "dcp" / name) is None
    assert judged(FIXTURES / "dcp" / name) == set()


@pytest.mark.parametrize("name", ["safetensors-serialization", "interrupted-overwrite"])
def test_both_refuse_what_was_never_whole(name: str) -> None:
    assert dcp.load(FIXTURES / "dcp" / name) is not None
    assert judged(FIXTURES / "dcp" / name)
