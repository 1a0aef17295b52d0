"""``ckpt history`` on real runs: the healthy ones, the pair that was resumed well and badly, and its outputs."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import ckpt_tools
from ckpt_tools.cli import main
from ckpt_tools.core.errors import NothingFoundError, SourceError, UsageError
from ckpt_tools.core.listing import Listing
from ckpt_tools.ops.history import history
from ckpt_tools.render import chart, svg
from ckpt_tools.render.text import render as render_text
from ckpt_tools.reports.curves import Figure, Mark, Panel, series, thinned, ticks
from ckpt_tools.reports.history import State
from tests.conftest import ENTRIES, FIXTURES, Copy
from tests.history import made

HERE = Path(__file__).parent / "expected"
BADLY = "trainer5-resumed-badly"
WELL = "trainer5-resumed-well"
PLACES = [
    (entry["path"], name)
    for entry in ENTRIES
    for name in dict.fromkeys([".", *entry["checkpoints"]])
    if not entry["path"].startswith(BADLY)
]


@pytest.mark.parametrize(("path", "name"), PLACES)
def test_a_healthy_fixture_is_continuous(path: str, name: str) -> None:
    try:
        found = history(str(FIXTURES / path / name))
    except NothingFoundError:
        assert not list((FIXTURES / path / name).glob("**/trainer_state.json"))
        return
    assert found.continuous
    assert found.notes == ()
    assert found.exit_code(check=True) == (0 if found.judged else 3)


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("orbax/manager", [4, 10]),
        ("orbax/prefix", [3]),
        ("flax/legacy", [2, 4]),
        ("megatron/torch-dist", [3]),
        ("megatron/legacy", [3]),
        ("megatron/nemo2", [3]),
    ],
)
def test_steps_without_a_counter_are_shown_and_not_judged(path: str, steps: list[int]) -> None:
    found = history(str(FIXTURES / path))
    assert [point.step for point in found.stored] == steps
    assert not found.judged
    assert (found.exit_code(check=False), found.exit_code(check=True)) == (0, 3)
    assert found.document()["continuous"] is None
    shown = "\n".join(render_text(found))
    assert "the steps are those of the checkpoints" in shown
    assert "not judged: nothing is stored that would show how a resume went" in shown
    assert "no sign of a resume" not in shown


@pytest.mark.parametrize("path", ["timm", "ultralytics/weights"])
def test_an_epoch_is_no_step(path: str) -> None:
    found = history(str(FIXTURES / path))
    assert {point.step for point in found.stored} == {None}
    assert found.judged


def test_a_good_and_a_bad_resume_of_the_same_run_are_told_apart() -> None:
    well, badly = (history(str(FIXTURES / name)) for name in (WELL, BADLY))
    for found in (well, badly):
        (seam,) = found.seams
        assert (seam.step, seam.resumed) == (4, True)
    assert {sign.name: sign.state for sign in well.seams[0].signs} == dict.fromkeys(
        ("loss", "rate", "step", "optimizer"), State.CONTINUOUS
    )
    broken = {sign.name: sign.text for sign in badly.seams[0].signs if sign.state is State.BROKEN}
    assert set(broken) == {"rate", "optimizer"}
    assert "restarts with its warm-up" in broken["rate"]


@pytest.mark.parametrize("lost", ["optimizer.pt", "scheduler.pt", "training_args.bin"])
def test_the_bad_resume_is_found_without_one_of_the_files(copy_of: Copy, lost: str) -> None:
    run = copy_of(BADLY)
    for file in run.glob(f"*/{lost}"):
        file.unlink()
    assert not history(str(run)).continuous


@pytest.mark.parametrize("name", [WELL, BADLY])
def test_logs_alone_tell_the_pair_apart(copy_of: Copy, name: str) -> None:
    """A ``trainer_state.json`` that somebody sent: no schedule is known, and the warm-up in the middle speaks."""
    found = history(str(FIXTURES / name / "checkpoint-12" / "trainer_state.json"))
    assert found.continuous == (name == WELL)


def test_a_run_with_its_own_log_and_final_state(copy_of: Copy) -> None:
    run = copy_of("llama-factory/sft-lora")
    found = history(str(run))
    assert [source.path for source in found.sources] == [
        "checkpoint-2",
        "checkpoint-4",
        "trainer_state.json",
        "trainer_log.jsonl",
    ]
    assert [row.source for row in found.rows] == ["trainer_state.json"] * 4
    for path in (*run.glob("checkpoint-*"), run / "trainer_state.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    alone = history(str(run / "trainer_log.jsonl"))
    assert [(row.step, row.loss, row.rate) for row in alone.rows] == [(r.step, r.loss, r.rate) for r in found.rows]


def test_a_last_line_cut_short_is_a_note_and_the_others_are_read(copy_of: Copy) -> None:
    run = copy_of("llama-factory/sft-lora")
    log = run / "trainer_log.jsonl"
    log.write_bytes(log.read_bytes() + b'{"current_steps": 5, "loss": 3.4')
    found = history(str(run))
    assert [note.kind for note in found.notes] == ["log-damaged"]
    assert (found.exit_code(check=True), len(found.rows)) == (0, 4)
    log.write_bytes(b'{"current_steps": \n' + log.read_bytes())
    assert history(str(run)).exit_code(check=True) == 1


def test_a_state_that_is_damaged_is_told_and_fails_a_check(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    os.truncate(run / "checkpoint-4" / "trainer_state.json", 100)
    found = history(str(run))
    assert found.damaged == ("checkpoint-4",)
    assert len(found.rows) == 6
    assert (found.exit_code(check=False), found.exit_code(check=True)) == (0, 1)


def test_a_checkpoint_without_its_state_is_told(copy_of: Copy) -> None:
    run = copy_of("trainer5-full")
    (run / "checkpoint-6" / "trainer_state.json").unlink()
    found = history(str(run))
    assert [note.kind for note in found.notes] == ["no-log"]
    assert found.continuous
    assert len(found.rows) == 6  # the final state has it


def test_counters_are_shown_where_nothing_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", str(FIXTURES / "plain" / "epochs"), "--check"]) == 0
    shown = capsys.readouterr().out
    assert "no step is logged" in shown
    assert "epoch_10.pt" in shown


def test_a_file_that_cannot_be_read_gives_three(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Listing.open

    def refused(self: Listing, path: str) -> Any:
        if path == "trainer_state.json" and self.root.endswith("checkpoint-4"):
            raise SourceError(path, "Permission denied", errno=13)
        return opened(self, path)

    monkeypatch.setattr(Listing, "open", refused)
    found = history(str(FIXTURES / "trainer5-full"))
    assert found.unreadable == ("checkpoint-4/trainer_state.json",)
    assert found.exit_code(check=False) == 3


def test_several_trainings_are_not_mixed(tmp_path: Path) -> None:
    for name in ("run-0", "run-1"):
        made.written(tmp_path / name, {10: made.entries(range(1, 11), made.linear(100))})
    with pytest.raises(UsageError, match="2 trainings") as raised:
        history(str(tmp_path))
    assert f"ckpt history {tmp_path / 'run-0'}" in str(raised.value.hint)
    assert len(history(str(tmp_path / "run-0")).rows) == 10


def test_a_checkpoint_that_is_nowhere_near_a_trainer(tmp_path: Path) -> None:
    with pytest.raises(NothingFoundError, match="no log and no step count"):
        history(str(FIXTURES / "hf-model" / "tiny-llama"))
    with pytest.raises(NothingFoundError):
        history(str(tmp_path))


# Output ----------------------------------------------------------------------------------------------------

GOLDENS = {
    "badly-text": f"history {BADLY} --check",
    "badly-quiet": f"history {BADLY} --check -q",
    "badly-json": f"history {BADLY} --check --format json",
    "badly-csv": f"history {BADLY} --format csv",
    "well-text": f"history {WELL} --check",
    "well-csv": f"history {WELL} --check --format csv",
    "full-text": "history trainer5-full",
    "nothing": "history hf-model/tiny-llama",
    "no-such-ending": f"history {WELL} --plot out.pdf",
}


@pytest.mark.parametrize("name", GOLDENS)
def test_output_is_the_golden_one(name: str, request: pytest.FixtureRequest) -> None:
    environment = {**os.environ, "PYTHONPATH": str(FIXTURES.parent), "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "ckpt_tools", *GOLDENS[name].split()],
        check=False, cwd=FIXTURES, env=environment, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    stdout = done.stdout.replace(f'"tool": "{ckpt_tools.__version__}"', '"tool": "N"')
    said = {"stdout": stdout.splitlines(), "stderr": done.stderr.splitlines(), "rc": done.returncode}
    golden = HERE / f"{name}.json"
    if request.config.getoption("--update-goldens"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert said == json.loads(golden.read_text(encoding="utf-8"))


def test_csv_reads_back_as_the_numbers_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", str(FIXTURES / BADLY), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    state = json.loads((FIXTURES / BADLY / "checkpoint-12" / "trainer_state.json").read_text())
    for row, entry in zip(rows, state["log_history"], strict=True):
        assert {key: float(row[key]) for key in entry} == entry
    assert [row["step"] for row in rows if row["seam"]] == ["5"]


def test_names_from_a_log_are_no_formula_no_markup_and_no_terminal_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "eval_<script>\x1b[31m"
    history_ = [{"step": n, "loss": 2.0, "=cmd()": 1.0, name: 1.0} for n in range(1, 4)]
    run = made.written(tmp_path / "<b>&out", {3: history_})
    for format_ in ("csv", "text", "json"):
        assert main(["history", str(run), "--format", format_, "--plot", str(tmp_path / "a.html")]) == 0
        printed = capsys.readouterr().out
        assert "\x1b" not in printed
        assert not any(cell.startswith("=") for cell in printed.split(","))
    page = (tmp_path / "a.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;out" in page


@pytest.mark.parametrize("ending", ["svg", "html"])
def test_a_picture_is_self_contained_and_well_formed(
    tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / f"curves.{ending}"
    assert main(["history", str(FIXTURES / BADLY), "--plot", str(place), "-q"]) == 0
    text = place.read_text()
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    start, end = text.index("<svg"), text.index("</svg>") + 6
    root = ElementTree.fromstring(text[start:end])
    lines = root.findall(".//{http://www.w3.org/2000/svg}line[@class='b']")
    assert len(lines) == 2  # the broken seam in both panels
    assert text.count("http") == 1  # the name of the format
    assert "<script" not in text


def test_a_picture_that_cannot_be_written_gives_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", str(FIXTURES / WELL), "--plot", str(tmp_path / "no" / "a.svg")]) == 3
    assert "could not be written" in capsys.readouterr().err


def test_a_png_needs_matplotlib_and_says_so_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["history", str(FIXTURES / WELL), "--plot", str(tmp_path / "a.png")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[0] == "ckpt: error: a .png needs matplotlib, which is not installed"
    assert "ckpt-tools[plot]" in said.err


def test_a_png_is_drawn_where_matplotlib_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for name in (BADLY, "trainer5-full", "plain/epochs"):
        place = tmp_path / "$a$.png"
        assert main(["history", str(FIXTURES / name), "--plot", str(place)]) == 0
        assert place.read_bytes().startswith(b"\x89PNG")


# Charts ----------------------------------------------------------------------------------------------------


def figure(*values: float, marks: tuple[Mark, ...] = ()) -> Figure:
    return Figure("out", (Panel("loss", (series("loss", enumerate(values, 1)),)),), marks)


@pytest.mark.parametrize("width", [None, 1, 40, 80, 500])
@pytest.mark.parametrize("blocks", [True, False])
def test_a_chart_keeps_to_its_width(width: int | None, blocks: bool) -> None:
    lines = list(chart.render(figure(*(made.falling(n) for n in range(1000))), width=width, blocks=blocks))
    assert max(map(len, lines)) <= max(31, min(width or 80, 120))
    if not blocks:
        assert all(line.isascii() for line in lines)


def test_a_chart_shows_height_and_seams() -> None:
    lines = list(
        chart.render(figure(4, 3, 2, 1, marks=(Mark(1, "a", False), Mark(3, "b", True))), width=51, blocks=False)
    )
    assert lines[1].startswith("        4 ###")
    assert lines[6].endswith("#.")
    assert lines[7].replace(" ", "") == "^!"
    assert lines[8].endswith(" 4")


@pytest.mark.parametrize("values", [(), (1.0,), (2.0, 2.0), (1e308, -1e308), (5e-324, 0.0), (float("nan"), 1.0)])
def test_odd_curves_are_drawn(values: tuple[float, ...]) -> None:
    drawn = figure(*values)
    list(chart.render(drawn))
    ElementTree.fromstring(svg.render(drawn))


def test_thinning_keeps_the_extremes() -> None:
    points = tuple((float(n), 100.0 if n == 777 else made.noise(n)) for n in range(100_000))
    kept = thinned(points, 1000)
    assert len(kept) <= 1004
    assert (777.0, 100.0) in kept
    assert list(kept) == sorted(kept)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 12), (0, 0.04), (-3, 4), (1e-9, 3e-9), (0, 1e300), (5, 5)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 8
    assert all(low <= value <= high for value in found)


def test_a_long_log_is_shown_in_part_and_whole_with_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made.written(tmp_path / "out", {500: made.entries(range(1, 501), made.linear(500))})
    assert main(["history", str(run)]) == 0
    short = capsys.readouterr().out
    assert "of 500 rows; --all shows all" in short
    assert len(short.splitlines()) < 90
    assert main(["history", str(run), "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 500
