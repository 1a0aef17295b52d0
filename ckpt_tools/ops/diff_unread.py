"""What a comparison says of tensors that are not read by this version, and of those that only count."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_tools.core.errors import SourceError
from ckpt_tools.layouts.assembly_orbax import PIECES
from ckpt_tools.layouts.view import View
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.ops import unread
from ckpt_tools.ops.diff_targets import Target
from ckpt_tools.ops.diff_tensors import is_dense, same_bytes
from ckpt_tools.ops.diff_values import MOST_CHANGES
from ckpt_tools.reports.diff import MISSING, Change, Section

_STORED = (Role.COMBINED, Role.METADATA, Role.CHUNKS, Role.MODEL_STATES, Role.OPTIMIZER_STATES)


def outline(view: View) -> dict[str, str]:
    """Return what is told of tensors that are not read, by item and name."""
    return {
        f"{each.place}/{name}" if each.place else name: text
        for each in view.assemblies
        for name, text in each.outline.items()
    }


def arrays(views: tuple[View, View]) -> Section | None:
    """Compare what is told of tensors that are not read; in what pieces they were written is a matter of storage."""
    sides = [outline(view) for view in views]
    if not all(sides):
        return None
    found: list[Change] = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        one, other = (side.get(name, MISSING) for side in sides)
        comparable = MISSING in (one, other) or one.startswith(PIECES) == other.startswith(PIECES)
        if one != other and comparable:
            found.append(Change(name, one, other))
    stored = all(
        each.left is not MISSING and each.right is not MISSING and each.left.startswith(PIECES) for each in found
    )
    shown = tuple(found[:MOST_CHANGES])
    return Section("arrays", "arrays described", shown, counts=not stored, left_out=len(found) - len(shown))


def counters(view: View) -> dict[str, TensorRef]:
    """Return the lone numbers that are neither the model's nor the optimizer's."""
    others = [(name, ref) for each in view.assemblies for name, ref in each.other_tensors.items()]
    return {
        name: ref for name, ref in others if not ref.shape and is_dense(ref) and not any(c.inside for c in ref.chunks)
    }


def told(targets: tuple[Target, Target], *, deep: bool) -> Iterator[str]:
    """Yield why the weights of a side were not compared, unless all that is stored is the same byte by byte."""
    found = [(target, left) for target in targets if (left := unread.why(target.view))]
    if found and not (deep and _identical(targets)):
        yield from dict.fromkeys(f"the weights are not compared: {left[0]}" for _, left in found)


def _identical(targets: tuple[Target, Target]) -> bool:
    sides = [_stored(target) for target in targets]
    if sides[0].keys() != sides[1].keys():
        return False
    try:
        for name, one in sides[0].items():
            other = sides[1][name]
            if not (one.stat.is_file and other.stat.is_file) or one.stat.size != other.stat.size:
                return False
            with targets[0].view.listing.open(one.path) as left, targets[1].view.listing.open(other.path) as right:
                if not same_bytes((left, 0), (right, 0), left.size):
                    return False
    except SourceError:
        return False
    return True


def _stored(target: Target) -> dict[str, Part]:
    """Return the files that hold what is not read, by name; a single file by none."""
    parts = [part for part in target.view.checkpoint.parts if part.role in _STORED]
    return {"": parts[0]} if target.file and len(parts) == 1 else {part.path: part for part in parts}
