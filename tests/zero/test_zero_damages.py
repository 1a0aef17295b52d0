"""CK15x, CK37x and CK57x: DeepSpeed's files, missing, mixed up, or not of one save; healthy ones are silent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ckpt_tools
from ckpt_tools.model.findings import Severity
from ckpt_tools.rules import CATALOGUE
from tests.conftest import Copy
from tests.rules.damage import without
from tests.rules.dcp_damage import exchanged as swapped
from tests.rules.judge import codes, finding, judge, verdicts
from tests.zero.rows import (
    BF1,
    BF3,
    FAMILIES,
    MOE0,
    MOE2,
    PIPE0,
    PIPE1,
    READY,
    RESUME,
    ROWS,
    S0,
    S1,
    S2,
    S3,
    S4,
    T1,
    T3,
    U1,
    U3,
    Row,
)
from tests.zero.states import MODEL, changed, model, optimizer, streamed, values


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_damage(row: Row, copy_of: Copy) -> None:
    run, _, inside = row.fixture.partition("/")
    place = copy_of(f"deepspeed/{run}") / inside
    row.damage(place)
    (moved,) = [place] if place.exists() else place.parent.glob("global_step40")
    report = judge(moved, families=FAMILIES)
    assert (codes(report), verdicts(report)) == (row.codes, row.verdict)


@pytest.mark.parametrize(
    ("fixture", "ranks", "told"),
    [(S1, 4, True), (S1, 2, False), (S3, 4, True), (S0, 4, False), (U1, 64, False), (T1, 4, True), (PIPE1, 4, True),
     (PIPE1, 2, False), (MOE2, 4, True), (MOE2, 2, False), (T1, 2, False)],
)  # fmt: skip
def test_another_number_of_ranks(fixtures_dir: Path, fixture: str, ranks: int, told: bool) -> None:
    report = judge(fixtures_dir / "deepspeed" / fixture, families=FAMILIES, world_size=ranks)
    assert (codes(report), verdicts(report)) == (({"CK159"}, RESUME) if told else (set(), READY))
    if told:
        assert "ds_to_universal" in (finding(report, "CK159").help or "")


def test_the_ranks_that_lack_a_file_are_numbered(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage1-4ranks")
    without(optimizer(0), optimizer(2), optimizer(3))(run / "global_step4")
    told = finding(judge(run / "global_step4"), "CK150")
    assert told.message == "the optimizer partitions of ranks 0, 2-3 are missing"
    assert told.detail[0].startswith("1 of 4 are there")


def test_a_layer_that_another_tag_has_is_missing_and_a_gap_is_noted(copy_of: Copy) -> None:
    run = copy_of("deepspeed/pipeline-stage0")
    shutil.copytree(run / "global_step3", run / "global_step2")
    without("layer_01*")(run / "global_step3")
    assert finding(judge(run / "global_step3"), "CK155").severity is Severity.ERROR
    shutil.rmtree(run / "global_step2")
    assert finding(judge(run / "global_step3"), "CK155").severity is Severity.NOTE


HEALTHY = [
    S0,
    S1,
    S2,
    S3,
    S4,
    BF1,
    BF3,
    PIPE0,
    PIPE1,
    MOE0,
    MOE2,
    U1,
    U3,
    T1,
    T3,
    "trainer-stage3-gathered/checkpoint-2",
]


@pytest.mark.parametrize("fixture", HEALTHY)
def test_healthy_ones_are_ready_and_silent(fixtures_dir: Path, fixture: str) -> None:
    report = ckpt_tools.verify(str(fixtures_dir / "deepspeed" / fixture), settle=0, deep=True)
    assert not codes(report, Severity.WARNING)
    assert verdicts(report) == READY
    assert not {finding.code for finding in report.all_findings()} & {"CK701", "CK312", "CK316"}
    skipped = [each.reason for checkpoint in report.checkpoints for each in checkpoint.skipped]
    assert not [reason for reason in skipped if "not read by this version" in reason]


def test_foreign_objects_in_states_are_noted_and_dangerous_ones_are_errors(copy_of: Copy) -> None:
    pytest.importorskip("torch")
    from tests.rules.damage_values import calling, torch_zip

    run = copy_of("deepspeed/stage1-fp32")
    changed(MODEL, values(started=__import__("datetime").datetime(2026, 1, 1)))(run / "global_step4")
    report = judge(run / "global_step4", families=("CK7",))
    assert finding(report, "CK701").severity is Severity.NOTE
    assert verdicts(report) == READY
    torch_zip(run / "global_step4" / optimizer(0), calling("os", "system"))
    assert finding(judge(run / "global_step4", families=("CK7",)), "CK705").severity is Severity.ERROR


def test_a_name_that_says_another_step_is_a_warning_where_the_others_fit(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage1-fp32")
    (run / "global_step4").rename(run / "global_step40")
    for place in (run, run / "global_step40"):
        assert finding(judge(place, families=FAMILIES), "CK576").severity is Severity.WARNING
    (run / "global_step2").rename(run / "global_step20")  # a loop that counts in its own way
    assert finding(judge(run / "global_step40", families=FAMILIES), "CK576").severity is Severity.NOTE
    shutil.rmtree(run / "global_step20")
    assert finding(judge(run / "global_step40", families=FAMILIES), "CK576").severity is Severity.NOTE


def test_files_of_other_ranks_are_told_by_what_they_were_written_as(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage1-4ranks")
    swapped(optimizer(0), optimizer(2))(run / "global_step4")
    told = finding(judge(run / "global_step4", families=FAMILIES), "CK378")
    assert told.message == "2 files are those of other ranks"
    assert told.detail[0].startswith(f"{optimizer(0)} was written as {optimizer(2)}")
    assert told.severity is Severity.ERROR


@pytest.mark.parametrize("streams", [False, True])
def test_model_states_that_say_the_same_are_a_warning_in_each_others_place(copy_of: Copy, streams: bool) -> None:
    place = copy_of("deepspeed/trainer-stage3") / "checkpoint-4/global_step4"
    if streams:
        streamed(model(0), model(1))(place)
    swapped(model(0), model(1))(place)
    report = judge(place.parent, families=FAMILIES)
    assert codes(report) == (set() if streams else {"CK378"})
    assert verdicts(report) == READY


def test_a_layer_that_was_copied_to_make_the_model_deeper_is_no_fault(copy_of: Copy) -> None:
    place = copy_of("deepspeed/pipeline-stage0") / "global_step3"
    shutil.copy2(place / "layer_03-model_states.pt", place / "layer_04-model_states.pt")
    assert "CK378" not in codes(judge(place, families=FAMILIES))


def test_a_layer_with_buffers_alone_is_missing(copy_of: Copy) -> None:
    place = copy_of("deepspeed/pipeline-stage0") / "global_step3"
    changed(MODEL, values(buffer_names=["1.running_mean"]))(place)
    assert "CK155" not in codes(judge(place))
    without("layer_01*")(place)
    assert finding(judge(place), "CK155").severity is Severity.ERROR


def test_a_slice_of_a_layer_that_others_have_is_missing(copy_of: Copy) -> None:
    place = copy_of("deepspeed/pipeline-stage0") / "global_step3"
    for path in sorted(place.glob("layer_*")):
        for which in (0, 1):
            shutil.copy2(path, place / path.name.replace("-model_states", f"-model_{which:02d}-model_states"))
        path.unlink()
    assert "CK155" not in codes(judge(place))
    without("layer_02-model_01*")(place)
    told = finding(judge(place), "CK155")
    assert told.severity is Severity.ERROR
    assert told.detail == ("no file layer_02-model_01-model_states.pt",)


def test_a_tag_that_is_being_written(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage1-fp32")
    without(optimizer(1))(run / "global_step4")
    report = judge(run, settle=3600)
    assert verdicts(report, "global_step4") == ("in-progress", "in-progress")
    assert verdicts(report, "global_step2") == READY
    assert codes(judge(run, settle=0)) >= {"CK150"}


def test_a_tag_that_latest_does_not_name_yet(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage1-fp32")
    (run / "latest").write_text("global_step2")
    assert verdicts(judge(run, settle=3600), "global_step4") == ("in-progress", "in-progress")
    assert verdicts(judge(run, settle=0), "global_step4") == READY


def test_latest_is_the_newest_complete_tag(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage1-fp32")
    assert ckpt_tools.latest(str(run), settle=0).path == str(run / "global_step4")
    without(optimizer(1))(run / "global_step4")
    found = ckpt_tools.latest(str(run), settle=0)
    assert found.path == str(run / "global_step2")
    assert [each.path for each in found.passed] == [str(run / "global_step4")]


def test_tags_are_ordered_by_number(copy_of: Copy) -> None:
    run = copy_of("deepspeed/stage0")
    (run / "global_step4").rename(run / "global_step10")
    (run / "global_step2").rename(run / "global_step9")
    (run / "latest").write_text("global_step10\r\n")
    assert ckpt_tools.latest(str(run), settle=0).path == str(run / "global_step10")


def test_info_tells_stage_and_ranks(fixtures_dir: Path) -> None:
    described = ckpt_tools.info(str(fixtures_dir / "deepspeed" / S3)).described
    assert described is not None
    assert described.training.world_size == 2
    assert ("ZeRO", "stage 3, partitioned over 2 data-parallel ranks") in described.training.others
    assert described.model.parameters == 97
    assert described.progress.step == 4


def test_every_rule_has_a_row() -> None:
    rows = {code for row in ROWS for code in row.codes}
    own = {rule.code for rule in CATALOGUE if rule.code.startswith(("CK15", "CK37", "CK57"))}
    assert own == {code for code in rows if code.startswith(("CK15", "CK37", "CK57"))} | {
        "CK157",
        "CK159",
        "CK379",
        "CK576",
    }
