"""CK177: pointer files that hold a path."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from ckpt_tools.core.errors import SourceError
from ckpt_tools.model.checkpoint import Role, Run
from ckpt_tools.model.findings import Severity
from ckpt_tools.rules.base import Context, Hit, Rule, rule

_NAMED = re.compile(r'^model_checkpoint_path:\s*"([^"\n]+)"', re.MULTILINE)
_LIMIT = 1 << 16


def _pointed(run: Run) -> tuple[str, str] | None:
    """Return the file of the run that holds a path, and the path in it."""
    part = next((part for part in run.parts if part.role is Role.POINTER and part.stat.is_file), None)
    if part is None or part.stat.size > _LIMIT or run.layout not in ("mmengine", "tensorflow"):
        return None
    try:
        with run.listing.open(part.path) as source:
            text = source.read(0, _LIMIT).decode("utf-8", "replace")
    except SourceError:
        return None
    if run.layout == "tensorflow":
        match = _NAMED.search(text)
        return (part.path, match.group(1)) if match else None
    return part.path, text.strip()


@rule("CK177", "pointer-elsewhere", Severity.NOTE, Run)
def pointer_elsewhere(run: Run, context: Context) -> Iterator[Hit]:
    """The file that names the newest checkpoint holds an absolute path, and the run does not lie there (any more).

    **Why it matters.** mmengine (`last_checkpoint`) and TensorFlow (`checkpoint`) follow the path as it stands: a
    resume of a run that was moved or copied stops, or loads the file at the old place.

    **How to repair.** Put the new path into the file, or name the checkpoint when resuming.
    """
    found = _pointed(run)
    if found is None or not found[1].startswith("/"):
        return
    path, target = found
    home, _, name = target.rpartition("/")
    entry = {"tensorflow": f"{name}.index"}.get(run.layout, name)
    if entry in run.listing.files and os.path.realpath(home) != os.path.realpath(run.listing.root):
        yield Hit(f"it holds an absolute path; {name} is here", path, detail=(f"it says {target}",))


RULES: tuple[Rule, ...] = (pointer_elsewhere,)
