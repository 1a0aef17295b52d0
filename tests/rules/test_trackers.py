"""CK130-CK137: the files that name the checkpoint to resume from, and what ``ckpt latest`` says of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.model.findings import Severity
from tests.rules.judge import codes, finding, judge, verdicts

Copy = Callable[..., Path]

ZERO = "deepspeed/stage1-fp32"
TRACKERS = ("CK13",)


def said(run: Path, text: str | bytes | None, name: str = "latest") -> Path:
    if text is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return run


def without_a_rank(tag: Path) -> None:
    next(tag.glob("*zero_pp_rank_1_mp_rank_00_optim_states.pt")).unlink()


@pytest.fixture
def megatron(copy_of: Copy) -> Path:
    """A run of two checkpoints; the older one is a copy under another number."""
    run = copy_of("megatron/legacy")
    shutil.copytree(run / "iter_0000003", run / "iter_0000002")
    return run


TEXTS: list[tuple[str, str | bytes | None, set[str]]] = [
    ("as it was written", "global_step4", set()),
    ("a line break", "global_step4\n", set()),
    ("a line break of Windows", "global_step4\r\n", set()),
    ("spaces", "  global_step4 ", set()),
    ("missing", None, {"CK130"}),
    ("empty", "", {"CK131"}),
    ("white space alone", "\n\n", {"CK131"}),
    ("zeros", b"\0" * 12, {"CK131"}),
    ("one that is not there", "global_step9", {"CK132"}),
    ("the older one", "global_step2", {"CK133"}),
]


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in TEXTS], ids=[case[0] for case in TEXTS])
def test_what_latest_says(text: str | bytes | None, expected: set[str], copy_of: Copy) -> None:
    run = said(copy_of(ZERO), text)
    report = judge(run, families=("CK",))
    assert codes(report) == expected
    assert verdicts(report, "global_step4")[0] == "ready"
    for code in expected:
        assert finding(report, code).path == "latest"


NUMBERS: list[tuple[str, str | None, set[str]]] = [
    ("as it was written", "3", set()),
    ("a line break of Windows", "3\r\n", set()),
    ("zeros in front", "0000003", set()),
    ("missing", None, {"CK130"}),
    ("empty", "", {"CK131"}),
    ("a word", "iter_0000003", {"CK131"}),
    ("a negative number", "-3", {"CK131"}),
    ("many digits", "9" * 4000, {"CK131"}),
    ("one that is not there", "20", {"CK132"}),
    ("a release that is not there", "release", {"CK132"}),
    ("the older one", "2", {"CK133"}),
]


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in NUMBERS], ids=[case[0] for case in NUMBERS])
def test_what_the_tracker_of_megatron_says(text: str | None, expected: set[str], megatron: Path) -> None:
    report = judge(said(megatron, text, "latest_checkpointed_iteration.txt"), families=TRACKERS)
    assert codes(report) == expected


def test_a_release_is_named(copy_of: Copy) -> None:
    run = said(copy_of("megatron/legacy"), "release", "latest_checkpointed_iteration.txt")
    (run / "iter_0000003").rename(run / "release")
    assert codes(judge(run, families=("CK",))) == set()
    assert ckpt_tools.latest(str(run), settle=0).path == str(run / "release")


def test_what_a_loader_would_do_is_told(copy_of: Copy, megatron: Path) -> None:
    report = judge(said(copy_of(ZERO), None), families=TRACKERS)
    assert "starts from scratch" in finding(report, "CK130").detail[0]
    report = judge(said(megatron, None, "latest_checkpointed_iteration.txt"), families=TRACKERS)
    assert "trains from scratch" in finding(report, "CK130").detail[0]


def test_what_was_converted_has_a_tracker_of_its_own(copy_of: Copy) -> None:
    assert codes(judge(copy_of("deepspeed/universal-stage1"), families=TRACKERS)) == set()


def test_one_that_names_a_broken_one(copy_of: Copy) -> None:
    run = copy_of(ZERO)
    without_a_rank(run / "global_step4")
    found = finding(judge(run, families=("CK1",)), "CK134")
    assert (found.path, found.related) == ("latest", ("global_step4",))
    assert found.help == "global_step2 is the newest that can be resumed"
    assert found.fix is not None
    assert found.fix.params["text"] == "global_step2"


def test_behind_a_broken_one_is_a_note(copy_of: Copy) -> None:
    run = said(copy_of(ZERO), "global_step2")
    without_a_rank(run / "global_step4")
    found = finding(judge(run, families=("CK1",)), "CK133")
    assert (found.severity, found.fix) == (Severity.NOTE, None)


def test_where_nothing_is_good_no_fix_is_offered(copy_of: Copy) -> None:
    run = said(copy_of(ZERO), "global_step9")
    without_a_rank(run / "global_step2")
    without_a_rank(run / "global_step4")
    assert finding(judge(run, families=("CK1",)), "CK132").fix is None


def test_a_single_checkpoint_has_no_tracker(copy_of: Copy) -> None:
    run = said(copy_of(ZERO), None)
    assert codes(judge(run / "global_step4", families=TRACKERS)) == set()


# latest ------------------------------------------------------------------------------------------------------


LATEST: list[tuple[str, str | None, str]] = [
    ("missing", None, "latest is missing: DeepSpeed warns, loads nothing, and training starts from scratch"),
    ("empty", "", "latest names no checkpoint: the trainer itself would stop"),
    ("dangling", "global_step9", "latest names global_step9, which is not here: the trainer itself would stop"),
    ("behind", "global_step2", "latest names global_step2, which is what the trainer itself would take"),
]


@pytest.mark.parametrize(("text", "note"), [case[1:] for case in LATEST], ids=[case[0] for case in LATEST])
def test_latest_prints_the_newest_good_one_and_tells_the_trainers(text: str | None, note: str, copy_of: Copy) -> None:
    run = said(copy_of(ZERO), text)
    report = ckpt_tools.latest(str(run), settle=0)
    assert report.path == str(run / "global_step4")
    mended = [] if text == "global_step2" else [f"`ckpt repair --write {run}` lets latest name global_step4"]
    assert report.reasons() == [note, *mended]


def test_latest_keeps_silent_where_the_tracker_is_right(copy_of: Copy) -> None:
    report = ckpt_tools.latest(str(copy_of(ZERO)), settle=0)
    assert report.reasons() == []
    assert report.document()["trackers"] == [{"path": "latest", "names": "global_step4"}]


def test_latest_passes_a_broken_one_over_that_is_named(copy_of: Copy) -> None:
    run = copy_of(ZERO)
    without_a_rank(run / "global_step4")
    report = ckpt_tools.latest(str(run), settle=0)
    assert report.path == str(run / "global_step2")
    assert "global_step4 (broken)" in report.reasons()[0]
    assert report.reasons()[1:] == [
        "latest names global_step4, which is what the trainer itself would take",
        f"`ckpt repair --write {run}` lets latest name global_step2",
    ]
    ckpt_tools.repair(str(run), write=True, settle=0)
    assert (run / "latest").read_text() == "global_step2"


def test_a_tag_that_cannot_be_listed_may_be_whole(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    run, listed = copy_of(ZERO), os.listdir

    def refuse(path: str) -> list[str]:
        if str(path).rstrip("/").endswith("global_step4"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "listdir", refuse)
    report = judge(run, families=("CK",))
    assert codes(report) == {"CK003", "CK134"}
    assert finding(report, "CK134").fix is None
    found = ckpt_tools.latest(str(run), settle=0)
    assert found.path == str(run / "global_step2")
    assert not any("repair" in line for line in found.reasons())


def test_numbers_outrank_text(copy_of: Copy) -> None:
    run = copy_of(ZERO)
    (run / "global_step4").rename(run / "global_step10")
    said(run, "global_step10")
    assert ckpt_tools.latest(str(run), settle=0).path == str(run / "global_step10")


# inside of a checkpoint --------------------------------------------------------------------------------------


@pytest.fixture
def trainer(copy_of: Copy) -> Path:
    """A checkpoint of the Trainer with DeepSpeed's tag in it, put together from both."""
    checkpoint = copy_of("trainer5-full") / "checkpoint-4"
    zero = copy_of(ZERO, "zero")
    shutil.copytree(zero / "global_step4", checkpoint / "global_step4")
    shutil.copy(zero / "latest", checkpoint / "latest")
    (checkpoint / "optimizer.pt").unlink()
    return checkpoint


