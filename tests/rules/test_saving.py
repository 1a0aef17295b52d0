"""CK101, CK109, CK111-CK115: saves that did not end, or have not yet."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.core import listing
from ckpt_tools.model.findings import Severity
from ckpt_tools.rules import saving
from tests.conftest import FIXTURES
from tests.rules import damage
from tests.rules.damage import Damage
from tests.rules.judge import codes, finding, judge, verdicts

Copy = Callable[..., Path]

FULL, SAVED = "trainer5-full", "accelerate/auto"
LATER = 3600 * 10**9
BROKEN = ("broken", "broken")
NO_RESUME = ("broken", "ready")
GOING = ("in-progress", "in-progress")

CASES: list[tuple[str, str, str, Damage, set[str], tuple[str, str]]] = [
    ("killed at the end", FULL, "checkpoint-6", damage.killed_before_the_state, {"CK101"}, NO_RESUME),
    ("killed after the weights", FULL, "checkpoint-6", damage.killed_after_the_weights, {"CK101"}, NO_RESUME),
    ("killed among the weights", FULL, "checkpoint-6", damage.only("model.safetensors"), {"CK101"}, NO_RESUME),
    (
        "killed, and one lost too",
        FULL,
        "checkpoint-6",
        damage.without("trainer_state.json", "optimizer.pt"),
        {"CK101", "CK103"},
        NO_RESUME,
    ),
    (
        "killed, with FSDP",
        FULL,
        "checkpoint-6",
        damage.together(damage.only("config.json"), damage.with_file("pytorch_model_fsdp_0/__0_0.distcp")),
        {"CK101", "CK140"},
        BROKEN,
    ),
    ("killed, with an adapter", "trainer5-lora", "checkpoint-4", damage.killed_before_the_state, {"CK101"}, NO_RESUME),
    (
        "killed accelerate",
        SAVED,
        "checkpoints/checkpoint_1",
        damage.without("random_states_0.pkl"),
        {"CK101"},
        ("degraded", "ready"),
    ),
    (
        "a state of accelerate lost",
        "accelerate/bin",
        ".",
        damage.without("random_states_0.pkl"),
        {"CK105"},
        ("degraded", "ready"),
    ),
    ("empty", FULL, "checkpoint-6", damage.emptied, {"CK111"}, BROKEN),
    (
        "empty but for a directory",
        FULL,
        "checkpoint-6",
        damage.together(damage.emptied, lambda directory: (directory / "runs").mkdir()),
        {"CK111"},
        BROKEN,
    ),
    ("a temporary file", FULL, "checkpoint-6", damage.left_temporary, {"CK113"}, ("ready", "ready")),
    ("another dot file", FULL, "checkpoint-6", damage.with_file(".tmp-notes"), set(), ("ready", "ready")),
    ("marked as incomplete", FULL, "checkpoint-6", damage.stopped_by_sigterm, {"CK115"}, NO_RESUME),
    (
        "marked and killed early",
        FULL,
        "checkpoint-6",
        damage.together(damage.only("model.safetensors"), damage.stopped_by_sigterm),
        {"CK101", "CK115"},
        BROKEN,
    ),
]


@pytest.mark.parametrize(
    ("fixture", "name", "done", "expected", "verdict"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_damage_gives_these_codes_and_verdicts(
    fixture: str, name: str, done: Damage, expected: set[str], verdict: tuple[str, str], copy_of: Copy
) -> None:
    run = copy_of(fixture)
    done(run / name)
    report = judge(run)
    assert codes(report) == expected
    assert verdicts(report, name) == verdict
    single = judge(run / name)
    assert codes(single) == expected
    assert verdicts(single) == verdict


def test_how_far_the_save_got(copy_of: Copy) -> None:
    run = copy_of(FULL)
    damage.killed_after_the_weights(run / "checkpoint-6")
    found = finding(judge(run), "CK101")
    assert found.path == "checkpoint-6"
    assert found.message == "the save did not end: trainer_state.json, which is written last, is missing"
    assert found.detail[1] == (
        "written: weights, config, tokenizer, training-args; not there: optimizer, scheduler, rng, trainer-state"
    )


def test_the_oldest_may_be_a_deletion_cut_short(copy_of: Copy) -> None:
    run = copy_of(FULL)
    damage.killed_before_the_state(run / "checkpoint-2")
    assert "a deletion that was cut short" in finding(judge(run), "CK101").detail[-1]
    assert "a deletion that was cut short" in finding(judge(run / "checkpoint-2"), "CK101").detail[-1]


def test_latest_passes_an_interrupted_and_an_empty_one_over(copy_of: Copy) -> None:
    run = copy_of(FULL)
    damage.killed_before_the_state(run / "checkpoint-6")
    (run / "checkpoint-9000").mkdir()
    report = ckpt_tools.latest(str(run), settle=0)
    assert report.path == str(run / "checkpoint-4")
    assert [passed.path for passed in report.passed] == [str(run / "checkpoint-9000"), str(run / "checkpoint-6")]


def test_a_single_checkpoint_names_the_run_to_look_in(copy_of: Copy) -> None:
    run = copy_of(FULL)
    damage.killed_before_the_state(run / "checkpoint-6")
    assert finding(judge(run / "checkpoint-6"), "CK101").help == (
        f"`ckpt latest {run}` finds the newest one that can be resumed"
    )


def changed(run: Path) -> int:
    """Return when the newest checkpoint last changed, by the system's clock of changes."""
    return max(path.stat().st_ctime_ns for path in (run / "checkpoint-6").rglob("*"))


