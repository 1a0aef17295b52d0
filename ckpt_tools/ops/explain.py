"""``ckpt explain``: a rule by its code or name, or what a loader's error message means."""

from __future__ import annotations

import difflib
import os
import re
import shlex

from ckpt_tools.core.errors import NothingFoundError
from ckpt_tools.ops.error_texts import FILES, ErrorText
from ckpt_tools.ops.error_texts_runs import RUNS
from ckpt_tools.reports.explain import ExplainReport, Meaning, RulePage
from ckpt_tools.rules import CATALOGUE, by_code

ERROR_TEXTS: tuple[ErrorText, ...] = (*FILES, *RUNS)
LONGEST = 60_000
MOST_MEANINGS = 3
_CODE = re.compile(r"CK\d{1,5}", re.IGNORECASE)
_MENTIONED = re.compile(r"\b(?:fatal|error|warning|note)\[(CK\d{3})\]")
_FILE = r"\.(?:safetensors|pt|pth|bin|ckpt|json|pkl|tar|distcp)"
_PATHS = (
    re.compile(r"(?<!\w)[\"'`]([^\"'`\n]*/[^\"'`\n]+)[\"'`]"),
    re.compile(rf"[\"'`]([^\"'`\n/]+{_FILE})[\"'`]", re.IGNORECASE),
    re.compile(rf"(?<![\w\"'/.-])((?:[\w.~+=@-]*/)+[\w.+=@-]*(?:checkpoint[-_]\d+|global_step\d+|{_FILE})[\w.+=@/-]*)"),
    re.compile(r"(?<![\w/.-])((?:[\w.~+=@-]+/)*(?:tmp-)?checkpoint[-_]\d+)(?![\w-])"),
    re.compile(
        r"(?:checkpoint at|file at|found in output directory)\s*[(:]?\s*((?:[\w.~+=@-]*/)+[\w.+=@-]*)", re.IGNORECASE
    ),
)
_CODE_FILE = re.compile(r"\.(?:py|so|cpp|cc|h|rs)\b|site-packages|dist-packages|^https?:|^//")
_CHECKPOINT = re.compile(r"(?:\A|/)(?:tmp-)?checkpoint[-_]\d+(?=/|\Z)")


def explain(text: str) -> ExplainReport:
    """Explain a rule, named by code or name, or a message that a loader or trainer printed.

    Args:
        text: ``CK203``, ``file-cut-short``, or any part of an error message; paths in it are used in the advice.

    Raises:
        NothingFoundError: a code or name that no rule has; the nearest come with it.
    """
    wanted = text.strip().strip("[]").strip()
    rule = by_code(wanted)
    if rule is not None:
        return ExplainReport(text, RulePage(rule.code, rule.name, rule.severity, rule.page))
    if _CODE.fullmatch(wanted):
        raise NothingFoundError(f"no rule has the code {wanted.upper()}", hint=f"the nearest: {_nearest(wanted)}")
    shortened = text if len(text) <= LONGEST else text[: LONGEST // 2] + "\n" + text[-LONGEST // 2 :]
    path = named_path(shortened)
    meanings = tuple(_meaning(row, path) for row in _fitting(shortened))
    if meanings:
        return ExplainReport(text, None, meanings, path)
    mentioned = _MENTIONED.search(shortened)
    rule = by_code(mentioned[1]) if mentioned else None
    if rule is not None:
        return ExplainReport(text, RulePage(rule.code, rule.name, rule.severity, rule.page))
    return ExplainReport(text, path=path, close=tuple(_sounding(shortened)))


def _fitting(text: str) -> list[ErrorText]:
    """Return the rows that fit, the particular ones only where there are any."""
    fitting = [row for row in ERROR_TEXTS if row.fits(text)]
    return ([row for row in fitting if not row.general] or fitting)[:MOST_MEANINGS]


def _nearest(code: str) -> str:
    number = int(code[2:])
    rules = sorted(CATALOGUE, key=lambda rule: (abs(int(rule.code[2:]) - number), rule.code))[:4]
    return ", ".join(f"{rule.code} ({rule.name})" for rule in rules)


def _sounding(text: str) -> list[tuple[str, str]]:
    """Return the rules of which the name shares words with the text, the best first."""
    words = set(re.findall(r"[a-z]{3,}", text.lower()[:2000]))
    scored = []
    for rule in CATALOGUE:
        mine = set(rule.name.split("-"))
        score = len(mine & words) / len(mine)
        if score >= 0.5 or difflib.SequenceMatcher(None, rule.name, text.strip().lower()[:80]).ratio() > 0.6:
            scored.append((-score, rule.code, rule.name))
    return [(code, name) for _, code, name in sorted(scored)[:4]]


def _meaning(row: ErrorText, path: str | None) -> Meaning:
    place = path or "PATH"
    run = os.path.dirname(place) or "." if path else "RUN"
    if path is not None and not _CHECKPOINT.search(path):
        run = path if not re.search(_FILE, path) else run
    commands = tuple(
        command.format(path=_typed(place), run=_typed(run)) if path else command.format(path=place, run=run)
        for command in row.commands
    )
    rules = [rule for name in row.rules if (rule := by_code(name)) is not None]
    return Meaning(row.name, row.title, row.meaning, commands, tuple((rule.code, rule.name) for rule in rules))


def _typed(path: str) -> str:
    return shlex.quote(path)


def named_path(text: str) -> str | None:
    """Return the checkpoint, else the file, that a message names; None when it names none.

    A path inside a ``checkpoint-N`` directory stands for that directory.
    """
    found = []
    for expression in _PATHS:
        for match in expression.finditer(text):
            path = match[1].strip().rstrip(".,:;)").removesuffix("/latest")
            if path and not _CODE_FILE.search(path) and "\0" not in path and len(path) < 1024:
                found.append(path)
    for path in found:
        inside = _CHECKPOINT.search(path)
        if inside:
            return path[: inside.end()]
    return found[0] if found else None
