"""``ckpt merge``: what is written, what is refused, and what is left when something goes wrong."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

import ckpt_tools
from ckpt_tools.core.durable import LocalDisk
from ckpt_tools.core.errors import CkptError, EditRefusedError, SourceError, UsageError
from ckpt_tools.core.progress import SILENT
from ckpt_tools.ops import merge_write
from tests.conftest import Copy
from tests.merge.support import FIXTURES, ckpt, header, raw


def bits(path: Path) -> bytes:
    return path.read_bytes()


@pytest.mark.parametrize("form", ["one-rank", "two-ranks", "columns"])
def test_every_sharding_of_a_model_gives_the_file_that_was_saved_whole(form: str, tmp_path: Path) -> None:
    report = ckpt_tools.merge(str(FIXTURES / "dcp/same-model" / form), str(tmp_path / "out"))
    assert report.exit_code == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["model.safetensors"]
    whole = raw(FIXTURES / "dcp/same-model/safetensors")
    assert raw(tmp_path / "out") == whole
    assert report.tensors == len(whole)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [("dcp/safetensors-serialization", "dcp/plain"), ("fsdp/fsdp2-rank-bins", "fsdp/fsdp2-sharded")],
)
def test_what_torch_itself_cannot_put_together(pieces: str, whole: str, tmp_path: Path) -> None:
    for name, out in ((pieces, "mine"), (whole, "other")):
        ckpt_tools.merge(str(FIXTURES / name), str(tmp_path / out))
    assert raw(tmp_path / "mine") == raw(tmp_path / "other")


@pytest.mark.parametrize(
    ("zero", "whole"),
    [
        ("stage1-fp32@4", "stage1-fp32-consolidated"),
        ("stage2-fp32@3", "stage2-fp32-consolidated"),
        ("stage3-fp32@4", "stage3-fp32-consolidated"),
        ("stage1-bf16@3", "stage1-bf16-consolidated"),
        ("stage3-bf16@3", "stage3-bf16-consolidated"),
    ],
)
def test_zero_gives_what_its_own_script_gives(zero: str, whole: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    report = ckpt_tools.merge(str(FIXTURES / "deepspeed" / zero), str(tmp_path / "out"))
    mine = load_file(tmp_path / "out" / "model.safetensors")
    place = FIXTURES / "deepspeed" / whole
    theirs: dict[str, Any] = {}
    for path in place.iterdir():
        if path.suffix == ".safetensors":
            theirs |= load_file(path)
        elif path.suffix == ".bin":
            theirs |= torch.load(path, weights_only=True)
    assert theirs.keys() <= {*mine, *report.tied}
    for name, tensor in theirs.items():
        # The script widens buffers and frozen weights to float32, which loses nothing.
        assert torch.equal(mine[report.tied.get(name, name)].to(tensor.dtype), tensor), name
    left = set(mine) - set(theirs)
    assert all(name.startswith("frozen.") for name in left)
    assert [each.what for each in report.left_out][:1] == ["optimizer state"]


def test_the_file_is_the_one_that_the_library_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(1)
    held = {
        "b.wide": torch.randn(3, 5, generator=generator, dtype=torch.float64),
        "a.narrow": torch.randn(7, generator=generator).to(torch.bfloat16),
        "z": torch.arange(5),
        "é": torch.ones(2, dtype=torch.bool),
        "half": torch.randn(2, 2, generator=generator).half(),
        "eight": torch.randn(9, generator=generator).to(torch.float8_e4m3fn),
        "none": torch.empty(0, 4),
        "scalar": torch.tensor(2.5),
    }
    (tmp_path / "in").mkdir()
    torch.save(held, tmp_path / "in" / "pytorch_model.bin")
    ckpt_tools.merge(str(tmp_path / "in"), str(tmp_path / "out"))
    save_file(held, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert bits(tmp_path / "out" / "model.safetensors") == bits(tmp_path / "theirs.safetensors")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == held.keys()


def test_shards_and_their_index_are_loaded_by_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = FIXTURES / "trainer5-sharded/checkpoint-4"
    report = ckpt_tools.merge(str(source), str(tmp_path / "out"), max_shard_size=2000)
    assert len(report.files) > 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in raw(tmp_path / "out").values())
    assert set(index["weight_map"]) == set(raw(tmp_path / "out")) == set(raw(source))
    for name, file in index["weight_map"].items():
        assert name in header(tmp_path / "out" / file)
    assert all(file.size - 2000 < 3000 or file.tensors == 1 for file in report.files)
    whole = transformers.AutoModelForCausalLM.from_pretrained(source)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    theirs = whole.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in merged.state_dict().items())
    assert ckpt_tools.verify(str(tmp_path / "out")).exit_code() == 0


def test_tied_weights_are_written_once_and_named(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_model

    shared = torch.randn(6, 4)
    (tmp_path / "in").mkdir()
    torch.save({"first.weight": shared, "second.weight": shared}, tmp_path / "in" / "pytorch_model.bin")
    report = ckpt_tools.merge(str(tmp_path / "in"), str(tmp_path / "out"))
    assert dict(report.tied) == {"second.weight": "first.weight"}
    assert list(raw(tmp_path / "out")) == ["first.weight"]
    model = torch.nn.ModuleDict(
        {"first": torch.nn.Linear(4, 6, bias=False), "second": torch.nn.Linear(4, 6, bias=False)}
    )
    model["second"].weight = model["first"].weight
    assert load_model(model, tmp_path / "out" / "model.safetensors") == (set(), [])
    assert torch.equal(model["second"].weight, shared)


def test_what_stays_behind_is_said(tmp_path: Path) -> None:
    done = ckpt("merge", FIXTURES / "trainer5-full/checkpoint-6", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("optimizer state", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"):
        assert word in done.stdout
    made = os.listdir(tmp_path / "out")
    assert sorted(made) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_fsdp_of_the_trainer_is_loaded_once_it_has_a_config(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    report = ckpt_tools.merge(str(FIXTURES / "fsdp/trainer-sharded/checkpoint-2"), str(tmp_path / "out"))
    assert any("config.json" in note for note in report.notes)
    whole = FIXTURES / "fsdp/trainer-full/checkpoint-2"
    (tmp_path / "out" / "config.json").write_bytes((whole / "config.json").read_bytes())
    model, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_masters_inside_of_a_trainer_checkpoint_are_named(tmp_path: Path) -> None:
    source = FIXTURES / "deepspeed/trainer-stage1/checkpoint-4"
    report = ckpt_tools.merge(str(source), str(tmp_path / "out"))
    assert any(f"ckpt merge {source}/global_step4" in note for note in report.notes)
    masters = ckpt_tools.merge(f"{source}/global_step4", str(tmp_path / "masters"))
    assert {dtype for dtype, _, _ in raw(tmp_path / "masters").values()} == {"F32"}
    assert masters.tensors == report.tensors


def test_json(tmp_path: Path) -> None:
    done = ckpt("merge", FIXTURES / "dcp/plain", tmp_path / "out", "--format", "json", "--max-shard-size", "100B")
    found = json.loads(done.stdout)
    assert found["schema"] == "ckpt-tools/merge/1"
    assert found["verified"] is True
    assert found["output"] == str(tmp_path / "out")
    assert [file["path"] for file in found["files"]][-1] == "model-00004-of-00004.safetensors"
    assert sum(file["tensors"] for file in found["files"]) == found["tensors"] == 4
    assert {each["what"] for each in found["left_out"]} == {"optimizer state", "scheduler"}
    told = ckpt_tools.checksum(str(tmp_path / "out"))
    assert found["digests"] == {row.tensor: row.digest for row in told.rows}
    assert (
        found["digests"].items()
        <= {row.tensor: row.digest for row in ckpt_tools.checksum(str(FIXTURES / "dcp/plain")).rows}.items()
    )


def test_a_run_gives_its_newest_good_checkpoint_and_a_step_that_one(tmp_path: Path) -> None:
    newest = ckpt_tools.merge(str(FIXTURES / "dcp/run"), str(tmp_path / "newest"))
    assert newest.source.endswith("step-4")
    assert newest.taken
    second = ckpt_tools.merge(f"{FIXTURES / 'dcp/run'}@2", str(tmp_path / "second"))
    assert second.source.endswith("step-2")
    assert raw(tmp_path / "newest") != raw(tmp_path / "second")


# Refusals --------------------------------------------------------------------------------------------------


def refused(source: Path, out: Path) -> str:
    with pytest.raises(EditRefusedError) as caught:
        ckpt_tools.merge(str(source), str(out))
    assert not os.path.lexists(out)
    assert not list(out.parent.glob("*.tmp-*"))
    return str(caught.value)


def test_what_exists_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("out", "out/", "link"):
        with pytest.raises(EditRefusedError, match="exists already"):
            ckpt_tools.merge(str(FIXTURES / "dcp/plain"), str(tmp_path / name))
    assert sorted(os.listdir(tmp_path)) == ["link", "out"]
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("fixture", "why"),
    [
        ("fsdp/fsdp1-local", "flat parameters"),
        ("keras/model.keras", "HDF5, which is not read"),
        ("orbax/standard", "arrays of Orbax are not read"),
        ("megatron/legacy/iter_0000003", "how they were cut is not stored"),
    ],
)
def test_weights_that_are_not_read_here_say_why(fixture: str, why: str, tmp_path: Path) -> None:
    assert why in refused(FIXTURES / fixture, tmp_path / "out")


@pytest.mark.parametrize("lost", ["__1_0.distcp", "__0_0.distcp"])
def test_a_missing_file(copy_of: Copy, tmp_path: Path, lost: str) -> None:
    place = copy_of("dcp/plain")
    (place / lost).unlink()
    assert lost in refused(place, tmp_path / "out")


def test_a_missing_rank_file_of_zero(copy_of: Copy, tmp_path: Path) -> None:
    place = copy_of("deepspeed/stage3-bf16") / "global_step3"
    (place / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    refused(place, tmp_path / "out")


def test_a_missing_shard(copy_of: Copy, tmp_path: Path) -> None:
    place = copy_of("trainer5-sharded/checkpoint-4")
    next(iter(sorted(place.glob("model-*.safetensors")))).unlink()
    refused(place, tmp_path / "out")


def test_a_file_that_is_cut(copy_of: Copy, tmp_path: Path) -> None:
    place = copy_of("dcp/same-model/two-ranks")
    os.truncate(place / "__1_0.distcp", 2000)
    refused(place, tmp_path / "out")


def flipped(path: Path, value: bytes) -> None:
    """Change one bit of the only place where a value stands."""
    data = bytearray(path.read_bytes())
    assert data.count(value) == 1
    data[data.index(value)] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_a_chunk_is_seen_by_its_checksum(copy_of: Copy, tmp_path: Path) -> None:
    place = copy_of("dcp/same-model/columns")
    # Columns 3 and 4 of the first row are the second rank's.
    flipped(place / "__1_0.distcp", raw(FIXTURES / "dcp/same-model/safetensors")["first.weight"][2][12:20])
    assert "does not fit its bytes [CK401]" in refused(place, tmp_path / "out")


def test_a_flipped_bit_in_a_partition_is_seen_by_its_checksum(copy_of: Copy, tmp_path: Path) -> None:
    ckpt_tools.merge(str(FIXTURES / "deepspeed/stage3-fp32@4"), str(tmp_path / "good"))
    place = copy_of("deepspeed/stage3-fp32") / "global_step4"
    value = raw(tmp_path / "good")["first.weight"][2][:32]
    flipped(place / "zero_pp_rank_0_mp_rank_00_optim_states.pt", value)
    assert "does not fit its bytes [CK401]" in refused(place, tmp_path / "out")


def test_no_weights_at_all(copy_of: Copy, tmp_path: Path) -> None:
    place = copy_of("trainer5-lora/checkpoint-4")
    assert "adapter" in refused(place, tmp_path / "out")


def test_too_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_tools.ops.merge.free_bytes", lambda path: 100)
    assert "too little space" in refused(FIXTURES / "dcp/plain", tmp_path / "out")


@pytest.mark.parametrize("out", ["model.safetensors", "nowhere/out"])
def test_names_that_cannot_be_meant(tmp_path: Path, out: str) -> None:
    with pytest.raises(UsageError):
        ckpt_tools.merge(str(FIXTURES / "dcp/plain"), str(tmp_path / out))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", ["nothing", "0", "-1"])
def test_sizes_that_cannot_be_meant(tmp_path: Path, size: str) -> None:
    assert ckpt("merge", FIXTURES / "dcp/plain", tmp_path / "out", "--max-shard-size", size).returncode == 2


# When it goes wrong ----------------------------------------------------------------------------------------


class Full(LocalDisk):
    """A disk that is full after some bytes of tensors."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, path: str, offset: int, data: bytes | memoryview) -> None:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(path, offset, data)