def test_the_newest_being_written_is_told_and_nothing_else(copy_of: Copy) -> None:
    run = copy_of(FULL)
    damage.killed_after_the_weights(run / "checkpoint-6")
    report = judge(run, settle=60, now_ns=changed(run) + 20 * 10**9)
    assert codes(report) == {"CK109"}
    assert verdicts(report, "checkpoint-6") == GOING
    assert "changed 20 s ago" in finding(report, "CK109").detail[1]


def test_it_is_a_note_where_that_is_allowed(copy_of: Copy) -> None:
    run = copy_of(FULL)
    damage.killed_before_the_state(run / "checkpoint-6")
    report = judge(run, settle=60, now_ns=changed(run), allow_in_progress=True)
    assert codes(report) == set()
    assert finding(report, "CK109").severity is Severity.NOTE
    assert verdicts(report, "checkpoint-6") == GOING


@pytest.mark.parametrize(
    ("settle", "waited"),
    [(60, LATER), (60, 60 * 10**9), (0, 0)],
    ids=["long ago", "just settled", "never waits"],
)
def test_after_the_time_of_quiet_it_counts_as_interrupted(settle: float, waited: int, copy_of: Copy) -> None:
    run = copy_of(FULL)
    damage.killed_before_the_state(run / "checkpoint-6")
    report = judge(run, settle=settle, now_ns=changed(run) + waited + 10**9)
    assert codes(report) == {"CK101"}


def test_an_older_checkpoint_is_never_in_progress(copy_of: Copy) -> None:
    run = copy_of(FULL)
    damage.killed_before_the_state(run / "checkpoint-4")
    for path in (run, run / "checkpoint-4"):
        assert codes(judge(path, settle=60, now_ns=changed(run))) == {"CK101"}


def test_a_fresh_and_complete_checkpoint_is_ready(copy_of: Copy) -> None:
    run = copy_of(FULL)
    report = judge(run, settle=60, now_ns=changed(run))
    assert codes(report) == set()
    assert verdicts(report, "checkpoint-6") == ("ready", "ready")


def test_a_fresh_empty_directory_is_a_save_that_begins(copy_of: Copy) -> None:
    run = copy_of(FULL)
    (run / "checkpoint-8").mkdir()
    now = (run / "checkpoint-8").stat().st_ctime_ns
    assert codes(judge(run, settle=60, now_ns=now)) == {"CK109"}
    assert codes(judge(run, settle=60, now_ns=now + LATER)) == {"CK111"}


