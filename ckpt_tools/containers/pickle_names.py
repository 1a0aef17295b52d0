"""Names for the tensors inside decoded values: their key paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, Pairs, Value

SHOWN = 10
LONGEST_PREFIX = 512
_CONTAINERS = (dict, list, tuple, Opaque, Pairs)


def named(value: Value, inner: Mapping[int, tuple[TensorRef, dict[str, TensorRef]]]) -> Iterable[tuple[str, TensorRef]]:
    if isinstance(value, TensorRef):
        value = {"tensor": value}
    fruitless: set[int] = set()
    work: list[Any] = [(_branches(value), "", id(value), [0])]
    while work:
        branches, prefix, at, found = work[-1]
        for key, child in branches:
            if isinstance(child, TensorRef):
                found[0] += 1
                name = prefix + key
                yield name, child
                if id(child) in inner:
                    yield from ((f"{name}.{part}", ref) for part, ref in inner[id(child)][1].items())
            elif isinstance(child, _CONTAINERS) and id(child) not in fruitless:
                longer = f"{prefix}{key}."[:LONGEST_PREFIX] if key else prefix
                work.append((_branches(child), longer, id(child), [0]))
                break
        else:
            work.pop()
            if not found[0]:
                fruitless.add(at)
            elif work:
                work[-1][3][0] += found[0]


def _branches(value: Value) -> Iterable[tuple[str, Value]]:
    if isinstance(value, dict):
        return ((key if type(key) is str else _text(key), child) for key, child in value.items())
    if isinstance(value, Pairs):
        return ((_text(key), child) for key, child in value.pairs)
    if isinstance(value, Opaque):
        branches: list[tuple[str, Value]] = [("args", value.args), ("", value.state)]
        pairs = bool(value.items) and all(type(item) is tuple and len(item) == 2 for item in value.items)
        branches.append(("", Pairs(value.items)) if pairs else ("items", value.items))
        return iter(branches)
    if isinstance(value, list | tuple):
        return ((str(position), child) for position, child in enumerate(value))
    return ()


def _text(key: Value) -> str:
    if isinstance(key, str):
        return key[:4096]
    if isinstance(key, int | float | bool) or key is None:
        return str(key)
    if isinstance(key, tuple) and len(key) <= 16 and all(isinstance(part, int | str) for part in key):
        return ",".join(str(part)[:256] for part in key)
    return f"<{key.qualname if isinstance(key, Opaque) else type(key).__name__}>"


def several(names: Iterable[str], total: int | None = None) -> str:
    """Return the first ten names, then how many more there are."""
    listed = list(names)
    more = (total if total is not None else len(listed)) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" ... and {more:,} more" if more > 0 else "")
