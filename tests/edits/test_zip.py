"""Edited torch zips: every loader takes them, and none takes a copy that was cut inside the new tail."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.containers import reader, zip_directory
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.core.listing import scan
from ckpt_tools.core.source import BytesSource, FileSource
from ckpt_tools.edits import zip_patch
from ckpt_tools.edits.apply import apply
from ckpt_tools.edits.back import undo
from ckpt_tools.edits.journal import home_of
from ckpt_tools.edits.zip_patch import edit_zip
from ckpt_tools.model.plan import AppendBytes, PatchBytes, Plan
from tests.edits.crash import Quick

Copy = Callable[..., Path]
RATE = 0.123456789


def edited(file: Path, patches: list[tuple[int, bytes]], records: Mapping[str, bytes] | None = None) -> Plan:
    """Plan and apply an edit of one file of a checkpoint."""
    with FileSource(file, file.name) as source:
        actions = edit_zip(source, file.name, patches, records)
    plan = Plan.of("an edit", actions, scan(file.parent).files)
    apply(home_of(file.parent), plan, disk=Quick())
    return plan


def pickle_of(file: Path) -> tuple[str, int, bytes]:
    """Return the pickle's record name, its place and its bytes."""
    with FileSource(file, file.name) as source:
        (entry,) = (each for each in zip_directory.read(source).entries if each.name.endswith("/data.pkl"))
        return entry.name, entry.start, source.read(entry.start, entry.packed)


def rate_patch(file: Path) -> tuple[int, bytes]:
    """Return the patch that makes the last learning rate ``RATE``: a float of a pickle always has nine bytes."""
    _, start, data = pickle_of(file)
    place = data.rindex(b"G", 0, data.index(b"betas"))
    return start + place + 1, struct.pack(">d", RATE)


def longer(data: bytes) -> bytes:
    """Return the pickle with a byte more: the first small integer is written in four bytes instead of one."""
    at = data.index(b"K\x00")
    return data[:at] + b"M\x00\x00" + data[at + 2 :]


