"""What each renderer writes, for reports made by hand: no checkpoint is needed to say how a finding looks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.model.findings import Finding, Fix, Severity, Spot
from ckpt_tools.render import github, text
from ckpt_tools.render import json as json_lines
from ckpt_tools.render.base import SHOWN_PER_CODE, visible
from ckpt_tools.reports.base import Block, Diagnostics, Fields, Table, Text

CUT = Finding(
    "CK203",
    "file-cut-short",
    Severity.ERROR,
    "the file is cut short",
    "checkpoint-2000/optimizer.pt",
    detail=("has 1,204,224 bytes; the zip directory, which is written last, is missing",),
    help="`ckpt latest out/` finds checkpoint-1500, which can be resumed",
)
HOSTILE = "a\x1b[2J\nerror: forged\r\u202egpj\udcff"


@dataclass
class Sample:
    parts: Sequence[Block] = ()
    content: Any = None

    def blocks(self) -> Sequence[Block]:
        return self.parts

    def document(self) -> dict[str, Any]:
        return {"value": self.content}


def shown(*findings: Finding, root: str = "out") -> list[str]:
    return list(text.render(Sample([Diagnostics(findings)]), root=root))


def annotated(*blocks: Block, base: str = "out", closing: bool = True) -> list[str]:
    return list(github.render(Sample(blocks), base=base, closing=closing))


class TestText:
    def test_a_finding_reads_like_a_compilers(self) -> None:
        assert shown(CUT) == [
            "error[CK203]: the file is cut short",
            "  --> checkpoint-2000/optimizer.pt",
            "   = has 1,204,224 bytes; the zip directory, which is written last, is missing",
            "   = help: `ckpt latest out/` finds checkpoint-1500, which can be resumed",
        ]

    @pytest.mark.parametrize(
        ("at", "place"),
        [
            (Spot(), "a.pt"),
            (Spot(record="data/0"), "a.pt: record data/0"),
            (Spot(tensor="lm_head.weight"), "a.pt: tensor lm_head.weight"),
            (Spot(key="log_history[0].loss"), "a.pt: key log_history[0].loss"),
            (Spot(offset=0), "a.pt: byte 0"),
            (Spot(record="data.pkl", offset=1234567), "a.pt: record data.pkl, byte 1,234,567"),
        ],
    )
    def test_the_place_inside_a_file_is_told(self, at: Spot, place: str) -> None:
        finding = Finding("CK201", "x", Severity.NOTE, "m", "a.pt", at)
        assert shown(finding)[1] == f"  --> {place}"

    def test_a_finding_about_the_run_shows_the_run(self) -> None:
        assert shown(Finding("CK601", "x", Severity.NOTE, "m", "."))[1] == "  --> out"

    def test_the_fix_says_whether_it_is_safe_and_what_to_type(self) -> None:
        fix = Fix("rebuild the index", True, "index", command="ckpt repair out")
        finding = Finding("CK301", "x", Severity.ERROR, "m", "a", related=("b", "c"), fix=fix)
        assert shown(finding)[2:] == ["   = see also: b, c", "   = fix: rebuild the index (safe): `ckpt repair out`"]

    def test_hundreds_of_one_code_are_counted(self) -> None:
        lines = shown(*[CUT] * 47, Finding("CK501", "y", Severity.NOTE, "m", "a"))
        assert sum(line.startswith("error[CK203]") for line in lines) == SHOWN_PER_CODE
        assert lines[-1] == "... and 37 more CK203 (file-cut-short)"
        assert "note[CK501]: m" in lines

    def test_colour_only_when_asked(self) -> None:
        report = Sample([Diagnostics((CUT,)), Text(("closing",), "bad"), Table(("a",), (("ready",),))])
        plain = "\n".join(text.render(report))
        colored = "\n".join(text.render(report, color=True))
        assert "\x1b" not in plain
        assert "\x1b[1;31merror[CK203]\x1b[0m" in colored
        assert "\x1b[32mready\x1b[0m" in colored

    def test_tables_align_and_keep_cells_as_they_are(self) -> None:
        table = Table(("name", "rate"), (("x", "5e-05"), ("longer name", "-")), frozenset({1}), "title")
        assert list(text.render(Sample([table]))) == [
            "title",
            "name          rate",
            "x            5e-05",
            "longer name      -",
        ]

    def test_a_table_fits_the_terminal_by_losing_beginnings(self) -> None:
        table = Table(("name", "size"), (("a/very/long/path/to/checkpoint-2000", "1 B"), ("b", "2 B")), frozenset({1}))
        lines = list(text.render(Sample([table]), width=30))
        assert max(map(len, lines)) <= 30
        assert lines[1].startswith("…")
        assert "checkpoint-2000" in lines[1]

    def test_sentences_lose_their_end(self) -> None:
        table = Table(
            ("code", "why"), (("CK141", "optimizer_0/__1_0.distcp is missing"), ("CK202", "all of it is zero"))
        )
        lines = list(text.render(Sample([table]), width=30))
        assert max(map(len, lines)) <= 30
        assert lines[1] == "CK141  optimizer_0/__1_0.dist…"

    def test_a_table_without_rows_is_its_titles(self) -> None:
        assert list(text.render(Sample([Table(("a", "b"), ())]), width=80)) == ["a  b"]

    def test_fields_line_up(self) -> None:
        fields = Fields((("layout", "hf-trainer"), ("step", "6"), ("empty", "")), "what")
        assert list(text.render(Sample([fields]))) == ["what", "layout  hf-trainer", "step    6", "empty"]

    def test_blocks_stand_apart(self) -> None:
        assert list(text.render(Sample([Text(("a",)), Text(("b",))]))) == ["a", "", "b"]

    def test_brief_is_one_line(self) -> None:
        assert text.brief(CUT, "out") == "out/checkpoint-2000/optimizer.pt: error[CK203]: the file is cut short"


class TestHostileNames:
    def test_they_are_spelled_out(self) -> None:
        assert visible(HOSTILE) == r"a\x1b[2J\nerror: forged\r\u202egpj\xff"

    def test_ordinary_names_stay(self) -> None:
        assert visible("模型/é-ß_weights (1).safetensors") == "模型/é-ß_weights (1).safetensors"

    @given(st.text())
    def test_nothing_that_a_terminal_obeys_is_left(self, name: str) -> None:
        spelled = visible(name)
        assert all(ord(char) >= 32 and not 0x7F <= ord(char) < 0xA0 for char in spelled)
        assert spelled.encode() is not None

    def test_every_block_of_every_format_spells_them(self) -> None:
        finding = Finding(
            "CK203",
            "n",
            Severity.ERROR,
            HOSTILE,
            HOSTILE,
            Spot(HOSTILE, HOSTILE, HOSTILE),
            (HOSTILE,),
            (HOSTILE,),
            HOSTILE,
            Fix(HOSTILE, False, "k", command=HOSTILE),
        )
        blocks: list[Block] = [
            Diagnostics((finding,)),
            Text((HOSTILE,)),
            Table((HOSTILE,), ((HOSTILE,),), title=HOSTILE),
            Fields(((HOSTILE, HOSTILE),), HOSTILE),
        ]
        lines = [
            *text.render(Sample(blocks), root=HOSTILE),
            *text.render(Sample(blocks), root=HOSTILE, width=20),
            *github.render(Sample(blocks), base=HOSTILE),
            *json_lines.render(Sample(content=HOSTILE)),
            text.brief(finding, HOSTILE),
        ]
        for line in lines:
            assert line == visible(line)


class TestGithub:
    def test_an_annotation_names_file_and_code(self) -> None:
        assert annotated(Diagnostics((CUT,))) == [
            "::error file=out/checkpoint-2000/optimizer.pt,title=CK203 file-cut-short::the file is cut short"
            "%0Ahas 1,204,224 bytes; the zip directory, which is written last, is missing"
            "%0Ahelp: `ckpt latest out/` finds checkpoint-1500, which can be resumed"
        ]

    @pytest.mark.parametrize(
        ("severity", "level"),
        [
            (Severity.FATAL, "error"),
            (Severity.ERROR, "error"),
            (Severity.WARNING, "warning"),
            (Severity.NOTE, "notice"),
        ],
    )
    def test_severities_become_levels(self, severity: Severity, level: str) -> None:
        (line,) = annotated(Diagnostics((Finding("CK1", "n", severity, "m", "a"),)))
        assert line.startswith(f"::{level} ")

    def test_what_a_command_would_read_is_escaped(self) -> None:
        finding = Finding("CK1", "n", Severity.NOTE, "100% of a,b::c", "a,b:c%")
        (line,) = annotated(Diagnostics((finding,)), base=".")
        assert line == "::notice file=a%2Cb%3Ac%25,title=CK1 n::100%25 of a,b::c"

    def test_a_line_cannot_become_a_command(self) -> None:
        lines = annotated(Text(("::stop-commands::x", "  ::error::y", "##[error]z", "fine: ::")))
        assert lines == ["- ::stop-commands::x", "-   ::error::y", "- ##[error]z", "fine: ::"]

    def test_the_closing_lines_can_be_left_out(self) -> None:
        assert annotated(Text(("1 error",)), closing=False) == []

    def test_many_of_one_code_are_counted(self) -> None:
        lines = annotated(Diagnostics((CUT,) * 12))
        assert len(lines) == 11
        assert lines[-1] == "... and 2 more CK203 (file-cut-short)"


class TestJson:
    @pytest.mark.parametrize(
        ("value", "written"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity"), (1.5, 1.5)]
    )
    def test_numbers_that_json_lacks_are_strings(self, value: float, written: object) -> None:
        (line,) = json_lines.render(Sample(content=[{"x": (value,)}]))
        assert json.loads(line, parse_constant=pytest.fail) == {"value": [{"x": [written]}]}

    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
    def test_one_line_that_says_the_same(self, value: object) -> None:
        (line,) = json_lines.render(Sample(content=value))
        assert "\n" not in line
        assert json.loads(line) == {"value": value}
