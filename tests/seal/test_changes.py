"""What verify says when a sealed checkpoint changes: nothing slips through."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tools.core.source import BytesSource
from ckpt_tools.model.findings import Finding, Severity
from ckpt_tools.model.manifest import compare
from ckpt_tools.ops import sealed as manifests
from ckpt_tools.ops.sealed import SMALL
from tests.seal.support import MANIFEST, codes, flip, found, looked, safetensors, sealed

Copy = Callable[..., Path]


@pytest.fixture
def checkpoint(copy_of: Copy) -> Path:
    place = copy_of("trainer5-full/checkpoint-2")
    sealed(place)
    return place


@pytest.fixture
def large(copy_of: Copy) -> tuple[Path, dict[str, int]]:
    """A sealed model with a file of 3 MiB, and where its tensors begin."""
    place = copy_of("hf-model/tiny-llama")
    for weights in place.glob("*.safetensors"):
        weights.unlink()
    rng = random.Random(1)
    offsets = safetensors(place / "model.safetensors", {name: rng.randbytes(1 << 20) for name in ("a", "b", "c")})
    sealed(place, force=True)
    return place, offsets


def errors(path: Path, **options: object) -> list[Finding]:
    return found(looked(path, **options), Severity.ERROR)


def test_ten_thousand_flipped_bits_in_tensors_are_all_caught_by_name(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    good = file.read_bytes()
    then = {"w": manifests.load(str(checkpoint / MANIFEST), "m").files["model.safetensors"]}
    runs = [segment for segment in then["w"].segments or () if segment.tensor is not None]
    assert sum(segment.length for segment in runs) > 5000
    rng = random.Random(2026)
    missed = []
    for _ in range(10_000):
        segment = rng.choice(runs)
        at, bit = segment.offset + rng.randrange(segment.length), rng.randrange(8)
        data = bytearray(good)
        data[at] ^= 1 << bit
        now = manifests.digested(BytesSource(bytes(data), "w"), then["w"])
        changed = compare(then, {"w": now}).changed
        if [[tensor.name for tensor in each.tensors] for each in changed] != [[segment.tensor]]:
            missed.append((at, bit))
    assert missed == []
    assert not compare(then, {"w": manifests.digested(BytesSource(good, "w"), then["w"])}).any


def test_flipped_bits_of_a_large_file_are_caught_deep_by_name(large: tuple[Path, dict[str, int]]) -> None:
    place, offsets = large
    rng = random.Random(7)
    for _ in range(40):
        name = rng.choice(list(offsets))
        at = offsets[name] + rng.randrange(1 << 20)
        mask = 1 << rng.randrange(8)
        flip(place / "model.safetensors", at, mask)
        (only,) = errors(place, deep=True)
        assert (only.code, only.path, only.at.tensor) == ("CK415", "model.safetensors", name)
        assert "no edit" in only.detail[1]
        flip(place / "model.safetensors", at, mask)
    assert errors(place, deep=True) == []


def test_without_deep_a_large_file_is_compared_by_size(large: tuple[Path, dict[str, int]]) -> None:
    place, offsets = large
    flip(place / "model.safetensors", offsets["b"])
    assert errors(place) == []
    os.truncate(place / "model.safetensors", (place / "model.safetensors").stat().st_size - 4)
    (only,) = (each for each in errors(place) if each.code == "CK413")
    assert "has" in only.detail[0]


@pytest.mark.parametrize(
    "name", ["trainer5-full/checkpoint-2", "trainer4-bin-sharded/checkpoint-2", "trainer5-lora/checkpoint-2"]
)
def test_any_changed_byte_of_any_sealed_file_is_caught(name: str, copy_of: Copy) -> None:
    place = copy_of(name)
    sealed(place)
    rng = random.Random(5)
    for file in sorted(path for path in place.iterdir() if path.is_file()):
        good = file.read_bytes()
        for _ in range(5):
            data = bytearray(good)
            data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
            file.write_bytes(bytes(data))
            deep = errors(place, deep=True)
            assert deep, file
            assert {each.path for each in deep} == {file.name}
            assert {each.code for each in deep} <= {"CK413", "CK415", "CK416"}
            if len(good) <= SMALL:
                assert errors(place), file
        file.write_bytes(good)
    assert found(looked(place, deep=True)) == []


@pytest.mark.parametrize("deep", [False, True])
def test_any_change_of_a_size_is_caught_at_any_depth(deep: bool, checkpoint: Path) -> None:
    rng = random.Random(8)
    for file in sorted(path for path in checkpoint.iterdir() if path.is_file()):
        good = file.read_bytes()
        for data in (good[: rng.randrange(len(good))], good + b"\0", b""):
            file.write_bytes(data)
            assert file.name in {each.path for each in errors(checkpoint, deep=deep)}
        file.write_bytes(good)


def test_a_damaged_header_does_not_hide_which_tensors_changed(large: tuple[Path, dict[str, int]]) -> None:
    """Without its header nobody knows where tensors are; the manifest does."""
    place, offsets = large
    flip(place / "model.safetensors", 10, 0xFF)
    flip(place / "model.safetensors", offsets["c"] + 5)
    said = errors(place, deep=True)
    assert {(each.code, each.at.tensor) for each in said} == {("CK413", None), ("CK415", "c")}


def test_missing_and_extra_files_are_told(checkpoint: Path) -> None:
    (checkpoint / "scheduler.pt").unlink()
    (checkpoint / "README.md").write_text("x")
    (checkpoint / "pytorch_model.bin").write_bytes(b"x")
    report = looked(checkpoint)
    said = {(each.code, each.path): each.severity for each in found(report)}
    assert said == {
        ("CK412", "scheduler.pt"): Severity.ERROR,
        ("CK414", "README.md"): Severity.NOTE,
        ("CK414", "pytorch_model.bin"): Severity.WARNING,
    }
    assert report.exit_code() == 1


def test_a_file_in_the_place_of_a_directory_and_a_link_to_nowhere_are_missing(checkpoint: Path) -> None:
    (checkpoint / "scheduler.pt").unlink()
    (checkpoint / "scheduler.pt").mkdir()
    (checkpoint / "config.json").unlink()
    (checkpoint / "config.json").symlink_to("nowhere")
    assert {each.path for each in errors(checkpoint) if each.code == "CK412"} == {"scheduler.pt", "config.json"}


def test_a_file_written_anew_with_other_tensors_is_told_by_its_header(large: tuple[Path, dict[str, int]]) -> None:
    place, _ = large
    rng = random.Random(1)
    safetensors(place / "model.safetensors", {name: rng.randbytes(1 << 20) for name in ("a", "b", "z")})
    (only,) = (each for each in errors(place) if each.code == "CK416")
    assert only.detail == ("missing: c", "not sealed: z")


def test_a_file_swapped_with_its_neighbours_is_told(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    place = run / "checkpoint-2"
    sealed(place)
    (run / "checkpoint-4" / "optimizer.pt").replace(place / "optimizer.pt")
    said = codes(looked(place, deep=True), Severity.ERROR)
    assert said <= {"CK413", "CK415"}
    assert "CK415" in said


def test_verdicts_follow(checkpoint: Path) -> None:
    flip(checkpoint / "optimizer.pt", (checkpoint / "optimizer.pt").read_bytes().index(b"optimizer/data/1") + 100)
    report = looked(checkpoint)
    (only,) = report.checkpoints
    assert {str(key): str(value) for key, value in only.verdicts.items()} == {"resume": "broken", "inference": "ready"}


def test_a_sample_compares_what_it_reads(large: tuple[Path, dict[str, int]]) -> None:
    place, offsets = large
    flip(place / "model.safetensors", offsets["b"])
    said = [bool(errors(place, deep=True, sample=f"{part}/3")) for part in (1, 2, 3)]
    assert said.count(True) == 1


def test_a_sealed_neighbour_shows_what_is_out_of_range(copy_of: Copy) -> None:
    """The exponent of one weight is damaged, in a file without checksums: only a neighbour tells."""
    import ckpt_tools

    run = copy_of("trainer5-full")
    place = run / "checkpoint-4"
    data = (place / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    at = next(at for at in range(start, len(data), 4) if data[at + 3] & 0x7F == 0x3C)  # the bits of about 0.01
    flip(place / "model.safetensors", at + 3, 0x40)

    def said() -> list[str]:
        report = ckpt_tools.verify(str(place), settle=0, deep=True, select=("CK406",))
        return [each.code for each in report.all_findings()]

    assert said() == []
    sealed(run / "checkpoint-2")
    assert said() == [], "no magnitudes were noted"
    (run / "checkpoint-2" / ".ckpt-tools" / "manifest.json").unlink()
    sealed(run / "checkpoint-2", deep=True)
    assert said() == ["CK406"]


def test_a_deep_seal_refuses_what_a_deep_look_finds(copy_of: Copy) -> None:
    from ckpt_tools.ops.seal import seal

    place = copy_of("trainer5-full/checkpoint-2")
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\xc0\x7f")
    (made,) = seal(str(place), settle=0, deep=True).checkpoints
    assert made.status == "refused"
    assert any(each.code == "CK402" for each in made.findings)
    assert sealed(place).status == "sealed", "a shallow one does not look at values"