def check_zip(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
    if shutil.which("unzip"):
        done = subprocess.run(["unzip", "-tq", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    with FileSource(file, file.name) as source:
        assert reader.read(source).problems == ()


def check_descriptors(file: Path) -> None:
    """Require that every record has its checksum behind it too, where torch writes it."""
    data = file.read_bytes()
    with FileSource(file, file.name) as source:
        for entry in zip_directory.read(source).entries:
            if entry.packed:
                end = entry.start + entry.packed
                assert data[end : end + 8] == b"PK\x07\x08" + entry.crc32.to_bytes(4, "little")
                assert zlib.crc32(data[entry.start : end]) == entry.crc32


def loads(file: Path) -> list[Any]:
    torch = pytest.importorskip("torch")
    return [
        torch.load(file, weights_only=False),
        torch.load(file, weights_only=True),
        torch.load(file, weights_only=True, mmap=True),
    ]


def same(left: Any, right: Any) -> bool:
    import torch

    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@pytest.fixture
def optimizer(copy_of: Copy) -> Path:
    return copy_of("trainer5-full/checkpoint-4") / "optimizer.pt"


class TestPatch:
    def test_a_rate_and_its_checksums(self, optimizer: Path) -> None:
        plan = edited(optimizer, [rate_patch(optimizer)])
        assert [len(action.new) for action in plan.actions if isinstance(action, PatchBytes)] == [8, 4, 4]
        check_zip(optimizer)
        before = loads(optimizer)[0]
        assert all(same(each, before) for each in loads(optimizer))
        assert RATE in [group["lr"] for group in before["param_groups"]]

    def test_a_tensor_that_is_the_whole_record(self, optimizer: Path) -> None:
        with FileSource(optimizer, optimizer.name) as source:
            steps = [ref for name, ref in reader.read(source).tensors.items() if name.endswith(".step")]
        edited(optimizer, [(ref.chunks[0].extent.offset, struct.pack("<f", 77.0)) for ref in steps])
        check_zip(optimizer)
        assert {float(state["step"]) for state in loads(optimizer)[2]["state"].values()} == {77.0}

    def test_random_patches_keep_every_checksum_right(self, optimizer: Path) -> None:
        fate = random.Random(7)
        with FileSource(optimizer, optimizer.name) as source:
            entries = [entry for entry in zip_directory.read(source).entries if entry.packed]
        patches = []
        for entry in fate.sample(entries, 6):
            size = fate.randint(1, entry.packed)
            at = fate.randint(0, entry.packed - size)
            patches.append((entry.start + at, fate.randbytes(size)))
        edited(optimizer, patches)
        data = optimizer.read_bytes()
        assert all(data[at : at + len(new)] == new for at, new in patches)
        with zipfile.ZipFile(optimizer) as archive:
            assert archive.testzip() is None
        check_descriptors(optimizer)

    def test_a_large_record_is_not_read(self, optimizer: Path) -> None:
        class Counting(BytesSource):
            read_bytes = 0

            def read_into(self, offset: int, buffer: memoryview) -> None:
                self.read_bytes += len(buffer)
                super().read_into(offset, buffer)

        def zipped(size: int) -> tuple[int, int]:
            path = optimizer.parent / "big.zip"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a/data.pkl", b".")
                archive.writestr("a/data/0", bytes(size))
            source = Counting(path.read_bytes(), "big.zip")
            (entry,) = (each for each in zip_directory.read(source).entries if each.size == size)
            source.read_bytes = 0
            actions = edit_zip(source, "big.zip", [(entry.start + 100, b"\x01")])
            return source.read_bytes, len(actions)

        small, large = zipped(100_000), zipped(50_000_000)
        assert large == small
        assert large[0] < 70_000

    def test_a_zip_of_python_has_its_checksum_in_the_local_header(self, tmp_path: Path) -> None:
        file = tmp_path / "a.pt"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/data.pkl", b"0123456789")
        edited(file, [(file.read_bytes().index(b"0123"), b"abcd")])
        check_plain(file, {"a/data.pkl": b"abcd456789"})

    def test_without_checksums_none_is_written(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        file = tmp_path / "optimizer.pt"
        torch.serialization.set_crc32_options(False)
        try:
            torch.save({"lr": [0.5], "betas": 1, "t": torch.zeros(9)}, file)
        finally:
            torch.serialization.set_crc32_options(True)
        plan = edited(file, [rate_patch(file)])
        with FileSource(file, file.name) as source:
            protected = any(entry.crc32 for entry in zip_directory.read(source).entries)
        assert protected or len(plan.actions) == 1
        assert loads(file)[1]["lr"] == [RATE]

    @pytest.mark.parametrize("place", ["header", "across", "behind"])
    def test_bytes_that_are_no_record_are_refused(self, optimizer: Path, place: str) -> None:
        _, start, data = pickle_of(optimizer)
        offset = {"header": 4, "across": start + len(data) - 2, "behind": optimizer.stat().st_size - 4}[place]
        with FileSource(optimizer, "o") as source, pytest.raises(EditRefusedError, match="not those of one record"):
            edit_zip(source, "o", [(offset, b"1234")])


def check_plain(file: Path, expected: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == expected


class TestAppend:
    def test_a_longer_pickle(self, optimizer: Path) -> None:
        size = optimizer.stat().st_size
        before = loads(optimizer)[0]
        name, _, data = pickle_of(optimizer)
        plan = edited(optimizer, [], {name: longer(data)})
        check_zip(optimizer)
        assert all(same(each, before) for each in loads(optimizer))
        now, start, new = pickle_of(optimizer)
        assert (now, new) == (name, longer(data))
        assert start > size
        assert start % zip_patch.ALIGNMENT == 0
        assert isinstance(plan.actions[-1], PatchBytes)
        assert plan.actions[-1].new == bytes(4)

    def test_patches_and_a_new_record_at_once(self, optimizer: Path) -> None:
        name, _, data = pickle_of(optimizer)
        with FileSource(optimizer, optimizer.name) as source:
            refs = [ref for key, ref in reader.read(source).tensors.items() if key.endswith(".step")]
        patches = [(ref.chunks[0].extent.offset, struct.pack("<f", 9.0)) for ref in refs]
        edited(optimizer, patches, {name: longer(data)})
        check_zip(optimizer)
        check_descriptors(optimizer)
        assert {float(state["step"]) for state in loads(optimizer)[2]["state"].values()} == {9.0}

    def test_again_and_again_and_all_back(self, optimizer: Path) -> None:
        original = optimizer.read_bytes()
        name, _, data = pickle_of(optimizer)
        for more in range(1, 4):
            edited(optimizer, [], {name: data + b"\0" * more})
            edited(optimizer, [rate_patch(optimizer)])
            check_zip(optimizer)
            assert optimizer.read_bytes().count(zip_directory.END) == 1
        for _ in range(6):
            undo(home_of(optimizer.parent), disk=Quick())
        assert optimizer.read_bytes() == original

    def test_an_offset_above_four_gigabytes(self, optimizer: Path) -> None:
        """The numbers of a sparse file: nothing is written, the tail is only looked at."""
        far = 5 << 30
        name, _, data = pickle_of(optimizer)
        whole = optimizer.read_bytes()
        with FileSource(optimizer, "o") as source:
            directory = zip_directory.read(source)
        file = optimizer.parent / "sparse.pt"
        central = whole[directory.central : directory.end]
        with file.open("wb") as stream:
            stream.write(whole[: directory.central])
            stream.seek(far)
            stream.write(moved(central, far - directory.central))
        with FileSource(file, "sparse.pt") as source:
            actions = edit_zip(source, "sparse.pt", [], {name: longer(data)})
        apply(home_of(file.parent), Plan.of("far", actions, scan(file.parent).files), disk=Quick())
        with zipfile.ZipFile(file) as archive:
            info = archive.getinfo(name)
            assert info.header_offset > far
            assert archive.read(name) == longer(data)
        with FileSource(file, "sparse.pt") as source:
            assert reader.read(source).problems == ()
        loads(file)

    def test_what_is_refused(self, optimizer: Path, tmp_path: Path) -> None:
        packed = tmp_path / "packed.pt"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", b"0" * 1000)
        cut = tmp_path / "cut.pt"
        cut.write_bytes(optimizer.read_bytes()[:-1])
        cases = [(packed, "a/data.pkl", "compressed"), (cut, "x", "cut short"), (optimizer, "none", "no record none")]
        for file, record, words in cases:
            with FileSource(file, "f") as source, pytest.raises(EditRefusedError, match=words):
                edit_zip(source, "f", [], {record: b"1"})


def moved(tail: bytes, by: int) -> bytes:
    """Return a directory and its end records as they are when they lie ``by`` bytes further on."""
    data = bytearray(tail)
    for mark, place, width in ((b"PK\x06\x06", 48, 8), (b"PK\x06\x07", 8, 8), (b"PK\x05\x06", 16, 4)):
        at = data.rindex(mark) + place
        value = int.from_bytes(data[at : at + width], "little") + by
        data[at : at + width] = min(value, (1 << 8 * width) - 1).to_bytes(width, "little")
    return bytes(data)


class TestCut:
    """An edited file that is cut anywhere in its new tail: refused by every loader, never the old values."""

    @pytest.fixture
    def tail(self, tmp_path: Path) -> tuple[bytes, int]:
        torch = pytest.importorskip("torch")
        file = tmp_path / "optimizer.pt"
        torch.save({"lr": [0.5], "betas": 1, "t": torch.arange(9)}, file)
        size = file.stat().st_size
        name, _, data = pickle_of(file)
        at = data.index(b"G") + 1
        plan = edited(file, [], {name: data[:at] + struct.pack(">d", RATE) + data[at + 8 :] + b"\0"})
        assert isinstance(plan.actions[0], AppendBytes)
        assert loads(file)[0]["lr"] == [RATE]
        return file.read_bytes(), size

    def test_torch(self, tail: tuple[bytes, int], tmp_path: Path) -> None:
        import torch

        whole, size = tail
        file = tmp_path / "cut.pt"
        for end in range(size, len(whole)):
            file.write_bytes(whole[:end])
            for options in ({"weights_only": True}, {"weights_only": True, "mmap": True}, {"weights_only": False}):
                with pytest.raises((RuntimeError, OSError)):
                    torch.load(file, **options)

    def test_python_unzip_and_this_tool(self, tail: tuple[bytes, int], tmp_path: Path) -> None:
        whole, size = tail
        file = tmp_path / "cut.pt"
        for end in range(size, len(whole)):
            file.write_bytes(whole[:end])
            with pytest.raises(zipfile.BadZipFile):
                zipfile.ZipFile(file)
            with FileSource(file, "cut.pt") as source:
                assert [problem.kind for problem in reader.read(source).problems] == ["file-cut-short"]
            if end % 97 == 0 and shutil.which("unzip"):
                done = subprocess.run(["unzip", "-tq", str(file)], capture_output=True, check=False)
                assert done.returncode

    def test_filled_with_zeros_instead(self, tail: tuple[bytes, int], tmp_path: Path) -> None:
        import torch

        whole, size = tail
        file = tmp_path / "cut.pt"
        for end in range(size, len(whole) - 22, 13):
            file.write_bytes(whole[:end].ljust(len(whole), b"\0"))
            with pytest.raises((RuntimeError, OSError)):
                torch.load(file, weights_only=True)
