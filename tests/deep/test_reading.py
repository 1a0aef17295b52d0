"""What a look at a file knows: all types and views against torch, digests across containers, faults of the disk,
samples."""

from __future__ import annotations

import errno
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.core import listing
from ckpt_tools.core.errors import SourceError, UsageError
from ckpt_tools.core.source import FileSource
from ckpt_tools.layouts.match import open_run
from ckpt_tools.layouts.view import View
from ckpt_tools.numerics import gather
from ckpt_tools.ops import deep, deep_plan
from tests.conftest import Copy
from tests.deep.support import look, look_at_file, skipped, verify

torch = pytest.importorskip("torch")

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
          "float8_e5m2fnuz", "complex64", "complex128")  # fmt: skip
OTHERS = ("bool", "uint8", "int8", "int16", "int32", "int64")


def zoo(*, legacy: bool = False) -> dict[str, Any]:
    """Tensors of every type and every way to lie in a storage, some of them with NaN and Inf."""
    torch.manual_seed(3)
    made: dict[str, Any] = {}
    for dtype in FLOATS:
        if legacy and dtype.startswith("float8"):
            continue
        values = torch.randn(6, 10) * 3
        if dtype.startswith("complex"):
            values = torch.complex(values, values + 1)
        made[dtype] = values.to(getattr(torch, dtype))
        bad = values.clone()
        bad[4, 7] = float("nan")
        made[f"{dtype}.nan"] = bad.to(getattr(torch, dtype))
    for dtype in OTHERS:
        made[dtype] = torch.randint(0, 2, (5, 3)).to(getattr(torch, dtype))
    made["scalar"] = torch.tensor(float("-inf"))
    made["empty"] = torch.empty(0, 4)
    made["zero"] = torch.zeros(3, 3)
    big = torch.randn(40, 30)
    big[35, 3] = float("inf")
    big[2, 29] = float("nan")
    made |= {"big": big, "big.alias": big, "big.top": big[:20], "big.column": big[:, 3], "big.block": big[30:, 2:5]}
    lonely = torch.randn(30, 20)
    lonely[0, 19] = float("nan")
    lonely[29, 0] = float("nan")
    made |= {
        "left": lonely[:, :10],
        "turned": torch.randn(8, 9, 4).permute(2, 0, 1),
        "wide": torch.ones(3, 1).expand(3, 5),
    }
    turned = torch.randn(11, 13)
    turned[5, 7] = float("nan")
    made["turned.nan"] = turned.t()
    return made


