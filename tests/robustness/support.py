"""What the robustness tests share: looking at bytes as the command does, and files that refuse to be read."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.containers import reader
from ckpt_tools.containers.base import Content
from ckpt_tools.core import source as sources
from ckpt_tools.core.errors import CkptError
from ckpt_tools.core.source import BytesSource
from ckpt_tools.layouts.match import open_run
from ckpt_tools.model.findings import Severity
from ckpt_tools.reports.verify import VerifyReport

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


def content_of(data: bytes, name: str, expected: tuple[str, ...]) -> Content:
    """Decode bytes in memory as the file ``name`` would be decoded."""
    return reader.read(BytesSource(data, name), expected)


def expected_of(path: Path) -> tuple[str, ...]:
    """Return the containers that loaders read under the file's name, as its layout says."""
    (part,) = open_run(path).checkpoints[0].parts
    return part.containers


def verified(path: Path) -> VerifyReport:
    """Verify with no waiting for saves in progress; a crashed rule is a failure of the test."""
    report = ckpt_tools.verify(str(path), settle=0)
    crashed = [finding.message for finding in report.all_findings() if finding.name == "rule-crashed"]
    assert not crashed, crashed
    return report


def tried(path: Path) -> str:
    """Run the verbs that look at a path; return what ended them, and let nothing but CkptError pass."""
    try:
        verified(path)
    except CkptError as error:
        ended = str(error)
    else:
        ended = ""
    try:
        ckpt_tools.latest(str(path), settle=0)
    except CkptError as error:
        ended = str(error)
    return ended


def bad(report: VerifyReport) -> bool:
    return any(finding.severity >= Severity.ERROR for finding in report.all_findings())


@contextmanager
def refused(monkeypatch: pytest.MonkeyPatch, ending: str, number: int, *, opening: bool) -> Iterator[None]:
    """Let opening (or reading) of files whose path ends with ``ending`` fail with ``number``: root ignores modes."""
    real_open, real_read = sources.os.open, sources.os.preadv
    marked: set[int] = set()

    def fake_open(path: object, *args: object, **more: object) -> int:
        if opening and str(path).endswith(ending):
            raise OSError(number, errno.errorcode[number], str(path))
        descriptor = real_open(path, *args, **more)  # type: ignore[arg-type]
        (marked.add if str(path).endswith(ending) else marked.discard)(descriptor)  # numbers are used again
        return descriptor

    def fake_read(descriptor: int, *args: object) -> int:
        if descriptor in marked:
            raise OSError(number, errno.errorcode[number])
        return real_read(descriptor, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(sources.os, "open", fake_open)
        patch.setattr(sources.os, "preadv", fake_read)
        yield
