"""Steps in distributed checkpoints: counters in place, longer numbers too, and torch finds them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from ckpt_tools.core.errors import EditRefusedError  # noqa: E402
from ckpt_tools.ops.set_step import set_step  # noqa: E402
from ckpt_tools.ops.undo import undo  # noqa: E402
from ckpt_tools.ops.verify import verify  # noqa: E402
from tests.set_lr.distributed import blobs, changed, digests, loaded, saved, training  # noqa: E402

Copy = Callable[..., Path]


@pytest.mark.parametrize("target", [0, 7, 255, 256, 70_000, 3_000_000_000])
@pytest.mark.parametrize("name", ["dcp/plain", "dcp/flat-optimizer", "dcp/rank-local", "torchtitan/checkpoint/step-4"])
def test_every_counter_moves_in_place(copy_of: Copy, name: str, target: int) -> None:
    path = copy_of(name)
    before, whole = digests(path), blobs(path)
    report = set_step(str(path), target)
    new = changed(whole, path)
    steps = [float(value) for key, value in new.items() if key.endswith(".step")]
    assert steps == [
        torch.tensor(float(target)).item() if ".state." in key else target for key in new if ".step" in key
    ]
    assert new["lr_scheduler.last_epoch"] == target
    assert new["lr_scheduler._step_count"] == target + 1
    assert {row.path for row in report.files} == {file for file, old in before.items() if digests(path)[file] != old}
    undo(str(path))
    assert digests(path) == before


def test_the_rates_of_the_new_step(copy_of: Copy) -> None:
    path = copy_of("dcp/plain")
    report = set_step(str(path), 5)
    found = loaded(path)
    assert found["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.01)
    assert found["lr_scheduler"]["_last_lr"] == pytest.approx([0.01])
    assert found["train_state"] == {"step": 5, "rows_seen": 12}
    assert report.rates[0].after == pytest.approx((0.01,))
    assert any("train_state.rows_seen" in note for note in report.notes)


def test_counters_of_torchtitan_are_tensors(copy_of: Copy) -> None:
    path = copy_of("dcp/run") / "step-4"
    report = set_step(str(path), 1000)
    found = loaded(path)
    step = found["train_state"]["step"]
    assert (step.dtype, step.item(), found["train_state"]["ntokens_seen"].item()) == (torch.int32, 1000, 256)
    assert any("dataloader.dp_rank_0" in note and "ntokens_seen" in note for note in report.notes)


def test_a_directory_gets_the_name_of_its_step(copy_of: Copy) -> None:
    run = copy_of("dcp/run")
    before = digests(run)
    set_step(str(run / "step-4"), 1000, rename=True)
    assert loaded(run / "step-1000")["train_state"]["step"].item() == 1000
    (second,) = [each for each in verify(str(run), settle=0).checkpoints if each.path == "step-1000"]
    assert [finding for finding in second.findings if finding.severity.name in ("ERROR", "WARNING")] == []
    undo(str(run))
    assert digests(run) == before


@pytest.mark.parametrize("name", ["fsdp1-local", "fsdp1-sharded", "fsdp2-sharded", "fsdp2-full", "fsdp2-rank-bins"])
def test_fsdp_of_accelerate(copy_of: Copy, name: str) -> None:
    path = copy_of(f"fsdp/{name}")
    before = digests(path)
    set_step(str(path), 1000)
    scheduler = torch.load(path / "scheduler.bin", weights_only=True)
    assert (scheduler["last_epoch"], scheduler["_step_count"]) == (1000, 1001)
    files = [*path.glob("optimizer.bin"), *path.glob("optimizer_0_rank*.bin")]
    found = [torch.load(file, weights_only=False) for file in files] or [loaded(path / "optimizer_0")["optimizer"]]
    assert {entry["step"].item() for each in found for entry in each["state"].values()} == {1000}
    undo(str(path))
    assert digests(path) == before


def test_the_trainer_with_fsdp(copy_of: Copy) -> None:
    path = copy_of("fsdp/trainer-sharded") / "checkpoint-2"
    before = digests(path)
    report = set_step(str(path), 40)
    state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 40
    entries = loaded(path / "optimizer_0")["optimizer"]["state"]
    assert {entry["step"].item() for entry in entries.values()} == {40}
    assert torch.load(path / "scheduler.pt", weights_only=True)["last_epoch"] == 40
    assert "optimizer.state[*].step" in {row.key for row in report.changes}
    undo(str(path))
    assert digests(path) == before


@pytest.mark.parametrize("name", ["sharded-fsdp", "sharded-model-parallel"])
def test_sharded_files_of_lightning(copy_of: Copy, name: str) -> None:
    run = copy_of(f"lightning/{name}")
    path = run / "epoch=0-step=4.ckpt"
    before = digests(run)
    set_step(str(path), 1000, rename=True)
    path = run / "epoch=0-step=1000.ckpt"
    rest = torch.load(path / "meta.pt", weights_only=False)
    progress = rest["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    assert (rest["global_step"], progress["optimizer"]["step"]["total"]["completed"]) == (1000, 1000)
    assert (rest["lr_schedulers"][0]["last_epoch"], rest["lr_schedulers"][0]["_step_count"]) == (1000, 1001)
    assert {entry["step"].item() for entry in loaded(path)["optimizer_0"]["state"].values()} == {1000}
    (report,) = verify(str(run), settle=0).checkpoints
    assert [found for found in report.findings if found.severity.name in ("ERROR", "WARNING")] == []
    undo(str(run))
    assert digests(run) == before


def test_a_scheduler_that_counts_epochs_stays(tmp_path: Path) -> None:
    epochs = {"base_lrs": [0.5], "last_epoch": 2, "_step_count": 3, "_last_lr": [0.5]}
    path = saved(tmp_path / "out", training([0.5], epochs, step=501))
    set_step(str(path), 700)
    found = loaded(path)
    assert (found["train_state"]["step"], found["lr_scheduler"]["last_epoch"]) == (700, 2)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dcp/zstd", "zstd"),
        ("dcp/async", "nothing in this checkpoint counts"),
        ("megatron/torch-dist/iter_0000003", "Megatron-LM counts"),
        ("megatron/legacy/iter_0000003", "Megatron-LM counts"),
        ("olmo-core/step2", "OLMo-core counts"),
    ],
)
def test_what_is_not_edited(copy_of: Copy, name: str, told: str) -> None:
    path = copy_of(name)
    before = digests(path)
    with pytest.raises(EditRefusedError, match=told):
        set_step(str(path), 1000, settle=0)
    assert digests(path) == before
