"""Where a checkpoint's files are DeepSpeed's: the assembly of its tag."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt_tools.layouts.assembly import Assembly
from ckpt_tools.layouts.assembly_zero_names import chosen
from ckpt_tools.layouts.assembly_zero_ranks import ZeroAssembly
from ckpt_tools.layouts.assembly_zero_tag import Tag
from ckpt_tools.layouts.assembly_zero_universal import UniversalAssembly

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
