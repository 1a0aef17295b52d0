"""Each kind of seam on histories made by hand, and the healthy ones that must stay silent."""

from __future__ import annotations

from itertools import product
from math import inf, nan
from typing import Any

import pytest

from ckpt_tools.ops import logs, seams
from ckpt_tools.reports.history import HistoryReport, State
from tests.history import made
from tests.history.made import entries, only, point, report, sign, start, state

TOTAL = 1000
HEALTHY = {
    "linear": [made.linear(TOTAL), made.linear(TOTAL, 100), made.linear(TOTAL, 1)],
    "cosine": [made.cosine(TOTAL), made.cosine(TOTAL, 37)],
    "constant": [made.constant()],
    "constant_with_warmup": [made.constant(warmup=50), made.constant(warmup=2)],
    "inverse_sqrt": [made.inverse_sqrt(100)],
    "warmup_stable_decay": [made.stable_decay(TOTAL, 50, 200)],
    "cosine_with_restarts": [made.restarts(TOTAL, 4)],
    "polynomial": [lambda n: 1e-3 * (1 - min(n, TOTAL) / TOTAL) ** 2 + 1e-7],
}


def broken(found: HistoryReport) -> list[tuple[int, str]]:
    return [(seam.step, each.name) for seam in found.seams for each in seam.signs if each.state is State.BROKEN]


def told(found: HistoryReport) -> set[str]:
    return {note.kind for note in found.notes}


@pytest.mark.parametrize(("name", "every", "old"), [*product(HEALTHY, (1, 7, 10, 50, 200), (False, True))])
def test_a_healthy_schedule_has_no_seam(name: str, every: int, old: bool) -> None:
    for rate in HEALTHY[name]:
        history = entries(range(every, TOTAL + 1, every), rate, old=old)
        for counted in (True, False):
            stored = [point(n, n if counted else None, n if counted else None) for n in range(100, TOTAL + 1, 100)]
            found = report(state("checkpoint-1000", TOTAL, history), stored=stored, schedule=name, logging_steps=every)
            assert found.seams == ()
            assert found.notes == ()
            assert found.exit_code(check=True) == 0


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_schedule_of_unknown_name_is_not_called_broken(name: str) -> None:
    for rate in HEALTHY[name]:
        history = entries(range(10, TOTAL + 1, 10), rate)
        assert report(state("trainer_state.json", TOTAL, history), schedule=None, kind=None).continuous


@pytest.mark.parametrize(("every", "old"), [*product((1, 10), (False, True))])
@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("linear", made.linear(TOTAL, 50)),
        ("linear", made.linear(TOTAL)),
        ("cosine", made.cosine(TOTAL, 50)),
        ("constant_with_warmup", made.constant(warmup=50)),
        ("inverse_sqrt", made.inverse_sqrt(50)),
        ("warmup_stable_decay", made.stable_decay(TOTAL, 50, 200)),
    ],
)
def test_a_rate_that_restarted_is_found_from_the_log_alone(
    name: str, rate: made.Schedule, every: int, old: bool
) -> None:
    history = entries(range(every, 401, every), rate, old=old)
    history += entries(range(400 + every, TOTAL + 1, every), rate, old=old, began=400)
    stored = [point(n) for n in (200, 400, 1000)]
    found = report(state("checkpoint-1000", TOTAL, history), stored=stored, schedule=name, logging_steps=every)
    assert broken(found) == [(400, "rate")]
    assert found.exit_code(check=True) == 1
    assert found.exit_code(check=False) == 0
    text = sign(only(found), "rate").text
    assert "repeat the rates of" in text
    assert ("warm-up" in text) == (rate(0) == 0)


def test_a_rate_that_restarted_between_kept_checkpoints_is_placed_by_save_steps() -> None:
    rate = made.linear(TOTAL, 50)
    history = entries(range(10, 401, 10), rate) + entries(range(410, TOTAL + 1, 10), rate, began=400)
    found = report(state("checkpoint-1000", TOTAL, history), stored=[point(900), point(1000)], save_steps=100)
    assert broken(found) == [(400, "rate")]


