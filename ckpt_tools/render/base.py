"""What every renderer shares: text that cannot command a terminal, places, and long lists made short."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable

from ckpt_tools.model.findings import Finding, Spot

SHOWN_PER_CODE = 10
"""Findings of one code that are written out; the others are counted."""

_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""Return ``text`` with control, direction and zero-width characters spelled out (``\x1b``, ``\u202e``).

    Names and texts from a checkpoint could otherwise recolour, clear or forge what a terminal shows.  A byte of a
    file name that is not UTF-8 is spelled as that byte.
    """
    return _UNSEEN.sub(_spelled, text)


def _spelled(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return {9: r"\t", 10: r"\n", 13: r"\r"}.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def typed(base: str, path: str) -> str:
    """Return a finding's path as one would type it where ``base``, the directory looked at, was typed."""
    return posixpath.normpath(posixpath.join(base, path))


def spot(at: Spot) -> str:
    """Return the place inside a file in words; empty when the finding speaks of the whole file."""
    words = []
    if at.record is not None:
        words.append(f"record {at.record}")
    if at.tensor is not None:
        words.append(f"tensor {at.tensor}")
    if at.key is not None:
        words.append(f"key {at.key}")
    if at.offset is not None:
        words.append(f"byte {at.offset:,}")
    return ", ".join(words)


def remedy(finding: Finding) -> str | None:
    """Return the fix on offer as one phrase: what it does, whether it is safe, and how to get it."""
    fix = finding.fix
    if fix is None:
        return None
    command = f": `{fix.command}`" if fix.command else ""
    return f"{fix.title} ({'safe' if fix.safe else 'unsafe: look first'}){command}"


def shorten(findings: Iterable[Finding]) -> tuple[list[Finding], list[str]]:
    """Return the findings to write out, and one phrase for each code of which more were found."""
    seen: Counter[str] = Counter()
    names: dict[str, str] = {}
    shown = []
    for finding in findings:
        seen[finding.code] += 1
        names[finding.code] = finding.name
        if seen[finding.code] <= SHOWN_PER_CODE:
            shown.append(finding)
    more = [
        f"... and {number - SHOWN_PER_CODE:,} more {code} ({names[code]})"
        for code, number in seen.items()
        if number > SHOWN_PER_CODE
    ]
    return shown, more
