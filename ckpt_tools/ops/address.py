"""``PATH[:FILE[:key.path]]``: which file a target names, and which part of its value."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ckpt_tools.core.errors import NothingFoundError
from ckpt_tools.core.listing import SIDECAR, scan
from ckpt_tools.layouts.match import is_prefix
from ckpt_tools.model.values import Opaque, Pairs, Value, as_mapping
from ckpt_tools.ops import numbered

SHOWN_KEYS = 12
_INDEX = re.compile(r"\[(-?\d+|\*)\]")
_AT = re.compile(r"(?P<words>.+?@\d{1,18})(?::(?P<rest>.*))?\Z", re.DOTALL)
_QUOTED = re.compile(r"\[\"([^\"]*)\"\]|\['([^']*)'\]")


@dataclass(frozen=True, slots=True)
class Address:
    """``path`` exists.  ``file`` is the file to look into, None for a whole run or checkpoint; ``key`` may be empty."""

    path: str
    file: str | None = None
    key: str = ""


def split(target: str) -> Address:
    """Take a target apart; of several readings the one with the longest existing path is meant.

    Raises:
        NothingFoundError: no beginning of the target exists, or the directory holds no such file.
    """
    head, rest = _longest(target, "")
    if head is None and is_prefix(target):
        return Address(target)
    if head is None and (match := _AT.match(target)):
        head, rest = numbered.named(match["words"]), match["rest"] or ""
    if head is None:
        raise NothingFoundError(f"{target}: no such file or directory")
    if not rest:
        return Address(head) if os.path.isdir(head) else Address(head, head)
    if not os.path.isdir(head):
        return Address(head, head, rest)
    file, key = _longest(rest, head)
    if file is None or os.path.isdir(file):
        raise _no_file(head, rest)
    return Address(head, file, key)


def _longest(text: str, root: str) -> tuple[str | None, str]:
    """Return the longest beginning of ``text``, cut at a colon, that exists below ``root``, and what follows it."""
    end = len(text)
    while end > 0:
        path = os.path.join(root, text[:end])
        if "\0" not in path and os.path.lexists(path):
            return path, text[end + 1 :]
        end = text.rfind(":", 0, end)
    return None, text


def _no_file(directory: str, wanted: str) -> NothingFoundError:
    name = wanted.split(":", 1)[0]
    listing = scan(directory, depth=2)
    names = [path for path, entry in listing.files.items() if entry.is_file and not path.startswith(SIDECAR)]
    return NothingFoundError(f"{directory}: no file {name!r} in it", hint=f"there are: {near(name, names)}")


def near(wanted: str, names: Iterable[str]) -> str:
    """Return the names of which one was probably meant, the closest first, and how many more there are."""
    every = list(dict.fromkeys(names))
    close = difflib.get_close_matches(wanted, every[:5000], SHOWN_KEYS, 0.6)
    ordered = close + [name for name in every if name not in set(close)]
    shown = ", ".join(ordered[:SHOWN_KEYS])
    return f"{shown}, ... and {len(ordered) - SHOWN_KEYS:,} more" if len(ordered) > SHOWN_KEYS else shown or "none"


def resolve(value: Value, key: str, name: str) -> list[tuple[str, Value]]:
    """Return ``(key path, value)`` of everything that ``key`` names inside ``value``.

    Keys that contain dots need no quotes, ``[-1]`` counts from the end, ``[*]`` is every element, and the beginning
    of dotted tensor names stands for all tensors below it.

    Raises:
        NothingFoundError: there is no such key; the keys that there are come with it.
    """
    misses: list[tuple[str, Value, str]] = []
    found = list(_resolve(value, key, "", misses))
    if found:
        return found
    at, parent, rest = max(misses, key=lambda miss: len(miss[0]), default=("", value, key))
    place = f" in {at.removeprefix('.')}" if at else ""
    wanted = re.split(r"[.\[]", rest.lstrip("."))[0] or rest
    names = [step for step, _ in _children(parent)]
    hint = f"there are: {near(wanted, names)}" if names else f"it is {_described(parent)}, with nothing inside"
    raise NothingFoundError(f"{name}: no {rest.lstrip('.')!r}{place}", hint=hint)


def _resolve(value: Value, rest: str, at: str, misses: list[tuple[str, Value, str]]) -> Iterator[tuple[str, Value]]:
    if not rest:
        yield at.removeprefix("."), value
        return
    steps = list(_steps(value, rest))
    if not steps:
        misses.append((at, value, rest))
    for step, child, after in steps:
        yield from _resolve(child, after, at + step, misses)


def _steps(value: Value, rest: str) -> Iterator[tuple[str, Value, str]]:
    """Yield ``(step, child, what is left of the path)`` for the children that ``rest`` means in its best reading."""
    if match := _INDEX.match(rest):
        yield from _indexed(value, match[1], rest[match.end() :])
        return
    quoted = _QUOTED.match(rest)
    if quoted:
        wanted = quoted[1] if quoted[1] is not None else quoted[2]
        yield from ((step, child, rest[quoted.end() :]) for step, child in _children(value) if step == wanted)
        return
    text = rest.removeprefix(".")
    best = None
    below = {}
    for name, child in _children(value):
        if text.startswith(name) and text[len(name) :][:1] in ("", ".", "[") and name:
            if best is None or len(name) > len(best[0]):
                best = (name, child)
        elif name.startswith(f"{text}."):
            below[name[len(text) + 1 :]] = child
    if best is not None:
        yield _step(best[0], value), best[1], text[len(best[0]) :]
    elif below:
        yield _step(text), below, ""


def _indexed(value: Value, index: str, rest: str) -> Iterator[tuple[str, Value, str]]:
    every = list(_children(value))
    if index == "*":
        yield from ((_step(name, value), child, rest) for name, child in every)
    elif isinstance(value, list | tuple):
        number = int(index)
        if -len(value) <= number < len(value):
            yield f"[{number % len(value)}]", value[number], rest
    else:
        yield from ((f"[{name}]", child, rest) for name, child in every if name == index)


def _step(name: str, parent: Value = None) -> str:
    if isinstance(parent, list | tuple):
        return f"[{name}]"
    return f".{name}" if name and not any(mark in name for mark in '[]"') else f'["{name}"]'


def _children(value: Value) -> Iterator[tuple[str, Value]]:
    """Yield the name and value of everything directly inside; an object's fields stand for the object."""
    mapping = as_mapping(value)
    if mapping is not None:
        yield from ((_name(key), child) for key, child in mapping.items())
    elif isinstance(value, Pairs):
        yield from ((_name(key), child) for key, child in value.pairs)
    elif isinstance(value, list | tuple):
        yield from ((str(position), child) for position, child in enumerate(value))
    if isinstance(value, Opaque):
        if isinstance(value.state, Mapping):
            yield from ((_name(key), child) for key, child in value.state.items())
        elif value.state is not None:
            yield "state", value.state
        if value.args:
            yield "args", value.args
        if value.items and mapping is None:
            yield "items", value.items


def _name(key: Value) -> str:
    return key if isinstance(key, str) else str(key) if isinstance(key, int | float) or key is None else f"<{key!r}>"


def _described(value: Value) -> str:
    if isinstance(value, Opaque):
        return f"<{value.qualname}>"
    return "empty" if value in ({}, [], ()) else f"of type {type(value).__name__}"
