"""Write ``docs/rules.md`` from the docstrings of the catalogue; ``--check`` only compares."""

from __future__ import annotations

import sys
from inspect import cleandoc
from pathlib import Path

from ckpt_tools.rules import CATALOGUE

FAMILIES = {
    "CK0": "The tool's own",
    "CK1": "Presence",
    "CK2": "Containers",
    "CK3": "Tensors",
    "CK4": "Data (`--deep`)",
    "CK5": "Consistency",
    "CK6": "Runs",
    "CK7": "Safety",
}


def page() -> str:
    """Return the whole catalogue as one Markdown page."""
    lines = [
        "# The rule catalogue",
        "",
        "Made from the rules' docstrings by `python docs/make_rules.py`; `ckpt explain CODE` prints the same text.",
        "Codes are never reused. The severity is the usual one: a finding is a warning where the damaged file",
        "is one that no purpose needs.",
    ]
    for prefix, title in FAMILIES.items():
        rules = [rule for rule in CATALOGUE if rule.code.startswith(prefix)]
        if not rules:
            continue
        lines += ["", f"## {prefix}xx: {title}"]
        for rule in rules:
            lines += ["", f"### {rule.code} {rule.name}", "", f"*{rule.severity.label}*", "", cleandoc(rule.page)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or return 1 when the committed one differs."""
    target = Path(__file__).with_name("rules.md")
    if "--check" in sys.argv[1:]:
        return int(not target.exists() or target.read_text(encoding="utf-8") != page())
    target.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
