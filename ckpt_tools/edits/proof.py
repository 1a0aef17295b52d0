"""Whether the values of a file differ from what they were by exactly what was planned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_tools.containers import reader
from ckpt_tools.containers.base import Content
from ckpt_tools.containers.pickle_positions import Keys
from ckpt_tools.core.source import Extent, Source
from ckpt_tools.edits import inside
from ckpt_tools.layouts.view import View
from ckpt_tools.model import scalars
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.tensors import Chunk, TensorRef
from ckpt_tools.model.values import Opaque, Pairs, Value, as_mapping, step


@dataclass(frozen=True, slots=True)
class Changed:
    """A place as it was and will be; ``new`` is what the file can hold (a tensor's number is rounded)."""

    part: Part
    keys: Keys
    old: Value
    new: Value

    @property
    def key(self) -> str:
        if self.part.role is Role.CHUNKS:  # the first is a name, dots and all
            return str(self.keys[0]) + "".join(map(step, self.keys[1:]))
        return shown(self.keys)


def shown(keys: Keys) -> str:
    """Return a key path as people write it."""
    return "".join(map(step, keys)).removeprefix(".")


def prove(
    before: View, after: View, changed: Sequence[Changed], moved: Callable[[str], str] = lambda path: path
) -> str | None:
    """Return what is not exactly as planned in the files as they are now, None when all is.

    ``before`` is the view that the plan was made with, ``after`` a new one of the same checkpoint; ``moved`` gives the
    name that a file of the former has in the latter.
    """
    parts = {part.path: part for part in after.checkpoint.parts}
    for path in dict.fromkeys(change.part.path for change in changed):
        part = parts.get(moved(path))
        own = [change for change in changed if change.part.path == path]
        if part is None:
            return f"{path}: is gone"
        with after.listing.open(part.path) as source:
            source.name = path  # the places of tensors begin with it, and are compared with those before
            if part.role is Role.CHUNKS:
                reason = _unmet_inside(before, after, part, own, source)
            else:
                was = before.content(own[0].part)
                now = reader.read(source, part.containers)
                reason = unmet(was, now, own, source) if was is not None else "is gone"
        if reason is not None:
            return f"{path}: {reason}"
    return None


def _unmet_inside(before: View, after: View, part: Part, changed: Sequence[Changed], source: Source) -> str | None:
    """Compare the files inside of a data file that were meant to change; all other bytes have no action at all."""
    by_name: dict[str, list[Changed]] = {}
    for change in changed:
        by_name.setdefault(change.keys[0], []).append(change)
    for inner in inside.opened(after, part, by_name, source):
        was = inside.kept(before, part, inner.name)
        if was is None:
            return f"what {inner.name} was is not known"
        reason = unmet(was, inner.content, by_name[inner.name], inner.source)
        if reason is not None:
            return reason
    return None


def unmet(before: Content, after: Content, changed: Sequence[Changed], source: Source) -> str | None:
    """Return where the values of a file differ from what they were by more or less than ``changed``."""
    if not after.readable:
        return "it cannot be decoded afterwards: " + "; ".join(problem.message for problem in after.problems)
    kinds = {problem.kind for problem in before.problems}
    new = next((problem for problem in after.problems if problem.kind not in kinds), None)
    if new is not None:
        return f"it would be damaged afterwards: {new.message}"
    if set(before.globals) < set(after.globals):
        return "it refers to more classes afterwards"
    tree: Any = {}
    for change in changed:
        if not change.keys:
            tree = _Leaf(change.new)
            break
        node = tree
        for key in change.keys[:-1]:
            node = node.setdefault(key, {})
        node[change.keys[-1]] = _Leaf(change.new)
    shift = after.size - before.size if before.container == "torch-legacy" else 0  # its tensors lie behind the pickle
    return next(_unequal(before.value, after.value, tree, source, (), shift), None)


@dataclass(frozen=True, slots=True)
class _Leaf:
    new: Value


def _unequal(a: Value, b: Value, plan: Any, source: Source, keys: Keys, shift: int) -> Iterator[str]:
    """Yield what differs and was not planned, and what was planned and is not there."""
    if isinstance(plan, _Leaf):
        now = tensor_number(source, b) if isinstance(b, TensorRef) else b
        if not (same(now, plan.new) and type(now) is type(plan.new)):
            yield f"{shown(keys)} is {now!r} and not {plan.new!r}"
        return
    if plan is None:
        if not same(a, b, shift):
            yield f"{shown(keys) or 'the whole'} changes as well"
        return
    left, right = as_mapping(a), as_mapping(b)
    if left is None and isinstance(a, list | tuple) and type(a) is type(b):
        left, right = dict(enumerate(a)), dict(enumerate(b))
    if left is None or right is None or list(left) != list(right):
        yield f"{shown(keys) or 'the whole'} changes as a whole"
        return
    for key, value in left.items():
        yield from _unequal(value, right[key], plan.get(key), source, (*keys, key), shift)


def same(a: Value, b: Value, shift: int = 0) -> bool:
    """Return whether two decoded values say the same; NaN is the same as NaN, and ``b``'s bytes may lie further on."""
    if a is b and not shift:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(value, b[key], shift) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(one, other, shift) for one, other in zip(a, b, strict=True))
    if isinstance(a, Opaque):
        return a.qualname == b.qualname and same((a.args, a.state, a.items), (b.args, b.state, b.items), shift)
    if isinstance(a, Pairs):
        return same(a.pairs, b.pairs, shift)
    if shift and isinstance(a, TensorRef):
        return bool(_moved(a, shift) == b)
    return bool(a == b or (a != a and b != b))


def _moved(ref: TensorRef, shift: int) -> TensorRef:
    chunks = [
        Chunk(each.offsets, each.sizes, moved(each.extent, shift), each.strides, each.byteorder) for each in ref.chunks
    ]
    return TensorRef(ref.fqn, ref.dtype, ref.shape, tuple(chunks), ref.storage_id, ref.kind)


def moved(extent: Extent, shift: int) -> Extent:
    """Return the same run of bytes, further on."""
    return Extent(extent.path, extent.offset + shift, extent.length)


# Numbers in tensors ----------------------------------------------------------------------------------------


def tensor_number(source: Source, ref: TensorRef) -> float | int | None:
    """Return the one element of a tensor, None where it is none or of another type."""
    if ref.numel != 1 or len(ref.chunks) != 1:
        return None
    extent = ref.chunks[0].extent
    return unpacked(ref, source.read(extent.offset - source.base, extent.length))


def unpacked(ref: TensorRef, raw: bytes) -> float | int | None:
    """Return the number that the bytes of a tensor of one element are, None where its type is no number's."""
    if ref.dtype == "bool" or not scalars.known(ref.dtype):
        return None
    return scalars.decoded(raw, ref.dtype, ref.chunks[0].byteorder)


def packed(ref: TensorRef, value: float | int) -> bytes:
    """Return the bytes of a tensor of one element that is ``value``."""
    return scalars.encoded(value, ref.dtype, ref.chunks[0].byteorder)
