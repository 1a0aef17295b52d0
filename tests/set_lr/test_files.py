"""Rates of every form, in files of every form: all loaders take what was edited, and the rest is as it was."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

numpy = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")

from ckpt_tools.cli.app import dispatch  # noqa: E402
from ckpt_tools.core.errors import EditRefusedError, NothingFoundError, UsageError  # noqa: E402
from ckpt_tools.ops.set_lr import set_lr  # noqa: E402
from ckpt_tools.ops.set_step import set_step  # noqa: E402
from ckpt_tools.ops.undo import undo  # noqa: E402

Copy = Callable[..., Path]


def state(rates: list[Any], scheduler: dict[str, Any] | None = None, **group: Any) -> dict[str, Any]:
    """A training state with one parameter per group."""
    groups = [{"lr": rate, "weight_decay": 0.0, "params": [number], **group} for number, rate in enumerate(rates)]
    entries = {n: {"step": torch.tensor(5.0), "exp_avg": torch.ones(3)} for n in range(len(rates))}
    made: dict[str, Any] = {"model": {"w": torch.ones(3)}, "optimizer": {"state": entries, "param_groups": groups}}
    return made | {"step": 5} | ({"scheduler": scheduler} if scheduler is not None else {})


def saved(folder: Path, value: dict[str, Any], **options: Any) -> Path:
    torch.save(value, folder / "last.pt", **options)
    return folder / "last.pt"


def loaded(path: Path, *, safe: bool = True) -> dict[str, Any]:
    """Load a file in every way that torch has, and look at the zip with others' eyes."""
    found: dict[str, Any] = torch.load(path, weights_only=safe)
    if zipfile.is_zipfile(path):
        mapped = torch.load(path, weights_only=safe, mmap=True)
        assert repr(mapped["optimizer"]) == repr(found["optimizer"])
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
        if subprocess.run(["which", "unzip"], capture_output=True, check=False).returncode == 0:
            assert subprocess.run(["unzip", "-tqq", str(path)], check=False).returncode == 0
    return found


def rates(path: Path, **options: Any) -> list[Any]:
    return [group["lr"] for group in loaded(path, **options)["optimizer"]["param_groups"]]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and ".ckpt-tools" not in path.parts
    }


def test_ratios_between_groups_are_kept(tmp_path: Path) -> None:
    path = saved(tmp_path, state([1e-3, 4e-3, 0.0]))
    report = set_lr(str(path), 2e-3)
    assert rates(path) == [2e-3, 8e-3, 0.0]
    assert report.scheduler == "none"
    assert report.rates[-1].after == (2e-3, 8e-3, 0.0)


def test_groups_can_be_meant_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, state([1e-3, 4e-3, 8e-3]))
    set_lr(str(path), 2e-3, groups=[1, 2])
    assert rates(path) == [1e-3, 2e-3, 4e-3]
    with pytest.raises(UsageError, match="no group 3"):
        set_lr(str(path), 2e-3, groups=[3])


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_a_tensor_stays_a_tensor(tmp_path: Path, dtype: str) -> None:
    kind = getattr(torch, dtype)
    path = saved(tmp_path, state([torch.tensor(1e-3, dtype=kind), torch.tensor(2e-3, dtype=kind)]))
    before = path.stat().st_size
    report = set_lr(str(path), 3e-3)
    first, second = rates(path)
    assert first.dtype is kind
    assert torch.equal(first, torch.tensor(3e-3, dtype=kind))
    assert float(second) == pytest.approx(6e-3, rel=1e-2)
    assert path.stat().st_size == before
    assert report.rates[0].after == (float(first), float(second))


def test_one_tensor_for_all_groups(tmp_path: Path) -> None:
    shared = torch.tensor(1e-3)
    path = saved(tmp_path, state([shared, shared]))
    set_lr(str(path), 3e-3)
    assert [float(rate) for rate in rates(path)] == pytest.approx([3e-3, 3e-3])
    with pytest.raises(EditRefusedError, match="shares"):
        set_lr(str(path), 1e-3, groups=[1])


