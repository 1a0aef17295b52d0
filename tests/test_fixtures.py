"""The committed checkpoints: healthy ones give no finding that matters, and the libraries still write the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

import ckpt_tools
from ckpt_tools.containers.base import Content
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.model.findings import Purpose, Severity, Verdict
from ckpt_tools.model.values import Opaque, as_mapping
from ckpt_tools.reports.verify import VerifyReport
from tests.conftest import ENTRIES, FIXTURES

HEALTHY = [entry for entry in ENTRIES if entry["healthy"]]
CURRENT = [entry for entry in ENTRIES if entry["environment"] == "current"]

SAVED_WITHOUT_OPTIMIZER = ("trainer5-save-only-model",)
ABOUT_SHARDS = {"CK106", "CK107", "CK108", "CK121"}
END_OF_A_RUN = "CK603"


@cache
def verified(path: Path) -> VerifyReport:
    """Verify a fixture as it is; ``settle=0``: a fresh clone has fresh times, and that is no save in progress."""
    return ckpt_tools.verify(str(path), settle=0)


@pytest.mark.parametrize("entry", HEALTHY, ids=lambda entry: entry["path"])
def test_a_healthy_fixture_has_no_error_and_no_warning(entry: dict[str, Any]) -> None:
    place = FIXTURES / entry["path"]
    for path in [place, *(place / name for name in entry["checkpoints"] if name != ".")]:
        report = verified(path)
        loud = [finding for finding in report.all_findings() if finding.severity > Severity.NOTE]
        assert not loud, "\n".join(
            f"{path}: {each.severity.label}[{each.code}] {each.message}; {each.detail}" for each in loud
        )
        assert report.exit_code() == 0


@pytest.mark.parametrize("entry", HEALTHY, ids=lambda entry: entry["path"])
def test_some_rules_have_not_even_a_note_for_a_healthy_fixture(entry: dict[str, Any]) -> None:
    told = {finding.code for finding in verified(FIXTURES / entry["path"]).all_findings()}
    assert not told & ABOUT_SHARDS
    assert {code for code in told if code.startswith("CK6")} <= {END_OF_A_RUN}


@pytest.mark.parametrize("entry", HEALTHY, ids=lambda entry: entry["path"])
def test_every_recorded_checkpoint_is_found(entry: dict[str, Any]) -> None:
    run = open_run(FIXTURES / entry["path"])
    assert {checkpoint.path for checkpoint in run.checkpoints} == set(entry["checkpoints"])


@pytest.mark.parametrize("entry", HEALTHY, ids=lambda entry: entry["path"])
def test_a_healthy_trainer_checkpoint_is_ready(entry: dict[str, Any]) -> None:
    report = verified(FIXTURES / entry["path"])
    for checkpoint in report.checkpoints:
        if checkpoint.layouts[0] == "hf-trainer" and checkpoint.path != ".":
            without = entry["path"] in SAVED_WITHOUT_OPTIMIZER
            assert checkpoint.verdicts[Purpose.RESUME] is (Verdict.BROKEN if without else Verdict.READY)
            assert checkpoint.verdicts[Purpose.INFERENCE] is Verdict.READY


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if not entry["healthy"]], ids=lambda entry: entry["path"])
def test_what_its_own_library_refuses_is_told(entry: dict[str, Any]) -> None:
    """An error, or the note that a safe load refuses the file, which the own code of a plain loop may not do."""
    for name in entry["checkpoints"]:
        report = ckpt_tools.verify(str(FIXTURES / entry["path"] / name), settle=0)
        told = [each for each in report.all_findings() if each.severity >= Severity.ERROR or each.code == "CK701"]
        assert told, name


def test_every_directory_of_fixtures_is_recorded() -> None:
    recorded = {entry["path"].split("/")[0] for entry in ENTRIES}
    assert {path.name for path in FIXTURES.iterdir() if path.is_dir()} == recorded | {"scripts"}


def test_no_fixture_names_the_machine_that_made_it() -> None:
    home = str(Path.home()).encode()
    for path in FIXTURES.rglob("*"):
        if path.is_file() and len(home) > 3:
            assert home + b"/" not in path.read_bytes(), path


def _keys(value: Any, depth: int = 3) -> Any:
    """Return the keys of a decoded file, without its numbers."""
    mapping = as_mapping(value)
    if mapping is not None:
        return {str(key): _keys(item, depth - 1) if depth else "..." for key, item in mapping.items()}
    if isinstance(value, Opaque):
        return value.qualname
    return type(value).__name__


def _shape_of(content: Content) -> dict[str, Any]:
    return {
        "container": content.container,
        "problems": [problem.kind for problem in content.problems],
        "tensors": {name: (ref.dtype, list(ref.shape)) for name, ref in content.tensors.items()},
        "globals": sorted(content.globals),
        "keys": _keys(content.value),
    }


def _described(place: Path) -> dict[str, Any]:
    """Return names of files, keys, dtypes and shapes of a fixture: what must not change when it is made again."""
    described: dict[str, Any] = {}
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        name = path.relative_to(place).as_posix()
        run = open_run(path) if path.suffix != ".md" and path.name != "trainer_log.jsonl" else None
        content = None
        if run is not None:
            content = View(run.checkpoints[0]).content(run.checkpoints[0].parts[0])
        described[name] = _shape_of(content) if content is not None else None
    return described


def _same_versions(entry: dict[str, Any]) -> str | None:
    """Say which library is another one than that which made the fixture, in its first two numbers."""
    for package, made in entry["versions"].items():
        if package == "python":
            continue
        try:
            here = version(package).split("+")[0]
        except PackageNotFoundError:
            return f"{package} is not installed"
        if here.split(".")[:2] != made.split(".")[:2]:
            return f"{package} is {here}, the fixture was made with {made}"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted({entry["script"] for entry in CURRENT}))
def test_the_libraries_write_today_what_the_fixtures_hold(script: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    entries = [entry for entry in CURRENT if entry["script"] == script]
    differs = _same_versions(entries[0])
    if differs:
        pytest.skip(differs)
    names = [entry["path"] for entry in entries]
    environment = os.environ | {"PYTHONPATH": str(FIXTURES / "scripts"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(FIXTURES / script), str(tmp_path / "fixtures"), *names],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads((tmp_path / "fixtures" / "fixtures.json").read_text())
    assert [entry["path"] for entry in written] == sorted(names)
    for entry in written:
        made, kept = (_described(root / entry["path"]) for root in (tmp_path / "fixtures", FIXTURES))
        assert list(made) == list(kept)
        for name in kept:
            assert made[name] == kept[name], f"{entry['path']}/{name}"
