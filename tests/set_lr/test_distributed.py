"""Rates in distributed checkpoints: only the numbers change, in place, and torch finds them."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

numpy = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")

from ckpt_tools.cli.app import dispatch  # noqa: E402
from ckpt_tools.core.errors import EditRefusedError  # noqa: E402
from ckpt_tools.edits.proof import prove  # noqa: E402
from ckpt_tools.edits.values import Setting, plan_values  # noqa: E402
from ckpt_tools.layouts.match import open_run  # noqa: E402
from ckpt_tools.layouts.view import View  # noqa: E402
from ckpt_tools.model.plan import PatchBytes  # noqa: E402
from ckpt_tools.ops.seal import seal  # noqa: E402
from ckpt_tools.ops.set_lr import set_lr  # noqa: E402
from ckpt_tools.ops.set_step import set_step  # noqa: E402
from ckpt_tools.ops.undo import undo  # noqa: E402
from ckpt_tools.ops.verify import verify  # noqa: E402
from tests.set_lr.distributed import (  # noqa: E402
    blobs,
    changed,
    digests,
    flattened,
    loaded,
    require_whole,
    saved,
    training,
)

Copy = Callable[..., Path]

BARE = {"base_lrs": [0.02], "last_epoch": 3, "_step_count": 4, "_last_lr": [0.01]}
GROUPS = "optimizer.param_groups.0"
RATES = {f"{GROUPS}.lr", f"{GROUPS}.initial_lr", "lr_scheduler.base_lrs", "lr_scheduler._last_lr"}


def flat(*parameters: str) -> set[str]:
    each = {f"optimizer.param_groups.{name}.{rate}" for name in parameters for rate in ("lr", "initial_lr")}
    return each | {"lr_scheduler.base_lrs", "lr_scheduler._last_lr"}


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("dcp/plain", RATES),
        ("dcp/lambda", RATES),
        ("dcp/threads", RATES),
        ("dcp/files-per-item", RATES),
        ("dcp/rank-local", RATES),
        ("dcp/single-process", RATES),
        ("dcp/flat-optimizer", flat("first.weight", "first.bias", "second.weight")),
        ("dcp/run/step-4", flat("first.weight", "second.weight")),
        ("torchtitan/checkpoint/step-4", RATES),
    ],
)
def test_only_the_rates_change(copy_of: Copy, name: str, names: set[str]) -> None:
    path = copy_of(name)
    before, whole = digests(path), blobs(path)
    (base,) = next(require_whole(raw) for key, raw in whole.items() if key[1] == "lr_scheduler.base_lrs")
    old = {key[1]: require_whole(raw) for key, raw in whole.items() if key[1] in names}
    report = set_lr(str(path), peak=base / 8)
    after = digests(path)
    assert {file for file in after if after[file] != before[file]} == {row.path for row in report.files}
    assert not any(".metadata" in row.path for row in report.files)
    new = changed(whole, path)
    assert set(new) == names
    for key, value in new.items():
        assert value == ([old[key][0] / 8] if isinstance(value, list) else pytest.approx(old[key] / 8, rel=1e-12))
    assert any(".metadata stays" in note for note in report.notes)
    if name != "dcp/rank-local":
        assert loaded(path)["lr_scheduler"]["base_lrs"] == [base / 8]
    undo(str(path))
    assert digests(path) == before


@pytest.mark.parametrize("name", ["dcp/plain", "dcp/rank-local", "fsdp/fsdp2-sharded", "fsdp/fsdp2-rank-bins"])
def test_a_dry_run_changes_nothing(copy_of: Copy, name: str) -> None:
    path = copy_of(name)
    before = digests(path)
    planned = set_lr(str(path), 1e-3, dry_run=True)
    assert digests(path) == before
    done = set_lr(str(path), 1e-3)
    assert (planned.changes, planned.rates) == (done.changes, done.rates)


@pytest.mark.parametrize("name", ["fsdp1-local", "fsdp1-sharded", "fsdp2-sharded", "fsdp2-full", "fsdp2-rank-bins"])
def test_fsdp_of_accelerate(copy_of: Copy, name: str) -> None:
    path = copy_of(f"fsdp/{name}")
    before = digests(path)
    report = set_lr(str(path), 1e-4)
    factor = 1e-4 / 0.015877852522924733
    scheduler = torch.load(path / "scheduler.bin", weights_only=True)
    assert scheduler["_last_lr"] == pytest.approx([1e-4])
    assert scheduler["base_lrs"] == pytest.approx([0.02 * factor])
    assert (report.rates[0].step, report.rates[0].after) == (4, pytest.approx((1e-4,)))
    files = [path / "optimizer.bin"] if name == "fsdp2-full" else sorted(path.glob("optimizer_0_rank*.bin"))
    for file in files:
        (group,) = torch.load(file, weights_only=False)["param_groups"]
        assert (group["lr"], group["initial_lr"]) == (1e-4, pytest.approx(0.02 * factor))
    if not files:
        (group,) = loaded(path / "optimizer_0")["optimizer"]["param_groups"]
        assert (group["lr"], group["initial_lr"]) == (1e-4, pytest.approx(0.02 * factor))
    changes = {row.path for row in report.files}
    assert changes == {file for file, digest in digests(path).items() if digest != before[file]}
    undo(str(path))
    assert digests(path) == before


def test_the_files_of_all_ranks_or_none(copy_of: Copy) -> None:
    path = copy_of("fsdp/fsdp2-rank-bins")
    (path / "optimizer_0_rank1.bin").unlink()
    before = digests(path)
    with pytest.raises(EditRefusedError, match=r"optimizer_0_rank1\.bin is missing"):
        set_lr(str(path), 1e-4)
    assert digests(path) == before


@pytest.mark.parametrize("kind", ["sharded", "full"])
def test_the_trainer_with_fsdp(copy_of: Copy, kind: str) -> None:
    path = copy_of(f"fsdp/trainer-{kind}") / "checkpoint-2"
    before = digests(path)
    report = set_lr(str(path), peak=1e-3)
    if kind == "full":
        groups, changed_file = torch.load(path / "optimizer.bin", weights_only=True)["param_groups"], "optimizer.bin"
    else:
        groups, changed_file = loaded(path / "optimizer_0")["optimizer"]["param_groups"], "optimizer_0/__1_0.distcp"
    assert [group["initial_lr"] for group in groups] == [1e-3, 1e-3]
    assert torch.load(path / "scheduler.pt", weights_only=True)["base_lrs"] == [1e-3, 1e-3]
    assert {row.path for row in report.files} == {changed_file, "scheduler.pt"}
    undo(str(path))
    assert digests(path) == before


@pytest.mark.parametrize("name", ["sharded-fsdp", "sharded-model-parallel"])
def test_sharded_files_of_lightning(copy_of: Copy, name: str) -> None:
    (path,) = copy_of(f"lightning/{name}").glob("*.ckpt")
    before = digests(path)
    set_lr(str(path), peak=1e-3)
    assert loaded(path)["optimizer_0"]["param_groups"][0]["initial_lr"] == 1e-3
    assert torch.load(path / "meta.pt", weights_only=False)["lr_schedulers"][0]["base_lrs"] == [1e-3]
    undo(str(path))
    assert digests(path) == before


def test_llama_recipes_saves_no_scheduler(copy_of: Copy) -> None:
    path = copy_of("llama-recipes/sharded-with-optimizer") / "fine-tuned-meta-llama" / "tiny-llama"
    report = set_lr(str(path), 1e-3)
    assert loaded(path)["optim"]["param_groups"][0]["lr"] == 1e-3
    assert any("makes its own at each start" in note for note in report.notes)


# Numbers of other forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate",
    [1, numpy.float64(0.5), torch.tensor(0.5), torch.tensor([0.5]), torch.tensor(0.5, dtype=torch.bfloat16)],
    ids=["int", "numpy", "0-dim", "one element", "bfloat16"],
)
@pytest.mark.parametrize("listed", [False, True])
def test_rates_of_every_form(tmp_path: Path, rate: Any, listed: bool) -> None:
    bases = {"base_lrs": [rate], "last_epoch": 3, "_step_count": 4, "_last_lr": [rate]}
    if not listed:
        bases |= {"base_lrs": [0.5], "_last_lr": [0.5]}
    path = saved(tmp_path / "out", training([rate], bases))
    before, whole = digests(path), blobs(path)
    set_lr(str(path), scale=0.25)
    new = changed(whole, path)
    found = loaded(path)
    rates = [found["optimizer"]["param_groups"][0]["lr"]]
    scheduled = [*found["lr_scheduler"]["base_lrs"], *found["lr_scheduler"]["_last_lr"]]
    assert len(new) == 3
    assert [float(value) for value in rates] == [float(rate) / 4]
    assert [float(value) for value in scheduled] == [float(rate) / 4 if listed else 0.125] * 2
    kind = torch.Tensor if isinstance(rate, torch.Tensor) else float
    assert all(isinstance(value, kind) for value in [*rates, *(scheduled if listed else ())])
    if isinstance(rate, torch.Tensor):
        assert (rates[0].dtype, rates[0].shape) == (rate.dtype, rate.shape)
    undo(str(path))
    assert digests(path) == before


def test_where_there_is_no_room(tmp_path: Path) -> None:
    """Twenty whole numbers that become floats need 140 bytes more; the padding is less than 64."""
    many = {"base_lrs": [1] * 20, "last_epoch": 3, "_step_count": 4, "_last_lr": [0.5] * 20}
    path = saved(tmp_path / "out", training([0.5] * 20, many))
    before = digests(path)
    with pytest.raises(EditRefusedError, match=r"distcp: .* what lies behind it cannot move; nothing was changed"):
        set_lr(str(path), 1e-3)
    assert digests(path) == before


def test_what_is_no_rate_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "out", training(["fast"]))
    with pytest.raises(EditRefusedError, match="lr is no number"):
        set_lr(str(path), 1e-3)


# Parameter by parameter ------------------------------------------------------------------------------------


def group(rate: float, decay: float = 0.1) -> dict[str, Any]:
    return {"lr": rate, "initial_lr": 2 * rate, "weight_decay": decay}


def listed(*rates: float) -> dict[str, Any]:
    return {"base_lrs": [2 * rate for rate in rates], "last_epoch": 3, "_step_count": 4, "_last_lr": list(rates)}


def test_ratios_between_parameters_are_kept(tmp_path: Path) -> None:
    path = saved(tmp_path / "out", flattened([group(0.01), group(0.04), group(0.02, 0.0)], listed(0.04, 0.02, 0.01)))
    report = set_lr(str(path), 4e-3)
    found = loaded(path)
    for number, rate in enumerate((1e-3, 4e-3, 2e-3)):
        for member in range(2):
            key = f"param_groups.layers.{number}.{member}.weight"
            assert found["optimizer"][f"{key}.lr"] == pytest.approx(rate)
            assert found["optimizer"][f"{key}.initial_lr"] == pytest.approx(2 * rate)
    assert found["lr_scheduler"]["_last_lr"] == pytest.approx([4e-3, 2e-3, 1e-3])
    assert report.rates[0].after == pytest.approx((4e-3, 2e-3, 1e-3))


def test_one_group_counted_as_the_scheduler_does(tmp_path: Path) -> None:
    path = saved(tmp_path / "out", flattened([group(0.01), group(0.04)], listed(0.04, 0.01)))
    set_lr(str(path), 0.02, groups=[0])
    found = loaded(path)["optimizer"]
    rates = [found[f"param_groups.layers.{number}.0.weight.lr"] for number in range(2)]
    assert rates == [0.01, 0.02]


def test_groups_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "out", flattened([group(0.01), group(0.01)], listed(0.01, 0.01)))
    with pytest.raises(EditRefusedError, match="2 groups, and what was saved parameter by parameter tells apart 1"):
        set_lr(str(path), 0.02)


def test_many_parameters_are_told_in_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path / "out", flattened([group(0.01)], listed(0.01), each=12))
    keys = [row.key for row in set_lr(str(path), 0.02).changes]
    assert keys[:2] == ["optimizer.param_groups[*].lr", "optimizer.param_groups[*].initial_lr"]
    found = loaded(path)["optimizer"]
    assert {found[f"param_groups.layers.0.{number}.weight.lr"] for number in range(12)} == {0.02}


def test_two_optimizers(tmp_path: Path) -> None:
    one, two = training([0.01]), training([0.5])
    state = {"optimizer_0": one["optimizer"], "optimizer_1": two["optimizer"], "model": one["model"]}
    path = saved(tmp_path / "out", state)
    with pytest.raises(EditRefusedError, match="their rates differ"):
        set_lr(str(path), 0.02)
    set_lr(str(path), scale=0.1)
    found = loaded(path)
    rates = [found[f"optimizer_{number}"]["param_groups"][0]["lr"] for number in range(2)]
    assert rates == pytest.approx([0.001, 0.05])


def test_schedulers_with_dictionaries_and_lists_in_them(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    schedulers = torch.optim.lr_scheduler
    first = schedulers.MultiStepLR(optimizer, [2, 4], gamma=0.1)
    second = schedulers.CosineAnnealingLR(optimizer, T_max=9, eta_min=0.01)
    whole = schedulers.SequentialLR(optimizer, [first, second], milestones=[6])
    for _ in range(3):
        optimizer.step()
        whole.step()
    optimizer_state = optimizer.state_dict()
    state = {"optimizer": optimizer_state, "lr_scheduler": whole.state_dict(), "train_state": {"step": 3}}
    path = saved(tmp_path / "out", state)
    report = set_lr(str(path), 0.005)
    assert report.scheduler == "SequentialLR"
    after = [row.after[0] for row in report.rates]
    assert after == pytest.approx([0.005, 0.0005, 0.0005, 0.05, 0.0485], rel=1e-2)
    found = loaded(path)["lr_scheduler"]["_schedulers"]
    assert found[1]["eta_min"] == pytest.approx(0.001)
    assert found[0]["base_lrs"] == found[1]["base_lrs"] == pytest.approx([0.05])


# Refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dcp/zstd", "stream.zstd/1"),
        ("dcp/safetensors-serialization", "one safetensors file"),
        ("dcp/interrupted-overwrite", "__1_0.distcp"),
        ("dcp/async", "there is no optimizer"),
        ("megatron/torch-dist/iter_0000003", "Megatron-LM computes the rate of every step"),
        ("megatron/torch-dist-current/iter_0000003", "Megatron-LM computes the rate of every step"),
        ("megatron/legacy/iter_0000003", "Megatron-LM computes the rate of every step"),
        ("olmo-core/step2", "OLMo-core computes the rate of every step"),
    ],
)
def test_what_is_not_edited(copy_of: Copy, name: str, told: str) -> None:
    path = copy_of(name)
    before = digests(path)
    with pytest.raises(EditRefusedError, match=told):
        set_lr(str(path), 1e-3, settle=0)
    assert digests(path) == before
    assert not (path / ".ckpt-tools").exists()


def test_megatron_names_the_settings(copy_of: Copy) -> None:
    with pytest.raises(EditRefusedError) as caught:
        set_lr(str(copy_of("megatron/torch-dist") / "iter_0000003"), 1e-3)
    assert "--override-opt_param-scheduler" in (caught.value.hint or "")


@pytest.mark.parametrize("damage", ["cut", "metadata", "no metadata", "missing", "blob"])
def test_a_damaged_directory_is_refused(copy_of: Copy, damage: str) -> None:
    path = copy_of("dcp/plain")
    file = path / "__1_0.distcp"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "metadata":
        (path / ".metadata").write_bytes((path / ".metadata").read_bytes()[:2000])
    elif damage == "no metadata":
        (path / ".metadata").unlink()
    elif damage == "missing":
        (path / "__0_0.distcp").unlink()
    else:
        place = next(key[2] for key in blobs(path) if key[1] == f"{GROUPS}.lr")
        raw = bytearray(file.read_bytes())
        raw[place : place + 64] = bytes(64)
        file.write_bytes(raw)
    before = digests(path)
    with pytest.raises(EditRefusedError, match=r"metadata|__\d_0\.distcp"):
        set_lr(str(path), 1e-3, settle=0)
    assert digests(path) == before


# What goes with it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dcp/plain", "fsdp/fsdp2-sharded", "fsdp/fsdp2-rank-bins"])
def test_a_sealed_checkpoint_stays_one(copy_of: Copy, name: str) -> None:
    path = copy_of(name)
    seal(str(path))
    manifest = path / ".ckpt-tools" / "manifest.json"
    before = manifest.read_bytes()

    def complaints() -> list[Any]:
        (report,) = verify(str(path), deep=True).checkpoints
        return [finding for finding in report.findings if finding.code.startswith("CK4")]

    assert complaints() == []
    report = set_lr(str(path), 1e-3)
    assert any("manifest" in note for note in report.notes)
    assert complaints() == []
    set_step(str(path), 1000)
    assert complaints() == []
    for _ in range(2):
        undo(str(path))
    assert manifest.read_bytes() == before
    assert complaints() == []


def test_what_was_edited_is_still_healthy(copy_of: Copy) -> None:
    path = copy_of("dcp/plain")
    set_lr(str(path), 1e-3)
    (report,) = verify(str(path), deep=True, settle=0).checkpoints
    assert [finding.code for finding in report.findings if finding.severity.name != "INFO"] == []


def test_info_tells_the_edit(copy_of: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy_of("dcp/plain")
    set_lr(str(path), 1e-3)
    assert dispatch(["info", str(path)]) == 0
    assert "learning rate set from 0.01588 to 0.001" in capsys.readouterr().out


def test_json_names_what_is_inside(copy_of: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy_of("dcp/plain")
    assert dispatch(["set-lr", str(path), "0.001", "-n", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["changes"]
    assert {(row["path"], row["key"]) for row in rows} == {
        ("__1_0.distcp", f"{GROUPS}.lr"),
        ("__1_0.distcp", f"{GROUPS}.initial_lr"),
        ("__1_0.distcp", "lr_scheduler.base_lrs[0]"),
        ("__1_0.distcp", "lr_scheduler._last_lr[0]"),
    }


@pytest.mark.parametrize("written", [0.5, 0.25, None])
def test_the_proof_opens_what_is_inside_again(copy_of: Copy, written: float | None) -> None:
    path, name = copy_of("dcp/plain"), f"{GROUPS}.lr"
    view = View(open_run(str(path)).checkpoints[0])
    part = next(part for part in view.checkpoint.parts if part.path == "__1_0.distcp")
    planned = plan_values(view, [Setting(part, (name,), 0.5)])
    (place,) = [key[2] for key in blobs(path) if key[1] == name]
    raw = bytearray((path / part.path).read_bytes())
    if written is None:  # the checksum alone
        raw[place + 40] ^= 1
    for action in planned.actions if written is not None else ():
        assert isinstance(action, PatchBytes)
        raw[action.offset : action.offset + len(action.new)] = action.new
    if written is not None and written != 0.5:
        (first, *_) = planned.actions
        assert isinstance(first, PatchBytes)
        raw[first.offset : first.offset + 9] = b"G" + struct.pack(">d", written)
    (path / part.path).write_bytes(raw)
    reason = prove(view, View(open_run(str(path)).checkpoints[0]), planned.changed)
    assert (reason is None) == (written == 0.5)


def test_a_copy_of_the_journal_is_enough(copy_of: Copy, tmp_path: Path) -> None:
    path = copy_of("dcp/flat-optimizer")
    before = digests(path)
    set_lr(str(path), 1e-3)
    shutil.copytree(path, tmp_path / "elsewhere")
    undo(str(tmp_path / "elsewhere"))
    assert digests(tmp_path / "elsewhere") == before