def test_an_integer_becomes_a_float(tmp_path: Path) -> None:
    path = saved(tmp_path, state([1, 2]))
    before = path.read_bytes()
    set_lr(str(path), 0.5)
    assert rates(path) == [0.5, 1.0]
    assert len(path.read_bytes()) > len(before)
    undo(str(path))
    assert path.read_bytes() == before


def test_a_cut_copy_of_an_appended_file_never_loads_the_old_rate(tmp_path: Path) -> None:
    path = saved(tmp_path, state([1, 2]))
    before = path.stat().st_size
    set_lr(str(path), 0.5)
    data = path.read_bytes()
    cut = tmp_path / "copies" / "cut.pt"
    cut.parent.mkdir()
    for size in range(before, len(data)):
        cut.write_bytes(data[:size])
        for options in ({}, {"mmap": True}, {"weights_only": False}):
            with pytest.raises((RuntimeError, OSError, ValueError, EOFError)):
                torch.load(cut, **({"weights_only": True} | options))
        assert not zipfile.is_zipfile(cut)


def test_numpy_scalars_become_floats(tmp_path: Path) -> None:
    path = saved(tmp_path, state([numpy.float64(1e-3), numpy.float64(2e-3)]))
    report = set_lr(str(path), 5e-3)
    assert rates(path) == [5e-3, 1e-2]  # and weights_only takes it now
    assert report.changes[0].old == 1e-3


@pytest.mark.parametrize("rate", [1e-3, 1])
def test_the_old_format(tmp_path: Path, rate: float) -> None:
    path = saved(tmp_path, state([rate, 4 * rate]), _use_new_zipfile_serialization=False)
    before = path.read_bytes()
    set_lr(str(path), 0.25)
    assert rates(path) == [0.25, 1.0]
    undo(str(path))
    assert path.read_bytes() == before


def test_protocol_4(tmp_path: Path) -> None:
    path = saved(tmp_path, state([1, 4]), pickle_protocol=4)
    set_lr(str(path), 0.25)
    assert rates(path, safe=False) == [0.25, 1.0]


@pytest.mark.parametrize("rate", ["1e-3", None, True, [1e-3], torch.ones(2)])
def test_what_is_no_number_is_refused(tmp_path: Path, rate: Any) -> None:
    path = saved(tmp_path, state([rate]))
    before = digests(tmp_path)
    with pytest.raises(EditRefusedError, match="no number"):
        set_lr(str(path), 1e-3)
    assert digests(tmp_path) == before


def test_adafactor_with_a_relative_step_has_no_rate(tmp_path: Path) -> None:
    path = saved(tmp_path, state([None], relative_step=True))
    with pytest.raises(EditRefusedError, match="relative_step"):
        set_lr(str(path), 1e-3)


def test_schedule_free(tmp_path: Path) -> None:
    path = saved(tmp_path, state([1e-3], k=5, weight_sum=5e-6, lr_max=1e-3, scheduled_lr=1e-3))
    report = set_lr(str(path), 2e-3)
    (group,) = loaded(path)["optimizer"]["param_groups"]
    assert (group["lr"], group["scheduled_lr"], group["lr_max"], group["k"]) == (2e-3, 2e-3, 1e-3, 5)
    assert any("lr_max" in note for note in report.notes)
    set_step(str(path), 3)
    assert loaded(path)["optimizer"]["param_groups"][0]["k"] == 3


def test_an_unknown_scheduler_is_refused_unless_forced(tmp_path: Path) -> None:
    path = saved(tmp_path, state([1e-3], {"mine": 1, "_last_lr": [1e-3]}))
    with pytest.raises(EditRefusedError, match="mine"):
        set_lr(str(path), 1e-4)
    report = set_lr(str(path), 1e-4, force=True)
    assert rates(path) == [1e-4]
    assert loaded(path)["scheduler"]["_last_lr"] == [1e-3]
    assert any("one step" in note for note in report.notes)


