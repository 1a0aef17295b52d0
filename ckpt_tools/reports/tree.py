"""Decoded values as lines for people and as JSON for programs: bounded, and without building what they describe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from ckpt_tools.containers.torch_values import dtype_name, numpy_dtype, numpy_scalar_value
from ckpt_tools.core.source import Extent
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, Pairs, Value, as_mapping
from ckpt_tools.reports.units import count

WIDTH = 96
_LABEL = 72
LONGEST_TEXT = 300
LONGEST_BYTES = 16
LONGEST_HEX = 64
HIDDEN = "(hidden)"
SECRETS = frozenset({"hub_token", "push_to_hub_token", "auth_token", "use_auth_token", "api_key", "password"})
"""Fields of pickled arguments that hold credentials: their values are never written."""
MOST_LINES = 2000

Numbers = Mapping[Extent, float | int | bool]
"""The values of single-element tensors by where their bytes lie."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a value is written: levels below the one asked for, entries of it, entries of what is inside."""

    depth: int = 4
    entries: int = 200
    inner: int = 12


@dataclass(frozen=True, slots=True)
class Tree:
    """One value to show under a name.

    ``folded`` replaces top entries that are long and seldom meant by a phrase (text only).
    """

    name: str
    value: Value
    numbers: Numbers = field(default_factory=dict)
    folded: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = Limits()

    def lines(self) -> list[str]:
        """Return the value as indented lines."""
        writer = _Writer(self)
        found: list[str] = []
        for line in writer.top():
            if len(found) >= MOST_LINES:
                found.append("... (cut here; ask for a part of it, or use --format json)")
                break
            found.append(line)
        return found

    def document(self) -> Any:
        """Return the value for JSON, complete but for long bytes, which are cut, and tensors, which are described."""
        return document(self.value, self.numbers)


