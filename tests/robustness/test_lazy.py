"""Nothing is loaded that a header can answer: the bytes that are read are counted."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.layouts.match import open_run
from tests.robustness.support import verified

Copy = Callable[..., Path]
GIGABYTE = 1 << 30


def sparse_safetensors(path: Path, tensors: int, size: int, prefix: str = "model.layers") -> None:
    """Write a real header over ``size`` bytes of tensors that take no disk."""
    each = size // tensors // 4 * 4
    header = {
        "__metadata__": {"format": "pt"},
        **{
            f"{prefix}.{number}.weight": {
                "dtype": "F32",
                "shape": [each // 4],
                "data_offsets": [number * each, number * each + each],
            }
            for number in range(tensors)
        },
    }
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    path.unlink(missing_ok=True)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    os.truncate(path, 8 + len(raw) + tensors * each)


def test_a_structural_verify_of_two_gigabytes_reads_less_than_a_hundredth(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    place = run / "checkpoint-6"
    sparse_safetensors(place / "model.safetensors", 290, 2 * GIGABYTE)
    report = verified(run)
    assert report.size > 2 * GIGABYTE
    assert 0 < report.bytes_read < report.size / 100
    assert report.bytes_read < 4 << 20


def test_a_large_torch_file_is_read_by_its_pickle_alone(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    place = tmp_path / "weights.pt"
    torch.save({f"layer.{number}": torch.zeros(1 << 19) for number in range(8)}, place)
    report = verified(place)
    assert report.size > 16 << 20
    assert report.bytes_read < report.size / 100


def test_latest_opens_nothing_older_than_what_it_prints(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    (run / "checkpoint-6" / "optimizer.pt").write_bytes(b"")
    opened = _opened_by_latest(run)
    assert opened
    assert "checkpoint-4" in opened
    assert "checkpoint-2" not in opened


def _opened_by_latest(run: Path) -> set[str]:
    """Return the names of the checkpoints in which ``latest`` opened a file."""
    from ckpt_tools.core import source as sources

    opened: set[str] = set()
    real = sources.os.open

    def recorded(path: object, *args: object, **more: object) -> int:
        relative = os.path.relpath(str(path), run)
        opened.add(relative.split(os.sep)[0])
        return real(path, *args, **more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources.os, "open", recorded)
        report = ckpt_tools.latest(str(run), settle=0)
    assert report.path is not None
    assert report.path.endswith("checkpoint-4")
    return opened


def test_every_file_is_opened_a_few_times_at_most(fixtures_dir: Path) -> None:
    """A rule that reads its file again would make many rules slow; scalars of an optimizer take a second look."""
    from ckpt_tools.layouts.view import View
    from ckpt_tools.ops import engine
    from ckpt_tools.rules.base import Settings

    run = open_run(fixtures_dir / "trainer5-full" / "checkpoint-4")
    view = View(run.checkpoints[0])
    engine.check(run, run.checkpoints[0], view, Settings(0, 0))
    engine.check_run(run, {".": view}, Settings(0, 0))
    opened = run.listing.meter.opened
    often = {name: opened.count(name) for name in opened if opened.count(name) > 3}
    assert not often


def test_sixty_thousand_tensors_are_listed(tmp_path: Path) -> None:
    """Rules must not be quadratic in the number of tensors; the suite's time limit is the judge."""
    sparse_safetensors(tmp_path / "model.safetensors", 60_000, GIGABYTE)
    report = verified(tmp_path / "model.safetensors")
    assert report.exit_code() in (0, 1)
    assert report.bytes_read < 32 << 20
