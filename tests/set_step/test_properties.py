"""Random edits and undos in random order always end in the original bytes, names and times."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.core.listing import SIDECAR
from ckpt_tools.ops.set_lr import set_lr
from ckpt_tools.ops.set_step import set_step
from ckpt_tools.ops.undo import undo
from tests.conftest import FIXTURES

DAY = 86_400 * 10**9
CASES = (
    ("trainer5-full", "checkpoint-4"),
    ("trainer5-adafactor-cosine", "checkpoint-3"),
    ("plain/schedules/CosineAnnealingLR.pt", ""),
)
RATES = st.floats(1e-9, 10.0)
EDITS = st.one_of(
    st.tuples(st.just("rate"), RATES),
    st.tuples(st.just("peak"), RATES),
    st.tuples(st.just("scale"), st.floats(1e-3, 1e3)),
    st.tuples(st.just("group"), RATES),
    st.tuples(st.just("step"), st.integers(0, 1 << 40)),
    st.tuples(st.just("optimizer"), st.integers(0, 70_000)),
    st.tuples(st.just("rename"), st.integers(7, 99)),
    st.tuples(st.just("undo"), st.just(0)),
    st.tuples(st.just("undo"), st.just(0)),
)


def state(root: Path) -> dict[str, tuple[str, int]]:
    """Every file by its digest, and the times of files and directories."""
    return {
        path.relative_to(root).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
        )
        for path in root.rglob("*")
        if SIDECAR not in path.parts
    }


def edited(path: Path, kind: str, number: float) -> bool:
    """Make an edit; return whether there was one to make."""
    try:
        if kind == "rate":
            return set_lr(str(path), number).applied
        if kind == "peak":
            return set_lr(str(path), peak=number).applied
        if kind == "scale":
            return set_lr(str(path), scale=number).applied
        if kind == "group":
            return set_lr(str(path), number, groups=[0]).applied
        if kind == "optimizer":
            return set_step(str(path), int(number), only=["optimizer"]).applied
        return set_step(str(path), int(number), rename=kind == "rename").applied
    except EditRefusedError as error:
        if "is 0" not in str(error):  # a schedule that has ended, as the step says
            raise
        return False


@pytest.mark.parametrize(("fixture", "inner"), CASES)
@settings(max_examples=8, deadline=None)
@given(edits=st.lists(EDITS, min_size=1, max_size=6))
def test_any_order_of_edits_and_undos_ends_in_the_original_bytes(
    fixture: str, inner: str, edits: list[tuple[str, float]]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        target = root / Path(fixture).name
        root.mkdir()
        if inner:
            shutil.copytree(FIXTURES / fixture, target)
        else:
            shutil.copy2(FIXTURES / fixture, target)
        for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
            os.utime(path, ns=(DAY, (number + 10) * DAY + 123_456_789))
        states, names = [state(root)], [target / inner]
        for kind, number in edits:
            path = names[-1]
            if kind == "undo":
                if len(states) > 1:
                    undo(str(path))
                    states.pop()
                    names.pop()
                    assert state(root) == states[-1]
            elif (kind != "rename" or inner) and edited(path, kind, number):
                states.append(state(root))
                names.append(path.with_name(f"checkpoint-{int(number)}") if kind == "rename" else path)
        while len(states) > 1:
            undo(str(names[-1]))
            states.pop()
            names.pop()
            assert state(root) == states[-1]