class _Writer:
    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._limits = tree.limits
        self._brief = False

    def top(self) -> Iterator[str]:
        value = self._tree.value
        short = None if _entries(value) else self.inline(value, 4000)
        if short is not None:
            yield f"{self._tree.name}: {short}"
            return
        yield f"{self._tree.name}: {self._summary(value)}"
        yield from self._inside(value, 1, self._limits.entries)

    def _inside(self, value: Value, level: int, most: int) -> Iterator[str]:
        entries = _entries(value)
        if isinstance(value, list | tuple) and len(value) > 6 and _plain(value):
            text = ", ".join(self._scalar(child) or "" for child in value[:most])
            yield from wrap(text, WIDTH, initial_indent="  " * level, subsequent_indent="  " * level)
            entries = entries[most:]
            if entries:
                yield f"{'  ' * level}... and {len(entries):,} more"
            return
        for label, child in entries[:most]:
            yield from self._entry(label, child, level)
        if len(entries) > most:
            yield f"{'  ' * level}... and {len(entries) - most:,} more"

    def _entry(self, label: str, value: Value, level: int) -> Iterator[str]:
        indent = "  " * level
        if level == 1 and label in self._tree.folded:
            yield f"{indent}{label}: {self._tree.folded[label]}"
            return
        if label in SECRETS and value is not None:
            yield f"{indent}{label}: {HIDDEN}"
            return
        room = max(24, WIDTH - len(indent) - len(label) - 2)
        short = self.inline(value, room)
        if short is None and isinstance(value, dict):
            self._brief = True
            short = self.inline(value, room)
            self._brief = False
        if short is None and not _entries(value):
            short = self.inline(value, 4000)
        if short is not None:
            yield f"{indent}{label}: {short}"
            return
        yield f"{indent}{label}: {self._summary(value)}"
        if level < self._limits.depth:
            yield from self._inside(value, level + 1, self._limits.inner)

    def _summary(self, value: Value) -> str:
        number = len(_entries(value))
        if isinstance(value, Opaque):
            return repr(value)
        if isinstance(value, list):
            return f"list of {number:,}"
        if isinstance(value, tuple):
            return f"tuple of {number:,}"
        return count(number, "key") if isinstance(value, dict) else count(number, "pair")

    def inline(self, value: Value, room: int) -> str | None:
        """Return ``value`` on one line of at most ``room`` characters, None when it does not fit."""
        text = self._scalar(value)
        if text is not None:
            return text if len(text) <= room or room >= 4000 else None
        if isinstance(value, Opaque):
            return self._object(value, room)
        entries = _entries(value)
        if len(entries) * 3 > room:
            return self._sample(value, room) if isinstance(value, list | tuple) else None
        pieces: list[str] = []
        left = room - 2
        for label, child in entries:
            piece = self.inline(child, left)
            if piece is None:
                return self._sample(value, room) if isinstance(value, list | tuple) else None
            if not isinstance(value, list | tuple):
                piece = f"{label}: {HIDDEN if label in SECRETS and child is not None else piece}"
            left -= len(piece) + 2
            if left < -2:
                return self._sample(value, room) if isinstance(value, list | tuple) else None
            pieces.append(piece)
        opening, closing = ("[", "]") if isinstance(value, list) else ("(", ")") if isinstance(value, tuple) else "{}"
        return f"{opening}{', '.join(pieces)}{closing}"

    def _sample(self, value: list[Value] | tuple[Value, ...], room: int) -> str | None:
        """Return the beginning of a long list of plain numbers; other lists are worth a line for each entry."""
        if room < 48 or not _plain(value):
            return None
        pieces: list[str] = []
        used = 2 + len(f", ... and {len(value):,} more")
        for child in value:
            piece = self._scalar(child) or ""
            if used + len(piece) + 2 > room:
                break
            used += len(piece) + 2
            pieces.append(piece)
        opening, closing = ("[", "]") if isinstance(value, list) else ("(", ")")
        return f"{opening}{', '.join(pieces)}, ... and {len(value) - len(pieces):,} more{closing}"

    def _object(self, value: Opaque, room: int) -> str | None:
        number = numpy_scalar_value(value)
        if number is not None:
            return f"{number!r} <{value.qualname}>"
        if (array := _array(value)) is not None:
            return array
        if (named := dtype_name(value)) is not None:
            return f"torch.{named}"
        if value.state is not None or value.items:
            return None
        if not value.args:
            return f"<{value.qualname}()>" if value.called else f"<{value.qualname}>"
        inside = self.inline(list(value.args), room - len(value.qualname) - 3)
        return None if inside is None else f"<{value.qualname} {inside[1:-1]}>"

    def _scalar(self, value: Value) -> str | None:
        if value is None or isinstance(value, bool):
            return str(value)
        if isinstance(value, int):
            return str(value) if value.bit_length() <= 1024 else f"{value:#x}"[:40] + f"... ({value.bit_length()} bits)"
        if isinstance(value, float | complex):
            return f"{value:.6g}" if self._brief else repr(value)
        if isinstance(value, str):
            more = f"... ({len(value):,} characters)" if len(value) > LONGEST_TEXT else ""
            return repr(value[:LONGEST_TEXT]) + more
        if isinstance(value, bytes):
            more = " ..." if len(value) > LONGEST_BYTES else ""
            return f"{count(len(value), 'byte')}: {value[:LONGEST_BYTES].hex(' ')}{more}" if value else "0 bytes"
        if isinstance(value, TensorRef):
            return tensor(value, number_of(value, self._tree.numbers))
        return None if isinstance(value, list | tuple | dict | Pairs | Opaque) else repr(value)


def number_of(ref: TensorRef, numbers: Numbers) -> float | int | bool | None:
    """Return the value of a single-element tensor, None where it was not read."""
    return numbers.get(ref.chunks[0].extent) if ref.numel == 1 and len(ref.chunks) == 1 else None


def tensor(ref: TensorRef, number: float | int | bool | None = None) -> str:
    """Return ``float32[16, 8]``, with the class around it and the value of a single element where they are known."""
    kind = f"{ref.kind.rpartition('.')[2]} " if ref.kind else ""
    value = "" if number is None else f" = {number!r}"
    return f"{kind}{ref.dtype}{list(ref.shape)}{value}"