@pytest.mark.parametrize("room", [0, 100, 250])
def test_a_full_disk_leaves_nothing(tmp_path: Path, room: int) -> None:
    disk = Full(room)
    with pytest.raises(CkptError, match="no space left"):
        ckpt_tools.merge(str(FIXTURES / "dcp/plain"), str(tmp_path / "out"), disk=disk)
    disk.close()
    assert os.listdir(tmp_path) == []


class Liar(LocalDisk):
    """A disk that keeps another byte than it was given."""

    def write(self, path: str, offset: int, data: bytes | memoryview) -> None:
        wrong = bytearray(data)
        wrong[-1] ^= 4
        super().write(path, offset, bytes(wrong))


class Careless(LocalDisk):
    """A disk that changes a name in the header of what it makes."""

    def create(self, path: str, data: bytes, like: str | None = None) -> None:
        super().create(path, data.replace(b"first.bias", b"first.bios"), like)


@pytest.mark.parametrize(
    ("disk", "why"), [(Liar, "not read back as it was written"), (Careless, "not where it was written")]
)
def test_what_is_not_what_was_meant_is_removed(tmp_path: Path, disk: type[LocalDisk], why: str) -> None:
    with pytest.raises(CkptError, match=why):
        ckpt_tools.merge(str(FIXTURES / "dcp/plain"), str(tmp_path / "out"), disk=disk())
    assert os.listdir(tmp_path) == []


