"""CK1xx: entries of a directory that are not the plain files their names promise."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_tools.containers.pickle_names import several
from ckpt_tools.core.listing import Kind
from ckpt_tools.model.checkpoint import Checkpoint, Part, Role
from ckpt_tools.model.findings import Impact, Severity
from ckpt_tools.rules.base import Context, Hit, Rule, rule


@rule("CK110", "not-a-regular-file", Severity.ERROR, Checkpoint, impact=None)
def not_a_regular_file(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Under the name of a file is a directory, a pipe, a socket, or a link that leads nowhere or in a circle.

    **Why it matters.** Loaders test for a regular file and take it as missing; a directory called `optimizer.pt` stops
    a resume. Such an entry is never opened here: opening a pipe would wait for ever.

    **How to repair.** For a dangling link bring back what it points to: in a Hugging Face cache the `blobs` directory
    has to be copied along.
    """
    for part in checkpoint.parts:
        if not part.stat.is_file:
            target = f"points to {part.stat.link}" if part.stat.link else ""
            impact = _as_missing(part, checkpoint, context)
            yield Hit(
                f"is a {part.stat.kind}, not a regular file",
                part.path,
                detail=(target,) if target else (),
                severity=Severity.WARNING if impact.harmless else None,
                impact=impact,
            )


def _as_missing(part: Part, checkpoint: Checkpoint, context: Context) -> Impact:
    """The Trainer asks for a regular file, and any directory with ``optimizer`` in its name counts as one."""
    need = context.view.need(part.role)
    trap = part.role is Role.OPTIMIZER and part.stat.kind is Kind.DIRECTORY
    return need.missing if checkpoint.layout == "hf-trainer" and not trap else need.damaged


@rule("CK122", "symbolic-link", Severity.NOTE, Checkpoint)
def symbolic_link(checkpoint: Checkpoint, context: Context) -> Iterator[Hit]:
    """Some files of the checkpoint are symbolic links.

    **Why it matters.** A Hugging Face cache is made of links and that is fine. A copy that does not follow them copies
    names without contents, and an edit would change the file behind the link: nothing is written through one here.

    **How to repair.** Nothing needs to be done; copy with `cp -L` or `rsync -L`.
    """
    linked = [part.path for part in checkpoint.parts if part.stat.link and part.stat.is_file]
    if linked:
        yield Hit(f"{len(linked)} of {len(checkpoint.parts)} files are symbolic links: {several(linked)}")


RULES: tuple[Rule, ...] = (not_a_regular_file, symbolic_link)