def _entries(value: Value) -> list[tuple[str, Value]]:
    mapping = as_mapping(value)
    found: list[tuple[str, Value]] = []
    if isinstance(value, dict) or (mapping is not None and mapping):
        found = [(_label(key), child) for key, child in (mapping or {}).items()]
    elif isinstance(value, Pairs):
        found = [(_label(key), child) for key, child in value.pairs]
    elif isinstance(value, list | tuple):
        return [(f"[{position}]", child) for position, child in enumerate(value)]
    if isinstance(value, Opaque):
        if value.args:
            found.append(("args", value.args))
        if isinstance(value.state, dict):
            found += [(_label(key), child) for key, child in value.state.items()]
        elif value.state is not None:
            found.append(("state", value.state))
        if value.items and mapping is None:
            found.append(("items", value.items))
    return found


def _plain(value: list[Value] | tuple[Value, ...]) -> bool:
    return all(isinstance(child, int | float | None) for child in value[:1000])


def _label(key: Value) -> str:
    if isinstance(key, str):
        shown = key if len(key) <= _LABEL else f"{key[: _LABEL - 3]}..."
        return shown if key.isprintable() and key else repr(shown)
    if isinstance(key, Opaque):
        return f"<{key.qualname}>"
    return str(key)[:120] if isinstance(key, float | None) or _small(key) else f"<{type(key).__name__}>"


def _small(key: Value) -> bool:
    return isinstance(key, int) and key.bit_length() <= 1024


def _array(value: Opaque) -> str | None:
    """Return ``numpy uint32[624]`` for a described numpy array."""
    state = value.state
    if not value.qualname.endswith("multiarray._reconstruct") or not isinstance(state, tuple) or len(state) != 5:
        return None
    dtype = numpy_dtype(state[2])
    if dtype is None or not isinstance(state[1], tuple):
        return None
    return f"numpy {dtype[0]}{list(state[1])}"


# JSON ------------------------------------------------------------------------------------------------------


def document(value: Value, numbers: Numbers | None = None) -> Any:
    """Return ``value`` in the terms of JSON; what JSON has no word for is an object with one key in ``$``."""
    numbers = numbers or {}
    if isinstance(value, dict):
        return _mapping(list(value.items()), numbers)
    if isinstance(value, Pairs):
        return _mapping(value.pairs, numbers)
    if isinstance(value, list | tuple):
        return [document(child, numbers) for child in value]
    if isinstance(value, Opaque):
        return _object(value, numbers)
    if isinstance(value, TensorRef):
        return tensor_document(value, number_of(value, numbers))
    if isinstance(value, bytes):
        return {"$bytes": len(value), "hex": value[:LONGEST_HEX].hex()}
    if isinstance(value, complex):
        return {"$complex": [value.real, value.imag]}
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 1024:
        return {"$int": hex(value)}
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def tensor_document(ref: TensorRef, number: float | int | bool | None = None) -> dict[str, Any]:
    """Return a tensor's description for JSON."""
    found: dict[str, Any] = {"dtype": ref.dtype, "shape": list(ref.shape), "bytes": ref.nbytes}
    if ref.kind:
        found["kind"] = ref.kind
    if ref.storage_id is not None:
        found["storage"] = ref.storage_id
    if number is not None:
        found["value"] = number
    return {"$tensor": found}


def _mapping(pairs: list[tuple[Value, Value]], numbers: Numbers) -> Any:
    names = [key if isinstance(key, str) else _label(key) for key, _ in pairs]
    if len(set(names)) != len(names):
        return {"$pairs": [[document(key, numbers), document(child, numbers)] for key, child in pairs]}
    return {
        name: HIDDEN if name in SECRETS and child is not None else document(child, numbers)
        for name, (_, child) in zip(names, pairs, strict=True)
    }


def _object(value: Opaque, numbers: Numbers) -> dict[str, Any]:
    found: dict[str, Any] = {"$object": value.qualname}
    number = numpy_scalar_value(value)
    if number is not None:
        found["value"] = number
        return found
    if value.args:
        found["args"] = document(value.args, numbers)
    if value.state is not None:
        found["state"] = document(value.state, numbers)
    if value.items:
        found["items"] = document(value.items, numbers)
    return found