def test_growth_during_the_look_counts_whatever_the_times_are(copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copy_of(FULL)
    damage.killed_before_the_state(run / "checkpoint-6")

    def scan(root: str, *, depth: int) -> listing.Listing:
        with (run / "checkpoint-6" / "rng_state.pth").open("ab") as file:
            file.write(b"more")
        return listing.scan(root, depth=depth)

    monkeypatch.setattr(saving, "scan", scan)
    report = judge(run, settle=60, now_ns=changed(run) + LATER)
    assert codes(report) == {"CK109"}
    assert finding(report, "CK109").detail[1] == "it grew while it was looked at"


def test_a_complete_left_over_can_be_renamed(copy_of: Copy) -> None:
    run = copy_of(FULL)
    (run / "checkpoint-6").rename(run / "tmp-checkpoint-6")
    found = finding(judge(run), "CK112")
    assert found.path == "tmp-checkpoint-6"
    assert found.fix is not None
    assert (found.fix.kind, found.fix.params) == ("restore-name", {"from": "tmp-checkpoint-6", "to": "checkpoint-6"})


@pytest.mark.parametrize(
    ("done", "words"),
    [
        (damage.renamed("checkpoint-6", "tmp-checkpoint-x8sg2"), "it looks complete, to step 6"),
        (damage.with_copy("checkpoint-6", "tmp-checkpoint-6"), "it looks complete, and checkpoint-6 exists too"),
        (
            damage.together(
                damage.renamed("checkpoint-6", "tmp-checkpoint-6"),
                damage.inside("tmp-checkpoint-6", damage.killed_before_the_state),
            ),
            "not complete",
        ),
        (
            damage.together(
                damage.renamed("checkpoint-6", "tmp-checkpoint-6"),
                damage.inside("tmp-checkpoint-6", damage.cut("model.safetensors", 0.001)),
            ),
            "not complete",
        ),
        (lambda run: (run / "tmp-checkpoint-8").mkdir(), "not complete"),
    ],
    ids=["random name", "beside the real one", "killed", "weights cut", "empty"],
)
def test_left_over_staging_directories(done: Damage, words: str, copy_of: Copy) -> None:
    run = copy_of(FULL)
    done(run)
    report = judge(run)
    assert codes(report) == {"CK112"}
    assert words in finding(report, "CK112").message


def test_a_staging_directory_being_written_is_no_left_over(copy_of: Copy) -> None:
    run = copy_of(FULL)
    (run / "checkpoint-6").rename(run / "tmp-checkpoint-6")
    report = judge(run, settle=60, now_ns=time.time_ns())
    assert codes(report) == set()
    assert finding(report, "CK112").severity is Severity.NOTE


@pytest.mark.parametrize(
    ("name", "is_directory", "message"),
    [
        ("checkpoint-abc", True, "ignored: its name is not checkpoint-N"),
        ("checkpoint-100-bak", True, "ignored: its name is not checkpoint-N"),
        ("checkpoint-1e3", True, "ignored: its name is not checkpoint-N"),
        ("checkpoint-9000", False, "ignored: a file, not a directory"),
    ],
)
def test_names_that_no_trainer_finds(name: str, is_directory: bool, message: str, copy_of: Copy) -> None:
    run = copy_of(FULL)
    (run / name).mkdir() if is_directory else (run / name).write_bytes(b"x")
    report = judge(run)
    assert codes(report) == set()
    found = finding(report, "CK114")
    assert (found.message, found.path) == (message, name)


def test_no_fixture_has_left_overs() -> None:
    for run in (FIXTURES / FULL, FIXTURES / SAVED, FIXTURES / "llama-factory" / "sft-lora"):
        assert not codes(judge(run, families=("CK112", "CK113", "CK114", "CK115")), Severity.NOTE)