def test_a_longer_plan_lifts_the_rate() -> None:
    """faults G2: the curve is rebuilt from new arguments; the first resumed step still has the saved rate."""
    history = entries(range(1, 11), made.linear(20)) + entries([11], made.linear(20))
    history += entries(range(12, 41), made.linear(40))
    stored = [point(10, 10, 10, 20), point(40, 40, 40, 40)]
    starts = [start(10, total=20, lr_scheduler_type="linear"), start(40, total=40, lr_scheduler_type="linear")]
    found = report(state("checkpoint-40", 40, history), stored=stored, starts=starts)
    assert broken(found) == [(10, "rate")]
    assert "20 steps planned, then 40" in only(found).evidence
    assert sign(only(found), "optimizer").state is State.CONTINUOUS


def test_a_jump_through_which_the_scheduler_counted_on_is_its_own() -> None:
    rate = made.restarts(TOTAL, 4)  # under a name that promises none: a scheduler handed to the Trainer
    history = entries(range(10, TOTAL + 1, 10), rate)
    counted = [point(n, n, n) for n in (500, 1000)]
    assert report(state("checkpoint-1000", TOTAL, history), stored=counted).seams == ()
    assert not report(state("checkpoint-1000", TOTAL, history), stored=[point(500), point(1000)]).continuous


@pytest.mark.parametrize("kind", ["ReduceLROnPlateau", "GreedyLR", "CosineAnnealingWarmRestarts", "StepLR"])
def test_schedulers_that_jump_by_nature_are_told_by_their_saved_keys(kind: str) -> None:
    history = entries(range(1, 101), lambda n: 1e-3 if n < 50 else 1e-4 if n < 70 else 5e-4)
    found = report(state("checkpoint-100", 100, history), stored=[point(50, 50), point(100, 100)], kind=kind)
    assert found.seams == ()


def test_a_good_resume_is_seen_by_its_arguments_and_is_continuous() -> None:
    history = entries(range(1, 101), made.linear(100, 10))
    starts = [
        start(40),
        start(80, resume_from_checkpoint="out/checkpoint-40"),
        start(100, resume_from_checkpoint="out/checkpoint-40"),
    ]
    stored = [point(n, n, n) for n in (40, 80, 100)]
    found = report(state("checkpoint-100", 100, history), stored=stored, starts=starts)
    seam = only(found)
    assert (seam.step, seam.checkpoint, seam.resumed, seam.continuous) == (40, "checkpoint-40", True, True)
    assert [each.state for each in seam.signs] == [State.CONTINUOUS] * 4
    assert sign(seam, "step").text == "moves on: 40 + 60 = 100"


@pytest.mark.parametrize("value", [None, False, "", "False", 7, ["x"], "elsewhere/checkpoint-400", "checkpoint-0"])
def test_odd_values_of_resume_from_checkpoint(value: Any) -> None:
    history = entries(range(1, 101), made.linear(100))
    starts = [start(40), start(100, resume_from_checkpoint=value)]
    found = report(state("checkpoint-100", 100, history), stored=[point(40), point(100)], starts=starts)
    assert found.continuous
    assert {seam.step for seam in found.seams} <= {40}


def test_other_arguments_worlds_and_versions_are_a_new_start() -> None:
    history = entries(range(1, 101), made.linear(100))
    starts = [start(40, seed=1, version="4.57.6"), start(100, seed=2, version="5.23.0", world=4)]
    found = report(state("checkpoint-100", 100, history), stored=[point(40), point(100)], starts=starts, schedule=None)
    evidence = "; ".join(only(found).evidence)
    assert "seed 1, then 2" in evidence
    assert "1 processes, then 4" in evidence
    assert "transformers 4.57.6, then 5.23.0" in evidence


