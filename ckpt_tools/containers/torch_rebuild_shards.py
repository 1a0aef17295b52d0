"""Which block of the whole the piece in a ``DTensor`` is, as one rank's pickle tells it.

The rules are those of ``torch/distributed/tensor/_utils.py`` (``_compute_local_shape_and_global_offset``): one
dimension of the mesh after the other, a ``Shard`` cuts what is left as ``torch.chunk`` does.  The rank's place in the
mesh is pickled with it (``_coordinate_on_dim``).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ckpt_tools.model.tensors import Box, TensorRef
from ckpt_tools.model.values import Opaque, Value

MAX_AXES = 16
SPEC = "_spec"
LOCAL = "_local_tensor"


def box(spec: Value, shape: tuple[int, ...]) -> Box | None:
    """Return ``(offsets, sizes)`` of the block that a spec stands for, None where it cannot be told."""
    state = _state(spec)
    mesh = _state(state.get("mesh"))
    counts, at, placements = _counts(mesh), mesh.get("_coordinate_on_dim"), state.get("placements")
    if counts is None or not isinstance(at, tuple | list) or not isinstance(placements, tuple | list):
        return None
    if not len(counts) == len(at) == len(placements) <= MAX_AXES:
        return None
    if not all(type(place) is int and 0 <= place < count for place, count in zip(at, counts, strict=True)):
        return None
    cuts = [_cut(placement, len(shape)) for placement in placements]
    order = _order(state, [cut for cut in cuts if cut is not None], counts) if None not in cuts else None
    if order is None:
        return None
    offsets, sizes = [0] * len(shape), list(shape)
    for dim, axis in order:
        each = -(-sizes[dim] // counts[axis])
        begin = min(each * at[axis], sizes[dim])
        offsets[dim] += begin
        sizes[dim] = min(each, sizes[dim] - begin)
    return tuple(offsets), tuple(sizes)


def rank(spec: Value) -> int | None:
    """Return the rank that pickled a spec, None where it does not say."""
    found = _state(_state(spec).get("mesh")).get("_rank")
    return found if type(found) is int else None


def _state(value: Value) -> Mapping[str, Value]:
    return value.state if isinstance(value, Opaque) and isinstance(value.state, dict) else {}


def _counts(mesh: Mapping[str, Value]) -> list[int] | None:
    """Return the sizes of a mesh: of its tensor of ranks, or, from torch 2.10 on, of its layout."""
    ranks, layout = mesh.get("mesh"), _state(mesh.get("_layout"))
    if isinstance(ranks, TensorRef):
        counts = list(ranks.shape)
    elif "axes" in layout:
        axes = layout["axes"] if isinstance(layout["axes"], tuple | list) else ()
        counts = [_product(_state(axis).get("shape")) for axis in axes]
    else:
        shape = layout.get("shape")
        counts = [_product(each) for each in (shape if isinstance(shape, tuple | list) else (shape,))]
    return counts if counts and all(0 < count < 1 << 31 for count in counts) else None


def _product(shape: Value) -> int:
    """Return the product of a size, or of a tuple of sizes; 0 where it is neither."""
    sizes = shape if isinstance(shape, tuple | list) else (shape,)
    return prod(sizes) if len(sizes) <= MAX_AXES and all(type(size) is int for size in sizes) else 0


def _cut(placement: Value, dimensions: int) -> tuple[str, int, int] | None:
    """Return ``(kind, dimension, split factor)`` of a placement, None for one of which there is no block."""
    kind = placement.qualname.rpartition(".")[2] if isinstance(placement, Opaque) else ""
    if kind == "Replicate":
        return kind, 0, 1
    state = _state(placement)
    dim, factor = state.get("dim"), state.get("split_factor", 1)
    if kind not in ("Shard", "_StridedShard") or type(dim) is not int or type(factor) is not int:
        return None
    return (kind, dim, factor) if 0 <= dim < dimensions else None


def _order(
    state: Mapping[str, Value], cuts: list[tuple[str, int, int]], counts: list[int]
) -> list[tuple[int, int]] | None:
    """Return ``(dimension of the tensor, of the mesh)`` in the order in which the cuts were made.

    A strided one was made after those of its dimension that follow it: FSDP over tensor parallelism.
    """
    told = state.get("shard_order")
    if isinstance(told, tuple | list) and told:
        return _told(told, cuts)
    order: list[tuple[int, int]] = []
    for axis, (kind, dim, factor) in enumerate(cuts):
        later = [other for other in range(axis + 1, len(cuts)) if cuts[other][:2] == ("Shard", dim)]
        if kind == "_StridedShard" and factor > 1:
            if factor != prod(counts[other] for other in later) or any(cut[0] == kind for cut in cuts[axis + 1 :]):
                return None
            order += [(dim, other) for other in later] + [(dim, axis)]
            continue
        if kind != "Replicate" and (dim, axis) not in order:
            order.append((dim, axis))
    return order


def _told(entries: tuple[Value, ...] | list[Value], cuts: list[tuple[str, int, int]]) -> list[tuple[int, int]] | None:
    order: list[tuple[int, int]] = []
    for entry in entries:
        if not isinstance(entry, Opaque) or len(entry.args) != 2 or not isinstance(entry.args[1], tuple | list):
            return None
        order += [(entry.args[0], axis) for axis in entry.args[1]]
    wanted = {(dim, axis) for axis, (kind, dim, _) in enumerate(cuts) if kind == "Shard"}
    plain = all(kind in ("Shard", "Replicate") for kind, _, _ in cuts)
    return order if plain and len(order) == len(wanted) and _same(order, wanted) else None


def _same(order: list[tuple[int, int]], wanted: set[tuple[int, int]]) -> bool:
    return all(type(dim) is int and type(axis) is int for dim, axis in order) and set(order) == wanted
