"""Checksums of a torch zip that were damaged, written again where a manifest proves every other byte."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.ops.repair import repair
from ckpt_tools.ops.seal import seal
from ckpt_tools.ops.undo import undo
from ckpt_tools.reports.repair import REFUSED
from tests.conftest import Copy
from tests.repair.support import codes, snapshot, states

PLACES = ("directory", "descriptor", "header", "both")


def _record(file: Path) -> zipfile.ZipInfo:
    with zipfile.ZipFile(file) as opened:
        return max(opened.infolist(), key=lambda each: ("/data/" in each.filename, each.file_size))


def _damage_bytes(file: Path) -> None:
    """Flip a byte of a tensor."""
    record, data = _record(file), bytearray(file.read_bytes())
    head = record.header_offset
    lengths = [int.from_bytes(data[head + at : head + at + 2], "little") for at in (26, 28)]
    data[head + 30 + sum(lengths) + 3] ^= 0xFF
    file.write_bytes(data)


def _damage(file: Path, place: str) -> None:
    """Flip bits of the checksums of the largest record, where they are stored."""
    record, data = _record(file), bytearray(file.read_bytes())
    crc = record.CRC.to_bytes(4, "little")
    with zipfile.ZipFile(file) as opened:
        start = opened.start_dir
    inside = data.index(crc, record.header_offset + record.file_size)
    listed = data.index(crc, start)
    assert inside < start
    if place in ("directory", "both"):
        data[listed] ^= 0x10
    if place in ("descriptor", "both"):
        data[inside + 1] ^= 0x01
    if place == "header":
        data[record.header_offset + 14] ^= 0x10
    file.write_bytes(data)


@pytest.fixture
def sealed(copy_of: Copy) -> Path:
    path = copy_of("trainer5-full/checkpoint-2")
    seal(str(path), settle=0)
    return path


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt"])
def test_wrong_checksums_of_proven_bytes_are_written_again(sealed: Path, place: str, name: str) -> None:
    file = sealed / name
    wanted = file.read_bytes()
    _damage(file, place)
    assert file.read_bytes() != wanted
    if place in ("directory", "both"):
        assert zipfile.ZipFile(file).testzip() is not None
    before = {each.code for each in ckpt_tools.verify(str(sealed), settle=0, deep=True).all_findings()}
    assert before & {"CK401", "CK413"}
    assert states(repair(str(sealed), settle=0))["refresh-checksums"] == "waiting"
    assert not list((sealed / ".ckpt-tools").glob("quarantine/*"))
    damaged = snapshot(sealed)
    report = repair(str(sealed), settle=0, write=True)
    assert states(report)["refresh-checksums"] == "done"
    assert report.exit_code == 0
    assert report.files
    assert file.read_bytes() == wanted
    assert zipfile.ZipFile(file).testzip() is None
    after = {each.code for each in ckpt_tools.verify(str(sealed), settle=0, deep=True).all_findings()}
    assert not after & {"CK401", "CK413"}
    undo(str(sealed), settle=0)
    assert snapshot(sealed) == damaged


def test_the_loaders_take_the_file_again(sealed: Path) -> None:
    torch = pytest.importorskip("torch")
    file = sealed / "optimizer.pt"
    wanted = torch.load(file, weights_only=True)
    _damage(file, "both")
    repair(str(sealed), settle=0, write=True)
    found = torch.load(file, weights_only=True)
    assert torch.equal(found["state"][0]["exp_avg"], wanted["state"][0]["exp_avg"])
    if shutil.which("unzip") is not None:
        assert subprocess.run(["unzip", "-tq", file], capture_output=True, check=False).returncode == 0


def test_damaged_bytes_are_refused_whatever_the_checksums_say(sealed: Path) -> None:
    file = sealed / "optimizer.pt"
    _damage_bytes(file)
    _damage(file, "descriptor")
    before = snapshot(sealed)
    report = repair(str(sealed), settle=0, write=True)
    (row,) = [each for each in report.repairs if each.kind == "refresh-checksums"]
    assert row.state == REFUSED
    assert "not those that were sealed" in str(row.reason)
    assert snapshot(sealed) == before
    assert report.exit_code == 1


def test_a_checksum_that_fits_damaged_bytes_is_not_taken_for_damage(sealed: Path) -> None:
    """Bytes changed and the checksum as it was: nothing contradicts but the bytes, and no fix is made up."""
    file = sealed / "optimizer.pt"
    _damage_bytes(file)
    report = repair(str(sealed), settle=0, write=True)
    assert "refresh-checksums" not in states(report)
    assert "CK415" in {each.code for each in report.left}


def test_without_a_manifest_nothing_proves_the_bytes(copy_of: Copy) -> None:
    path = copy_of("trainer5-full/checkpoint-2")
    _damage(path / "optimizer.pt", "directory")
    before = snapshot(path)
    assert "refresh-checksums" not in states(repair(str(path), settle=0, write=True))
    assert snapshot(path) == before
    assert "CK401" not in codes(path)