def test_a_rate_of_zero_needs_a_peak(tmp_path: Path) -> None:
    scheduler = {"base_lrs": [1e-3], "_last_lr": [0.0], "last_epoch": 5, "_step_count": 6, "lr_lambdas": [{}]}
    path = saved(tmp_path, state([0.0], scheduler, initial_lr=1e-3))
    with pytest.raises(EditRefusedError, match="is 0") as caught:
        set_lr(str(path), 1e-4)
    assert "--peak" in str(caught.value.hint)
    set_lr(str(path), peak=1e-4)
    found = loaded(path)
    assert found["scheduler"]["base_lrs"] == [1e-4]
    assert found["optimizer"]["param_groups"][0]["initial_lr"] == 1e-4


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_rates_that_make_no_sense(tmp_path: Path, wrong: float) -> None:
    path = saved(tmp_path, state([1e-3]))
    with pytest.raises(UsageError):
        set_lr(str(path), wrong)


def test_just_one_of_the_three_is_given(tmp_path: Path) -> None:
    path = saved(tmp_path, state([1e-3]))
    for request in ({}, {"rate": 1.0, "scale": 2.0}, {"peak": 1.0, "scale": 2.0}):
        with pytest.raises(UsageError):
            set_lr(str(path), **request)


def test_floors_scale_unless_kept(copy_of: Copy) -> None:
    path = copy_of("trainer5-greedy") / "checkpoint-4"
    kept = set_lr(str(path), scale=2.0, keep_floor=True, dry_run=True)
    scaled = set_lr(str(path), scale=2.0, dry_run=True)
    assert not any(change.key.startswith("min_lrs") for change in kept.changes)
    assert [change.new for change in scaled.changes if change.key.startswith("min_lrs")] == [2e-3, 2e-3]


@pytest.mark.parametrize(
    "name", ["trainer5-full", "trainer5-adafactor-cosine", "trainer5-lora", "trainer4-bin", "trainer431-lora-bin"]
)
def test_a_dry_run_changes_nothing_and_undo_gives_everything_back(copy_of: Copy, name: str) -> None:
    run = copy_of(name)
    path = min(run.glob("checkpoint-*"))
    before = digests(run)
    told = set_lr(str(path), scale=0.5, dry_run=True)
    assert digests(run) == before
    assert not (path / ".ckpt-tools").exists()
    done = set_lr(str(path), scale=0.5)
    assert (told.changes, told.rates, told.bytes_written) == (done.changes, done.rates, done.bytes_written)
    assert {key for key, value in digests(run).items() if value != before[key]} == {
        f"{path.name}/optimizer.pt",
        f"{path.name}/scheduler.pt",
    }
    set_step(str(path), 1000)
    set_step(str(path), 1)
    for _ in range(3):
        undo(str(path))
    assert digests(run) == before


