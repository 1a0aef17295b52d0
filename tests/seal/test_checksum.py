"""``ckpt checksum``: the same tensor has one digest, and other tools read what is printed for files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from ckpt_tools.core.errors import UsageError
from ckpt_tools.ops.checksum import checksum
from tests.architecture.package import REPOSITORY

Copy = Callable[..., Path]


def digests(path: Path) -> dict[str, str | None]:
    return {row.tensor or "": row.digest for row in checksum(str(path)).rows}


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "ckpt_tools", "checksum", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)


def test_the_same_tensor_has_the_same_digest_in_every_container(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    base = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))
    wide = torch.randn(40, 80, generator=torch.Generator().manual_seed(4))
    tensors = {
        "plain": base,
        "transposed": base.t(),
        "strided": wide[::3, 1::2],
        "repeated": base[:1].expand(5, 40),
        "slice": wide[7:9],
        "shared": base,
        "reshaped": base.view(40, 6),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "image": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        **{
            str(dtype).removeprefix("torch."): base.to(dtype)
            for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool)
        },
        "complex": torch.complex(base, base + 1),
        "e4m3": base.to(torch.float8_e4m3fn),
    }
    torch.save(tensors, tmp_path / "zip.bin")
    torch.save({name: value.clone() for name, value in tensors.items()}, tmp_path / "cloned.bin")
    legacy = {name: value for name, value in tensors.items() if name != "e4m3"}
    torch.save(legacy, tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
    dense = {name: value.contiguous().clone() for name, value in tensors.items()}
    save_file(dense, tmp_path / "model.safetensors")
    expected = digests(tmp_path / "model.safetensors")
    assert None not in expected.values()
    assert digests(tmp_path / "zip.bin") == expected
    assert digests(tmp_path / "cloned.bin") == expected
    assert digests(tmp_path / "legacy.bin") == {name: expected[name] for name in legacy}
    assert expected["plain"] == expected["shared"]
    assert len(set(expected.values())) == len(expected) - 1, "dtype, shape and order of elements all count"


def test_a_digest_is_over_type_shape_and_bytes_as_documented(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    value = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    torch.save({"w": value.t()}, tmp_path / "w.bin")
    data = value.t().contiguous().numpy().tobytes()
    head = b"ckpt-tools/tensor/1\0float32\0003,2\0"
    expected = "blake3-32m:" + blake3(head + blake3(data).digest()).hexdigest()
    assert digests(tmp_path / "w.bin") == {"w": expected}


def test_the_manifest_and_the_command_agree(copy_of: Copy) -> None:
    from tests.seal.support import MANIFEST, sealed

    place = copy_of("trainer5-full/checkpoint-2")
    printed = {(row.path, row.tensor): row.digest for row in checksum(str(place)).rows}
    sealed(place)
    files = json.loads((place / MANIFEST).read_text())["files"]
    written = {
        (path, name): each["digest"] for path, file in files.items() for name, each in file.get("tensors", {}).items()
    }
    assert printed == written


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads: int, fixtures_dir: Path) -> None:
    run_directory = str(fixtures_dir / "trainer5-full")
    for by in ("tensor", "file"):
        assert checksum(run_directory, by=by, jobs=threads).rows == checksum(run_directory, by=by).rows


def test_sha256sum_reads_what_is_printed(copy_of: Copy, tmp_path: Path) -> None:
    place = copy_of("trainer5-full", "out")
    (place / "checkpoint-2" / "back\\slash\nand line").write_text("x")
    (place / "checkpoint-2" / "spaces and é").write_text("y")
    done = run("out", "--by", "file", "--algorithm", "sha256", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    sums = tmp_path / "SUMS"
    sums.write_bytes(done.stdout)
    checked = subprocess.run(["sha256sum", "-c", "--strict", sums], cwd=tmp_path, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count(b": OK") == sum(path.is_file() for path in place.rglob("*"))
    with (place / "config.json").open("a") as file:
        file.write(" ")
    assert subprocess.run(["sha256sum", "-c", sums], cwd=tmp_path, capture_output=True, check=False).returncode == 1


def test_one_file_is_printed_as_it_was_typed(copy_of: Copy, tmp_path: Path) -> None:
    file = copy_of("trainer5-full/checkpoint-2") / "model.safetensors"
    done = run("checkpoint-2/model.safetensors", "--by", "file", folder=tmp_path)
    expected = blake3(file.read_bytes()).hexdigest()
    assert done.stdout.decode() == f"{expected}  checkpoint-2/model.safetensors\n"
    printed = run("checkpoint-2/model.safetensors", folder=tmp_path).stdout.decode().splitlines()
    assert printed[0].endswith("  float32 [32, 8]  lm_head.weight")
    inside = run("checkpoint-2", folder=tmp_path).stdout.decode().splitlines()
    assert printed[0].replace("  lm_head", "  model.safetensors: lm_head") in inside


def test_a_name_that_is_no_text_is_printed_byte_by_byte(copy_of: Copy, tmp_path: Path) -> None:
    place = copy_of("trainer5-full/checkpoint-2")
    (Path(os.fsdecode(os.fsencode(place) + b"/bad\xff"))).write_bytes(b"x")
    assert b"/bad\xff\n" in run("checkpoint-2", "--by", "file", folder=tmp_path).stdout


def test_json_is_the_documented_one(fixtures_dir: Path) -> None:
    document = checksum(str(fixtures_dir / "trainer5-full" / "checkpoint-2")).document()
    assert document["schema"] == "ckpt-tools/checksum/1"
    (weights,) = (file for file in document["files"] if file["path"] == "model.safetensors")
    assert weights["tensors"][0].keys() == {"name", "dtype", "shape", "digest"}
    document = checksum(str(fixtures_dir / "trainer5-full" / "checkpoint-2"), by="file", algorithm="sha256").document()
    assert all(file["digest"].startswith("sha256:") for file in document["files"])


def test_tensors_have_one_algorithm(fixtures_dir: Path) -> None:
    with pytest.raises(UsageError):
        checksum(str(fixtures_dir / "trainer5-full"), algorithm="sha256")


def test_what_cannot_be_read_is_told_and_the_rest_is_printed(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpt_tools.core import source

    place = copy_of("trainer5-full/checkpoint-2")
    whole = len(checksum(str(place), by="file").rows)
    real = source.FileSource.read_into

    def failing(self: source.FileSource, offset: int, buffer: memoryview) -> None:
        if self.name == "optimizer.pt":
            raise source.SourceError(self.name, "Input/output error at byte 0", errno=5)
        real(self, offset, buffer)

    monkeypatch.setattr(source.FileSource, "read_into", failing)
    report = checksum(str(place), by="file")
    assert (len(report.rows), report.exit_code) == (whole - 1, 3)
    assert list(report.remarks()) == ["could not be read: optimizer.pt: Input/output error at byte 0"]
    assert checksum(str(place)).exit_code == 3
