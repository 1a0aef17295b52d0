"""Where a checkpoint's files are DeepSpeed's: the assembly of its tag."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt_tools.layouts.assembly import Assembly
from ckpt_tools.layouts.assembly_zero_names import chosen
from ckpt_tools.layouts.assembly_zero_ranks import ZeroAssembly
from ckpt_tools.layouts.assembly_zero_tag import Tag
from ckpt_tools.layouts.assembly_zero_universal import UniversalAssembly
from ckpt_tools.model.checkpoint import Role

if TYPE_CHECKING:
    from ckpt_tools.layouts.view import View


def assemble(view: View) -> list[Assembly]:
    """Return the assembly of the tag that a checkpoint holds, none where it holds none."""
    folder = chosen(view.listing)
    if folder is None:
        return []
    tag = Tag(view, folder)
    return [UniversalAssembly(tag) if tag.universal else ZeroAssembly(tag)]


def tag_of(view: View) -> Tag | None:
    """Return the tag that a checkpoint holds."""
    return next((each.tag for each in view.assemblies if isinstance(each, ZeroAssembly)), None)


def reads_schedule(view: View) -> bool:
    """Return whether the Trainer reads ``scheduler.pt``: with DeepSpeed only where that has no schedule of its own.

    ``Trainer._load_optimizer_and_scheduler``; with FSDP it does as without either.
    """
    if view.elsewhere == "DeepSpeed":
        first = tag.first if (tag := tag_of(view)) is not None else {}
        return bool(first) and first.get("lr_scheduler") is None
    return view.elsewhere in (None, "FSDP")


def skipped(view: View) -> int:
    """Return how many steps may have been skipped, as float16 does: DeepSpeed counts them, a scaler does not."""
    if view.checkpoint.has(Role.SCALER):
        return 1 << 63
    return tag.skipped if (tag := tag_of(view)) is not None else 0
