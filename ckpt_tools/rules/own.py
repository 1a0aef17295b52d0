"""CK0xx: the tool's own affairs.  These are raised by the engine itself; the functions here hold their pages."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from ckpt_tools.model.checkpoint import Checkpoint, Part
from ckpt_tools.model.findings import BREAKS_ALL, Severity
from ckpt_tools.rules.base import Context, Hit, Rule, rule


@rule("CK001", "rule-crashed", Severity.FATAL, Checkpoint)
def rule_crashed(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A rule of this tool failed on this input, so what it checks is not known.

    **Why it matters.** Clean means checked. The fault is in ckpt-tools, not in your checkpoint; the other rules were
    run.

    **How to repair.** Please report it with the file that the finding names.
    """
    yield from ()


@rule("CK002", "unreadable-file", Severity.FATAL, Part, impact=BREAKS_ALL)
def unreadable_file(part: Part, context: Context) -> Iterator[Hit]:
    """The system refused to open or read the file: permission, an I/O error, a stale mount.

    **Why it matters.** Nothing can be said of the contents; a loader on this machine would stop here too. The exit
    code is 3, not 1: it is not known to be damaged.

    **How to repair.** Look at the permissions; for an I/O error look at the disk (`dmesg`) before copying anything.
    """
    context.content(part)
    error = context.view.errors.get(part.path)
    if error is not None:
        need = context.view.need(part.role).damaged
        yield Hit(f"cannot be read: {error.reason.lower()}", part.path, impact=need)


@rule("CK003", "unlisted-directory", Severity.FATAL, Checkpoint, impact=BREAKS_ALL)
def unlisted_directory(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """A directory of the checkpoint could not be listed, or has more entries than are looked at.

    **Why it matters.** Files in it were not checked.

    **How to repair.** Look at the permissions of the directory.
    """
    for path, reason in checkpoint.listing.errors.items():
        yield Hit(f"cannot be listed: {reason.lower()}", path)


@rule("CK005", "pending-journal", Severity.ERROR, Checkpoint, impact=BREAKS_ALL)
def pending_journal(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """An edit by this tool was interrupted and not finished.

    **Why it matters.** Some of its files may have the new values and some the old ones. The journal knows both, so
    nothing is lost; other edits refuse until it is settled.

    **How to repair.** `ckpt undo CHECKPOINT` takes it back. `ckpt repair --write CHECKPOINT` notes that it is done
    where every change of it was made and lies on the disk, and only the mark of its end is missing; otherwise it takes
    it back too. The result is the old state or the new one, never a mixture.
    """
    for edit in context.view.pending:
        path = shlex.quote(os.path.normpath(os.path.join(context.run.root, checkpoint.path)))
        advice = f"`ckpt undo {path}` takes it back, `ckpt repair --write {path}` settles it"
        yield Hit(f"an edit was not finished: {edit}", help=advice)


@rule("CK240", "loader-refused", Severity.ERROR, Checkpoint, impact=None)
def loader_refused(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """The file's own library refused to load it (`--load`).

    **Why it matters.** The loader has the last word: what it refuses cannot be used, whatever the structure looks like.
    torch files are loaded with `weights_only=True` always; one that needs more is reported and not loaded. Where its
    own library loads it without that safety (DeepSpeed, Megatron-LM, a plain loop), it is listed as not loaded.

    **How to repair.** Paste the loader's message into `ckpt explain "..."`.
    """
    yield from ()


RULES: tuple[Rule, ...] = (rule_crashed, unreadable_file, unlisted_directory, pending_journal, loader_refused)
