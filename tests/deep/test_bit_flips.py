"""Single flipped bits in tensor bytes of torch files are all seen, without a manifest."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ckpt_tools.containers import reader
from ckpt_tools.core.source import BytesSource
from ckpt_tools.model.findings import Purpose, Severity, Verdict
from ckpt_tools.numerics.streaming import Job, stream
from ckpt_tools.ops import deep, deep_plan
from tests.conftest import FIXTURES, Copy
from tests.deep.support import flip, one, verify

FLIPS = 10_000
ENDINGS = (".pt", ".pth", ".bin", ".ckpt")


def archives() -> list[Path]:
    found = []
    for path in sorted(FIXTURES.rglob("*")):
        if not path.is_file() or path.suffix not in ENDINGS or path.name == "no-crc32.pt":
            continue
        if path.read_bytes()[:4] == b"PK\x03\x04":
            found.append(path)
    return found


class Archive:
    """A torch file in memory whose records are compared again and again; what its pickle says is read once."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        content = reader.read(BytesSource(self.data, path.name))
        self.plan = deep_plan.plan(path.name, len(self.data), content, deep.Wants(statistics=False))
        regions = self.plan.regions
        self.with_tensors = [region for region in regions if deep_plan.names_in(self.plan, spans(region))]

    def mismatches(self, data: bytes) -> set[str]:
        job = Job("f", lambda: BytesSource(data, "f"), self.plan.spans)
        (outcome,) = stream([job], workers=1, task=_Task())
        return {r.record.name for r in self.plan.regions if deep._joined(self.plan, outcome, r) != r.record.crc32}


def spans(region: deep_plan.Region) -> range:
    return range(region.first, region.last)


class _Task:
    def advance(self, amount: int) -> None:
        pass


def test_ten_thousand_bits() -> None:
    """In each round one bit of every record that holds tensors is turned, and exactly these records are named."""
    generator = random.Random(20)
    opened = [archive for archive in map(Archive, archives()) if archive.with_tensors]
    assert len(opened) > 20
    for archive in opened:
        assert archive.mismatches(archive.data) == set()
    flips = 0
    while flips < FLIPS:
        for archive in opened:
            data = bytearray(archive.data)
            for region in archive.with_tensors:
                extent = region.record.extent
                tensor = generator.choice([n for n in spans(region) if archive.plan.owners[n]])
                span = archive.plan.spans[tensor]
                place = span.offset + generator.randrange(span.length)
                assert extent.offset <= place < extent.end
                data[place] ^= 1 << generator.randrange(8)
                flips += 1
            assert archive.mismatches(bytes(data)) == {region.record.name for region in archive.with_tensors}


def test_a_bit_in_an_optimizer_is_named_by_record_and_tensor(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    path = run / "checkpoint-4" / "optimizer.pt"
    content = reader.read(BytesSource(path.read_bytes(), "optimizer.pt"))
    ref = content.tensors["state.0.exp_avg"]
    extent = ref.chunks[0].extent
    flip(path, extent.offset + extent.length // 2, 3)
    report = verify(run)
    found = one(report, "CK401")
    record = next(each for each in content.records if each.extent.offset == extent.offset)
    assert found.severity is Severity.ERROR
    assert found.path == "checkpoint-4/optimizer.pt"
    assert found.at.record == record.name
    assert found.at.tensor == "state.0.exp_avg"
    assert any("state.0.exp_avg" in line for line in found.detail)
    hurt = next(each for each in report.checkpoints if each.path == "checkpoint-4")
    assert hurt.verdicts[Purpose.RESUME] is Verdict.BROKEN
    assert hurt.verdicts[Purpose.INFERENCE] is Verdict.READY
    assert report.exit_code() == 1


def test_a_bit_in_a_shared_storage_names_all_its_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    shared = torch.randn(64, 8)
    path = tmp_path / "weights.pt"
    torch.save({"a.weight": shared, "b.weight": shared, "row": shared[3]}, path)
    content = reader.read(BytesSource(path.read_bytes(), "weights.pt"))
    flip(path, content.tensors["a.weight"].chunks[0].extent.offset + 5, 1)
    found = one(verify(path), "CK401")
    assert any("a.weight, b.weight" in line for line in found.detail)


def test_a_bit_in_a_record_that_is_no_tensor(copy_of: Copy) -> None:
    path = copy_of("trainer5-full/checkpoint-2/rng_state.pth", "rng_state.pth")
    content = reader.read(BytesSource(path.read_bytes(), path.name))
    record = next(each for each in content.records if each.name.endswith("serialization_id"))
    flip(path, record.extent.offset)
    assert one(verify(path), "CK401").at.record == record.name


def test_lost_pages_inside_a_record_are_said(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.randn(100, 100) + 10}, path)
    data = bytearray(path.read_bytes())
    data[8192:16384] = bytes(8192)
    path.write_bytes(data)
    found = one(verify(path), "CK401")
    assert any("2 pages of 4,096 bytes" in line for line in found.detail)


def test_without_checksums_a_file_is_unprotected_and_not_damaged(copy_of: Copy) -> None:
    path = copy_of("plain/odd/no-crc32.pt")
    report = verify(path)
    assert one(report, "CK409").severity is Severity.NOTE
    assert report.exit_code() == 0
    content = reader.read(BytesSource(path.read_bytes(), path.name))
    extent = next(iter(content.tensors.values())).chunks[0].extent
    flip(path, extent.offset)
    assert {f.code for f in verify(path).all_findings() if f.severity > Severity.NOTE} == set()


def test_checksums_that_nothing_fits_were_never_any(copy_of: Copy) -> None:
    """Other versions write a value that is no CRC: not even the constant records fit then."""
    path = copy_of("trainer5-full/checkpoint-2/optimizer.pt", "optimizer.pt")
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        if data[at + 24 : at + 28] != bytes(4):
            data[at + 16] ^= 0x55
        at = data.find(b"PK\x01\x02", at + 4)
    path.write_bytes(data)
    report = verify(path)
    assert one(report, "CK409").severity is Severity.NOTE
    assert not [each for each in report.all_findings() if each.code == "CK401"]
