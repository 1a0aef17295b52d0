"""CK580-CK585 and the Lightning layouts: names, steps, what a kill leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckpt_tools
from ckpt_tools.layouts.match import open_run
from ckpt_tools.model.findings import Severity
from tests.conftest import ENTRIES, FIXTURES
from tests.rules.judge import codes, finding, judge, verdicts

Copy = Callable[..., Path]
Change = Callable[[dict[str, Any]], None]

RUN, SHARDED = "lightning/run", "lightning/sharded-fsdp"
NEWEST = "epoch=1-step=8.ckpt"
ALL = ("CK",)
HEALTHY = [entry["path"] for entry in ENTRIES if entry["path"].startswith("lightning/") and entry["healthy"]]


def changed(path: Path, change: Change) -> None:
    torch = pytest.importorskip("torch")
    held = torch.load(path, weights_only=False)
    change(held)
    torch.save(held, path)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_ones_are_silent_and_of_this_layout(name: str) -> None:
    report = judge(FIXTURES / name, families=ALL, deep=True)
    assert codes(report) == set()
    assert {checkpoint.layouts[0] for checkpoint in report.checkpoints} == {"lightning"}


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("epoch=0-step=4.ckpt", 4),
        ("epoch=0-step=4-v1.ckpt", 4),
        ("epoch=3-step=900-val_loss=0.12.ckpt", 900),
        ("fold2-epoch=3-step=900.ckpt", 900),
        ("epoch=3-val_loss=0.12.ckpt", None),
        ("last.ckpt", None),
        ("last-v2.ckpt", None),
        ("hpc_ckpt_3.ckpt", None),
    ],
)
def test_the_step_of_a_name(name: str, step: int | None, tmp_path: Path) -> None:
    shutil.copy(FIXTURES / RUN / NEWEST, tmp_path / name)
    for place in (tmp_path, tmp_path / name):
        (checkpoint,) = open_run(place).checkpoints
        assert (checkpoint.layout, checkpoint.step) == ("lightning", step)


def test_another_name_is_a_plain_file_with_the_same_rules(tmp_path: Path) -> None:
    path = tmp_path / "mine.ckpt"
    shutil.copy(FIXTURES / "lightning/weights-only" / NEWEST, path)
    report = judge(path, families=ALL)
    assert report.checkpoints[0].layouts == ("plain",)
    assert finding(report, "CK583").severity is Severity.NOTE


def loops(held: dict[str, Any]) -> Any:
    return held["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]


def other_step(held: dict[str, Any]) -> None:
    held["global_step"] = 7


def other_loops(held: dict[str, Any]) -> None:
    loops(held)["completed"] = 4


def other_schedule(held: dict[str, Any]) -> None:
    held["lr_schedulers"][0]["last_epoch"] = 3


def inside_a_batch(held: dict[str, Any]) -> None:
    held["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"] -= 1


def stepped_by_hand(held: dict[str, Any]) -> None:
    held["loops"]["fit_loop"]["epoch_loop.scheduler_progress"]["total"]["completed"] = 0
    held["lr_schedulers"][0]["last_epoch"] = 2


def averaged(held: dict[str, Any]) -> None:
    """What the callback for stochastic weight averaging leaves: torch's SWALR, begun at a step of its own."""
    held["lr_schedulers"] = [{"_anneal_strategy": "cos", "anneal_epochs": 10, "base_lrs": [0.05], "last_epoch": 12}]


def of_another_version(held: dict[str, Any]) -> None:
    held["loops"] = {"fit_loop": {"epoch_loop.batch_loop.optimizer_loop.optim_progress": {}}}


CASES: list[tuple[str, Change, set[str], tuple[str, str]]] = [
    ("another global_step", other_step, {"CK580", "CK581"}, ("degraded", "ready")),
    ("another step in the loops", other_loops, {"CK581"}, ("degraded", "ready")),
    ("another step of the schedule", other_schedule, {"CK582"}, ("degraded", "ready")),
    ("saved inside of a batch", inside_a_batch, set(), ("ready", "ready")),
    ("a schedule that the module steps", stepped_by_hand, set(), ("ready", "ready")),
    ("a schedule of weight averaging", averaged, set(), ("ready", "ready")),
    ("loops of an older version", of_another_version, set(), ("ready", "ready")),
]


