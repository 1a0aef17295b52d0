"""Plans as JSON, versioned; the schema is in ``docs/edits.md``."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

from ckpt_tools.model.plan import (
    Absent,
    Action,
    AppendBytes,
    CutFile,
    Guard,
    MoveFile,
    PatchBytes,
    Plan,
    Room,
    Seen,
    TruncateTo,
    WriteFile,
)

SCHEMA = "ckpt-tools/plan/1"


def to_document(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON; bytes are Base64."""
    return {
        "schema": SCHEMA,
        "title": plan.title,
        "actions": [_action(action) for action in plan.actions],
        "guards": [_guard(guard) for guard in plan.guards],
    }


def from_document(document: Any) -> Plan:
    """Return the plan that ``to_document`` wrote.

    Raises:
        ValueError: it is none, it is of a later version, or it would touch what no plan may touch.
    """
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        raise ValueError(f"not a plan of schema {SCHEMA}")
    title, actions, guards = document.get("title"), document.get("actions"), document.get("guards", [])
    if not isinstance(title, str) or not isinstance(actions, list) or not isinstance(guards, list):
        raise ValueError("the plan is damaged")
    return Plan(title, tuple(map(_read_action, actions)), tuple(map(_read_guard, guards)))


def _text(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def _action(action: Action) -> dict[str, Any]:
    match action:
        case PatchBytes(path, offset, old, new):
            return {"kind": "patch", "path": path, "offset": offset, "old": _text(old), "new": _text(new)}
        case AppendBytes(path, offset, data):
            return {"kind": "append", "path": path, "offset": offset, "data": _text(data)}
        case TruncateTo(path, size, old):
            return {"kind": "truncate", "path": path, "size": size, "old": _text(old)}
        case CutFile(path, size, length, kept):
            return {"kind": "cut", "path": path, "size": size, "length": length, "kept": kept}
        case WriteFile(path, new, previous):
            shown = None if previous is None else _text(previous)
            return {"kind": "write", "path": path, "new": _text(new), "old": shown}
        case MoveFile(path, to):
            return {"kind": "move", "path": path, "to": to}


def _guard(guard: Guard) -> dict[str, Any]:
    match guard:
        case Seen(path, size, mtime_ns):
            return {"kind": "seen", "path": path, "size": size, "mtime_ns": mtime_ns}
        case Absent(path):
            return {"kind": "absent", "path": path}
        case Room(size):
            return {"kind": "room", "size": size}


class _Fields:
    """The fields of one object, each of the type that is asked for."""

    def __init__(self, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise ValueError("the plan is damaged")
        self._value = value

    def text(self, name: str) -> str:
        found = self._value.get(name)
        if not isinstance(found, str):
            raise ValueError(f"the plan is damaged: {name!r} is no text")
        return found

    def number(self, name: str) -> int:
        found = self._value.get(name)
        if type(found) is not int:
            raise ValueError(f"the plan is damaged: {name!r} is no number")
        return found

    def data(self, name: str) -> bytes:
        try:
            return b64decode(self.text(name), validate=True)
        except binascii.Error as error:
            raise ValueError(f"the plan is damaged: {name!r} is no Base64") from error

    def maybe_data(self, name: str) -> bytes | None:
        return None if self._value.get(name) is None else self.data(name)


def _read_action(value: Any) -> Action:
    fields = _Fields(value)
    match fields.text("kind"):
        case "patch":
            return PatchBytes(fields.text("path"), fields.number("offset"), fields.data("old"), fields.data("new"))
        case "append":
            return AppendBytes(fields.text("path"), fields.number("offset"), fields.data("data"))
        case "truncate":
            return TruncateTo(fields.text("path"), fields.number("size"), fields.data("old"))
        case "cut":
            return CutFile(fields.text("path"), fields.number("size"), fields.number("length"), fields.text("kept"))
        case "write":
            return WriteFile(fields.text("path"), fields.data("new"), fields.maybe_data("old"))
        case "move":
            return MoveFile(fields.text("path"), fields.text("to"))
        case other:
            raise ValueError(f"the plan has an action of unknown kind {other!r}")


def _read_guard(value: Any) -> Guard:
    fields = _Fields(value)
    match fields.text("kind"):
        case "seen":
            return Seen(fields.text("path"), fields.number("size"), fields.number("mtime_ns"))
        case "absent":
            return Absent(fields.text("path"))
        case "room":
            return Room(fields.number("size"))
        case other:
            raise ValueError(f"the plan has a guard of unknown kind {other!r}")
