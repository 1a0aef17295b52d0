"""A file cut anywhere gives a finding, and never an exception."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.differential.corpus import LEFT_OUT, subjects
from tests.differential.damages import container_of
from tests.differential.regions import of
from tests.robustness.support import FIXTURES, content_of, expected_of, verified

EVERY_OFFSET = (
    "hf-model/sharded/model-00001-of-00004.safetensors",
    "trainer5-lora/checkpoint-2/adapter_model.safetensors",
    "trainer5-full/checkpoint-2/scheduler.pt",
    "plain/scaler/scaler.pt",
    "peft/ia3/adapter_model.safetensors",
    "plain/odd/state-legacy.pth.tar",
    "trainer5-full/checkpoint-2/trainer_state.json",
    "trainer5-sharded/checkpoint-2/model.safetensors.index.json",
    "trainer5-lora/checkpoint-2/adapter_config.json",
)
"""Files of every container, cut at every offset; of the others, offsets are drawn."""

BLOCKS = 8
DRAWN = 10

CUT_AT_ITS_END = {"json": b"\n \t\r", "jsonl": b"\n \t\r"}
"""White space that a text loses without a loss."""


def _whole(data: bytes, size: int) -> bool:
    """Return whether a cut took nothing but white space after a text."""
    return not data[size:].strip(CUT_AT_ITS_END.get(container_of(data) or "", b""))


def _checked(path: Path, data: bytes, sizes: Iterator[int] | range) -> list[str]:
    expected = expected_of(path)
    silent = []
    for size in sizes:
        if not content_of(data[:size], path.name, expected).problems and not _whole(data, size):
            silent.append(f"{path.name} cut to {size} of {len(data)} bytes")
    return silent


@pytest.mark.parametrize("block", range(BLOCKS))
@pytest.mark.parametrize("name", EVERY_OFFSET)
def test_a_cut_at_every_offset_is_found(name: str, block: int) -> None:
    path = FIXTURES / name
    data = path.read_bytes()
    assert len(data) <= 64 << 10
    assert not _checked(path, data, range(block, len(data), BLOCKS))


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_cut_of_any_fixture_file_is_found(block: int) -> None:
    """Borders of records and headers, one byte beside them, and drawn offsets."""
    silent: list[str] = []
    for number, subject in enumerate(subjects()):
        if number % BLOCKS != block:
            continue
        data = subject.read()
        draw = random.Random(subject.path)
        starts = {region.name: region.start for region in of(data) if region.name in _BORDERS}
        borders = {start + beside for start in starts.values() for beside in (-1, 0, 1)}
        sizes = sorted(
            {size for size in borders if 0 <= size < len(data)}
            | set(draw.sample(range(len(data)), min(DRAWN, len(data))))
        )
        silent += _checked(FIXTURES / subject.path, data, iter(sizes))
    assert not silent


_BORDERS = ("header", "tensor-bytes", "pickle", "zip64-end", "end", "magic", "system-info", "storage-keys")


def test_a_large_file_cut_at_records_and_drawn_offsets_is_found(tmp_path: Path) -> None:
    """Beyond 64 KiB: a torch file and a safetensors file of 2 MiB, cut through the command's own path."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    tensors = {f"layer.{number}": torch.randn(64, 256) for number in range(32)}
    torch.save(tensors, tmp_path / "weights.pt")
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("weights.pt", "model.safetensors"):
        data = (tmp_path / name).read_bytes()
        assert len(data) > 2 << 20
        expected = expected_of(tmp_path / name)
        borders = {region.start + beside for region in of(data) for beside in (-1, 0, 1) if region.name in _BORDERS}
        drawn = random.Random(name).sample(range(len(data)), 500)
        silent = [
            size
            for size in sorted({*borders, *drawn} - {-1, len(data)})
            if not content_of(data[:size], name, expected).problems
        ]
        assert not silent
        (tmp_path / name).write_bytes(data[:-1])
        assert verified(tmp_path / name).exit_code() == 1


@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_files_that_no_oracle_loads_never_raise_when_cut(name: str) -> None:
    for path in sorted(FIXTURES.rglob(name))[:3]:
        if path.parent == FIXTURES:
            continue
        data = path.read_bytes()
        expected = expected_of(path)
        for size in range(0, len(data), 7):
            content_of(data[:size], path.name, expected)
