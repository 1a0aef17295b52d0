"""Random edits and undos in random order always end in the original bytes, and plans survive JSON."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.core.errors import EditError
from ckpt_tools.core.listing import scan
from ckpt_tools.edits.apply import apply
from ckpt_tools.edits.back import history, newest, recover, undo
from ckpt_tools.edits.journal import Home, home_of
from ckpt_tools.model.plan import Action, AppendBytes, MoveFile, PatchBytes, Plan, TruncateTo, WriteFile
from ckpt_tools.model.plan_document import from_document, to_document
from tests.edits.cases import make, times
from tests.edits.crash import Quick, state, stop_at

NEW = st.binary(min_size=1, max_size=700)


@st.composite
def plans(draw: st.DrawFn, root: Path) -> Plan:
    """Draw a plan that fits what is in ``root``: up to three files, each changed in one way."""
    files = sorted(path for path, entry in scan(root).files.items() if entry.is_file)
    actions: list[Action] = []
    moves: list[Action] = []
    for path in draw(st.lists(st.sampled_from(files), min_size=1, max_size=3, unique=True)):
        data = (root / path).read_bytes()
        kind = draw(st.sampled_from(["patch", "append", "both", "truncate", "write", "new", "move"]))
        if kind in ("patch", "both") and data:
            at = draw(st.integers(0, len(data) - 1))
            new = draw(NEW)[: len(data) - at]
            actions.append(PatchBytes(path, at, data[at : at + len(new)], new))
        if kind in ("append", "both") or (kind in ("patch", "truncate") and not data):
            actions.append(AppendBytes(path, len(data), draw(NEW)))
        elif kind == "truncate":
            at = draw(st.integers(0, len(data) - 1))
            actions.append(TruncateTo(path, at, data[at:]))
        elif kind == "write":
            actions.append(WriteFile(path, draw(st.binary(max_size=900)), data))
        elif kind == "new":
            actions.append(WriteFile(f"{path}.{len(files)}.d/new", draw(NEW), None))
        elif kind == "move":
            moves.append(MoveFile(path, f"moved/{len(files)}/{path}"))
    return Plan.of("random", [*actions, *moves], scan(root).files)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_of_edits_and_undos_ends_in_the_original_bytes(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = make(Path(place) / "ckpt")
        home, original, original_times = home_of(root), state(root), times(root)
        states = [original]
        for _ in range(data.draw(st.integers(1, 7))):
            doing = data.draw(st.sampled_from(["edit", "edit", "undo", "fail"]))
            if doing == "undo" and len(states) > 1:
                undo(home, disk=Quick())
                states.pop()
            elif doing == "fail":
                at = data.draw(st.integers(4, 20))
                plan = data.draw(plans(root))
                interrupted(home, plan, at)
                if sum(edit.state == "done" for edit in history(home)) == len(states):
                    states.append(state(root))
            elif doing == "edit":
                apply(home, data.draw(plans(root)), disk=Quick())
                states.append(state(root))
            assert state(root) == states[-1]
        while newest(home) is not None:
            undo(home, disk=Quick())
            states.pop()
            assert state(root) == states[-1]
        assert state(root) == original
        assert times(root) == original_times


def interrupted(home: Home, plan: Plan, at: int) -> None:
    """Apply a plan on a disk that stops at a change, and recover."""
    try:
        apply(home, plan, disk=stop_at(at))
    except EditError:
        recover(home, disk=Quick())


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_plan_survives_json(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        plan = data.draw(plans(make(Path(place) / "ckpt")))
        assert from_document(json.loads(json.dumps(to_document(plan)))) == plan


KEYS = st.sampled_from(["kind", "path", "offset", "old", "new", "data", "size", "to", "mtime_ns", "title", "actions"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=9)
    | st.sampled_from(["patch", "write", "move", "seen"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=6),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_anything_else_is_a_value_error(value: object) -> None:
    for document in (value, {"schema": "ckpt-tools/plan/1", "title": "", "actions": [value], "guards": [value]}):
        try:
            from_document(document)
        except ValueError:
            continue
        assert isinstance(document, dict)
