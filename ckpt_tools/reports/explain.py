"""What ``ckpt explain`` has to say about a rule, or about an error message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import cleandoc
from textwrap import wrap
from typing import Any

from ckpt_tools.model.findings import Severity
from ckpt_tools.reports.base import Block, Fields, Text

SCHEMA = "ckpt-tools/explain/1"
WIDTH = 92


@dataclass(frozen=True, slots=True)
class RulePage:
    """A rule of the catalogue with the text of its page (Markdown)."""

    code: str
    name: str
    severity: Severity
    page: str


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an error message most likely means; ``rules`` are ``(code, name)`` of the rules that look for it."""

    name: str
    title: str
    lines: tuple[str, ...]
    commands: tuple[str, ...]
    rules: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ExplainReport:
    """A rule's page, or the meanings of a message, the likeliest first; neither where nothing is known."""

    text: str
    rule: RulePage | None = None
    meanings: tuple[Meaning, ...] = ()
    path: str | None = None
    close: tuple[tuple[str, str], ...] = field(default_factory=tuple)

    @property
    def exit_code(self) -> int:
        return 0 if self.rule is not None or self.meanings else 1

    def blocks(self) -> Sequence[Block]:
        if self.rule is not None:
            return _page(self.rule)
        if self.meanings:
            return self._meanings()
        return self._nothing()

    def _meanings(self) -> list[Block]:
        first, *others = self.meanings
        blocks: list[Block] = [
            Text((first.title,), "heading"),
            Text(tuple(line for point in first.lines for line in _wrapped(point, "- "))),
            Fields(tuple(("" if number else "run", command) for number, command in enumerate(first.commands))),
        ]
        if first.rules:
            names = ", ".join(f"{code} ({name})" for code, name in first.rules)
            blocks.append(Text((f"see also: {names}",), "faint"))
        if others:
            lines = ["it may also mean:"] + [f"- {other.title}: `{other.commands[0]}`" for other in others]
            blocks.append(Text(tuple(lines)))
        return blocks

    def _nothing(self) -> list[Block]:
        lines = ["nothing is known about this text"]
        lines += _wrapped(
            "paste the last line of the error, or the code of a rule; `ckpt verify PATH` looks at the files"
        )
        blocks: list[Block] = [Text(tuple(lines))]
        if self.close:
            blocks.append(Fields(self.close, title="rules that sound like it"))
        return blocks

    def document(self) -> dict[str, Any]:
        rule = self.rule
        return {
            "schema": SCHEMA,
            "rule": rule
            and {"code": rule.code, "name": rule.name, "severity": rule.severity.label, "page": cleandoc(rule.page)},
            "path": self.path,
            "meanings": [
                {
                    "name": meaning.name,
                    "title": meaning.title,
                    "lines": list(meaning.lines),
                    "commands": list(meaning.commands),
                    "rules": [code for code, _ in meaning.rules],
                }
                for meaning in self.meanings
            ],
            "close": [code for code, _ in self.close],
        }


def _page(rule: RulePage) -> list[Block]:
    blocks: list[Block] = [Text((f"{rule.code} {rule.name} ({rule.severity.label})",), "heading")]
    for paragraph in cleandoc(rule.page).split("\n\n"):
        listed = any(line.lstrip().startswith(("- ", "* ", "|", "```")) for line in paragraph.splitlines())
        lines = paragraph.splitlines() if listed else _wrapped(paragraph.replace("**", ""))
        blocks.append(Text(tuple(lines)))
    return blocks


def _wrapped(text: str, lead: str = "") -> list[str]:
    return wrap(
        text,
        WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    )
