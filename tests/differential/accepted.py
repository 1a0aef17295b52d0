"""Where ckpt is stricter than the loader, on purpose: each row with its reason, and nothing outside the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ckpt_tools.model.findings import Finding
from tests.differential.damages import Damage


@dataclass(frozen=True, slots=True)
class Row:
    """A case that the loader takes and ckpt calls an error; ``covers`` looks at one finding of it."""

    name: str
    reason: str
    covers: Callable[[Damage, Finding], bool]


def codes(*wanted: str) -> Callable[[Damage, Finding], bool]:
    return lambda damage, finding: finding.code in wanted


ACCEPTED: tuple[Row, ...] = (
    Row(
        "duplicate-names",
        "one tensor named twice: the loader takes the last entry and says nothing, so which bytes are used is luck",
        codes("CK219"),
    ),
    Row(
        "dtype-as-object",
        'the JSON library of the reference reader takes {"F32": null} for "F32"; no writer spells a dtype so',
        lambda damage, finding: finding.code == "CK221" and "dtype" in damage.what and "{" in damage.what,
    ),
    Row(
        "more-than-the-loader",
        "CK3xx and CK5xx judge what the file says against what a trainer does with it; torch.load only decodes it. "
        "Their oracle is the real resume, in test_resume.py",
        lambda damage, finding: finding.code.startswith(("CK3", "CK5")),
    ),
)


def row_of(damage: Damage, finding: Finding) -> str | None:
    """Return the name of the row that covers a finding, None for a false alarm."""
    return next((row.name for row in ACCEPTED if row.covers(damage, finding)), None)
