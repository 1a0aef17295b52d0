"""CK2xx: JSON, JSON lines and small texts.

Each rule reports the problem of its own name that a container stated.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_tools.model.checkpoint import Part
from ckpt_tools.model.findings import Severity
from ckpt_tools.rules.base import Context, Hit, Rule, relay, rule


@rule("CK230", "json-damaged", Severity.ERROR, Part, impact=None)
def json_damaged(part: Part, context: Context) -> Iterator[Hit]:
    """The file is not JSON to its end.

    **Why it matters.** A killed save or a full disk cuts text files too; an editor may have left a comma.

    **How to repair.** For a configuration copy it from another checkpoint of the run; for `trainer_state.json` fall
    back.
    """
    yield from relay(part, context, "json-damaged")


@rule("CK231", "json-wrong-type", Severity.ERROR, Part, impact=None)
def json_wrong_type(part: Part, context: Context) -> Iterator[Hit]:
    """The file is valid JSON, and its top value is no object.

    **Why it matters.** Every JSON file of a checkpoint is an object; its reader stops at anything else.

    **How to repair.** Copy it from another checkpoint of the run, or fall back.
    """
    content = context.content(part)
    if content is None or content.container != "json" or not content.readable or part.containers != ("json",):
        return
    if not isinstance(content.value, dict):
        impact = context.damaged(part)
        yield Hit(
            f"holds a {type(content.value).__name__} where an object is expected",
            part.path,
            severity=Severity.WARNING if impact.harmless else None,
            impact=impact,
        )


@rule("CK232", "json-nan", Severity.NOTE, Part)
def json_nan(part: Part, context: Context) -> Iterator[Hit]:
    """The file has bare `NaN` or `Infinity`, which Python writes and reads and strict JSON does not know.

    **Why it matters.** A `grad_norm` of NaN is common with mixed precision and harms nothing; other tools may refuse
    the file. A NaN loss is worth a look.

    **How to repair.** Nothing needs to be done for a resume.
    """
    yield from relay(part, context, "json-nan", harmless=True)


@rule("CK233", "json-duplicate-key", Severity.WARNING, Part)
def json_duplicate_key(part: Part, context: Context) -> Iterator[Hit]:
    """An object of the file has one key twice.

    **Why it matters.** Readers take the last one in silence; an edit by hand may have had no effect.

    **How to repair.** Remove the one that is not meant.
    """
    yield from relay(part, context, "json-duplicate-key", harmless=True)


@rule("CK234", "text-damaged", Severity.ERROR, Part, impact=None)
def text_damaged(part: Part, context: Context) -> Iterator[Hit]:
    """A small text file is not UTF-8.

    **Why it matters.** Its reader stops, or takes a wrong name from it.

    **How to repair.** Write it again: pointer files hold one name.
    """
    yield from relay(part, context, "text-damaged")


@rule("CK235", "last-line-cut", Severity.NOTE, Part)
def last_line_cut(part: Part, context: Context) -> Iterator[Hit]:
    """The last line of a log in JSON lines is cut.

    **Why it matters.** It is what a kill leaves; everything before it is whole.

    **How to repair.** Nothing needs to be done.
    """
    yield from relay(part, context, "last-line-cut", harmless=True)


RULES: tuple[Rule, ...] = (
    json_damaged,
    json_wrong_type,
    json_nan,
    json_duplicate_key,
    text_damaged,
    last_line_cut,
)