# Counters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counters", "tolerance", "expected"),
    [
        ([(10, 10), (20, 20), (30, 30)], 0, []),
        ([(10, 10), (20, 10), (30, 20)], 0, [10]),
        ([(10, 10), (50, 40)], 0, [10]),  # more than it had, and still from zero
        ([(20, 10), (30, 20)], 0, [10]),  # the checkpoint that was resumed was rotated away
        ([(10, 9), (20, 19)], 20, []),  # a loss scaler skipped the first step
        ([(1000, 995), (2000, 1000)], 20, [1000]),
        ([(10, 10), (20, 15)], 0, []),  # the step was raised by hand to 15: no restart
        ([(10, 40), (20, 80)], 0, []),  # a scheduler prepared by accelerate counts once per process
        ([(10, 40), (20, 20)], 0, [10]),
        ([(10, None), (20, 20)], 0, []),
        ([(10, 0), (20, 0)], 20, []),
    ],
)
def test_counters_that_begin_anew(
    counters: list[tuple[int, float | None]], tolerance: int, expected: list[int]
) -> None:
    points = [(f"checkpoint-{step}", step, counter) for step, counter in counters]
    assert [each.step for each in seams.restarts(points, tolerance, True)] == expected


def test_counters_of_numbered_files_need_only_grow() -> None:
    assert seams.restarts([("a", 1, 40.0), ("b", 2, 80.0)], 0, False) == []
    assert [each.step for each in seams.restarts([("a", 1, 40.0), ("b", 2, 40.0), ("c", 3, 30.0)], 0, False)] == [2]


def test_an_optimizer_that_restarted_is_a_resume_gone_wrong() -> None:
    history = entries(range(1, 101), made.linear(100))
    found = report(state("checkpoint-100", 100, history), stored=[point(40, 40, 40), point(100, 60, 100)])
    seam = only(found)
    assert (seam.step, seam.resumed, broken(found)) == (40, True, [(40, "optimizer")])
    assert "has counted 60 steps, 100 are expected" in sign(seam, "optimizer").text


def test_without_logs_counters_are_judged_alone() -> None:
    found = report(stored=[point(40, 40, 40), point(100, 60, 60)])
    assert broken(found) == [(40, "rate"), (40, "optimizer")]
    assert found.rows == ()


# Loss ------------------------------------------------------------------------------------------------------


def resumed(loss: made.Schedule, **more: Any) -> HistoryReport:
    history = entries(range(1, 101), made.linear(100), loss=loss)
    starts = [start(40, **more), start(100, resume_from_checkpoint="checkpoint-40", version="5.0.0", **more)]
    return report(state("checkpoint-100", 100, history), stored=[point(40), point(100)], starts=starts)


def test_a_loss_that_jumps_at_a_resume_is_broken_and_elsewhere_a_note() -> None:
    def high(n: int) -> float:
        return made.falling(n) + (2.0 if n > 40 else 0.0)

    assert broken(resumed(high)) == [(40, "loss")]
    history = entries(range(1, 101), made.linear(100), loss=high)
    quiet = report(state("checkpoint-100", 100, history), stored=[point(40), point(100)])
    assert quiet.continuous
    assert told(quiet) == {"loss-jumps"}


@pytest.mark.parametrize(
    "loss", [made.falling, lambda n: 2.0 + made.noise(n), lambda n: 0.0, lambda n: 3.0 if n == 41 else 2.9]
)
def test_a_noisy_loss_joins(loss: made.Schedule) -> None:
    assert sign(only(resumed(loss)), "loss").state is State.CONTINUOUS


def test_a_loss_on_another_scale_is_not_called_broken() -> None:
    found = resumed(lambda n: made.falling(n) * (4 if n > 40 else 1), gradient_accumulation_steps=4)
    assert sign(only(found), "loss").state is State.UNKNOWN
    assert "another scale" in sign(only(found), "loss").text


