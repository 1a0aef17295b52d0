"""Every file of the fixtures, the damages that a disk, a copy or a hand may do to it, and how loudly each is told."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import ckpt_tools
from ckpt_tools.core.errors import CkptError, NothingFoundError
from ckpt_tools.model.findings import Severity
from ckpt_tools.reports.verify import VerifyReport
from tests.conftest import ENTRIES, FIXTURES

OLD = ("current", "llamafactory")
SWEPT = [e for e in ENTRIES if e["environment"] not in OLD and not e["environment"].startswith("transformers")]
"""The fixtures that are swept; those of the Trainer have tables of their own, which ask more (tests/rules)."""

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 123456\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Sign in to go on</body></html>\n"


def _flipped(data: bytes) -> bytes:
    """Flip a bit in the middle; in a zip, in the first bytes of a tensor, and not in the padding between tensors."""
    changed = bytearray(data)
    if changed:
        changed[next(_payloads(data), len(changed) // 2)] ^= 4
    return bytes(changed)


def _payloads(data: bytes) -> Iterator[int]:
    """Yield where the records with tensors begin, for as many zips as lie in the data."""
    for found in re.finditer(rb"PK\x03\x04.{22}(..)(..)", data, re.DOTALL):
        named, extra = (int.from_bytes(found[group], "little") for group in (1, 2))
        begin = found.end() + named + extra
        if b"/data/" in data[found.end() : found.end() + named] and data[begin : begin + 2] not in (b"PK", b""):
            yield begin


CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "one byte less": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "pointer": lambda data: POINTER,
    "page": lambda data: PAGE,
    "bit": _flipped,
}
GONE = ("deleted", "empty", "half", "zeros", "pointer", "page")
"""After these nothing of a file can be used."""


class Told(IntEnum):
    """Who tells of a damage: the least of the looks that does, and how loudly."""

    BY_NOBODY = 0
    BY_A_SEAL = 1
    BY_DEEP = 2
    BY_A_NOTE = 3
    BY_A_WARNING = 4
    BY_AN_ERROR = 5


@dataclass(frozen=True, slots=True)
class Case:
    """One damage to one file of a fixture; ``source`` is the file whose bytes it gets, for two of the damages."""

    fixture: str
    file: str
    damage: str
    source: str = ""

    def __str__(self) -> str:
        return f"{self.fixture}: {self.file}: {self.damage}{f' ({self.source})' if self.source else ''}"


def kind(name: str) -> str:
    """Return a name without what counts in it: files of one kind differ in rank, step or hash."""
    return re.sub(r"[0-9a-f]{32}|\d+", "#", name)


def files_of(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and not p.is_symlink())


def cases(entry: dict[str, Any], everything: bool) -> Iterator[Case]:
    """Yield what is done to a fixture: all of it, or two damages to one file of each kind, drawn by its name."""
    root = FIXTURES / entry["path"]
    names = files_of(root)
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(kind(name), []).append(name)
    for group in kinds.values():
        draw = random.Random(f"{entry['path']}/{group[0]}")
        for name in group if everything else [draw.choice(group)]:
            found = list(_damages(entry, root, name, group))
            yield from found if everything else draw.sample(found, min(2, len(found)))


def _damages(entry: dict[str, Any], root: Path, name: str, group: list[str]) -> Iterator[Case]:
    data = (root / name).read_bytes()
    yield Case(entry["path"], name, "deleted")
    for damage, change in CONTENTS.items():
        if change(data).rstrip() != data.rstrip():  # a line break at the end of a text means nothing
            yield Case(entry["path"], name, damage)
    near, far = [], []
    for other in group:
        if (root / other).read_bytes() != data:
            (near if _checkpoint(entry, other) == _checkpoint(entry, name) else far).append(other)
    if near:
        yield Case(entry["path"], name, "swapped", near[0])
    if far:
        yield Case(entry["path"], name, "of another step", far[0])


def _checkpoint(entry: dict[str, Any], name: str) -> str:
    inside = [each for each in entry["checkpoints"] if name == each or name.startswith(f"{each}/")]
    return max(inside, key=len, default=".")


def checkpoint_of(entry: dict[str, Any], name: str, root: Path) -> str | None:
    """Return the checkpoint directory, below the run, that a file belongs to; None where that is the run itself."""
    found = _checkpoint(entry, name)
    return found if found != "." and (root / found).is_dir() else None


@contextmanager
def damaged(root: Path, case: Case) -> Iterator[None]:
    """Do it to a copy of the fixture at ``root``, and take it back."""
    touched = [root / case.file] + ([root / case.source] if case.damage == "swapped" else [])
    before = [(path, path.read_bytes(), path.stat()) for path in touched]
    home = touched[0].parent.stat()
    if case.damage == "deleted":
        touched[0].unlink()
    elif case.damage == "swapped":
        touched[0].write_bytes(before[1][1])
        touched[1].write_bytes(before[0][1])
    elif case.damage == "of another step":
        touched[0].write_bytes((root / case.source).read_bytes())
    else:
        touched[0].write_bytes(CONTENTS[case.damage](before[0][1]))
    for path, _, stat in before:
        if path.exists():
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a copy that keeps times shows none of it
    try:
        yield
    finally:
        for path, data, stat in before:
            path.write_bytes(data)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        os.utime(touched[0].parent, ns=(home.st_atime_ns, home.st_mtime_ns))


def copied(entry: dict[str, Any], place: Path) -> Path:
    """Copy a fixture, with the times of its files."""
    target = place / Path(entry["path"]).name
    shutil.copytree(FIXTURES / entry["path"], target, symlinks=True)
    return target


def looked(path: Path, *, deep: bool = False) -> VerifyReport | None:
    """Verify; None where nothing is left that could be looked at.  A crashed rule is a failure of the test."""
    try:
        report = ckpt_tools.verify(str(path), settle=0, deep=deep)
    except NothingFoundError:
        return None
    except CkptError as error:
        raise AssertionError(f"{path}: {error}") from error
    crashed = [finding.message for finding in report.all_findings() if finding.name == "rule-crashed"]
    assert not crashed, crashed
    return report


Known = frozenset[tuple[str, str, str]]


def known(report: VerifyReport | None) -> Known:
    """Return what is told of a fixture as it is."""
    found = report.all_findings() if report is not None else ()
    return frozenset((finding.code, finding.path, finding.message) for finding in found)


def loudest(report: VerifyReport | None, told: Known) -> Severity | None:
    """Return the worst that is told, but for what was told before the damage; FATAL where nothing is left."""
    if report is None:
        return Severity.FATAL
    new = [each.severity for each in report.all_findings() if (each.code, each.path, each.message) not in told]
    return max(new, default=None)


def structure(report: VerifyReport | None, told: Known) -> Told:
    severity = loudest(report, told)
    if severity is None:
        return Told.BY_NOBODY
    return {Severity.NOTE: Told.BY_A_NOTE, Severity.WARNING: Told.BY_A_WARNING}.get(severity, Told.BY_AN_ERROR)


def by_deep(report: VerifyReport | None, told: Known) -> bool:
    severity = loudest(report, told)
    return severity is not None and severity >= Severity.ERROR