def lightning(value: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a Lightning file that an edit may change, flat."""
    fit = value["loops"]["fit_loop"]
    (optimizer,), (scheduler,) = value["optimizer_states"], value["lr_schedulers"]
    return {
        "global_step": value["global_step"],
        "completed": fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"],
        "batches": fit["epoch_loop.batch_progress"]["total"]["ready"],
        "place": fit["epoch_loop.batch_progress"]["current"]["ready"],
        "last_epoch": scheduler["last_epoch"],
        "steps": {float(entry["step"]) for entry in optimizer["state"].values()},
        "rates": [group["lr"] for group in optimizer["param_groups"]],
        "last": scheduler["_last_lr"],
    }


@pytest.mark.parametrize(
    ("name", "by_epoch"), [("run/epoch=1-step=6.ckpt", False), ("cosine/epoch=1-step=8.ckpt", True)]
)
def test_lightning(copy_of: Copy, name: str, by_epoch: bool) -> None:
    path = copy_of(f"lightning/{name}")
    before = path.read_bytes()
    was = lightning(torch.load(path, weights_only=False))
    report = set_lr(str(path), scale=0.5)
    now = lightning(torch.load(path, weights_only=False))
    assert now == was | {"rates": [rate / 2 for rate in was["rates"]], "last": [rate / 2 for rate in was["last"]]}
    assert report.rates[0].after == tuple(now["rates"])
    report = set_step(str(path), was["global_step"] - 1)
    now = lightning(torch.load(path, weights_only=False))
    counts = ("global_step", "completed", "batches")
    assert [now[count] for count in counts] == [was[count] - 1 for count in counts]
    assert now["last_epoch"] == was["last_epoch"] - (not by_epoch)
    assert any("epochs, most likely" in note for note in report.notes) is by_epoch
    assert now["steps"] == {was["global_step"] - 1.0}
    assert (now["place"] == was["place"] - 1) is any("the place in the epoch follows" in note for note in report.notes)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    undo(str(path))
    undo(str(path))
    assert path.read_bytes() == before


def test_again_is_nothing_to_do(copy_of: Copy) -> None:
    path = copy_of("trainer5-full") / "checkpoint-4"
    assert set_lr(str(path), 1e-3).applied
    assert not set_lr(str(path), 1e-3).applied
    assert set_step(str(path), 3).applied
    assert not set_step(str(path), 3).applied


def test_a_damaged_scheduler_is_refused(copy_of: Copy) -> None:
    path = copy_of("trainer5-full") / "checkpoint-4"
    data = (path / "scheduler.pt").read_bytes()
    (path / "scheduler.pt").write_bytes(data[:-30])
    for edit in (lambda: set_lr(str(path), 1e-3), lambda: set_step(str(path), 3)):
        with pytest.raises(EditRefusedError) as caught:
            edit()
        assert caught.value.exit_code == 5


def test_a_run_or_a_part_is_not_enough(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    with pytest.raises(UsageError, match="several"):
        set_lr(str(run), 1e-3)
    with pytest.raises(UsageError, match="one file"):
        set_lr(str(run / "checkpoint-4" / "optimizer.pt"), 1e-3)


def test_an_optimizer_that_was_edited_alone_is_brought_back_into_line(copy_of: Copy) -> None:
    path = copy_of("trainer5-full") / "checkpoint-4"
    optimizer = torch.load(path / "optimizer.pt", weights_only=True)
    for group in optimizer["param_groups"]:
        group["lr"] *= 2
    torch.save(optimizer, path / "optimizer.pt")
    report = set_lr(str(path), 0.032)
    assert [row.after[0] for row in report.rates] == pytest.approx([0.032, 0.016])
    assert any("lasted one step" in note for note in report.notes)
    assert torch.load(path / "scheduler.pt", weights_only=True)["base_lrs"] == pytest.approx([0.08, 0.08])


def test_json_has_the_documented_keys(copy_of: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy_of("trainer5-full") / "checkpoint-4"
    assert dispatch(["set-lr", str(path), "1e-3", "-n", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["applied"], told["scheduler"]) == ("ckpt-tools/edit/1", False, "LambdaLR")
    assert told["changes"][0] == {"path": "optimizer.pt", "key": "param_groups[0].lr", "old": 0.064, "new": 1e-3}
    assert told["rates"][0] == {"step": 5, "before": [0.064, 0.064], "after": [1e-3, 1e-3]}
    assert told["bytes_written"] > 0
    assert dispatch(["set-step", str(path), "2", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["applied"]) == ("ckpt-tools/edit/1", True)
    assert {"path": "scheduler.pt", "key": "last_epoch", "old": 4, "new": 2} in told["changes"]
    assert dispatch(["set-lr", str(path)]) == 2
    assert dispatch(["set-lr", str(path / "nowhere"), "1"]) == 4
    (path / "optimizer.pt").write_bytes((path / "optimizer.pt").read_bytes()[:-9])
    assert dispatch(["set-lr", str(path), "1"]) == 5


def test_a_checkpoint_of_tensorflow_is_refused_in_one_line(copy_of: Copy) -> None:
    prefix = str(copy_of("tensorflow/manager") / "ckpt-3")
    for call in (lambda: set_lr(prefix, 0.1, settle=0), lambda: set_step(prefix, 5, settle=0)):
        with pytest.raises(EditRefusedError, match="ckpt-3: a checkpoint of TensorFlow holds nothing that is edited"):
            call()
    with pytest.raises(EditRefusedError, match="there is no edit to take back"):
        undo(prefix, settle=0)
    with pytest.raises(NothingFoundError):
        undo(prefix + "0", settle=0)