INNER: list[tuple[str, str | None, set[str]]] = [
    ("as it was written", "global_step4", set()),
    ("a line break", "global_step4\n", set()),
    ("missing", None, {"CK135"}),
    ("one that is not there", "global_step9", {"CK135"}),
]


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in INNER], ids=[case[0] for case in INNER])
def test_a_tracker_inside_of_a_checkpoint(text: str | None, expected: set[str], trainer: Path) -> None:
    report = judge(said(trainer, text), families=TRACKERS)
    assert codes(report) == expected
    assert verdicts(report)[0] == ("broken" if expected else "ready")


def test_an_empty_one_inside_has_one_finding(trainer: Path) -> None:
    report = judge(said(trainer, ""), families=("CK1", "CK2"))
    assert codes(report) == {"CK135"}


def test_two_tags_in_one_checkpoint(trainer: Path, copy_of: Copy) -> None:
    shutil.copytree(copy_of(ZERO, "again") / "global_step2", trainer / "global_step2")
    assert codes(judge(trainer, families=TRACKERS)) == set()
    assert codes(judge(said(trainer, "global_step2"), families=TRACKERS)) == {"CK136"}


# ranks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ranks", "expected"),
    [
        ("dcp/plain", 2, set()),
        ("dcp/plain", 16, set()),
        ("dcp/rank-local", 2, set()),
        ("dcp/rank-local", 4, {"CK137"}),
    ],
)
def test_another_number_of_ranks(name: str, ranks: int, expected: set[str], copy_of: Copy) -> None:
    assert codes(judge(copy_of(name), families=("CK137",), world_size=ranks)) == expected


