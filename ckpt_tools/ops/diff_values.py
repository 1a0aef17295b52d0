"""Two decoded values, compared: which keys differ, with float noise overlooked and long lists aligned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ckpt_tools.containers.torch_values import dtype_name, numpy_scalar_value
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, Pairs, Value, as_mapping, step
from ckpt_tools.reports.diff import MISSING, Change
from ckpt_tools.reports.tree import HIDDEN, SECRETS

NOISE = 1e-9
"""Relative difference of two floats that is no difference: the same number after another order of operations."""

MOST_VALUES = 2_000_000
MOST_CHANGES = 1000
ALIGNED = 1000
"""The most values inside two lists of unlike length that deepdiff aligns; of larger ones the lengths are told."""

Number = Callable[[TensorRef], float | int | bool | str | None]
"""Says what stands for a tensor: its one number, a fingerprint of its bytes, or None for dtype and shape alone."""


class TooMuchError(Exception):
    """A value with so many parts, shared ones counted each time, that it is not walked."""


def plain(value: Value, number: Number, left: list[int] | None = None) -> Any:
    """Return a decoded value in terms of dict, list and scalars, so that two of them can be compared.

    An enumeration member is the text it stands for, an object the dictionary of its fields, a tensor of one element
    its number, any other tensor its dtype and shape.

    Raises:
        TooMuchError: there is no end of it.
    """
    left = [MOST_VALUES] if left is None else left
    left[0] -= 1
    if left[0] < 0:
        raise TooMuchError
    if isinstance(value, dict):
        return {_key(key): plain(child, number, left) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child, number, left) for child in value]
    if isinstance(value, Pairs):
        return [[plain(key, number, left), plain(child, number, left)] for key, child in value.pairs]
    if isinstance(value, TensorRef):
        single = number(value)
        return f"{value.dtype}{list(value.shape)}" if single is None else single
    if isinstance(value, Opaque):
        return _object(value, number, left)
    return f"{len(value)} bytes: {value.hex()}" if isinstance(value, bytes) else value


def _object(value: Opaque, number: Number, left: list[int]) -> Any:
    scalar = numpy_scalar_value(value)
    if scalar is not None:
        return scalar
    named = dtype_name(value)
    if named is not None:
        return f"torch.{named}"
    if value.state is None and not value.items:
        if not value.called:
            return f"<{value.qualname}>"
        if len(value.args) == 1 and isinstance(value.args[0], str | int | float):
            return value.args[0]
    mapping = as_mapping(value)
    if mapping is not None:
        return plain(dict(mapping), number, left)
    if value.qualname in ("builtins.set", "builtins.frozenset", "__builtin__.set") and len(value.args) == 1:
        inside = plain(value.args[0], number, left)
        return sorted(inside, key=repr) if isinstance(inside, list) else inside
    found: dict[str, Any] = {}
    if isinstance(value.state, dict):
        found.update(plain(value.state, number, left))
    elif value.state is not None:
        found["state"] = plain(value.state, number, left)
    if value.args:
        found["args"] = plain(value.args, number, left)
    if value.items:
        found["items"] = plain(value.items, number, left)
    return found or f"<{value.qualname}>"


def _key(key: Value) -> Any:
    return key if isinstance(key, str | int | float | bool) or key is None else f"<{type(key).__name__}>"


def same(left: Any, right: Any) -> bool:
    """Return whether two plain values are equal but for float noise; NaN equals NaN, 1 equals 1.0."""
    if left is right:
        return True
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return _close(left, right)
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(child, right[key]) for key, child in left.items())
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def _close(left: float, right: float) -> bool:
    if left == right or (left != left and right != right):
        return True
    if isinstance(left, int) and isinstance(right, int):
        return False
    try:
        return math.isclose(left, right, rel_tol=NOISE)
    except OverflowError:
        return False


def changes(left: Any, right: Any, at: str = "") -> list[Change]:
    """Return what differs between two plain values, by key path, at most ``MOST_CHANGES``."""
    found: list[Change] = []
    for change in _changes(left, right, at):
        if len(found) == MOST_CHANGES:
            break
        found.append(change)
    return found


def _changes(left: Any, right: Any, at: str) -> Iterator[Change]:
    if same(left, right):
        return
    if isinstance(left, dict) and isinstance(right, dict):
        yield from _keys(left, right, at)
    elif isinstance(left, list) and isinstance(right, list) and not _scalars(left, right):
        if len(left) == len(right):
            for number, (one, other) in enumerate(zip(left, right, strict=True)):
                yield from _changes(one, other, f"{at}[{number}]")
        elif _size(left, ALIGNED) + _size(right, ALIGNED) <= ALIGNED:
            yield from _aligned(left, right, at)
        else:
            yield Change(at, f"list of {len(left):,}", f"list of {len(right):,}")
    else:
        yield Change(at.removeprefix("."), left, right)


def _keys(left: Mapping[Any, Any], right: Mapping[Any, Any], at: str) -> Iterator[Change]:
    for key in [*left, *(key for key in right if key not in left)]:
        path = f"{at}{step(key)}".removeprefix(".")
        one, other = left.get(key, MISSING), right.get(key, MISSING)
        if key in SECRETS and one is not MISSING and other is not MISSING:
            if not same(one, other):
                yield Change(path, HIDDEN, HIDDEN)
        elif one is MISSING or other is MISSING:
            shown = (HIDDEN if key in SECRETS and each not in (MISSING, None) else each for each in (one, other))
            yield Change(path, *shown)
        else:
            yield from _changes(one, other, path)


def _scalars(left: list[Any], right: list[Any]) -> bool:
    """Return whether both are lists of plain scalars that are short or of unlike length: those are shown whole."""
    if any(isinstance(each, dict | list) for each in [*left, *right]):
        return False
    return max(len(left), len(right)) <= 8 or len(left) != len(right)


def _size(value: Any, most: int) -> int:
    """Return the number of values inside ``value``, counted no further than ``most``."""
    total, work = 0, [value]
    while work and total <= most:
        item = work.pop()
        total += 1
        work += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return total


def _aligned(left: list[Any], right: list[Any], at: str) -> Iterator[Change]:
    """Yield the differences of two lists of unlike length, those in both found in their new places."""
    from deepdiff import DeepDiff

    found = DeepDiff(left, right, view="tree", ignore_order=True, report_repetition=True)
    for group in found.values():
        for level in group:
            path = at + "".join(
                f"[{part}]" if isinstance(part, int) else step(part) for part in level.path(output_format="list")
            )
            one, other = (MISSING if _absent(side) else side for side in (level.t1, level.t2))
            if one is MISSING or other is MISSING or not same(one, other):
                yield Change(path.removeprefix("."), one, other)


def _absent(side: Any) -> bool:
    return type(side).__name__ == "NotPresent"
