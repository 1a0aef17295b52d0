"""Random damage by the thousand: whatever the real loader refuses, ckpt calls an error, and hardly anything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from ckpt_tools.model.findings import Severity
from tests.differential import compare, corpus, loaders
from tests.differential.damages import Damage

BLOCKS = 24
COLUMNS = ("both refuse", "both take it", "stricter by table", "milder by table", "MISSED", "FALSE ALARM", "CRASHED")


@pytest.mark.parametrize("block", range(BLOCKS))
def test_ckpt_agrees_with_the_loader_on_damage(
    block: int, tmp_path: Path, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    count = request.config.getoption("--damages")
    rows: dict[str, Counter[str]] = {}
    by_table: Counter[str] = Counter()
    wrong = []
    for number in range(block, count, BLOCKS):
        subject = corpus.deal(number)
        case = compare.compare(subject, number, tmp_path)
        row = rows.setdefault(f"{subject.container:<13}{case.damage.kind}", Counter(dict.fromkeys(COLUMNS, 0)))
        row[case.outcome] += 1
        by_table.update(case.rows)
        if not case.agrees:
            wrong.append(case)
    record_property(
        "tally", {"table": "ckpt against the loaders", "rows": {name: dict(row) for name, row in rows.items()}}
    )
    record_property(
        "tally",
        {
            "table": "rows of the tables that were needed",
            "rows": {name: {"cases": count} for name, count in by_table.items()},
        },
    )
    shown = "\n".join(case.told() for case in wrong[:20])
    assert not wrong, f"{len(wrong)} disagreements:\n{shown}"


@pytest.mark.parametrize("container", corpus.SHARES)
def test_undamaged_files_are_judged_as_their_loader_judges_them(container: str, tmp_path: Path) -> None:
    wrong = []
    for subject in corpus.by_container()[container]:
        data = subject.read()
        case = compare.judge(subject, 0, Damage("none", "not damaged", data), tmp_path)
        if not case.agrees or case.outcome == "stricter by table":
            wrong.append(case.told())
    assert not wrong, "\n".join(wrong)


def test_the_same_number_gives_the_same_damage() -> None:
    for number in range(200):
        subject = corpus.deal(number)
        data = subject.read()
        first = compare.make(subject.path, data, number)
        again = compare.make(subject.path, data, number)
        assert (first.kind, first.what, first.data) == (again.kind, again.what, again.data)


def test_every_kind_of_file_has_an_oracle(tmp_path: Path) -> None:
    """An oracle that takes anything, or refuses everything, would make the comparison worthless."""
    for container, files in corpus.by_container().items():
        path = tmp_path / files[0].name
        path.write_bytes(files[0].read())
        assert loaders.load(path, container) is None
        path.write_bytes(files[0].read()[:-30])
        assert loaders.load(path, container) is not None


@pytest.mark.parametrize("length", [72, 640, 896, 1152, 1408, 19280, 23106, 35615, 65536, 2 << 16, 5 << 16])
def test_a_header_of_any_length_is_a_safetensors_header(length: int, tmp_path: Path) -> None:
    """Its first bytes may look like those of a pickle (1,152), a zip, gzip (35,615) or bzip2 (23,106) file."""
    path = tmp_path / "model.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + bytes(4))
    assert loaders.load(path, "safetensors") is None
    assert not [finding for finding in compare.look(path) if finding.severity >= Severity.ERROR]