def test_latest_passes_over_what_another_number_of_ranks_wrote(copy_of: Copy) -> None:
    report = ckpt_tools.latest(str(copy_of("dcp/rank-local")), settle=0, world_size=4)
    assert report.path is None
    assert "CK137" in {found.code for found in report.passed[0].reasons}


@pytest.mark.parametrize(
    ("name", "newest"),
    [
        ("tensorflow/manager", "ckpt-3"),
        ("detectron2", "model_final.pth"),
        ("lightning/run", "epoch=1-step=8.ckpt"),
        ("megatron/torch-dist", "iter_0000003"),
    ],
)
def test_latest_agrees_with_the_tracker_of_a_healthy_run(name: str, newest: str, copy_of: Copy) -> None:
    run = copy_of(name)
    report = ckpt_tools.latest(str(run), settle=0)
    assert (report.path, report.reasons()) == (str(run / newest), [])


def test_a_tracker_of_tensorflow_is_written_again(copy_of: Copy) -> None:
    run = copy_of("tensorflow/manager")
    (run / "checkpoint").write_text('model_checkpoint_path: "ckpt-9"\n')
    report = judge(run, families=TRACKERS)
    fix = finding(report, "CK132").fix
    assert fix is not None
    assert fix.params["text"] == 'model_checkpoint_path: "ckpt-3"\nall_model_checkpoint_paths: "ckpt-3"\n'
    ckpt_tools.repair(str(run), write=True, settle=0)
    assert codes(judge(run, families=TRACKERS)) == set()


# Checkpoints that are files -----------------------------------------------------------------------------------

BUNDLES = "tensorflow/manager"
FILES = [
    (BUNDLES, "checkpoint", "latest_checkpoint then gives None", "ckpt-3"),
    ("detectron2", "last_checkpoint", "loads the weights that the configuration names", "model_final.pth"),
    ("mmengine", "last_checkpoint", "trains from the beginning", "epoch_3.pth"),
]


@pytest.mark.parametrize(("name", "tracker", "words", "newest"), FILES, ids=[case[0] for case in FILES])
def test_a_lost_tracker_of_files_is_told_and_written_again(
    name: str, tracker: str, words: str, newest: str, copy_of: Copy
) -> None:
    run = said(copy_of(name), None, tracker)
    found = finding(judge(run, families=TRACKERS), "CK130")
    assert (found.path, found.severity) == (tracker, Severity.WARNING)
    assert words in found.detail[0]
    assert ckpt_tools.latest(str(run), settle=0).reasons()[0] == f"{tracker} is missing: {found.detail[0]}"
    ckpt_tools.repair(str(run), write=True, settle=0)
    assert newest in (run / tracker).read_text()
    assert codes(judge(run, families=TRACKERS)) == set()


