"""Texts: pointers and notes, with what is no text placed by byte and line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.containers import text
from ckpt_tools.containers.base import Content
from ckpt_tools.core.source import BytesSource


def read(raw: bytes) -> Content:
    return text.read(BytesSource(raw, "latest"))


@pytest.mark.parametrize("said", ["global_step20", "global_step20\r\n", "", " ", "\u00e9\n", "20"])
def test_text_is_returned_as_it_is(said: str) -> None:
    content = read(said.encode())
    assert (content.container, content.value, content.readable) == ("text", said, True)
    assert content.problems == ()
    assert content.facts == {"whole": True, "bom": False}


def test_a_byte_order_mark_is_left_out() -> None:
    content = read(b"\xef\xbb\xbf20")
    assert content.value == "20"
    assert content.facts["bom"]


@pytest.mark.parametrize(
    ("raw", "offset", "says"),
    [
        (b"ab\n\xffcd", 3, "byte 3 (line 2) is 0xff"),
        (b"\xef\xbb\xbf\xff", 3, "byte 3 (line 1) is 0xff"),
        (b"ab\xc3", 2, "0xc3"),
        ("20".encode("utf-16"), 0, "UTF-16"),
    ],
)
def test_what_is_not_utf8(raw: bytes, offset: int, says: str) -> None:
    content = read(raw)
    (problem,) = content.problems
    assert problem.kind == "text-damaged"
    assert problem.at.offset == offset
    assert says in " ".join((problem.message, *problem.detail))
    assert not content.readable


def test_zero_bytes_are_no_text() -> None:
    content = read(b"20\0\0\0")
    (problem,) = content.problems
    assert problem.kind == "text-damaged"
    assert problem.detail[0] == "3 zero bytes, the first at byte 2"
    assert content.value == "20\0\0\0"


def test_no_more_than_the_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LIMIT", 5)
    content = read(b"1234\xc3\xa9678")
    assert content.value == "1234"
    assert not content.facts["whole"]
    assert content.problems == ()
    assert [problem.kind for problem in read(b"1\xff345678").problems] == ["text-damaged"]


@given(st.binary(max_size=60))
def test_no_bytes_raise(raw: bytes) -> None:
    content = read(raw)
    assert content.readable or content.problems