def test_a_source_that_changes_meanwhile(copy_of: Copy, tmp_path: Path) -> None:
    place = copy_of("dcp/plain", "in")

    class Meddling(LocalDisk):
        def write(self, path: str, offset: int, data: bytes | memoryview) -> None:
            os.utime(place / "__0_0.distcp", ns=(1, 1))
            super().write(path, offset, data)

    with pytest.raises(SourceError, match="changed while it was read"):
        ckpt_tools.merge(str(place), str(tmp_path / "out"), disk=Meddling())
    assert os.listdir(tmp_path) == ["in"]


def test_somebody_else_makes_the_directory_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = merge_write._compare

    def slow(*given: Any) -> None:
        compare(*given)
        (tmp_path / "out").mkdir()

    monkeypatch.setattr(merge_write, "_compare", slow)
    with pytest.raises(EditRefusedError, match="exists already"):
        ckpt_tools.merge(str(FIXTURES / "dcp/plain"), str(tmp_path / "out"), progress=SILENT)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == []


def test_neither_torch_nor_the_trainer_is_imported(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'safetensors', 'deepspeed', 'transformers')));"
        "import ckpt_tools; ckpt_tools.merge(*sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, str(FIXTURES / "dcp/plain"), str(tmp_path / "out")]
    subprocess.run(command, check=True, cwd=FIXTURES.parent)
    assert (tmp_path / "out" / "model.safetensors").is_file()
