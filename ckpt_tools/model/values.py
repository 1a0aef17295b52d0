"""Values decoded from pickles and JSON, with every object of a pickle described and never built.

A decoded value is one of: None, bool, int, float, complex, str, bytes, list, tuple, dict, ``Opaque``,
``Pairs`` or a ``TensorRef``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Value = Any
"""Any decoded value; see the module's text for the closed list."""


@dataclass(slots=True, eq=False)
class Opaque:
    """An object that a pickle would build: ``qualname`` is ``"module.name"``, nothing was imported.

    ``args`` are the arguments it would be called with (empty for a bare reference to a class or function),
    ``state`` what it would be given afterwards, ``items`` what would be appended, added or set
    (pairs for the last).
    """

    qualname: str
    args: tuple[Value, ...] = ()
    state: Value = None
    items: list[Value] = field(default_factory=list)
    called: bool = False

    def __repr__(self) -> str:
        return f"<{self.qualname}>"


@dataclass(slots=True, eq=False)
class Pairs:
    """A dictionary whose keys cannot, or must not, be hashed: its pairs in the order they were written."""

    pairs: list[tuple[Value, Value]]

    def __repr__(self) -> str:
        return f"<dictionary of {len(self.pairs)} pairs>"


def children(value: Value) -> Iterator[tuple[str, Value]]:
    """Yield ``(key path step, child)`` of one decoded value: ``.name`` for text keys, ``[0]`` for the rest."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield step(key), child
    elif isinstance(value, list | tuple):
        for position, child in enumerate(value):
            yield f"[{position}]", child
    elif isinstance(value, Pairs):
        for key, child in value.pairs:
            yield step(key), child
    elif isinstance(value, Opaque):
        if value.args:
            yield ".args", value.args
        if value.state is not None:
            yield ".state", value.state
        if value.items:
            yield ".items", value.items


LONGEST_STEP = 1000
"""Characters of a key that a key path shows: a key of megabytes would be copied once per place it is used in."""


def step(key: Value) -> str:
    """Return how a dictionary key is written in a key path."""
    if type(key) is int:
        return f"[{key}]"
    if isinstance(key, str) and len(key) > LONGEST_STEP:
        key = key[:LONGEST_STEP]
    if isinstance(key, str) and key and not any(mark in key for mark in '.[]"'):
        return f".{key}"
    if isinstance(key, str):
        return f'["{key}"]'
    if isinstance(key, int | float | bool) or key is None:
        return f"[{key}]"
    return f"[<{type(key).__name__}>]"


def lookup(value: Value, path: str) -> Iterator[tuple[str, Value]]:
    """Yield ``(full key path, value)`` for a dotted path such as ``param_groups[*].lr``.

    ``[*]`` stands for every element of a list, tuple or dictionary.  Nothing is yielded where the path leads
    nowhere.
    """
    steps = [piece for piece in path.replace("[", ".[").split(".") if piece]
    yield from _lookup(value, steps, "")


def _lookup(value: Value, steps: list[str], at: str) -> Iterator[tuple[str, Value]]:
    if not steps:
        yield at.removeprefix("."), value
        return
    head, rest = steps[0], steps[1:]
    if type(value) is dict and head in value and head[0] != "[":  # what the loop below would find, found at once
        yield from _lookup(value[head], rest, f"{at}.{head}")
        return
    for key, child in children(value):
        if head == "[*]" or key in (head, f".{head}"):
            yield from _lookup(child, rest, at + key)


def as_mapping(value: Value) -> Mapping[Any, Value] | None:
    """Return ``value`` as a mapping where it is one, an ``OrderedDict``-like object included."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Opaque) and value.items and all(isinstance(item, tuple) for item in value.items):
        return dict(value.items)
    return None


def real(value: Value) -> float | None:
    """Return a number as a float, None for anything else (a truth value, an integer too large for a float)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if isinstance(value, float) or abs(value) < 1e300 else None


def whole(value: Value) -> int | None:
    """Return a number without a fraction as an integer of 64 bits, None for anything else."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1 << 63 else None
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else None
