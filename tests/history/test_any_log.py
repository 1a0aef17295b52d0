"""Whatever stands in a log: a report, in every format, and never an exception."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.ops.history import history
from ckpt_tools.render import chart, csv, svg, text
from ckpt_tools.render import json as documents
from ckpt_tools.reports.history import HistoryReport

NUMBERS = st.one_of(
    st.integers(-5, 60),
    st.integers(),
    st.floats(),
    st.floats(0, 3),
    st.sampled_from([float("nan"), float("inf"), 10**400, -0.0, 2**63]),
)
ODD = st.one_of(st.none(), st.booleans(), st.text(max_size=5), st.lists(st.integers(), max_size=2), st.just({"a": [1]}))
ANY = st.one_of(NUMBERS, NUMBERS, NUMBERS, ODD)
KEYS = st.one_of(
    st.sampled_from("step epoch loss learning_rate eval_loss grad_norm train_runtime".split()),  # noqa: SIM905
    st.text(max_size=6),
)
LOGGED = st.builds(
    lambda step, more: {"step": step, **more},
    st.integers(0, 40),
    st.dictionaries(KEYS.filter("step".__ne__), ANY, max_size=5),
)
HISTORY = st.one_of(st.lists(st.one_of(LOGGED, LOGGED, st.dictionaries(KEYS, ANY, max_size=5), ODD), max_size=25), ODD)
STATES = st.dictionaries(
    st.sampled_from(["global_step", "log_history", "max_steps", "logging_steps", "save_steps", "epoch"]),
    ANY,
    max_size=4,
)
LINES = st.lists(
    st.dictionaries(
        st.sampled_from(["current_steps", "loss", "lr", "epoch", "elapsed_time", "total_steps", "eval_loss"]),
        st.one_of(ANY, st.sampled_from(["0:00:01", "1 day, 2:03:04", "99:99:99"])),
    ),
    max_size=12,
)


def check(found: HistoryReport) -> None:
    for width in (40, None):
        assert all("\n" not in line for line in text.render(found, width=width))
    for line in documents.render(found):
        json.loads(line)
    assert len(list(csv.render(*found.records()))) == len(found.rows) + 1
    list(chart.render(found.figure(), width=60))
    ElementTree.fromstring(svg.render(found.figure()))
    list(found.brief())
    assert [row.step for row in found.rows] == sorted({row.step for row in found.rows})
    assert found.exit_code(True) in (0, 1)


@settings(max_examples=300, deadline=None)
@given(states=st.lists(st.tuples(STATES, HISTORY), min_size=1, max_size=3), lines=LINES, torn=st.integers(0, 30))
def test_no_log_makes_an_exception(states: list[tuple[dict[str, Any], Any]], lines: list[Any], torn: int) -> None:
    with TemporaryDirectory() as place:
        for number, (state, log) in enumerate(states, 1):
            checkpoint = Path(place, f"checkpoint-{number * 10}")
            checkpoint.mkdir()
            (checkpoint / "trainer_state.json").write_text(
                json.dumps({"global_step": number * 10, "log_history": log, **state})
            )
        written = "\n".join(map(json.dumps, lines)).encode()
        Path(place, "trainer_log.jsonl").write_bytes(written[: max(0, len(written) - torn)])
        check(history(place))