def facts(tensor: torch.Tensor) -> dict[str, Any]:
    flat = tensor.contiguous().view(-1)
    if not (flat.is_floating_point() or flat.is_complex()):
        return {"nan": 0, "inf": 0, "first": None}
    parts = torch.view_as_real(flat).double() if flat.is_complex() else flat.double()
    bad = ~torch.isfinite(parts)
    rows = bad.any(-1) if flat.is_complex() else bad
    where = rows.nonzero()
    return {
        "nan": int(parts.isnan().sum()),
        "inf": int(parts.isinf().sum()),
        "first": int(where[0]) if len(where) else None,
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_type_and_view_against_torch(legacy: bool, tmp_path: Path) -> None:
    tensors = zoo(legacy=legacy)
    path = tmp_path / "zoo.pt"
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    summary = look_at_file(path)
    assert list(summary.tensors) == list(tensors)
    for name, tensor in tensors.items():
        each = summary.tensors[name]
        assert each.checked, (name, each.reason)
        want = facts(tensor)
        if name == "wide":
            assert (each.nan, each.inf) == (0, 0)
            continue
        assert {"nan": each.nan, "inf": each.inf, "first": each.first_bad} == want, name
        if each.largest is not None and want["first"] is None and not tensor.is_complex():
            assert math.isclose(each.largest, tensor.double().abs().max().item()), name
    assert summary.tensors["zero"].zero
    assert not summary.tensors["float32"].zero


def test_digests_are_of_tensors_and_not_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    monkeypatch.setattr(gather, "BLOCK", 256)
    tensors = zoo(legacy=True)
    torch.save(tensors, tmp_path / "zip.pt")
    torch.save(tensors, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    dense = {name: tensor.contiguous().clone() for name, tensor in tensors.items() if tensor.dtype != torch.complex128}
    save_file(dense, tmp_path / "dense.safetensors")
    wants = deep.Wants(digests=True)
    of_zip = {name: each.digest for name, each in look_at_file(tmp_path / "zip.pt", wants=wants).tensors.items()}
    of_legacy = {name: each.digest for name, each in look_at_file(tmp_path / "legacy.pt", wants=wants).tensors.items()}
    of_safe = {
        name: each.digest for name, each in look_at_file(tmp_path / "dense.safetensors", wants=wants).tensors.items()
    }
    assert of_zip == of_legacy
    assert all(str(digest).startswith("blake3-32m:") for digest in of_zip.values())
    assert of_safe == {name: of_zip[name] for name in dense}
    assert of_zip["big"] == of_zip["big.alias"] != of_zip["big.top"]


def test_a_digest_is_what_its_definition_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blake3 import blake3

    from ckpt_tools.numerics import digest, spans

    monkeypatch.setattr(digest, "PIECE", 1 << 12)
    monkeypatch.setattr(spans, "PIECE", 1 << 12)
    monkeypatch.setattr(spans, "BUFFER", 1 << 10)
    tensor = torch.randn(50, 70)
    torch.save({"w": tensor, "t": tensor.t()}, tmp_path / "w.pt")
    summary = look_at_file(tmp_path / "w.pt", wants=deep.Wants(digests=True))

    def defined(values: torch.Tensor) -> str:
        data = values.contiguous().view(torch.uint8).numpy().tobytes()
        pieces = [blake3(data[at : at + 4096]).digest() for at in range(0, len(data), 4096)]
        shape = ",".join(map(str, values.shape))
        head = b"ckpt-tools/tensor/1\0" + f"float32\0{shape}\0".encode()
        return "blake3-32m:" + blake3(head + b"".join(pieces)).hexdigest()

    assert summary.tensors["w"].digest == defined(tensor)
    assert summary.tensors["t"].digest == defined(tensor.t())
    assert sum(segment.length for segment in summary.segments) == summary.size
    body = b"".join(s.length.to_bytes(8, "little") + bytes.fromhex(s.digest.split(":")[1]) for s in summary.segments)
    assert summary.digest == "blake3-32m:" + blake3(b"ckpt-tools/file/1\0" + body).hexdigest()


def test_any_changed_byte_changes_the_digest_of_its_file(copy_of: Copy) -> None:
    path = copy_of("trainer5-full/checkpoint-2/model.safetensors", "model.safetensors")
    wants = deep.Wants(digests=True)
    before = look_at_file(path, wants=wants)
    generator = random.Random(9)
    original = path.read_bytes()
    for _ in range(20):
        place = generator.randrange(
            before.tensors[next(iter(before.tensors))].ref.chunks[0].extent.offset, len(original)
        )
        data = bytearray(original)
        data[place] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        after = look_at_file(path, wants=wants)
        assert after.digest != before.digest
        changed = [name for name in before.tensors if after.tensors[name].digest != before.tensors[name].digest]
        assert len(changed) == 1


def test_overlapping_views_cannot_make_it_read_for_ever(tmp_path: Path) -> None:
    base = torch.randn(3000, 1000)
    base[0, 0] = float("nan")
    views = {f"v{n}": base.view(-1)[n : 2_000_000 + n] for n in range(200)}
    path = tmp_path / "views.pt"
    torch.save(views, path)
    plan_of = look_at_file(path)
    reasons = {each.reason for each in plan_of.tensors.values() if not each.checked}
    assert reasons == {deep_plan.TOO_MANY}
    assert sum(each.checked for each in plan_of.tensors.values()) > 4


# Faults of the disk ---------------------------------------------------------------------------------------------


class Failing(FileSource):
    """A file with a place that the disk cannot read."""

    place = range(0)
    only = ""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if self.name == self.only and offset < self.place.stop and offset + len(buffer) > self.place.start:
            at = max(offset, self.place.start)
            raise SourceError(self.name, f"{os.strerror(errno.EIO)} at byte {at:,}", errno=errno.EIO)
        super().read_into(offset, buffer)


def broken_disk(monkeypatch: pytest.MonkeyPatch, name: str, place: range) -> None:
    monkeypatch.setattr(Failing, "place", place)
    monkeypatch.setattr(Failing, "only", name)
    monkeypatch.setattr(listing, "FileSource", Failing)


def test_an_io_error_names_file_offset_and_number_and_the_rest_is_checked(
    copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_of("trainer5-full/checkpoint-4", "checkpoint-4")
    hurt = path / "optimizer.pt"
    moments = {n: {"step": torch.tensor(4.0), "exp_avg": torch.randn(90, 90), "exp_avg_sq": torch.rand(90, 90)}
               for n in range(6)}  # fmt: skip
    torch.save({"state": moments, "param_groups": [{"lr": 0.1, "params": list(range(6))}]}, hurt)
    extents = {name: each.ref.chunks[0].extent for name, each in look_at_file(hurt).tensors.items()}
    bad, flipped = extents["state.1.exp_avg"], extents["state.3.exp_avg_sq"]
    data = bytearray(hurt.read_bytes())
    data[flipped.offset + 1] ^= 4
    hurt.write_bytes(data)
    broken_disk(monkeypatch, "optimizer.pt", range(bad.offset + 9000, bad.offset + 9001))
    report = verify(path)
    codes = {each.code: each for each in report.all_findings()}
    assert codes["CK002"].path == "optimizer.pt"
    assert codes["CK002"].message == f"cannot be read: input/output error at byte {bad.offset + 9000:,} (errno 5)"
    assert codes["CK401"].at.tensor == "state.3.exp_avg_sq"
    assert "1 tensor of optimizer.pt: could not be read" in skipped(report)
    assert f"{bad.length:,} bytes of optimizer.pt: they could not be read" in skipped(report)
    assert report.exit_code() == 3


def test_an_io_error_in_what_describes_a_file_has_its_number_too(
    copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_of("trainer5-full/checkpoint-4", "checkpoint-4")
    broken_disk(monkeypatch, "optimizer.pt", range(10))
    report = verify(path)
    found = next(each for each in report.all_findings() if each.code == "CK002")
    assert found.message == "cannot be read: input/output error at byte 0 (errno 5)"
    assert "bytes of optimizer.pt: they could not be read" in skipped(report)


def test_a_file_that_shrinks_underneath_is_told(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_of("trainer5-full/checkpoint-4", "checkpoint-4")
    target = path / "model.safetensors"
    plan = deep_plan.plan

    def shrink(*arguments: Any) -> deep_plan.Plan:
        made = plan(*arguments)
        if arguments[0] == "model.safetensors":
            os.truncate(target, 3000)
        return made

    monkeypatch.setattr(deep_plan, "plan", shrink)
    report = verify(path)
    found = next(each for each in report.all_findings() if each.code == "CK002")
    assert found.path == "model.safetensors"
    assert "became shorter while it was read" in found.message
    assert report.exit_code() == 3
    assert next(each for each in report.checkpoints if each.path == ".").depth == "deep"


def test_a_file_that_is_written_to_meanwhile_is_told(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_of("trainer5-full/checkpoint-4", "checkpoint-4")
    stream = deep.stream

    def write(*arguments: Any, **options: Any) -> Any:
        with (path / "optimizer.pt").open("ab") as out:
            out.write(b"more")
        return stream(*arguments, **options)

    monkeypatch.setattr(deep, "stream", write)
    found = next(each for each in verify(path).all_findings() if each.code == "CK002")
    assert (found.path, "changed while it was read" in found.message) == ("optimizer.pt", True)


def test_an_interruption_passes_through(copy_of: Copy) -> None:
    class Interrupting:
        def advance(self, amount: int) -> None:
            raise KeyboardInterrupt

    run = open_run(str(copy_of("trainer5-full/checkpoint-4", "checkpoint-4")))
    with pytest.raises(KeyboardInterrupt):
        deep.read(View(run.checkpoints[0]), task=Interrupting())


# Samples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 40])
@pytest.mark.parametrize(
    "name", ["trainer5-full/checkpoint-4", "trainer4-bin/checkpoint-4", "trainer5-sharded/checkpoint-2"]
)
def test_the_parts_of_a_sample_cover_every_byte_once(name: str, parts: int, fixtures_dir: Path) -> None:
    whole = look(fixtures_dir / name)
    checked: dict[tuple[str, str], int] = {}
    compared: dict[tuple[str, str], int] = {}
    read = 0
    for part in range(1, parts + 1):
        data = look(fixtures_dir / name, sample=deep_plan.parse_sample(f"{part}/{parts}", 0))
        for path, file in data.files.items():
            read += file.size - file.left_out
            for tensor, each in file.tensors.items():
                checked[path, tensor] = checked.get((path, tensor), 0) + each.checked
            for record in file.records:
                compared[path, record.name] = compared.get((path, record.name), 0) + (record.computed is not None)
                assert record.fits
    assert read == sum(file.size for file in whole.files.values())
    assert set(checked.values()) == {1}
    assert compared == {(path, record.name): 1 for path, file in whole.files.items() for record in file.records}


def test_percentages_move_on_every_day_until_all_was_read() -> None:
    taken = [deep_plan.parse_sample("5%", day).takes(1000, 1010, 50_000) for day in range(40)]
    assert sum(taken[:20]) == 1
    assert taken[:20] == taken[20:]
    assert deep_plan.parse_sample("100%", 3).takes(0, 10, 10)


@pytest.mark.parametrize("text", ["0/7", "8/7", "7", "0%", "101%", "x%", "1/0", "-1/3", "", "1/2/3", "nan%"])
def test_samples_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        deep_plan.parse_sample(text, 0)


def test_what_a_sample_left_out_is_said_and_not_judged(copy_of: Copy) -> None:
    path = copy_of("trainer5-full/checkpoint-4", "checkpoint-4")
    report = verify(path, sample="2/5")
    assert "left out by --sample 2/5" in skipped(report)
    assert "left out by the sample" in skipped(report)
    with pytest.raises(UsageError):
        __import__("ckpt_tools").verify(str(path), sample="2/5")
