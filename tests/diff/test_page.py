"""The page of ``--format html``: self-contained, inert whatever a file holds, and alive in a real browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.ops.diff import diff
from ckpt_tools.render import html, markdown
from ckpt_tools.reports.base import Fields, Table, Text
from ckpt_tools.reports.charts import Chart, HeatMap, Series
from tests.diff import browser
from tests.diff.pairs import safetensors, weights

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[31m\u202e"


class Report:
    """A report with every sort of block and picture, all of it hostile."""

    title = EVIL

    def blocks(self) -> list[Text | Table | Fields]:
        return [
            Text((EVIL, "- second"), "heading"),
            Fields(((EVIL, EVIL),), EVIL),
            Table((EVIL, "number"), ((EVIL, "1.5"), ("b | c", "nan"), ("... and 3 more", "")), frozenset({1}), EVIL),
        ]

    def pictures(self) -> list[HeatMap | Chart]:
        cells: dict[tuple[str, str], tuple[float | None, str]] = {
            (EVIL, "k"): (0.5, EVIL),
            ("l", "k"): (0.0, "equal"),
            ("l", EVIL): (None, EVIL),
            (EVIL, EVIL): (float("inf"), ""),
        }
        curve = Series(EVIL, ((0.0, 1.0), (1.0, float("nan")), (2.0, 1.0)))
        return [
            HeatMap(EVIL, (EVIL, "l"), ("k", EVIL), cells, EVIL),
            Chart(EVIL, EVIL, (curve,)),
            Chart("empty", "step", (Series("x", ((0.0, float("inf")),)),)),
        ]

    def document(self) -> dict[str, object]:
        return {}


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "path", "circle", "polyline", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def parsed(text: str) -> Seen:
    seen = Seen()
    seen.feed(text)
    seen.close()
    assert seen.open == []
    return seen


def test_nothing_in_a_value_becomes_markup() -> None:
    text = "\n".join(html.render(Report()))
    seen = parsed(text)
    tags = [tag for tag, _ in seen.tags]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_page_needs_nothing_from_elsewhere(fixtures_dir: Path) -> None:
    run = fixtures_dir / "trainer5-full"
    text = "\n".join(html.render(diff(f"{run}@2", f"{run}@6")))
    seen = parsed(text)
    assert not [tag for tag, attributes in seen.tags if {"src", "href", "data", "srcset"} & set(attributes)]
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest", text)
    policy = [attributes.get("content") for tag, attributes in seen.tags if tag == "meta"]
    assert any(content and content.startswith("default-src 'none'") for content in policy)
    for title in ("relative change by layer and kind", "learning rate", "loss", "evaluation loss"):
        assert f"{title}</h2>" in text
    assert text.count("<polyline") == 6


def test_markdown_shows_values_as_they_are() -> None:
    lines = list(markdown.render(Report()))
    text = "\n".join(lines)
    assert "<script>" not in text
    assert "\\- second" in lines
    assert "| b \\| c | nan |" in [" ".join(line.split()) for line in lines]
    rule = [line for line in lines if line.startswith("|")][1]
    assert set(rule) == set("|:-")
    assert rule.endswith("-:|")
    assert markdown.escape("self_attn.q_proj") == "self_attn.q_proj"
    assert markdown.escape("_bold_ *x* `y`") == "\\_bold\\_ \\*x\\* \\`y\\`"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    one, other = weights(layers=3), weights(layers=3)
    for number, name in enumerate(other):
        if number % 2:
            other[name] = other[name] + np.float32(2.0**-number)
    for name, values, rates in (("checkpoint-1", one, 1), ("checkpoint-2", other, 2)):
        safetensors(tmp_path / name / "model.safetensors", values)
        log = [{"step": n, "loss": 3.0 / n, "learning_rate": 1e-4 * n} for n in range(1, 3 * rates)]
        state = {"global_step": rates, "log_history": log}
        (tmp_path / name / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    file = tmp_path / "diff.html"
    file.write_text("\n".join(html.render(diff(f"{tmp_path}@1", f"{tmp_path}@2"))), encoding="utf-8")
    return file


def test_the_page_sorts_in_a_browser(page: Path, tmp_path: Path) -> None:
    script = """
        const table = [...document.querySelectorAll("table.sortable")].at(-1);
        const column = () => [...table.tBodies[0].rows].map(row => row.cells[3].textContent);
        const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
        const click = number => table.tHead.rows[0].cells[number].querySelector("button").click();
        const found = {before: column()};
        click(3); found.down = column(); click(3); found.up = column();
        found.sort = table.tHead.rows[0].cells[3].getAttribute("aria-sort");
        click(0); found.names = names();
        return found;
    """
    said = json.loads(browser.after(page, script, tmp_path / "profile"))
    down = [float(cell) for cell in said["down"]]
    assert len(down) == 5
    assert down == sorted(down, reverse=True)
    assert said["up"] == said["down"][::-1]
    assert said["sort"] == "ascending"
    assert said["names"] == sorted(said["names"])


def test_the_page_is_drawn_in_a_browser(page: Path, tmp_path: Path) -> None:
    script = """
        const box = element => { const r = element.getBoundingClientRect(); return [r.width, r.height]; };
        return {
            cells: document.querySelectorAll("table.map td[title]").length,
            colours: new Set([...document.querySelectorAll("table.map td[style]")].map(
                cell => getComputedStyle(cell).backgroundColor)).size,
            charts: [...document.querySelectorAll("svg")].map(box),
            overflow: document.documentElement.scrollWidth > document.documentElement.clientWidth,
            answer: getComputedStyle(document.querySelector(".answer")).fontWeight,
        };
    """
    said = json.loads(browser.after(page, script, tmp_path / "profile"))
    assert said["cells"] == 10
    assert said["colours"] >= 4
    assert len(said["charts"]) == 2
    assert all(width > 300 and height > 100 for width, height in said["charts"])
    assert said["overflow"] is False
    assert said["answer"] == "600"
    drawn = browser.picture(page, tmp_path / "page.png", tmp_path / "profile")
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) > 20_000


def test_a_hostile_page_runs_nothing_in_a_browser(tmp_path: Path) -> None:
    file = tmp_path / "evil.html"
    file.write_text("\n".join(html.render(Report())), encoding="utf-8")
    script = """
        return [document.querySelectorAll("script").length, document.querySelectorAll("img").length];
    """
    assert json.loads(browser.after(file, script, tmp_path / "profile")) == [2, 0]  # the page's own, and this one
