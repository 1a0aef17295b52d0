"""JSON and JSON lines: what Python reads is read, what is damaged is placed by line and column."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.containers import json_text
from ckpt_tools.containers.base import Content
from ckpt_tools.core.source import BytesSource
from ckpt_tools.model.findings import Problem

STATE = {
    "best_metric": None,
    "epoch": 2.5,
    "global_step": 20,
    "log_history": [{"loss": 1.25e-3, "step": 10, "note": 'a\u00e9"\\'}, {"loss": -0.5, "step": 20}],
    "is_world_process_zero": True,
}


def read(raw: bytes | str) -> Content:
    return json_text.read(BytesSource(raw.encode() if isinstance(raw, str) else raw, "trainer_state.json"))


def lines(raw: bytes | str) -> Content:
    return json_text.read_lines(BytesSource(raw.encode() if isinstance(raw, str) else raw, "log.jsonl"))


def only(content: Content) -> Problem:
    (problem,) = content.problems
    return problem


def test_a_good_file() -> None:
    content = read(json.dumps(STATE, indent=2) + "\n")
    assert content.container == "json"
    assert content.value == STATE
    assert content.problems == ()
    assert content.facts == {"bom": False, "constants": 0}


@pytest.mark.parametrize("raw", ["{}", "[]", "null", "3", '"x"', "[1e999]", "true"])
def test_any_value_is_read(raw: str) -> None:
    content = read(raw)
    assert content.readable
    assert content.problems == ()


def test_a_byte_order_mark_is_read_and_told() -> None:
    """json.loads refuses it, and so does every loader of a configuration."""
    content = read(b'\xef\xbb\xbf{"a": 1}')
    assert only(content).kind == "json-damaged"
    assert "Unexpected UTF-8 BOM" in " ".join(only(content).detail)
    assert content.value == {"a": 1}
    assert content.facts["bom"]


def test_nan_and_infinity_are_read_and_placed() -> None:
    content = read('{"log_history": [{"grad_norm": NaN}, {"a.b": -Infinity}], "x": 1}')
    assert math.isnan(content.value["log_history"][0]["grad_norm"])
    problem = only(content)
    assert problem.kind == "json-nan"
    assert problem.message == "2 values are NaN or Infinity"
    assert problem.detail == ("log_history[0].grad_norm", 'log_history[1]["a.b"]')
    assert problem.at.key == "log_history[0].grad_norm"
    assert content.facts["constants"] == 2


def test_many_nans_are_ten_names_and_a_number() -> None:
    problem = only(read("[" + ",".join(["NaN"] * 47) + "]"))
    assert len(problem.detail) == 11
    assert problem.detail[-1] == "... and 37 more"


def test_repeated_keys_are_placed() -> None:
    content = read('{"a": {"b": 1, "b": 2}, "c": [{"d": 1, "e": 1, "d": 3, "d": 4}]}')
    assert content.value == {"a": {"b": 2}, "c": [{"d": 4, "e": 1}]}
    problem = only(content)
    assert problem.kind == "json-duplicate-key"
    assert problem.detail[:2] == ("a.b", "c[0].d")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"a": 1,\n "b": [1, 2', "looks cut after line 2"),
        (b'{"a": 1,\n "b": "text without', "looks cut after line 2"),
        (b'{"a": 1,\n', "looks cut after line 1"),
        (b'{"a": tru', "looks cut after line 1"),
        (b'{"a": -', "looks cut after line 1"),
        (b'{"a": 1.', "looks cut after line 1"),
        (b'{"a": 1e', "looks cut after line 1"),
        (b'{"a": -Infi', "looks cut after line 1"),
        (b'{"a": "\\u12', "looks cut after line 1"),
        (b'{"a": "\\', "looks cut after line 1"),
        (b'{"a": "\xc3', "looks cut after line 1"),
        (b'{"a', "looks cut after line 1"),
        (b"{\n  'a': 1}", "line 2 column 3"),
        (b'{"a": 1,}', "there stands: "),
        (b'{"a" 1}', "expecting ':' delimiter at line 1 column 6"),
        (b'{"a": 1}}', "the JSON ends at line 1 column 9; then comes: }"),
        (b'{"a": 1}\n{"b": 2}', "something follows"),
        (b'{"a": 1}' + bytes(50), "50 zero bytes from line 1 column 9"),
        (b'{"a": ' + bytes(50), "50 zero bytes"),
        (b'{"a": "\x01"}', "control character"),
        (b'{\n"a": "\xff"}', "byte 8 is 0xff, at line 2 column 7"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        (b" \n ", "white space"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 100_000, "nested"),
        (b"[" * 300 + b"]" * 300, "nested"),
        (b'[{"x":' * 150 + b"1" + b"}]" * 150, "nested"),
        (b"9" * 5000, "thousands of digits"),
        (b"hello", "there stands: hello"),
    ],
)
def test_damage_is_placed(raw: bytes, says: str) -> None:
    content = read(raw)
    problem = only(content)
    assert problem.kind == "json-damaged"
    assert not content.readable
    assert content.value is None
    assert says in " ".join((problem.message, *problem.detail))
    assert all(line.isprintable() for line in (problem.message, *problem.detail))


def test_damage_has_its_offset_in_the_file() -> None:
    raw = '{"\u00e9": x}'.encode()
    source = BytesSource(b"\0" * 7 + raw, "file").window(7, len(raw))
    assert only(json_text.read(source)).at.offset == 7 + raw.index(b"x")
    assert only(read(b"\xef\xbb\xbf{x")).at.offset == 4


def test_brackets_in_texts_are_no_nesting() -> None:
    value = {"a": ["[" * 5000, "{" * 5000], "b": "]}" * 9}
    assert read(json.dumps(value)).value == value


def test_nesting_within_the_limit() -> None:
    assert read("[" * json_text.DEPTH + "]" * json_text.DEPTH).problems == ()


def test_empty() -> None:
    assert only(read(b"")).kind == "empty-file"
    assert only(lines(b"")).kind == "empty-file"


def test_a_file_too_large_is_not_read() -> None:
    class Huge(BytesSource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            raise AssertionError("was read")

    source = Huge(b"", "file")
    source.size = json_text.LIMIT + 1
    for reader in (json_text.read, json_text.read_lines):
        assert only(reader(source)).kind == "resource-bomb"


def test_a_file_of_brackets_is_not_decoded() -> None:
    raw = b"[" + b"[]," * (json_text.DENSE_FROM // 3 + 1) + b"1]"
    assert only(read(raw)).kind == "resource-bomb"


def test_lines() -> None:
    content = lines('{"a": 1}\r\n\n{"a": 2}\n')
    assert content.container == "jsonl"
    assert content.value == [{"a": 1}, {"a": 2}]
    assert content.problems == ()
    assert content.facts["lines"] == 2


@pytest.mark.parametrize("end", ['{"a": 3', '{"a": 3\n', "\0\0\0", '{"a": "\udcff"'])
def test_a_damaged_last_line(end: str) -> None:
    content = lines(b'{"a": 1}\n{"a": 2}\n' + end.encode("utf-8", "surrogateescape"))
    assert content.value == [{"a": 1}, {"a": 2}]
    assert content.readable
    problem = only(content)
    assert problem.kind == "last-line-cut"
    assert problem.at.offset == 18


def test_damaged_lines_before_the_last() -> None:
    content = lines('{"a": 1}\nx\n{"a": 2}\n{"b"\n{"a": 3}\n')
    assert content.value == [{"a": 1}, {"a": 2}, {"a": 3}]
    problem = only(content)
    assert problem.kind == "json-damaged"
    assert problem.message == "2 lines are damaged"
    assert problem.detail[0].startswith("line 2: ")
    assert problem.at.offset == 9


def test_lines_with_nan_and_deep_lines() -> None:
    content = lines('{"loss": NaN}\n' + "[" * 500 + "]" * 500 + '\n{"a": 1}')
    assert [problem.kind for problem in content.problems] == ["json-nan", "json-damaged"]
    assert content.problems[0].detail == ("[0].loss",)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_cut_at_every_byte_is_a_problem(indent: int | None) -> None:
    raw = json.dumps(STATE, indent=indent, ensure_ascii=False).encode()
    for end in range(1, len(raw)):
        problem = only(read(raw[:end]))
        assert problem.kind == "json-damaged"
        assert any("looks cut" in line for line in problem.detail), raw[:end]


def test_every_cut_of_lines_keeps_what_was_whole() -> None:
    raw = b"".join(json.dumps({"step": step}).encode() + b"\n" for step in range(12))
    for end in range(1, len(raw)):
        content = lines(raw[:end])
        whole = raw[:end].count(b"\n")
        assert content.value[:whole] == [{"step": step} for step in range(whole)]
        assert len(content.value) - whole + len(content.problems) <= 1


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=100)
    | st.text(alphabet='{}[]",:0123.eE-+ntrufalsNIiy\\ \n\0\ud800'.replace("\ud800", ""), max_size=60)
)
def test_bytes_are_read_as_python_reads_them(raw: bytes | str) -> None:
    data = raw.encode() if isinstance(raw, str) else raw
    content = read(data)
    lines(data)
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except ValueError:
        assert not content.readable
    else:
        assert repr(content.value) == repr(value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(deadline=None, max_examples=200)
@given(VALUES, st.booleans())
def test_what_python_writes_is_read_back(value: Any, ascii_only: bool) -> None:
    content = read(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8"))
    assert repr(content.value) == repr(value)
    assert {problem.kind for problem in content.problems} <= {"json-nan"}
