"""A record gets another length, and the zip keeps its own, with every other payload where it was."""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ckpt_tools.core.errors import EditRefusedError  # noqa: E402
from ckpt_tools.core.source import BytesSource  # noqa: E402
from ckpt_tools.edits.overlay import Edited  # noqa: E402
from ckpt_tools.edits.zip_room import refit_zip  # noqa: E402


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def refitted(raw: bytes, payload: bytes) -> bytes:
    source = BytesSource(raw, "x")
    return Edited(source, refit_zip(source, "x", (), {"archive/data.pkl": payload})).read(0, len(raw))


def places(raw: bytes) -> dict[str, tuple[int, bytes]]:
    """Return where the payload of every record begins, and what it is."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert archive.testzip() is None
        found = {}
        for record in archive.infolist():
            header = raw[record.header_offset :]
            start = record.header_offset + 30 + int.from_bytes(header[26:28], "little")
            found[record.filename] = start + int.from_bytes(header[28:30], "little"), archive.read(record)
    return found


@pytest.mark.parametrize("size", range(0, 130, 3))
@pytest.mark.parametrize("kind", ["numbers", "tensor"])
def test_every_length_fits_or_is_refused(size: int, kind: str) -> None:
    raw = saved(list(range(20)) if kind == "numbers" else torch.arange(3.0))
    before = places(raw)
    room = before["archive/.format_version"][0] - before["archive/data.pkl"][0] - 16 - 53 - 4
    payload = pickle.dumps("x" * size, 2)
    if len(payload) > room:
        with pytest.raises(EditRefusedError, match="cannot move"):
            refitted(raw, payload)
        return
    after = refitted(raw, payload)
    assert len(after) == len(raw)
    assert places(after) == before | {"archive/data.pkl": (before["archive/data.pkl"][0], payload)}
    assert torch.load(io.BytesIO(after), weights_only=True) == "x" * size


def test_the_longest_that_fits_is_taken() -> None:
    raw = saved(1)
    start, behind = places(raw)["archive/data.pkl"][0], places(raw)["archive/.format_version"][0]
    room = behind - start - 16 - 53 - 4
    assert len(refitted(raw, b"x" * room)) == len(raw)
    with pytest.raises(EditRefusedError, match="cannot move"):
        refitted(raw, b"x" * (room + 1))


def test_there_and_back() -> None:
    raw = saved([1, 2])
    (_, payload) = places(raw)["archive/data.pkl"]
    longer = pickle.dumps([1.0, 2.0], 2)
    assert places(refitted(refitted(raw, longer), payload)) == places(raw)


@pytest.mark.parametrize("record", ["archive/nothing", "archive/.data/serialization_id"])
def test_a_record_with_nothing_behind_it_is_refused(record: str) -> None:
    source = BytesSource(saved(1), "x")
    with pytest.raises(EditRefusedError, match="cannot move"):
        refit_zip(source, "x", (), {record: bytes(80)})


def test_a_zip_of_others_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"a" * 5)
        archive.writestr("archive/version", b"3\n")
    with pytest.raises(EditRefusedError, match="cannot move"):
        refitted(buffer.getvalue(), b"a" * 6)