def test_a_loss_that_is_no_number_after_a_resume() -> None:
    found = resumed(lambda n: nan if n > 40 else 2.0)
    assert broken(found) == [(40, "loss")]
    assert [note.breaks for note in found.notes if note.kind == "nan-loss"] == [True]


def test_one_nan_on_the_way_is_a_note_and_nan_up_to_the_end_a_break() -> None:
    rate = made.linear(100)
    once = report(state("a", 100, entries(range(1, 101), rate, loss=lambda n: nan if n == 50 else 2.0)))
    ever = report(state("a", 100, entries(range(1, 101), rate, loss=lambda n: inf if n > 50 else 2.0)))
    assert (once.continuous, told(once)) == (True, {"nan-loss"})
    assert (ever.continuous, told(ever)) == (False, {"nan-loss"})


def test_a_loss_of_exactly_zero_is_what_the_nan_filter_writes() -> None:
    history = entries(range(1, 101), made.linear(100), loss=lambda n: 0.0 if n > 50 else 2.0)
    assert report(state("a", 100, history)).continuous
    for entry in history[50:]:
        entry["grad_norm"] = nan
    found = report(state("a", 100, history))
    assert not found.continuous
    assert told(found) == {"zero-loss"}


# Steps -----------------------------------------------------------------------------------------------------


def test_steps_that_were_jumped_over_are_a_gap() -> None:
    history = entries([*range(1, 11), *range(16, 31)], made.linear(30))
    found = report(state("checkpoint-30", 30, history), logging_steps=1)
    assert [(note.kind, note.breaks) for note in found.notes] == [("gap", True)]


@pytest.mark.parametrize(
    "steps",
    [
        [1, *range(10, 101, 10)],  # logging_first_step
        [*range(5, 51, 5), *range(60, 201, 10)],  # another interval from here on
        [*range(10, 101, 10), 105],
        [33, 66, 100, 133, 166, 200],  # by epochs
    ],
)
def test_regular_steps_are_no_gap(steps: list[int]) -> None:
    assert logs.gaps([*logs.join([state("a", steps[-1], entries(steps, made.linear(200)))]).rows], None) == []


def test_a_log_of_which_the_beginning_is_lost_is_filled_by_older_ones() -> None:
    rate = made.linear(100)
    newest = state("checkpoint-100", 100, entries(range(51, 101), rate))
    alone = report(newest)
    assert told(alone) == {"begins-late"}
    filled = report(newest, state("checkpoint-50", 50, entries(range(1, 51), rate)))
    assert (len(filled.rows), filled.notes) == (100, ())
    partly = report(newest, state("checkpoint-20", 20, entries(range(1, 21), rate)))
    assert [(note.kind, note.breaks) for note in partly.notes] == [("gap", False)]


def test_steps_told_twice_in_one_memory_are_doubled() -> None:
    rate = made.linear(100)
    history = entries(range(1, 61), rate) + entries(range(41, 101), rate, loss=lambda n: made.falling(n + 1))
    found = report(state("checkpoint-100", 100, history), stored=[point(40, 40), point(100, 100)])
    assert broken(found) == [(40, "step")]
    assert [row.step for row in found.rows] == list(range(1, 101))


def test_a_log_that_was_appended_to_shows_the_resume_and_the_last_attempt_counts() -> None:
    rate = made.linear(100)
    first = entries(range(1, 57), rate)
    second = entries(range(41, 91), rate, loss=lambda n: made.falling(n) + 0.001)
    found = report(made.lines(first + second), stored=[point(40, 40), point(80, 80)])
    seam = only(found)
    assert (seam.step, seam.resumed, seam.continuous) == (40, True, True)
    assert "goes back from step 56 to 41" in seam.evidence[0]
    assert "the first time that step had" in sign(seam, "loss").text
    assert found.rows[40].loss == second[0]["loss"]
    assert told(found) == {"unsaved"}


