"""Blocks, of which every report is made, and the protocol that renderers work on.

A renderer knows blocks and nothing of verbs; a report knows its verb and nothing of formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ckpt_tools.model.findings import Finding


@dataclass(frozen=True, slots=True)
class Text:
    """Lines as they stand; ``style`` is ``plain``, ``heading``, ``good``, ``bad`` or ``faint``."""

    lines: tuple[str, ...]
    style: str = "plain"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of ready-made cells under column titles; ``right`` are the columns to set flush right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()
    title: str = ""


@dataclass(frozen=True, slots=True)
class Fields:
    """Labelled values, one a line."""

    rows: tuple[tuple[str, str], ...]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Findings, worst first."""

    findings: tuple[Finding, ...]


Block = Text | Table | Fields | Diagnostics


class Report(Protocol):
    """What a verb returns."""

    def blocks(self) -> Sequence[Block]:
        """Return what a person reads, in reading order."""

    def document(self) -> dict[str, Any]:
        """Return the versioned JSON document, written by hand."""
