"""What every test may use: the fixtures, copies of them, and tallies that are added up over all workers."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
ENTRIES: list[dict[str, Any]] = json.loads((FIXTURES / "fixtures.json").read_text(encoding="utf-8"))

Copy = Callable[..., Path]


def needs(*libraries: str) -> None:
    """Skip the whole module where a library is not installed, and spare those who do not run it its import."""
    for library in libraries:
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed", allow_module_level=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--damages",
        type=int,
        default=2400,
        metavar="N",
        help="how many random damages the differential test against the loaders makes (default 2400)",
    )
    parser.addoption("--everywhere", action="store_true", help="damage every file of the fixtures in every way")
    parser.addoption("--update-goldens", action="store_true", help="write tests/golden from what is printed today")
    parser.addoption(
        "--most-skips", type=int, metavar="N", help="fail when more than N tests were skipped: a library got lost"
    )


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """The committed checkpoints; never write there."""
    return FIXTURES


@pytest.fixture
def copy_of(tmp_path: Path) -> Copy:
    """``copy_of("trainer5-full", "run")``: a copy of a fixture below ``tmp_path`` that a test may damage.

    A second argument names the copy; without one it has the fixture's own last name.
    """

    def copied(name: str, target: str | None = None) -> Path:
        place = tmp_path / (target or Path(name).name)
        source = FIXTURES / name
        if source.is_dir():
            shutil.copytree(source, place)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place)
        return place

    return copied


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hold the number of skipped tests against ``--most-skips``."""
    most = session.config.getoption("--most-skips")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if most is None or reporter is None:
        return
    skipped = len(reporter.stats.get("skipped", ()))
    if skipped > most and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"\n{skipped} tests were skipped, and {most} at the most may be", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what tests recorded as ``record_property("tally", {"table": ..., "rows": {row: {column: count}}})``.

    Counts of the same table, row and column are added up, over parameters and over workers.
    """
    tables: dict[str, dict[str, Counter[str]]] = {}
    for reports in list(terminalreporter.stats.values()):
        for report in reports:
            if getattr(report, "when", None) != "call":
                continue
            for name, value in report.user_properties:
                if name == "tally":
                    rows = tables.setdefault(value["table"], {})
                    for row, counts in value["rows"].items():
                        rows.setdefault(row, Counter()).update(counts)
    for title, rows in sorted(tables.items()):
        columns = list(dict.fromkeys(column for counts in rows.values() for column in counts))
        total: Counter[str] = Counter()
        for counts in rows.values():
            total.update(counts)
        width = max(map(len, [*rows, "all"]))
        terminalreporter.section(title)
        terminalreporter.write_line(" " * width + "".join(f"  {column:>{len(column)}}" for column in columns))
        for row, counts in [*sorted(rows.items()), ("all", total)]:
            cells = "".join(f"  {counts[column]:>{len(column)}}" for column in columns)
            terminalreporter.write_line(f"{row:<{width}}{cells}")