def test_an_attempt_that_ended_earlier_is_dropped() -> None:
    rate = made.linear(100)
    first, second = entries(range(1, 57), rate), entries(range(41, 51), rate, loss=lambda n: 9.0)
    joined = logs.join([made.lines(first + second)])
    assert [row.step for row in joined.rows] == list(range(1, 51))


def test_a_clock_that_begins_again_is_a_resume() -> None:
    history = entries(range(1, 101), made.linear(100))
    for entry in history:
        entry["more"] = {"elapsed_time": f"0:{(entry['step'] - (40 if entry['step'] > 40 else 0)) % 60:02d}:00"}
    found = report(made.lines(history), stored=[point(40, 40), point(100, 100)])
    assert (only(found).step, only(found).continuous) == (40, True)


def test_words_repeated_by_several_writers_are_a_note() -> None:
    history = [entry for entry in entries(range(1, 11), made.linear(10)) for _ in range(2)]
    found = report(made.lines(history))
    assert (found.continuous, told(found), found.seams) == (True, {"repeated"}, ())


def test_a_summary_in_the_middle_is_where_one_training_ended() -> None:
    rate = made.linear(100)
    history: list[dict[str, Any]] = entries(range(1, 41), rate)
    history += [{"step": 40, "train_runtime": 3.0, "train_loss": 2.0}, *entries(range(41, 101), rate)]
    found = report(state("checkpoint-100", 100, history), stored=[point(40, 40), point(100, 100)])
    assert (only(found).step, only(found).continuous) == (40, True)
    assert "a training ended here" in only(found).evidence[0]


def test_contradictions_are_told_and_the_newer_log_wins() -> None:
    rate = made.linear(100)
    newest = state("checkpoint-100", 100, entries(range(1, 101), rate))
    older = state("checkpoint-60", 60, entries(range(1, 61), rate, loss=lambda n: made.falling(n) + (n > 40) * 0.01))
    found = report(newest, older, stored=[point(40, 40), point(60, 60), point(100, 100)])
    assert found.continuous
    assert told(found) == {"contradiction"}
    assert only(found).step == 40
    assert all(row.source == "checkpoint-100" for row in found.rows)


def test_evaluations_share_the_step_and_the_one_after_the_end_does_not_replace_it() -> None:
    history: list[dict[str, Any]] = entries(range(1, 5), made.linear(4))
    history[2:2] = [{"step": 2, "epoch": 0.5, "eval_loss": 1.0}]
    history += [{"step": 4, "eval_loss": 2.0}, {"step": 4, "train_runtime": 1.0}, {"step": 4, "eval_loss": 1.0}]
    found = report(state("trainer_state.json", 4, history))
    assert [row.values.get("eval_loss") for row in found.rows] == [None, 1.0, None, 2.0]
    assert found.seams == found.notes == ()


def test_an_epoch_that_falls_is_told_and_no_break() -> None:
    rate = made.linear(100)
    history = entries(range(1, 41), rate) + entries(range(41, 101), rate)
    for entry in history[40:]:
        entry["epoch"] -= 0.35
    starts = [start(40), start(100, resume_from_checkpoint="checkpoint-40")]
    found = report(state("checkpoint-100", 100, history), stored=[point(40), point(100)], starts=starts)
    assert "ignore_data_skip" in sign(only(found), "step").text
    assert found.continuous


def test_another_batch_size_shows_in_the_length_of_an_epoch() -> None:
    rate = made.linear(100)
    history = entries(range(1, 41), rate) + entries(range(41, 101), rate)
    for entry in history[40:]:
        entry["epoch"] = 0.4 + (entry["step"] - 40) / 50
    starts = [start(40), start(100, resume_from_checkpoint="checkpoint-40")]
    found = report(state("checkpoint-100", 100, history), stored=[point(40), point(100)], starts=starts)
    assert "an epoch took 100 steps before and 50 after" in sign(only(found), "step").text