@pytest.mark.parametrize(
    ("change", "expected", "verdict"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_numbers_that_disagree(change: Change, expected: set[str], verdict: tuple[str, str], copy_of: Copy) -> None:
    run = copy_of(RUN)
    changed(run / NEWEST, change)
    report = judge(run, families=("CK58",))
    assert codes(report) == expected
    assert verdicts(report, NEWEST) == verdict
    assert codes(judge(run / NEWEST, families=("CK58",))) == expected


def test_two_files_of_one_step_are_no_trouble(copy_of: Copy) -> None:
    run = copy_of(RUN)
    shutil.copy(run / NEWEST, run / "epoch=1-step=8-v1.ckpt")
    assert codes(judge(run, families=("CK6",))) == set()


def two_optimizers(held: dict[str, Any]) -> None:
    """As a GAN has them: each trains half of the model."""
    (state,) = held["optimizer_states"]
    group = state["param_groups"][0]
    halves = (group["params"][:2], group["params"][2:])
    held["optimizer_states"] = [
        {"state": {n: state["state"][i] for n, i in enumerate(half)}, "param_groups": [group | {"params": [0, 1]}]}
        for half in halves
    ]


def averages(held: dict[str, Any]) -> None:
    held["ema_state_dict"] = {name: value.clone() for name, value in held["state_dict"].items()}


@pytest.mark.parametrize("change", [two_optimizers, averages])
def test_a_part_of_the_file_is_not_taken_for_frozen(change: Change, copy_of: Copy) -> None:
    run = copy_of(RUN)
    changed(run / NEWEST, change)
    assert codes(judge(run, families=("CK51",)), Severity.NOTE) == set()


def test_scores_that_nothing_was_compared_with_are_infinite(copy_of: Copy) -> None:
    report = judge(copy_of(RUN), families=("CK40",), deep=True)
    assert codes(report, Severity.NOTE) == set()
    run = copy_of(RUN, "bad")
    changed(run / NEWEST, not_a_number)
    assert codes(judge(run, families=("CK40",), deep=True), Severity.NOTE) == {"CK402"}


def not_a_number(held: dict[str, Any]) -> None:
    for state in held["callbacks"].values():
        state["kth_value"].fill_(float("nan"))


def test_renamed(copy_of: Copy) -> None:
    run = copy_of(RUN)
    (run / NEWEST).rename(run / "epoch=1-step=9.ckpt")
    found = finding(judge(run, families=("CK58",)), "CK580")
    assert (found.path, found.message) == ("epoch=1-step=9.ckpt", "it is named for step 9, and was saved at 8")


def test_weights_alone_are_for_inference(copy_of: Copy) -> None:
    report = judge(copy_of("lightning/weights-only"), families=ALL)
    assert verdicts(report, NEWEST) == ("broken", "ready")
    assert codes(report) == set()


def test_paths_of_another_place_are_a_note_of_the_newest(copy_of: Copy) -> None:
    run = copy_of(RUN)
    for name in (NEWEST, "epoch=0-step=4.ckpt"):
        changed(run / name, lambda held: next(iter(held["callbacks"].values())).update(dirpath="/elsewhere/run"))
    found = finding(judge(run, families=("CK584",)), "CK584")
    assert (found.path, found.detail) == (NEWEST, ("the state names /elsewhere/run",))


def test_paths_of_this_place_are_none(copy_of: Copy) -> None:
    run = copy_of(RUN)
    (run / "last.ckpt").unlink()
    changed(run / NEWEST, lambda held: next(iter(held["callbacks"].values())).update(dirpath=str(run)))
    assert not list(judge(run, families=("CK584",)).all_findings())


def test_last_one_save_behind(copy_of: Copy) -> None:
    run = copy_of(RUN)
    shutil.copy(run / "epoch=1-step=6.ckpt", run / "last.ckpt")
    report = judge(run, families=ALL)
    found = finding(report, "CK585")
    assert (found.severity, found.path, found.related) == (Severity.NOTE, "last.ckpt", (NEWEST,))
    assert verdicts(report, "last.ckpt") == ("ready", "ready")


# latest ------------------------------------------------------------------------------------------------------


def test_latest_goes_by_the_step(copy_of: Copy) -> None:
    run = copy_of(RUN)
    assert ckpt_tools.latest(str(run)).path == str(run / NEWEST)
    (run / NEWEST).unlink()
    assert ckpt_tools.latest(str(run)).path == str(run / "last.ckpt")  # its name says nothing, and it is of step 8


def test_latest_passes_over_what_is_cut(copy_of: Copy) -> None:
    run = copy_of(RUN)
    for name in (NEWEST, "last.ckpt"):
        (run / name).write_bytes((run / name).read_bytes()[:-200])
    report = ckpt_tools.latest(str(run))
    assert report.path == str(run / "epoch=1-step=6.ckpt")


def test_of_two_at_one_step_the_later_is_meant(tmp_path: Path) -> None:
    for name in ("hpc_ckpt_2.ckpt", "hpc_ckpt_10.ckpt"):
        shutil.copy(FIXTURES / RUN / NEWEST, tmp_path / name)
    assert ckpt_tools.latest(str(tmp_path)).path == str(tmp_path / "hpc_ckpt_10.ckpt")


def test_a_dangling_last(copy_of: Copy) -> None:
    run = copy_of("lightning/linked-last")
    (run / "last.ckpt").unlink()
    (run / "last.ckpt").symlink_to("epoch=9-step=99.ckpt")
    report = judge(run, families=ALL)
    assert verdicts(report, "last.ckpt") == ("broken", "broken")
    assert ckpt_tools.latest(str(run)).path == str(run / NEWEST)


# sharded directories -----------------------------------------------------------------------------------------


SHARDS: list[tuple[str, str, set[str], tuple[str, str]]] = [
    ("killed before meta.pt", "meta.pt", {"CK101"}, ("broken", "broken")),
    ("a rank is lost", "__1_0.distcp", {"CK141"}, ("broken", "broken")),
]


@pytest.mark.parametrize(
    ("lost", "expected", "verdict"), [case[1:] for case in SHARDS], ids=[case[0] for case in SHARDS]
)
def test_what_a_sharded_one_lost(lost: str, expected: set[str], verdict: tuple[str, str], copy_of: Copy) -> None:
    run = copy_of(SHARDED)
    name = "epoch=0-step=4.ckpt"
    (run / name / lost).unlink()
    report = judge(run, families=("CK1",))
    assert codes(report) == expected
    assert verdicts(report, name) == verdict
    assert verdicts(judge(run / name, families=("CK1",))) == verdict


def test_a_sharded_one_is_read_as_a_whole(copy_of: Copy) -> None:
    (checkpoint,) = judge(copy_of(SHARDED), families=ALL).checkpoints
    assert (checkpoint.step, checkpoint.path) == (4, "epoch=0-step=4.ckpt")


def test_the_strategy_of_deepspeed_keeps_a_tag_in_each(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage1-fp32", "run")
    (run / "epoch=0-step=4.ckpt").mkdir()
    (run / "global_step4").rename(run / "epoch=0-step=4.ckpt" / "checkpoint")
    (run / "epoch=0-step=4.ckpt" / "latest").write_text("checkpoint")
    shutil.rmtree(run / "global_step2")
    (run / "latest").unlink()
    report = judge(run, families=("CK1",))
    (checkpoint,) = report.checkpoints
    assert checkpoint.layouts == ("lightning-deepspeed", "deepspeed")
    assert codes(report) == set()
    (run / "epoch=0-step=4.ckpt" / "latest").unlink()
    assert codes(judge(run, families=("CK1",))) == {"CK135"}