@pytest.mark.parametrize(("name", "tracker", "words", "newest"), FILES, ids=[case[0] for case in FILES])
def test_one_file_that_was_copied_from_its_run_owes_no_tracker(
    name: str, tracker: str, words: str, newest: str, copy_of: Copy
) -> None:
    run = said(copy_of(name), None, tracker)
    assert codes(judge(run / newest, families=TRACKERS)) == set()
    for path in run.iterdir():
        if not path.name.startswith(newest):
            path.unlink()
    assert codes(judge(run, families=TRACKERS)) == set()
    assert ckpt_tools.latest(str(run), settle=0).reasons() == []


def test_what_was_written_and_not_saved_owes_no_tracker(copy_of: Copy) -> None:
    """``tf.train.Checkpoint.write`` counts no saves and writes no ``checkpoint``."""
    run = copy_of("tensorflow/odd")
    for path in list(run.iterdir()):
        for number in (1, 2):
            shutil.copy(path, run / path.name.replace("odd.", f"odd-{number}."))
        path.unlink()
    assert codes(judge(run, families=TRACKERS)) == set()


def test_files_that_are_only_named_alike_owe_no_tracker(copy_of: Copy) -> None:
    run = said(copy_of("mmengine"), None, "last_checkpoint")
    for number, path in enumerate(sorted((copy_of("plain/epochs")).glob("*.pt"))[:2], 2):
        shutil.copy(path, run / f"epoch_{number}.pth")
    assert codes(judge(run, families=TRACKERS)) == set()


def test_an_out_dir_of_mmengine_owes_no_tracker(copy_of: Copy) -> None:
    torch = pytest.importorskip("torch")
    run = said(copy_of("mmengine"), None, "last_checkpoint")
    for name in ("epoch_2.pth", "epoch_3.pth"):
        torch.save({"meta": {"mmengine_version": "0.10.7", "cfg": "hook = dict(out_dir='/data')"}}, run / name)
    assert codes(judge(run, families=TRACKERS)) == set()
    for name in ("epoch_2.pth", "epoch_3.pth"):
        torch.save({"meta": {"mmengine_version": "0.10.7", "cfg": ""}}, run / name)
    assert codes(judge(run, families=TRACKERS)) == {"CK130"}


POINTERS: list[tuple[str, str, str, str]] = [
    ("behind", "ckpt-2", "CK133", "it names ckpt-2; ckpt-3 is newer and whole"),
    ("behind, with a path", "/elsewhere/run/ckpt-2", "CK133", "it names ckpt-2; ckpt-3 is newer and whole"),
    ("dangling", "ckpt-9", "CK132", "it names ckpt-9, which is not here"),
]


@pytest.mark.parametrize(("text", "code", "message"), [case[1:] for case in POINTERS], ids=[c[0] for c in POINTERS])
def test_what_the_pointer_of_tensorflow_says(text: str, code: str, message: str, copy_of: Copy) -> None:
    run = said(copy_of(BUNDLES), f'model_checkpoint_path: "{text}"\n', "checkpoint")
    report = judge(run, families=(code,))
    assert finding(report, code).message == message
    notes = ckpt_tools.latest(str(run), settle=0).reasons()
    assert not any(".index" in note for note in notes)
    assert ("gives None" in notes[0]) == (code == "CK132")


def test_a_broken_one_of_tensorflow_is_named_as_its_pointer_does(copy_of: Copy) -> None:
    run = copy_of(BUNDLES)
    (run / "ckpt-3.data-00000-of-00001").unlink()
    found = finding(judge(run, families=("CK1",)), "CK134")
    assert found.message == "it names ckpt-3, which cannot be resumed"


def test_the_last_one_of_detectron2_says_its_step_inside(copy_of: Copy) -> None:
    run = said(copy_of("detectron2"), "model_0000005.pth", "last_checkpoint")
    found = finding(judge(run, families=TRACKERS), "CK133")
    assert found.message == "it names model_0000005.pth; model_final.pth is newer and whole"


def test_a_checkpoint_is_not_read_again_for_every_rule_of_trackers(copy_of: Copy) -> None:
    whole = ckpt_tools.verify(str(copy_of("mmengine")), settle=0).bytes_read
    lost = ckpt_tools.verify(str(said(copy_of("mmengine", "lost"), None, "last_checkpoint")), settle=0).bytes_read
    assert lost < 2 * whole
