"""Every damage of the table on every file of the real fixtures is told, and no healthy fixture says anything.

A fixture is looked at without reading its bytes, then with --deep, then as it was sealed: the first that tells has to
be loud enough.  What is not an error is in ``on_purpose``, with its reason.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import ckpt_tools
from ckpt_tools.core.errors import NothingFoundError
from ckpt_tools.layouts.match import open_run
from ckpt_tools.model.checkpoint import Checkpoint, Role
from ckpt_tools.model.findings import Purpose, Severity, Verdict
from ckpt_tools.reports.verify import VerifyReport
from tests.conftest import FIXTURES
from tests.robustness import on_purpose, sweep
from tests.robustness.sweep import SWEPT, Case, Told

HEALTHY = [entry for entry in SWEPT if entry["healthy"]]
MODEL = (
    Role.WEIGHTS, Role.INDEX, Role.ADAPTER, Role.CHUNKS, Role.METADATA, Role.MODEL_STATES, Role.OPTIMIZER_STATES,
    Role.COMBINED, Role.COMMON,
)  # fmt: skip


def _named(entry: dict[str, Any]) -> str:
    return str(entry["path"])


class _Looks:
    """A fixture to damage: as it was written and, made when it is needed, a second copy with a seal."""

    def __init__(self, entry: dict[str, Any], place: Path) -> None:
        self.entry, self.place = entry, place
        self.root = sweep.copied(entry, place / "plain")
        self.known = sweep.known(sweep.looked(self.root)) | sweep.known(sweep.looked(self.root, deep=True))
        self._sealed: tuple[Path, sweep.Known] | None = None

    @property
    def sealed(self) -> tuple[Path, sweep.Known]:
        if self._sealed is None:
            root = sweep.copied(self.entry, self.place / "sealed")
            ckpt_tools.seal(str(root), settle=0, force=True)
            self._sealed = root, sweep.known(sweep.looked(root, deep=True))
        return self._sealed

    def told(self, case: Case) -> Told:
        with sweep.damaged(self.root, case):
            report = sweep.looked(self.root)
            found = sweep.structure(report, self.known)
            self._alone(case, report, found)
            if found <= Told.BY_A_NOTE and sweep.by_deep(sweep.looked(self.root, deep=True), self.known):
                return max(found, Told.BY_DEEP)
        if found is Told.BY_NOBODY:
            root, known = self.sealed
            with sweep.damaged(root, case):
                found = Told.BY_A_SEAL if sweep.by_deep(sweep.looked(root, deep=True), known) else found
        return found

    def _alone(self, case: Case, report: VerifyReport | None, found: Told) -> None:
        """The checkpoint by itself says what it said in its run."""
        own = sweep.checkpoint_of(self.entry, case.file, self.root)
        if own is None or report is None:
            return
        alone = sweep.looked(self.root / own)
        within = next((each for each in report.checkpoints if each.path == own), None)
        loud = within is not None and any(each.severity >= Severity.ERROR for each in within.findings)
        if not loud or alone is None:
            return
        assert len(alone.checkpoints) == 1, f"{case}: alone it is {[each.path for each in alone.checkpoints]}"
        assert any(each.severity >= Severity.ERROR for each in alone.all_findings()), f"{case}: silent alone"


@pytest.mark.parametrize("entry", SWEPT, ids=_named)
def test_every_damage_is_told(
    entry: dict[str, Any],
    tmp_path: Path,
    pytestconfig: pytest.Config,
    record_property: Callable[[str, object], None],
) -> None:
    looks, wrong = _Looks(entry, tmp_path), []
    rows: dict[str, dict[str, int]] = {}
    for case in sweep.cases(entry, pytestconfig.getoption("--everywhere")):
        found, (wanted, _) = looks.told(case), on_purpose.least(case)
        counts = rows.setdefault(case.damage, {})
        counts[found.name] = counts.get(found.name, 0) + 1
        if found < wanted and entry["healthy"]:
            wrong.append(f"{case}: told {found.name}, not {wanted.name}")
    record_property("tally", {"table": "who tells of a damage", "rows": rows})
    assert not wrong, f"{len(wrong)} damages are told too softly:\n" + "\n".join(wrong[:30])


@pytest.mark.parametrize("entry", HEALTHY, ids=_named)
def test_a_checkpoint_without_its_model_runs_nothing(entry: dict[str, Any], tmp_path: Path) -> None:
    root = sweep.copied(entry, tmp_path)
    for checkpoint in open_run(root).checkpoints:
        for path in _model_files(checkpoint):
            (root / path).unlink()
    report = sweep.looked(root)
    left = report.checkpoints if report is not None else ()
    assert [each.path for each in left if each.verdicts[Purpose.INFERENCE] is Verdict.READY] == []


def _model_files(checkpoint: Checkpoint) -> list[str]:
    return [checkpoint.place(part.path) for part in checkpoint.of(*MODEL) if part.stat.is_file]


@pytest.mark.parametrize("entry", HEALTHY, ids=_named)
def test_a_healthy_one_is_silent_however_it_is_named(entry: dict[str, Any], tmp_path: Path) -> None:
    fresh = tmp_path / Path(entry["path"]).name
    shutil.copytree(FIXTURES / entry["path"], fresh, copy_function=shutil.copyfile)
    names = list(dict.fromkeys([".", *entry["checkpoints"]]))  # plainly named: tests/test_fixtures.py
    slashed = [f"{root / name}/" for root in (FIXTURES / entry["path"], fresh) for name in names]
    for path in filter(os.path.isdir, slashed):
        _silent(ckpt_tools.verify(path, settle=0), path)
    for name in names:
        for deep in (False, True):
            _silent(ckpt_tools.verify(str(fresh / name), settle=0, deep=deep), str(fresh / name))


@pytest.mark.parametrize("entry", HEALTHY, ids=_named)
def test_a_single_file_of_a_healthy_one_is_silent(entry: dict[str, Any]) -> None:
    kinds = {sweep.kind(name): name for name in sweep.files_of(FIXTURES / entry["path"])}
    for name in kinds.values():
        path = str(FIXTURES / entry["path"] / name)
        with suppress(NothingFoundError):  # a text such as a tracker's is no checkpoint
            _silent(ckpt_tools.verify(path, settle=0), path)


def _silent(report: VerifyReport, path: str) -> None:
    loud = [f"{each.code} {each.message}" for each in report.all_findings() if each.severity > Severity.NOTE]
    assert not loud, f"{path}: {loud}"


def test_every_row_is_needed() -> None:
    every = [case for entry in SWEPT for case in sweep.cases(entry, everything=True)]
    used = {row for case in every for row in on_purpose.ON_PURPOSE if row.covers(case)}
    assert [row.reason for row in on_purpose.ON_PURPOSE if row not in used] == []
